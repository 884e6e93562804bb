"""How good a reward is on rows it never saw: pair accuracy, AUC, rank correlation, with intervals by dialogue.

Numpy only, flat arrays in. `N` pairs or rows, `U` dialogues, `R` resamples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dialtune.scorers.agreement import spearman
from dialtune.statistics import bootstrap_interval, resampled_sums, unit_sums

Array = NDArray[np.float64]

RESAMPLES = 2_000
_CELLS = 4_000_000  # of a matrix of weights held at once


@dataclass(frozen=True, slots=True)
class Measured:
    """A number with its 95 % interval over `units` dialogues; `value` is None exactly when `reason` says why."""

    value: float | None
    ci: tuple[float, float] | None
    n: int
    units: int
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values; no reason where there is none."""
        found = {"value": self.value, "ci": self.ci and list(self.ci), "n": self.n, "dialogues": self.units}
        return found | ({"reason": self.reason} if self.reason else {})


def pair_accuracy(better: ArrayLike, worse: ArrayLike, unit: ArrayLike, *, seed: int = 0) -> Measured:
    """The share of pairs in which the better exchange has the higher value, a tie counting half.

    >>> pair_accuracy([2.0, 1.0], [1.0, 1.0], [0, 1]).value
    0.75

    Args:
        better: (N,) values.
        worse: (N,) of the same pairs.
        unit: (N,) dialogue of each pair, any integers; the interval resamples dialogues.
        seed: of the bootstrap.
    """
    high, low = np.asarray(better, dtype=np.float64), np.asarray(worse, dtype=np.float64)
    assert high.shape == low.shape, (high.shape, low.shape)
    wins = (high > low) + 0.5 * (high == low)
    place, n_units = _places(unit, len(high))
    if not len(high):
        return Measured(None, None, 0, 0, "no pairs")
    value = float(wins.mean())
    if n_units < 2:
        return Measured(value, None, len(high), n_units)
    sums = resampled_sums(
        unit_sums(np.stack([wins, np.ones(len(wins))], axis=1), place), resamples=RESAMPLES, seed=seed
    )
    ci = bootstrap_interval(value, sums[:, 0] / sums[:, 1], units=n_units)
    return Measured(value, _inside(ci, 0.0), len(high), n_units)


def roc_auc(scores: ArrayLike, labels: ArrayLike, unit: ArrayLike, *, seed: int = 0) -> Measured:
    """The chance that a random good row scores above a random bad one, ties half: Hanley & McNeil 1982.

    Args:
        scores: (N,).
        labels: (N,) bool, True for good.
        unit: (N,) dialogue of each row; the interval resamples dialogues.
        seed: of the bootstrap.
    """
    values, good = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    assert values.shape == good.shape, (values.shape, good.shape)
    place, n_units = _places(unit, len(values))
    if good.all() or not good.any():
        return Measured(None, None, len(values), n_units, "rows of one kind")
    value = float(weighted_auc(values, good, np.ones((1, len(values))))[0])
    if n_units < 2:
        return Measured(value, None, len(values), n_units)
    rng, draws = np.random.default_rng(seed), []
    step = max(1, _CELLS // len(values))
    for start in range(0, RESAMPLES, step):
        counts = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=min(step, RESAMPLES - start))
        draws.append(weighted_auc(values, good, counts[:, place].astype(np.float64)))
    drawn = np.concatenate(draws)
    ci = bootstrap_interval(value, drawn[~np.isnan(drawn)], units=n_units)
    return Measured(value, _inside(ci, 0.0), len(values), n_units)


def weighted_auc(scores: Array, good: NDArray[np.bool_], weights: Array) -> Array:
    """(R,) AUC with row weights (R,N) >= 0; NaN where one kind has no weight."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])  # rows of one score are one step of the curve
    sides = [np.add.reduceat(weights[:, order] * kind[order], starts, axis=1) for kind in (good, ~good)]
    high, low = sides
    below = np.cumsum(low, axis=1) - low / 2
    with np.errstate(invalid="ignore"):
        found: Array = (high * below).sum(1) / (high.sum(1) * low.sum(1))
    return found


def rank_correlation(scores: ArrayLike, targets: ArrayLike, *, seed: int = 0) -> Measured:
    """Spearman's correlation of values and ratings, one of each per dialogue, with a bootstrap interval."""
    values, wanted = np.asarray(scores, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    assert values.shape == wanted.shape, (values.shape, wanted.shape)
    n = len(values)
    value = spearman(values, wanted)
    if value is None:
        return Measured(None, None, n, n, "fewer than two dialogues, or all with one value")
    rows = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    drawn = [found for chosen in rows if (found := spearman(values[chosen], wanted[chosen])) is not None]
    ci = bootstrap_interval(value, drawn, units=n)
    return Measured(value, _inside(ci, -1.0), n, n)


def _places(unit: ArrayLike, n: int) -> tuple[NDArray[np.intp], int]:
    """(0 .. U-1 per row, U)."""
    given = np.asarray(unit)
    assert given.shape == (n,), (given.shape, n)
    names, place = np.unique(given, return_inverse=True)
    return place.astype(np.intp), len(names)


def _inside(ci: tuple[float, float], lowest: float) -> tuple[float, float]:
    return max(ci[0], lowest), min(ci[1], 1.0)
