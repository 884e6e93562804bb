"""Supervised fine-tuning, one loop for both families: the loss is the masked mean of -log p(response | query)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dialtune.checkpoints import (
    Checkpoint,
    capture_rng,
    flatten_state,
    restore_rng,
    save_checkpoint,
    unflatten_state,
)
from dialtune.config.schema import RunConfig
from dialtune.errors import CheckpointError, DataError, InterruptedRunError
from dialtune.models.base import LanguageModel
from dialtune.models.loading import save_model
from dialtune.runs import RunFolder, append_row, sync_rows, truncate_rows
from dialtune.seeds import seed_for
from dialtune.trainers.batching import Epochs, TokenRow, epoch_batches, learned_logprobs
from dialtune.trainers.signals import stop_on_signals
from dialtune.trainers.update import Updater, compute_dtype

OnEvent = Callable[[str, Mapping[str, Any]], None]  # (`start`, `step`, `save`, `note`), facts
Evaluate = Callable[[LanguageModel], Mapping[str, float]]  # validation scores by name


def ignore_events(_kind: str, _facts: Mapping[str, Any]) -> None:
    """The listener of a run that nobody watches."""


@dataclass(frozen=True, slots=True)
class TrainState:
    """Where a run is; everything else about the position follows from `step` and the seed."""

    step: int = 0  # optimizer updates done, skipped ones included
    best_step: int | None = None
    best_value: float | None = None
    n_without_better: int = 0  # evaluations since the best one

    def result_step(self, config: RunConfig) -> int:
        """The checkpoint that is the run's result so far."""
        return self.best_step if config.load_best_model_at_end and self.best_step is not None else self.step


@dataclass(frozen=True, slots=True)
class Plan(Epochs):
    """Which batches an update is made of."""

    lengths: tuple[int, ...]
    config: RunConfig

    @property
    def steps_per_epoch(self) -> int:
        batches = math.ceil(len(self.lengths) / self.config.per_device_train_batch_size)
        return math.ceil(batches / self.config.gradient_accumulation_steps)

    def batches(self, epoch: int) -> list[list[int]]:
        return epoch_batches(
            self.lengths,
            self.config.per_device_train_batch_size,
            seed=self.config.seed if self.config.data_seed is None else self.config.data_seed,
            epoch=epoch,
            group_by_length=self.config.group_by_length,
        )


def train_sft(  # noqa: PLR0913  what a run depends on is stated by the caller
    model: LanguageModel,
    rows: Sequence[TokenRow],
    config: RunConfig,
    run: RunFolder,
    *,
    evaluate: Evaluate | None = None,
    start: Checkpoint | None = None,
    fingerprint: str = "",
    notes: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore_events,
) -> TrainState:
    """Train in place until the plan ends, evaluations stop improving, or a signal asks to stop.

    Args:
        model: its parameters with requires_grad are trained.
        rows: tokenised training rows.
        config: resolved recipe.
        run: a locked run folder; metrics.jsonl and checkpoint-N go there.
        evaluate: gives validation scores, `eval_loss` among them; without it the last checkpoint is the result.
        start: go on from this checkpoint, whose weights `model` already has.
        fingerprint: of config and data, kept in each checkpoint.
        notes: how the model is asked (task, template), saved beside its weights.
        on_event: told about each update; for progress bars.
    Returns:
        the final state; `best_step` (or else `step`) names the checkpoint that is the result.
    Raises:
        InterruptedRunError: a signal asked to stop; a checkpoint was saved.
        NonFiniteError: too many updates had to be skipped.
        DataError: no rows.
    """
    if not rows:
        raise DataError("data.train: no rows to train on; check the file with: dialtune data check FILE")
    plan = Plan(tuple(row.length for row in rows), config)
    updater = Updater(model.module, config, total_steps=plan.total_steps, device=model.device)
    state = _begin(config) if start is None else _restore(start, updater, run)
    on_event("start", {"total_steps": plan.total_steps, "steps_per_epoch": plan.steps_per_epoch, "step": state.step})

    def loss_sum(chosen: Sequence[int]) -> Tensor:
        return -learned_logprobs(model, [rows[i] for i in chosen]).sum()

    def save() -> None:
        _save(updater, state, config, run, fingerprint, lambda folder: save_model(model, folder, notes), on_event)

    with stop_on_signals() as stop:
        epoch, batches = -1, []
        while state.step < plan.total_steps and not _stopped_early(state, config):
            began = time.perf_counter()
            if state.step // plan.steps_per_epoch != epoch:
                epoch = state.step // plan.steps_per_epoch
                batches = plan.batches(epoch)
            index = (state.step % plan.steps_per_epoch) * config.gradient_accumulation_steps
            micro = batches[index : index + config.gradient_accumulation_steps]
            n_tokens = sum(rows[i].n_learned for batch in micro for i in batch)

            model.module.train()
            result = updater.step(micro, loss_sum, n_tokens, number=state.step)
            state = replace(state, step=state.step + 1)

            elapsed = time.perf_counter() - began
            row: dict[str, Any] = {
                "step": state.step,
                "epoch": state.step / plan.steps_per_epoch,
                "loss": result.loss,
                "learning_rate": result.learning_rate,
                "grad_norm": result.grad_norm,
                "n_tokens": n_tokens,
                "skipped": result.skipped,
                "n_skipped": updater.n_skipped,
                "tokens_per_s": sum(rows[i].length for batch in micro for i in batch) / elapsed,
                "step_s": elapsed,
            }
            if evaluate and plan.is_due(state.step, config.eval_steps):
                row |= {name: value if math.isfinite(value) else None for name, value in evaluate(model).items()}
                state = _note_best(state, row, config)
            append_row(run.metrics, row)
            on_event("step", row)
            done = _stopped_early(state, config)
            best = config.load_best_model_at_end and state.best_step == state.step
            if done or best or stop.number or plan.is_due(state.step, config.save_steps or config.eval_steps):
                save()
            if stop.number and state.step < plan.total_steps and not done:
                raise InterruptedRunError(
                    f"stopped by signal {stop.number} after update {state.step} of {plan.total_steps}; "
                    f"checkpoint-{state.step} is saved. Go on with --resume",
                    stop.number,
                )
            if done:
                on_event("note", {"text": f"stopped early: {state.n_without_better} evaluations without a better one"})
    return state


