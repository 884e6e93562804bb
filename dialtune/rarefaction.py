"""Distinct n-grams in a fixed budget: their expected share, its half-samples and swaps; numpy only.

A longer text repeats itself more, so the share of distinct n-grams says little unless it is taken over as many of them.
Here it is the expected share among `budget` n-grams drawn without replacement from all there are (rarefaction; Hurlbert
1971, Ecology 52:577, formula 14), which needs no order of the texts.

A bootstrap would draw a dialogue twice and so make every text look repeated (measured: 60 dialogues, its 95 % interval
covers 35 %, that of half-samples 95 %; tests/test_rarefaction.py). Half-samples draw half of the dialogues,
each once: the variance of a mean over half of them without replacement is that of the mean over all of them (McCarthy
1969; Politis & Romano 1994), and nothing is repeated that was said once.

`S` sides (one, or before and after), `U` units, `V` kinds of n-grams, `C` how often a kind occurs, `R` draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dialtune.statistics import RESAMPLES, swaps

Array = NDArray[np.float64]
Counts = NDArray[np.float32]  # whole numbers; products of such matrices are much faster than those of integers

_CELLS = 4_000_000  # cells of a matrix of counts held at once


@dataclass(frozen=True)
class NgramCounts:
    """How often each unit says each n-gram, on each side.

    Most n-grams occur in one unit only. What these add to a draw depends on that unit alone, so they are kept as how
    many of them occur how often: `lone` (S,U,C+1). The others are kept one by one: `shared` (S,U,V).
    """

    shared: Counts
    lone: Counts

    @property
    def units(self) -> int:
        """U."""
        return int(self.lone.shape[1])

    def distinct(self, budget: int) -> Array:
        """(S,) share of distinct n-grams among `budget`; NaN for a side that has fewer."""
        everyone = np.ones((1, self.units), dtype=np.float32)
        return np.concatenate([self._distinct(everyone @ s, everyone @ o, budget) for s, o in self._sides()])

    def half_samples(self, budget: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Array:
        """(S,R) shares in draws of half of the units, the same ones on every side; NaN where a half says too little.

        Args:
            budget: n-grams.
            resamples: R.
            seed: of numpy's PCG64.
        """
        blocks = []
        for drawn in _halves(self.units, resamples, seed, self._rows()):
            weights = drawn.astype(np.float32)
            blocks.append(np.stack([self._distinct(weights @ s, weights @ o, budget) for s, o in self._sides()]))
        return np.concatenate(blocks, axis=1)

    def swapped(self, budget: int, *, trials: int, seed: int = 0) -> Array:
        """(2,R) shares before and after, when a random half of the units swaps sides; as `statistics.swapped_sums`."""
        assert len(self.shared) == 2, self.shared.shape
        blocks = []
        for moved in swaps(self.units, trials, seed):
            for start in range(0, len(moved), self._rows()):
                new = moved[start : start + self._rows()].astype(np.float32)
                blocks.append(np.stack([self._mixed(weights, budget) for weights in (1 - new, new)]))
        return np.concatenate(blocks, axis=1)

    def _mixed(self, weights: Counts, budget: int) -> Array:
        """(R,) of units taken from the first side where the weight (R,U) is 1, from the second where it is 0."""
        (one, one_lone), (other, other_lone) = self._sides()
        rest = 1 - weights
        return self._distinct(weights @ one + rest @ other, weights @ one_lone + rest @ other_lone, budget)

    def _sides(self) -> list[tuple[Counts, Counts]]:
        return list(zip(self.shared, self.lone, strict=True))

    def _rows(self) -> int:
        """Draws at a time."""
        return max(1, _CELLS // max(self.units, int(self.shared.shape[2])))

    def _distinct(self, shared: Counts, lone: Counts, budget: int) -> Array:
        """(R,) from counts of kinds (R,V) and how many other kinds occur how often (R,C+1)."""
        width = lone.shape[1]
        offset = np.arange(len(shared))[:, None] * width
        places = (shared.astype(np.intp) + offset).ravel()
        histogram = np.bincount(places, minlength=len(shared) * width).reshape(len(shared), width)
        return expected_distinct(histogram + lone, budget)


def expected_distinct(histogram: ArrayLike, budget: int) -> Array:
    """(R,) expected share of distinct n-grams among `budget` drawn without replacement, in (0,1].

    E = sum over kinds of 1 - C(T - c, b) / C(T, b), over b     T n-grams in all, c of this kind (Hurlbert 1971)

    Args:
        histogram: (R,C+1), how many kinds occur 0, 1, .. C times.
        budget: b >= 1. NaN where T < b.
    """
    kinds = np.asarray(histogram, dtype=np.float64)
    assert kinds.ndim == 2, kinds.shape
    assert budget >= 1, budget
    times = np.arange(kinds.shape[1])
    total = kinds @ times  # (R,)
    # C(T - c, b) / C(T, b) is the product of (T - b - k) / (T - k) over k < c.
    left = np.maximum(total[:, None] - times[:-1], 1.0)
    missed = np.cumprod(np.maximum(left - budget, 0.0) / left, axis=1)
    expected: Array = (kinds[:, 1:] * (1 - missed)).sum(axis=1) / budget
    return np.where(total >= budget, expected, np.nan)


def ngram_counts(sides: Sequence[Sequence[ArrayLike]], unit: ArrayLike) -> NgramCounts:
    """The counts of one side, or of two over the same rows.

    Args:
        sides: S times N rows of ids, one id for each n-gram that the row says.
        unit: (N,) in 0 .. U-1, every unit at least once.
    """
    index = np.asarray(unit, dtype=np.intp)
    rows = [[np.asarray(row, dtype=np.int64) for row in side] for side in sides]
    assert all(len(side) == len(index) for side in rows), ([len(side) for side in rows], len(index))
    ids = np.concatenate([np.zeros(0, dtype=np.int64), *(row for side in rows for row in side)])
    kinds, kind = np.unique(ids, return_inverse=True)
    owner = np.concatenate([np.repeat(index, [len(row) for row in side]) for side in rows])
    side = np.repeat(np.arange(len(rows)), [sum(map(len, side)) for side in rows])
    # One entry per unit and kind that meet on any side; a matrix of all of them would be mostly zeros.
    cells, cell = np.unique(owner * len(kinds) + kind, return_inverse=True)
    counts = np.zeros((len(rows), len(cells)), dtype=np.float32)
    np.add.at(counts, (side, cell), 1)
    return _split(counts, cells // max(1, len(kinds)), cells % max(1, len(kinds)), int(index.max()) + 1)


def _split(counts: Counts, owner: NDArray[np.intp], kind: NDArray[np.intp], units: int) -> NgramCounts:
    """Counts (S,M) of M meetings of a unit and a kind: kinds that one unit alone has, apart from the others."""
    n_owners = np.bincount(kind)
    most = np.bincount(kind, weights=counts.max(axis=0)).max() if len(kind) else 0  # on one side, however units swap
    alone = n_owners[kind] == 1
    lone = np.zeros((len(counts), units, int(most) + 1), dtype=np.float32)
    column = np.cumsum(n_owners > 1) - 1
    shared = np.zeros((len(counts), units, int((n_owners > 1).sum())), dtype=np.float32)
    for place, side in enumerate(counts):
        np.add.at(lone[place], (owner[alone], side[alone].astype(np.intp)), 1)
        shared[place, owner[~alone], column[kind[~alone]]] = side[~alone]
    return NgramCounts(shared, lone)


def _halves(units: int, resamples: int, seed: int, rows: int) -> Iterator[NDArray[np.bool_]]:
    """Which units are drawn, in blocks (rows,U): half of them, for an odd number half of one more or one less."""
    assert units >= 2, units
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, rows):
        n = min(rows, resamples - start)
        size = (units + rng.integers(2, size=n)) // 2
        rank = rng.random((n, units)).argsort(axis=1).argsort(axis=1)
        yield rank < size[:, None]
