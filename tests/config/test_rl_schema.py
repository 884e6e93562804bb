"""The recipe of reinforcement learning: documented, strict, and its contradictions refused with a way out."""

from __future__ import annotations

import re
from typing import get_args

import pytest
from pydantic import ValidationError

from dialtune.cli.app import run_command
from dialtune.config.loading import explain_topic, load_any_config, load_rl_config, to_yaml
from dialtune.config.rl_schema import ConstraintConfig, QualityName, RewardName, RLConfig
from dialtune.config.schema import RunConfig, allowed, explain, section_of, walk
from dialtune.errors import ConfigError


def build(**values: object) -> RLConfig:
    return RLConfig.model_validate({"model": "m", "data": {"train": "t", "validation": "v"}, **values})


def test_every_field_says_in_one_line_what_it_is():
    fields = list(walk(RLConfig))
    assert len(fields) > 70
    for key, field in fields:
        text = field.description or ""
        assert len(text) >= 10, key
        assert "\n" not in text, key
        assert text.endswith("."), key


def test_every_default_is_inside_its_own_range():
    for key, field in walk(RLConfig):
        if not field.is_required() and section_of(field) is None:
            *sections, name = key.split(".")
            values: dict[str, object] = {name: field.default}
            for section in reversed(sections):
                needed = {"train": "t", "validation": "v"} if section == "data" else {}
                values = {section: needed | values}
            build(**values)


def test_the_sections_are_those_of_fine_tuning_and_the_constraint():
    sections = [key for key, field in walk(RLConfig) if section_of(field)]
    assert sections == ["data", "data.turns", "lora", "generation", "constraint"]


def test_a_recipe_is_frozen_and_so_is_its_constraint():
    with pytest.raises(ValidationError, match="frozen"):
        build().beta = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        build().constraint.delta = 0.5


def test_what_only_fine_tuning_has_is_unknown_here():
    for key in set(RunConfig.model_fields) - set(RLConfig.model_fields):
        with pytest.raises(ValidationError, match="Extra inputs"):
            build(**{key: 1})


def test_the_defaults_are_those_of_the_design():
    config = build()
    assert (config.method, config.num_generations, config.num_iterations, config.num_minibatches) == ("grpo", 8, 1, 1)
    assert (config.loss_type, config.scale_rewards, config.truncation) == ("constant", "none", "penalise")
    assert (config.gamma, config.gae_lambda, config.vf_coef, config.value_warmup_steps) == (1.0, 0.95, 0.1, 10)
    assert config.constraint == ConstraintConfig()
    assert (config.constraint.delta, config.constraint.length) == (0.02, (0.9, 1.2))
    assert (config.constraint.learning_rate, config.constraint.multiplier, config.constraint.max_multiplier) == (
        0.1,
        1,
        50,
    )
    assert config.updates_per_rollout == 1
    assert build(num_iterations=3, num_minibatches=2).updates_per_rollout == 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beta": 0}, "nothing then holds the policy near its start; set kl_off: true if that is meant"),
        ({"kl_off": True}, "kl_off is true as well; keep one of the two"),
        ({"num_generations": 1}, "grpo needs at least 2, its baseline is the other completions of a prompt; try 4"),
        ({"method": "rloo", "num_generations": 1}, "rloo needs at least 2"),
        ({"rollout_batch_size": 2, "num_minibatches": 3}, "a rollout has 2 prompts (rollout_batch_size)"),
        ({"method": "rloo", "scale_rewards": "group"}, "rloo does not divide by a std; set method: grpo"),
        ({"method": "ppo", "scale_rewards": "batch"}, "ppo does not divide by a std"),
        ({"truncation": "bootstrap"}, "bootstrap needs the value head of method: ppo; use penalise or mask"),
        ({"method": "rloo", "truncation": "bootstrap"}, "bootstrap needs the value head"),
        ({"rewards": {"toxcity": 1.0}}, "no reward 'toxcity'; known: toxicity, relevance,"),
        ({"rewards": {"length:words": 1.0}}, "no reward 'length:words'"),
        ({"rewards": {"length": 0.0}}, "length has weight 0; leave it out"),
        ({"rewards": {}}, "at least 1 item"),
        ({"rewards": {"toxicity:ngrams": 1.0}}, "a reward cannot watch itself, name another there"),
        ({"alarm_scorer": "minilm"}, "toxicity is the alarm_scorer too"),
        ({"alarm_scorer": "org/name", "rewards": {"toxicity:org/name#hate": 1.0}}, "a reward cannot watch itself"),
        ({"constraint": {"qualities": ["bleu"]}}, "Input should be"),
        ({"alarm_scorer": "toxicity"}, "a reward cannot watch itself"),
        ({"alarm_scorer": "org/name#hate", "rewards": {"toxicity:org/name#hate": 1.0}}, "a reward cannot watch itself"),
        ({"rewards": {"toxicity": -1.0}}, "toxicity has weight -1, which pays for abuse"),
        ({"kl_off": True, "beta": 0, "kl_target": 3.0}, "beta is 0 and adapts by factors"),
        ({"constraint": {"length": (1.2, 0.9)}}, "the least, 0 or more, then the most, above it"),
        ({"constraint": {"length": (-1.0, 0.5)}}, "the least, 0 or more"),
        ({"constraint": {"multiplier": 60.0}}, "the multipliers start at 60 (multiplier), above their cap"),
        ({"constraint": {"delta": 1.0}}, "less than 1"),
        ({"max_steps": -1}, "greater than or equal to 1"),
        ({"temperature": 0}, "greater than 0"),
        ({"fp16": True, "model": "google/flan-t5-base"}, "overflows float16"),
        ({"data": {"train": "t"}, "load_best_model_at_end": True}, "needs data.validation"),
    ],
)  # fmt: skip
def test_values_that_contradict_each_other_are_refused_with_the_reason(values, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        build(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"beta": 0, "kl_off": True},
        {"method": "ppo", "num_generations": 1, "truncation": "bootstrap"},
        {"scale_rewards": "group", "loss_type": "sequence"},
        {"rewards": {"toxicity": 1.0, "toxicity:org/name#hate": 0.5, "relevance": 0.2, "copy": -0.1}},
        {"alarm_scorer": None, "rewards": {"toxicity:ngrams": 1.0}},
        {"constraint": None},
        {"constraint": {"qualities": [], "length": None}},
        {"rollout_batch_size": 4, "num_minibatches": 4},
        {"kl_target": 3.0, "epsilon_high": 0.3},
    ],
    ids=str,
)
def test_what_goes_together_is_accepted(values):
    build(**values)


