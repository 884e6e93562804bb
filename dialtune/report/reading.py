"""A folder's files to the jobs that a report tells of; a missing or broken file is named, with what to do about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dialtune.comparison import read_comparison
from dialtune.errors import ConfigError, DataError
from dialtune.evaluation import read_evaluation
from dialtune.grids import GridRecord, read_grid
from dialtune.results import Comparison, Evaluation, to_json
from dialtune.runs import RunFolder, read_rows

_FIRST = ("summarize", "respond", "detoxify")  # the labs' order; other jobs follow by name
Layout = Literal["job", "jobs", "grid", "training", "evaluation"]


@dataclass(frozen=True, slots=True)
class Source:
    """A dialogue and its gold texts, as `examples.jsonl` beside eval.json holds them."""

    dialogue: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """config.yaml as written and the rows of metrics.jsonl."""

    config: str
    rows: tuple[Mapping[str, Any], ...]
    record: str  # the place of its run.json in the folder


@dataclass(frozen=True, slots=True)
class Runs:
    """grid.json, and the rows of metrics.jsonl of each run that has begun, by its name; `told` stands for them."""

    record: GridRecord
    rows: Mapping[str, tuple[Mapping[str, Any], ...]]
    told: str


@dataclass(frozen=True, slots=True)
class Job:
    """Everything known about one job; `after` is the only evaluation where there is but one. `home` is never shown."""

    name: str
    home: Path
    after: Evaluation | None = None
    before: Evaluation | None = None
    comparison: Comparison | None = None
    training: Training | None = None
    grid: Runs | None = None
    sources: Mapping[str, Source] = field(default_factory=dict)
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # "train/run.json": its content
    others: Mapping[str, Comparison] = field(default_factory=dict)  # the same pair on other dialogues, by folder

    @property
    def task(self) -> str:
        """`summarize` and so on; a training run that evaluated nothing goes by its job's name."""
        return self.after.task if self.after else self.name


