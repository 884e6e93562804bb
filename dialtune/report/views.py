"""A job to what the page prints of it: every number already words, every text already cut to size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dialtune.report import provenance, wording
from dialtune.report.curves import frontier_plot, training_plots
from dialtune.report.dialogues import Card, cards, change_plots, row_score
from dialtune.report.findings import Finding, alarms, findings, limits
from dialtune.report.grid import GridTable, grid_table
from dialtune.report.plots import Plot
from dialtune.report.reading import Job
from dialtune.report.scores import ScoreLine, headline, notes, score_lines, unscored
from dialtune.results import Evaluation


@dataclass(frozen=True, slots=True)
class Section:
    """Everything that the page prints of one job."""

    anchor: str
    title: str
    sentence: str
    tally: str
    tone: str
    notes: tuple[str, ...]
    lines: tuple[ScoreLine, ...]
    limits: tuple[Finding, ...]
    grid: GridTable | None
    changes: tuple[Plot, ...]
    plots: tuple[Plot, ...]
    findings: tuple[Finding, ...]
    cards: tuple[tuple[str, tuple[Card, ...]], ...]  # heading, cards
    cards_note: str
    counts: tuple[tuple[str, str, str], ...]  # what, before, after
    unscored: tuple[tuple[str, str], ...]  # score, reason
    facts: tuple[tuple[str, str, str], ...]  # what, before, after
    method: str
    licences: tuple[tuple[str, str, str], ...]  # what, name, licence
    commands: tuple[tuple[str, str], ...]  # where it comes from, command
    environment: tuple[tuple[str, str], ...]  # what, value
    files: tuple[tuple[str, str], ...]  # name, text
    paired: bool


def section(job: Job, place: int, shown: int) -> Section:
    """What the page prints of a job; `place` counts jobs from 1, `shown` dialogues at each end."""
    name = headline(job)
    by = row_score(job, name)
    entry = job.comparison.scores.get(name) if job.comparison and name else None
    found, cards_note = cards(job, by, shown)
    return Section(
        anchor=f"job-{place}",
        title=wording.clip(job.name, 60).capitalize(),
        sentence=_sentence(job, name),
        tally=wording.tally_sentence(job.comparison) if job.comparison else "",
        tone="bad" if alarms(job) else wording.tone(entry),
        notes=(*alarms(job), *notes(job, entry)),
        lines=tuple(score_lines(job)),
        limits=limits(job),
        grid=grid_table(job.grid, place) if job.grid else None,
        changes=tuple(change_plots(job, place)),
        plots=tuple([*frontier_plot(job, place), *training_plots(job.training, place)]),
        findings=findings(job),
        cards=found,
        cards_note=cards_note,
        counts=_two_sided(job, lambda side: {key: f"{n:,}" for key, n in wording.counts(side).items()}),
        unscored=unscored(job),
        facts=_two_sided(job, provenance.facts),
        method=provenance.method_sentence(job.comparison.method) if job.comparison else "",
        licences=provenance.licences(job),
        commands=tuple(provenance.commands(job)),
        environment=tuple(provenance.environment(job.records)),
        files=tuple(provenance.files(job)),
        paired=job.before is not None,
    )


def _sentence(job: Job, name: str | None) -> str:
    if job.grid:
        return wording.grid_sentence(job.grid.record)
    if job.comparison and name:
        return wording.comparison_sentence(job.task, name, job.comparison.scores[name], job.comparison.constraints)
    if job.after:
        return wording.evaluation_sentence(job.task, name, job.after.scores.get(name or ""))
    return wording.training_sentence(job.training.rows if job.training else ())


def _two_sided(job: Job, of: Callable[[Evaluation], Mapping[str, str]]) -> tuple[tuple[str, str, str], ...]:
    """(what, before, after) for each thing that `of` knows about an evaluation; before is empty if there is none."""
    if job.after is None:
        return ()
    after, before = of(job.after), of(job.before) if job.before else {}
    return tuple((key, before.get(key, ""), value) for key, value in after.items())
