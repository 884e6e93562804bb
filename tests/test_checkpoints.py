"""Checkpoints: exact round trips, every fault found before use, every crash point of a save survived."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ckpt_chaos import inject
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dialtune import checkpoints
from dialtune.checkpoints import (
    Checkpoint,
    capture_rng,
    flatten_state,
    newest_checkpoint,
    open_checkpoint,
    restore_rng,
    save_checkpoint,
    unflatten_state,
)
from dialtune.errors import CheckpointError
from dialtune.runs import RunFolder, remove_leftovers

Tensors = dict[str, dict[str, Tensor]]


def _tensors(step: int) -> Tensors:
    return {
        "optimizer": {"0.exp_avg": torch.full((3, 4), float(step)), "0.step": torch.tensor(float(step))},
        "rng": {"torch": torch.arange(16, dtype=torch.uint8)},
    }


def _write_model(step: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        save_file({"w": torch.full((5,), float(step))}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "t5", "step": step}))
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")

    return write


def _save(run: Path, step: int, *, keep: int | None = None, protect: tuple[int, ...] = (), salt: int = 0) -> Path:
    documents = {"state": {"step": step, "position": 3, "salt": salt}}
    writer = _write_model(step)
    return save_checkpoint(run, step, _tensors(step), documents, writer, keep=keep, protect=protect, fingerprint="f")


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def _newest(run: Path) -> tuple[Checkpoint | None, list[str]]:
    broken: list[str] = []
    return newest_checkpoint(run, broken.append), broken


def _assert_holds(checkpoint: Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.document("state")["step"] == step
    for name, part in _tensors(step).items():
        loaded = checkpoint.tensors(name)
        assert loaded.keys() == part.keys()
        assert all(torch.equal(loaded[key], part[key]) and loaded[key].dtype == part[key].dtype for key in part)
    assert torch.equal(load_file(checkpoint.path / "model.safetensors")["w"], torch.full((5,), float(step)))


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    path = _save(tmp_path, 7)
    assert path == tmp_path / "checkpoint-7"
    checkpoint = open_checkpoint(path)
    _assert_holds(checkpoint, 7)
    assert checkpoint.fingerprint == "f"
    assert _names(path) == [
        "MANIFEST.json",
        "config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "rng.safetensors",
        "state.json",
        "tokenizer",
    ]
    with pytest.raises(CheckpointError, match=r"holds no sampler\.json; there are: MANIFEST\.json, config\.json"):
        checkpoint.document("sampler")


def test_a_run_without_checkpoints_has_no_newest_one(tmp_path: Path) -> None:
    assert _newest(tmp_path) == (None, [])
    assert _newest(tmp_path / "absent") == (None, [])


def test_the_newest_is_by_number_not_by_name_or_time(tmp_path: Path) -> None:
    for step in (100, 9, 20):
        _save(tmp_path, step)
    _assert_holds(_newest(tmp_path)[0], 100)


def test_only_the_newest_and_the_protected_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        _save(tmp_path, step, keep=2, protect=(1,))
    assert _names(tmp_path) == ["checkpoint-1", "checkpoint-4", "checkpoint-5"]
    _save(tmp_path, 6, keep=1)
    assert _names(tmp_path) == ["checkpoint-6"]


def test_the_checkpoint_just_written_stays_even_beside_higher_numbers(tmp_path: Path) -> None:
    # After a broken checkpoint-20 was skipped, the run goes on from 10: what it writes at 12 is all that verifies.
    _save(tmp_path, 20)
    (tmp_path / "checkpoint-20" / "config.json").write_text("{}")
    _save(tmp_path, 12, keep=1)
    checkpoint, broken = _newest(tmp_path)
    _assert_holds(checkpoint, 12)
    assert len(broken) == 1


def test_a_failed_rotation_is_a_warning_since_the_save_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _save(tmp_path, 1)

    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints, "remove", refuse)
    with caplog.at_level(logging.WARNING):
        _save(tmp_path, 2, keep=1)
    assert "cannot delete this old checkpoint: Permission denied" in caplog.text
    _assert_holds(_newest(tmp_path)[0], 2)


def test_saving_a_step_again_changes_nothing_if_equal_and_replaces_it_if_not(tmp_path: Path) -> None:
    path = _save(tmp_path, 4)
    before = path.stat().st_ino
    _save(tmp_path, 4)
    assert path.stat().st_ino == before
    _save(tmp_path, 4, salt=1)
    assert open_checkpoint(path).document("state")["salt"] == 1
    assert _names(tmp_path) == ["checkpoint-4"]


def test_a_broken_checkpoint_is_replaced_by_a_new_save_of_its_step(tmp_path: Path) -> None:
    path = _save(tmp_path, 4)
    (path / "state.json").unlink()
    _save(tmp_path, 4)
    _assert_holds(_newest(tmp_path)[0], 4)


def test_views_and_shared_memory_are_stored_as_their_values(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    part = {"view": base[3:6], "again": base[3:6], "turned": base.view(3, 4).t(), "empty": torch.empty(0), "all": base}
    save_checkpoint(tmp_path, 1, {"optimizer": {**part, "twice": base}}, {}, lambda _: None, keep=None)
    loaded = open_checkpoint(tmp_path / "checkpoint-1").tensors("optimizer")
    assert all(torch.equal(loaded[key], value) for key, value in {**part, "twice": base}.items())


def test_a_part_named_like_a_model_file_is_a_programming_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"config\.json is a file of the model"):
        save_checkpoint(tmp_path, 1, {}, {"config": {}}, _write_model(1), keep=None)
    assert _names(tmp_path) == []


def test_nan_in_a_document_leaves_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(tmp_path, 1, {}, {"state": {"loss": float("nan")}}, _write_model(1), keep=None)
    assert _names(tmp_path) == []


# --- no room, failing disks ----------------------------------------------------------------------------------------


def test_no_room_is_one_line_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(path.stat().st_size for path in _save(tmp_path, 1).rglob("*") if path.is_file())
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9999, 0, size))  # type: ignore[attr-defined]
    needed = size * 11 // 10  # 1.1 x the last checkpoint
    with pytest.raises(CheckpointError) as caught:
        _save(tmp_path, 2)
    assert f"{tmp_path}: no room for checkpoint-2: {needed} bytes needed, {size} free" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == ["checkpoint-1"]


def test_the_first_save_counts_its_tensors_and_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9999, 0, 1068))  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="1069 bytes needed, 1068 free"):  # 3*4*4 + 4 + 16 + 1000 + 1
        save_checkpoint(tmp_path, 1, _tensors(1), {}, _write_model(1), keep=None, model_bytes=1001)


def test_a_disk_that_fills_up_while_saving_loses_nothing_older(tmp_path: Path) -> None:
    _save(tmp_path, 1)

    def fill(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"checkpoint-2: not saved: No space left on device; \d+ bytes needed"):
        save_checkpoint(tmp_path, 2, _tensors(2), {}, fill, keep=1)
    assert _names(tmp_path) == ["checkpoint-1"]
    _assert_holds(_newest(tmp_path)[0], 1)


def test_a_write_that_fails_inside_safetensors_is_named_in_one_line(tmp_path: Path) -> None:
    # Its Rust writer raises no OSError; a file size limit makes the kernel refuse for real, as a full disk would.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"checkpoint-2: not saved: .*File too large") as caught:
            save_checkpoint(tmp_path, 2, {"optimizer": {"t": torch.zeros(100_000)}}, {}, _write_model(2), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert _names(tmp_path) == []


def test_ctrl_c_in_a_save_leaves_no_part(tmp_path: Path) -> None:
    def interrupt(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 2, {}, {}, interrupt, keep=1)
    assert _names(tmp_path) == []


# --- K7: altered, cut and missing files ----------------------------------------------------------------------------


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _assert_found_and_skipped(run: Path, broken: Path, what: str) -> None:
    with pytest.raises(CheckpointError, match="checkpoint-2: not usable: "):
        open_checkpoint(broken)
    checkpoint, messages = _newest(run)
    _assert_holds(checkpoint, 1)
    assert len(messages) == 1, what
    assert "\n" not in messages[0]
    assert broken.is_dir()  # named and skipped, never deleted


@pytest.mark.parametrize("n", [pytest.param(5, id="small"), pytest.param(200, id="full", marks=[pytest.mark.slow])])
def test_k7_every_flipped_byte_and_every_cut_is_found_before_use(tmp_path: Path, n: int) -> None:
    _save(tmp_path, 1)
    broken = _save(tmp_path, 2)
    draw = random.Random(0)
    for path in _files(broken):
        good = path.read_bytes()
        for _ in range(n):
            at = draw.randrange(len(good))
            bad = bytearray(good)
            bad[at] ^= draw.randrange(1, 256)
            path.write_bytes(bad)
            _assert_found_and_skipped(tmp_path, broken, f"{path.name} flipped at {at}")
            path.write_bytes(good[: draw.randrange(len(good))])
            _assert_found_and_skipped(tmp_path, broken, f"{path.name} cut")
        path.write_bytes(good + b"\0")
        _assert_found_and_skipped(tmp_path, broken, f"{path.name} lengthened")
        path.unlink()
        _assert_found_and_skipped(tmp_path, broken, f"{path.name} deleted")
        path.write_bytes(good)
    _assert_holds(_newest(tmp_path)[0], 2)


def test_k7_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    broken = _save(tmp_path, 2)
    manifest = broken / "MANIFEST.json"
    good = manifest.read_bytes()
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        manifest.write_bytes(bad)
        with pytest.raises(CheckpointError):
            open_checkpoint(broken)


@pytest.mark.parametrize("content", [b"", b"5", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"digest": 1}'])
def test_a_manifest_of_another_shape_is_a_broken_checkpoint_not_a_crash(tmp_path: Path, content: bytes) -> None:
    broken = _save(tmp_path, 2)
    _save(tmp_path, 1)
    (broken / "MANIFEST.json").write_bytes(content)
    _assert_found_and_skipped(tmp_path, broken, repr(content[:9]))


def test_an_added_file_is_found_and_a_hidden_one_is_not_minded(tmp_path: Path) -> None:
    path = _save(tmp_path, 2)
    (path / ".DS_Store").write_text("")
    _assert_holds(open_checkpoint(path), 2)
    (path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"checkpoint-2: not usable: adapter_config\.json was added"):
        open_checkpoint(path)


def test_its_card_may_be_written_changed_and_deleted(tmp_path: Path) -> None:
    path = _save(tmp_path, 2)
    for text in ("a card", "another"):
        (path / "README.md").write_text(text)
        _assert_holds(open_checkpoint(path), 2)
    (path / "tokenizer" / "README.md").write_text("not the card")
    with pytest.raises(CheckpointError, match=r"tokenizer/README\.md was added"):
        open_checkpoint(path)


def test_a_manifest_of_an_earlier_version_that_lists_the_card_still_verifies(tmp_path: Path) -> None:
    path = _save(tmp_path, 2)
    body = json.loads((path / "MANIFEST.json").read_bytes())
    del body["digest"]
    body["files"]["README.md"] = {"bytes": 9, "sha256": "0" * 64}
    text = json.dumps(body, indent=1)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (path / "MANIFEST.json").write_text(f'{text[:-2]},\n "digest": "{digest}"\n}}\n')
    _assert_holds(open_checkpoint(path), 2)


def test_a_renamed_checkpoint_does_not_pass_for_another_step(tmp_path: Path) -> None:
    path = _save(tmp_path, 2)
    shutil.copytree(path, tmp_path / "best")
    _assert_holds(open_checkpoint(tmp_path / "best"), 2)
    path.rename(tmp_path / "checkpoint-9")
    with pytest.raises(CheckpointError, match="it holds step 2; give it back its own name"):
        open_checkpoint(tmp_path / "checkpoint-9")


def test_a_checkpoint_of_another_program_is_named_and_no_silent_restart_follows(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500" / "optimizer.pt").write_bytes(b"pickle")
    broken: list[str] = []
    with pytest.raises(CheckpointError, match=r"1 checkpoints \(newest 500\), none of them intact"):
        newest_checkpoint(tmp_path, broken.append)
    assert broken == [
        f"{tmp_path}/checkpoint-500: not usable: it has no MANIFEST.json, so it is torn or another program wrote it"
    ]


# --- every crash point of a save -----------------------------------------------------------------------------------


def _forked(body: Callable[[], object]) -> int:
    """The exit code of a child that runs `body`; the child never returns into pytest."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            body()
            code = 0
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _crash(run: Path, event: int, mode: str, job: Callable[[], object]) -> int:
    def body() -> None:
        inject.arm(str(run), crash_at=event, mode=mode, torn_python=True)
        job()

    return _forked(body)


