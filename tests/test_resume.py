"""Killed anywhere, resumed, equal to the unbroken run, bit for bit; what is not finite never reaches a weight."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
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

import numpy as np
import pytest
import torch
from ckpt_chaos import inject
from safetensors.torch import load_file
from tiny import make_model

from dialtune.checkpoints import newest_checkpoint, open_checkpoint
from dialtune.config.schema import DataConfig, LoraConfig, RunConfig
from dialtune.errors import ConfigError, DialtuneError, InterruptedRunError, NonFiniteError
from dialtune.runs import RunFolder, read_rows
from dialtune.trainers import sft_run, update
from dialtune.trainers.sft_run import run_sft

FAMILIES = ("t5", "bart", "llama")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a saved model with dropout on."""
    folders = {}
    for kind in FAMILIES:
        folders[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
        make_model(kind, dropout=0.1).save(folders[kind])
    return folders


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Eleven dialogues: an epoch that neither batches nor accumulation divide."""
    path = tmp_path / "rows.jsonl"
    with open(path, "w") as file:
        for i in range(11):
            dialogue = f"Anna: Hello {'again ' * (i % 5)}number {i}.\nBen: Fine, see you at {i}."
            row = {"id": str(i), "dialogue": dialogue, "summary": f"They meet at {i}{' or so' * (i % 3)}."}
            file.write(json.dumps(row) + "\n")
    return path


def _config(model: Path, rows: Path, out: Path, **settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "max_steps": 7,
        "per_device_train_batch_size": 2,
        "save_steps": 1,
        "save_total_limit": None,
        "learning_rate": 1e-2,
        "bf16": False,
        "seed": 3,
    }
    data = settings.pop("data", DataConfig(train=str(rows)))
    return RunConfig(model=str(model), data=data, output_dir=str(out), **{**defaults, **settings})


def _contents(checkpoint: Path) -> dict[str, str]:
    """Every file's hash; without the length of metrics.jsonl, whose seconds have as many digits as they like."""
    hashes = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.name == "train_state.json":
            state = json.loads(path.read_text())
            assert state.pop("metrics_bytes") > 0
            hashes[path.name] = json.dumps(state)
        elif path.is_file() and path.name != "MANIFEST.json":
            hashes[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def _metrics(run: Path) -> list[dict[str, Any]]:
    """The rows without their wall-clock fields."""
    return [{key: row[key] for key in row if not key.endswith("_s")} for row in read_rows(run / "metrics.jsonl")]


def _assert_equal_runs(broken: Path, unbroken: Path, first_step: int, what: str) -> None:
    assert _metrics(broken) == _metrics(unbroken), what
    steps = [step for step in RunFolder(unbroken).checkpoints() if step >= first_step]
    assert steps
    for step in steps:
        name = f"checkpoint-{step}"
        assert _contents(broken / name) == _contents(unbroken / name), f"{what}: {name}"


def _broken_off_after(run: Path, step: int, target: Path) -> None:
    """A copy of the run folder as a kill leaves it some time after checkpoint-`step`."""
    shutil.copytree(run, target)
    for later, path in RunFolder(target).checkpoints().items():
        if later > step:
            shutil.rmtree(path)
    with open(target / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "lo')


# --- K4 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_steps", "breaks"),
    [pytest.param(7, (5,), id="some"), pytest.param(12, range(1, 12), id="all", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_k4_a_run_resumed_at_any_step_equals_the_unbroken_one(
    tiny_models: dict[str, Path],
    rows: Path,
    tmp_path: Path,
    kind: str,
    lora: bool,
    accumulation: int,
    n_steps: int,
    breaks: Sequence[int],
) -> None:
    settings = {
        "max_steps": n_steps,
        "gradient_accumulation_steps": accumulation,
        "lora": LoraConfig(r=2, alpha=4, dropout=0.1) if lora else None,
        "data": DataConfig(train=str(rows), validation=str(rows), max_validation_rows=3),
        "eval_steps": 2,
    }
    unbroken = tmp_path / "unbroken"
    run_sft(_config(tiny_models[kind], rows, unbroken, **settings))
    assert len(_metrics(unbroken)) == n_steps
    for step in breaks:
        resumed = tmp_path / f"resumed-{step}"
        _broken_off_after(unbroken, step, resumed)
        run_sft(_config(tiny_models[kind], rows, resumed, **settings), resume="newest")
        _assert_equal_runs(resumed, unbroken, step + 1, f"resumed after {step}")


def test_k4_dropout_is_on_and_depends_on_the_seed_alone(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    def weights(name: str, **settings: Any) -> dict[str, str]:
        out = tmp_path / name
        run_sft(_config(tiny_models["t5"], rows, out, max_steps=3, save_steps=3, **settings))
        return _contents(out / "checkpoint-3")

    torch.manual_seed(1)
    first = weights("first", data_seed=0)
    torch.manual_seed(2)
    random.seed(2)
    assert weights("again", data_seed=0) == first
    assert weights("other", data_seed=0, seed=4)["model.safetensors"] != first["model.safetensors"]


def test_k4_draws_of_the_models_own_code_go_on_where_they_were(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = sft_run.open_for_training

    def open_with_noise(*args: Any, **kwargs: Any) -> Any:
        """Like augmentation in third-party code: draws from python's and numpy's global generators."""
        model = opened(*args, **kwargs)
        noise = lambda *a: a[2] * (0.9 + 0.1 * random.random() + 0.1 * np.random.random())  # noqa: E731
        model.module.get_output_embeddings().register_forward_hook(noise)
        return model

    monkeypatch.setattr(sft_run, "open_for_training", open_with_noise)
    unbroken, again, resumed = (tmp_path / name for name in ("unbroken", "again", "resumed"))
    run_sft(_config(tiny_models["t5"], rows, unbroken))
    random.seed(5)
    np.random.seed(5)
    run_sft(_config(tiny_models["t5"], rows, again))
    _assert_equal_runs(again, unbroken, 1, "a second run")
    _broken_off_after(unbroken, 3, resumed)
    run_sft(_config(tiny_models["t5"], rows, resumed), resume="newest")
    _assert_equal_runs(resumed, unbroken, 4, "resumed")


def test_a_resume_from_an_older_checkpoint_does_not_mix_two_histories(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    config = _config(tiny_models["t5"], rows, tmp_path / "run", max_steps=3)
    run_sft(config)
    older = str(tmp_path / "run" / "checkpoint-2")
    with pytest.raises(
        ConfigError, match=r"also holds checkpoint-3, made after checkpoint-2; delete or move what is newer"
    ):
        run_sft(config, resume=older)
    (tmp_path / "run" / "checkpoint-3").rename(tmp_path / "elsewhere")
    run_sft(config, resume=older)
    assert _contents(tmp_path / "run" / "checkpoint-3") == _contents(tmp_path / "elsewhere")


def test_a_resume_of_a_finished_run_changes_nothing(tiny_models: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    config = _config(tiny_models["t5"], rows, tmp_path / "run", max_steps=2)
    run_sft(config)
    before, metrics = _contents(tmp_path / "run" / "checkpoint-2"), (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert run_sft(config, resume="newest").name == "checkpoint-2"
    assert _contents(tmp_path / "run" / "checkpoint-2") == before
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_a_run_that_stopped_early_stays_stopped_when_it_is_resumed(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    data = DataConfig(train=str(rows), validation=str(rows))
    settings = {"data": data, "eval_steps": 1, "early_stopping_patience": 2, "learning_rate": 1.0, "max_steps": 30}
    config = _config(tiny_models["t5"], rows, tmp_path / "run", **settings)  # at such a rate nothing gets better
    result = run_sft(config)
    metrics = _metrics(tmp_path / "run")
    assert len(metrics) < 30
    assert run_sft(config, resume="newest") == result
    assert _metrics(tmp_path / "run") == metrics


def test_a_broken_newest_checkpoint_is_skipped_and_the_steps_are_redone(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    run_sft(_config(tiny_models["t5"], rows, unbroken))
    _broken_off_after(unbroken, 5, resumed)
    with open(resumed / "checkpoint-5" / "optimizer.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    run_sft(_config(tiny_models["t5"], rows, resumed), resume="newest")
    _assert_equal_runs(resumed, unbroken, 5, "resumed before the broken one")


# --- K1 ------------------------------------------------------------------------------------------------------------


def _child(config: RunConfig, prepare: Callable[[], None]) -> int:
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
            run_sft(config, resume="newest")
            code = 0
        except DialtuneError as error:
            code = error.exit_code
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("mode", ["before", "torn", "term"])
@pytest.mark.parametrize(
    "every",
    [pytest.param(23, id="some"), pytest.param(1, id="all", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_k1_a_crash_at_any_file_event_of_a_run_costs_no_checkpoint_and_no_bit(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path, mode: str, every: int
) -> None:
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    settings = {"max_steps": 5, "save_steps": 2, "save_total_limit": 1, "gradient_accumulation_steps": 2}
    run_sft(_config(tiny_models["t5"], rows, unbroken, **settings))
    config = _config(tiny_models["t5"], rows, run, **settings)
    codes: set[int] = set()
    points = 0
    for event in range(1, 1000, every):
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir()
        code = _child(config, lambda: inject.arm(str(run), crash_at=event, mode=mode, torn_python=True))  # noqa: B023
        codes.add(code)
        if code == 0 and not (mode == "term" and _contains_signal(run)):
            break
        points += 1
        steps_done = len(read_rows(run / "metrics.jsonl"))
        found = newest_checkpoint(run, pytest.fail)  # nothing torn is visible
        assert (found.step if found else 0) >= 2 * ((steps_done - 1) // 2), f"{mode} at {event}: a checkpoint is lost"
        assert _child(config, lambda: None) == 0, f"{mode} at {event}: the resume failed"
        _assert_equal_runs(run, unbroken, 5, f"{mode} at {event}")
        leftovers = [path.name for path in run.iterdir() if path.name.startswith((".tmp", ".del", ".old"))]
        assert leftovers == [], f"{mode} at {event}"
    assert codes <= ({0, 137} if mode != "term" else {0, 143, -signal.SIGTERM})
    assert points >= 75 // every, f"{points} file events are fewer than the files of a run"


def _contains_signal(run: Path) -> bool:
    """Whether the run folder's record shows that a signal ended the run."""
    return "InterruptedRunError" in str(json.loads((run / "run.json").read_text())["outcome"])


# --- N1 ------------------------------------------------------------------------------------------------------------


class _Poison:
    """Puts `value` into one place of a model's training at chosen updates, and notes the weights after each update."""

    def __init__(self, place: str, value: float, updates: range, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place, self.value, self.updates = place, value, updates
        self.calls = 0
        self.weights: list[dict[str, torch.Tensor]] = []
        opened = sft_run.open_for_training

        def open_for_training(*args: Any, **kwargs: Any) -> Any:
            self.model = opened(*args, **kwargs)
            self._attach(self.model, monkeypatch)
            return self.model

        monkeypatch.setattr(sft_run, "open_for_training", open_for_training)
        if place == "learning rate":
            schedule = update.schedule
            monkeypatch.setattr(update, "schedule", lambda *a: value if self._hit() else schedule(*a))

    def _hit(self) -> bool:
        self.calls += 1
        return self.calls - 1 in self.updates

    def _attach(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        if self.place == "loss":
            logprobs = model.logprobs

            def poisoned(*args: Any, **kwargs: Any) -> Any:
                return logprobs(*args, **kwargs) * (self.value if self._hit() else 1.0)

            monkeypatch.setattr(type(model), "logprobs", lambda _, *args, **kwargs: poisoned(*args, **kwargs))
        elif self.place == "logit":
            head = model.module.get_output_embeddings()
            head.register_forward_hook(lambda *a: a[2] + (self.value if self._hit() else 0.0))
        elif self.place == "gradient":
            parameter = dict(model.module.named_parameters())["model.layers.1.mlp.up_proj.weight"]
            parameter.register_hook(lambda gradient: gradient * (self.value if self._hit() else 1.0))

    def on_event(self, kind: str, _: Any) -> None:
        if kind in ("start", "step"):
            self.weights.append({name: p.detach().clone() for name, p in self.model.module.named_parameters()})

    def changed(self, after: int) -> bool:
        """Whether update `after` (from 0) moved any weight."""
        return any(not torch.equal(self.weights[after][name], w) for name, w in self.weights[after + 1].items())


PLACES = ("loss", "logit", "gradient", "learning rate")
# A logit of +inf makes log-probabilities NaN; an infinite one anywhere shows as the loss it spoils.
CAUSES = {"loss": "loss", "logit": "loss", "gradient": "gradient", "learning rate": "learning rate"}


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_n1_one_bad_number_skips_one_update_and_spoils_nothing(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: float
) -> None:
    poison = _Poison(place, value, range(50, 51), monkeypatch)
    config = _config(tiny_models["llama"], rows, tmp_path / "run", max_steps=100, save_steps=100, learning_rate=1e-3)
    run_sft(config, on_event=poison.on_event)
    metrics = _metrics(tmp_path / "run")
    assert [row["step"] for row in metrics if row["skipped"]] == [51]
    assert metrics[50]["skipped"].startswith(f"{CAUSES[place]} is not finite")
    assert metrics[-1]["n_skipped"] == 1
    assert all(math.isfinite(row["loss"]) for row in metrics if row["loss"] is not None)
    assert [poison.changed(after) for after in (49, 50, 51)] == [True, False, True]
    saved = load_file(tmp_path / "run" / "checkpoint-100" / "model.safetensors")
    assert all(bool(torch.isfinite(weight).all()) for weight in saved.values())
    optimizer = open_checkpoint(tmp_path / "run" / "checkpoint-100").tensors("optimizer")
    assert all(bool(torch.isfinite(state).all()) for state in optimizer.values())


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_n1_five_in_a_row_stop_the_run_and_name_the_cause(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: float
) -> None:
    poison = _Poison(place, value, range(8, 1000), monkeypatch)
    config = _config(tiny_models["llama"], rows, tmp_path / "run", max_steps=100, learning_rate=1e-3)
    with pytest.raises(NonFiniteError, match=rf"training stopped: {CAUSES[place]} is not finite") as caught:
        run_sft(config, on_event=poison.on_event)
    assert caught.value.exit_code == 1
    assert str(caught.value).count("\n") <= 2
    assert len(_metrics(tmp_path / "run")) == 12  # the fifth skip raises before its row
    now = dict(poison.model.module.named_parameters())
    assert all(torch.equal(poison.weights[8][name], now[name]) for name in now), "not the weights before the first skip"
    assert "NonFiniteError" in json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]
    for folder in RunFolder(tmp_path / "run").checkpoints().values():
        saved = load_file(folder / "model.safetensors")
        assert all(bool(torch.isfinite(weight).all()) for weight in saved.values())


def test_n1_a_bad_gradient_is_named_with_its_tensor(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Poison("gradient", math.nan, range(3, 100), monkeypatch)
    config = _config(tiny_models["llama"], rows, tmp_path / "run", max_steps=20, save_steps=20)
    with pytest.raises(NonFiniteError, match=r"gradient of model\.layers\.1\.mlp\.up_proj\.weight"):
        run_sft(config)


def test_skips_are_counted_across_a_resume(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Three skips, a stop, three more: five in a row all the same.
    out = tmp_path / "run"
    settings = {"max_steps": 20, "save_steps": 1}
    with monkeypatch.context() as patch:
        poison = _Poison("loss", math.nan, range(2, 5), patch)

        def stop_after_five(kind: str, facts: Any) -> None:
            if kind == "step" and facts["step"] == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(InterruptedRunError):
            run_sft(_config(tiny_models["llama"], rows, out, **settings), on_event=stop_after_five)
        assert poison.calls == 5
    _Poison("loss", math.nan, range(10), monkeypatch)
    with pytest.raises(NonFiniteError):
        run_sft(_config(tiny_models["llama"], rows, out, **settings), resume="newest")
    assert len(_metrics(out)) == 6


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 128 + signal.SIGUSR1)]
)
def test_a_signal_saves_after_the_current_update_and_the_resume_is_exact(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path, number: int, code: int
) -> None:
    unbroken, stopped = tmp_path / "unbroken", tmp_path / "stopped"
    settings = {"save_steps": 7, "gradient_accumulation_steps": 2}
    run_sft(_config(tiny_models["bart"], rows, unbroken, **settings))

    def signal_in_update_three(kind: str, facts: Any) -> None:
        if kind == "step" and facts["step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(InterruptedRunError, match=r"checkpoint-2 is saved\. Go on with --resume") as caught:
        run_sft(_config(tiny_models["bart"], rows, stopped, **settings), on_event=signal_in_update_three)
    assert caught.value.exit_code == code
    assert list(RunFolder(stopped).checkpoints()) == [2]
    run_sft(_config(tiny_models["bart"], rows, stopped, **settings), resume="newest")
    _assert_equal_runs(stopped, unbroken, 7, "after the signal")


# --- through the command line --------------------------------------------------------------------------------------


def _command(config: RunConfig, folder: Path) -> list[str]:
    recipe = folder / "recipe.json"  # JSON is YAML
    recipe.write_text(json.dumps(config.model_dump(mode="json", exclude={"output_dir"}, exclude_defaults=True)))
    return [sys.executable, "-m", "dialtune", "sft", str(recipe), "--output_dir", config.output_dir, "--resume"]


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "random"}


def _start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=_environment())


def _wait_for_rows(run: Path, n: int, process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if (run / "metrics.jsonl").read_bytes().count(b"\n") >= n:
                return
        time.sleep(0.01)


def test_the_command_line_saves_on_sigterm_and_exits_143(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    config = _config(tiny_models["t5"], rows, run, max_steps=100_000, save_steps=100_000)
    process = _start(_command(config, tmp_path), log)
    _wait_for_rows(run, 3, process)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert process.wait(60) == 143, log.read_text()
    assert time.monotonic() - began < 10  # alone on two cores: under 2 s
    steps = len(_metrics(run))
    assert list(RunFolder(run).checkpoints()) == [steps]
    assert re.search(rf"checkpoint-{steps} is saved", log.read_text())
    assert "Traceback" not in log.read_text()


def test_k10_two_fresh_processes_write_the_same_bytes(tiny_models: dict[str, Path], rows: Path, tmp_path: Path) -> None:
    runs = []
    for hash_seed in ("1", "2"):
        folder = tmp_path / f"cwd-{hash_seed}"
        folder.mkdir()
        lora = LoraConfig(r=2, alpha=4)
        config = _config(tiny_models["llama"], rows, folder / "run", max_steps=2, save_steps=2, lora=lora)
        environment = {**_environment(), "PYTHONHASHSEED": hash_seed}
        subprocess.run(_command(config, folder), cwd=folder, env=environment, check=True, capture_output=True)
        runs.append(folder / "run")
    _assert_equal_runs(runs[0], runs[1], 2, "the second process")
    assert (runs[0] / "config.yaml").read_text().replace("cwd-1", "cwd-2") == (runs[1] / "config.yaml").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_20_kills_at_random_moments_end_in_the_weights_of_the_unbroken_run(
    tiny_models: dict[str, Path], rows: Path, tmp_path: Path
) -> None:
    """kill -9 through the real command line, restarted each time."""
    log, n_kills, every = tmp_path / "log", 20, 5
    settings = {"max_steps": 600, "save_steps": every, "save_total_limit": 2, "gradient_accumulation_steps": 2}
    unbroken, run = tmp_path / "unbroken", tmp_path / "run"
    began = time.monotonic()
    process = _start(_command(_config(tiny_models["t5"], rows, unbroken, **settings), tmp_path), log)
    _wait_for_rows(unbroken, 1, process)
    startup = time.monotonic() - began
    assert process.wait() == 0, log.read_text()
    training = time.monotonic() - began - startup

    command = _command(_config(tiny_models["t5"], rows, run, **settings), tmp_path)
    draw, newest, inside = random.Random(0), 0, 0
    for kill in range(n_kills):
        process = _start(command, log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            if kill % 4 == 0:  # while it starts, reads and restores
                process.wait(draw.uniform(0.3 * startup, startup))
            else:  # from its first new row on: how long a start takes depends on what else the machine does
                seen = len(read_rows(run / "metrics.jsonl")) if run.exists() else 0
                _wait_for_rows(run, seen + 1, process)
                process.wait(draw.uniform(0, 1.5 * training / n_kills))
        process.kill()
        assert process.wait() in (-signal.SIGKILL, 0), log.read_text()
        found = newest_checkpoint(run, pytest.fail) if run.exists() else None  # no torn one is visible
        step = found.step if found else 0
        n_rows = len(read_rows(run / "metrics.jsonl"))
        assert step >= newest, f"kill {kill}: checkpoint-{newest} was there and is lost"
        assert step >= every * ((n_rows - 1) // every), f"kill {kill}: more than one save interval is lost"
        inside += step not in (newest, 600)
        newest = step
    assert inside >= n_kills // 3, f"only {inside} kills fell into training; the times above do not fit this machine"
    assert _start(command, log).wait() == 0, log.read_text()
    _assert_equal_runs(run, unbroken, 600, f"after {n_kills} kills")
