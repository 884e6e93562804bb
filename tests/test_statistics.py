"""Statistics against scipy, full enumeration, hand-worked cases and simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune import statistics
from dialtune.statistics import (
    bootstrap_interval,
    dz,
    holm,
    n_mcnemar,
    n_paired,
    n_unpaired,
    p_value,
    paired_interval,
    percentile,
    percentile_interval,
    resampled_percentiles,
    resampled_sums,
    sd_of_difference,
    sd_with_samples,
    shares,
    sign_flip_p,
    smallest_visible,
    standard_error,
    swapped_percentiles,
    swapped_sums,
    t_quantile,
    unit_sums,
)
from dialtune.verdicts import Rule, decide


def enumerate_flips(d: np.ndarray) -> float:
    """Two-sided p by writing out every assignment of signs: the definition, no shortcut."""
    observed = abs(d.mean())
    means = [abs(np.mean(d * signs)) for signs in itertools.product((1, -1), repeat=len(d))]
    return sum(mean >= observed - 1e-12 for mean in means) / len(means)


def test_every_resample_draws_as_many_units_as_there_are() -> None:
    counts = resampled_sums(np.eye(7), resamples=50, seed=0)
    assert counts.shape == (50, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert (counts == np.round(counts)).all()
    assert (counts >= 0).all()
    assert counts.std() > 0.5


def test_all_columns_share_one_draw() -> None:
    values = np.random.default_rng(0).normal(size=(40, 3))
    counts = resampled_sums(np.eye(40), resamples=200, seed=5)
    np.testing.assert_allclose(resampled_sums(values, resamples=200, seed=5), counts @ values, rtol=1e-12, atol=1e-12)


def test_draws_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(30.0).reshape(10, 3)
    whole = resampled_sums(values, resamples=101, seed=3)
    monkeypatch.setattr(statistics, "_CELLS", 70)
    assert (resampled_sums(values, resamples=101, seed=3) == whole).all()


def test_the_percentile_interval_agrees_with_scipy() -> None:
    from scipy.stats import bootstrap

    d = np.random.default_rng(1).exponential(size=400) - 0.8
    theirs = bootstrap((d,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(2))
    low, high = paired_interval(d, seed=3)
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    # Two runs of 10,000 resamples differ by about 1.5 % of the width at either end.
    assert low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_below_200_units_the_wider_of_bootstrap_and_t_is_used() -> None:
    from scipy import stats

    d = np.random.default_rng(4).normal(size=20)
    half = stats.t.ppf(0.975, 19) * d.std(ddof=1) / math.sqrt(20)
    low, high = paired_interval(d, seed=0)
    assert (high - low) / 2 == pytest.approx(half, rel=0.03)  # resampling noise of the standard error
    draws = resampled_sums(d[:, None], seed=0)[:, 0] / 20
    inner = percentile_interval(draws)
    assert high - low > inner[1] - inner[0]
    assert bootstrap_interval(float(d.mean()), draws, units=200) == inner


def test_a_bootstrap_wider_than_t_is_kept() -> None:
    draws = np.array([-1.0] * 6 + [0.0] * 88 + [1.0] * 6)
    assert bootstrap_interval(0.0, draws, units=150) == (-1.0, 1.0)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 10, 11, 29, 60, 199, 200])
def test_t_quantiles_agree_with_scipy(level: float, df: int) -> None:
    from scipy import stats

    assert t_quantile(level, df) == pytest.approx(stats.t.ppf((1 + level) / 2, df), rel=1e-9)


@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_small_samples_are_enumerated(n: int) -> None:
    d = np.random.default_rng(n).normal(0.4, 1, size=n)
    assert sign_flip_p(d) == enumerate_flips(d)


def test_tied_differences_reject_no_more_than_enumeration() -> None:
    d = np.array([0.1, 0.2, 0.3, -0.1, 0.1, 0.2])  # sums of these round differently from one order to the next
    assert sign_flip_p(d) == enumerate_flips(d)


def test_ties_that_rounding_split_count_as_ties() -> None:
    assert 0.1 + 0.2 > 0.3
    assert p_value([0.3, -0.3, 0.0], 0.1 + 0.2, exact=True) == 2 / 3


def test_the_standard_error_of_few_units_is_not_the_bootstraps_own() -> None:
    d = np.array([1.0, 2.0, 4.0, 8.0])
    means = resampled_sums(d[:, None], seed=0)[:, 0] / 4
    assert standard_error(means, 4) == pytest.approx(d.std(ddof=1) / 2, rel=0.03)  # 15 % more than without n / (n - 1)


def test_random_flips_come_close_to_the_whole_enumeration() -> None:
    d = np.random.default_rng(8).normal(0.35, 1, size=18)
    subsets = (np.arange(2**18)[:, None] >> np.arange(18)) & 1
    exact = np.mean(np.abs((1 - 2 * subsets) @ d) >= abs(d.sum()) - 1e-12)
    # Standard error at 100,000 trials is below 0.0016.
    assert sign_flip_p(d, seed=1) == pytest.approx(exact, abs=0.005)


def test_a_random_p_is_never_zero() -> None:
    assert sign_flip_p(np.ones(60), trials=999) == 1 / 1000
    assert p_value([0.0, 0.0, 0.0], 5.0, exact=False) == 1 / 4


def test_no_difference_has_p_one() -> None:
    assert sign_flip_p(np.zeros(50), trials=99) == 1.0
    assert sign_flip_p(np.zeros(5)) == 1.0


def test_swaps_take_half_of_the_units_on_average() -> None:
    moved = swapped_sums(np.ones((30, 1)), trials=4000, seed=0)
    assert moved.mean() == pytest.approx(15, abs=0.3)
    assert moved.var() == pytest.approx(7.5, rel=0.15)  # binomial


def test_sixteen_units_swap_in_every_way_once() -> None:
    moved = swapped_sums(2.0 ** np.arange(16)[:, None])[:, 0]
    assert sorted(moved) == list(range(2**16))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 100))
def test_percentiles_agree_with_numpy(values: list[float], percent: int) -> None:
    """numpy's `inverted_cdf`, with the rank in whole numbers: 0.07 * 100 is more than 7 in floating point."""
    rank = -(-percent * len(values) // 100)
    assert percentile(values, percent) == sorted(values)[rank - 1]
    if percent in (25, 50, 75):  # shares that floating point holds exactly
        assert percentile(values, percent) == np.quantile(values, percent / 100, method="inverted_cdf")


def test_resampled_percentiles_come_from_the_draws_of_the_sums() -> None:
    """Each draw written out as a list of rows, its percentile by numpy; two rows share a unit, one has no value."""
    rng = np.random.default_rng(0)
    unit = np.array([0, 1, 2, 1, 3, 4, 5])
    values = np.array([*rng.normal(size=6), np.nan])
    counts = resampled_sums(np.eye(6), resamples=200, seed=5).astype(int)
    got = resampled_percentiles(values, unit, 75, resamples=200, seed=5)
    for row, found in zip(counts, got, strict=True):
        drawn = np.repeat(values, row[unit])
        drawn = drawn[~np.isnan(drawn)]
        assert found == np.quantile(drawn, 0.75, method="inverted_cdf")


def test_a_draw_without_a_value_has_no_percentile() -> None:
    got = resampled_percentiles([1.0, np.nan], [0, 1], 95, resamples=100, seed=0)
    both = resampled_sums(np.eye(2), resamples=100, seed=0)[:, 0]
    assert np.array_equal(np.isnan(got), both == 0)
    assert 0 < np.isnan(got).sum() < 50
    assert np.isnan(resampled_percentiles([np.nan, np.nan], [0, 1], 95, resamples=3)).all()


def test_percentiles_do_not_depend_on_how_many_draws_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    values, unit = np.random.default_rng(1).normal(size=20), np.arange(20)
    whole = resampled_percentiles(values, unit, 95, resamples=50, seed=1)
    swapped = swapped_percentiles(values, values + 1, unit, 95, trials=50, seed=1)
    monkeypatch.setattr(statistics, "_CELLS", 160)  # eight rows at a time, a whole number of random bytes each
    assert np.array_equal(whole, resampled_percentiles(values, unit, 95, resamples=50, seed=1))
    assert np.array_equal(swapped, swapped_percentiles(values, values + 1, unit, 95, trials=50, seed=1))


@pytest.mark.parametrize("units", [4, 20])
def test_swapped_percentiles_are_those_of_the_swapped_lists(units: int) -> None:
    """Few units swap in every way, many at random, in the same order as the sums; a pair without a value stays out."""
    rng = np.random.default_rng(2)
    unit = np.array([*range(units), 1])
    old, new = rng.normal(size=units + 1), rng.normal(size=units + 1) + 0.5
    old[2] = np.nan
    swaps = swapped_sums(np.eye(units), trials=64, seed=3).astype(bool)
    got = swapped_percentiles(old, new, unit, 75, trials=64, seed=3)
    assert got.shape == (16 if units == 4 else 64, 2)
    kept = ~np.isnan(old)
    for swap, found in zip(swaps, got, strict=True):
        moved = swap[unit]
        sides = np.where(moved, new, old)[kept], np.where(moved, old, new)[kept]
        assert tuple(found) == tuple(np.quantile(side, 0.75, method="inverted_cdf") for side in sides)


def test_units_gather_their_rows() -> None:
    assert unit_sums([[1.0, 2], [3, 4], [5, 6]], [1, 0, 1]).tolist() == [[3, 4], [6, 8]]


def test_holm_by_hand() -> None:
    # m = 4, sorted .005 .011 .02 .04: 4 * .005 = .02, 3 * .011 = .033, 2 * .02 = .04, 1 * .04 = .04
    assert holm([0.02, 0.005, 0.04, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    # .01 * 3 = .03; .02 * 2 = .04; .03 * 1 = .03 is lifted to .04
    assert holm([0.01, 0.02, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_follows_its_p_values_when_they_are_permuted(p: list[float], random: object) -> None:
    order = list(range(len(p)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert holm([p[k] for k in order]) == [holm(p)[k] for k in order]
    assert all(adjusted >= raw for adjusted, raw in zip(holm(p), p, strict=True))


def test_effect_size_is_mean_over_sd() -> None:
    assert dz([1.0, 2.0, 3.0]) == pytest.approx(2.0)  # mean 2, sd 1
    assert dz([0.1] * 7) is None
    assert dz([4.0]) is None


def test_shares_follow_the_direction() -> None:
    assert shares([1.0, 0.0, -1.0, 2.0], higher_is_better=True) == (0.5, 0.25, 0.25)
    assert shares([1.0, 0.0, -1.0, 2.0], higher_is_better=False) == (0.25, 0.25, 0.5)


@pytest.mark.parametrize(
    ("drop", "unpaired", "paired"), [(0.2, 513, (359, 257, 154)), (0.3, 228, (160, 114, 69)), (0.5, 83, (58, 42, 25))]
)
def test_power_table_of_the_protocol(drop: float, unpaired: int, paired: tuple[int, ...]) -> None:
    """Base mean toxicity 0.035, sd 0.04, rho 0.3, 0.5, 0.7."""
    assert n_unpaired(0.04, drop * 0.035) == unpaired
    for rho, want in zip((0.3, 0.5, 0.7), paired, strict=True):
        assert n_paired(sd_of_difference(0.04, 0.04, rho), drop * 0.035) == want


@pytest.mark.parametrize(("u", "w", "want"), [(0.05, 0.01, 292), (0.04, 0.0, 194), (0.012, 0.004, 1960)])
def test_rates_need_the_rows_of_the_protocol(u: float, w: float, want: int) -> None:
    assert n_mcnemar(u, w) == want


def test_eleven_dialogues_see_only_a_change_as_large_as_the_base() -> None:
    """97 % of the base, paired at rho 0.5; 137 % unpaired."""
    assert smallest_visible(0.04, 11) / 0.035 == pytest.approx(0.97, abs=0.005)
    assert smallest_visible(0.04 * math.sqrt(2), 11) / 0.035 == pytest.approx(1.37, abs=0.005)


def test_smallest_visible_difference_is_the_inverse_of_the_sample_size() -> None:
    assert n_paired(2.0, smallest_visible(2.0, 73)) == 73


def test_more_samples_per_prompt_leave_the_variance_between_prompts() -> None:
    assert sd_with_samples(3.0, 4.0, 1) == 5.0
    assert sd_with_samples(3.0, 4.0, 10**9) == pytest.approx(3.0)


def test_paired_power_is_what_simulation_gives() -> None:
    n = n_paired(1.0, 0.25)  # 126
    d = np.random.default_rng(0).normal(0.25, 1.0, size=(n, 4000))
    moved = swapped_sums(d, trials=1999, seed=1)
    null = np.abs(d.sum(axis=0) - 2 * moved)
    p = (1 + (null >= np.abs(d.sum(axis=0))).sum(axis=0)) / 2000
    assert np.mean(p < 0.05) == pytest.approx(0.8, abs=0.03)


def test_mcnemar_power_is_what_simulation_gives() -> None:
    # Rates far from 0: with 17 discordant pairs (5 % against 1 %) the normal formula asks for a few pairs too many.
    n, runs = n_mcnemar(0.25, 0.15), 20_000
    counts = np.random.default_rng(0).multinomial(n, [0.25, 0.15, 0.60], size=runs)
    b, c = counts[:, 0], counts[:, 1]
    z = (b - c) / np.sqrt(np.maximum(b + c, 1))
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03)


def test_a_model_against_itself_is_flagged_in_at_most_one_of_twenty_comparisons() -> None:
    """2,000 comparisons of four scores that move together, many ties, no true difference."""
    comparisons, scores, n, flagged = 2000, 4, 120, 0
    rng = np.random.default_rng(11)
    rule = Rule(alpha=0.05, family=scores, leaked=0, minimal=None)
    for seed in range(4):
        shared = rng.normal(size=(n, comparisons // 4, 1))
        d = 0.8 * shared + 0.6 * rng.normal(size=(n, comparisons // 4, scores))
        d = np.where(rng.random(d.shape) < 0.4, 0.0, d).reshape(n, -1)  # 40 % of dialogues score the same
        point = d.mean(axis=0)
        null = point - 2 * swapped_sums(d, trials=999, seed=2 * seed) / n
        draws = resampled_sums(d, resamples=1000, seed=2 * seed + 1) / n
        p = [p_value(null[:, k], point[k], exact=False) for k in range(d.shape[1])]
        for k in range(0, d.shape[1], scores):
            adjusted = holm(p[k : k + scores])
            verdicts = [
                decide(point[j], bootstrap_interval(point[j], draws[:, j], units=n), adjusted[j - k], n, "higher", rule)
                for j in range(k, k + scores)
            ]
            flagged += any(verdict != "no difference shown" for verdict, _ in verdicts)
    assert 0.005 * comparisons <= flagged <= 0.05 * comparisons
