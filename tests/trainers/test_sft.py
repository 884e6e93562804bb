"""The loop: the peers' losses, the head at learned positions only, the best checkpoint, and a row per update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model

from dialtune.config.schema import RunConfig
from dialtune.errors import CheckpointError, DataError
from dialtune.models.lora import attach_lora
from dialtune.runs import RunFolder, read_rows
from dialtune.trainers import sft
from dialtune.trainers.batching import TokenRow, tokenize_rows
from dialtune.trainers.sft import Plan, TrainState, mean_loss, train_sft
from dialtune.types import Message, Prompt

KINDS = ("bart", "gpt2", "llama", "t5")
TARGETS = ["They meet at ten.", "Anna leaves on Monday, because the train is late.", "No.", "The dog jumps again."]


def _rows(model: Any, n: int = 4) -> list[TokenRow]:
    texts = [f"Hello {'again ' * (i % 5)}number {i}." for i in range(n)]
    prompts = [Prompt(str(i), (Message("user", text),), "plain") for i, text in enumerate(texts)]
    return tokenize_rows(model, prompts, [TARGETS[i % 4] for i in range(n)], max_response=64)


def _config(**settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "bf16": False,
        "save_total_limit": None,
        "seed": 3,
    }
    data = {"train": "rows", "validation": "rows"}
    return RunConfig(model="tiny", data=data, **{**defaults, **settings}).resolve()


def _train(model: Any, folder: Path, config: RunConfig, n: int = 4, **more: Any) -> tuple[TrainState, list[Any]]:
    """The final state and metrics.jsonl."""
    run = RunFolder(folder)
    folder.mkdir(exist_ok=True)
    state = train_sft(model, _rows(model, n), config, run, **more)
    return state, read_rows(run.metrics)


def _with_scores(values: Iterable[float], name: str = "eval_loss") -> Callable[[Any], Mapping[str, float]]:
    """An evaluation that gives these values in turn."""
    left = iter(values)
    return lambda model: {"eval_loss": 1.0, name: next(left)}


def _lora(model: Any) -> Any:
    return attach_lora(model, r=8, alpha=16, dropout=0.0, target_modules="all-linear", seed=0)


# the loss


def _peer_losses(model: Any, rows: Sequence[TokenRow], batches: Sequence[Sequence[int]], settings: Any) -> list[float]:
    """transformers' own trainer on the same batches in the same order."""
    from transformers import (
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
        Trainer,
        TrainingArguments,
    )

    ordered = [rows[i] for batch in batches for i in batch]
    if model.info.family == "encoder-decoder":
        trainer, arguments = Seq2SeqTrainer, Seq2SeqTrainingArguments
        columns = [{"input_ids": list(row.query), "labels": list(row.response)} for row in ordered]
    else:
        trainer, arguments = Trainer, TrainingArguments
        columns = [
            {"input_ids": [*row.query, *row.response], "labels": [-100] * len(row.query) + list(row.response)}
            for row in ordered
        ]
    peer = trainer(
        model=model.module,
        args=arguments(**settings, train_sampling_strategy="sequential", use_cpu=True, report_to="none"),
        train_dataset=columns,
        data_collator=DataCollatorForSeq2Seq(model.tokenizer, padding=True),
    )
    peer.train()
    return [entry["loss"] for entry in peer.state.log_history if "loss" in entry]


