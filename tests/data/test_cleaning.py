"""Cleaning: each step does what its name says, tags survive, twice is once."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dialtune.data.cleaning import STEPS, TEXT_STEPS, choose_steps, clean_examples, clean_text
from dialtune.data.dialogue import parse_dialogue, render_dialogue
from dialtune.errors import ConfigError
from dialtune.types import Example, Message

WORDS = """<p> </p> <br/> <script> </script> <!-- --> &amp; &lt; &#35; &#10; amp; lt; â€™ Ã© Ã¢â‚¬â„¢ http:// www. a.b
***** ___ “ … — --- . Anna : #Person1# #Person2#: # Person1 é I Yes < > & don't"""
BLANKS = [
    "\u200b",
    "\u200d",
    "\u00ad",
    "\x00",
    "\x85",
    " , ",
    " ' s",
    "don ' t",
    " . ",
    " :",
    "10 : 30",
    "\t",
    "  ",
    "e\u0301",
]
NOISE = st.sampled_from([*WORDS.split(), *BLANKS, "\u2028", "\ufeff"])
SPEAKERS = st.sampled_from(["#Person1#", "#Person2#", "Anna", "Mr. Cole", ""])
TEXTS = st.lists(NOISE | st.text(max_size=4), max_size=14).map("".join)
TAG = re.compile(r"#Person\d+#")

BY_HAND = {
    "html_tags": [("<b>Hi</b> <3 <file_photo>", " Hi  <3 <file_photo>"), ("a<script>x=1</script>b", "a b")],
    "html_entities": [("Tom &amp; Ann&#39;s", "Tom & Ann's"), ("&amp;lt;", "<"), ("AT&T; R&D", "AT&T; R&D")],
    "mojibake": [("donâ€™t", "don’t"), ("cafÃ© Ã¢â‚¬â„¢", "café ’"), ("Âge, São", "Âge, São"), ("ðŸ˜€", "😀")],
    "control_characters": [("a\x00b\x07\u202ec\t", "abc\t")],
    "zero_width": [("a\u200bb\ufeff", "ab"), ("👨\u200d👩", "👨\u200d👩")],
    "urls": [("see http://a.b/c?d=1.", "see ."), ("www.x.org#Person1#", "#Person1#"), ("a.b 10:30", "a.b 10:30")],
    "unicode_nfc": [("e\u0301", "é")],
    "special_characters": [("“Hi” – it’s…", '"Hi" - it\'s...'), ("■ sale ***", "  sale  "), ("a--b", "a - b")],
    "tokenised_spacing": [
        ("Say , Jim , how about it ?", "Say, Jim, how about it?"),
        ("Good.Let ' s go now .", "Good. Let's go now."),
        ("I don ' t ( really ) know !", "I don't (really) know!"),
        ("at 10 : 30 , $ 5", "at 10:30, $5"),
        ("Already fine, U.S.A. :) don't.", "Already fine, U.S.A. :) don't."),
        ("the boys ' room", "the boys ' room"),
    ],
    "whitespace": [(" a \u00a0\t b \n\n c ", "a b\nc")],
}  # fmt: skip


@pytest.mark.parametrize(("step", "before", "after"), [(s, b, a) for s, rows in BY_HAND.items() for b, a in rows])
def test_each_step_does_what_its_name_says_and_no_more(step: str, before: str, after: str) -> None:
    assert TEXT_STEPS[step](before) == after


def test_every_text_step_has_a_case_by_hand() -> None:
    assert set(BY_HAND) == set(TEXT_STEPS)


@given(TEXTS)
@example("&amp;lt;b&amp;gt;")
@example("<b<i>>")
@settings(max_examples=400, deadline=None)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once


@given(TEXTS, st.sets(st.sampled_from(STEPS)))
@example("<b #Person1#> <script>#Person1#</script> <!-- #Person1# --> http://a.b/#Person1#", set(STEPS))
@settings(max_examples=300, deadline=None)
def test_no_step_loses_a_speaker_tag_inside_a_text(text: str, chosen: set[str]) -> None:
    cleaned = clean_text(text, choose_steps(chosen))
    assert not Counter(TAG.findall(text)) - Counter(TAG.findall(cleaned))


@given(st.lists(st.tuples(SPEAKERS, TEXTS), min_size=1, max_size=5))
@settings(max_examples=300, deadline=None)
def test_speakers_survive_and_the_result_still_round_trips(turns: list[tuple[str, str]]) -> None:
    messages = parse_dialogue("\n".join(f"{who}: {text}" if who else text for who, text in turns))
    if not messages:
        return
    cleaned = clean_examples([Example("1", messages, ("Fine.",))], [s for s in STEPS if s != "empty_turns"])
    for example_ in cleaned.examples:
        for before, after in zip(messages, example_.messages, strict=True):
            assert before.speaker in {after.speaker, ""}
    for example_ in clean_examples([Example("1", messages, ("Fine.",))]).examples:
        assert parse_dialogue(render_dialogue(example_.messages)) == example_.messages


def test_a_tag_hidden_by_noise_is_found_after_cleaning() -> None:
    messages = parse_dialogue("<p>Anna: hi</p>\n\u200b#Person1#: yo")
    assert [m.speaker for m in messages] == ["", ""]
    cleaned = clean_examples([Example("1", messages)]).examples[0]
    assert [(m.speaker, m.content) for m in cleaned.messages] == [("Anna", "hi"), ("#Person1#", "yo")]


def test_counts_samples_and_drops_are_reported_by_step() -> None:
    rows = [
        Example("1", (Message("user", "Hi , you .", "Anna"), Message("user", "\u200b", "Ben")), ("A &amp; B.",)),
        Example("2", (Message("user", "http://a.b", "Anna"),), ("x",)),
        Example("3", (Message("user", "ok", "Anna"),), ("<br>",)),
    ]
    cleaned = clean_examples(rows)
    assert cleaned.examples[0].messages == (Message("user", "Hi, you.", "Anna"),)
    assert cleaned.examples[0].references == ("A & B.",)
    assert cleaned.counts["tokenised_spacing"] == 1
    assert cleaned.counts["empty_turns"] == 2
    assert cleaned.dropped == {"no turn left": 1, "reference is empty": 1}
    assert cleaned.samples["html_entities"] == (("A &amp; B.", "A & B."),)


def test_at_most_three_samples_are_kept() -> None:
    rows = [Example(str(i), (Message("user", f"a  {i}", ""),)) for i in range(9)]
    cleaned = clean_examples(rows, ["whitespace"])
    assert cleaned.counts == {"whitespace": 9}
    assert len(cleaned.samples["whitespace"]) == 3


def test_a_step_that_is_switched_off_does_not_run() -> None:
    steps = choose_steps(without=["urls"])
    assert "urls" not in steps
    assert clean_text("see http://a.b", steps) == "see http://a.b"


def test_an_unknown_step_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"cleaning step: got 'emoji'; known: html_tags, .*empty_turns"):
        choose_steps(["emoji"])


@pytest.mark.timeout(30)
def test_a_hostile_text_takes_no_quadratic_time() -> None:
    for text in (
        "<!--" * 50_000,
        "<script>" * 30_000,
        "<b " * 60_000,
        "http://" * 30_000,
        "&#" * 90_000,
        " '" * 90_000,
    ):
        clean_text(text)


def test_a_document_keeps_its_lines_and_gets_no_speaker() -> None:
    messages = (Message("user", "Anna: one  two\nNext  line", ""),)
    assert clean_examples([Example("1", messages)]).examples[0].messages[0].content == "Anna: one two\nNext line"
