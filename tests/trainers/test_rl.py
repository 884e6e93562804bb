"""The loop of reinforcement learning: it learns, and what must not matter to it does not."""

from __future__ import annotations

import itertools
import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl_tiny import (
    CAP,
    KINDS,
    LORA,
    data,
    letter_reward,
    rl_config,
    rollout_for,
    start_policy,
    start_weights,
    trained,
    unexamined,
    updates,
    weights_of,
)
from torch import Tensor

from dialtune.config.rl_schema import RLConfig
from dialtune.models.base import Query, Sampling
from dialtune.rl import judging
from dialtune.rl.health import Health
from dialtune.rl.judging import COLUMNS
from dialtune.rl.rollouts import Rollout
from dialtune.runs import RunFolder, read_rows
from dialtune.trainers import rl, rl_run
from dialtune.trainers.group import GroupMethod
from dialtune.trainers.method import Measured
from dialtune.trainers.rl import Clock, Pool, RLState
from dialtune.trainers.rl_run import Prepared, prepare
from dialtune.types import Example, Message

METHODS = ("grpo", "ppo", "rloo")


pytestmark = pytest.mark.usefixtures("one_thread")


# it learns


@pytest.mark.parametrize(
    ("kind", "lora", "method"),
    [
        pytest.param(
            kind, lora, method, id=f"{kind}-{'lora' if lora else 'full'}-{method}",
            marks=[] if lora == place % 2 and METHODS[place % 3] == method else [pytest.mark.slow],
        )
        for place, kind in enumerate(KINDS) for lora in (False, True) for method in METHODS
    ],
)  # fmt: skip
def test_a_reward_that_counts_a_letter_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lora: bool, method: str
) -> None:
    monkeypatch.setattr(Health, "check", lambda self, record: None)  # it would stop a policy that repeats a letter
    result = trained(
        kind, tmp_path / "run", method=method, lora=LORA if lora else None, max_steps=20, num_generations=8,
        learning_rate=1e-2 if lora else 3e-3, beta=0.01, seed=1,
    )  # fmt: skip
    letter = [row["letter"] for row in updates(tmp_path / "run")]
    start = json.loads((result / "rl_state.json").read_text())["judging"]["start"]["letter"]
    assert letter[0] < 1.5 * start
    assert sum(letter[-5:]) / 5 > 1.25 * start


@pytest.mark.parametrize("method", METHODS)
def test_a_vanishing_learning_rate_moves_nothing_and_the_ratio_is_one(tmp_path: Path, method: str) -> None:
    result = trained(
        "llama", tmp_path / "run", method=method, learning_rate=1e-30, num_iterations=2, num_minibatches=2, max_steps=5
    )
    start = start_weights("llama")
    assert all(weights_of(result)[name].equal(weight) for name, weight in start.items())
    for row in updates(tmp_path / "run"):
        assert row["ratio_min"] == pytest.approx(1, abs=1e-5)
        assert row["ratio_max"] == pytest.approx(1, abs=1e-5)
        assert row["abs_kl"] < 1e-5
        assert row["grad_norm"] > 0


# what must not matter


@pytest.mark.parametrize("kind", ["llama", pytest.param("bart", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_a_micro_batch_does_not_change_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, kind: str
) -> None:
    unexamined(monkeypatch)
    found = []
    for size in (1, 2, 4):
        # A large epsilon, so that Adam does not blow the rounding of small gradients up to the size of a step.
        result = trained(
            kind, tmp_path / str(size), method=method, per_device_train_batch_size=size, max_steps=2,
            num_minibatches=1, num_iterations=2, adam_epsilon=1e-3, loss_type="sequence",
        )  # fmt: skip
        found.append(weights_of(result))
    for other in found[1:]:
        for name, weight in found[0].items():
            torch.testing.assert_close(other[name], weight, atol=1e-5, rtol=0, msg=name)
    start = start_weights(kind)
    assert max(float((found[0][name] - start[name]).abs().max()) for name in start) > 1e-4


def gradient_of(prepared: Prepared, rollout: Rollout) -> Tensor:
    method, everything = prepared.method, list(range(len(rollout.example_ids)))
    method.begin(rollout, 0.05)
    denominator = method.start_update(everything)
    loss = method.loss_sum(everything, Measured(), policy_is_frozen=False) / denominator
    method.trained.zero_grad(set_to_none=True)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in method.trained.parameters() if p.grad is not None])


