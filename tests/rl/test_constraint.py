"""Multipliers by hand, by direction and through JSON; the interval of a ratio against scipy; beta against its paper."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.errors import TrainingError
from dialtune.rl.constraint import (
    AdaptiveBeta,
    Constraint,
    Multiplier,
    is_acceptable,
    length_bounds,
    prompt_shifts,
    quality_floor,
    ratio_interval,
)

NAN = math.nan
RELEVANCE = Multiplier("relevance", tau=0.5, sd=0.1, ema=0.6, value=2.0)
SHORT = Multiplier("length_max", tau=20.0, sd=5.0, ema=18.0, value=1.0, at_least=False)


# --- reward ---


def test_the_reward_by_hand() -> None:
    # s / sd = 1, -2; slacks 1, -1 | 1, -0.4: (1 + 2 + 1) / 4, (-2 - 2 - 0.4) / 4
    reward = Constraint((RELEVANCE, SHORT)).combine(
        [2.0, -4.0], 2.0, {"relevance": [0.6, 0.4], "length_max": [15, 22]}, penalties=[0, 0.5]
    )
    assert reward.tolist() == pytest.approx([1.0, -1.1 - 0.5])


def test_without_multipliers_the_reward_is_the_score_in_its_own_spread() -> None:
    assert Constraint(()).combine([3.0, -1.0], 2.0, {}).tolist() == [1.5, -0.5]
    free = Constraint((replace(RELEVANCE, value=0.0),))
    assert free.combine([3.0, -1.0], 2.0, {"relevance": [0.0, 1.0]}).tolist() == [1.5, -0.5]


def test_a_large_multiplier_leaves_the_scale_and_lets_the_quality_decide() -> None:
    reward = Constraint((replace(RELEVANCE, value=1e9),)).combine([4.0, -4.0], 1.0, {"relevance": [0.5, 0.6]})
    assert reward.tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


def test_a_quality_that_does_not_apply_leaves_the_rows_sum() -> None:
    reward = Constraint((RELEVANCE, SHORT)).combine([1.0, NAN], 1.0, {"relevance": [NAN, 0.5], "length_max": [15, 15]})
    assert reward[0] == pytest.approx((1 + 1) / 2)
    assert math.isnan(reward[1])


def test_one_quality_adds_at_most_five_standard_deviations() -> None:
    reward = Constraint((RELEVANCE,)).combine([0.0, 0.0], 1.0, {"relevance": [1.0, -0.5]})
    assert reward.tolist() == pytest.approx([2 * 5 / 3, -2 * 5 / 3])


@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=6),
    st.floats(0, 50),
    st.floats(0, 50),
    st.lists(st.floats(0, 1), min_size=6, max_size=6),
    st.lists(st.integers(1, 60), min_size=6, max_size=6),
    st.booleans(),
)
def test_an_empty_completion_earns_less_than_any_other(
    s: list[float], first: float, second: float, relevance: list[float], tokens: list[int], penalised: bool
) -> None:
    """`s` of an empty row is below any other; no tokens must not pay where the length is bounded from above."""
    n = len(s)
    constraint = Constraint((replace(RELEVANCE, value=first), replace(SHORT, value=second)))
    reward = constraint.combine(
        [-11.0, *s],
        1.0,
        {"relevance": [NAN, *relevance[:n]], "length_max": [0, *tokens[:n]]},
        empty=[True] + [False] * n,
        penalties=[0.0, 1.0, *[0.0] * (n - 1)] if penalised else None,
    )
    assert reward[0] < reward[1:].min()


# --- control ---


def test_an_update_by_hand() -> None:
    # groups (0.4, 0.6) and (0.2, 0.4): mean 0.4, group means 0.5 and 0.3, their sd sqrt(0.02)
    after = Constraint((RELEVANCE,), rate=0.5).update({"relevance": [0.4, 0.6, 0.2, 0.4]}, group=2).multipliers[0]
    assert after.ema == pytest.approx(0.9 * 0.6 + 0.1 * 0.4)
    margin = math.sqrt(0.02) * math.sqrt(0.1 / 1.9 / 2)
    assert after.value == pytest.approx(2.0 + 0.5 * (0.5 + margin - 0.58) / 0.1)
    assert (after.tau, after.sd, after.name, after.n_at_cap) == (0.5, 0.1, "relevance", 0)
    assert (Constraint((RELEVANCE,)).rate, Constraint((RELEVANCE,)).memory) == (0.1, 0.9)


def test_less_memory_follows_a_rollout_faster_and_asks_for_a_wider_margin():
    quality = {"relevance": [0.4, 0.6, 0.2, 0.4]}
    after = Constraint((RELEVANCE,), rate=0.5, memory=0.5).update(quality, group=2).multipliers[0]
    assert after.ema == pytest.approx(0.5 * 0.6 + 0.5 * 0.4)
    margin = math.sqrt(0.02) * math.sqrt(0.5 / 1.5 / 2)
    assert after.value == pytest.approx(RELEVANCE.value + 0.5 * (margin - (after.ema - RELEVANCE.tau)) / RELEVANCE.sd)


def test_the_proportional_part_acts_at_once_and_lets_go_at_once() -> None:
    constraint = Constraint((RELEVANCE,), rate=0.5, memory=0.0, proportional=2.0)
    short = constraint.update({"relevance": [0.3, 0.3]}, group=2)
    # one group: no margin; missing (0.5 - 0.3) / 0.1 = 2, value 2 + 0.5 * 2
    assert short.multipliers[0].missing == pytest.approx(2.0)
    assert short.multipliers[0].value == pytest.approx(3.0)
    assert short.weight(short.multipliers[0]) == pytest.approx(3.0 + 2.0 * 2)
    assert short.record()["lambda:relevance"] == pytest.approx(7.0)
    assert short.combine([0.0], 1.0, {"relevance": [0.6]}).tolist() == pytest.approx([7 * 1 / 8])
    enough = short.update({"relevance": [0.7, 0.7]}, group=2)  # missing -2: value 3 - 1, weight max(0, 2 - 4)
    assert enough.multipliers[0].value == pytest.approx(2.0)
    assert enough.weight(enough.multipliers[0]) == 0.0
    assert replace(short, cap=5.0).weight(short.multipliers[0]) == 5.0
    assert Constraint((RELEVANCE,)).weight(replace(RELEVANCE, missing=9.0)) == RELEVANCE.value


def test_a_prompts_shift_is_what_chance_does_not_explain() -> None:
    # prompt means 0.2, 0.4, 0.9 (variance 0.13); within each, sample variance 0.02, of two 0.01
    start = [[0.1, 0.3], [0.3, 0.5], [0.8, 1.0]]
    assert prompt_shifts(start).tolist() == pytest.approx([(1 - 0.01 / 0.13) * (m - 0.5) for m in (0.2, 0.4, 0.9)])
    assert prompt_shifts([*start, [NAN, 0.7]]).tolist() == pytest.approx([*prompt_shifts(start), 0.0])
    for nothing in ([[0.1], [0.9]], [[0.0, 1.0], [1.0, 0.0]], [[0.3, 0.5]], [[0.5, 0.5], [0.5, 0.5]]):
        assert not prompt_shifts(nothing).any(), nothing


@pytest.mark.parametrize("between", [0.0, 0.05, 0.3])
def test_shifts_make_a_rollouts_mean_no_noisier_and_mostly_steadier(between: float) -> None:
    """Four prompts of eight completions, 400 rollouts; the policy has not changed, so what varies is noise."""
    rng = np.random.default_rng(0)
    level = rng.normal(0.5, between, 1600)
    shifts = prompt_shifts(level[:, None] + rng.normal(0, 0.1, (1600, 2)))
    rollouts = (level[:, None] + rng.normal(0, 0.1, (1600, 8))).mean(axis=1)
    plain = rollouts.reshape(-1, 4).mean(axis=1).std()
    steady = (rollouts - shifts).reshape(-1, 4).mean(axis=1).std()
    assert steady <= plain * 1.02
    if between == 0.3:
        assert steady < plain / 3


def test_the_margin_is_the_standard_error_of_the_running_mean() -> None:
    """Ten thousand running means of rollouts with 4 groups each, from group means with sd 0.3."""
    draws = np.random.default_rng(0).normal(0.0, 0.3, size=(10_000, 80, 4)).mean(axis=2)
    ema = np.zeros(10_000)
    for rollout in draws.T:
        ema = 0.9 * ema + 0.1 * rollout
    assert 0.3 * math.sqrt(0.1 / 1.9 / 4) == pytest.approx(ema.std(), rel=0.02)  # standard error of an sd: 0.7 %


def test_a_quality_that_must_stay_low_pushes_the_other_way() -> None:
    constraint = Constraint((SHORT,))
    long = constraint.update({"length_max": [40.0, 40.0]}, group=2).multipliers[0]
    assert long.ema == pytest.approx(20.2)
    assert long.value == pytest.approx(1.0 + 0.1 * 0.2 / 5)
    short = constraint.update({"length_max": [10.0, 10.0]}, group=2).multipliers[0]
    assert short.value == pytest.approx(1.0 - 0.1 * (20 - 17.2) / 5)


def test_rows_that_do_not_count_are_in_no_mean() -> None:
    constraint = Constraint((RELEVANCE,))
    whole = constraint.update({"relevance": [0.4, 0.2, 0.9]}, group=1)
    holes = [0.4, NAN, 0.2, 55.0, 0.9, NAN, NAN, 7.0]
    valid = [True, True, True, False, True, True, True, False]
    assert constraint.update({"relevance": holes}, group=2, valid=valid) == whole
    assert constraint.update({"relevance": [NAN, 0.3]}, group=2, valid=[True, False]) == constraint


def test_multipliers_stay_between_zero_and_the_cap() -> None:
    high = Constraint((replace(RELEVANCE, value=49.9, ema=0.0),)).update({"relevance": [0.0]}, group=1)
    assert high.multipliers[0].value == 50.0
    low = Constraint((replace(RELEVANCE, value=0.05, ema=1.0),)).update({"relevance": [1.0]}, group=1)
    assert low.multipliers[0].value == 0.0


def test_a_constraint_that_cannot_be_met_says_so_after_twenty_rollouts_at_the_cap() -> None:
    constraint = Constraint((RELEVANCE, replace(SHORT, ema=30.0, value=50.0)))
    for rollout in range(20):
        assert constraint.infeasible() is None, rollout
        constraint = constraint.update({"relevance": [0.9], "length_max": [30.0]}, group=1)
    assert constraint.infeasible() == (
        "constraint 'length_max' is infeasible: its multiplier stood at 50 for 20 rollouts and the mean is 30.000, "
        "where at most 20.000 is needed; allow more loss (constraint.delta), lower learning_rate, "
        "or start from a better policy"
    )
    relaxed = constraint.update({"relevance": [0.9], "length_max": [-900.0]}, group=1)
    assert relaxed.infeasible() is None
    assert relaxed.multipliers[1].n_at_cap == 0
    stuck = Constraint((replace(RELEVANCE, n_at_cap=20),)).infeasible()
    assert stuck is not None
    assert "at least 0.500 is needed" in stuck


def test_the_state_is_frozen_and_survives_json_exactly() -> None:
    constraint = Constraint((RELEVANCE, SHORT), rate=0.3, cap=7.0, proportional=1.5)
    for k in range(5):
        constraint = constraint.update({"relevance": [0.1 * k, 1 / 3], "length_max": [k, 7]}, group=2)
    again = Constraint.from_dict(json.loads(json.dumps(constraint.to_dict(), allow_nan=False)))
    assert again == constraint
    assert again.multipliers[1].at_least is False
    with pytest.raises(FrozenInstanceError):
        constraint.multipliers[0].value = 0.0  # type: ignore[misc]


def test_what_is_logged() -> None:
    assert Constraint((RELEVANCE,)).record() == {"lambda:relevance": 2.0, "ema:relevance": 0.6, "tau:relevance": 0.5}


@pytest.mark.parametrize("multipliers", [(RELEVANCE, RELEVANCE), (replace(RELEVANCE, sd=0.0),)])
def test_names_are_unique_and_spreads_positive(multipliers: tuple[Multiplier, ...]) -> None:
    with pytest.raises(AssertionError):
        Constraint(multipliers)


# --- start ---


def test_a_floor_is_a_share_of_the_start_policys_mean() -> None:
    floor = quality_floor("rougeL", [0.2, 0.4, NAN, 0.6, 0.0], delta=0.1, value=3.0)
    want = Multiplier("rougeL", pytest.approx(0.27), pytest.approx(math.sqrt(0.05)), pytest.approx(0.3), 3.0)
    assert floor == want
    assert quality_floor("rougeL", [0.5, 0.5]).tau == pytest.approx(0.49)
    assert quality_floor("rougeL", [0.5, 0.5]).sd == pytest.approx(0.005)  # no spread: a hundredth of the mean


def test_length_is_bounded_on_both_sides() -> None:
    low, high = length_bounds([10, 20, 30])
    assert (low.name, low.tau, low.ema, low.at_least) == ("length_min", pytest.approx(18), 20, True)
    assert (high.name, high.tau, high.ema, high.at_least) == ("length_max", pytest.approx(24), 20, False)
    assert low.sd == high.sd == pytest.approx(math.sqrt(200 / 3))
    assert length_bounds([10, 20, 30], (0.5, 2.0), value=0.0)[1].value == 0.0
    # between the bounds no length is better than another, and beyond one every token costs
    lengths = [12, 15, 18, 20, 24, 27, 30]
    paid = Constraint((low, high)).combine([0.0] * 7, 1.0, {"length_min": lengths, "length_max": lengths})
    assert paid == pytest.approx(np.array([-6, -3, 0, 0, 0, -3, -6]) / low.sd / 3)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            [0.04, 0.05],
            r"constraint 'relevance': mean 0\.045 under the start policy; below 0\.05 there is nothing to keep",
        ),
        ([0.4, 1.2], r"values from 0\.4 to 1\.2 under the start policy; a constrained quality is in \[0, 1\]"),
        ([-0.1, 0.9], r"values from -0\.1 to 0\.9"),
        ([NAN, NAN], r"no completion of the start policy has a value"),
        ([], r"no completion of the start policy has a value"),
    ],
)
def test_a_start_that_cannot_be_kept_is_refused(start: list[float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        quality_floor("relevance", start)


def test_a_silent_start_policy_has_no_length_to_keep() -> None:
    with pytest.raises(TrainingError, match="constraint 'length': the start policy writes nothing"):
        length_bounds([0, 0])


# --- acceptance ---


def test_the_ratios_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    before = rng.uniform(0.3, 0.9, size=300)
    after = before * rng.normal(0.97, 0.2, size=300)
    theirs = bootstrap(
        (before, after),
        lambda b, a, axis: a.mean(axis=axis) / b.mean(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    interval = ratio_interval(before, after)
    assert interval is not None
    width = theirs.high - theirs.low
    # Two runs of 10,000 resamples differ by about 1.5 % of the width at either end.
    assert interval[0] == pytest.approx(theirs.low, abs=0.03 * width)
    assert interval[1] == pytest.approx(theirs.high, abs=0.03 * width)


def test_dialogues_are_paired() -> None:
    before = np.random.default_rng(0).uniform(0.2, 0.9, size=250)
    assert ratio_interval(before, before * 0.985) == pytest.approx((0.985, 0.985))
    assert is_acceptable(before, before * 0.985)
    assert not is_acceptable(before, before * 0.975)
    shuffled = ratio_interval(before, np.roll(before, 1) * 0.985)
    assert shuffled is not None
    assert shuffled[0] < 0.95


def test_a_point_above_the_bound_is_not_enough() -> None:
    rng = np.random.default_rng(3)
    before = rng.uniform(0.3, 0.9, size=40)
    after = before * rng.normal(1.0, 0.3, size=40)
    after *= before.mean() / after.mean()  # the ratio is exactly 1
    interval = ratio_interval(before, after)
    assert interval is not None
    assert interval[0] < 0.98 < 1 < interval[1]
    assert not is_acceptable(before, after)
    assert is_acceptable(before, after, share=interval[0])
    assert not is_acceptable(before, after, share=interval[0] + 1e-9)


def test_replies_of_one_dialogue_are_one_piece_of_evidence() -> None:
    """Each dialogue's reply ten times: the interval of the dialogues, whatever they are called and in any order."""
    rng = np.random.default_rng(5)
    before, after = rng.uniform(0.3, 0.9, size=40), rng.uniform(0.3, 0.9, size=40)
    once = ratio_interval(before, after)
    assert once is not None
    order = rng.permutation(400)
    unit = (np.repeat(np.arange(40), 10) * 7 - 3)[order]
    often = ratio_interval(np.repeat(before, 10)[order], np.repeat(after, 10)[order], unit=unit)
    assert often == pytest.approx(once)
    alone = ratio_interval(np.repeat(before, 10), np.repeat(after, 10))
    assert alone is not None
    assert alone[1] - alone[0] < 0.5 * (once[1] - once[0])  # a third, were the intervals not widened for few units


