"""Run folder: names, atomic text, rows, the lock, leftovers, run.json."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dialtune.errors import CheckpointError, DataError, RunLockedError
from dialtune.runs import (
    RunFolder,
    append_row,
    read_rows,
    record_end,
    record_start,
    remove_leftovers,
    require_free_space,
    sync_rows,
    truncate_rows,
    write_text_atomic,
)


def test_the_file_names_are_those_of_the_run_folder_contract(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    files = (run.config, run.record, run.metrics, run.samples, run.evaluation, run.comparison, run.report)
    assert [path.name for path in files] == [
        "config.yaml",
        "run.json",
        "metrics.jsonl",
        "samples.jsonl",
        "eval.json",
        "compare.json",
        "report.html",
    ]
    assert run.checkpoint(40).name == "checkpoint-40"
    assert not run.path.exists()  # naming files touches nothing
    assert run.checkpoints() == {}


def test_checkpoints_are_listed_by_step_and_nothing_else_counts(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-100", "checkpoint-x", "checkpoint-007", ".tmp-checkpoint-8-1", "eval"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-5").write_text("a file, not a checkpoint")
    assert list(RunFolder(tmp_path).checkpoints()) == [9, 100]


def test_text_is_replaced_whole_and_leaves_no_sibling(tmp_path: Path) -> None:
    target = tmp_path / "new" / "eval.json"
    write_text_atomic(target, "one\n")
    write_text_atomic(target, "zwei ü\n")
    assert target.read_bytes() == "zwei ü\n".encode()
    assert [path.name for path in target.parent.iterdir()] == ["eval.json"]


def test_a_failed_text_write_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "eval.json"
    write_text_atomic(target, "old")

    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_text_atomic(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": None, "note": "línea\u2028 \u0085"}]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    assert read_rows(tmp_path / "absent.jsonl") == []


def test_a_row_with_nan_is_refused_before_it_reaches_the_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_row(path, {"loss": float("nan")})
    assert not path.exists()


def test_a_row_that_does_not_fit_on_the_disk_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_row(path, {"step": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: row not written: No space left on device"):
            append_row(path, {"step": 2, "text": "x" * 200_000})  # the kernel takes the first 100,000 bytes
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read_rows(path) == [{"step": 1}]


def test_a_torn_last_line_is_left_out_at_every_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_row(path, {"step": 1})
    whole = path.stat().st_size
    append_row(path, {"step": 2, "loss": 1.5})
    content = path.read_bytes()
    for cut in range(whole, len(content)):
        path.write_bytes(content[:cut])
        assert read_rows(path) == [{"step": 1}]


def test_a_broken_row_before_the_last_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(DataError, match=re.escape(f"{path}:2: not JSON")):
        read_rows(path)
    path.write_text("[1]\n")
    with pytest.raises(DataError, match=r"metrics\.jsonl:1: got list, a row is a JSON object"):
        read_rows(path)


def test_resume_cuts_the_rows_back_to_the_stored_length(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert sync_rows(path) == 0
    append_row(path, {"step": 1})
    stored = sync_rows(path)
    assert stored == path.stat().st_size
    append_row(path, {"step": 2})
    with open(path, "a") as torn:
        torn.write('{"st')
    truncate_rows(path, stored)
    append_row(path, {"step": 2, "again": True})
    assert read_rows(path) == [{"step": 1}, {"step": 2, "again": True}]


def test_rows_that_were_lost_before_the_checkpoint_stop_the_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(CheckpointError, match=r"metrics.jsonl: 12 bytes, but the checkpoint was saved when it had 99"):
        truncate_rows(path, 99)
    assert path.stat().st_size == 12


def test_no_room_is_one_line_with_path_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1000, 990, 10))  # type: ignore[attr-defined]
    require_free_space(tmp_path, 10, "a checkpoint")
    with pytest.raises(CheckpointError) as caught:
        require_free_space(tmp_path, 11, "a checkpoint")
    assert str(caught.value) == (
        f"{tmp_path}: no room for a checkpoint: 11 bytes needed, 10 free; "
        "free some space, lower save_total_limit, or choose an output_dir on another disk"
    )


_HOLD = """
import sys, time
from dialtune.runs import RunFolder
with RunFolder(sys.argv[1]).lock():
    print("locked", flush=True)
    time.sleep(60)
