"""grid.json: the runs of a grid, what each of them came to, and which one is the result."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dialtune.config.schema import RunConfig
from dialtune.errors import DataError
from dialtune.runs import RunFolder, read_rows, step_of, write_text_atomic

GRID_SCHEMA: Final = "dialtune.grid/1"

Value = bool | int | float | str | None


class GridRow(BaseModel):
    """One run; numbers are null while it waits, and where there is none.

    `step` is the checkpoint that is the run's result, `eval_loss` and `score` (of the grid's metric) are those of that
    step, `train_loss` is the mean per learned token over the epoch before it, `seconds` is what its updates took.
    """

    name: str
    values: dict[str, Value]
    fingerprint: str  # of its recipe
    status: Literal["waiting", "running", "done", "failed"] = "waiting"
    step: int | None = None
    eval_loss: float | None = None
    train_loss: float | None = None
    score: float | None = None
    seconds: float | None = None
    reason: str | None = None  # why it failed

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GridRecord(BaseModel):
    """grid.json; `best` is the name of a row, null until every run is done or failed."""

    schema_: Literal["dialtune.grid/1"] = Field(GRID_SCHEMA, alias="schema")
    metric: str  # metric_for_best_model
    direction: Literal["higher", "lower"]
    axes: dict[str, tuple[Value, ...]]
    rows: tuple[GridRow, ...]
    best: str | None = None

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    @property
    def n_finished(self) -> int:
        """Runs that need no more work."""
        return sum(row.status in ("done", "failed") for row in self.rows)


def read_grid(folder: Path) -> GridRecord | None:
    """What grid.json in `folder` says; None if there is none.

    Raises:
        DataError: it is not what `write_grid` writes.
    """
    file = RunFolder(folder).grid
    if not file.exists():
        return None
    try:
        return GridRecord.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{file}: {where}: {first['msg']}; it was cut or edited: delete it, and dialtune sft RECIPE --resume "
            "makes it again from the runs"
        ) from error


def write_grid(folder: Path, record: GridRecord) -> None:
    """Write grid.json, whole or not at all, and let `best` in the folder lead to the best run once it is known."""
    document = record.model_dump(mode="json", by_alias=True)
    rows = ",\n".join("    " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in document.pop("rows"))
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    run = RunFolder(folder)
    write_text_atomic(run.grid, f'{text[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n')
    if record.best is not None and (not run.best.is_symlink() or os.readlink(run.best) != record.best):
        temporary = folder / f".tmp-best-{os.getpid()}"
        temporary.symlink_to(record.best, target_is_directory=True)
        os.replace(temporary, run.best)


def row_of(folder: Path, row: GridRow, config: RunConfig) -> GridRow:
    """The row of a run as its folder has it: `waiting` until it was started, `running` until it ended.

    A run that stopped itself (TrainingError, NonFiniteError) has failed and would fail again: it is not run twice.
    """
    run = RunFolder(folder)
    record = run_record(folder)
    outcome = record.get("outcome")
    if outcome == "done":
        return _measured(run, row, config, _result_step(record))
    if isinstance(outcome, str) and outcome.startswith(("TrainingError", "NonFiniteError")):
        return row.model_copy(update={"status": "failed", "reason": outcome.partition(": ")[2]})
    return row.model_copy(update={"status": "running" if record else "waiting"})


def best_of(rows: Sequence[GridRow], direction: Literal["higher", "lower"]) -> str | None:
    """The name of the row with the best score, the first of equals; None if no row has one."""
    scored = [row for row in rows if row.score is not None]
    sign = 1 if direction == "lower" else -1
    best = min(scored, key=lambda row: sign * (row.score or 0.0), default=None)
    return None if best is None else best.name


def table_lines(record: GridRecord) -> list[str]:
    """The grid as text: a line a run, the best one marked."""
    head = [*record.axes, "step", "eval_loss", "train_loss", *_own_metric(record), "seconds", ""]
    lines = [head, *(_cells(record, row) for row in record.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _cells(record: GridRecord, row: GridRow) -> list[str]:
    numbers = [row.eval_loss, row.train_loss, *([row.score] if _own_metric(record) else [])]
    state = "best" if row.name == record.best else "" if row.status == "done" else row.status
    return [
        *(json.dumps(value).strip('"') for value in row.values.values()),
        "-" if row.step is None else f"{row.step:,}",
        *("-" if number is None else f"{number:.4f}" for number in numbers),
        "-" if row.seconds is None else f"{row.seconds:,.0f}",
        f"{state}: {row.reason}" if row.reason else state,
    ]


def _own_metric(record: GridRecord) -> list[str]:
    return [] if record.metric == "eval_loss" else [record.metric]


def run_record(folder: Path) -> Mapping[str, Any]:
    """run.json of a run; empty if there is none, or none that can be read."""
    try:
        found = json.loads(RunFolder(folder).record.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _result_step(record: Mapping[str, Any]) -> int | None:
    """N of `result: checkpoint-N`, which a finished run notes."""
    named = [str(note).removeprefix("result: ") for note in record.get("notes", [])]
    return next((step for name in named if (step := step_of(name)) is not None), None)


def _measured(run: RunFolder, row: GridRow, config: RunConfig, step: int | None) -> GridRow:
    rows = read_rows(run.metrics)
    at = next((found for found in rows if found["step"] == step), {})
    metric = config.metric_for_best_model
    epoch = [found for found in rows if at and at["epoch"] - 1 < found["epoch"] <= at["epoch"]]
    epoch = [found for found in epoch if found["loss"] is not None]
    n_tokens = sum(found["n_tokens"] for found in epoch)
    seconds = math.fsum(found["step_s"] for found in rows)
    return row.model_copy(
        update={
            "status": "done",
            "step": step,
            "eval_loss": at.get("eval_loss"),
            "train_loss": math.fsum(f["loss"] * f["n_tokens"] for f in epoch) / n_tokens if n_tokens else None,
            "score": at.get(metric if metric == "eval_loss" else f"eval_{metric}"),
            "seconds": round(seconds, 2),
            "reason": None,
        }
    )
