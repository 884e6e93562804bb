"""The run folder: its file names, atomic text writes, rows in and out, one writer at a time."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dialtune.errors import CheckpointError, DataError, RunLockedError

RUN_FORMAT = "dialtune.run/1"
TRAINED_ON = "trained_on.safetensors"

# What a killed writer leaves behind. The first two hold nothing that was ever reported; `.old-checkpoint-N` is a
# checkpoint in the middle of being replaced, so it goes back to its place if the new one never arrived.
_LEFTOVERS = (".tmp-", ".del-")
_ASIDE = ".old-"
_CHECKPOINT_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Where each file of a run lives; making one touches nothing on disk."""

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @property
    def config(self) -> Path:
        """config.yaml, the resolved recipe."""
        return self.path / "config.yaml"

    @property
    def record(self) -> Path:
        """run.json: command, versions, seeds, data fingerprints, start and end."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """metrics.jsonl, one row per optimizer update."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """samples.jsonl, what the model wrote for fixed prompts during training."""
        return self.path / "samples.jsonl"

    @property
    def trained_on(self) -> Path:
        """trained_on.safetensors, fingerprints of the training dialogues (data/seen.py)."""
        return self.path / TRAINED_ON

    @property
    def evaluation(self) -> Path:
        """eval.json."""
        return self.path / "eval.json"

    @property
    def comparison(self) -> Path:
        """compare.json."""
        return self.path / "compare.json"

    @property
    def grid(self) -> Path:
        """grid.json, in a folder of runs."""
        return self.path / "grid.json"

    @property
    def best(self) -> Path:
        """best, in a folder of runs: a link to the one that is the result."""
        return self.path / "best"

    @property
    def report(self) -> Path:
        """report.html."""
        return self.path / "report.html"

    def checkpoint(self, step: int) -> Path:
        """checkpoint-N, after N optimizer updates."""
        return self.path / f"checkpoint-{step}"

    def checkpoints(self) -> dict[int, Path]:
        """Step -> folder for every checkpoint-N there is, lowest step first; none of them has been verified."""
        if not self.path.is_dir():
            return {}
        named = ((step_of(path.name), path) for path in self.path.iterdir() if path.is_dir())
        return dict(sorted((step, path) for step, path in named if step is not None))

    @contextmanager
    def lock(self) -> Iterator[RunFolder]:
        """Be the only writer until the block ends; leftovers of a killed writer are cleared first.

        The lock is the kernel's (`flock`) and ends with the process, so kill -9 leaves no stale lock.

        Raises:
            RunLockedError: another process holds it; the message names that process.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _flock(descriptor, self.path)
            holder = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, holder.encode(), 0)
            remove_leftovers(self.path)
            yield self
            os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)  # releases the lock; the file stays, since deleting it would race with the next writer


def step_of(name: str) -> int | None:
    """N for `checkpoint-N`, None for any other name.

    >>> step_of("checkpoint-20"), step_of("checkpoint-best")
    (20, None)
    """
    found = _CHECKPOINT_NAME.fullmatch(name)
    return int(found[1]) if found else None


def _flock(descriptor: int, folder: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunLockedError(
            f"{folder}: {_holder(descriptor)} is writing to this run folder; only one process may. "
            "Wait for it, stop it, or choose another output_dir"
        ) from None
    except OSError as error:  # e.g. a network file system without locks
        raise RunLockedError(
            f"{folder}: cannot lock the run folder ({error.strerror}); choose an output_dir on a local disk"
        ) from error


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']}"
    except (ValueError, KeyError, TypeError):  # the holder has the lock and has not written its name yet
        return "another process"


def remove_leftovers(folder: Path) -> None:
    """Delete what killed writers left in `folder`; call it under the lock only, or it deletes a live writer's files."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(_LEFTOVERS):
            remove(path)
        elif path.name.startswith(_ASIDE):
            home = folder / path.name.removeprefix(_ASIDE)
            if home.exists():
                remove(path)
            else:
                path.rename(home)
                fsync_folder(folder)
        elif _CHECKPOINT_NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            remove_leftovers(path)  # a checkpoint gets its card after it is in place


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder; a link's target stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def fsync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: a rename survives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    """Write UTF-8 so that readers see the old text or the new one, never a part, also after kill -9 or a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Add one JSON line in a single write, so that kill -9 comes before it or after it, hardly ever inside.

    A power cut can still take it back, until `sync_rows`.

    Raises:
        ValueError: a value is NaN or infinite, which JSON cannot hold; write None.
        CheckpointError: the disk did not take the line.
    """
    line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free
        raise CheckpointError(f"{path}: row not written: {error.strerror}; {free} bytes free on its disk") from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Every row of a jsonl file; [] if there is none. A last line without its line end was torn by a kill: left out.

    Raises:
        DataError: another line is not a JSON object.
    """
    if not path.exists():
        return []
    whole = path.read_bytes().split(b"\n")[:-1]
    rows = []
    for number, line in enumerate(whole, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: got {type(row).__name__}, a row is a JSON object")
        rows.append(row)
    return rows


def sync_rows(path: Path) -> int:
    """The file's length in bytes, after making it durable; a checkpoint stores it so that resume can cut back to it."""
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        return file.seek(0, os.SEEK_END)


def truncate_rows(path: Path, n_bytes: int) -> None:
    """Cut a jsonl file back to the length that a checkpoint stored, so that no step appears twice.

    Raises:
        CheckpointError: the file is shorter than that, so rows before the checkpoint are gone.
    """
    size = path.stat().st_size if path.exists() else 0
    if size < n_bytes:
        raise CheckpointError(
            f"{path}: {size} bytes, but the checkpoint was saved when it had {n_bytes}; it was cut or replaced since. "
            "Put it back, or start a new run in another output_dir"
        )
    if size > n_bytes:
        os.truncate(path, n_bytes)


def require_free_space(folder: Path, n_bytes: int, purpose: str) -> None:
    """Return if the disk of `folder` has room for `n_bytes`; `purpose` starts the message, e.g. "a checkpoint".

    Raises:
        CheckpointError: it has not; one line with path, needed and free bytes.
    """
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise CheckpointError(
            f"{folder}: no room for {purpose}: {n_bytes} bytes needed, {free} free; "
            "free some space, lower save_total_limit, or choose an output_dir on another disk"
        )


def record_start(run: RunFolder, facts: Mapping[str, Any], *, resumed_from: int | None = None) -> None:
    """Write run.json: what is run, on what, since when.

    Args:
        run: its folder.
        facts: JSON values, e.g. command, versions, commit, seeds, devices, threads, data; they replace older ones.
        resumed_from: the step a killed or stopped run goes on from; the earlier starts are kept in `starts`.
    """
    starts = _read_record(run).get("starts", []) if resumed_from is not None else []
    starts.append({"at": _now(), "resumed_from": resumed_from})
    _write_record(run, {"format": RUN_FORMAT, **facts, "starts": starts, "end": None, "outcome": None})


def record_end(run: RunFolder, outcome: str, *, notes: Sequence[str] = ()) -> None:
    """Add when and how the run ended to run.json, e.g. `done`, `stopped by SIGTERM`, and what to remember about it."""
    _write_record(run, {**_read_record(run), "end": _now(), "outcome": outcome, "notes": list(notes)})


def _read_record(run: RunFolder) -> dict[str, Any]:
    try:
        record = json.loads(run.record.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(run: RunFolder, record: Mapping[str, Any]) -> None:
    write_text_atomic(run.record, json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
