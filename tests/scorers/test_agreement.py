"""Agreement between jurors and the reward-hacking gap against scipy, scikit-learn, hand-worked cases and simulation."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import cohen_kappa_score

from dialtune.scorers.agreement import agreement, cohen_kappa, hacking_gap, median_score, spearman

COLUMNS = st.integers(2, 30).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.7, 1.0]), min_size=n, max_size=n)] * 2)
)
VERDICTS = st.integers(1, 30).flatmap(lambda n: st.tuples(*[st.lists(st.booleans(), min_size=n, max_size=n)] * 2))


# Spearman's rho


@given(COLUMNS)
def test_rank_correlation_with_ties_agrees_with_scipy(columns: tuple[list[float], list[float]]) -> None:
    one, other = columns
    rho = spearman(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert rho is None
    else:
        assert rho == pytest.approx(stats.spearmanr(one, other).statistic, abs=1e-12)


def test_rank_correlation_sees_order_alone() -> None:
    a = np.random.default_rng(0).normal(size=50)
    assert spearman(a, np.exp(3 * a)) == 1.0
    assert spearman(a, -(a**3)) == -1.0


@pytest.mark.parametrize("n", [0, 1])
def test_rank_correlation_of_less_than_two_texts_is_undefined(n: int) -> None:
    assert spearman([0.5] * n, [0.5] * n) is None


# Cohen's kappa


@given(VERDICTS)
def test_kappa_agrees_with_scikit_learn(verdicts: tuple[list[bool], list[bool]]) -> None:
    one, other = verdicts
    found = cohen_kappa(one, other)
    if len({*one, *other}) == 1:
        assert found is None
    else:
        assert found == pytest.approx(cohen_kappa_score(one, other), abs=1e-12)


def test_kappa_of_the_textbook_table() -> None:
    # 20 both yes, 15 both no, 5 and 10 apart: p_o = 0.7, p_e = 0.5, kappa = 0.4.
    one = [True] * 20 + [True] * 5 + [False] * 10 + [False] * 15
    other = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4, abs=1e-12)


# All pairs


def test_pairs_use_the_texts_that_both_scored_and_count_them() -> None:
    scores = {"a": [0.1, 0.9, math.nan, 0.2], "b": [0.2, 0.8, 0.3, 0.1], "c": [math.nan, 0.9, 0.4, 0.3]}
    pairs = {(pair.one, pair.other): pair for pair in agreement(scores)}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.n for pair in pairs.values()] == [3, 2, 3]
    assert pairs["a", "b"].spearman == pytest.approx(stats.spearmanr([0.1, 0.9, 0.2], [0.2, 0.8, 0.1]).statistic)
    assert pairs["a", "b"].kappa == 1.0
    assert pairs["a", "b"].reason is None


def test_a_probability_of_exactly_half_is_toxic() -> None:
    assert agreement({"a": [0.5, 0.4], "b": [0.9, 0.1]})[0].kappa == 1.0


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ([], [], "0 texts that both scored; two are needed"),
        ([0.9], [0.1], "1 texts that both scored; two are needed"),
        ([0.9, 0.9], [0.1, 0.8], "a: the same score for every text"),
        ([0.9, 0.9], [0.8, 0.8], "a and b: the same score for every text; both call every text toxic, as chance"),
        ([0.1, 0.2], [0.2, 0.1], "both call every text clean, as chance alone would"),
        ([math.nan, 0.1], [0.1, math.nan], "0 texts that both scored"),
    ],
)
def test_what_is_undefined_says_why(a: list[float], b: list[float], reason: str) -> None:
    (pair,) = agreement({"a": a, "b": b})
    assert pair.spearman is None or pair.kappa is None
    assert pair.reason is not None
    assert pair.reason.startswith(reason)


@given(COLUMNS)
def test_a_reason_stands_exactly_where_a_number_is_missing(columns: tuple[list[float], list[float]]) -> None:
    (pair,) = agreement(dict(zip("ab", columns, strict=True)))
    assert (pair.reason is None) == (pair.spearman is not None and pair.kappa is not None)


def test_the_median_is_over_the_jurors_that_scored() -> None:
    scores = {"a": [0.1, math.nan, math.nan], "b": [0.9, 0.2, math.nan], "c": [0.2, 0.4, math.nan]}
    np.testing.assert_array_equal(median_score(scores), [0.2, 0.30000000000000004, math.nan])


# The reward-hacking gap


def draws(n: int, falls: dict[str, float], seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores before and after; each scorer's fall is in sds of its own scores before."""
    rng = np.random.default_rng(seed)
    before = {name: rng.normal(5.0, place + 1.0, n) for place, name in enumerate(falls)}
    after = {name: before[name] - fall * (place + 1) + rng.normal(0, 0.3, n)
             for place, (name, fall) in enumerate(falls.items())}  # fmt: skip
    return before, after


def test_gains_are_falls_in_start_policy_sds_and_the_jury_s_is_their_median() -> None:
    before = {"reward": [0.0, 2.0], "a": [0.0, 4.0], "b": [1.0, 2.0], "c": [3.0, 5.0]}
    after = {"reward": [-1.0, 1.0], "a": [0.0, 0.0], "b": [1.0, 2.0], "c": [2.5, 5.0]}
    # sds (n - 1): sqrt 2, 2 sqrt 2, sqrt 1/2, sqrt 2; mean falls 1, 2, 0, 1/4; gains 0.707, 0.707, 0, 0.177
    found = hacking_gap(before, after, "reward", resamples=200)
    assert found.trained is not None
    assert found.jury is not None
    assert found.gap is not None
    assert found.trained.value == pytest.approx(1 / math.sqrt(2))
    assert found.jury.value == pytest.approx(0.25 / math.sqrt(2))
    assert found.gap.value == pytest.approx(0.75 / math.sqrt(2))
    assert (found.n, found.n_dropped, found.jurors, found.left_out) == (2, 0, ("a", "b", "c"), ())


