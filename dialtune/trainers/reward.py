"""The training loop of a learned reward: batches of whole dialogues, the state with the lowest validation loss."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dialtune.checkpoints import Checkpoint, flatten_state, save_checkpoint, unflatten_state
from dialtune.config.reward_schema import RewardConfig
from dialtune.errors import CheckpointError, InterruptedRunError
from dialtune.runs import RunFolder, append_row, sync_rows, truncate_rows
from dialtune.seeds import seed_for
from dialtune.trainers.batching import Epochs, epoch_batches
from dialtune.trainers.contrast import Lessons, lessons_of
from dialtune.trainers.reward_network import CPU, RewardNetwork
from dialtune.trainers.sft import OnEvent, ignore_events
from dialtune.trainers.signals import stop_on_signals
from dialtune.trainers.update import Updater, UpdateResult, compute_dtype
from dialtune.types import Example


@dataclass(frozen=True, slots=True)
class RewardState:
    """Where a run is; `best` are the tensors of the lowest validation loss, as they are saved."""

    step: int = 0
    best_step: int | None = None
    best_value: float | None = None
    best: Mapping[str, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class RewardPlan(Epochs):
    """Which dialogues an update sees."""

    dialogues: tuple[tuple[Example, ...], ...]  # usable replies of each
    config: RewardConfig

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches(0))

    def batches(self, epoch: int) -> list[list[int]]:
        """The epoch's batches of dialogues; a last one of a single dialogue joins the one before it."""
        seed = self.config.seed if self.config.data_seed is None else self.config.data_seed
        size = self.config.per_device_train_batch_size
        lengths = [len(rows) for rows in self.dialogues]
        batches = epoch_batches(lengths, size, seed=seed, epoch=epoch, group_by_length=False)
        lonely = [batch for batch in batches if len(batch) == 1]
        if len(batches) > 1 and lonely:
            batches.remove(lonely[0])
            batches[-1] = batches[-1] + lonely[0]
        return batches

    def lessons(self, epoch: int, batch: Sequence[int]) -> Lessons:
        """What a batch teaches in this epoch; its wrong replies are drawn by the epoch, not by what came before."""
        examples = [example for dialogue in batch for example in self.dialogues[dialogue]]
        seed = seed_for(self.config.seed, "comparisons", epoch)
        return lessons_of(examples, self.config, n=self.config.comparisons, seed=seed)


def train_reward(  # noqa: PLR0913  what a run depends on is stated by the caller
    network: RewardNetwork,
    plan: RewardPlan,
    validation: Lessons,
    run: RunFolder,
    *,
    start: Checkpoint | None = None,
    fingerprint: str = "",
    on_event: OnEvent = ignore_events,
) -> RewardState:
    """Train in place until the plan ends or a signal asks to stop.

    Args:
        network: fresh; what it learned so far is taken from `start`.
        plan: dialogues and recipe.
        validation: fixed lessons whose loss chooses the best state.
        run: a locked run folder; metrics.jsonl and checkpoint-N go there.
        start: go on from this checkpoint; the result is bit for bit that of an unbroken run.
        fingerprint: of config and data, kept in each checkpoint.
        on_event: told about each update; for progress bars.
    Returns:
        the final state, whose `best` tensors are the result.
    Raises:
        InterruptedRunError: a signal asked to stop; a checkpoint was saved.
        NonFiniteError: too many updates had to be skipped.
    """
    config = plan.config
    updater = Updater(network, config, total_steps=plan.total_steps, device=CPU)
    state = RewardState() if start is None else _restore(start, network, updater, run)
    on_event("start", {"total_steps": plan.total_steps, "steps_per_epoch": plan.steps_per_epoch, "step": state.step})
    with stop_on_signals() as stop:
        epoch, batches = -1, list[list[int]]()
        while state.step < plan.total_steps:
            began = time.perf_counter()
            if state.step // plan.steps_per_epoch != epoch:
                epoch = state.step // plan.steps_per_epoch
                batches = plan.batches(epoch)
            batch = batches[state.step % plan.steps_per_epoch]
            result, parts, n_pairs = _update(network, updater, plan, epoch, batch, state.step)
            state = replace(state, step=state.step + 1)
            row: dict[str, Any] = {
                "step": state.step,
                "epoch": state.step / plan.steps_per_epoch,
                "loss": result.loss,
                **{f"loss:{name}": value for name, value in parts.items()},
                "learning_rate": result.learning_rate,
                "grad_norm": result.grad_norm,
                "n_pairs": n_pairs,
                "skipped": result.skipped,
                "n_skipped": updater.n_skipped,
                "step_s": time.perf_counter() - began,
            }
            if plan.is_due(state.step, config.eval_steps):
                scores = validation_scores(network, validation, config)
                row |= scores
                if state.best_value is None or scores["eval_loss"] < state.best_value:
                    state = replace(state, best_step=state.step, best_value=scores["eval_loss"], best=network.tensors())
            append_row(run.metrics, row)
            on_event("step", row)
            if stop.number or plan.is_due(state.step, config.save_steps or config.eval_steps):
                _save(network, updater, state, config, run, fingerprint, on_event)
            if stop.number and state.step < plan.total_steps:
                raise InterruptedRunError(
                    f"stopped by signal {stop.number} after update {state.step} of {plan.total_steps}; "
                    f"checkpoint-{state.step} is saved. Go on with --resume",
                    stop.number,
                )
    return state


