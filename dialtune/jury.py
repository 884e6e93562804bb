"""What scorers that no reward used say of a change, and whether the reward's own scorer says much more."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict

import numpy as np

from dialtune.metrics.base import Array
from dialtune.pairing import Drawn
from dialtune.results import Agreement, Entry, Gain, Juror, Jury
from dialtune.scorers.agreement import Gain as Measured
from dialtune.scorers.agreement import HackingGap, agreement, hacking_gap
from dialtune.seeds import seed_for

TRAINED = "minilm"  # the reward, if nobody says otherwise
PREFIX = "toxicity_mean:"


def jury_of(
    entries: Mapping[str, Entry],
    draws: Mapping[str, Drawn],
    trained: str | None,
    *,
    seen: Collection[str] = (),
    seed: int,
    resamples: int,
) -> Jury | None:
    """The jury's word on mean toxicity; None if no such score was compared.

    Args:
        entries: what was said about each score.
        draws: the pairs of rows behind it, by the same names.
        trained: the scorer that was the reward; every other one is a juror.
        seen: jurors that watched the training.
        seed: of the resampling.
        resamples: draws of the interval of the gap.
    """
    said = {name.removeprefix(PREFIX): entry for name, entry in entries.items() if name.startswith(PREFIX)}
    if not said:
        return None
    sides = {scorer: _rows(draws[PREFIX + scorer]) for scorer, entry in said.items() if entry.n}
    reward = trained if trained in said else None
    there = [entry.relative for name, entry in said.items() if name != reward and entry.relative is not None]
    found: HackingGap | None = None
    if reward in sides:
        unit = draws[PREFIX + reward].pair.unit
        before, after = ({name: rows[side] for name, rows in sides.items()} for side in (0, 1))
        found = hacking_gap(before, after, reward, unit=unit, resamples=resamples, seed=seed_for(seed, "bootstrap"))
    missing = f"{trained} was not there" if reward else "no scorer was trained against" if trained is None else None
    both = {name: np.concatenate(rows) for name, rows in sides.items()}
    return Jury(
        trained=reward,
        jurors={name: _juror(entry, name in seen) for name, entry in said.items() if name != reward},
        median_relative=float(np.median(there)) if there else None,
        trained_gain=_gain(found.trained) if found else None,
        jury_gain=_gain(found.jury) if found else None,
        gap=_gain(found.gap) if found else None,
        alarm=found.alarm if found else None,
        reason=found.reason if found else missing or f"no score by {trained}",
        agreement=tuple(Agreement(**asdict(pair)) for pair in agreement(both)) if both else (),
    )


def _rows(drawn: Drawn) -> tuple[Array, Array]:
    old, new = drawn.pair.old, drawn.pair.new
    assert old is not None, drawn.pair.metric.name
    assert new is not None, drawn.pair.metric.name
    return old, new


def _juror(entry: Entry, seen: bool) -> Juror:
    reason = None if entry.n else entry.note
    return Juror(difference=entry.difference, relative=entry.relative, n=entry.n, reason=reason, seen=seen)


def _gain(measured: Measured | None) -> Gain | None:
    return None if measured is None else Gain(value=measured.value, ci=measured.ci)


def jury_lines(jury: Jury | None) -> list[str]:
    """The jury in words: what its members say, and the gap to the reward's own scorer."""
    if jury is None or (jury.trained is None and len(jury.jurors) < 2):
        return []
    there = [name for name, juror in jury.jurors.items() if juror.n]
    if not there:
        return [f"jury: nobody but {jury.trained}, the reward's own scorer, has judged"]
    called = [f"{name} (seen)" if jury.jurors[name].seen else name for name in there]
    who = f"{called[0]} alone" if len(called) == 1 else ", ".join(called)
    change = "" if jury.median_relative is None else f": {jury.median_relative:+.1%}, the median of the changes"
    lines = [f"jury ({who}){change}"]
    if jury.gap is None or jury.trained_gain is None or jury.jury_gain is None:
        return [*lines, f"gap of the reward's scorer to the jury: not shown ({jury.reason})"]
    word = "alarm, the reward may be gamed" if jury.alarm else "no alarm"
    gains = f"{jury.trained} gained {_sds(jury.trained_gain)}, the jury {_sds(jury.jury_gain)}"
    return [*lines, f"{gains}, gap {_sds(jury.gap)}: {word}"]


def _sds(gain: Gain) -> str:
    return f"{gain.value:+.2f} sd [{gain.ci[0]:+.2f}, {gain.ci[1]:+.2f}]"
