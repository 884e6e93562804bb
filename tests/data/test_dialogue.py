"""Turns: what is a speaker tag, what only looks like one, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialtune.data.dialogue import near_miss_tags, parse_dialogue, render_dialogue, split_tag
from dialtune.data.reading import iter_rows
from dialtune.types import Message

TAGS = ["#Person1#:", "#Person1# :", "#Person2#：", "Anna:", "Mr. Cole:", "Note:", "A:", "10:30", "Dr", "#", ":"]
PIECES = st.sampled_from([*TAGS, " ", "\n", "\r\n", "__eou__", ".", "\u2028"])


@pytest.mark.parametrize(
    ("line", "speaker", "content"),
    [
        ("#Person1#: Hi.", "#Person1#", "Hi."),
        ("#Person1#:Hi.", "#Person1#", "Hi."),
        ("#Person1# : Hi.", "#Person1#", "Hi."),
        ("#Person12#: Hi.", "#Person12#", "Hi."),
        ("#PErson2#: what's wrong?", "#PErson2#", "what's wrong?"),
        ("Anna: Hi.", "Anna", "Hi."),
        ("Mr. Cole: It is 10:30.", "Mr. Cole", "It is 10:30."),
        ("Mary-Jane O'Neil: Hi.", "Mary-Jane O'Neil", "Hi."),
        ("José: Hola.", "José", "Hola."),
        ("李: 你好", "李", "你好"),
        ("Speaker 2: Hi.", "Speaker 2", "Hi."),
        ("user: Hi.", "user", "Hi."),
        ("A: Hi.", "A", "Hi."),
        ("Anna:", "Anna", ""),
        ("Anna: Ben: hi", "Anna", "Ben: hi"),
    ],
)
def test_a_tag_is_taken_as_written(line: str, speaker: str, content: str) -> None:
    assert split_tag(line) == (speaker, content)


@pytest.mark.parametrize(
    "line",
    [
        "Note: http://example.org",
        "http://example.org: down",
        "10:30 is fine",
        "At 10:30: the train",
        "The thing is: I am late.",
        "Listen: we are late.",
        "Here's what I want: tea.",
        "I said: no.",
        "Monday: closed",
        "anna: hi",
        "and Anna: hi",
        "Anna:hi",
        "We met Anna. Ben: he was late",
        "Okay. So: no",
        "#hashtag: no",
        "# Person1: no",
        "Say , Jim : hi",
        "",
    ],
)
def test_a_sentence_with_a_colon_is_no_speaker(line: str) -> None:
    assert split_tag(line) == ("", line)


def test_an_eou_line_has_untagged_turns_and_no_empty_last_one() -> None:
    turns = parse_dialogue("Say , Jim . __eou__ You know : no . __eou__")
    assert turns == (Message("user", "Say , Jim .", ""), Message("user", "You know : no .", ""))


def test_every_kind_of_line_end_ends_a_turn_and_an_empty_turn_stays() -> None:
    turns = parse_dialogue("Anna: a\r\nBen: b\rCy:\n\nAnna: c")
    assert [(turn.speaker, turn.content) for turn in turns] == [("Anna", "a"), ("Ben", "b"), ("Cy", ""), ("Anna", "c")]
    assert render_dialogue(turns) == "Anna: a\nBen: b\nCy:\nAnna: c"


def test_chat_messages_are_rendered_with_their_role() -> None:
    assert render_dialogue([Message("user", "Hi."), Message("assistant", "Yes?")]) == "User: Hi.\nAssistant: Yes?"


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
@settings(max_examples=500, deadline=None)
def test_parsing_what_was_rendered_gives_the_same_turns(text: str) -> None:
    turns = parse_dialogue(text)
    assert parse_dialogue(render_dialogue(turns)) == turns


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
@settings(max_examples=300, deadline=None)
def test_parsing_loses_nothing_but_blanks_and_turn_marks(text: str) -> None:
    def bare(value: str) -> str:
        return "".join(value.replace("__eou__", "").replace("：", ":").split())

    assert bare(render_dialogue(parse_dialogue(text))) == bare(text)


def test_every_dialogsum_dialogue_round_trips(shared_data: Path) -> None:
    files = sorted(shared_data.glob("dialogsum/*.jsonl.gz"))
    assert len(files) == 3
    exact = total = 0
    for file in files:
        for _, row in iter_rows(file):
            text = row["dialogue"]
            turns = parse_dialogue(text)
            rendered = render_dialogue(turns)
            assert parse_dialogue(rendered) == turns
            assert "".join(rendered.split()) == "".join(text.split())
            assert all(turn.speaker for turn in turns)
            total, exact = total + 1, exact + (rendered == text)
    assert total == 13_460
    assert exact >= 11_700  # the others differ in blanks at the ends of a line only


@pytest.mark.parametrize("text", ["#Person 1# is", "Person1 is", "##Person1# is", "#person1# is", "#Person1##"])
def test_near_misses_of_a_tag_are_found(text: str) -> None:
    assert near_miss_tags(text)


@pytest.mark.parametrize("text", ["#Person1# meets #Person2#.", "#Person1##Person2#", "one person, 2 cats", "personal"])
def test_legal_tags_and_plain_words_are_no_near_miss(text: str) -> None:
    assert near_miss_tags(text) == []
