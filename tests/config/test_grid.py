"""Lists to runs: the product, names that say the values, every mistake at its place, and no grid without a list."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.config.grid import MAX_RUNS, Grid, load_runs
from dialtune.config.loading import load_config
from dialtune.config.schema import RunConfig
from dialtune.errors import ConfigError

BASE = """model: tiny
data: {train: rows.jsonl, validation: held.jsonl}
output_dir: runs/grid
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def write(text: str, base: str = BASE) -> Path:
        path = tmp_path / "r.yaml"
        path.write_text(base + text)
        return path

    return write


def grid_of(path: Path, *overrides: str, **flags: object) -> Grid:
    grid = load_runs(path, overrides, **flags)
    assert isinstance(grid, Grid)
    return grid


def problems_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_runs(path, overrides)
    return [problem.replace(f"{path}", "r.yaml") for problem in caught.value.problems]


def test_a_recipe_without_lists_is_a_single_run(recipe):
    path = recipe("learning_rate: 1e-4\nevaluation: {metrics: [rougeL, bleu]}\nlora: {target_modules: [q, v]}\n")
    assert load_runs(path) == load_config(path)


def test_every_combination_is_a_run_of_its_own_the_last_list_fastest(recipe):
    grid = grid_of(recipe("learning_rate: [1e-5, 3e-5]\nlora: {r: [8, 16]}\nlr_scheduler_type: [cosine]\n"))
    assert grid.output_dir == "runs/grid"
    assert grid.axes == {"learning_rate": (1e-5, 3e-5), "lora.r": (8, 16), "lr_scheduler_type": ("cosine",)}
    assert [run.name for run in grid.runs] == [
        f"learning_rate={rate},lora.r={r},lr_scheduler_type=cosine" for rate in ("1e-05", "3e-05") for r in (8, 16)
    ]
    for run, (rate, r) in zip(grid.runs, itertools.product((1e-5, 3e-5), (8, 16)), strict=True):
        assert (run.config.learning_rate, run.config.lora and run.config.lora.r) == (rate, r)
        assert run.config.lr_scheduler_type == "cosine"
        assert run.values == {"learning_rate": rate, "lora.r": r, "lr_scheduler_type": "cosine"}
        assert run.config.output_dir == f"runs/grid/{run.name}"


def test_a_run_is_the_one_that_its_values_alone_would_make(recipe):
    path = recipe("lora: {r: [8, 16]}\nseed: [1, 2]\n")
    for run in grid_of(path).runs:
        single = load_config(path, [f"{key}={value}" for key, value in run.values.items()])
        assert run.config.fingerprint == single.fingerprint
        assert run.config.learning_rate == 2e-4  # derived from lora, as in a single run
    assert len({run.config.fingerprint for run in grid_of(path).runs}) == 4


def test_a_value_from_the_command_line_replaces_the_list_and_a_list_may_come_from_there(recipe):
    path = recipe("learning_rate: [1e-5, 3e-5]\n")
    assert isinstance(load_runs(path, [], learning_rate=1e-4), RunConfig)
    assert isinstance(load_runs(path, ["learning_rate=1e-4"]), RunConfig)
    other = grid_of(path, output_dir="elsewhere")
    assert [run.config.output_dir for run in other.runs] == [f"elsewhere/{run.name}" for run in other.runs]
    assert [run.values for run in grid_of(recipe(""), "seed=[1, 2]").runs] == [{"seed": 1}, {"seed": 2}]


def test_other_tools_spellings_make_a_grid_too(recipe):
    assert grid_of(recipe("lora_r: [4, 8]\n")).axes == {"lora.r": (4, 8)}


def test_numbers_names_and_switches_vary(recipe):
    for text, values in [
        ("num_train_epochs: [1, 2.5]", (1.0, 2.5)), ("per_device_train_batch_size: [4, 8]", (4, 8)),
        ("weight_decay: [0, 0.1]", (0.0, 0.1)), ("warmup_ratio: [0, 0.03]", (0.0, 0.03)), ("seed: [1, 2]", (1, 2)),
        ("bf16: [true, auto]", (True, "auto")), ("group_by_length: [true, false]", (True, False)),
        ("data_seed: [null, 3]", (None, 3)),
    ]:  # fmt: skip
        (found,) = grid_of(recipe(text + "\n")).axes.values()
        if None not in values:
            assert found == values, text
    names = [run.name for run in grid_of(recipe("bf16: [true, auto]\n")).runs]
    assert names == ["bf16=true", "bf16=auto"]