@pytest.mark.parametrize("old", [False, True], ids=["one pass", "later passes"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prompt_gives_the_loss_of_repeated_prompts(
    monkeypatch: pytest.MonkeyPatch, kind: str, method: str, old: bool
) -> None:
    """The shared prompt, for the loss itself: log-probs within 1e-5, gradients within 1e-4 of the whole."""
    config = rl_config(start_policy(kind), "unused", method=method, num_generations=5)
    prepared = prepare(config, [letter_reward()])
    model: Any = prepared.model
    rollout = rollout_for(prepared, old=old or method == "ppo")
    shared, states = gradient_of(prepared, rollout), model.states

    def logprobs() -> Tensor:
        with torch.no_grad():
            return model.logprobs(rollout.query, rollout.response, rollout.mask, sampleable=True)  # type: ignore[no-any-return]

    together = logprobs()
    calls = []

    def repeated(query: Query, response: Tensor, mask: Tensor) -> Tensor:
        times = len(response) // len(query.ids)
        calls.append(times)
        one = Query(query.ids.repeat_interleave(times, 0), query.mask.repeat_interleave(times, 0))
        return states(one, response, mask)  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "states", repeated)
    apart = gradient_of(prepared, rollout)
    torch.testing.assert_close(together, logprobs(), atol=1e-5, rtol=0)
    assert set(calls) == {5}
    assert float(shared.norm()) > 0
    assert float((shared - apart).norm() / apart.norm()) < 1e-4


@pytest.mark.parametrize(
    ("kind", "lora"), [("gpt2", None), ("t5", LORA), pytest.param("llama", LORA, marks=pytest.mark.slow)]
)
def test_recomputed_activations_give_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, lora: Any
) -> None:
    """transformers recomputes in training mode only, and keeps no cache then: sampling must be outside it."""
    unexamined(monkeypatch)
    opened = rl_run.open_for_training
    modes: list[tuple[bool, bool]] = []

    def watched(*args: Any) -> Any:
        model = opened(*args)
        layer = next(part for part in model.core.modules() if hasattr(part, "gradient_checkpointing"))
        layer.register_forward_hook(
            lambda part, *a: modes.append((part.gradient_checkpointing and part.training, torch.is_grad_enabled()))
        )
        return model

    monkeypatch.setattr(rl_run, "open_for_training", watched)
    found = []
    for recompute in (False, True):
        modes.clear()
        result = trained(
            kind, tmp_path / str(recompute), lora=lora, gradient_checkpointing=recompute, max_steps=2, adam_epsilon=1e-3
        )
        assert {mode for mode, grad in modes if grad} == {recompute}
        assert {mode for mode, grad in modes if not grad} == {False}
        found.append(weights_of(result))
    for name, plain in found[0].items():
        torch.testing.assert_close(found[1][name], plain, atol=1e-5, rtol=0, msg=name)


# every setting


def combinations() -> list[dict[str, Any]]:
    """Every method with every normaliser, scale and truncation that the recipe allows."""
    found = []
    for method in METHODS:
        for loss_type in ("constant", "tokens", "sequence"):
            for scale in ("none", "batch", "group") if method == "grpo" else ("none",):
                for truncation in ("penalise", "mask", *(["bootstrap"] if method == "ppo" else [])):
                    found.append(
                        {"method": method, "loss_type": loss_type, "scale_rewards": scale, "truncation": truncation}
                    )
    return found


@pytest.mark.parametrize("settings", combinations(), ids=lambda s: "-".join(s.values()))
def test_every_combination_of_settings_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    unexamined(monkeypatch)
    trained(
        "gpt2", tmp_path / "run", **settings, max_steps=3, num_minibatches=2, rollout_batch_size=2, num_generations=2,
        max_completion_length=6, kl_target=2.0, epsilon_high=0.3, weight_decay=0.1,
    )  # fmt: skip
    rows = updates(tmp_path / "run")
    assert [row["rollout"] for row in rows] == [0, 0, 1]
    assert all(row["skipped"] is None and math.isfinite(row["loss"]) for row in rows)
    assert any(row["grad_norm"] > 0 for row in rows)


