"""Two evaluations side by side: refused unless alike, then paired row by row, resampled and swapped together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from dialtune.errors import ConfigError, NotComparableError
from dialtune.metrics.base import Array, Metric
from dialtune.results import Evaluation
from dialtune.seeds import seed_for
from dialtune.statistics import EXACT_UNITS, p_value, resampled_sums, swapped_sums, unit_sums


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
        one, other = before.scores[name].signature, after.scores[name].signature
        differing += _differ_signature(name, one, other)
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
    """One score on both sides; `columns` per unit (U, 2K+1): summed statistics before, after, and pairs kept."""

    metric: Metric
    columns: Array
    differences: Array | None  # (n,) per pair, row-wise metrics only
    dropped: int

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


def pair_rows(before: Evaluation, after: Evaluation, metric: Metric) -> Pair:
    """Both sides' statistics of one score, matched by row id and summed by dialogue; both must hold the same ids."""
    place = {row.id: k for k, row in enumerate(before.rows)}
    old = _statistics(before, metric)[[place[row.id] for row in after.rows]]
    new = _statistics(after, metric)
    kept = ~(np.isnan(old[:, 0]) | np.isnan(new[:, 0]))
    rows = np.hstack([np.where(kept[:, None], side, 0.0) for side in (old, new)] + [kept[:, None]])
    _, unit = np.unique([row.unit or row.id for row in after.rows], return_inverse=True)
    differences = (new - old)[kept, 0] if metric.row_wise else None
    return Pair(metric, unit_sums(rows, unit), differences, int((~kept).sum()))


def _statistics(evaluation: Evaluation, metric: Metric) -> Array:
    """(N,K), NaN where the row was not scored."""
    if metric.row_wise:
        values = [row.scores.get(metric.name) for row in evaluation.rows]
        return np.array([[math.nan if value is None else value] for value in values], dtype=np.float64)
    counts = [row.statistics.get(metric.name) for row in evaluation.rows]
    width = max((len(row) for row in counts if row), default=1)
    return np.array([row or (math.nan,) * width for row in counts], dtype=np.float64)


def draw(pairs: Sequence[Pair], *, seed: int, resamples: int, permutations: int) -> list[Drawn]:
    """All pairs under the same draws and the same swaps."""
    if not pairs:
        return []
    sums = resampled_sums(
        np.hstack([pair.columns for pair in pairs]), resamples=resamples, seed=seed_for(seed, "bootstrap")
    )
    moved = swapped_sums(
        np.hstack([pair.columns[:, pair.width : -1] - pair.columns[:, : pair.width] for pair in pairs]),
        trials=permutations,
        seed=seed_for(seed, "permutation"),
    )
    out, at, at_moved = [], 0, 0
    for pair in pairs:
        wide, narrow = pair.columns.shape[1], pair.width
        out.append(_drawn(pair, sums[:, at : at + wide], moved[:, at_moved : at_moved + narrow]))
        at, at_moved = at + wide, at_moved + narrow
    return out


def _drawn(pair: Pair, sums: Array, moved: Array) -> Drawn:
    n, units = int(pair.columns[:, -1].sum()), int(np.count_nonzero(pair.columns[:, -1]))
    if n == 0:
        return Drawn(pair, 0, 0, None, None, None)
    total = pair.columns.sum(axis=0)
    old, new = pair.split(total)
    # What moves joins the old side and leaves the new one.
    swapped = np.hstack([moved, -moved, np.zeros((len(moved), 1))]) + total
    null_old, null_new = pair.split(swapped)
    p = p_value(null_new - null_old, float(new - old), exact=len(pair.columns) <= EXACT_UNITS)
    sums = sums[sums[:, -1] > 0]
    return Drawn(pair, n, units, (float(old), float(new)), pair.split(sums) if units > 1 else None, p)
