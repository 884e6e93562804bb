"""A grid of recipes → a folder of runs, one after the other, and their table. What `dialtune sft` calls for lists."""

from __future__ import annotations

import gc
from pathlib import Path

from dialtune.config.grid import Grid, GridRun
from dialtune.errors import ConfigError, TrainingError
from dialtune.grids import GridRecord, GridRow, best_of, read_grid, row_of, run_record, table_lines, write_grid
from dialtune.runs import RunFolder
from dialtune.trainers.setup import with_compute_dtype
from dialtune.trainers.sft import OnEvent, ignore_events
from dialtune.trainers.sft_run import preview_sft, run_sft


def run_grid(
    grid: Grid, *, resume: str | None = None, force: bool = False, on_event: OnEvent = ignore_events
) -> GridRecord:
    """Train every run of the grid that is not finished, and record them all.

    Each run has a folder of its own under `grid.output_dir`, the one it would have as a single run. grid.json is
    rewritten after each; what it says of a finished run is read from that run's folder, so a kill at any moment loses
    nothing but the updates since a checkpoint. A run that stops itself (a learning rate that diverges, a batch that
    does not fit) is a row of the table with its reason, and the grid goes on.

    Args:
        grid: from `config.grid.load_runs`.
        resume: None for a new grid; `newest` to go on: finished runs are skipped, the one in progress is resumed.
        force: go on although recipes or data changed.
        on_event: told about every run.
    Raises:
        ConfigError: the folder holds runs already, or another grid, or the runs saw different data.
        DataError, ModelError, CheckpointError, InterruptedRunError: as from `run_sft`; --resume goes on.
    """
    if resume not in (None, "newest"):
        raise ConfigError(f"resume: got {resume}; a grid finds its checkpoints by itself: give --resume without a path")
    folder = Path(grid.output_dir)
    with RunFolder(folder).lock():
        record = _begin(grid, folder, resume, force)
        for number, run in enumerate(grid.runs):
            if record.rows[number].status in ("done", "failed"):
                continue
            on_event("note", {"text": f"run {number + 1} of {len(grid.runs)}: {run.name}"})
            record = _noted(record, number, record.rows[number].model_copy(update={"status": "running"}))
            write_grid(folder, record)
            record = _noted(record, number, _train(run, record.rows[number], force, on_event))
            write_grid(folder, record)
        _check_same_data(grid)
        record = record.model_copy(update={"best": best_of(record.rows, record.direction)})
        write_grid(folder, record)
    return record


def preview_grid(grid: Grid) -> list[str]:
    """What the grid would do, without doing it: its runs, and the preview of the first."""
    lines = [f"{len(grid.runs)} runs under {grid.output_dir}:", *(f"  {run.name}" for run in grid.runs)]
    return [*lines, "", f"the first of them, {grid.runs[0].name}:", "", *preview_sft(grid.runs[0].config)]


def describe_grid(grid: Grid, record: GridRecord) -> list[str]:
    """The table, and what to do next."""
    lines = table_lines(record)
    if record.best is None:
        return [*lines, f"no run of {len(record.rows)} has a score"]
    best = Path(grid.output_dir) / record.best
    return [*lines, f"best by {record.metric}: {best} (also as {Path(grid.output_dir) / 'best'})"]


def _begin(grid: Grid, folder: Path, resume: str | None, force: bool) -> GridRecord:
    """The record to start from: new, or with what the runs of an earlier start came to."""
    run, old = RunFolder(folder), read_grid(folder)
    if run.checkpoints():
        raise ConfigError(f"output_dir: {folder} holds a single run; choose another output_dir for the grid")
    if resume is None and (old is not None or any(Path(r.config.output_dir).exists() for r in grid.runs)):
        n = f"{old.n_finished} of {len(old.rows)} runs finished" if old else "some of its runs"
        raise ConfigError(f"output_dir: {folder} already holds a grid, {n}; go on with --resume, or choose another one")
    first = grid.runs[0].config
    rows = [
        GridRow(name=r.name, values=dict(r.values), fingerprint=with_compute_dtype(r.config).fingerprint)
        for r in grid.runs
    ]
    if not force:
        _check_same_grid(old, rows, folder)
    return GridRecord(
        metric=first.metric_for_best_model,
        direction="lower" if first.metric_for_best_model == "eval_loss" else "higher",
        axes=dict(grid.axes),
        rows=tuple(row_of(Path(r.config.output_dir), row, r.config) for r, row in zip(grid.runs, rows, strict=True)),
    )


def _check_same_grid(old: GridRecord | None, rows: list[GridRow], folder: Path) -> None:
    """Refuse another grid in the folder: by grid.json, and by what each run's own record says of its recipe."""
    now = {row.name: row.fingerprint for row in rows}
    before = {row.name: row.fingerprint for row in old.rows} if old else dict(now)
    made = {name: str(run_record(folder / name).get("fingerprint", "")).partition(":")[0] for name in now}
    before |= {name: fingerprint for name, fingerprint in made.items() if fingerprint and name in before}
    if before == now:
        return
    if before.keys() == now.keys():
        what = "the same lists in another recipe"
    else:
        gone, new = ([name for name in one if name not in other] for one, other in ((before, now), (now, before)))
        what = "; ".join(f"{word} {', '.join(names)}" for word, names in (("without", gone), ("with", new)) if names)
    raise ConfigError(
        f"output_dir: {folder} holds another grid; this one is {what}. "
        "Undo the change, choose another output_dir, or go on all the same with --force"
    )


def _train(run: GridRun, row: GridRow, force: bool, on_event: OnEvent) -> GridRow:
    """The row of one run, begun or gone on with."""
    try:
        run_sft(run.config, resume="newest", force=force, on_event=on_event)
    except TrainingError as error:
        on_event("note", {"text": f"{run.name} failed: {error}"})
    gc.collect()  # the model before the next one is opened
    return row_of(Path(run.config.output_dir), row, run.config)


def _noted(record: GridRecord, number: int, row: GridRow) -> GridRecord:
    return record.model_copy(update={"rows": (*record.rows[:number], row, *record.rows[number + 1 :])})


def _check_same_data(grid: Grid) -> None:
    """Refuse to rank runs of which some were made before the data changed."""
    seen: dict[tuple[str, ...], str] = {}
    for run in grid.runs:
        _, *data = str(run_record(Path(run.config.output_dir)).get("fingerprint", "")).split(":")
        if data:  # training rows, validation rows
            seen.setdefault(tuple(data[1:] if "data.max_train_rows" in grid.axes else data), run.name)
    if len(seen) > 1:
        raise ConfigError(
            f"output_dir: {grid.output_dir}: the data changed between {' and '.join(seen.values())}; runs on different "
            "rows cannot be ranked: delete the older folders, then go on with --resume"
        )