def test_a_record_says_what_the_design_asks_for(tmp_path: Path) -> None:
    trained(
        "t5", tmp_path / "run", method="ppo", max_steps=2, num_iterations=2, data=data(), eval_steps=1,
        constraint={"qualities": ["rougeL"], "baseline_prompts": 16},
    )  # fmt: skip
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    wanted = {
        *("reward", "reward_std", "letter", "length", "rougeL", "kl", "kl_k3", "kl_per_sequence", "abs_kl", "entropy"),
        *("lambda:rougeL", "ema:rougeL", "tau:rougeL", "lambda:length_min", "lambda:length_max"),
        *("ratio_mean", "ratio_min", "ratio_max", "clip_fraction", "frac_zero_std", "tokens", "tokens_p95"),
        *("truncated", "empty", "distinct_2", "identical", "value_loss", "explained_variance", "grad_norm"),
        *("learning_rate", "skipped", "n_skipped", "bad_rewards", "sample_score_gap", "beta", "loss"),
        *("generate_s", "reward_s", "ref_s", "old_s", "update_s", "step_s", "tokens_per_s"),
        *("eval_reward", "eval_objective", "eval_tokens", "eval_empty", "eval_acceptable", "eval_rougeL_ratio_low"),
    }
    assert wanted <= rows[1].keys()
    own = {"letter", "length", "rougeL"}  # by the name of a reward or a quality
    others = {key for key in rows[1] if not key.endswith("_s") and not key.startswith("eval_") and ":" not in key}
    assert others - own <= COLUMNS
    assert {key for key in rows[0] if key != "step" and not key.startswith("eval_")} == set()


# steering


def test_a_multiplier_rises_while_its_bound_is_not_met_and_is_in_the_log(tmp_path: Path) -> None:
    """Thrice the start's length cannot be had in four updates; being longer than that is no danger."""
    constraint = {
        "qualities": [], "length": (3.0, 4.0), "baseline_prompts": 16, "learning_rate": 0.5, "multiplier": 0.0,
    }  # fmt: skip
    trained("gpt2", tmp_path / "run", constraint=constraint, max_steps=4)
    rows = updates(tmp_path / "run")
    low = [row["lambda:length_min"] for row in rows]
    assert low[0] == 0
    assert all(after > before for before, after in itertools.pairwise(low))
    assert {row["lambda:length_max"] for row in rows} == {0}
    assert all(row["ema:length_min"] < row["tau:length_min"] for row in rows)
    saved = json.loads((tmp_path / "run" / "checkpoint-4" / "rl_state.json").read_text())
    by_name = {m["name"]: m["value"] for m in saved["judging"]["constraint"]["multipliers"]}
    assert by_name["length_min"] > low[-1]  # it moved once more after the last record


def test_a_multiplier_moves_once_per_rollout(tmp_path: Path) -> None:
    constraint = {"qualities": [], "length": (3.0, 4.0), "baseline_prompts": 16}
    trained("gpt2", tmp_path / "run", constraint=constraint, num_iterations=2, num_minibatches=2, max_steps=9)
    by_rollout: dict[int, set[float]] = {}
    for row in updates(tmp_path / "run"):
        by_rollout.setdefault(row["rollout"], set()).add(row["lambda:length_min"])
    assert [len(values) for values in by_rollout.values()] == [1, 1, 1]
    assert len(set.union(*by_rollout.values())) == 3