def test_an_adapter_learns_faster_unless_told_otherwise():
    assert build().resolve().learning_rate == 1e-5
    assert build(lora={}).resolve().learning_rate == 1e-4
    assert build(lora={}).resolve().resolve().learning_rate == 1e-4
    assert build(lora={}, learning_rate=1e-5).resolve().learning_rate == 1e-5


def test_the_upper_clip_is_the_lower_one_unless_given():
    assert build(epsilon=0.1).resolve().epsilon_high == 0.1
    assert build(epsilon=0.1, epsilon_high=0.3).resolve().epsilon_high == 0.3


def test_the_fingerprint_is_of_everything_but_the_folder():
    base = build()
    assert build(output_dir="elsewhere").fingerprint == base.fingerprint
    assert base.resolve().fingerprint == base.fingerprint
    for change in ({"beta": 0.1}, {"rewards": {"length": 1.0}}, {"constraint": {"delta": 0.1}}, {"method": "rloo"}):
        assert build(**change).fingerprint != base.fingerprint


def test_the_names_of_rewards_and_qualities_are_those_of_the_table():
    from dialtune.rewards.table import REWARDS

    assert set(get_args(RewardName)) == set(REWARDS)
    assert set(get_args(QualityName)) <= set(REWARDS)


def test_a_resolved_recipe_is_read_back_the_same(tmp_path):
    config = build(lora={}, rewards={"toxicity:org/name#a label": 1.0, "length": -0.5}).resolve()
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_rl_config(tmp_path / "config.yaml") == config
    assert load_any_config(tmp_path / "config.yaml") == config


def test_a_recipe_with_a_method_is_one_of_reinforcement_learning(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: {train: t}\n")
    assert isinstance(load_any_config(path), RunConfig)
    assert isinstance(load_any_config(path, ["method=rloo"]), RLConfig)


def test_every_problem_is_said_at_once_with_its_place(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "model: m\ndata: {train: t}\nmethod: grop\nnum_generations: 1\nlearning_rte: 1\n"
        "rewards: {toxicty: 1}\nbeta: 0\nconstraint: {qualities: [rouge], dleta: 0.1}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_rl_config(path)
    lines = [line.removeprefix(str(path)) for line in caught.value.problems]
    assert lines[0] == ":3:9: method: got 'grop'; allowed ppo, rloo or grpo; try grpo"
    assert ":5:1: learning_rte: unknown key; did you mean 'learning_rate'?" in lines
    assert any(line.startswith(":6:10: rewards: got {'toxicty': 1") and "no reward 'toxicty'" in line for line in lines)
    assert ":7:7: beta: got 0; nothing then holds the policy near its start; set kl_off: true if that is meant" in lines
    assert any("constraint.qualities" in line and "rouge" in line for line in lines)
    assert ":8:34: constraint.dleta: unknown key; did you mean 'delta'?" in lines
    assert lines[-1] == "6 problems, nothing was run. Every key with its range: dialtune config explain rl"


def test_a_problem_inside_a_section_points_to_that_section(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: {train: t}\nmethod: grpo\nconstraint: {delta: 2}\n")
    with pytest.raises(ConfigError, match=r"dialtune config explain constraint$"):
        load_rl_config(path)


# config explain


def test_explain_rl_gives_every_key_with_range_and_default(capsys):
    assert run_command(["config", "explain", "rl"]) == 0
    out = capsys.readouterr().out
    for key, field in walk(RLConfig):
        assert f"\n{key}: {allowed(field)}; " in f"\n{out}", key
        assert f"\n    {field.description}\n" in out, key
    assert "\nbeta: number, at least 0; default 0.05\n" in out


@pytest.mark.parametrize("topic", ["beta", "constraint", "constraint.delta", "kl_target"])
def test_a_key_that_only_rl_has_is_found_by_its_own_name(topic):
    rows = explain_topic(topic)
    assert rows[0][0] == topic
    assert {row[0] for row in rows} <= {key for key, _ in walk(RLConfig)}


def test_an_unknown_key_is_answered_with_the_closest_of_both():
    with pytest.raises(ConfigError, match="did you mean 'num_generations'"):
        explain_topic("num_generation")


def test_explaining_all_of_rl_is_as_long_as_the_schema():
    assert len(explain("", RLConfig)) == len(list(walk(RLConfig)))
