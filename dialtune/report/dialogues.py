"""The dialogues of a job: how much each changed, and those that gained or lost most beside their texts."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from dialtune.metrics.table import METRICS
from dialtune.report import plots, wording
from dialtune.report.diff import Parts, marked
from dialtune.report.plots import Plot
from dialtune.report.reading import Job
from dialtune.report.scores import headline
from dialtune.results import EvalRow

_DIALOGUE, _COMPLETION, _REFERENCE = 3000, 1200, 600  # characters shown of a text
_REFERENCES = 5  # shown of a dialogue
_PLOTS = 4  # distributions of a job


Changed = tuple[float, EvalRow | None, EvalRow]  # after minus before, or the score itself if there is no before; rows


@dataclass(frozen=True, slots=True)
class Written:
    """What a model wrote, in marked parts; `remark` is what a reader must know about it."""

    heading: str
    parts: Parts
    remark: str

    @property
    def text(self) -> str:
        """The parts joined."""
        return "".join(text for _, text in self.parts)


@dataclass(frozen=True, slots=True)
class Card:
    """One dialogue with its gold texts and what was written before and after."""

    id: str
    score: str
    dialogue: str | None
    references: tuple[str, ...]
    texts: tuple[Written, ...]
    unlike: bool  # before and after have too few words in common to be marked


def row_score(job: Job, name: str | None) -> str | None:
    """The score that dialogues are sorted by: the headline if it has a value per row, else the first that has."""
    rows = job.after.rows if job.after else ()
    names = [name, *(job.comparison.scores if job.comparison else job.after.scores if job.after else ())]
    return next((n for n in names if n and any(row.scores.get(n) is not None for row in rows)), None)


def _higher_is_better(job: Job, name: str) -> bool:
    if job.comparison and name in job.comparison.scores:
        return job.comparison.scores[name].direction == "higher"
    return METRICS[name].direction != "lower" if name in METRICS else True


def changes(job: Job, name: str) -> list[Changed]:
    """After minus before for every dialogue that both sides scored; the score itself if there is no before."""
    assert job.after is not None
    earlier = {row.id: row for row in job.before.rows} if job.before else {}
    found: list[Changed] = []
    for row in job.after.rows:
        old, new = earlier.get(row.id), row.scores.get(name)
        if new is None:
            continue
        if job.before is None:
            found.append((new, None, row))
        elif old is not None and (start := old.scores.get(name)) is not None:
            found.append((new - start, old, row))
    return found


def change_plots(job: Job, place: int) -> list[Plot]:
    """How much each dialogue changed, by the scores that stand for the job."""
    if job.before is None or job.comparison is None:
        return []
    names = dict.fromkeys([row_score(job, headline(job)), *wording.key_scores(job.task, job.comparison)])
    plotted = [name for name in names if name and changes(job, name)][:_PLOTS]
    return [_change_plot(job, name, f"change-{place}-{number}") for number, name in enumerate(plotted, start=1)]


def _change_plot(job: Job, name: str, key: str) -> Plot:
    found = [change for change, _, _ in changes(job, name)]
    higher, label = _higher_is_better(job, name), wording.metric_name(name)
    gained = sum((change > 0) == higher for change in found if change)
    tied = sum(change == 0 for change in found)
    shares = f"{gained:,} better, {tied:,} unchanged, {len(found) - gained - tied:,} worse"
    row = "reply" if job.task == "respond" else "dialogue"
    title = f"Distribution of the change of {label} per {row}: {shares}"
    svg = plots.histogram(found, higher_is_better=higher, x_label=f"change of {label}", title=title, key=key)
    words = f"Change of {label} per {row}: {shares} of {wording.rows(job.task, len(found))}. Dashed line: the mean."
    return Plot(Markup(svg), words)


def gained_and_lost(job: Job, name: str, shown: int) -> tuple[list[Changed], list[Changed]]:
    """The dialogues that gained most and that lost most by this score; the best and the worst if there is no before."""
    sign = 1 if _higher_is_better(job, name) else -1
    ranked = sorted(changes(job, name), key=lambda found: (-sign * found[0], found[2].id))
    if job.before:
        top = [found for found in ranked if sign * found[0] > 0][:shown]
        return top, [found for found in reversed(ranked) if sign * found[0] < 0][:shown]
    half = min(shown, len(ranked) // 2)
    return ranked[:half], ranked[::-1][:half]


def cards(job: Job, name: str | None, shown: int) -> tuple[tuple[tuple[str, tuple[Card, ...]], ...], str]:
    """(heading, cards) for both ends, and a remark on how they were chosen."""
    if name is None:
        return (), "No score has a value per dialogue."
    label = wording.metric_name(name)
    n = len(changes(job, name))
    headings = ("Gained most", "Lost most") if job.before else ("Best", "Worst")
    top_and_bottom = gained_and_lost(job, name, shown)
    ends = zip(headings, top_and_bottom, strict=True)
    made = tuple((heading, tuple(_card(job, name, *found) for found in end)) for heading, end in ends if end)
    note = f"By {label}, out of {wording.rows(job.task, n)}: the extremes, not typical ones."
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
    references = source.references if source else ()
    texts, unlike = _written(old, new)
    return Card(
        id=wording.clip(new.id, 80),
        score=score,
        dialogue=wording.clip(source.dialogue, _DIALOGUE) if source else None,
        references=tuple(wording.clip(text, _REFERENCE) for text in references[:_REFERENCES]),
        texts=texts,
        unlike=unlike,
    )


def _written(old: EvalRow | None, new: EvalRow) -> tuple[tuple[Written, ...], bool]:
    """Both sides with their differences marked, and whether they were too unlike for that."""
    after = wording.clip(new.completion, _COMPLETION)
    if old is None:
        return (Written("Completion", (("same", after),), _remark(new)),), False
    before = wording.clip(old.completion, _COMPLETION)
    found = marked(before, after)
    one, other = found or ((("same", before),), (("same", after),))
    return (Written("Before", one, _remark(old)), Written("After", other, _remark(new))), found is None


def _remark(row: EvalRow) -> str:
    return "cut by the token limit" if row.finish == "length" else ""