@pytest.mark.parametrize(("method", "expected"), [("grpo", [-0.15, 0.15]), ("rloo", [-0.3, 0.3])])
def test_a_completion_pays_for_its_distance_from_the_start_policy(method: str, expected: list[float]) -> None:
    """Rewards alike; the first completion is 0.4 + 0.2 nats likelier than under the start policy, beta 0.5."""
    group = GroupMethod(SimpleNamespace(module=None), rl_config("tiny", "out", method=method, beta=0.5))  # type: ignore[arg-type]
    group.rollout = SimpleNamespace(  # type: ignore[assignment]
        group=2, rewards=torch.ones(2), valid=torch.tensor([True, True]), ref_logprobs=torch.full((2, 3), -2.0),
        mask=torch.tensor([[True, True, False]] * 2),
    )  # fmt: skip
    old = torch.tensor([[-1.6, -1.8, 9.0], [-2.0, -2.0, 9.0]])  # the last token is padding
    assert group._advantages(torch.arange(2), old).tolist() == pytest.approx(expected)


def test_beta_follows_its_target_and_is_fixed_without_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unexamined(monkeypatch)
    trained("gpt2", tmp_path / "fixed", max_steps=3)
    assert {row["beta"] for row in updates(tmp_path / "fixed")} == {0.05}
    trained("gpt2", tmp_path / "free", max_steps=3, kl_target=50.0)
    assert [row["beta"] for row in updates(tmp_path / "free")] == pytest.approx([0.05, 0.05 * 0.98, 0.05 * 0.98**2])


def test_without_a_kl_in_the_objective_it_is_still_measured(tmp_path: Path) -> None:
    """It was once taken against a reference of zeros: -20 nats at every update, which a stop rule took for a fault."""
    trained("gpt2", tmp_path / "run", beta=0, kl_off=True, max_steps=7)
    rows = updates(tmp_path / "run")
    assert len(rows) == 7
    assert rows[0]["kl_per_sequence"] == pytest.approx(0, abs=1e-4)
    assert all(abs(row["kl_per_sequence"]) < 3 for row in rows)


def test_later_passes_report_the_kl_of_the_policy_that_sampled(tmp_path: Path) -> None:
    """Of a policy that moved since, samples of the old one show less than nothing."""
    trained("gpt2", tmp_path / "run", num_iterations=5, max_steps=10, learning_rate=3e-3, num_generations=8)
    rows = updates(tmp_path / "run")
    for rollout in (0, 1):
        values = {round(row["kl_per_sequence"], 4) for row in rows if row["rollout"] == rollout}
        assert len(values) == 1
    moved = [row["abs_kl"] for row in rows[:5]]
    assert moved[0] < 1e-5 < 0.01 < moved[-1]


def test_the_best_checkpoint_is_the_best_of_those_that_lost_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unexamined(monkeypatch)
    verdicts = iter([(0.9, True), (0.5, True), (0.1, False), (0.6, True)])
    monkeypatch.setattr(
        judging.Judging, "verdict",
        lambda *a: dict(zip(("eval_objective", "eval_acceptable"), next(verdicts), strict=True)),
    )  # fmt: skip
    result = trained("gpt2", tmp_path / "run", max_steps=3, data=data(), eval_steps=1, save_total_limit=1)
    assert result.name == "checkpoint-1"  # 0.5, kept although newer ones were written
    assert list(RunFolder(tmp_path / "run").checkpoints()) == [1, 3]


def test_a_run_that_was_never_shown_to_keep_what_it_must_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unexamined(monkeypatch)
    monkeypatch.setattr(judging.Judging, "verdict", lambda *a: {"eval_objective": 0.1, "eval_acceptable": False})
    told: list[str] = []
    events = lambda kind, facts: told.append(facts["text"]) if kind == "note" else None  # noqa: E731
    result = trained("gpt2", tmp_path / "run", max_steps=2, data=data(), eval_steps=1, on_event=events)
    assert result.name == "checkpoint-2"
    assert told[-1] == "no checkpoint was shown to keep what it must on validation: the last counts, checkpoint-2"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Sampling(max_new_tokens=CAP)),
        ({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, Sampling(CAP, temperature=0.7, top_p=0.9)),
        ({"num_beams": 2, "max_new_tokens": 3}, Sampling(3, num_beams=2)),
    ],
)
def test_validation_texts_are_decoded_as_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], expected: Sampling
) -> None:
    unexamined(monkeypatch)
    used = []
    real = rl_run.generate

    def watched(model: Any, prompts: Any, sampling: Sampling, **rest: Any) -> Any:
        used.append(sampling)
        return real(model, prompts, sampling, **rest)

    monkeypatch.setattr(rl_run, "generate", watched)
    trained("gpt2", tmp_path / "run", max_steps=1, data=data(), eval_steps=1, generation=asked)
    assert used == [expected, expected]  # the start policy, then the checkpoint


