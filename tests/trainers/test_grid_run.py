"""A grid: the same runs as one by one, killed and restarted without repeated work, a complete table, one result."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model

from dialtune.cli.app import run_command
from dialtune.config.grid import Grid, load_runs
from dialtune.errors import ConfigError, DataError, NonFiniteError
from dialtune.grids import GridRow, best_of, read_grid, row_of, table_lines
from dialtune.models.loading import resolve_folder
from dialtune.runs import RunFolder, read_rows, record_end, record_start
from dialtune.trainers import grid_run
from dialtune.trainers.grid_run import describe_grid, preview_grid, run_grid
from dialtune.trainers.sft_run import run_sft

RATES = (1e-4, 1e-2, 3e-2)
NAMES = [f"learning_rate={rate:g}" for rate in RATES]
STEPS = 3


pytestmark = pytest.mark.usefixtures("one_thread")


def write_recipe(folder: Path) -> Path:
    """Three learning rates, six dialogues, dropout, an evaluation and a checkpoint after every update."""
    make_model("llama", dropout=0.1).save(folder / "model")
    row = {"dialogue": "Anna: Hello, number {0}.\nBen: See you at {0}.", "summary": "They meet at {0}."}
    lines = [{"id": f"d{i}"} | {key: text.format(i) for key, text in row.items()} for i in range(6)]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "model": str(folder / "model"), "data": {"train": str(rows), "validation": str(rows), "max_validation_rows": 2},
        "learning_rate": list(RATES), "max_steps": STEPS, "per_device_train_batch_size": 3, "eval_steps": 1,
        "save_total_limit": 1, "bf16": False,
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))  # JSON is YAML
    return path


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that makes a grid."""
    return write_recipe(tmp_path_factory.mktemp("recipe"))


