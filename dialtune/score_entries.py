"""Statistics per row to scores with their intervals: sums, percentiles, or distinct n-grams under the same draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dialtune.metrics.base import Array, Metric
from dialtune.metrics.reply import ngram_ids
from dialtune.rarefaction import ngram_counts
from dialtune.results import ScoreEntry
from dialtune.statistics import bootstrap_interval, percentile, resampled_percentiles, resampled_sums, unit_sums

Draws = Mapping[str, int]  # resamples and seed


def score_entries(
    metrics: Sequence[tuple[Metric, str | None]],
    stats: Mapping[str, Array],
    units: Sequence[int],
    references: tuple[int, int],
    draws: Draws,
) -> dict[str, ScoreEntry]:
    """One entry per metric, with a 95 % interval by resampling whole units; all under the same draws.

    Args:
        metrics: each with the reason why it could not be used, if it could not.
        stats: (N,K) by name of metric, as its `segments` gives them.
        units: (N,) any number per unit; rows of one unit are drawn together.
        references: fewest and most on a row, for the signatures.
        draws: `resamples` and `seed`.
    """
    _, unit = np.unique(units, return_inverse=True)
    blocks = [_block(metric, stats[metric.name], unit) for metric, _ in metrics]
    resampled = resampled_sums(np.hstack(blocks), **draws)
    entries, start = {}, 0
    for (metric, absent), block in zip(metrics, blocks, strict=True):
        drawn = resampled[:, start : start + block.shape[1]]
        start += block.shape[1]
        n, n_units = int(block[:, -1].sum()), int(np.count_nonzero(block[:, -1]))
        signed, reason = metric.signature(references), absent or f"no row has {metric.needs}"
        value, values = np.nan, np.zeros(0)
        if n and metric.budget is not None:
            value, values = _of_ngrams(stats[metric.name], unit, metric.budget, draws)
            reason = f"fewer than {metric.budget} n-grams in all completions together"
        elif n and metric.percent is not None:
            value, values = _of_percentile(stats[metric.name][:, 0], unit, metric.percent, draws)
        elif n:
            value, values = _of_sums(metric, block, drawn)
        if np.isnan(value):
            entries[metric.name] = ScoreEntry(value=None, ci=None, n=0, signature=signed, reason=reason)
            continue
        enough = n_units > 1 and len(values) > 0
        ci = bootstrap_interval(value, values, units=n_units, log=metric.log_scale) if enough else None
        entries[metric.name] = ScoreEntry(value=value, ci=ci, n=n, signature=signed, note=metric.note)
    return entries


def _block(metric: Metric, stats: Array, unit: NDArray[np.intp]) -> Array:
    """(U,K+1) summed statistics and rows kept; of n-grams only how many there are can be summed."""
    rows = stats if metric.budget is None else stats[:, :1]
    kept = ~np.isnan(rows[:, :1])
    return unit_sums(np.hstack([np.where(kept, rows, 0.0), kept]), unit)


def _of_sums(metric: Metric, block: Array, drawn: Array) -> tuple[float, Array]:
    total = block.sum(axis=0)
    drawn = drawn[drawn[:, -1] > 0]  # a draw may miss the few rows that were scored
    return float(metric.combine(total[:-1], total[-1])), metric.combine(drawn[:, :-1], drawn[:, -1])


def _of_percentile(column: Array, unit: NDArray[np.intp], percent: int, draws: Draws) -> tuple[float, Array]:
    values = resampled_percentiles(column, unit, percent, **draws)
    return percentile(column[~np.isnan(column)], percent), values[~np.isnan(values)]


def _of_ngrams(stats: Array, unit: NDArray[np.intp], budget: int, draws: Draws) -> tuple[float, Array]:
    """Share of distinct n-grams, and that of half-samples; none of these if most halves lack the budget."""
    counts = ngram_counts([ngram_ids(stats)], unit)
    value = float(counts.distinct(budget)[0])
    if np.isnan(value) or counts.units < 2:
        return value, np.zeros(0)
    values = counts.half_samples(budget, **draws)[0]
    values = values[~np.isnan(values)]
    return value, values if len(values) > draws["resamples"] // 2 else np.zeros(0)