def mean_loss(model: LanguageModel, rows: Sequence[TokenRow], config: RunConfig) -> float:
    """Mean -log p per learned token over all rows, in nats; dropout off."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].length)
    total, n_tokens = 0.0, 0
    model.module.eval()
    with torch.no_grad(), compute_dtype(model.module, config, model.device):
        for at in range(0, len(order), config.per_device_eval_batch_size):
            chosen = [rows[i] for i in order[at : at + config.per_device_eval_batch_size]]
            total -= float(learned_logprobs(model, chosen).double().sum())
            n_tokens += sum(row.n_learned for row in chosen)
    return total / max(1, n_tokens)


def _stopped_early(state: TrainState, config: RunConfig) -> bool:
    return 0 < config.early_stopping_patience <= state.n_without_better


def _note_best(state: TrainState, row: Mapping[str, Any], config: RunConfig) -> TrainState:
    """The state after an evaluation: a new best, or one more without."""
    name = config.metric_for_best_model
    value = row[name if name == "eval_loss" else f"eval_{name}"]
    lower_is_better = name == "eval_loss"
    if value is None or not math.isfinite(value):
        return replace(state, n_without_better=state.n_without_better + 1)
    old = state.best_value
    if old is None or (value < old if lower_is_better else value > old):
        return replace(state, best_step=state.step, best_value=value, n_without_better=0)
    return replace(state, n_without_better=state.n_without_better + 1)


def _save(  # noqa: PLR0913  one caller
    updater: Updater,
    state: TrainState,
    config: RunConfig,
    run: RunFolder,
    fingerprint: str,
    model_writer: Callable[[Path], None],
    on_event: OnEvent,
) -> None:
    """Commit checkpoint-N; with on_save_error: continue a failure is a note and training goes on."""
    optimizer_tensors, optimizer = flatten_state(updater.state())
    rng_tensors, rng = capture_rng()
    document = {
        "step": state.step,
        "best_step": state.best_step,
        "best_value": state.best_value,
        "n_without_better": state.n_without_better,
        "result_step": state.result_step(config),
        "metrics_bytes": sync_rows(run.metrics),
    }
    try:
        save_checkpoint(
            run.path,
            state.step,
            {"optimizer": optimizer_tensors, "rng": rng_tensors},
            {"optimizer_state": optimizer, "rng_state": rng, "train_state": document},
            model_writer,
            keep=config.save_total_limit,
            protect=() if state.best_step is None else (state.best_step,),
            fingerprint=fingerprint,
            model_bytes=updater.trained_bytes,
        )
    except CheckpointError as error:
        if config.on_save_error == "stop":
            raise
        on_event("note", {"text": str(error)})
        return
    on_event("save", {"step": state.step})


def _begin(config: RunConfig) -> TrainState:
    """The state before the first update."""
    seed_generators(config.seed)
    return TrainState()


def seed_generators(run_seed: int) -> None:
    """Python's, numpy's and torch's own generators: we draw from none of them, but a model's or reward's code may."""
    seed = seed_for(run_seed, "global")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _restore(start: Checkpoint, updater: Updater, run: RunFolder) -> TrainState:
    """Optimizer, counters and the length of metrics.jsonl as they were when `start` was saved."""
    document = start.document("train_state")
    updater.load_state(unflatten_state(start.tensors("optimizer"), start.document("optimizer_state")))
    restore_rng(start.tensors("rng"), start.document("rng_state"))
    truncate_rows(run.metrics, document.pop("metrics_bytes"))
    document.pop("result_step")
    return TrainState(**document)
