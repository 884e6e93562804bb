"""The compared scores of a job: which one stands for it, the forest plot, and a line of the table for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dialtune.report import plots, wording
from dialtune.report.plots import Plot
from dialtune.report.reading import Job
from dialtune.results import Entry


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """One line of the table of scores, ready to print; `tone` names a colour."""

    name: str
    before: str
    before_ci: str
    after: str
    after_ci: str
    change: str
    change_ci: str
    relative: str
    relative_ci: str
    p: str
    n: str
    verdict: str
    tone: str
    note: str
    signature: str


def headline(job: Job) -> str | None:
    """The score that stands for the job; None if there is none."""
    if job.comparison:
        return wording.compared_headline(job.task, job.comparison)
    measured = job.after.scores if job.after else {}
    return wording.headline(job.task, [name for name, score in measured.items() if score.n] or list(measured))


def forest_plot(jobs: Sequence[Job]) -> Plot | None:
    """Every compared score of every job in one drawing; None if none has a relative interval."""
    groups: list[tuple[str, list[plots.ForestRow]]] = []
    left_out = []
    for job in jobs:
        entries = job.comparison.scores if job.comparison else {}
        rows = [row for name, entry in entries.items() if (row := _forest_row(name, entry))]
        left_out += [wording.metric_name(name) for name, entry in entries.items() if _forest_row(name, entry) is None]
        if rows:
            groups.append((wording.clip(job.name, 60).capitalize(), rows))
    if not groups:
        return None
    caption = (
        "Change relative to before with its 95 % interval. Filled circle: improved; filled diamond: worse; "
        "hollow circle: no difference shown, after correction for the number of scores."
    )
    if max(row.high for _, rows in groups for row in rows) > plots.BENT_FROM:
        caption += " Beyond 100 % the scale is logarithmic."
    if left_out:
        caption += f" Without a relative interval, so in the table only: {', '.join(left_out)}."
    told = [f"{group}: " + "; ".join(f"{row.label} {row.text}" for row in rows) for group, rows in groups]
    title = "Relative change of every score. " + ". ".join(told)
    wide, narrow = (Markup(plots.forest(groups, width=width, title=title)) for width in (720, 340))
    return Plot(wide, caption, narrow)


def _forest_row(name: str, entry: Entry) -> plots.ForestRow | None:
    if entry.relative is None or entry.relative_ci is None:
        return None
    low, high = entry.relative_ci
    change, ci = wording.percent(entry.relative, entry.relative_ci)
    label, text = wording.metric_name(name), f"{change} ({ci})"
    return plots.ForestRow(label, 100 * low, 100 * entry.relative, 100 * high, text, entry.verdict)


def score_lines(job: Job) -> list[ScoreLine]:
    """A line per compared score, then the scores that were measured but not compared."""
    compared = job.comparison.scores if job.comparison else {}
    sides = [side for side in (job.before, job.after) if side]
    names = dict.fromkeys([*compared, *(name for side in sides for name in side.scores)])
    return [_line(job, name, compared.get(name)) for name in names]


def _line(job: Job, name: str, entry: Entry | None) -> ScoreLine:
    old, new = (side.scores.get(name) if side else None for side in (job.before, job.after))
    before = entry.before if entry else old.value if old else None
    after = entry.after if entry else new.value if new else None
    places = wording.digits(before, after)
    relative, relative_ci = "", ""
    if entry and entry.relative is not None:
        relative, relative_ci = wording.percent(entry.relative, entry.relative_ci)
    known = new or old
    reasons = [
        entry.note if entry and entry.note != _shared_note(job) else None,
        *(text for score in (old, new) if score for text in (score.reason, score.note if not entry else None)),
    ]
    dropped = f"{entry.n_dropped:,} left out: one side not scored" if entry and entry.n_dropped else None
    return ScoreLine(
        name=wording.metric_name(name),
        before=wording.number(before, places),
        before_ci=wording.interval(old.ci if old else None, places),
        after=wording.number(after, places),
        after_ci=wording.interval(new.ci if new else None, places),
        change=wording.number(entry.difference, places, sign=True) if entry else "",
        change_ci=wording.interval(entry.ci if entry else None, places, sign=True),
        relative=relative,
        relative_ci=relative_ci,
        p=wording.p_value(entry.p_holm) if entry else "",
        n=f"{entry.n if entry else known.n if known else 0:,}{_within(entry)}",
        verdict=_verdict(entry) if entry else "not compared" if job.comparison else "",
        tone=wording.tone(entry),
        note="; ".join(dict.fromkeys(wording.clip(text, 200) for text in [*reasons, dropped] if text)),
        signature=known.signature if known else "",
    )


def _within(entry: Entry | None) -> str:
    """The dialogues that the pairs come from, where these are fewer."""
    return f" in {entry.n_dialogues:,}" if entry and entry.n_dialogues is not None else ""


def _verdict(entry: Entry) -> str:
    return "not scored" if entry.before is None or entry.after is None else wording.verdict_word(entry.verdict)


def _shared_note(job: Job) -> str | None:
    """The note that every compared score carries: said once, under the sentence."""
    entries = job.comparison.scores.values() if job.comparison else ()
    notes = {entry.note for entry in entries if entry.after is not None}
    return notes.pop() if len(notes) == 1 else None


def notes(job: Job, entry: Entry | None) -> tuple[str, ...]:
    """What a reader must know before believing the sentence."""
    notes = [entry.note] if entry and entry.note else []
    allowed = job.comparison.allowed if job.comparison else ()
    notes += [f"Compared although this differs, on request: {line}" for line in allowed]
    return tuple(wording.clip(note[0].upper() + note[1:], 300) for note in notes)


def unscored(job: Job) -> tuple[tuple[str, str], ...]:
    """(score, reason) for every score that has no value on a side."""
    found: dict[tuple[str, str], list[str]] = {}
    for where, side in (("before", job.before), ("after", job.after)):
        for name, score in side.scores.items() if side else ():
            if score.value is None:
                reason = wording.clip(score.reason or "no reason given", 240)
                found.setdefault((name, reason), []).append(where)
    told = [(wording.metric_name(name), reason, sides) for (name, reason), sides in found.items()]
    both = 2 if job.before and job.after else 1
    return tuple((f"{name} ({sides[0]})" if len(sides) < both else name, reason) for name, reason, sides in told)
