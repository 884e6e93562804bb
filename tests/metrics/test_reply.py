"""Generic, echoing, repeating and distinct replies: rows by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.metrics.base import Metric
from dialtune.metrics.reply import (
    BUDGET,
    Distinct,
    EchoRate,
    GenericRate,
    RepetitionRate,
    echoed_share,
    frequent_replies,
    ngram_ids,
    repeated_share,
)
from dialtune.types import Example, Message


def row(key: str, *turns: str, reply: str = "Sure.") -> Example:
    return Example(key, tuple(Message("user", turn) for turn in turns), (reply,), {"dialogue": key, "turn": len(turns)})


def values(metric: Metric, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
    return [float(x) for x in metric.segments(texts, examples)[:, 0]]


# --- generic ---


def test_the_most_frequent_training_replies_are_generic() -> None:
    train = [row(str(k), f"q{k}", reply=text) for k, text in enumerate(
        ["I don't know.", "i don ' t know !", "I DON’T KNOW", "Yes.", "yes", "Yes!", "YES", "Twice.", "twice"]
    )]  # fmt: skip
    assert frequent_replies(train) == ("yes", "idontknow")
    assert frequent_replies(train, n=1) == ("yes",)
    metric = GenericRate().with_rows([], train)
    texts = ["I don't know.", "Yes, it is.", " yes ", "Twice.", ""]
    assert values(metric, texts, [row(str(k), f"c{k}") for k in range(5)]) == [1, 0, 1, 0, 1]


def test_without_training_rows_a_reply_to_three_contexts_is_generic() -> None:
    examples = [row("a", "One?"), row("b", "Two?"), row("c", "three?"), row("d", "THREE ?"), row("e", "Five?")]
    assert values(GenericRate(), ["OK.", "ok", "Ok!", "Fine.", "Fine."], examples) == [1, 1, 1, 0, 0]
    # The third and the fourth say the same: "Fine." has two contexts, and so has "OK." without the third.
    assert values(GenericRate(), ["OK.", "Fine.", "Fine.", "Fine.", "OK."], examples) == [0, 0, 0, 0, 0]


def test_the_source_of_the_list_is_in_the_signature() -> None:
    train = [row(str(k), f"q{k}", reply="Yes.") for k in range(3)]
    by_train = GenericRate().with_rows([], train).signature((1, 1))
    # sha256 of "yes" begins with 8a798890 (coreutils sha256sum)
    assert by_train == "generic_rate|list:train-1|sha:8a798890|form:letters-digits|empty:one|dialtune:1"
    alone = GenericRate().signature((1, 1))
    assert alone == "generic_rate|list:none|contexts:3|form:letters-digits|empty:one|dialtune:1"
    assert GenericRate().with_rows([], train[:2]).signature((1, 1)) == alone  # nothing was said three times
    assert GenericRate().with_rows([], None).signature((1, 1)) == alone


# --- echo ---


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("Do you want to go to the cinema tonight", 1),  # all six runs of three... of eight words are in the turn
        ("Yes, do you want to go?", 1),  # yes-do-you is not; do-you-want, you-want-to, want-to-go are: 3 of 4
        ("I want to go home now", 0),  # want-to-go of 4
        ("the cinema", 0),  # two words are no echo
        ("cinema tonight the to go", 0),  # words in another order
        ("", 1),
        (" ?! ", 1),
    ],
)
def test_an_echo_shares_sixty_percent_of_its_runs_with_the_last_turn(text: str, echo: int) -> None:
    example = row("a", "Something else before.", "Do you want to go to the cinema tonight?")
    assert values(EchoRate(), [text], [example]) == [echo]


def test_sixty_percent_exactly_is_an_echo_and_less_is_not() -> None:
    example = row("a", "one two three four five")
    assert values(EchoRate(), ["one two three four five x y", "one two three four x y z"], [example] * 2) == [1, 0]


def test_only_the_last_turn_is_echoed() -> None:
    turn = "Do you want to go to the cinema tonight?"
    assert values(EchoRate(), [turn], [row("a", turn, "Where to?")]) == [0]
    assert math.isnan(values(EchoRate(), [turn], [Example("b", (Message("system", turn),))])[0])


# --- repetition ---


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("I see what you mean, I see what you mean.", 1),
        ("I see what you mean, but I see what they mean.", 0),
        ("no no no no", 0),  # one run of four
        ("no no no no no", 1),
        ("Yes.", 0),
        ("", 1),
    ],
)
def test_a_run_of_four_words_said_twice_is_a_repetition(text: str, repeats: int) -> None:
    assert values(RepetitionRate(), [text], [row("a", "x")]) == [repeats]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("Yes.", 0),
        ("no no no no", 0),  # one run of four
        ("no no no no no no", 2 / 3),  # three runs, one distinct
        (
            "I see what you mean, I see what you mean.",
            2 / 7,
        ),  # ten words, seven runs, of which two come again
        ("Ça va ? ÇA VA ? ça va ?", 1 / 3),  # ça-va-ça-va, va-ça-va-ça, ça-va-ça-va: case and marks do not count
        ("你 好 吗 我 你 好 吗 我", 1 / 5),
    ],
)
def test_the_share_of_runs_said_before_by_hand(text: str, share: float) -> None:
    assert repeated_share(text) == pytest.approx(share, abs=1e-12)


def test_any_run_may_be_asked_for() -> None:
    assert repeated_share("a b a b", 2) == pytest.approx(1 / 3)  # ab ba ab
    assert repeated_share("a a b", 1) == pytest.approx(1 / 3)


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.integers(1, 5))
def test_a_text_said_twice_repeats_half_of_its_runs_and_never_everything(said: list[str], n: int) -> None:
    """Twice the same k words: each of the k - n + 1 runs comes again."""
    twice = " ".join(said + said)
    assert 0 <= repeated_share(twice, n) < 1
    if len(said) >= n:
        assert repeated_share(twice, n) >= (len(said) - n + 1) / (2 * len(said) - n + 1)


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_rates_are_thresholds_of_shares(said: list[str], turn: list[str]) -> None:
    text, before = " ".join(said), " ".join(turn) or "x"
    if said:
        assert values(RepetitionRate(), [text], [row("a", before)]) == [repeated_share(text) > 0]
        assert values(EchoRate(), [text], [row("a", before)]) == [echoed_share(text, before) >= 0.6]
    assert 0 <= echoed_share(text, before) <= 1
    assert echoed_share(text, text) == (len(said) >= 3)


def test_the_share_of_runs_that_the_turn_has_by_hand() -> None:
    assert echoed_share("Yes, do you want to go?", "Do you want to go home?") == pytest.approx(3 / 4)
    assert echoed_share("the cinema", "the cinema") == 0  # two words are no echo
    assert echoed_share("", "Hello there you") == echoed_share("Hello there you", "") == 0


# --- distinct ---


def test_distinct_counts_words_in_a_budget() -> None:
    rows = [row(str(k), "x") for k in range(4)]
    # 400 words of two kinds: 200 drawn hold both, 2 in 200. 400 different ones: all 200 are.
    assert Distinct(1).aggregate(Distinct(1).segments(["a b " * 50] * 4, rows)) == pytest.approx(2 / BUDGET)
    different = [" ".join(f"w{k}x{n}" for n in range(100)) for k in range(4)]
    assert Distinct(1).aggregate(Distinct(1).segments(different, rows)) == pytest.approx(1)
    assert Distinct(2).aggregate(Distinct(2).segments(different, rows)) == pytest.approx(1)


def test_how_many_rows_there_are_makes_no_difference_to_distinct() -> None:
    """Distinct over total falls to less than half from 50 of these texts to all 500; in a budget it does not."""
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, 2001)
    texts = [" ".join(f"w{k}" for k in rng.choice(2000, p=chance / chance.sum(), size=12)) for _ in range(500)]
    rows = [row(str(k), "x") for k in range(500)]
    stats = Distinct(1).segments(texts, rows)
    parts = [Distinct(1).aggregate(stats[start : start + 50]) for start in range(0, 500, 50)]
    assert np.mean(parts) == pytest.approx(Distinct(1).aggregate(stats), abs=0.005)
    plain = [len({w for t in texts[:n] for w in t.split()}) / (12 * n) for n in (50, 500)]
    assert plain[0] > 2 * plain[1]


def test_a_rows_statistics_are_its_ngrams_by_id() -> None:
    stats = Distinct(2).segments(["Yes, yes. YES", "No", "", "yes yes"], [row(str(k), "x") for k in range(4)])
    assert stats.shape == (4, 3)
    assert stats[:, 0].tolist() == [2, 0, 0, 1]
    ids = ngram_ids(stats)
    assert [len(found) for found in ids] == [2, 0, 0, 1]
    assert ids[0][0] == ids[0][1] == ids[3][0]
    assert 0 <= ids[0][0] < 2**32


def test_too_little_text_is_not_scored() -> None:
    stats = Distinct(1).segments(["a b c"], [row("1", "x")])
    assert math.isnan(float(Distinct(1).aggregate(stats)))
    assert Distinct(1).segments([], []).shape == (0, 1)