def test_one_dialogue_shows_nothing() -> None:
    assert ratio_interval([0.5, 0.6], [0.5, 0.6], unit=[4, 4]) is None
    assert ratio_interval([0.5], [0.5]) is None
    assert not is_acceptable([0.5], [0.5])


def test_no_ratio_to_nothing() -> None:
    assert ratio_interval([0.0, 0.0], [0.5, 0.5]) is None
    assert not is_acceptable([0.0, 0.0], [0.5, 0.5])


def test_rows_without_a_value_are_the_callers_affair() -> None:
    with pytest.raises(AssertionError, match="without a value"):
        ratio_interval([0.5, NAN], [0.5, 0.5])


# --- beta ---


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98), (-3.0, 0.98)]
)
def test_beta_follows_the_kl(kl: float, factor: float) -> None:
    beta = AdaptiveBeta(0.05, target=6.0)
    assert beta.update(kl).value == pytest.approx(0.05 * factor, rel=1e-12)
    assert beta.value == 0.05


def test_beta_is_fixed_without_a_target() -> None:
    assert AdaptiveBeta(0.05).update(1e9) == AdaptiveBeta(0.05)


@pytest.mark.parametrize("kl", [NAN, math.inf, -math.inf])
def test_a_kl_that_is_not_finite_says_nothing(kl: float) -> None:
    assert AdaptiveBeta(0.05, 6.0).update(kl) == AdaptiveBeta(0.05, 6.0)


@pytest.mark.parametrize("target", [None, 6.0])
def test_beta_survives_json_exactly(target: float | None) -> None:
    beta = AdaptiveBeta(0.1, target).update(7.1).update(2.0)
    assert AdaptiveBeta.from_dict(json.loads(json.dumps(beta.to_dict()))) == beta
