"""Reinforcement learning killed anywhere, also inside a rollout, resumed: equal to the unbroken run, bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from ckpt_chaos import inject
from rl_tiny import KINDS, LORA, data, letter_reward, metrics, rl_config, start_adapter, start_policy, unexamined

from dialtune.checkpoints import newest_checkpoint, open_checkpoint
from dialtune.config.rl_schema import RLConfig
from dialtune.errors import ConfigError, DialtuneError, InterruptedRunError
from dialtune.runs import RunFolder, read_rows
from dialtune.trainers.rl_run import run_rl

# Two passes of two minibatches: three updates of four are inside a rollout. Everything that has a state has one here.
WHOLE: dict[str, Any] = {
    "num_iterations": 2,
    "num_minibatches": 2,
    "max_steps": 10,
    "save_steps": 1,
    "save_total_limit": None,
    "eval_steps": 3,
    "kl_target": 3.0,
    "learning_rate": 2e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "truncation": "penalise",
    "constraint": {"qualities": ["rougeL"], "baseline_prompts": 16},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def no_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    unexamined(monkeypatch)


def config_for(kind: str, out: Path, **settings: Any) -> RLConfig:
    start = settings.pop("start", None) or start_policy(kind)
    return rl_config(start, out, **{**WHOLE, "data": data(), **settings})


def run(config: RLConfig, **keywords: Any) -> Path:
    return run_rl(config, rewards=[letter_reward()], **keywords)


def contents(checkpoint: Path) -> dict[str, str]:
    """Every file's hash; without the length of metrics.jsonl, whose seconds have as many digits as they like."""
    hashes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.name == "train_state.json":
            state = json.loads(path.read_text())
            assert state.pop("metrics_bytes") > 0
            assert state["journal_bytes"] > 0
            hashes[path.name] = json.dumps(state)
        elif path.is_file() and path.name != "MANIFEST.json":
            hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def assert_equal_runs(broken: Path, unbroken: Path, first_step: int, what: str) -> None:
    assert metrics(broken) == metrics(unbroken), what
    assert (broken / "rollouts.jsonl").read_bytes() == (unbroken / "rollouts.jsonl").read_bytes(), what
    steps = [step for step in RunFolder(unbroken).checkpoints() if step >= first_step]
    assert steps
    for step in steps:
        name = f"checkpoint-{step}"
        assert contents(broken / name) == contents(unbroken / name), f"{what}: {name}"


def broken_off_after(run_folder: Path, step: int, target: Path) -> None:
    """A copy of the run folder as a kill leaves it some time after checkpoint-`step`."""
    shutil.copytree(run_folder, target)
    for later, path in RunFolder(target).checkpoints().items():
        if later > step:
            shutil.rmtree(path)
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with open(target / name, "a") as file:
            file.write('{"step": 99, "rollout": 99, "lo')


# K4


@pytest.mark.parametrize(
    ("n_steps", "breaks"),
    [
        pytest.param(7, (1, 3, 4), id="some"),
        pytest.param(12, range(1, 12), id="all", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    ],
)
@pytest.mark.parametrize(
    ("kind", "method", "lora"),
    [
        pytest.param(
            kind, method, lora, id=f"{kind}-{method}-{'lora' if lora else 'full'}",
            marks=[] if kind == "gpt2" and lora == (method == "ppo") else [pytest.mark.slow],
        )
        for kind in KINDS for method in ("grpo", "ppo") for lora in (False, True)
    ],
)  # fmt: skip
def test_k4_a_run_resumed_at_any_update_equals_the_unbroken_one(
    tmp_path: Path, kind: str, method: str, lora: bool, n_steps: int, breaks: Sequence[int]
) -> None:
    settings: dict[str, Any] = {
        "method": method, "lora": LORA if lora else None, "max_steps": n_steps, "value_warmup_steps": 2,
    }  # fmt: skip
    unbroken = tmp_path / "unbroken"
    run(config_for(kind, unbroken, **settings))
    assert [row["step"] for row in metrics(unbroken)] == list(range(n_steps + 1))
    for step in breaks:
        resumed = tmp_path / f"resumed-{step}"
        broken_off_after(unbroken, step, resumed)
        run(config_for(kind, resumed, **settings), resume="newest")
        assert_equal_runs(resumed, unbroken, step + 1, f"resumed after {step}")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bart", {"method": "ppo", "truncation": "bootstrap", "max_completion_length": 5}),
        ("llama", {"method": "rloo", "num_iterations": 1, "num_minibatches": 1, "max_steps": 5}),
        ("bart", {"method": "grpo", "scale_rewards": "group", "adapter": True, "max_steps": 6}),
        ("gpt2", {"method": "grpo", "gradient_checkpointing": True, "max_steps": 6}),
    ],
    ids=["ppo bootstrap", "one update a rollout", "start is an adapter", "recomputed"],
)
def test_k4_other_states_come_back_too(tmp_path: Path, kind: str, settings: dict[str, Any]) -> None:
    settings = dict(settings)
    if settings.pop("adapter", False):
        settings |= {"start": start_adapter(kind), "lora": LORA}
    unbroken = tmp_path / "unbroken"
    run(config_for(kind, unbroken, **settings))
    for step in (2, 4):
        resumed = tmp_path / f"resumed-{step}"
        broken_off_after(unbroken, step, resumed)
        run(config_for(kind, resumed, **settings), resume="newest")
        assert_equal_runs(resumed, unbroken, step + 1, f"resumed after {step}")


