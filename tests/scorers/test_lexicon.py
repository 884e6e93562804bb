"""The word list: what it holds, what it finds in disguise, what it must never find, how it scores and masks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dialtune.data.corpus import blunt_summary, of_kind, packaged
from dialtune.scorers.base import probabilities
from dialtune.scorers.lexicon import (
    CLEAN_LOGIT,
    LEXICON,
    MASK,
    MAX_LOGIT,
    find_words,
    form_pattern,
    load_entries,
    load_lexicon,
    mask_words,
    read_entries,
)

FORMS = [form for entry in load_entries() for form in entry.forms]
WORDS = sorted({form for form in FORMS if form.isalpha()})
DIGITS = {"a": "4", "e": "3", "i": "1", "o": "0", "s": "5", "t": "7"}


def found(text: str) -> list[str]:
    return [text[match.start : match.stop] for match in find_words(text)]


# The list


def test_the_list_is_of_the_agreed_size_and_form() -> None:
    entries = load_entries()
    assert 250 <= len(entries) <= 400
    assert {entry.severity for entry in entries} == {1, 2, 3}
    assert [form for form in FORMS if not re.fullmatch(r"[a-z' /-]+", form)] == []
    assert [form for form in FORMS if form != form.strip() or "  " in form] == []


def test_no_form_is_listed_twice() -> None:
    assert sorted(FORMS) == sorted(set(FORMS))


def test_words_for_groups_of_people_are_not_listed() -> None:
    groups = "gay lesbian queer trans black white asian jew jewish muslim christian catholic arab gypsy immigrant "
    groups += "mexican chinese polish woman man girl disabled deaf blind autistic old young foreigner refugee atheist"
    assert found(f"They spoke of {groups}.") == []


def test_the_list_is_plain_text_with_its_licence() -> None:
    assert "Apache-2.0" in LEXICON.read_text(encoding="utf-8").partition("\n")[0]


def test_entries_are_read_line_by_line() -> None:
    entries = read_entries("# a comment\n\n3 one, one two\n1 three\n")
    assert [(entry.severity, entry.forms) for entry in entries] == [(3, ("one", "one two")), (1, ("three",))]


# What is found


@pytest.mark.parametrize(
    "text",
    [
        "idiot", "IDIOT", "Idiots!", "idiooooot", "1diot", "id10t", "id!ot", "i.d.i.o.t", "i-d-i-o-t", "i_d_i_o_t",
        "(idiot)", "_idiot_", "*idiot*", "“idiot”", "idiot's", "f**k", "f***", "fuuuuck", "FuCk", "sh1t", "sh!t",
        "$hit", "b*tch", "a$$", "@sshole", "half-wit", "halfwit", "half wit", "go  to\nhell",
        "shut up", "Shut the f*** up", "lying little rat", "old goat", "piece of shit",
    ],
)  # fmt: skip
def test_a_listed_word_is_found_in_any_disguise(text: str) -> None:
    assert len(find_words(f"He said: {text}, and left.")) >= 1


@pytest.mark.parametrize(
    "text",
    [
        "Scunthorpe", "class", "assess", "looser", "passage", "bass", "assassin", "cockpit", "Hancock", "peacock",
        "Dickens", "shell", "hello", "he'll", "she'll", "Michelle", "therapist", "grapefruit", "title", "shitake",
        "Sussex", "bumper", "sodium", "digit", "legit", "gitter", "jerky", "hagfish", "foolscap", "455 pounds",
        "the A55", "so* (see below)", "5 * 4", "B&B", "crock", "cluck", "duck", "fork", "shirt", "count",
    ],
)  # fmt: skip
def test_a_word_that_only_contains_or_resembles_one_is_not_found(text: str) -> None:
    assert found(f"They went to {text} on Monday.") == []


def test_phrases_win_over_the_words_in_them() -> None:
    assert [match.severity for match in find_words("stupid")] == [1]
    assert [match.severity for match in find_words("stupid cow")] == [2]
    assert len(find_words("lying little rat")) == 1


def test_places_are_places_in_the_text_as_given() -> None:
    text = "İİ IDIOT"  # the lower case of İ is two characters long
    assert found(text) == ["IDIOT"]
    assert mask_words(text) == f"İİ {MASK}"


@given(
    st.sampled_from(WORDS),
    st.lists(st.sampled_from([1, 3, 4]), min_size=30, max_size=30),
    st.lists(st.booleans(), min_size=30),
)
def test_capitals_and_drawn_out_letters_hide_no_listed_word(word: str, times: list[int], upper: list[bool]) -> None:
    drawn = "".join(c * n for c, n in zip(word, times, strict=False))
    shown = "".join(c.upper() if flag else c for c, flag in zip(drawn, upper * 8, strict=False))
    assert found(f"you {shown}.") != []


@given(st.sampled_from([word for word in WORDS if len(word) >= 4]), st.data())
def test_one_lookalike_or_star_inside_hides_no_listed_word(word: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(1, len(word) - 2))
    sign = data.draw(st.sampled_from(["*", DIGITS.get(word[place], "*")]))
    assert len(find_words(word[:place] + sign + word[place + 1 :])) == 1


@given(st.sampled_from(WORDS), st.sampled_from("qxzéß9"))
def test_a_listed_word_inside_a_longer_one_is_not_found(word: str, letter: str) -> None:
    for longer in (letter + word + letter, letter + word, word + letter):
        if longer.replace("9", "g") in WORDS:  # a 9 reads as a g, and some listed words end in one
            continue
        assert [match for match in find_words(longer) if match.stop - match.start >= len(word)] == []


@given(st.sampled_from(FORMS))
def test_every_form_matches_itself(form: str) -> None:
    plain = " ".join(word.split("/")[0] for word in form.split())
    assert re.fullmatch(form_pattern(form), plain)
    assert found(plain) != []


# Masking

MESSY = st.lists(st.one_of(st.sampled_from(WORDS), st.sampled_from(FORMS), st.text(max_size=6)), max_size=12)


@settings(max_examples=200)
@given(MESSY, st.sampled_from([" ", "", ".", "-", "*", "\n"]))
def test_nothing_is_left_after_masking(parts: list[str], joint: str) -> None:
    text = joint.join(parts)
    masked = mask_words(text)
    assert find_words(masked) == ()
    assert mask_words(masked) == masked


@given(MESSY)
def test_masking_changes_only_what_was_found(parts: list[str]) -> None:
    text = " ".join(parts)
    rest, end = [], 0
    for match in find_words(text):
        assert end <= match.start < match.stop
        rest += [text[end : match.start]]
        end = match.stop
    assert mask_words(text) == MASK.join([*rest, text[end:]])


def test_a_summary_stays_readable() -> None:
    assert mask_words("#Person1# calls #Person2# a stupid, crooked weasel over 940 dollars.") == (
        f"#Person1# calls #Person2# a {MASK}, {MASK} over 940 dollars."
    )


# Scoring


@pytest.mark.parametrize(
    ("text", "logit"),
    [
        ("They meet at ten.", -4.0),
        ("", -4.0),
        (" \n", -4.0),
        ("That is damn late.", -0.5),  # 1.5 * 1 - 2
        ("What an idiot.", 1.0),  # 1.5 * 2 - 2
        ("Fuck.", 2.5),  # 1.5 * 3 - 2
        ("A moron and an idiot.", 4.0),  # 1.5 * 4 - 2
        ("idiot " * 50, 8.5),
    ],
)
def test_log_odds_follow_the_summed_severity(text: str, logit: float) -> None:
    assert load_lexicon().logits([text]).tolist() == [logit]


def test_one_rude_word_is_not_toxic_and_one_insult_is() -> None:
    rude, insult = probabilities(load_lexicon(), ["How silly.", "You fool."])
    assert rude < 0.5 < insult


@given(st.lists(st.text(max_size=30), max_size=5))
def test_any_text_gets_a_finite_value(texts: list[str]) -> None:
    logits = load_lexicon().logits(texts)
    assert logits.shape == (len(texts),)
    assert ((logits >= CLEAN_LOGIT) & (logits <= MAX_LOGIT)).all()


@pytest.mark.parametrize("unit", ["f*", "*", "i1", "l1|!", "a", "$", "s-", "you ", "f.u.c.", "stupid old "])
def test_a_hostile_text_costs_no_more_than_its_length(unit: str) -> None:
    assert np.isfinite(load_lexicon().logits([unit * 5_000])).all()  # exponential matching would meet the time-out


def test_it_tells_blunt_summaries_from_civil_ones() -> None:
    heated = of_kind(packaged("validation"), "heated")
    texts = [blunt_summary(example) or "" for example in heated] + [example.references[0] for example in heated]
    labels = [1] * len(heated) + [0] * len(heated)
    assert len(heated) == 16
    assert roc_auc_score(labels, load_lexicon().logits(texts)) >= 0.95


def test_the_signature_names_the_list_by_its_content() -> None:
    known = load_lexicon().settings()
    assert list(known) == ["scorer", "sha", "label", "link", "max"]
    assert re.fullmatch(r"[0-9a-f]{8}", known["sha"])