def test_a_verdict_without_a_number_chooses_nothing() -> None:
    state = RLState(step=3)
    assert rl._note_best(state, {"eval_objective": None, "eval_acceptable": True}) == state
    assert rl._note_best(state, {}) == state


# prompts


@given(n=st.integers(1, 12), size=st.integers(1, 30), rollouts=st.integers(1, 12), seed=st.integers(0, 3))
def test_every_row_comes_once_before_any_comes_again(n: int, size: int, rollouts: int, seed: int) -> None:
    pool = Pool([Example(str(i), (Message("user", "x"),)) for i in range(n)], [], seed)
    drawn = [row for number in range(rollouts) for row in pool.draw(number, size)]
    assert len(drawn) == rollouts * size
    for start in range(0, len(drawn), n):
        part = drawn[start : start + n]
        assert len(set(part)) == len(part)
    assert pool.draw(rollouts - 1, size) == drawn[-size:]  # a function of its number alone


def test_orders_differ_from_epoch_to_epoch_and_from_seed_to_seed() -> None:
    rows = [Example(str(i), (Message("user", "x"),)) for i in range(20)]
    orders = [Pool(rows, [], seed).draw(number, 20) for seed in (0, 1) for number in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_a_pool_smaller_than_a_rollout_is_asked_twice_with_other_draws(tmp_path: Path) -> None:
    trained("gpt2", tmp_path / "run", data={"train": data()["train"], "max_train_rows": 3}, max_steps=1)
    rows = read_rows(tmp_path / "run" / "rollouts.jsonl")
    by_prompt = [[row["token_ids"] for row in rows[p * 4 : p * 4 + 4]] for p in range(4)]
    ids = [rows[p * 4]["example_id"] for p in range(4)]
    assert len(set(ids)) == 3
    first, again = (place for place in range(4) if ids.count(ids[place]) == 2)
    assert by_prompt[first] != by_prompt[again]


def test_minibatches_hold_every_prompt_once_per_pass() -> None:
    config = rl_config("m", "o", rollout_batch_size=7, num_minibatches=3, num_iterations=2)
    loop: Any = type("L", (), {"config": config})()
    passes = [[rl._Loop._minibatch(loop, 5, place) for place in range(start, start + 3)] for start in (0, 3)]
    for parts in passes:
        assert sorted(row for part in parts for row in part) == list(range(7))
        assert [len(part) for part in parts] == [3, 2, 2]
    assert passes[0] != passes[1]


def test_the_seed_of_the_data_is_the_order_of_prompts_also_when_it_is_zero() -> None:
    for settings, seed in (({"data_seed": 0}, 0), ({"data_seed": 7}, 7), ({}, 3)):
        config: RLConfig = rl_config(start_policy("gpt2"), "unused", **settings).resolve()
        assert prepare(config, [letter_reward()]).pool.seed == seed


def test_clocks_add_up_by_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 5.0, 7.0, 10.0, 10.5])
    monkeypatch.setattr(rl.time, "perf_counter", lambda: next(now))
    clock = Clock()
    for phase in ("a", "b", "a"):
        with clock(phase):
            pass
    assert clock.seconds == {"a": 1.5, "b": 2.0}


def test_what_ran_before_in_the_process_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither weights nor the generators that a reward's own code may draw from."""
    unexamined(monkeypatch)
    found = []
    for place in (1, 2):
        random.seed(place)
        np.random.seed(place)
        torch.manual_seed(place)
        result = trained("gpt2", tmp_path / str(place), max_steps=2)
        found.append((result / "model.safetensors").read_bytes() + (result / "rng.safetensors").read_bytes())
    assert found[0] == found[1]