def test_inside_a_rollout_the_buffer_is_in_the_checkpoint_and_at_its_end_it_is_not(tmp_path: Path) -> None:
    run(config_for("gpt2", tmp_path / "run", max_steps=5))
    for step, inside in ((1, True), (3, True), (4, False), (5, True)):
        start = open_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
        assert (start.path / "rollout.safetensors").exists() == inside
        assert (start.document("rl_state")["rollout"] is not None) == inside
    rows = read_rows(tmp_path / "run" / "rollouts.jsonl")
    assert [row["rollout"] for row in rows] == [0] * 16 + [1] * 16


def test_rows_of_a_rollout_are_written_once_however_often_it_is_resumed(tmp_path: Path) -> None:
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "run"
    run(config_for("gpt2", unbroken))

    def stop_at(step: int) -> Callable[[str, Any], None]:
        def listen(kind: str, facts: Any) -> None:
            if kind == "step" and facts["step"] == step:
                os.kill(os.getpid(), signal.SIGTERM)

        return listen

    for step in (2, 3, 6, 8):
        with pytest.raises(InterruptedRunError) as caught:
            run(config_for("gpt2", resumed), resume="newest", on_event=stop_at(step))
        assert caught.value.exit_code == 143
        assert max(RunFolder(resumed).checkpoints()) == step
    run(config_for("gpt2", resumed), resume="newest")
    assert_equal_runs(resumed, unbroken, 9, "after four stops")
    starts = json.loads((resumed / "run.json").read_text())["starts"]
    assert [start["resumed_from"] for start in starts] == [None, 2, 3, 6, 8]


def test_a_run_that_never_saved_starts_again_with_empty_files(tmp_path: Path) -> None:
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        (run_folder / name).write_text('{"step": 1, "rollout": 0}\n')
    run(config_for("gpt2", run_folder, max_steps=2), resume="newest")
    run(config_for("gpt2", tmp_path / "fresh", max_steps=2))
    assert_equal_runs(run_folder, tmp_path / "fresh", 1, "started again")


def test_a_resume_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    config = config_for("gpt2", tmp_path / "run", max_steps=3)
    result = run(config)
    before = contents(tmp_path / "run" / "checkpoint-3"), (tmp_path / "run" / "rollouts.jsonl").read_bytes()
    assert run(config, resume="newest") == result
    assert (contents(tmp_path / "run" / "checkpoint-3"), (tmp_path / "run" / "rollouts.jsonl").read_bytes()) == before


def test_a_broken_newest_checkpoint_is_skipped_and_its_updates_are_redone(tmp_path: Path) -> None:
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    run(config_for("gpt2", unbroken, max_steps=6))
    broken_off_after(unbroken, 3, resumed)
    with open(resumed / "checkpoint-3" / "rollout.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    run(config_for("gpt2", resumed, max_steps=6), resume="newest")
    assert_equal_runs(resumed, unbroken, 3, "resumed before the broken one")


# what must not have changed


def test_a_resume_under_another_recipe_names_the_changed_keys(tmp_path: Path) -> None:
    run(config_for("gpt2", tmp_path / "run", max_steps=2))
    with pytest.raises(ConfigError) as caught:
        run(config_for("gpt2", tmp_path / "run", max_steps=2, beta=0.3, rewards={"length": 0.02}), resume="newest")
    assert "changed keys: beta, rewards. Undo the change" in str(caught.value)


def test_a_resume_after_the_start_policy_was_replaced_is_refused(tmp_path: Path) -> None:
    """The reference is opened from there: another one would be another KL."""
    start = tmp_path / "start"
    shutil.copytree(start_policy("gpt2"), start)
    run(config_for("gpt2", tmp_path / "run", start=start, max_steps=2))
    weights = start / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-4:] = b"\x00\x00\x80\x3f"
    weights.write_bytes(raw)
    with pytest.raises(ConfigError, match=rf"other data; the weights of {re.escape(str(start))} changed\. Undo"):
        run(config_for("gpt2", tmp_path / "run", start=start, max_steps=2), resume="newest")