# transformers 5.23 does not divide T5's loss by the accumulation steps: its own T5 loss ignores num_items_in_batch.
@pytest.mark.parametrize(("kind", "accumulation"), [("llama", 1), ("llama", 2), ("t5", 1)])
def test_losses_and_weights_are_those_of_transformers_trainer(kind, accumulation, tmp_path):
    ours, theirs = make_model(kind), make_model(kind)
    common: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 1e-2,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "warmup_steps": 1,
        "lr_scheduler_type": "linear",
        "max_steps": 4,
    }
    n = 8 * accumulation
    config = _config(**common)
    _, metrics = _train(ours, tmp_path / "ours", config, n=n)
    rows = _rows(theirs, n)
    batches = Plan(tuple(row.length for row in rows), config).batches(0)
    settings = common | {
        "output_dir": str(tmp_path / "theirs"), "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True,
        "remove_unused_columns": False, "logging_nan_inf_filter": False,
    }  # fmt: skip
    losses = _peer_losses(theirs, rows, batches, settings)
    assert len(losses) == 4
    gap = max(abs(row["loss"] - loss) for row, loss in zip(metrics, losses, strict=True))
    assert gap < 1e-5  # 1.4e-6 measured, nats
    for (name, mine), other in zip(ours.module.named_parameters(), theirs.module.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_only_learned_positions_reach_the_head(kind, tmp_path):
    model, seen = make_model(kind), []
    model.core.get_output_embeddings().register_forward_hook(
        lambda _, args, out: seen.append(out.numel() // out.shape[-1])
    )
    _, metrics = _train(model, tmp_path, _config(max_steps=2))
    assert seen == [row["n_tokens"] for row in metrics]
    assert sum(seen) == sum(len(row.response) for row in _rows(model))


@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")  # peft says so about GPT-2 and sets it itself
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_set_is_learned_by_heart(kind, lora, tmp_path):
    model = make_model(kind)
    if lora:  # adapters cannot touch the head, so it must be able to tell tokens apart
        model.core.get_output_embeddings().weight.data.mul_(20 if kind == "t5" else 10)
        model = _lora(model)
    frozen = {name: p.detach().clone() for name, p in model.module.named_parameters() if not p.requires_grad}
    config = _config(max_steps=60, learning_rate=3e-2, per_device_train_batch_size=4, save_steps=60)
    before = mean_loss(model, _rows(model), config)
    _, metrics = _train(model, tmp_path, config)
    after = mean_loss(model, _rows(model), config)
    assert metrics[0]["loss"] == pytest.approx(before, rel=1e-4)
    assert after < before * (0.4 if lora else 0.1)
    assert bool(frozen) == lora
    now = dict(model.module.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in frozen.items())


def test_the_mean_loss_does_not_depend_on_the_batch_and_has_no_dropout():
    model = make_model("t5", dropout=0.5)
    rows = _rows(model, 7)
    found = [mean_loss(model, rows, _config(per_device_eval_batch_size=size)) for size in (1, 3, 16)]
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)
    parts = [(mean_loss(model, [row], _config()), len(row.response)) for row in rows]
    by_tokens = sum(loss * n for loss, n in parts) / sum(n for _, n in parts)
    assert found[0] == pytest.approx(by_tokens, rel=1e-5)


def test_dropout_is_on_again_after_an_evaluation(tmp_path):
    model, modes = make_model("t5", dropout=0.1), []
    model.core.get_encoder().register_forward_hook(lambda module, *a: modes.append(module.training))
    config = _config(max_steps=2, eval_steps=1)
    _train(model, tmp_path, config, evaluate=lambda m: {"eval_loss": mean_loss(m, _rows(m)[:1], config)})
    assert modes == [True, False, True, False]


# what is written


def test_metrics_have_a_row_per_update_and_clocks_end_in_s(tmp_path):
    model = make_model("gpt2")
    config = _config(num_train_epochs=2, max_steps=-1, eval_steps=3, lr_scheduler_type="linear")
    events: list[tuple[str, Any]] = []
    state, metrics = _train(
        model,
        tmp_path,
        config,
        n=7,
        evaluate=_with_scores([2.0, 1.5, 1.0]),
        on_event=lambda kind, facts: events.append((kind, facts)),
    )
    assert [row["step"] for row in metrics] == list(range(1, 9))  # 7 rows by 2 is 4 updates an epoch
    assert [row["epoch"] for row in metrics] == [step / 4 for step in range(1, 9)]
    fields = {
        "step", "epoch", "loss", "learning_rate", "grad_norm", "n_tokens", "skipped", "n_skipped", "tokens_per_s",
        "step_s",
    }  # fmt: skip
    assert set(metrics[0]) == fields
    assert set(metrics[2]) == fields | {"eval_loss"}
    assert [row.get("eval_loss") for row in metrics] == [None, None, 2.0, None, None, 1.5, None, 1.0]
    assert sum(row["n_tokens"] for row in metrics[:4]) == sum(len(row.response) for row in _rows(model, 7))
    total = sum(row["tokens_per_s"] * row["step_s"] for row in metrics[:4])
    assert total == pytest.approx(sum(row.length for row in _rows(model, 7)))
    assert events[0] == ("start", {"total_steps": 8, "steps_per_epoch": 4, "step": 0})
    assert [facts for kind, facts in events if kind == "step"] == metrics
    assert [facts["step"] for kind, facts in events if kind == "save"] == [3, 6, 8]
    assert state.step == 8


def test_two_runs_differ_in_clocks_only(tmp_path):
    found = []
    for name in ("a", "b"):
        _, metrics = _train(make_model("t5", dropout=0.2), tmp_path / name, _config())
        found.append([{key: row[key] for key in row if not key.endswith("_s")} for row in metrics])
    assert found[0] == found[1]


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"^data\.train: no rows to train on; check the file with: dialtune data check"):
        train_sft(make_model("gpt2"), [], _config(), RunFolder(tmp_path))


