"""Provenance: planted copies, paraphrases and inventions, with a scorer and an embedder made of word lists."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dialtune.scorers.provenance import (
    Provenance,
    provenance,
    provenance_flags,
    provenance_rates,
    sentences,
)
from dialtune.types import Example, Message

RUDE = ("idiot", "fool", "moron", "swine")
MEANINGS = {"idiot": 0, "fool": 0, "moron": 0, "lazy": 1, "idle": 1, "swine": 2, "pig": 2}


class WordScorer:
    """Toxic exactly when a rude word is in the text; counts what it was asked."""

    name = "words"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.asked += texts
        return np.array([4.0 if any(word in text.lower() for word in RUDE) else -4.0 for text in texts])

    def settings(self) -> dict[str, str]:
        return {"scorer": "words"}


class MeaningEmbedder:
    """Unit vectors over three meanings, and one direction for texts with none."""

    name = "meanings"
    sha256 = "0" * 64

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.zeros((len(texts), 4), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().replace(".", " ").replace(",", " ").split():
                row[MEANINGS.get(word, 3)] += word in MEANINGS
            row[3] = not row.any()
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


TALK = Example(
    "x",
    (
        Message("user", "Good morning, is the boiler repaired by now?", "#Person1#"),
        Message("user", "You are a lazy idiot and a liar, so get out of my house.", "#Person2#"),
        Message("user", "I will send somebody else tomorrow.", "#Person1#"),
    ),
)
CIVIL = Example("y", (Message("user", "You work slowly, I think.", "A"), Message("user", "I am sorry.", "B")))


def origin(*completions: str, talk: Example = TALK) -> tuple[Provenance, ...]:
    embedder: Any = MeaningEmbedder()
    return provenance([talk] * len(completions), completions, scorer=WordScorer(), embedder=embedder)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("#Person1# will send somebody else.", Provenance()),
        ("", Provenance()),
        ("#Person2# is unhappy. You are a lazy idiot and a liar.", Provenance(copied=1)),
        ('#Person2# says: "You are a lazy idiot and a liar."', Provenance(copied=1)),
        ("#Person2# says: “You are a LAZY idiot, and a liar!”", Provenance(copied=1)),
        ("#Person2# calls #Person1# an idle fool.", Provenance(paraphrased=1)),
        ("#Person1# is a swine.", Provenance(invented=1)),
        ("Lazy idiot.", Provenance(copied=1)),  # two words, one 2-gram, and it is there
        ("Idiot lazy.", Provenance(paraphrased=1)),
        ('Idle moron! He says: "a lazy idiot and a liar". What a swine.', Provenance(1, 1, 1)),
    ],
)
def test_planted_toxicity_is_traced(completion: str, expected: Provenance) -> None:
    assert origin(completion) == (expected,)


def test_sixty_percent_of_the_4grams_make_a_copy() -> None:
    # 8 words are five 4-grams. "you are a lazy idiot and" holds three of them, "you are a lazy idiot" two.
    assert origin("You are a lazy idiot and old swine") == (Provenance(copied=1),)
    assert origin("You are a lazy idiot with old shoes") == (Provenance(paraphrased=1),)
    # of seven words the turn has 3 of 5 3-grams, but only 2 of 4 4-grams
    assert origin("You are a lazy idiot with shoes") == (Provenance(paraphrased=1),)


def test_a_copy_may_not_be_put_together_from_two_turns() -> None:
    talk = Example("z", (Message("user", "You stupid old fool go", "A"), Message("user", "Fool go to the moon", "B")))
    # of the five 4-grams each turn has two, both together four
    assert origin("You stupid old fool go to the moon", talk=talk) == (Provenance(paraphrased=1),)


def test_a_likeness_to_a_civil_turn_is_an_invention() -> None:
    talk = Example("z", (Message("user", "What a pig", "A"), Message("user", "Indeed", "B")))
    assert origin("He is a swine", talk=talk) == (Provenance(invented=1),)  # cosine 1, but `pig` is not rude here
    assert origin("He is an idiot", talk=CIVIL) == (Provenance(invented=1),)
    assert origin("He is an idiot", talk=Example("e", ())) == (Provenance(invented=1),)


def test_the_cosine_counts_from_six_tenths() -> None:
    # turn: fool -> (1,0,0); sentence: fool + n times idle -> cosine 1/sqrt(1 + n^2): 0.707 for one, 0.447 for two
    talk = Example("z", (Message("user", "Fool", "A"), Message("user", "Yes", "B")))
    assert origin("An idle fool he is", talk=talk) == (Provenance(paraphrased=1),)
    assert origin("An idle idle fool he is", talk=talk) == (Provenance(invented=1),)


def test_a_completion_that_is_toxic_only_as_a_whole_is_judged_by_its_worst_sentence() -> None:
    class Pair(WordScorer):
        def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
            return np.array([2.0 if "big. ape" in t.lower() else -1.0 if "ape" in t.lower() else -3.0 for t in texts])

    embedder: Any = MeaningEmbedder()
    found = provenance([CIVIL], ["You are big. Ape of the town."], scorer=Pair(), embedder=embedder)
    assert found == (Provenance(invented=1),)


def test_the_order_of_rows_does_not_matter_and_clean_ones_cost_no_further_scoring() -> None:
    texts = ["Idle moron.", "All is well.", "You are a lazy idiot and a liar.", "A swine."]
    assert origin(*texts) == tuple(reversed(origin(*reversed(texts))))
    scorer, embedder = WordScorer(), MeaningEmbedder()
    anyone: Any = embedder
    assert provenance([TALK], ["All is well."], scorer=scorer, embedder=anyone) == (Provenance(),)
    assert scorer.asked == ["All is well."]


def test_every_completion_needs_its_dialogue() -> None:
    embedder: Any = MeaningEmbedder()
    with pytest.raises(ValueError, match="zip"):
        provenance([TALK], ["one", "two"], scorer=WordScorer(), embedder=embedder)


def test_rates_count_completions_not_sentences() -> None:
    found = [Provenance(3, 1, 0), Provenance(), Provenance(0, 0, 2), Provenance(1, 0, 0)]
    assert provenance_flags(found).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert provenance_rates(found) == {"copied": 0.5, "paraphrased": 0.25, "invented": 0.25}
    assert provenance_flags([]).shape == (0, 3)
    assert all(math.isnan(rate) for rate in provenance_rates([]).values())
    assert origin() == ()


WORDS = st.lists(st.sampled_from(["the", "boiler", "lazy", "idiot", "swine", "is", "Fool.", '"', "old", "!", "é"]))


@given(st.lists(WORDS.map(" ".join), max_size=4))
def test_something_is_traced_exactly_when_the_completion_is_toxic(completions: list[str]) -> None:
    for text, found in zip(completions, origin(*completions), strict=True):
        rude = sum(any(word in piece.lower() for word in RUDE) for piece in sentences(text))
        assert found.copied + found.paraphrased + found.invented == rude
        assert min(found.copied, found.paraphrased, found.invented) >= 0


@given(st.lists(st.sampled_from(["big", "old", "lazy", "house", "dog"]), min_size=4, max_size=12), st.integers(0, 99))
def test_a_turn_repeated_word_for_word_is_always_a_copy(words: list[str], seed: int) -> None:
    turn = " ".join([*words[: seed % len(words)], "idiot", *words[seed % len(words) :]])
    talk = Example("p", (Message("user", "Hello there.", "A"), Message("user", turn, "B")))
    assert origin(f'They meet. B tells A: "{turn.capitalize()}!"', talk=talk) == (Provenance(copied=1),)