def test_other_rows_are_refused(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    shutil.copy(data()["train"], rows)
    run(config_for("gpt2", tmp_path / "run", data={"train": str(rows)}, max_steps=2))
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"the data changed\. Undo"):
        run(config_for("gpt2", tmp_path / "run", data={"train": str(rows)}, max_steps=2), resume="newest")


def test_rewards_other_than_those_of_the_checkpoint_are_refused(tmp_path: Path) -> None:
    """A reward of one's own is not in the recipe; its scales in the checkpoint give it away."""
    run(config_for("gpt2", tmp_path / "run", max_steps=2))
    other = [letter_reward(name="note")]
    with pytest.raises(DialtuneError, match="has scales for length, letter; the recipe has length, note"):
        run_rl(config_for("gpt2", tmp_path / "run", max_steps=2), rewards=other, resume="newest")


# K1


def child(config: RLConfig, prepare: Callable[[], None]) -> int:
    """The exit code of a forked process that goes on with the run; what it prints goes nowhere."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            prepare()
            run(config, resume="newest")
            code = 0
        except DialtuneError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ended_by_a_signal(run_folder: Path) -> bool:
    return "InterruptedRunError" in str(json.loads((run_folder / "run.json").read_text())["outcome"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mode", ["before", "torn", "term"])
@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_k1_a_crash_at_file_events_of_a_run_costs_no_checkpoint_and_no_bit(
    tmp_path: Path, kind: str, mode: str
) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "run"
    settings: dict[str, Any] = {
        "method": "ppo" if kind == "t5" else "grpo", "max_steps": 5, "save_steps": 2, "save_total_limit": 1,
        "eval_steps": 0, "data": {"train": data()["train"]},
    }  # fmt: skip
    run(config_for(kind, unbroken, **settings))
    config = config_for(kind, broken, **settings)
    codes: set[int] = set()
    points = 0
    for event in range(1, 2000, 7):
        shutil.rmtree(broken, ignore_errors=True)
        broken.mkdir()
        code = child(config, lambda: inject.arm(str(broken), crash_at=event, mode=mode, torn_python=True))  # noqa: B023
        codes.add(code)
        if code == 0 and not (mode == "term" and ended_by_a_signal(broken)):
            break
        points += 1
        steps_done = len(read_rows(broken / "metrics.jsonl"))
        found = newest_checkpoint(broken, pytest.fail)  # nothing torn is visible
        assert (found.step if found else 0) >= 2 * ((steps_done - 1) // 2), f"{mode} at {event}: a checkpoint is lost"
        assert child(config, lambda: None) == 0, f"{mode} at {event}: the resume failed"
        assert_equal_runs(broken, unbroken, 5, f"{mode} at {event}")
        leftovers = [path.name for path in broken.iterdir() if path.name.startswith((".tmp", ".del", ".old"))]
        assert leftovers == [], f"{mode} at {event}"
    assert codes <= ({0, 137} if mode != "term" else {0, 143, -signal.SIGTERM})
    assert points >= 12, f"{points} file events are fewer than the files of a run"


# through the command line


def command(config: RLConfig, folder: Path) -> list[str]:
    recipe = folder / "recipe.json"  # JSON is YAML
    values = config.model_dump(mode="json", exclude={"output_dir"}, exclude_defaults=True)
    recipe.write_text(json.dumps({"method": config.method, "alarm_scorer": None, **values}))
    return [sys.executable, "-m", "dialtune", "rl", str(recipe), "--output_dir", config.output_dir, "--resume"]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "random"}


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT, env=environment())


def wait_for_rows(run_folder: Path, n: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if (run_folder / "metrics.jsonl").read_bytes().count(b"\n") >= n:
                return
        time.sleep(0.01)


def long_run(out: Path, **settings: Any) -> RLConfig:
    """A recipe for the command line, whose rewards all have names: words, and no copying."""
    values: dict[str, Any] = {
        "method": "ppo", "rewards": {"length": 1.0, "copy": 0.2}, "max_steps": 100_000, "save_steps": 100_000,
        "eval_steps": 0, "data": {"train": data()["train"]}, "learning_rate": 1e-5, "kl_target": None,
        "constraint": {"qualities": [], "length": (0.5, 2.0), "baseline_prompts": 16},
    }  # fmt: skip
    return config_for("gpt2", out, **{**values, **settings})


@pytest.mark.slow
def test_the_command_line_saves_on_sigterm_and_exits_143(tmp_path: Path) -> None:
    run_folder, log = tmp_path / "run", tmp_path / "log"
    process = start(command(long_run(run_folder), tmp_path), log)
    wait_for_rows(run_folder, 3, process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(60) == 143, log.read_text()
    assert time.monotonic() - began < 10  # alone on two cores: under 2 s
    steps = len(metrics(run_folder))
    assert list(RunFolder(run_folder).checkpoints()) == [steps]
    assert re.search(rf"checkpoint-{steps} is saved", log.read_text())
    assert "Traceback" not in log.read_text()


def kills(
    tmp_path: Path, n: int, number: signal.Signals, *, every: int, max_steps: int
) -> tuple[Path, Path, list[tuple[int, int]]]:
    """(unbroken run, run stopped n times at random and finished, (exit code, newest checkpoint) after each stop)."""
    log, unbroken, broken = tmp_path / "log", tmp_path / "unbroken", tmp_path / "run"
    settings: dict[str, Any] = {"max_steps": max_steps, "save_steps": every, "save_total_limit": 2}
    began = time.monotonic()
    process = start(command(long_run(unbroken, **settings), tmp_path), log)
    wait_for_rows(unbroken, 1, process)
    startup = time.monotonic() - began
    assert process.wait() == 0, log.read_text()
    training = time.monotonic() - began - startup
    arguments = command(long_run(broken, **settings), tmp_path)
    draw, newest, seen = random.Random(0), 0, list[tuple[int, int]]()
    for kill in range(n):
        process = start(arguments, log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if kill % 4 == 0:  # while it starts, reads and restores
                process.wait(draw.uniform(0.3 * startup, startup))
            else:  # from its first new row on: how long a start takes depends on what else the machine does
                done = len(read_rows(broken / "metrics.jsonl")) if broken.exists() else 0
                wait_for_rows(broken, done + 1, process)
                process.wait(draw.uniform(0, 1.5 * training / n))
        process.send_signal(number)
        code = process.wait()
        found = newest_checkpoint(broken, pytest.fail) if broken.exists() else None  # no torn one is visible
        step = found.step if found else 0
        n_rows = len(read_rows(broken / "metrics.jsonl"))
        assert step >= newest, f"kill {kill}: checkpoint-{newest} was there and is lost"
        assert step >= every * ((n_rows - 1) // every), f"kill {kill}: more than one save interval is lost"
        seen.append((code, step))
        newest = step
    assert start(arguments, log).wait() == 0, log.read_text()
    return unbroken, broken, seen


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20_kills_at_random_moments_end_in_the_weights_of_the_unbroken_run(tmp_path: Path) -> None:
    """Three saves: two of them inside a rollout of four updates."""
    unbroken, broken, seen = kills(tmp_path, 20, signal.SIGKILL, every=3, max_steps=399)
    assert {code for code, _ in seen} <= {-signal.SIGKILL, 0}
    steps = [0, *(step for _, step in seen)]
    moved = sum(after not in (before, 399) for before, after in itertools.pairwise(steps))
    assert moved >= 6, f"only {moved} kills fell into training; the times above do not fit this machine: {seen}"
    assert any(step % 4 for _, step in seen), "no resume began inside a rollout"
    assert_equal_runs(broken, unbroken, 399, "after 20 kills")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_k5_20_terminations_at_random_moments_save_where_they_are(tmp_path: Path) -> None:
    unbroken, broken, seen = kills(tmp_path, 20, signal.SIGTERM, every=400, max_steps=400)
    assert {code for code, _ in seen} <= {143, -signal.SIGTERM, 0}  # before the loop there is nothing to save
    saved = [step for code, step in seen if code == 143]
    assert len(set(saved)) >= 6, seen
    assert_equal_runs(broken, unbroken, 400, "after 20 terminations")