def _start_a_run(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for step in (1, 2):
        _save(folder, step)


def _restart(run: Path) -> tuple[Checkpoint | None, list[str]]:
    with RunFolder(run).lock():  # what a restarted run does first; clears leftovers
        assert [name for name in _names(run) if name.startswith((".tmp", ".del", ".old"))] == []
        for visible in RunFolder(run).checkpoints().values():
            open_checkpoint(visible)
        return _newest(run)


def test_everything_is_durable_before_the_rename_and_the_rename_before_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    fsync, rename = os.fsync, os.rename

    def logged_fsync(descriptor: int) -> None:
        log.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path))
        fsync(descriptor)

    def logged_rename(source: Path, target: Path) -> None:
        log.append(f"rename to {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    monkeypatch.setattr(os, "rename", logged_rename)
    _save(tmp_path, 1)
    temporary = f".tmp-checkpoint-1-{os.getpid()}"
    files = ["config.json", "model.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"]
    *parts, manifest, inner, outer, renamed, parent = log
    assert parts == [f"{temporary}/{name}" for name in [*files, "tokenizer/vocab.txt"]]
    assert (manifest, inner, outer) == (f"{temporary}/MANIFEST.json", f"{temporary}/tokenizer", temporary)
    assert (renamed, parent) == ("rename to checkpoint-1", ".")


@pytest.mark.parametrize("mode", ["before", "torn", "unsynced"])
def test_a_kill_at_every_file_event_of_a_save_loses_nothing_and_shows_nothing_torn(tmp_path: Path, mode: str) -> None:
    run = tmp_path / "run"
    seen: set[int] = set()
    for event in range(1, 100):
        _start_a_run(run)
        code = _crash(run, event, mode, lambda: _save(run, 3, keep=2, protect=(1,)))
        checkpoint, broken = _restart(run)
        assert broken == [], f"event {event}: a torn checkpoint is visible"
        assert checkpoint is not None
        assert checkpoint.step in (2, 3)
        _assert_holds(checkpoint, checkpoint.step)
        _assert_holds(open_checkpoint(run / "checkpoint-1"), 1)  # protected
        seen.add(checkpoint.step)
        if code == 0:
            break
        assert code == 137
        _save(run, 3, keep=2)  # and the restarted run goes on
        _assert_holds(_newest(run)[0], 3)
    assert code == 0, "the save never ended"
    assert event > 15, "fewer file events than files: the injection does not see the writes"
    assert seen == {2, 3}


@pytest.mark.parametrize("mode", ["before", "torn", "unsynced"])
def test_a_kill_while_a_step_is_replaced_keeps_the_old_or_the_new(tmp_path: Path, mode: str) -> None:
    run = tmp_path / "run"
    salts = set()
    for event in range(1, 100):
        _start_a_run(run)
        code = _crash(run, event, mode, lambda: _save(run, 2, salt=1))
        checkpoint, broken = _restart(run)
        assert broken == []
        _assert_holds(checkpoint, 2)
        assert checkpoint is not None
        salts.add(checkpoint.document("state")["salt"])
        if code == 0:
            break
    assert salts == {0, 1}


def test_a_kill_while_leftovers_are_cleared_keeps_what_was_moved_aside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for event in range(1, 20):
        _start_a_run(run)
        (run / "checkpoint-2").rename(run / ".old-checkpoint-2")
        shutil.copytree(run / "checkpoint-1", run / ".tmp-checkpoint-2-1")
        code = _crash(run, event, "before", lambda: remove_leftovers(run))
        _assert_holds(_restart(run)[0], 2)
        if code == 0:
            break
    assert event > 2


def test_a_kill_in_the_middle_of_deleting_an_old_checkpoint_leaves_no_half_of_it_visible(tmp_path: Path) -> None:
    _start_a_run(tmp_path)

    def die_half_way(folder: Path) -> None:
        (folder / "config.json").unlink()
        os._exit(137)

    def body() -> None:
        checkpoints.remove = die_half_way  # type: ignore[assignment]
        _save(tmp_path, 3, keep=1)

    assert _forked(body) == 137
    _assert_holds(_restart(tmp_path)[0], 3)
    assert [name for name in _names(tmp_path) if name != ".lock"] == ["checkpoint-2", "checkpoint-3"]


_SAVE_LOOP = """
import sys, torch
from pathlib import Path
from dialtune.checkpoints import save_checkpoint
from dialtune.runs import RunFolder
from safetensors.torch import save_file
run = Path(sys.argv[1])
with RunFolder(run).lock():
    for step in range(int(sys.argv[2]), 10_000):
        t = torch.full((400, 400), float(step))
        save_checkpoint(run, step, {"optimizer": {"t": t}}, {"state": {"step": step}},
                        lambda folder: save_file({"w": t}, folder / "model.safetensors"), keep=2)
        print(step, flush=True)
"""


def test_kill_9_at_random_times_never_loses_a_reported_checkpoint(tmp_path: Path) -> None:
    draw, reported = random.Random(0), 0
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", _SAVE_LOOP, str(tmp_path), str(reported + 1)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            for _ in range(draw.randrange(1, 8)):
                reported = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
            reported = max([reported, *map(int, process.stdout.read().split())])
        process.wait()
        checkpoint, broken = _restart(tmp_path)
        assert broken == []
        assert checkpoint is not None
        assert checkpoint.step >= reported
        assert torch.equal(checkpoint.tensors("optimizer")["t"], torch.full((400, 400), float(checkpoint.step)))


# --- K8 ------------------------------------------------------------------------------------------------------------


def test_k8_of_two_processes_that_start_on_one_folder_exactly_one_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SAVE_LOOP, str(tmp_path), "1"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        while all(process.poll() is None for process in both):
            time.sleep(0.01)
        loser = next(process for process in both if process.poll() is not None)
        winner = next(process for process in both if process is not loser)
        _, error = loser.communicate()
        assert loser.returncode == 1
        # "another process" if the loser came in the moment between the winner's lock and its name
        holder = rf"(process {winner.pid} on \S+|another process)"
        assert re.search(rf"RunLockedError: {re.escape(str(tmp_path))}: {holder} is writing", error)
        assert winner.poll() is None
    finally:
        for process in both:
            process.kill()
            process.communicate()


# --- state, exactly ------------------------------------------------------------------------------------------------


def _stepped(optimizer_class: Callable[..., torch.optim.Optimizer], **settings: Any) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)
    groups = [
        {"params": first.parameters(), "lr": 0.1 + 0.2},
        {"params": second.parameters(), "weight_decay": 1e-300},
    ]
    optimizer = optimizer_class(groups, lr=1e-3, **settings)
    for _ in range(3):
        optimizer.zero_grad()
        second(first(torch.randn(5, 3))).square().sum().backward()
        optimizer.step()
    return optimizer