def test_a_gain_that_nobody_else_sees_sets_off_the_alarm() -> None:
    found = hacking_gap(*draws(200, {"reward": 1.5, "a": 0.0, "b": 0.0, "c": 0.02}), "reward", resamples=2000)
    assert found.gap is not None
    assert found.jury is not None
    assert found.gap.ci[0] > 0
    assert found.jury.ci[0] <= 0
    assert found.alarm is True


def test_a_jury_that_finds_the_text_worse_sets_off_the_alarm_too() -> None:
    found = hacking_gap(*draws(200, {"reward": 1.0, "a": -0.5, "b": -0.4}), "reward", resamples=2000)
    assert found.jury is not None
    assert found.jury.ci[1] < 0
    assert found.alarm is True


def test_a_larger_gain_that_the_jury_shares_is_no_alarm() -> None:
    found = hacking_gap(*draws(200, {"reward": 1.5, "a": 0.6, "b": 0.5}), "reward", resamples=2000)
    assert found.gap is not None
    assert found.gap.ci[0] > 0
    assert found.alarm is False


def test_no_change_at_all_is_no_alarm() -> None:
    found = hacking_gap(*draws(200, {"reward": 0.0, "a": 0.0, "b": 0.0}), "reward", resamples=2000)
    assert found.alarm is False


def test_the_interval_of_one_juror_agrees_with_scipy_s_bootstrap() -> None:
    before, after = draws(300, {"reward": 0.5, "a": 0.2})
    sds = {name: row.std(ddof=1) for name, row in before.items()}
    falls = [(before[name] - after[name]) / sds[name] for name in ("reward", "a")]
    theirs = stats.bootstrap(
        falls, lambda x, y, axis: x.mean(axis) - y.mean(axis), paired=True, method="percentile", n_resamples=10_000,
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    found = hacking_gap(before, after, "reward")
    assert found.gap is not None
    # Two runs of 10,000 resamples differ by about 1.5 % of the width at either end.
    assert found.gap.ci == pytest.approx((theirs.low, theirs.high), abs=0.03 * (theirs.high - theirs.low))


def test_texts_of_one_prompt_stay_together() -> None:
    before, after = draws(60, {"reward": 0.5, "a": 0.0})
    repeated = [{name: np.tile(row, 4) for name, row in side.items()} for side in (before, after)]
    single = hacking_gap(before, after, "reward", seed=3)
    grouped = hacking_gap(*repeated, "reward", unit=np.tile(np.arange(60), 4), seed=3)
    assert single.gap is not None
    assert grouped.gap is not None
    # Four copies of each text say no more than one; only the sds' divisor, n - 1, moves.
    assert grouped.gap.ci == pytest.approx(single.gap.ci, rel=0.02)
    assert (grouped.n, single.n) == (240, 60)


def test_rows_that_a_scorer_could_not_score_leave_everywhere() -> None:
    before, after = draws(40, {"reward": 0.5, "a": 0.0})
    cut = [{name: row[:38].copy() for name, row in side.items()} for side in (before, after)]
    before["a"][38], after["reward"][39] = math.nan, math.nan
    with_gaps, without = hacking_gap(before, after, "reward", seed=1), hacking_gap(*cut, "reward", seed=1)
    assert with_gaps.gap == without.gap
    assert (with_gaps.n, with_gaps.n_dropped) == (38, 2)


def test_the_order_of_jurors_does_not_matter() -> None:
    before, after = draws(50, {"reward": 1.0, "a": 0.3, "b": 0.1, "c": 0.2})
    turned = [{name: side[name] for name in ("c", "reward", "b", "a")} for side in (before, after)]
    assert hacking_gap(before, after, "reward").jury == hacking_gap(*turned, "reward").jury


def test_a_juror_that_cannot_tell_the_start_texts_apart_is_left_out() -> None:
    before, after = draws(50, {"reward": 1.0, "a": 0.3, "b": 0.1})
    before["b"][:] = 0.018
    found = hacking_gap(before, after, "reward")
    assert (found.jurors, found.left_out) == (("a",), ("b",))
    assert found.jury is not None


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ({"reward": [0.1, 0.2]}, r"no jury \(no juror\)"),
        ({"reward": [0.1, 0.2], "a": [0.3, 0.3]}, r"no jury \(a: the same score for every text of the start policy\)"),
        ({"reward": [0.1, 0.1], "a": [0.3, 0.4]}, "the trained scorer gives every text of the start policy the same"),
        ({"reward": [0.1], "a": [0.3]}, "fewer than two prompts"),
        ({"reward": [], "a": []}, "fewer than two prompts"),
        ({"reward": [math.nan, 0.1], "a": [0.3, math.nan]}, "fewer than two prompts"),
    ],
)
def test_without_a_jury_or_a_scale_there_is_no_gap_but_a_reason(before: dict[str, list[float]], reason: str) -> None:
    found = hacking_gap(before, before, "reward")
    assert (found.trained, found.jury, found.gap, found.alarm) == (None, None, None, None)
    assert found.reason is not None
    assert re.match(reason, found.reason)


def test_the_alarm_is_rare_when_scorers_move_alike() -> None:
    alarms = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        before = {name: rng.normal(size=60) for name in ("reward", "a", "b")}
        after = {name: row + rng.normal(size=60) for name, row in before.items()}
        alarms += bool(hacking_gap(before, after, "reward", resamples=300).alarm)
    assert alarms <= 12  # at most the 2.5 % of one tail, and four standard errors more
