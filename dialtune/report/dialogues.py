"""The dialogues of a job: how much each changed, and those that gained or lost most beside their texts."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from dialtune.metrics.table import METRICS
from dialtune.report import plots, wording
from dialtune.report.plots import Plot
from dialtune.report.reading import Job
from dialtune.results import EvalRow

_DIALOGUE, _COMPLETION, _REFERENCE = 3000, 1200, 600  # characters shown of a text
_REFERENCES = 5  # shown of a dialogue


@dataclass(frozen=True, slots=True)
class Card:
    """One dialogue with its gold texts and what was written before and after."""

    id: str
    score: str
    dialogue: str | None
    references: tuple[str, ...]
    texts: tuple[tuple[str, str, str], ...]  # heading, completion, remark


def row_score(job: Job, name: str | None) -> str | None:
    """The score that dialogues are sorted by: the headline if it has a value per row, else the first that has."""
    rows = job.after.rows if job.after else ()
    names = [name, *(job.comparison.scores if job.comparison else job.after.scores if job.after else ())]
    return next((n for n in names if n and any(row.scores.get(n) is not None for row in rows)), None)


def _higher_is_better(job: Job, name: str) -> bool:
    if job.comparison and name in job.comparison.scores:
        return job.comparison.scores[name].direction == "higher"
    return METRICS[name].direction != "lower" if name in METRICS else True


def _changes(job: Job, name: str) -> list[tuple[float, EvalRow | None, EvalRow]]:
    """After minus before for every dialogue that both sides scored; the score itself if there is no before."""
    assert job.after is not None
    earlier = {row.id: row for row in job.before.rows} if job.before else {}
    found: list[tuple[float, EvalRow | None, EvalRow]] = []
    for row in job.after.rows:
        old, new = earlier.get(row.id), row.scores.get(name)
        if new is None:
            continue
        if job.before is None:
            found.append((new, None, row))
        elif old is not None and (start := old.scores.get(name)) is not None:
            found.append((new - start, old, row))
    return found


def change_plot(job: Job, name: str | None, place: int) -> list[Plot]:
    if name is None or job.before is None:
        return []
    changes = [change for change, _, _ in _changes(job, name)]
    if not changes:
        return []
    higher, label = _higher_is_better(job, name), wording.metric_name(name)
    gained = sum((change > 0) == higher for change in changes if change)
    tied = sum(change == 0 for change in changes)
    shares = f"{gained:,} better, {tied:,} unchanged, {len(changes) - gained - tied:,} worse"
    title = f"Distribution of the change of {label} per dialogue: {shares}"
    svg = plots.histogram(
        changes, higher_is_better=higher, x_label=f"change of {label}", title=title, key=f"change-{place}"
    )
    words = f"Change of {label} per dialogue: {shares} of {wording.dialogues(len(changes))}. Dashed line: the mean."
    return [Plot(Markup(svg), words)]


def cards(job: Job, name: str | None, shown: int) -> tuple[tuple[tuple[str, tuple[Card, ...]], ...], str]:
    """(heading, cards) for both ends, and a remark on how they were chosen."""
    if name is None:
        return (), "No score has a value per dialogue."
    label, sign = wording.metric_name(name), 1 if _higher_is_better(job, name) else -1
    ranked = sorted(_changes(job, name), key=lambda found: (-sign * found[0], found[2].id))
    if job.before:
        top = [found for found in ranked if sign * found[0] > 0][:shown]
        bottom = [found for found in reversed(ranked) if sign * found[0] < 0][:shown]
        headings = ("Gained most", "Lost most")
    else:
        half = min(shown, len(ranked) // 2)
        top, bottom = ranked[:half], ranked[::-1][:half]
        headings = ("Best", "Worst")
    ends = zip(headings, (top, bottom), strict=True)
    made = tuple((heading, tuple(_card(job, name, *found) for found in end)) for heading, end in ends if end)
    note = f"By {label}, out of {wording.dialogues(len(ranked))}: the extremes, not typical ones."
    if not made:
        note = "Left out to keep the page under 1 MB." if shown == 0 else f"No dialogue's {label} changed."
    elif not job.sources:
        note += " Dialogues and references are not shown: there is no examples.jsonl beside eval.json."
    if job.comparison and not job.before:
        note += " What was written before is not in this folder."
    return made, note


def _card(job: Job, name: str, change: float, old: EvalRow | None, new: EvalRow) -> Card:
    source = job.sources.get(new.id)
    start, end = old.scores[name] if old else None, new.scores[name]
    places = wording.digits(start, end)
    score = f"{wording.metric_name(name)} {wording.number(end, places)}"
    if old:
        shift = f"{wording.number(start, places)} → {wording.number(end, places)}"
        score = f"{wording.metric_name(name)} {shift} ({wording.number(change, places, sign=True)})"
    sides = [("Before", old), ("After", new)] if old else [("Completion", new)]
    references = source.references if source else ()
    return Card(
        id=wording.clip(new.id, 80),
        score=score,
        dialogue=wording.clip(source.dialogue, _DIALOGUE) if source else None,
        references=tuple(wording.clip(text, _REFERENCE) for text in references[:_REFERENCES]),
        texts=tuple(
            (
                heading,
                wording.clip(row.completion, _COMPLETION),
                "cut by the token limit" if row.finish == "length" else "",
            )
            for heading, row in sides
            if row
        ),
    )
