"""Pair accuracy, AUC and rank correlation against sklearn, scipy and hand-made rows; intervals by dialogue."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dialtune.rewards.measures import Measured, pair_accuracy, rank_correlation, roc_auc, weighted_auc


def test_a_tie_is_half_a_pair():
    found = pair_accuracy([3.0, 1.0, 0.0, 2.0], [1.0, 1.0, 5.0, 0.0], [0, 1, 2, 3])
    assert found.value == (1 + 0.5 + 0 + 1) / 4
    assert (found.n, found.units, found.reason) == (4, 4, None)


def test_pairs_of_one_dialogue_move_together():
    """200 pairs that say the same in each of two dialogues: two dialogues of evidence, and no more."""
    better = np.repeat([1.0, 0.0], 200)
    worse = np.repeat([0.0, 1.0], 200)
    alone = pair_accuracy(better, worse, np.arange(400))
    together = pair_accuracy(better, worse, np.repeat([0, 1], 200))
    assert alone.ci is not None
    assert together.ci is not None
    assert alone.value == together.value == 0.5
    assert alone.ci[1] - alone.ci[0] < 0.12
    assert together.ci == (0.0, 1.0)


def test_the_interval_is_that_of_a_binomial_share():
    """400 independent pairs, 320 right: the normal interval is 0.8 -+ 1.96 sqrt(0.16 / 400) = 0.7608 to 0.8392."""
    wins = np.r_[np.ones(320), np.zeros(80)]
    found = pair_accuracy(wins, np.full(400, 0.5), np.arange(400))
    assert found.ci == pytest.approx((0.7608, 0.8392), abs=0.004)


@pytest.mark.parametrize("units", [["a", "b", "a"], [7, 3, 7], [-1, 5, -1]])
def test_a_dialogue_may_be_called_anything(units: list[object]):
    assert pair_accuracy([1.0, 1.0, 1.0], [0.0, 0.0, 2.0], units).units == 2


def test_nothing_gives_no_number_and_says_why():
    assert pair_accuracy([], [], []) == Measured(None, None, 0, 0, "no pairs")
    assert roc_auc([1.0, 2.0], [True, True], [0, 1]) == Measured(None, None, 2, 2, "rows of one kind")
    none = rank_correlation([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])
    assert (none.value, none.ci) == (None, None)
    assert none.reason == "fewer than two dialogues, or all with one value"


def test_one_dialogue_gives_a_number_without_an_interval():
    assert pair_accuracy([1.0, 2.0], [0.0, 3.0], [4, 4]) == Measured(0.5, None, 2, 1)
    assert roc_auc([1.0, 2.0], [False, True], [4, 4]) == Measured(1.0, None, 2, 1)


rows = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40).filter(
    lambda found: len({label for _, label in found}) == 2
)


@given(rows)
def test_auc_is_sklearns_with_and_without_ties(found: list[tuple[int, bool]]):
    scores, labels = np.array([s for s, _ in found], dtype=float), np.array([label for _, label in found])
    assert roc_auc(scores, labels, np.zeros(len(found))).value == pytest.approx(
        roc_auc_score(labels, scores), abs=1e-12
    )


@given(rows, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_weights_count_rows_so_often(found: list[tuple[int, bool]], seed: int):
    scores, labels = np.array([s for s, _ in found], dtype=float), np.array([label for _, label in found])
    weights = np.random.default_rng(seed).integers(0, 4, size=(3, len(found)))
    for row, value in zip(weights, weighted_auc(scores, labels, weights.astype(float)), strict=True):
        many_scores, many_labels = np.repeat(scores, row), np.repeat(labels, row)
        if len(set(many_labels.tolist())) < 2:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(roc_auc_score(many_labels, many_scores), abs=1e-12)


def test_the_auc_of_a_coin_has_a_half_in_its_interval_and_that_of_a_judge_has_not():
    rng = np.random.default_rng(1)
    labels = np.tile([True, False], 150)
    coin = roc_auc(rng.normal(size=300), labels, np.repeat(np.arange(150), 2))
    judge = roc_auc(rng.normal(size=300) + labels, labels, np.repeat(np.arange(150), 2))
    assert coin.ci is not None
    assert judge.ci is not None
    assert coin.ci[0] < 0.5 < coin.ci[1]
    assert judge.ci[0] > 0.6


def test_rows_of_one_dialogue_are_one_piece_of_evidence():
    """Every row there ten times, in its dialogue: the same number and the same interval."""
    rng = np.random.default_rng(2)
    scores, labels, unit = rng.normal(size=60), np.tile([True, False], 30), np.arange(60) // 2
    once, often = roc_auc(scores, labels, unit), roc_auc(*(np.repeat(part, 10) for part in (scores, labels, unit)))
    assert often.value == pytest.approx(once.value)
    assert often.ci == pytest.approx(once.ci)
    assert (once.units, often.units) == (30, 30)


def test_rank_correlation_is_scipys_and_its_interval_holds_the_truth():
    rng = np.random.default_rng(0)
    common = rng.normal(size=300)
    values, ratings = common + rng.normal(size=300), np.round(common + rng.normal(size=300))
    found = rank_correlation(values, ratings)
    assert found.value == pytest.approx(spearmanr(values, ratings).statistic, abs=1e-12)
    assert found.ci is not None
    # Fisher's z: half width about 1.96 / sqrt(297) (1 - r^2) = 0.085
    assert found.ci == pytest.approx((found.value - 0.085, found.value + 0.085), abs=0.025)


def test_intervals_are_the_same_each_time():
    rng = np.random.default_rng(0)
    better, worse, unit = rng.normal(size=(3, 60))
    assert pair_accuracy(better, worse, unit) == pair_accuracy(better, worse, unit)
    assert rank_correlation(better, worse) == rank_correlation(better, worse)


def test_a_measured_number_is_plain_json():
    assert Measured(0.5, (0.4, 0.6), 3, 2).to_dict() == {"value": 0.5, "ci": [0.4, 0.6], "n": 3, "dialogues": 2}
    assert Measured(None, None, 0, 0, "no pairs").to_dict()["reason"] == "no pairs"