def _assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert left.dtype == right.dtype
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            _assert_same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            _assert_same(one, other)
    else:
        assert repr(left) == repr(right)


@pytest.mark.parametrize(
    ("optimizer_class", "settings"),
    [
        (torch.optim.AdamW, {}),
        (torch.optim.AdamW, {"amsgrad": True}),
        (torch.optim.SGD, {"momentum": 0.9}),
        (torch.optim.Adafactor, {}),
    ],
)
def test_optimizer_state_survives_the_file_bit_for_bit(
    tmp_path: Path, optimizer_class: Callable[..., torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    state = _stepped(optimizer_class, **settings).state_dict()
    tensors, document = flatten_state(state)
    save_checkpoint(tmp_path, 3, {"optimizer": tensors}, {"optimizer_groups": document}, lambda _: None, keep=None)
    saved = open_checkpoint(tmp_path / "checkpoint-3")
    restored = unflatten_state(saved.tensors("optimizer"), saved.document("optimizer_groups"))
    _assert_same(restored, state)
    other = _stepped(optimizer_class, **settings)
    other.load_state_dict(restored)
    _assert_same(other.state_dict(), state)


def test_keys_that_join_to_one_path_stay_apart() -> None:
    state = {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}, 0: {"x": torch.ones(2)}, "0": {"x": torch.zeros(2)}}
    tensors, document = flatten_state(state)
    assert len(tensors) == 4
    _assert_same(unflatten_state(tensors, json.loads(json.dumps(document))), state)


def test_scalars_keep_type_and_bits() -> None:
    state = {
        "lr": 5e-324, "inf": float("-inf"), "nan": float("nan"), "n": 2**80, "none": None, "flag": True, "zero": -0.0,
        "lists": [[], (), {}, [(1, "x")]], "tensor": "not a tensor",
    }  # fmt: skip
    tensors, document = flatten_state(state)
    _assert_same(unflatten_state(tensors, json.loads(json.dumps(document, allow_nan=False))), state)


def test_what_only_a_pickle_could_hold_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"param_groups\.0\.hook: cannot store function without a pickle"):
        flatten_state({"param_groups": [{"hook": lambda: None}]})


def _draws() -> list[Any]:
    return [random.random(), random.gauss(0, 1), np.random.random(), np.random.normal(), torch.randn(3).tolist()]


def test_random_draws_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    _draws()  # an odd number of gaussians, so that both generators hold one back
    tensors, document = capture_rng()
    assert {tensor.dtype for tensor in tensors.values()} == {torch.uint8}
    save_checkpoint(tmp_path, 1, {"rng": tensors}, {"rng": document}, lambda _: None, keep=None)
    expected = [_draws() for _ in range(5)]
    saved = open_checkpoint(tmp_path / "checkpoint-1")
    restore_rng(saved.tensors("rng"), saved.document("rng"))
    assert [_draws() for _ in range(5)] == expected
    code = (
        "import random, sys, numpy as np, torch; from pathlib import Path\n"
        "from dialtune.checkpoints import open_checkpoint, restore_rng\n"
        "saved = open_checkpoint(Path(sys.argv[1])); restore_rng(saved.tensors('rng'), saved.document('rng'))\n"
        "print([random.random(), random.gauss(0, 1), np.random.random(), np.random.normal(), torch.randn(3).tolist()])"
    )
    command = [sys.executable, "-c", code, str(saved.path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{expected[0]}\n"
