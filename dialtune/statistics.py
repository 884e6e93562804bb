"""Bootstrap, paired randomisation, Holm, effect size and power: numpy only, flat arrays in, numbers out.

Every score is a function of column sums: a mean is sum / n, BLEU a formula over summed n-gram counts. So resampling
sums rows that are stored already, for all scores of a comparison at once and with the same draws, and never touches a
text. Rows that belong together (samples of one prompt, copies of one dialogue) are summed into one unit before.

`U` units, `C` columns, `R` resamples or trials.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

RESAMPLES = 10_000
PERMUTATIONS = 100_000
ALPHA = 0.05
EXACT_UNITS = 16  # up to 2**16 assignments are enumerated
WIDEN_BELOW = 200  # percentile intervals cover less than they say below this many units
_CELLS = 4_000_000  # cells of a weight matrix held at once: 32 MB in float64


def unit_sums(rows: ArrayLike, unit: ArrayLike) -> Array:
    """Rows summed within their unit, (U,C); `unit` holds 0 .. U-1 per row.

    >>> unit_sums([[1.0], [2.0], [4.0]], [0, 1, 0])
    array([[5.],
           [2.]])
    """
    values, index = np.asarray(rows, dtype=np.float64), np.asarray(unit, dtype=np.intp)
    assert values.ndim == 2, values.shape
    assert index.shape == (len(values),), index.shape
    sums = np.zeros((int(index.max()) + 1, values.shape[1]))
    np.add.at(sums, index, values)
    return sums


def resampled_sums(values: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """Column sums over `resamples` draws of U units with replacement, (R,C); Efron 1979.

    Row r uses the same draw for every column, so two columns stay paired. Deterministic in `seed`.

    Args:
        values: (U,C), U >= 1; any unit.
        resamples: R.
        seed: of numpy's PCG64.
    """
    table = np.asarray(values, dtype=np.float64)
    assert table.ndim == 2, table.shape
    out: Array = np.concatenate([drawn.astype(np.float64) @ table for drawn in _draws(len(table), resamples, seed)])
    return out


def _draws(units: int, resamples: int, seed: int) -> Iterator[NDArray[np.intp]]:
    """How often each unit was drawn, in blocks (rows,U): the same draws for everything that shares U and seed."""
    assert units >= 1, units
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // units)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        draws = rng.integers(units, size=(rows, units)) + np.arange(rows)[:, None] * units
        yield np.bincount(draws.ravel(), minlength=rows * units).reshape(rows, units)


def swapped_sums(values: ArrayLike, *, trials: int = PERMUTATIONS, seed: int = 0) -> Array:
    """Column sums over a random half of the units, (R,C): what moves from one side to the other when pairs swap.

    All 2**U subsets, each once, if U <= 16; then R is 2**U and `trials` is not used.

    Args:
        values: (U,C), after minus before.
        trials: R for U > 16.
        seed: of numpy's PCG64.
    """
    table = np.asarray(values, dtype=np.float64)
    assert table.ndim == 2, table.shape
    out: Array = np.concatenate([swap.astype(np.float64) @ table for swap in swaps(len(table), trials, seed)])
    return out


def swaps(units: int, trials: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Which units swap sides (1), in blocks (rows,U): every assignment for few units, else random ones."""
    if units <= EXACT_UNITS:
        yield ((np.arange(2**units)[:, None] >> np.arange(units)) & 1).astype(np.uint8)
        return
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // units)
    for start in range(0, trials, step):
        rows = min(step, trials - start)
        packed = rng.integers(256, size=(rows, -(-units // 8)), dtype=np.uint8)
        yield np.unpackbits(packed, axis=1, count=units)


def percentile(values: ArrayLike, percent: int) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (the inverted distribution function).

    >>> percentile([5.0, 1.0, 3.0, 2.0], 50), percentile([5.0, 1.0, 3.0, 2.0], 95)
    (2.0, 5.0)
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    assert ordered.ndim == 1, ordered.shape
    assert len(ordered) >= 1, ordered.shape
    return float(_weighted_percentile(ordered, np.ones((1, len(ordered)), dtype=np.intp), percent)[0])


def resampled_percentiles(
    values: ArrayLike, unit: ArrayLike, percent: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> Array:
    """The percentile of each draw of units, (R,), from the same draws as `resampled_sums`; NaN where it got no value.

    Args:
        values: (N,); NaN takes no part.
        unit: (N,) in 0 .. U-1, every unit at least once.
        percent: 1 .. 100.
        resamples: R.
        seed: as for `resampled_sums`.
    """
    rows, index = np.asarray(values, dtype=np.float64), np.asarray(unit, dtype=np.intp)
    assert rows.shape == index.shape, (rows.shape, index.shape)
    kept = np.flatnonzero(~np.isnan(rows))
    order = kept[np.argsort(rows[kept], kind="stable")]
    draws = _draws(int(index.max()) + 1, resamples, seed)
    return np.concatenate([_weighted_percentile(rows[order], drawn[:, index[order]], percent) for drawn in draws])


def swapped_percentiles(
    before: ArrayLike, after: ArrayLike, unit: ArrayLike, percent: int, *, trials: int = PERMUTATIONS, seed: int = 0
) -> Array:
    """Percentiles of both sides, (R,2), after the assignments of `swapped_sums`; rows with a NaN take no part.

    Args:
        before: (N,).
        after: (N,).
        unit: (N,) in 0 .. U-1, every unit at least once; a unit swaps as a whole.
        percent: 1 .. 100.
        trials: R for U > 16.
        seed: as for `swapped_sums`.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    index = np.asarray(unit, dtype=np.intp)
    assert old.shape == new.shape == index.shape, (old.shape, new.shape, index.shape)
    kept = ~(np.isnan(old) | np.isnan(new))
    pool, units = np.concatenate([old[kept], new[kept]]), np.concatenate([index[kept]] * 2)
    is_new = np.repeat([False, True], int(kept.sum()))
    order = np.argsort(pool, kind="stable")
    ordered, units, is_new = pool[order], units[order], is_new[order]
    blocks = []
    for swap in swaps(int(index.max()) + 1, trials, seed):
        on_new = swap[:, units].astype(bool) ^ is_new
        blocks.append(np.stack([_weighted_percentile(ordered, side, percent) for side in (~on_new, on_new)], axis=1))
    return np.concatenate(blocks)


def _weighted_percentile(ordered: Array, weights: NDArray[Any], percent: int) -> Array:
    """Per row of weights (R,N) the percentile of ascending values (N,) that occur so often; NaN without any."""
    assert 1 <= percent <= 100, percent
    if len(ordered) == 0:
        return np.full(len(weights), np.nan)
    counts = np.cumsum(weights, axis=1, dtype=np.int64)
    place = np.argmax(100 * counts >= percent * counts[:, -1:], axis=1)
    found: Array = np.where(counts[:, -1] > 0, ordered[place], np.nan)
    return found


def p_value(null: ArrayLike, observed: float, *, exact: bool) -> float:
    """Two-sided p of `observed` among differences under random assignment.

    p = (1 + #{|null| >= |observed|}) / (1 + R); the plain share if every assignment was enumerated (Phipson & Smyth
    2010). A relative 1e-9 keeps ties that rounding split on the side that does not reject.
    """
    values = np.abs(np.asarray(null, dtype=np.float64))
    assert values.ndim == 1, values.shape
    hits = int(np.count_nonzero(values >= abs(observed) * (1 - 1e-9) - 1e-12))
    return hits / len(values) if exact else (1 + hits) / (1 + len(values))


def sign_flip_p(differences: ArrayLike, *, trials: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p of a mean paired difference: each difference could as well have had the other sign.

    >>> sign_flip_p([1.0, 2.0, 3.0])
    0.25
    """
    d = np.asarray(differences, dtype=np.float64)
    assert d.ndim == 1, d.shape
    moved = swapped_sums(d[:, None], trials=trials, seed=seed)[:, 0]
    total = float(d.sum())
    return p_value((total - 2 * moved) / len(d), total / len(d), exact=len(d) <= EXACT_UNITS)


def percentile_interval(resampled: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """The central `level` share of the resampled values, by linear interpolation."""
    values = np.asarray(resampled, dtype=np.float64)
    assert values.ndim == 1, values.shape
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_interval(
    point: float, resampled: ArrayLike, *, units: int, level: float = 0.95, log: bool = False
) -> tuple[float, float]:
    """Percentile interval; below 200 units the wider of it and point +- t * standard error.

    The standard error is the resampled values' sd times sqrt(U / (U - 1)), which holds for means and for corpus
    scores alike (for a mean it is sd / sqrt(U), up to resampling noise). With `log`, for positive scores of which
    ratios count, the interval is made of their logarithms.
    """
    assert units >= 2, units
    if log:
        low, high = bootstrap_interval(math.log(point), np.log(np.asarray(resampled)), units=units, level=level)
        return math.exp(low), math.exp(high)
    values = np.asarray(resampled, dtype=np.float64)
    low, high = percentile_interval(values, level=level)
    if units >= WIDEN_BELOW:
        return low, high
    half = t_quantile(level, units - 1) * standard_error(values, units)
    return (point - half, point + half) if 2 * half > high - low else (low, high)


def standard_error(resampled: ArrayLike, units: int) -> float:
    """Standard error of a score from its resampled values, corrected for the bootstrap's 1/U variance."""
    assert units >= 2, units
    return float(np.std(np.asarray(resampled, dtype=np.float64))) * math.sqrt(units / (units - 1))


def paired_interval(
    differences: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of a mean paired difference, one unit per value, N >= 2."""
    d = np.asarray(differences, dtype=np.float64)
    assert d.ndim == 1, d.shape
    means = resampled_sums(d[:, None], resamples=resamples, seed=seed)[:, 0] / len(d)
    return bootstrap_interval(float(d.mean()), means, units=len(d), level=level)


def _central_t(t: float, df: int) -> float:
    """P(|T| < t) for integer degrees of freedom: Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    theta = math.atan(t / math.sqrt(df))
    cos2, odd = math.cos(theta) ** 2, df % 2 == 1
    term = math.cos(theta) if odd else 1.0
    series = term if df > 1 else 0.0
    for k in range(3 if odd else 2, df - 1, 2):
        term *= (k - 1) / k * cos2
        series += term
    inside = math.sin(theta) * series
    return 2 / math.pi * (theta + inside) if odd else inside


@cache
def t_quantile(level: float, df: int) -> float:
    """The t for which |T| < t has probability `level`, by bisection.

    >>> round(t_quantile(0.95, 10), 3)
    2.228
    """
    assert 0 < level < 1, level
    assert df >= 1, df
    low, high = 0.0, 1.0
    while _central_t(high, df) < level:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central_t(middle, df) < level else (low, middle)
    return (low + high) / 2


def holm(p: Sequence[float]) -> list[float]:
    """Holm-adjusted p-values in the order given: p_holm(i) = max over j <= i of min(1, (m - j + 1) p(j)); Holm 1979.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, running = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


def dz(differences: ArrayLike) -> float | None:
    """Mean of the differences over their sd (Cohen's d_z); None if they do not vary or there is only one."""
    d = np.asarray(differences, dtype=np.float64)
    assert d.ndim == 1, d.shape
    # Equal values leave a sd of rounding size, hence the comparison of extremes and not of the sd with zero.
    if len(d) < 2 or d.max() == d.min():
        return None
    return float(d.mean() / d.std(ddof=1))


def shares(differences: ArrayLike, *, higher_is_better: bool) -> tuple[float, float, float]:
    """Shares of differences that are better, tied and worse; they sum to 1."""
    d = np.asarray(differences, dtype=np.float64) * (1 if higher_is_better else -1)
    assert d.ndim == 1, d.shape
    assert len(d) >= 1, d.shape
    return float(np.mean(d > 0)), float(np.mean(d == 0)), float(np.mean(d < 0))


# Power: Fleiss 1981 and Connor 1987 for rates.


def _z(alpha: float, power: float) -> tuple[float, float]:
    assert 0 < alpha < 1, alpha
    assert 0 < power < 1, power
    return NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)


def _ceil(n: float) -> int:
    return math.ceil(n - 1e-9)  # 58.0000000001 is 58


def sd_of_difference(sd_before: float, sd_after: float, rho: float) -> float:
    """Standard deviation of paired differences: sqrt(sd_a^2 + sd_b^2 - 2 rho sd_a sd_b)."""
    return math.sqrt(sd_before**2 + sd_after**2 - 2 * rho * sd_before * sd_after)


def sd_with_samples(between: float, within: float, k: int) -> float:
    """Standard deviation of a difference over k samples per prompt, from two sds: sqrt(between^2 + within^2 / k)."""
    assert k >= 1, k
    return math.sqrt(between**2 + within**2 / k)


def n_paired(sd: float, delta: float, *, alpha: float = ALPHA, power: float = 0.8) -> int:
    """Pairs that show a mean difference `delta` when differences have this sd: ((z_a + z_b) sd / delta)^2, rounded up.

    >>> n_paired(0.04, 0.007)
    257
    """
    z_alpha, z_beta = _z(alpha, power)
    return _ceil(((z_alpha + z_beta) * sd / delta) ** 2)


def n_unpaired(sd: float, delta: float, *, alpha: float = ALPHA, power: float = 0.8) -> int:
    """Rows per arm when the arms share no prompts: 2 ((z_a + z_b) sd / delta)^2, rounded up."""
    z_alpha, z_beta = _z(alpha, power)
    return _ceil(2 * ((z_alpha + z_beta) * sd / delta) ** 2)


def n_mcnemar(only_before: float, only_after: float, *, alpha: float = ALPHA, power: float = 0.8) -> int:
    """Pairs that show a change of a rate; the arguments are the shares that are positive on one side only.

    n = (z_a sqrt(u + w) + z_b sqrt(u + w - (u - w)^2))^2 / (u - w)^2, rounded up.
    """
    z_alpha, z_beta = _z(alpha, power)
    both, change = only_before + only_after, only_before - only_after
    return _ceil((z_alpha * math.sqrt(both) + z_beta * math.sqrt(both - change**2)) ** 2 / change**2)


def smallest_visible(sd: float, n: int, *, alpha: float = ALPHA, power: float = 0.8) -> float:
    """The mean difference that n pairs show with this power: (z_a + z_b) sd / sqrt(n)."""
    assert n >= 1, n
    return sum(_z(alpha, power)) * sd / math.sqrt(n)