"""


def _holder(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_writer_is_told_who_the_first_is_and_kill_9_frees_the_lock(tmp_path: Path) -> None:
    first = _holder(tmp_path)
    try:
        with (
            pytest.raises(RunLockedError, match=rf"process {first.pid} on \S+ is writing") as caught,
            RunFolder(tmp_path).lock(),
        ):
            pass
        assert "\n" not in str(caught.value)
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert first.stdout is not None
        first.stdout.close()
    with RunFolder(tmp_path).lock() as run:
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        assert run.path == tmp_path


def test_the_same_process_cannot_lock_twice_and_can_lock_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.lock(), pytest.raises(RunLockedError), run.lock():
        pass
    with run.lock():
        pass


def test_a_refused_writer_deletes_nothing_of_the_holder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with run.lock():
        live = tmp_path / ".tmp-checkpoint-3-77"
        live.mkdir()
        with pytest.raises(RunLockedError), run.lock():
            pass
        assert live.is_dir()
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_leftovers_go_under_the_lock_and_the_rest_stays(tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "kept").write_text("")
    (tmp_path / ".tmp-checkpoint-3-77" / "sub").mkdir(parents=True)
    (tmp_path / ".del-2").mkdir()
    (tmp_path / ".tmp-eval.json-9").write_text("half")
    (tmp_path / ".tmp-link").symlink_to(outside)
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "README.md").write_text("old card")
    (tmp_path / "checkpoint-1" / ".tmp-README.md-9").write_text("half")
    (tmp_path / "checkpoint-2").symlink_to(outside)
    (outside / ".tmp-kept").write_text("")
    (tmp_path / ".hidden").write_text("a user's")
    with RunFolder(tmp_path).lock():
        assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".lock", "checkpoint-1", "checkpoint-2"]
    assert [path.name for path in (tmp_path / "checkpoint-1").iterdir()] == ["README.md"]
    assert sorted(path.name for path in outside.iterdir()) == [".tmp-kept", "kept"]


def test_a_checkpoint_moved_aside_returns_only_if_its_replacement_never_came(tmp_path: Path) -> None:
    for name in (".old-checkpoint-4", ".old-checkpoint-6", "checkpoint-6"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "from").write_text(name)
    remove_leftovers(tmp_path)
    assert {path.name: (path / "from").read_text() for path in tmp_path.iterdir()} == {
        "checkpoint-4": ".old-checkpoint-4",
        "checkpoint-6": "checkpoint-6",
    }


def test_run_json_keeps_every_start_of_a_resumed_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    facts = {"command": ["dialtune", "sft"], "seeds": {"seed": 0}, "versions": {"torch": "2.13.0"}}
    record_start(run, facts)
    record_start(run, {**facts, "versions": {"torch": "2.14.0"}}, resumed_from=20)
    record_end(run, "done", notes=["resumed with --force"])
    record = json.loads(run.record.read_text())
    assert record["format"] == "dialtune.run/1"
    assert record["versions"] == {"torch": "2.14.0"}
    assert [start["resumed_from"] for start in record["starts"]] == [None, 20]
    assert record["outcome"] == "done"
    assert record["notes"] == ["resumed with --force"]
    assert record["starts"][0]["at"] <= record["end"]
    record_start(run, facts)  # a fresh run in the same folder starts a fresh record
    assert len(json.loads(run.record.read_text())["starts"]) == 1


def test_run_folder_needs_no_torch() -> None:
    code = "import sys, dialtune.runs; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