def read_jobs(folder: Path) -> tuple[Job, ...]:
    """One job for a job folder, a training run or an evaluation; several for a folder of job folders.

    Raises:
        ConfigError: the folder or a file that belongs to it is missing, all of them at once.
        DataError: a file is not what it should be.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder; give a run folder, or make one with: dialtune demo")
    layout = _layout(folder)
    if layout == "jobs":
        return tuple(_read_job(child, child.name) for child in _job_folders(folder))
    if layout == "job":
        return (_read_job(folder, ""),)
    if layout == "grid":
        return (_read_grid(folder),)
    run = RunFolder(folder)
    training = _read_training(run, folder) if layout == "training" else None
    after = read_evaluation(folder) if run.evaluation.exists() else None
    comparison = _read_comparison(run.comparison, {"after": after}) if after else None
    return (
        Job(
            name=after.task if after else "training",
            home=folder,
            after=after,
            before=_find_before(folder, comparison) if comparison else None,
            comparison=comparison,
            training=training,
            sources=_read_sources([folder / "examples.jsonl"]),
            records=_read_records(folder, [run.record]),
        ),
    )


def _layout(folder: Path) -> Layout:
    run = RunFolder(folder)
    if _is_job(folder):
        return "job"
    if run.grid.exists():
        return "grid"
    if run.metrics.exists():
        return "training"
    if run.evaluation.exists():
        return "evaluation"
    if _job_folders(folder):
        return "jobs"
    if run.config.exists() or run.record.exists():
        return "training"
    raise ConfigError(
        f"{folder}: nothing to report: no eval.json, no metrics.jsonl, no before/ and after/, here or one level down.\n"
        "Give a run folder, an evaluation or a job's folder; a first one is made by: dialtune demo"
    )


def _is_job(folder: Path) -> bool:
    return (folder / "before").is_dir() or (folder / "after").is_dir()


def _job_folders(folder: Path) -> list[Path]:
    found = [
        child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".") and _is_job(child)
    ]
    order = {name: place for place, name in enumerate(_FIRST)}
    return sorted(found, key=lambda child: (order.get(child.name, len(order)), child.name))


def _read_job(folder: Path, name: str) -> Job:
    run, before, after = (RunFolder(path) for path in (folder, folder / "before", folder / "after"))
    train = RunFolder(folder / "train") if (folder / "train").is_dir() else run if run.metrics.exists() else None
    _require(
        [before.evaluation, after.evaluation, run.comparison],
        f"a job needs all three; finish it with: dialtune demo --job {folder.name}, or: dialtune compare BEFORE AFTER",
    )
    first, second = read_evaluation(before.path), read_evaluation(after.path)
    return Job(
        name=name or second.task,
        home=folder,
        after=second,
        before=first,
        comparison=_read_comparison(run.comparison, {"before": first, "after": second}),
        training=_read_training(train, folder) if train else None,
        sources=_read_sources([side.path / "examples.jsonl" for side in (run, before, after)]),
        records=_read_records(folder, [before.record, *([train.record] if train else []), after.record, run.record]),
        others={child.name: found for child in _job_folders(folder) if (found := _read_other(RunFolder(child)))},
    )


def _read_other(run: RunFolder) -> Comparison | None:
    """The comparison of a job inside a job: lab 3 judges calm dialogues as well."""
    if not run.comparison.exists():
        return None
    sides = {side: run.path / side for side in ("before", "after")}
    known = {side: read_evaluation(path) for side, path in sides.items() if RunFolder(path).evaluation.exists()}
    return _read_comparison(run.comparison, known)


def _read_grid(folder: Path) -> Job:
    """The runs of a grid; the best one stands for it where its recipe and commands are told."""
    record = read_grid(folder)
    assert record is not None
    rows = {row.name: tuple(_with_steps(RunFolder(folder / row.name).metrics)) for row in record.rows}
    begun = {name: found for name, found in rows.items() if found}
    told = record.best or next(iter(begun), record.rows[0].name)
    run = RunFolder(folder / told)
    training = _read_training(run, folder) if told in begun else None
    return Job(
        "grid", folder, training=training, grid=Runs(record, begun, told), records=_read_records(folder, [run.record])
    )


def _require(files: list[Path], hint: str) -> None:
    missing = [f"{file}: missing" for file in files if not file.is_file()]
    if missing:
        raise ConfigError([*missing, hint[0].upper() + hint[1:]])


def _read_training(run: RunFolder, folder: Path) -> Training:
    _require([run.config, run.record, run.metrics], "a training run writes all three; run it, or give another folder")
    place = run.record.relative_to(folder).as_posix()
    return Training(config=_text(run.config), rows=tuple(_with_steps(run.metrics)), record=place)


def _with_steps(file: Path) -> list[dict[str, Any]]:
    rows = read_rows(file)
    for number, row in enumerate(rows, start=1):
        if type(row.get("step")) is not int:
            raise DataError(
                f"{file}:{number}: step: got {row.get('step')!r}, needs a whole number; run the training again"
            )
    return rows


def _read_comparison(file: Path, sides: Mapping[str, Evaluation]) -> Comparison | None:
    """compare.json if there is one, refused unless it was made from these very evaluations."""
    if not file.exists():
        return None
    comparison = read_comparison(file)
    for side, evaluation in sides.items():
        made_from = getattr(comparison, side).eval_sha256
        found = hashlib.sha256(to_json(evaluation).encode()).hexdigest()
        if found != made_from:
            raise DataError(
                f"{file}: was made from another evaluation ({side}: sha256 {made_from[:8]}, here {found[:8]}).\n"
                "Make it again with: dialtune compare BEFORE AFTER"
            )
    return comparison


def _find_before(folder: Path, comparison: Comparison) -> Evaluation | None:
    """The baseline, if it is an evaluation in a folder beside this one: `dialtune compare` knows it by its hash."""
    for child in sorted(folder.resolve().parent.iterdir()):
        file = RunFolder(child).evaluation
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == comparison.before.eval_sha256:
            return read_evaluation(child)
    return None


def _read_sources(files: list[Path]) -> dict[str, Source]:
    """Dialogues by id from whichever of these files exist."""
    sources = {}
    for file in files:
        for number, row in enumerate(read_rows(file), start=1):
            try:
                source = Source(dialogue=_string(row["dialogue"]), references=tuple(map(_string, row["references"])))
                sources[_string(row["id"])] = source
            except (KeyError, TypeError) as error:
                raise DataError(
                    f"{file}:{number}: needs id and dialogue (text) and references (a list of texts): {error}; "
                    "evaluate again, or delete the file: the report does without"
                ) from error
    return sources


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"got {type(value).__name__}")
    return value


def _read_records(folder: Path, files: list[Path]) -> dict[str, dict[str, Any]]:
    """Every run.json there is, by its place in the folder."""
    return {file.relative_to(folder).as_posix(): _record(file) for file in files if file.exists()}


def _record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(_text(file))
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}; it was cut or edited, run the job again") from error
    if not isinstance(record, dict):
        raise DataError(f"{file}: got {type(record).__name__}, needs a JSON object; run the job again")
    return record


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start}); it was damaged, run the job again") from error