@given(st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=6, unique=True))
def test_names_tell_values_apart_and_say_them(rates):
    grid = load_runs(None, [f"learning_rate={list(rates)}"], model="m", data="d", data__validation="v")
    assert isinstance(grid, Grid)
    assert [float(run.name.removeprefix("learning_rate=")) for run in grid.runs] == rates
    assert len({run.name for run in grid.runs}) == len(rates)


def test_many_keys_give_short_names(recipe):
    keys = (
        "learning_rate",
        "weight_decay",
        "warmup_ratio",
        "adam_beta1",
        "adam_beta2",
        "max_grad_norm",
        "adam_epsilon",
    )
    grid = grid_of(recipe("".join(f"{key}: [0.123456789]\n" for key in keys)))
    assert [run.name for run in grid.runs] == ["run-01"]


# mistakes


def test_each_wrong_value_is_named_at_its_place_once(recipe):
    path = recipe("learning_rate: [1e-5, 7, fast]\nseed: [1, 2, -1]\n")
    assert problems_of(path) == [
        "r.yaml:4:23: learning_rate: got 7; allowed number, above 0 and at most 1; try 5e-05",
        "r.yaml:4:26: learning_rate: got 'fast'; allowed number, above 0 and at most 1; try 5e-05",
        "r.yaml:5:14: seed: got -1; allowed integer, at least 0 and at most 4,294,967,295; try 42",
        "3 problems, nothing was run. Every key with its range: dialtune config explain",
    ]


def test_a_mistake_outside_the_lists_is_reported_once(recipe):
    found = problems_of(recipe("learning_rate: [1e-5, 3e-5]\nseeed: 1\n"))
    assert found[0] == "r.yaml:5:1: seeed: unknown key; did you mean 'seed'?"
    assert len(found) == 2


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("learning_rate: []", "4:16: learning_rate: got []; a grid needs a value; allowed number, above 0"),
        ("seed: [1, 2, 1.0]", "4:14: seed: 1 is given twice; the run would be the same"),
        ("learning_rate: [1e-5, 0.00001]", "4:23: learning_rate: 1e-05 is given twice; the run would be the same"),
        ("seed: [1, [2, 3]]", "4:11: seed: got [2, 3]; a grid needs single values; allowed integer, at least 0"),
        ("model_revision: [a, b]", "4:17: model_revision: got a list; a grid varies numbers and named choices"),
        ("task: [summarize, detoxify]", "4:7: task: got a list; it decides what runs are compared by"),
        ("max_prompt_length: [64, 128]", "4:20: max_prompt_length: got a list; it decides what runs are compared by"),
        ("generation: {num_beams: [1, 4]}", "4:25: generation.num_beams: got a list; it decides what runs are"),
        ("evaluation: {metrics: [[bleu], [rougeL]]}", "4:23: evaluation.metrics: a list of lists; this key takes"),
        ("lora: {target_modules: [[q], [v]]}", "4:24: lora.target_modules: a list of lists; this key takes"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_one_side_of_a_grid_says_why(recipe, text, wanted):
    found = problems_of(recipe(text + "\n"))
    assert found[0].startswith(f"r.yaml:{wanted}"), found[0]
    assert len(found) == 2


def test_bool_and_number_are_not_the_same_value(recipe):
    found = problems_of(recipe("seed: [1, true]\n"))
    assert "seed: got true" in found[0]
    assert "twice" not in found[0]


def test_too_many_runs_are_counted_before_any_is_made(recipe):
    seeds = ", ".join(map(str, range(33)))
    found = problems_of(recipe(f"learning_rate: [1e-5, 3e-5]\nseed: [{seeds}]\n"))
    assert found[0] == f"r.yaml:4:16: learning_rate: 66 runs (2 learning_rate x 33 seed); at most {MAX_RUNS}"
    seeds = ", ".join(map(str, range(32)))
    assert len(grid_of(recipe(f"learning_rate: [1e-5, 3e-5]\nseed: [{seeds}]\n")).runs) == MAX_RUNS


def test_a_grid_without_validation_rows_cannot_choose(recipe):
    found = problems_of(recipe("model: m\ndata: {train: rows}\nseed: [1, 2]\n", base=""))
    assert found[0] == "r.yaml:2:7: data.validation: missing; a grid chooses its best run by these rows"


def test_a_command_that_takes_no_grid_says_who_does(recipe):
    with pytest.raises(ConfigError, match=r"got \[1e-05, 3e-05\]; .* \(a list makes a grid, which only dialtune sft"):
        load_config(recipe("learning_rate: [1e-5, 3e-5]\n"))


def test_training_rows_may_vary_since_validation_rows_stay(recipe):
    grid = grid_of(recipe("", base=BASE.replace("train: rows.jsonl", "train: rows.jsonl, max_train_rows: [10, 100]")))
    assert grid.axes == {"data.max_train_rows": (10, 100)}