# how long, and when


@pytest.mark.parametrize(
    ("rows", "settings", "per_epoch", "total"),
    [
        (10, {"max_steps": -1, "num_train_epochs": 3}, 5, 15),
        (11, {"max_steps": -1, "num_train_epochs": 1}, 6, 6),
        (11, {"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": 4}, 2, 2),
        (10, {"max_steps": -1, "num_train_epochs": 0.5}, 5, 3),
        (10, {"max_steps": -1, "num_train_epochs": 0.01}, 5, 1),
        (10, {"max_steps": 7, "num_train_epochs": 3}, 5, 7),
    ],
)
def test_the_plan_counts_updates(rows, settings, per_epoch, total):
    plan = Plan((1,) * rows, _config(**settings))
    assert (plan.steps_per_epoch, plan.total_steps) == (per_epoch, total)


@pytest.mark.parametrize(
    ("every", "steps"), [(0, [2, 4, 6, 7]), (1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (100, [7])]
)
def test_what_is_due_at_intervals_is_due_at_the_end_as_well(every, steps):
    plan = Plan((1,) * 4, _config(max_steps=7))
    assert [step for step in range(1, 8) if plan.is_due(step, every)] == steps


def test_the_order_of_rows_goes_by_data_seed_where_it_is_given():
    def batches(**settings: Any) -> Any:
        return Plan(tuple(range(1, 40)), _config(**settings)).batches(0)

    assert batches(seed=1, data_seed=7) == batches(seed=2, data_seed=7)
    assert batches(seed=1, data_seed=7) != batches(seed=1, data_seed=8)
    assert batches(seed=1) == batches(seed=2, data_seed=1)


def test_each_epoch_visits_every_row_once(tmp_path):
    model, seen = make_model("gpt2"), []
    batch = model.batch

    def noted(queries: Any, responses: Any) -> Any:
        seen.extend(tuple(query) for query in queries)
        return batch(queries, responses)

    model.batch = noted
    config = _config(max_steps=-1, num_train_epochs=2, gradient_accumulation_steps=2)
    _train(model, tmp_path, config, n=7)
    wanted = sorted(row.query for row in _rows(model, 7))
    assert sorted(seen[:7]) == sorted(seen[7:]) == wanted


# the best checkpoint


def test_the_lowest_validation_loss_chooses_and_survives_rotation(tmp_path):
    config = _config(max_steps=6, eval_steps=1, save_total_limit=1)
    state, _ = _train(make_model("gpt2"), tmp_path, config, evaluate=_with_scores([3.0, 1.0, 2.0, 2.0, 2.0, 2.0]))
    assert (state.best_step, state.best_value, state.n_without_better) == (2, 1.0, 4)
    assert state.result_step(config) == 2
    assert list(RunFolder(tmp_path).checkpoints()) == [2, 6]


def test_a_score_chooses_by_its_highest_value(tmp_path):
    config = _config(max_steps=3, eval_steps=1, metric_for_best_model="rougeL")
    state, _ = _train(make_model("gpt2"), tmp_path, config, evaluate=_with_scores([20.0, 30.0, 25.0], "eval_rougeL"))
    assert (state.best_step, state.best_value) == (2, 30.0)


def test_the_best_checkpoint_is_saved_even_where_no_save_was_due(tmp_path):
    config = _config(max_steps=6, eval_steps=2, save_steps=5, save_total_limit=1)
    state, _ = _train(make_model("gpt2"), tmp_path, config, evaluate=_with_scores([1.0, 2.0, 3.0]))
    assert state.result_step(config) == 2
    assert list(RunFolder(tmp_path).checkpoints()) == [2, 6]


def test_saves_come_at_save_steps_while_evaluations_come_at_eval_steps(tmp_path):
    config = _config(max_steps=6, eval_steps=3, save_steps=2, load_best_model_at_end=False)
    state, metrics = _train(make_model("gpt2"), tmp_path, config, evaluate=_with_scores([1.0, 2.0]))
    assert [row["step"] for row in metrics if "eval_loss" in row] == [3, 6]
    assert list(RunFolder(tmp_path).checkpoints()) == [2, 4, 6]
    assert state.result_step(config) == 6


def test_without_a_choice_the_last_checkpoint_is_the_result(tmp_path):
    config = _config(max_steps=3, save_steps=1, save_total_limit=2)
    state, _ = _train(make_model("gpt2"), tmp_path, config)
    assert (state.best_step, state.result_step(config)) == (None, 3)
    assert list(RunFolder(tmp_path).checkpoints()) == [2, 3]


def test_training_stops_after_so_many_evaluations_without_a_better_one(tmp_path):
    config = _config(max_steps=20, eval_steps=2, early_stopping_patience=2)
    notes: list[str] = []
    state, metrics = _train(
        make_model("gpt2"),
        tmp_path,
        config,
        evaluate=_with_scores([3.0, 2.0, 2.0, 2.5, 0.1]),  # an equal value is no better one
        on_event=lambda kind, facts: notes.append(facts["text"]) if kind == "note" else None,
    )
    assert (state.step, state.best_step) == (8, 4)
    assert len(metrics) == 8
    assert notes == ["stopped early: 2 evaluations without a better one"]
    assert {4, 8} <= set(RunFolder(tmp_path).checkpoints())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_evaluation_that_is_not_finite_is_null_and_never_the_best(tmp_path, value):
    config = _config(max_steps=3, eval_steps=1)
    state, metrics = _train(make_model("gpt2"), tmp_path, config, evaluate=_with_scores([value, 2.0, value]))
    assert [row["eval_loss"] for row in metrics] == [None, 2.0, None]
    assert (state.best_step, state.n_without_better) == (2, 1)


# a full disk


def _full_disk_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    write = sft.save_checkpoint

    def save(folder: Path, step: int, *args: Any, **kwargs: Any) -> Path:
        if step in steps:
            raise CheckpointError(f"checkpoint-{step}: no room")
        return write(folder, step, *args, **kwargs)

    monkeypatch.setattr(sft, "save_checkpoint", save)


def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path, monkeypatch):
    _full_disk_at({2}, monkeypatch)
    with pytest.raises(CheckpointError, match="checkpoint-2: no room"):
        _train(make_model("gpt2"), tmp_path, _config(save_steps=1))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


def test_with_on_save_error_continue_it_is_a_note_and_training_goes_on(tmp_path, monkeypatch):
    _full_disk_at({2}, monkeypatch)
    events: list[Any] = []
    config = _config(save_steps=1, on_save_error="continue")
    state, _ = _train(make_model("gpt2"), tmp_path, config, on_event=lambda kind, facts: events.append((kind, facts)))
    assert state.step == 4
    assert ("note", {"text": "checkpoint-2: no room"}) in events
    assert [facts["step"] for kind, facts in events if kind == "save"] == [1, 3, 4]
    assert list(RunFolder(tmp_path).checkpoints()) == [1, 3, 4]
