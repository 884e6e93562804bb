"""Recipes that `init` writes: every task with every method loads, explains itself, and makes two updates."""

from __future__ import annotations

import json
import re
from typing import get_args

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from rl_tiny import data, start_policy

from dialtune.cli.app import run_command
from dialtune.config.loading import load_any_config, load_rl_config
from dialtune.config.rl_schema import RLConfig
from dialtune.config.schema import RunConfig, TaskName, explain
from dialtune.config.writing import METHODS, USUAL_DATA, USUAL_METHOD, USUAL_REWARDS, write_recipe
from dialtune.errors import ConfigError

TASKS = get_args(TaskName)
EVERY = [(task, method) for task in TASKS for method in METHODS]


def leaves(text):
    """Dotted keys with a value, a flow mapping being one value."""
    found = []
    for key, value in yaml.safe_load(text).items():
        found += [f"data.{inner}" for inner in value] if key == "data" else [key]
    return found


def test_the_tables_know_every_task_and_nothing_else():
    for table in (USUAL_METHOD, USUAL_DATA, USUAL_REWARDS):
        assert set(table) == set(TASKS)


@pytest.mark.parametrize(("task", "method"), EVERY)
@pytest.mark.parametrize("lora", [False, True])
def test_every_key_stands_under_its_doc_line_with_range_and_default(task, method, lora):
    text = write_recipe(task, "google/flan-t5-base", method=method, lora=lora)
    schema = RunConfig if method == "sft" else RLConfig
    flowing = re.sub(r"\n *# ", " ", text)
    keys = leaves(text)
    assert len([key for key in keys if key not in ("task", "method", "template")]) <= 8
    for key in keys:
        _, allowed, default, doc = explain(key, schema)[0]
        assert f"{doc} [{allowed}; {default if default == 'required' else 'default ' + default}]" in flowing, key
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(("task", "method"), EVERY)
def test_a_recipe_names_its_own_commands(task, method):
    head = write_recipe(task, "smollm2-135m", method=method, file="my.yaml").splitlines()[:3]
    if method == "sft":
        assert head[:2] == ["# Look first: dialtune sft my.yaml --dry-run", "# Train:      dialtune sft my.yaml"]
        assert head[2].endswith("dialtune config explain")
    else:
        assert head[:2] == ["# Look first: dialtune doctor rl my.yaml", "# Train:      dialtune rl my.yaml"]
        assert head[2].endswith("dialtune config explain rl")


@pytest.mark.parametrize(("task", "method"), EVERY)
def test_every_recipe_makes_two_updates_on_tiny_weights(task, method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["init", "--task", task, "--method", method, "--model", str(start_policy("llama"))]
    assert run_command(command) == 0
    small = ["max_steps=2", "output_dir=run", "max_prompt_length=128", "bf16=false", "per_device_train_batch_size=2"]
    small += [f"data.{name}={file}" for name, file in data().items()]
    if method != "sft":  # a tiny model's noise is neither toxic nor relevant, so only the length is rewarded
        small += ["rewards={length: 1.0}", "constraint=null", "alarm_scorer=null", "rollout_batch_size=4"]
        small += ["max_completion_length=24", "num_generations=4", "value_warmup_steps=0"]
    sets = [part for text in small for part in ("--set", text)]
    assert run_command(["sft" if method == "sft" else "rl", "recipe.yaml", *sets]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows][-2:] == [1, 2]


@pytest.mark.parametrize(
    ("model", "template"),
    [
        ("google/flan-t5-base", "summarize-flan"),
        ("google-t5/t5-small", "summarize-t5"),
        ("facebook/bart-large", "plain"),
        ("google/pegasus-xsum", "plain"),
        ("smollm2-135m", None),
        ("Qwen/Qwen2.5-0.5B-Instruct", None),
        ("mBART50-team/other", None),  # only the last part is the model's own name
    ],
)
def test_a_published_model_is_asked_as_it_was_trained(model, template):
    assert yaml.safe_load(write_recipe("summarize", model)).get("template") == template
    assert "template" not in yaml.safe_load(write_recipe("respond", model))


def test_a_model_that_was_trained_here_is_asked_as_it_was_then(tmp_path):
    checkpoint, run = tmp_path / "checkpoint-2", tmp_path / "run"
    checkpoint.mkdir()
    (checkpoint / "dialtune.json").write_text('{"template": "plain"}')
    run.mkdir()
    (run / "config.yaml").write_text("model: m\ntemplate: summarize-t5\ndata: {train: packaged:train}\n")
    for folder, template in ((checkpoint, "plain"), (run, "summarize-t5"), (tmp_path, None)):
        text = write_recipe("detoxify", str(folder))
        assert yaml.safe_load(text).get("template") == template


def test_rows_of_ones_own_choose_no_checkpoint_unless_they_are_named():
    config = load_any(write_recipe("summarize", "m", data=("my.jsonl", None)))
    assert (config.data.train, config.data.validation) == ("my.jsonl", None)
    config = load_any(write_recipe("detoxify", "m", data=("my.jsonl", "v.jsonl")))
    assert (config.data.train, config.data.validation) == ("my.jsonl", "v.jsonl")
    config = load_any(write_recipe("detoxify", "m"))
    assert (config.data.train, config.data.validation) == ("packaged:train:heated", "packaged:validation:heated")


def load_any(text):
    from dialtune.config.loading import check_rl_text, check_text

    return (check_rl_text if "\nmethod:" in text else check_text)(text, "r.yaml")


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1))
def test_any_name_survives_being_written(name):
    config = load_any(write_recipe("summarize", f"org/{name}", data=(name, name)))
    assert (config.model, config.data.train, config.data.validation) == (f"org/{name}", name, name)


@pytest.mark.parametrize(
    ("task", "method", "message"),
    [
        ("sumarize", None, "task: got 'sumarize'; known: summarize, respond, detoxify"),
        ("summarize", "dpo", "method: got 'dpo'; known: sft, grpo, rloo, ppo"),
    ],
)
def test_an_unknown_name_is_refused(task, method, message):
    with pytest.raises(ConfigError) as caught:
        write_recipe(task, "m", method=method)
    assert str(caught.value) == message


def test_the_start_policy_of_a_packaged_recipe_is_asked_as_it_was_trained():
    flan = load_rl_config("detoxify-flan-t5-base")
    assert flan.template == load_any_config("summarize-flan-t5-base").template
    assert load_rl_config("detoxify-bart-large").template == load_any_config("summarize-bart-large").template
