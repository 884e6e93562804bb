"""Two evaluations side by side: refused unless alike, then paired row by row, resampled and swapped together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

import numpy as np
from numpy.typing import NDArray

from dialtune.errors import ConfigError, NotComparableError
from dialtune.metrics.base import Array, Metric, is_empty
from dialtune.metrics.reply import ngram_ids
from dialtune.rarefaction import NgramCounts, ngram_counts
from dialtune.results import Evaluation
from dialtune.seeds import seed_for
from dialtune.statistics import (
    EXACT_UNITS,
    p_value,
    percentile,
    resampled_percentiles,
    resampled_sums,
    swapped_percentiles,
    swapped_sums,
    unit_sums,
)

NGRAM_TRIALS = 10_000  # swaps of a score that counts distinct n-grams anew for each of them


def family_of(
    before: Evaluation,
    after: Evaluation,
    scores: Sequence[str] | None,
    constraints: Mapping[str, float] | None,
    metrics: Mapping[str, Metric],
) -> list[str]:
    """The scores to test, in the order of the candidate's file."""
    unknown = sorted({*before.scores, *after.scores} - set(metrics))
    if unknown:
        raise NotComparableError(f"scores this version does not know: {', '.join(unknown)}; evaluate again")
    both = [name for name in after.scores if name in before.scores and metrics[name].direction]
    known_scores([*(scores or []), *(constraints or {})], both)
    if scores is not None:
        return list(dict.fromkeys(scores))
    one_sided = [
        f"scores.{name}: only in {side}"
        for side, mine, other in (("before", before, after), ("after", after, before))
        for name in mine.scores
        if name not in other.scores and metrics[name].direction
    ]
    if one_sided:
        raise NotComparableError(_refusal(one_sided))
    return [name for name in both if not (name.endswith("_max") and name.removesuffix("_max") in both)]


def known_scores(asked: Sequence[str], known: Sequence[str]) -> None:
    """Return if every score asked for is among the known; otherwise a ConfigError with one line each."""
    problems = []
    for name in asked:
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ";"
            problems.append(f"score '{name}': not compared{hint} there are: {', '.join(known) or 'none'}")
    if problems:
        raise ConfigError(problems)


def refuse_unlike(
    before: Evaluation, after: Evaluation, names: Sequence[str], allow_decoding_change: bool
) -> tuple[str, ...]:
    """The differences that were allowed; any other difference is refused, all at once."""
    differing = [f"task: {before.task} against {after.task}"] if before.task != after.task else []
    for key in ("fingerprint", "references", "reference"):
        differing += _differ(f"data.{key}", getattr(before.data, key), getattr(after.data, key))
    ids = {row.id for row in before.rows}, {row.id for row in after.rows}
    if ids[0] != ids[1]:
        lost, new = len(ids[0] - ids[1]), len(ids[1] - ids[0])
        differing.append(f"rows.id: {lost} only in before, {new} only in after")
    for name in dict.fromkeys(names):
        one, other = before.scores[name], after.scores[name]
        if one.value is not None and other.value is not None:  # else there is nothing that could differ
            differing += _differ_signature(name, one.signature, other.signature)
    decoding = [
        line
        for key in type(before.decoding).model_fields
        for line in _differ(f"decoding.{key}", getattr(before.decoding, key), getattr(after.decoding, key))
    ]
    template = _differ("data.template_sha256", before.data.template_sha256, after.data.template_sha256)
    if "file" in (before.decoding.strategy, after.decoding.strategy):
        decoding += template  # how a file was made is not known: its prompt no more than its decoding
    else:
        differing += template
    if differing or (decoding and not allow_decoding_change):
        raise NotComparableError(_refusal(differing + decoding, allowable=not differing))
    return tuple(decoding)


def _refusal(differing: Sequence[str], *, allowable: bool = False) -> str:
    way_out = "or say --allow-decoding-change, which is written into the result" if allowable else "and compare again"
    return (
        f"not comparable: {'; '.join(differing)}\n"
        f"  A difference could come from these alone; evaluate both in the same way, {way_out}"
    )


def _differ(key: str, one: object, other: object) -> list[str]:
    return [] if one == other else [f"{key}: {_short(one)} against {_short(other)}"]