def validation_scores(network: RewardNetwork, lessons: Lessons, config: RewardConfig) -> dict[str, float]:
    """`eval_loss`, weighted as in training, the loss of each signal, and `eval_accuracy` of its contexts."""
    network.eval()
    with torch.no_grad(), compute_dtype(network, config, CPU):
        losses, accuracy = network.losses(lessons)
    weights: dict[str, float] = dict(config.signals.items())
    found = {f"eval_loss:{name}": float(loss) for name, loss in losses.items()}
    total = math.fsum(weights[name] * float(loss) for name, loss in losses.items())
    return {"eval_loss": total, **found} | ({} if accuracy is None else {"eval_accuracy": accuracy})


def _update(
    network: RewardNetwork, updater: Updater, plan: RewardPlan, epoch: int, batch: Sequence[int], number: int
) -> tuple[UpdateResult, dict[str, float], int]:
    """(what the update did, the loss of each signal, how many pairs there were)."""
    weights: dict[str, float] = dict(plan.config.signals.items())
    parts, n_pairs = dict[str, float](), 0

    def loss_sum(chosen: Sequence[int]) -> Tensor:
        nonlocal n_pairs
        lessons = plan.lessons(epoch, chosen)
        losses, _ = network.losses(lessons)
        parts.update({name: float(loss.detach()) for name, loss in losses.items()})
        n_pairs += sum(map(len, lessons.pairs.values()))
        nothing = 0.0 * network.head["bias"].sum()  # a batch without a lesson changes nothing
        terms = [weights[name] * loss for name, loss in losses.items()]
        return torch.stack([nothing, *terms]).sum() * len(chosen)

    network.train()
    return updater.step([batch], loss_sum, len(batch), number=number), parts, n_pairs


def _save(  # noqa: PLR0913  one caller
    network: RewardNetwork,
    updater: Updater,
    state: RewardState,
    config: RewardConfig,
    run: RunFolder,
    fingerprint: str,
    on_event: OnEvent,
) -> None:
    """Commit checkpoint-N; with on_save_error: continue a failure is a note and training goes on."""
    optimizer_tensors, optimizer = flatten_state(updater.state())
    document = {"best_step": state.best_step, "best_value": state.best_value, "metrics_bytes": sync_rows(run.metrics)}
    tensors = {
        "optimizer": optimizer_tensors,
        "weights": {name: parameter.detach() for name, parameter in network.trained()},
        "best": dict(state.best or {}),
    }
    try:
        save_checkpoint(
            run.path,
            state.step,
            tensors,
            {"optimizer_state": optimizer, "train_state": document},
            lambda _folder: None,  # the reward itself is written when the run ends
            keep=config.save_total_limit,
            fingerprint=fingerprint,
        )
    except CheckpointError as error:
        if config.on_save_error == "stop":
            raise
        on_event("note", {"text": str(error)})
        return
    on_event("save", {"step": state.step})


def _restore(start: Checkpoint, network: RewardNetwork, updater: Updater, run: RunFolder) -> RewardState:
    """Weights, optimizer, counters and the length of metrics.jsonl as they were when `start` was saved."""
    document = start.document("train_state")
    network.load(start.tensors("weights"))
    updater.load_state(unflatten_state(start.tensors("optimizer"), start.document("optimizer_state")))
    truncate_rows(run.metrics, document["metrics_bytes"])
    best = start.tensors("best")
    return RewardState(start.step, document["best_step"], document["best_value"], best or None)
