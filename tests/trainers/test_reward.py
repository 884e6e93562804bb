"""The loop of a learned reward: each dialogue once per epoch, the best state kept, a resume like the unbroken run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reward_tiny import recipe

from dialtune.checkpoints import newest_checkpoint, open_checkpoint
from dialtune.errors import InterruptedRunError
from dialtune.runs import RunFolder, read_rows
from dialtune.trainers import reward as module
from dialtune.trainers.reward import RewardPlan, train_reward, validation_scores
from dialtune.trainers.reward_network import RewardNetwork
from dialtune.trainers.reward_run import Prepared, prepare, readable_texts
from dialtune.types import Example, Message


def example(dialogue: str) -> Example:
    meta = {"dialogue": dialogue, "turn": 1}
    return Example(f"{dialogue}#1", (Message("user", f"about {dialogue}"),), (f"yes {dialogue}",), meta)


@given(st.integers(1, 40), st.integers(2, 9), st.integers(0, 3))
@settings(max_examples=60)
def test_every_dialogue_comes_once_per_epoch_and_none_alone(n: int, size: int, epoch: int):
    plan = RewardPlan(tuple((example(f"d{k}"),) for k in range(n)), recipe(per_device_train_batch_size=size))
    batches = plan.batches(epoch)
    assert sorted(row for batch in batches for row in batch) == list(range(n))
    assert plan.steps_per_epoch == len(batches)
    if n > 1:
        assert min(map(len, batches)) >= 2


def test_another_epoch_brings_other_batches_and_other_comparisons():
    plan = RewardPlan(tuple((example(f"d{k}"),) for k in range(12)), recipe(comparisons=2))
    assert plan.batches(0) == plan.batches(0) != plan.batches(1)
    everybody = list(range(12))
    assert plan.lessons(0, everybody) == plan.lessons(0, everybody) != plan.lessons(1, everybody)


def test_the_plan_ends_by_epochs_or_by_steps():
    dialogues = tuple((example(f"d{k}"),) for k in range(20))
    assert RewardPlan(dialogues, recipe(num_train_epochs=2.5)).total_steps == 8  # 3 batches of 8, 8 and 4
    assert RewardPlan(dialogues, recipe(max_steps=5)).total_steps == 5


# the loop


def prepared_for(**changes: Any) -> Prepared:
    return prepare(recipe(**changes))


def train(prepared: Prepared, folder: Path, **more: Any) -> module.RewardState:
    run = RunFolder(folder)
    prepared.network.remember(readable_texts(prepared))  # as a run does: what is read together has the same last bits
    with run.lock():
        return train_reward(prepared.network, prepared.plan, prepared.choosing, run, **more)


def test_it_learns_and_writes_a_row_per_update(tmp_path: Path):
    prepared = prepared_for(num_train_epochs=4)
    prepared.network.remember(readable_texts(prepared))
    before = validation_scores(prepared.network, prepared.choosing, prepared.config)
    state = train(prepared, tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 17))
    evaluated = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in evaluated] == [4, 8, 12, 16]
    assert state.best_value == min(row["eval_loss"] for row in evaluated) < before["eval_loss"]
    assert state.best_step == min(evaluated, key=lambda row: row["eval_loss"])["step"]
    assert all(row["loss"] == pytest.approx(row["loss:contexts"]) and row["n_pairs"] > 0 for row in rows)
    assert all(0 <= row["eval_accuracy"] <= 1 for row in evaluated)


def test_the_best_state_is_the_one_of_the_lowest_loss_and_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    losses = iter([0.9, 0.2, 0.5])
    states: list[dict[str, torch.Tensor]] = []

    def scores(network: RewardNetwork, *_rest: object) -> dict[str, float]:
        states.append(network.tensors())
        return {"eval_loss": next(losses)}

    monkeypatch.setattr(module, "validation_scores", scores)
    state = train(prepared_for(), tmp_path)
    assert (state.best_step, state.best_value) == (8, 0.2)
    assert state.best is not None
    assert all(torch.equal(state.best[name], states[1][name]) for name in states[1])
    assert not torch.equal(state.best["head.out"], states[2]["head.out"])


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4, "dropout": 0.1}])
def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path, lora: dict[str, float] | None):
    changes: dict[str, Any] = {"lora": lora, "max_steps": 5, "save_steps": 1, "save_total_limit": None, "eval_steps": 2}
    changes["signals"], changes["ratings"] = {"contexts": 1.0, "ratings": 0.5}, ["witty"]
    whole = train(prepared_for(**changes), tmp_path / "whole")
    rows = read_rows(tmp_path / "whole" / "metrics.jsonl")
    for step in (1, 2, 4, 5):
        start = open_checkpoint(tmp_path / "whole" / f"checkpoint-{step}")
        (tmp_path / str(step)).mkdir()
        metrics = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
        (tmp_path / str(step) / "metrics.jsonl").write_bytes(metrics)  # longer than at the checkpoint: cut back
        resumed = train(prepared_for(**changes), tmp_path / str(step), start=start)
        assert (resumed.step, resumed.best_step, resumed.best_value) == (whole.step, whole.best_step, whole.best_value)
        assert whole.best is not None
        assert resumed.best is not None
        assert all(torch.equal(whole.best[name], resumed.best[name]) for name in whole.best)
        again = read_rows(tmp_path / str(step) / "metrics.jsonl")
        assert [without_clock(row) for row in again] == [without_clock(row) for row in rows]


def without_clock(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith("_s")}


def test_a_signal_stops_after_the_update_with_a_checkpoint(tmp_path: Path):
    def stop(kind: str, facts: Any) -> None:
        if kind == "step" and facts["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(
        InterruptedRunError, match=r"stopped by signal 15 after update \d of 12; checkpoint-\d is saved"
    ):
        train(prepared_for(), tmp_path, on_event=stop)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step in (2, 3)  # before any evaluation: there is no best state yet
    assert found.tensors("best") == {}
    state = train(prepared_for(), tmp_path, start=found)
    assert state.step == 12
    assert state.best is not None


def test_a_batch_without_a_lesson_changes_nothing(tmp_path: Path):
    prepared = prepared_for(signals={"ratings": 1.0}, ratings=["witty"], max_steps=1, weight_decay=0.0)
    unrated = tuple((example(f"d{k}"),) for k in range(4))
    before = {name: value.detach().clone() for name, value in prepared.network.trained()}
    run = RunFolder(tmp_path)
    with run.lock():
        train_reward(prepared.network, RewardPlan(unrated, prepared.config), prepared.choosing, run)
    assert all(torch.equal(before[name], value) for name, value in prepared.network.trained())
    (row,) = read_rows(run.metrics)
    assert row["loss"] == 0.0
