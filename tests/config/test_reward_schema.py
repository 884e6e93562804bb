"""The recipe of a learned reward: every key documented, ranges held, keys without effect refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dialtune.config.loading import (
    check_reward_text,
    explain_topic,
    load_any_config,
    load_reward_config,
    load_rl_config,
    to_yaml,
)
from dialtune.config.reward_schema import RewardConfig
from dialtune.config.schema import RunConfig, explain, section_of, walk
from dialtune.errors import ConfigError

DATA = {"train": "t", "validation": "v"}


def build(**values: Any) -> RewardConfig:
    return RewardConfig.model_validate({"data": DATA, **values})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(text: str = "") -> str:
    Path("r.yaml").write_text(f"signals: {{contexts: 1.0}}\ndata: {{train: t, validation: v}}\n{text}")
    return "r.yaml"


def test_every_key_has_a_doc_line_and_every_section_is_walked():
    fields = list(walk(RewardConfig))
    assert all(field.description and field.description.endswith(".") for _, field in fields)
    assert len(explain("", RewardConfig)) == len(fields)
    assert {key for key, field in fields if section_of(field)} == {"data", "data.turns", "lora", "generation"}


def test_the_defaults_make_a_frozen_encoder_learn_from_contexts():
    config = build().resolve()
    assert (config.model, config.task, config.signals) == ("all-minilm-l6-v2", "respond", {"contexts": 1.0})
    assert (config.lora, config.learning_rate) == (None, 1e-3)
    assert config.resolve() == config


def test_an_adapter_takes_smaller_steps_unless_told_otherwise():
    assert build(lora={}).resolve().learning_rate == 5e-4
    assert build(lora={}).resolve().resolve().learning_rate == 5e-4
    assert build(lora={}, learning_rate=1e-3).resolve().learning_rate == 1e-3


def test_the_resolved_recipe_is_the_same_run_when_it_is_read_back():
    config = load_reward_config(recipe("lora: {r: 4}\nratings: [witty]\n"))
    again = check_reward_text(to_yaml(config), "config.yaml")
    assert again == config
    assert again.fingerprint == config.fingerprint
    assert config.fingerprint != load_reward_config("r.yaml", ["window=2"]).fingerprint


def test_signals_tell_a_reward_recipe_from_others():
    assert isinstance(load_any_config(recipe()), RewardConfig)
    Path("sft.yaml").write_text("model: m\ndata: {train: t}\n")
    assert isinstance(load_any_config("sft.yaml"), RunConfig)
    Path("none.yaml").write_text("data: {train: t, validation: v}\n")
    assert isinstance(load_any_config("none.yaml", ["signals.ratings=1"]), RewardConfig)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("signals: {context: 1}", "signals.context: got context; allowed mapping of text to number"),
        ("signals: {contexts: 0}", "signals: got {contexts: 0}; contexts has weight 0; a signal counts more than 0"),
        ("signals: {}", "signals: got {}; allowed mapping of text to number, not empty"),
        ("ratings: []", "ratings: got []; allowed list of text, not empty"),
        ("rating_scale: [10, 0]", "rating_scale: got [10, 0]; the first number is the lowest rating"),
        ("window: 0", "window: got 0; allowed integer, at least 1 and at most 16; try 3"),
        ("per_device_train_batch_size: 1", "per_device_train_batch_size: got 1; allowed integer, at least 2; try 32"),
        ("comparison: 4", "comparison: unknown key; did you mean 'comparisons'?"),
        ("lora: {target_modules: [query]}", "an encoder is trained in every linear layer; leave it all-linear"),
        ("model_revision: abc", "model_revision: got abc; has no effect on a reward model; leave it out"),
        ("max_prompt_length: 64", "max_prompt_length: got 64; has no effect on a reward model; leave it out"),
        ("template: chat", "template: got chat; has no effect on a reward model; leave it out"),
        ("generation: {num_beams: 2}", "has no effect on a reward model; leave it out"),
        ("batch_size: 4", "batch_size: unknown key; here it is per_device_train_batch_size"),
    ],
)
def test_a_mistake_is_one_line_with_a_way_out(text: str, line: str):
    base = "" if text.startswith("signals") else "signals: {contexts: 1.0}\n"
    Path("r.yaml").write_text(f"{base}data: {{train: t, validation: v}}\n{text}\n")
    with pytest.raises(ConfigError) as error:
        load_reward_config("r.yaml")
    first = str(error.value).splitlines()[0].replace("'", "").replace('"', "")
    assert first.startswith("r.yaml:")
    assert line.replace("'", "") in first
    assert str(error.value).splitlines()[-1].startswith("1 problem, nothing was run. Every key with its range:")


def test_held_out_rows_must_be_named():
    Path("r.yaml").write_text("signals: {contexts: 1.0}\ndata: {train: t}\n")
    with pytest.raises(
        ConfigError, match=r"a reward is calibrated and reported on rows it never saw; set data\.validation"
    ):
        load_reward_config("r.yaml")
    with pytest.raises(ConfigError, match=r"set data\.validation"):
        load_reward_config(None, data="t")


def test_keys_are_explained_by_topic_and_by_name():
    rows = explain_topic("reward")
    assert {row[0] for row in rows} == {key for key, _ in walk(RewardConfig)}
    ((key, allowed, default, _),) = explain_topic("comparisons")
    assert (key, allowed, default) == ("comparisons", "integer, at least 1", "8")
    with pytest.raises(ConfigError, match="no key 'comparsons'; did you mean 'comparisons'"):
        explain_topic("comparsons")


# the reward in a recipe for reinforcement learning


def rl(rewards: str) -> str:
    Path("rl.yaml").write_text(f"method: grpo\nmodel: m\ndata: {{train: t}}\nrewards: {rewards}\n")
    return "rl.yaml"


def test_a_folder_is_a_reward_of_a_recipe():
    Path("fit").mkdir()
    for name in ("runs/reward", "fit", "./fit"):
        assert load_rl_config(rl(f"{{{name}: 1.0, toxicity: 0.5}}")).rewards == {name: 1.0, "toxicity": 0.5}


def test_a_name_that_is_neither_a_reward_nor_a_folder_is_refused():
    with pytest.raises(ConfigError, match=r"no reward 'fitt'; known: toxicity, .*, or a reward's folder"):
        load_rl_config(rl("{fitt: 1.0}"))
    with pytest.raises(ConfigError, match="no reward ''"):
        load_rl_config(rl("{'': 1.0}"))
