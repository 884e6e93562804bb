"""Distinct n-grams in a budget: against enumeration of every draw, of every half and of every swap."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.rarefaction import NgramCounts, expected_distinct, ngram_counts

TEXTS = st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=5)


def by_enumeration(words: list[int], budget: int) -> float:
    """The mean over every way to draw `budget` of the words."""
    draws = list(combinations(range(len(words)), budget))
    return sum(len({words[place] for place in draw}) for draw in draws) / len(draws) / budget


def counts_of(*sides: list[list[int]], unit: list[int] | None = None) -> NgramCounts:
    return ngram_counts(sides, unit or list(range(len(sides[0]))))


def naive(words: list[int], budget: int) -> float:
    """Hurlbert's formula over a Counter; NaN if there are too few."""
    total = len(words)
    if total < budget:
        return np.nan
    missed = (comb(total - count, budget) / comb(total, budget) for count in Counter(words).values())
    return sum(1 - one for one in missed) / budget


def test_two_of_one_word_and_one_of_another_by_hand() -> None:
    # Draws of two from a a b: aa, ab, ab: 1, 2 and 2 distinct, 5/3 of 2.
    assert expected_distinct([[0, 1, 1]], 2) == pytest.approx([5 / 6])
    assert expected_distinct([[0, 1, 1]], 1) == pytest.approx([1])
    assert expected_distinct([[0, 1, 1]], 3) == pytest.approx([2 / 3])


def test_too_few_words_have_no_share() -> None:
    assert np.isnan(expected_distinct([[0, 1, 1]], 4)).all()
    assert np.isnan(expected_distinct(np.zeros((1, 1)), 1)).all()
    assert np.isnan(counts_of([[], []]).distinct(1)).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.integers(1, 8))
def test_the_expected_share_is_the_mean_over_every_draw(words: list[int], budget: int) -> None:
    found = counts_of([words]).distinct(budget)
    if budget > len(words):
        assert np.isnan(found).all()
    else:
        assert found == pytest.approx([by_enumeration(words, budget)])


def test_large_counts_neither_overflow_nor_lose_precision() -> None:
    words = [0] * 3000 + [1] * 2000 + list(range(2, 1000))
    assert counts_of([words]).distinct(200) == pytest.approx([naive(words, 200)])


@given(TEXTS, TEXTS)
def test_how_ngrams_are_kept_does_not_change_their_share(one: list[list[int]], other: list[list[int]]) -> None:
    """Kinds of one unit alone are kept apart from shared ones; the pool is the same."""
    n = min(len(one), len(other))
    found = counts_of(one[:n], other[:n]).distinct(3)
    pools = [[word for row in side[:n] for word in row] for side in (one, other)]
    assert found == pytest.approx([naive(pool, 3) for pool in pools], nan_ok=True)


def test_every_half_is_drawn_and_nothing_else() -> None:
    texts = [[1, 2, 3, 1], [1, 4, 5], [2, 6, 6, 6], [7, 8, 1, 9, 9]]
    found = counts_of(texts).half_samples(4, resamples=3000, seed=1)[0]
    halves = [naive(texts[i] + texts[j], 4) for i, j in combinations(range(4), 2)]
    assert sorted(set(np.round(found, 9))) == pytest.approx(sorted(set(np.round(halves, 9))))
    assert found.mean() == pytest.approx(np.mean(halves), abs=0.01)


def test_an_odd_number_of_units_gives_halves_of_both_sizes() -> None:
    texts = [[k, k + 10] for k in range(5)]  # all different: the share is 1, if there are enough
    found = counts_of(texts).half_samples(5, resamples=1000, seed=0)[0]
    assert 0.4 < np.isnan(found).mean() < 0.6  # two units have four words, three have six
    assert np.nanmin(found) == 1


def test_both_sides_get_the_same_halves() -> None:
    texts = [[1, 2, 3], [1, 1, 1], [4, 4, 5], [6, 7, 8]]
    one, other = counts_of(texts, texts).half_samples(3, resamples=50, seed=2)
    assert (one == other).all()
    assert (one == counts_of(texts).half_samples(3, resamples=50, seed=2)[0]).all()


def test_rows_of_a_unit_are_drawn_together() -> None:
    rows = [[1, 2], [3, 4], [5, 6], [7, 8]]
    joined = [[1, 2, 3, 4], [5, 6, 7, 8]]
    together = ngram_counts([rows], [0, 0, 1, 1])
    assert (together.half_samples(4, resamples=20, seed=0) == counts_of(joined).half_samples(4, resamples=20)).all()


def test_few_units_are_swapped_in_every_way() -> None:
    old = [[1, 2, 2], [1, 3], [4, 4, 4], []]
    new = [[1, 1], [5, 6, 7], [4], [8, 8, 2]]
    found = counts_of(old, new).swapped(3, trials=5, seed=0)
    wanted = []
    for moved in product((0, 1), repeat=4):
        moved = moved[::-1]  # bit k of the assignment's number is unit k
        first = [word for k in range(4) for word in (new if moved[k] else old)[k]]
        second = [word for k in range(4) for word in (old if moved[k] else new)[k]]
        wanted.append((naive(first, 3), naive(second, 3)))
    assert found.shape == (2, 16)
    np.testing.assert_allclose(found.T, np.array(wanted))


def test_many_units_are_swapped_at_random_and_the_same_for_a_seed() -> None:
    rng = np.random.default_rng(0)
    sides = [[rng.integers(0, 9, 5).tolist() for _ in range(20)] for _ in range(2)]
    counts = counts_of(*sides)
    one, other = counts.swapped(20, trials=300, seed=1), counts.swapped(20, trials=300, seed=1)
    assert (one == other).all()
    assert one.shape == (2, 300)
    assert (one != counts.swapped(20, trials=300, seed=2)).any()


def test_the_interval_of_half_samples_covers_what_it_says() -> None:
    """400 corpora of 60 dialogues from one source; the truth is the mean over them. Nominal 95 %.

    A bootstrap, which draws dialogues twice, covered 34.5 % of these: its shares lie below the truth.
    """
    rng = np.random.default_rng(0)
    chance = 1 / np.arange(1, 301)
    words = rng.choice(300, p=chance / chance.sum(), size=(400, 60, 8))
    corpora = [counts_of(rows.tolist()) for rows in words]
    values = np.array([corpus.distinct(100)[0] for corpus in corpora])
    covered = 0
    for corpus in corpora:
        low, high = np.quantile(corpus.half_samples(100, resamples=300, seed=0)[0], [0.025, 0.975])
        covered += low <= values.mean() <= high
    assert 0.91 < covered / len(corpora) < 0.98


def test_rows_without_ngrams_and_a_single_unit() -> None:
    counts = counts_of([[1, 1, 2]])
    assert counts.distinct(2) == pytest.approx([5 / 6])
    assert counts.units == 1
    assert ngram_counts([[[], [1, 2]]], [0, 1]).distinct(2) == pytest.approx([1])