def _differ_signature(name: str, one: str, other: str) -> list[str]:
    """Only the settings that differ."""
    sides = [dict(part.partition(":")[::2] for part in text.split("|")) for text in (one, other)]
    keys = dict.fromkeys([*sides[0], *sides[1]])
    return [
        line
        for key in keys
        for line in _differ(f"{name} {key}", sides[0].get(key, "absent"), sides[1].get(key, "absent"))
    ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "..."


@dataclass(frozen=True)
class Pair:
    """One score on both sides; `columns` per unit (U, 2K+1): summed statistics before, after, and pairs kept.

    `old` and `new` hold the values per row (N,) of a row-wise score, NaN where the pair was not scored, and `unit` (N,)
    the unit of each row. `ngrams` counts those of a score with a budget, before and after.
    """

    metric: Metric
    columns: Array
    old: Array | None
    new: Array | None
    unit: NDArray[np.intp]
    dropped: int
    ngrams: NgramCounts | None = None

    @property
    def differences(self) -> Array | None:
        """Mean change of the pairs of each unit that has one; None for a corpus score."""
        if self.old is None or self.new is None:
            return None
        old, new, n = self.columns[self.columns[:, -1] > 0].T
        change: Array = (new - old) / n
        return change

    @property
    def width(self) -> int:
        width: int = (self.columns.shape[1] - 1) // 2
        return width

    def split(self, sums: Array) -> tuple[Array, Array]:
        """Scores before and after (...) from sums (...,2K+1)."""
        k, n = self.width, sums[..., -1]
        return self.metric.combine(sums[..., :k], n), self.metric.combine(sums[..., k:-1], n)


@dataclass(frozen=True)
class Drawn:
    """A pair with its resampled scores (R,) and its p; None where fewer than two units were scored."""

    pair: Pair
    n: int
    units: int
    point: tuple[float, float] | None
    resampled: tuple[Array, Array] | None
    p: float | None


def pair_rows(before: Evaluation, after: Evaluation, metric: Metric, *, count_empty: bool = False) -> Pair:
    """Both sides' statistics of one score, matched by row id and summed by dialogue; both must hold the same ids.

    With `count_empty` an empty completion that the score excludes counts as what the metric says (`empty_as`).
    """
    place = {row.id: k for k, row in enumerate(before.rows)}
    old = _statistics(before, metric, count_empty)[[place[row.id] for row in after.rows]]
    new = _statistics(after, metric, count_empty)
    if old.shape[1] != new.shape[1]:  # n-grams of the longest row, or a side that was not scored
        width = max(old.shape[1], new.shape[1])
        old, new = (np.pad(side, ((0, 0), (0, width - side.shape[1])), constant_values=np.nan) for side in (old, new))
    kept = ~(np.isnan(old[:, 0]) | np.isnan(new[:, 0]))
    _, unit = np.unique([row.unit or row.id for row in after.rows], return_inverse=True)
    ngrams = None
    if metric.budget is not None:
        clean = (np.where(kept[:, None], side, 0.0) for side in (old, new))
        ngrams = ngram_counts([ngram_ids(side) for side in clean], unit)
        old, new = old[:, :1], new[:, :1]  # how many there are
    rows = np.hstack([np.where(kept[:, None], side, 0.0) for side in (old, new)] + [kept[:, None]])
    by_row = tuple(np.where(kept, side[:, 0], np.nan) for side in (old, new)) if metric.row_wise else (None, None)
    return Pair(metric, unit_sums(rows, unit), by_row[0], by_row[1], unit, int((~kept).sum()), ngrams)


def _statistics(evaluation: Evaluation, metric: Metric, count_empty: bool) -> Array:
    """(N,K), NaN where the row was not scored."""
    if metric.row_wise:
        values = [row.scores.get(metric.name) for row in evaluation.rows]
        if count_empty:
            texts = [row.completion for row in evaluation.rows]
            blank = [value is None and is_empty(text) for value, text in zip(values, texts, strict=True)]
            values = [metric.empty_as if empty else value for value, empty in zip(values, blank, strict=True)]
        return np.array([[math.nan if value is None else value] for value in values], dtype=np.float64)
    counts = [row.statistics.get(metric.name) for row in evaluation.rows]
    width = max((len(row) for row in counts if row), default=1)
    filled = [(*(row or ()), *[math.nan] * (width - len(row or ()))) for row in counts]
    return np.array(filled, dtype=np.float64)


def draw(pairs: Sequence[Pair], *, seed: int, resamples: int, permutations: int) -> list[Drawn]:
    """All pairs under the same draws and the same swaps."""
    if not pairs:
        return []
    draws = {"resamples": resamples, "seed": seed_for(seed, "bootstrap")}
    swaps = {"trials": permutations, "seed": seed_for(seed, "permutation")}
    sums = resampled_sums(np.hstack([pair.columns for pair in pairs]), **draws)
    moved = swapped_sums(
        np.hstack([pair.columns[:, pair.width : -1] - pair.columns[:, : pair.width] for pair in pairs]), **swaps
    )
    out, at, at_moved = [], 0, 0
    for pair in pairs:
        wide, narrow = pair.columns.shape[1], pair.width
        if not pair.columns[:, -1].any():
            out.append(Drawn(pair, 0, 0, None, None, None))
        elif pair.ngrams is not None and pair.metric.budget is not None:
            out.append(_of_ngrams(pair, pair.ngrams, pair.metric.budget, draws, swaps))
        elif pair.metric.percent is None:
            out.append(_drawn(pair, _of_sums(pair, sums[:, at : at + wide], moved[:, at_moved : at_moved + narrow])))
        else:
            out.append(_drawn(pair, _of_percentiles(pair, pair.metric.percent, draws, swaps)))
        at, at_moved = at + wide, at_moved + narrow
    return out


_Sides = tuple[Array, Array]  # before, after


def _of_sums(pair: Pair, sums: Array, moved: Array) -> tuple[_Sides, _Sides, _Sides]:
    """(point, resampled, swapped) scores of both sides from sums under the draws and swaps."""
    total = pair.columns.sum(axis=0)
    # What moves joins the old side and leaves the new one.
    swapped = np.hstack([moved, -moved, np.zeros((len(moved), 1))]) + total
    return pair.split(total), pair.split(sums[sums[:, -1] > 0]), pair.split(swapped)


def _of_percentiles(
    pair: Pair, percent: int, draws: Mapping[str, int], swaps: Mapping[str, int]
) -> tuple[_Sides, _Sides, _Sides]:
    """The same for a percentile of the rows' values, which no sum holds."""
    assert pair.old is not None, pair.metric.name
    assert pair.new is not None, pair.metric.name
    old, new = (np.asarray(percentile(side[~np.isnan(side)], percent)) for side in (pair.old, pair.new))
    drawn = [resampled_percentiles(side, pair.unit, percent, **draws) for side in (pair.old, pair.new)]
    whole = ~np.isnan(drawn[0])
    swapped = swapped_percentiles(pair.old, pair.new, pair.unit, percent, **swaps)
    return (old, new), (drawn[0][whole], drawn[1][whole]), (swapped[:, 0], swapped[:, 1])


def _of_ngrams(
    pair: Pair, ngrams: NgramCounts, budget: int, draws: Mapping[str, int], swaps: Mapping[str, int]
) -> Drawn:
    """The same for a share of distinct n-grams: half-samples instead of draws; without one on both sides, nothing."""
    old, new = ngrams.distinct(budget)
    if np.isnan(old) or np.isnan(new):
        return Drawn(pair, 0, 0, None, None, None)
    swapped = ngrams.swapped(budget, trials=min(NGRAM_TRIALS, swaps["trials"]), seed=swaps["seed"])
    swapped = swapped[:, ~np.isnan(swapped).any(axis=0)]
    halves = ngrams.half_samples(budget, **draws) if ngrams.units > 1 else np.full((2, 0), np.nan)
    halves = halves[:, ~np.isnan(halves).any(axis=0)]
    drawn = _drawn(pair, ((old, new), (halves[0], halves[1]), (swapped[0], swapped[1])))
    # Halves that are too short for the budget are no sample of all halves once they are many.
    return drawn if halves.shape[1] > draws["resamples"] // 2 else replace(drawn, resampled=None)


def _drawn(pair: Pair, scores: tuple[_Sides, _Sides, _Sides]) -> Drawn:
    n, units = int(pair.columns[:, -1].sum()), int(np.count_nonzero(pair.columns[:, -1]))
    (old, new), resampled, (null_old, null_new) = scores
    p = p_value(null_new - null_old, float(new - old), exact=len(pair.columns) <= EXACT_UNITS)
    return Drawn(pair, n, units, (float(old), float(new)), resampled if units > 1 else None, p)
