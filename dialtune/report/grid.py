"""The runs of a grid side by side: a table, and loss by epoch in one drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from dialtune.grids import GridRecord, GridRow
from dialtune.report import plots, wording
from dialtune.report.plots import Plot
from dialtune.report.reading import Runs


@dataclass(frozen=True, slots=True)
class GridLine:
    """One run, ready to print; `tone` names a colour."""

    name: str
    cells: tuple[str, ...]
    state: str
    tone: str
    note: str


@dataclass(frozen=True, slots=True)
class GridTable:
    """The table of runs, best first, and the drawing above it; None where nothing was logged.

    `told` is the run whose recipe and training the page goes on with: the best one, once there is one.
    """

    told: str
    head: tuple[str, ...]
    lines: tuple[GridLine, ...]
    plot: Plot | None


def grid_table(grid: Runs, place: int) -> GridTable:
    """What the page prints of a grid; `place` counts jobs from 1."""
    record = grid.record
    ranked = _ranked(record)
    own = [] if record.metric == "eval_loss" else [wording.metric_name(record.metric)]
    head = (", ".join(record.axes), "Step", "Validation loss", "Training loss", *own, "Seconds", "")
    return GridTable(
        wording.clip(grid.told, 120), head, tuple(_line(record, row) for row in ranked), _plot(grid, ranked, place)
    )


def _ranked(record: GridRecord) -> list[GridRow]:
    """The rows by their score, best first; those without one behind, in the grid's order."""
    sign = 1 if record.direction == "lower" else -1
    return sorted(record.rows, key=lambda row: (row.score is None, sign * (row.score or 0.0), row.name != record.best))


def _line(record: GridRecord, row: GridRow) -> GridLine:
    numbers = [row.eval_loss, row.train_loss]
    cells = ["" if number is None else wording.number(number, 4) for number in numbers]
    if record.metric != "eval_loss":
        cells.append("" if row.score is None else wording.number(row.score, wording.digits(row.score)))
    step = "" if row.step is None else f"{row.step:,}"
    seconds = "" if row.seconds is None else f"{row.seconds:,.0f}"
    is_best = row.name == record.best
    state = "best" if is_best else "" if row.status == "done" else row.status
    tone = "good" if is_best else "bad" if row.status == "failed" else "flat"
    return GridLine(_values(row), (step, *cells, seconds), state, tone, wording.clip(row.reason or "", 300))


def _values(row: GridRow) -> str:
    return wording.clip(", ".join(wording.plain(value) for value in row.values.values()), 120)


def _plot(grid: Runs, ranked: Sequence[GridRow], place: int) -> Plot | None:
    drawn = [row for row in ranked if row.name in grid.rows]
    runs = [_run(row, grid.rows[row.name]) for row in drawn]
    runs = [run for run in runs if run.training or run.validation]
    if not runs:
        return None
    leading, others = runs[: len(plots.RUNS)], runs[len(plots.RUNS) :]
    told = ", ".join(grid.record.axes)
    title = f"Loss by epoch of {len(runs)} runs, by {told}: " + "; ".join(run.label for run in leading)
    wide, narrow = (
        Markup(plots.runs(leading, others, width=width, y_label="loss", title=title, key=f"grid-{width}-{place}"))
        for width in (720, 340)
    )
    caption = f"Loss by epoch for each {told}. Marked: validation; thin: running mean of the training loss."
    return Plot(wide, caption, narrow)


def _run(row: GridRow, rows: Sequence[Mapping[str, Any]]) -> plots.Run:
    training, validation = (
        [(float(r["epoch"]), float(r[key])) for r in rows if _is_number(r.get(key)) and _is_number(r.get("epoch"))]
        for key in ("loss", "eval_loss")
    )
    return plots.Run(_values(row), training, validation)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