@pytest.fixture(scope="module")
def unbroken(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a grid that ran without a break; read it only."""
    out = tmp_path_factory.mktemp("unbroken") / "grid"
    torch.set_num_threads(1)
    run_grid(grid_of(recipe, out))
    return out


def grid_of(recipe: Path, out: Path, *overrides: str) -> Grid:
    grid = load_runs(recipe, overrides, output_dir=str(out))
    assert isinstance(grid, Grid)
    return grid


def copied(folder: Path, out: Path) -> Path:
    shutil.copytree(folder, out, symlinks=True)
    return out


def metrics(run: Path) -> list[dict[str, Any]]:
    """The rows without their wall-clock fields."""
    return [{key: row[key] for key in row if not key.endswith("_s")} for row in read_rows(run / "metrics.jsonl")]


def without_clocks(folder: Path) -> dict[str, Any]:
    """grid.json without its seconds."""
    document: dict[str, Any] = json.loads((folder / "grid.json").read_text())
    for row in document["rows"]:
        row.pop("seconds")
    return document


# the runs and their table


def test_each_run_is_the_one_that_its_recipe_alone_would_be(recipe, unbroken, tmp_path):
    run = grid_of(recipe, tmp_path).runs[2]
    run_sft(run.config.model_copy(update={"output_dir": str(tmp_path / "alone")}))
    assert metrics(unbroken / run.name) == metrics(tmp_path / "alone")
    steps = RunFolder(tmp_path / "alone").checkpoints()
    assert steps
    for step in steps:
        weights = f"checkpoint-{step}/model.safetensors"
        assert (unbroken / run.name / weights).read_bytes() == (tmp_path / "alone" / weights).read_bytes()


def test_the_table_holds_what_the_runs_logged_and_the_lowest_validation_loss_wins(recipe, unbroken):
    record = read_grid(unbroken)
    assert record is not None
    assert [row.name for row in record.rows] == NAMES
    for row in record.rows:
        logged = read_rows(unbroken / row.name / "metrics.jsonl")
        best = min(logged, key=lambda found: found["eval_loss"])
        assert (row.status, row.step, row.eval_loss, row.score) == ("done", best["step"], *[best["eval_loss"]] * 2)
        # 6 rows by 3 are 2 updates an epoch: the mean over the last two up to the best one, by learned tokens.
        epoch = [found for found in logged if best["step"] - 2 < found["step"] <= best["step"]]
        total = sum(found["loss"] * found["n_tokens"] for found in epoch)
        assert row.train_loss == pytest.approx(total / sum(found["n_tokens"] for found in epoch))
        assert row.seconds == pytest.approx(sum(found["step_s"] for found in logged), abs=0.006)
    assert record.best == min(record.rows, key=lambda row: row.eval_loss or 9.9).name
    lines = describe_grid(grid_of(recipe, unbroken), record)
    assert re.fullmatch(r"learning_rate +step +eval_loss +train_loss +seconds", lines[0])
    assert [line.endswith("best") for line in lines[1:4]] == [row.name == record.best for row in record.rows]
    assert lines[4] == f"best by eval_loss: {unbroken / record.best} (also as {unbroken / 'best'})"


def test_the_grid_folder_stands_for_its_best_run(unbroken):
    record = read_grid(unbroken)
    assert record is not None
    (best,) = [row for row in record.rows if row.name == record.best]
    assert (unbroken / "best").resolve() == (unbroken / best.name).resolve()
    assert resolve_folder(str(unbroken)).resolve() == (unbroken / best.name / f"checkpoint-{best.step}").resolve()


def test_the_command_line_prints_the_table_and_the_dry_run_trains_nothing(recipe, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_command(["sft", str(recipe), "--dry-run", "--output_dir", "grid"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"3 runs under grid:\n  {NAMES[0]}\n  {NAMES[1]}\n  {NAMES[2]}\n")
    assert "learned tokens in [brackets]" in out
    assert not (tmp_path / "grid").exists()
    options = ["--set", "learning_rate=[1e-3, 1e-2]", "--max_steps", "1", "--output_dir", "grid"]
    assert run_command(["sft", str(recipe), *options]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["learning_rate", "0.001", "0.01"]
    assert sum(line.endswith("best") for line in lines[1:3]) == 1
    assert lines[-1] == "Next: dialtune report grid"
    assert "run 2 of 2: learning_rate=0.01" in shown.err


# killed and restarted


def _child(grid: Grid, log: Path, die: Callable[[str, Mapping[str, Any], int], bool]) -> int:
    """The exit code of a forked process that goes on with the grid, and kills itself where `die` says so.

    Each update made is a line in `log`: run, step.
    """
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            run, done = "", 0

            def on_event(kind: str, facts: Mapping[str, Any]) -> None:
                nonlocal run, done
                if kind == "note" and facts["text"].startswith("run "):
                    run = facts["text"].partition(": ")[2]
                if kind == "step":
                    done += 1
                    with open(log, "a") as file:
                        file.write(f"{run} {facts['step']}\n")
                if die(kind, facts, done):
                    os.kill(os.getpid(), signal.SIGKILL)

            run_grid(grid, resume="newest", on_event=on_event)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# (what the first and the second process had done when they were killed: event, updates of their own)
@pytest.mark.parametrize(
    "kills",
    [
        pytest.param((("step", 2), ("step", 3)), id="in-a-run"),
        pytest.param((("save", 2), ("save", STEPS)), id="after-saving", marks=pytest.mark.slow),
        pytest.param((("step", STEPS), ("note", 1)), id="between-runs", marks=pytest.mark.slow),
        pytest.param((("start", 0), ("start", 0)), id="at-the-start", marks=pytest.mark.slow),
    ],
)
def test_killed_and_restarted_twice_the_grid_finishes_and_repeats_no_work(recipe, unbroken, tmp_path, kills):
    grid, log = grid_of(recipe, tmp_path / "grid"), tmp_path / "log"
    log.touch()
    for event, n in kills:
        finished = _finished(Path(grid.output_dir))
        assert _child(grid, log, lambda kind, _, done: kind == event and done >= n) == -signal.SIGKILL  # noqa: B023
        assert _finished(Path(grid.output_dir)).items() >= finished.items()  # what was done was not touched
    finished = _finished(Path(grid.output_dir))
    assert _child(grid, log, lambda *_: False) == 0
    assert _finished(Path(grid.output_dir)).items() >= finished.items()

    made = Counter(log.read_text().splitlines())
    assert set(made) == {f"{name} {step}" for name in NAMES for step in range(1, STEPS + 1)}
    # An update whose checkpoint was not written yet is made again, one at most for each kill; none after a save.
    assert sum(made.values()) - len(made) <= sum(event == "step" for event, _ in kills)

    record = read_grid(Path(grid.output_dir))
    assert record is not None
    assert [row.status for row in record.rows] == ["done"] * 3
    assert without_clocks(Path(grid.output_dir)) == without_clocks(unbroken)
    for name in NAMES:
        assert metrics(Path(grid.output_dir) / name) == metrics(unbroken / name)


def _finished(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file of every finished run, with the time of its last change."""
    done = [path.parent for path in folder.glob("*/run.json") if json.loads(path.read_text())["outcome"] == "done"]
    done = [run for run in done if not run.is_symlink()]
    return {
        str(file): (file.stat().st_mtime_ns, file.stat().st_size, file.stat().st_ino)
        for run in done
        for file in run.rglob("*")
        if file.is_file()
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_line_survives_two_kills_at_any_moment(recipe, tmp_path):
    command = [sys.executable, "-m", "dialtune", "sft", str(recipe), "--max_steps", "60", "--resume"]
    command += ["--output_dir", str(tmp_path / "grid")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for run in (0, 1):
        with open(tmp_path / "log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):
                if (tmp_path / "grid" / NAMES[run] / "metrics.jsonl").read_bytes().count(b"\n") >= 20:
                    break
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    first = metrics(tmp_path / "grid" / NAMES[0])
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["learning_rate", "0.0001", "0.01", "0.03"]
    assert lines[4].startswith("best by eval_loss: ")
    assert metrics(tmp_path / "grid" / NAMES[0]) == first
    assert [len(metrics(tmp_path / "grid" / name)) for name in NAMES] == [60, 60, 60]


@pytest.mark.parametrize("keep_table", [True, False], ids=["table", "table-deleted"])
def test_a_finished_grid_is_not_run_again_and_its_table_is_made_from_its_runs(recipe, unbroken, tmp_path, keep_table):
    grid = grid_of(recipe, copied(unbroken, tmp_path / "grid"))
    if not keep_table:
        RunFolder(grid.output_dir).grid.unlink()
    events: list[str] = []
    assert run_grid(grid, resume="newest", on_event=lambda kind, _: events.append(kind)) == read_grid(unbroken)
    assert events == []
    assert read_grid(Path(grid.output_dir)) == read_grid(unbroken)


# runs that fail


def _fail(monkeypatch: pytest.MonkeyPatch, bad: str, error: Exception) -> list[str]:
    """Let the run called `bad` stop with an error, recorded as `run_sft` records it; the names of runs begun."""
    begun: list[str] = []

    def run(config: Any, **options: Any) -> Path:
        begun.append(Path(config.output_dir).name)
        if begun[-1] != bad:
            return run_sft(config, **options)
        folder = RunFolder(config.output_dir)
        folder.path.mkdir(parents=True, exist_ok=True)
        record_start(folder, {})
        record_end(folder, f"{type(error).__name__}: {error}")
        raise error

    monkeypatch.setattr(grid_run, "run_sft", run)
    return begun


def test_a_run_that_diverges_is_a_row_and_the_others_go_on(recipe, tmp_path, monkeypatch):
    grid = grid_of(recipe, tmp_path / "grid", "max_steps=1")
    begun = _fail(monkeypatch, NAMES[1], NonFiniteError("training stopped: loss is not finite"))
    record = run_grid(grid)
    assert begun == NAMES
    assert [row.status for row in record.rows] == ["done", "failed", "done"]
    assert record.rows[1].reason == "training stopped: loss is not finite"
    assert (record.rows[1].step, record.rows[1].eval_loss, record.rows[1].seconds) == (None, None, None)
    assert record.best in (NAMES[0], NAMES[2])
    assert re.search(r"0\.01 +- +- +- +-  failed: training stopped: loss is not finite", "\n".join(table_lines(record)))
    run_grid(grid, resume="newest")
    assert begun == NAMES  # a diverging rate would diverge again


def test_an_error_of_the_machine_or_the_data_stops_the_grid_and_resume_tries_again(recipe, tmp_path, monkeypatch):
    grid = grid_of(recipe, tmp_path / "grid", "max_steps=1")
    begun = _fail(monkeypatch, NAMES[1], DataError("rows.jsonl: unreadable"))
    with pytest.raises(DataError, match="unreadable"):
        run_grid(grid)
    assert begun == NAMES[:2]
    monkeypatch.setattr(grid_run, "run_sft", run_sft)
    record = run_grid(grid, resume="newest")
    assert [row.status for row in record.rows] == ["done"] * 3


# refusals


def test_a_folder_that_holds_a_grid_is_refused_without_resume(recipe, unbroken):
    with pytest.raises(ConfigError) as caught:
        run_grid(grid_of(recipe, unbroken))
    assert str(caught.value) == (
        f"output_dir: {unbroken} already holds a grid, 3 of 3 runs finished; go on with --resume, or choose another one"
    )


@pytest.mark.parametrize(
    ("keep_table", "change", "message"),
    [
        (True, "weight_decay=0.1", "this one is the same lists in another recipe"),
        (False, "weight_decay=0.1", "this one is the same lists in another recipe"),
        (True, "learning_rate=[1e-4, 2e-2]", "this one is without learning_rate=0.01, learning_rate=0.03; "
         "with learning_rate=0.02"),
    ],
)  # fmt: skip
def test_another_grid_in_the_same_folder_is_refused(recipe, unbroken, tmp_path, keep_table, change, message):
    folder = copied(unbroken, tmp_path / "grid")
    if not keep_table:
        RunFolder(folder).grid.unlink()
    with pytest.raises(ConfigError, match=re.escape(f"holds another grid; {message}. Undo the change, choose another")):
        run_grid(grid_of(recipe, folder, change), resume="newest")


def test_force_goes_on_with_a_longer_list(recipe, unbroken, tmp_path):
    grid = grid_of(recipe, copied(unbroken, tmp_path / "grid"), "learning_rate=[1e-4, 1e-2, 3e-2, 5e-2]")
    begun: list[str] = []
    record = run_grid(grid, resume="newest", force=True, on_event=lambda kind, _: begun.append(kind))
    assert [row.status for row in record.rows] == ["done"] * 4
    assert begun.count("start") == 1


def test_runs_on_data_that_changed_in_between_are_not_ranked(tmp_path):
    path, folder = write_recipe(tmp_path), tmp_path / "grid"
    grid = grid_of(path, folder, "max_steps=1", "learning_rate=[1e-4, 1e-2]")
    run_grid(grid)
    shutil.rmtree(folder / NAMES[1])
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[:-1]))
    message = f"the data changed between {NAMES[0]} and {NAMES[1]}; runs on different rows cannot be ranked: delete"
    with pytest.raises(ConfigError, match=re.escape(message)):
        run_grid(grid, resume="newest")


def test_runs_on_more_or_fewer_training_rows_are_ranked(recipe, tmp_path):
    grid = grid_of(recipe, tmp_path / "grid", "max_steps=1", "learning_rate=1e-3", "data.max_train_rows=[2, 4]")
    assert run_grid(grid).best is not None


def test_single_runs_and_grids_keep_out_of_each_others_folders(recipe, unbroken):
    single = load_runs(recipe, ["learning_rate=1e-3"], output_dir=str(unbroken))
    with pytest.raises(ConfigError, match=r"grid holds a grid of runs; choose another output_dir for a single run"):
        run_sft(single)
    with pytest.raises(ConfigError, match=r"holds a single run; choose another output_dir for the grid"):
        run_grid(grid_of(recipe, unbroken / NAMES[0]), resume="newest")


def test_a_grid_is_resumed_without_a_path(recipe, tmp_path):
    with pytest.raises(ConfigError, match=r"got runs/x; a grid finds its checkpoints by itself: give --resume without"):
        run_grid(grid_of(recipe, tmp_path / "grid"), resume="runs/x")


def test_a_table_that_was_cut_or_edited_is_named(recipe, tmp_path):
    folder = tmp_path / "grid"
    folder.mkdir()
    (folder / "grid.json").write_text('{"schema": "dialtune.grid/1", "metric": 3}')
    with pytest.raises(DataError, match=r"grid\.json: .*; it was cut or edited: delete it, and dialtune sft RECIPE"):
        run_grid(grid_of(recipe, folder), resume="newest")


# pieces


def _row(name: str, score: float | None) -> GridRow:
    return GridRow(name=name, values={"seed": 1}, fingerprint="f", status="done", score=score)


def test_the_best_row_is_the_first_of_equals_in_the_metrics_own_direction():
    rows = [_row("a", 2.0), _row("b", None), _row("c", 1.0), _row("d", 1.0)]
    assert best_of(rows, "lower") == "c"
    assert best_of([*rows, _row("e", 2.0)], "higher") == "a"
    assert best_of([_row("a", None)], "lower") is None
    assert best_of([], "higher") is None


def test_a_score_that_is_generated_ranks_by_its_own_column(recipe, tmp_path):
    grid = grid_of(recipe, tmp_path / "grid", "metric_for_best_model=rougeL")
    folder = tmp_path / "run"
    folder.mkdir()
    run = RunFolder(folder)
    record_start(run, {"fingerprint": "a:b:c"})
    lines = [
        {"step": 1, "epoch": 0.5, "loss": 4.0, "n_tokens": 10, "step_s": 0.5},
        {"step": 2, "epoch": 1.0, "loss": None, "n_tokens": 30, "step_s": 0.25, "eval_loss": 3.5, "eval_rougeL": 20.0},
        {"step": 3, "epoch": 1.5, "loss": 1.0, "n_tokens": 30, "step_s": 0.25},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = GridRow(name="n", values={}, fingerprint="f")
    assert row_of(folder, row, grid.runs[0].config).status == "running"
    record_end(run, "done", notes=["result: checkpoint-2"])
    found = row_of(folder, row, grid.runs[0].config)
    assert (found.status, found.step, found.eval_loss, found.score, found.seconds) == ("done", 2, 3.5, 20.0, 1.0)
    assert found.train_loss == 4.0  # the skipped update of the epoch has no loss; the third came later
    assert row_of(tmp_path / "nothing", row, grid.runs[0].config).status == "waiting"


def test_the_preview_names_every_run(recipe, tmp_path):
    lines = preview_grid(grid_of(recipe, tmp_path / "grid"))
    assert lines[1:4] == [f"  {name}" for name in NAMES]
