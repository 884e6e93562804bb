"""Reinforcement learning, one loop for three methods and both families: sample, judge, update, steer."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from dialtune.checkpoints import (
    Checkpoint,
    capture_rng,
    flatten_state,
    restore_rng,
    save_checkpoint,
    unflatten_state,
)
from dialtune.config.rl_schema import RLConfig
from dialtune.errors import CheckpointError, DataError, InterruptedRunError, ModelError, RewardError, TrainingError
from dialtune.models.base import LanguageModel, Sampling
from dialtune.models.loading import save_model
from dialtune.models.reference import Reference
from dialtune.rl.constraint import AdaptiveBeta
from dialtune.rl.health import MAX_SHARES, Health
from dialtune.rl.judging import Judging
from dialtune.rl.rollouts import Rollout, chunks, collect, journal_rows
from dialtune.runs import RunFolder, append_row, sync_rows, truncate_rows
from dialtune.seeds import seed_for
from dialtune.trainers.method import Measured, Method, with_old
from dialtune.trainers.sft import OnEvent, ignore_events
from dialtune.trainers.signals import stop_on_signals
from dialtune.trainers.update import Updater, compute_dtype
from dialtune.types import Example, Prompt

JOURNAL = "rollouts.jsonl"
_STOPPING = (ModelError, RewardError, TrainingError)  # what a reward's failure is by the time it gets here
OF_THE_ROLLOUT = frozenset(MAX_SHARES) | {"distinct_2"}  # the same in the record of each of its updates

Evaluate = Callable[[], Mapping[str, Any]]
"""Validation scores of the policy as it is: `eval_objective` (lower is better), `eval_acceptable` and others."""


@dataclass(frozen=True, slots=True)
class RLState:
    """Where a run is; the rest of the position follows from `step` and the seed."""

    step: int = 0  # optimizer updates done
    best_step: int | None = None  # least `eval_objective` among the checkpoints that were shown to keep what they must
    best_value: float | None = None

    def result_step(self, config: RLConfig) -> int:
        """The checkpoint that is the run's result so far."""
        return self.best_step if config.load_best_model_at_end and self.best_step is not None else self.step


@dataclass(frozen=True, slots=True)
class Pool:
    """The dialogues that rollouts draw from, each with its prompt."""

    examples: Sequence[Example]
    prompts: Sequence[Prompt]
    seed: int

    def draw(self, number: int, size: int) -> list[int]:
        """Row numbers of rollout `number`: one pass over everything before any row comes again."""
        places = [divmod(place, len(self.examples)) for place in range(number * size, (number + 1) * size)]
        orders = {epoch: self._order(epoch) for epoch, _ in places}
        return [orders[epoch][index] for epoch, index in places]

    def _order(self, epoch: int) -> list[int]:
        order = list(range(len(self.examples)))
        random.Random(seed_for(self.seed, "prompts", epoch)).shuffle(order)
        return order


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - began


def train_rl(  # noqa: PLR0913  what a run depends on is stated by the caller
    model: LanguageModel,
    reference: Reference,
    pool: Pool,
    judging: Judging,
    method: Method,
    config: RLConfig,
    run: RunFolder,
    *,
    evaluate: Evaluate | None = None,
    start: Checkpoint | None = None,
    fingerprint: str = "",
    notes: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore_events,
) -> RLState:
    """Train in place for `max_steps` updates, until a stop rule holds, or until a signal asks to stop.

    Args:
        model: the policy, dropout off.
        reference: the frozen start policy.
        pool: where prompts come from.
        judging: rewards under the constraint; calibrated on the start policy.
        method: PPO, RLOO or GRPO over `model`.
        config: resolved recipe.
        run: a locked run folder; metrics.jsonl, rollouts.jsonl and checkpoint-N go there.
        evaluate: scores of the policy on validation dialogues.
        start: go on from this checkpoint, whose weights `model` already has.
        fingerprint: of config and data, kept in each checkpoint.
        notes: how the model is asked, saved beside its weights.
        on_event: told about each update; for progress bars.
    Raises:
        InterruptedRunError: a signal asked to stop; a checkpoint was saved.
        TrainingError: a stop rule held, or too many rewards failed; the last good checkpoint is named.
        NonFiniteError: too many updates had to be skipped.
    """
    if not pool.examples:
        raise DataError("data.train: no rows to train on; check the file with: dialtune data check FILE")
    loop = _Loop(model, reference, pool, judging, method, config, run)
    state = RLState() if start is None else loop.restore(start)
    on_event("start", {"total_steps": config.max_steps, "step": state.step})

    def save(unwritten: Mapping[str, Any] | None = None) -> None:
        if unwritten is not None:
            append_row(run.metrics, unwritten)
        loop.save(state, fingerprint, notes, on_event)

    with stop_on_signals() as stop:
        if evaluate and state.step == 0:
            row = {"step": 0, **evaluate()}
            loop.health.check(row)
            append_row(run.metrics, row)
            on_event("evaluation", row)
        while state.step < config.max_steps:
            with _saving_first(state.step, save, on_event):  # an update that fails has not moved the weights
                record = loop.update(state.step)
            state = replace(state, step=state.step + 1)
            due = state.step == config.max_steps or (config.eval_steps and state.step % config.eval_steps == 0)
            if evaluate and due:
                with _saving_first(state.step, partial(save, record), on_event):
                    record |= evaluate()
            broken = loop.broken_rule(record)
            # Not a policy that gamed its reward, which has the least of what it pays for.
            state = state if broken else _note_best(state, record)
            append_row(run.metrics, record)
            on_event("step", record)
            every = config.save_steps or config.eval_steps
            best = config.load_best_model_at_end and state.best_step == state.step
            if best or stop.number or broken or state.step == config.max_steps or (every and state.step % every == 0):
                save()
            if broken:
                shown = "" if state.result_step(config) != state.step else ", which was not shown to be acceptable"
                raise TrainingError(
                    f"update {state.step}: stopped: {broken}. checkpoint-{state.step} is saved; the run's result is "
                    f"checkpoint-{state.result_step(config)}{shown}"
                )
            if stop.number and state.step < config.max_steps:
                raise InterruptedRunError(
                    f"stopped by signal {stop.number} after update {state.step} of {config.max_steps}; "
                    f"checkpoint-{state.step} is saved. Go on with --resume",
                    stop.number,
                )
    return state


@contextmanager
def _saving_first(step: int, save: Callable[[], None], on_event: OnEvent) -> Iterator[None]:
    """What stops the run finds its weights saved before the error goes on."""
    try:
        yield
    except _STOPPING:
        if step:
            save()
            on_event("note", {"text": f"checkpoint-{step} is saved; then go on with --resume"})
        raise


class _Loop:
    """What lasts from one update to the next."""

    def __init__(  # noqa: PLR0913  one caller
        self,
        model: LanguageModel,
        reference: Reference,
        pool: Pool,
        judging: Judging,
        method: Method,
        config: RLConfig,
        run: RunFolder,
    ) -> None:
        self.model, self.reference, self.pool, self.judging = model, reference, pool, judging
        self.method, self.config, self.run = method, config, run
        self.updater = Updater(method.trained, config, total_steps=config.max_steps, device=model.device)
        self.beta = AdaptiveBeta(config.beta, config.kl_target)
        self.health = Health(config.kl_target)
        self.rollout: Rollout | None = None
        self.sampling = Sampling(max_new_tokens=config.max_completion_length, temperature=config.temperature)

    def update(self, step: int) -> dict[str, Any]:
        """Make update number `step` (from 0), sampling first if the last rollout is used up; its log record."""
        began, clock, config = time.perf_counter(), Clock(), self.config
        number, place = divmod(step, config.updates_per_rollout)
        if place == 0 or self.rollout is None:
            self.rollout = self._collect(number, clock)
            self.method.begin(self.rollout, self.beta.value)
        prompts = self._minibatch(number, place)
        frozen = config.method == "ppo" and step < config.value_warmup_steps
        measured = Measured()

        def loss_sum(micro: Sequence[int]) -> torch.Tensor:
            return self.method.loss_sum(micro, measured, policy_is_frozen=frozen)

        with clock("update"), self._recomputing():
            micro = [[prompts[i] for i in part] for part in chunks(len(prompts), config.per_device_train_batch_size)]
            result = self.updater.step(micro, loss_sum, self.method.start_update(prompts), number=step)
        if place == 0:  # after the step: an update that fails is made again, with its rollout
            self._journal(number)
        record: dict[str, Any] = {
            "step": step + 1,
            "rollout": number,
            "loss": result.loss,
            "learning_rate": result.learning_rate,
            "grad_norm": result.grad_norm,
            "beta": self.beta.value,
            "skipped": result.skipped,
            "n_skipped": self.updater.n_skipped,
        }
        record |= {key: value if math.isfinite(value) else None for key, value in measured.record().items()}
        record |= self.judging.record(self.rollout)
        if place == config.updates_per_rollout - 1:
            self.judging.update(self.rollout)
            self.beta = self.beta.update(measured.record().get("kl_per_sequence", math.nan))
        elapsed = time.perf_counter() - began
        record |= {f"{phase}_s": seconds for phase, seconds in clock.seconds.items()}
        share = len(prompts) / config.rollout_batch_size  # of the rollout, that this update learned from
        tokens = share * float(self.rollout.query.mask.sum() + self.rollout.mask.sum())
        return record | {"step_s": elapsed, "tokens_per_s": tokens / elapsed}

    def broken_rule(self, record: Mapping[str, Any]) -> str | None:
        """The first stop rule that a record breaks; shares of a rollout's completions count once per rollout."""
        again = (record["step"] - 1) % self.config.updates_per_rollout > 0
        judged = {key: value for key, value in record.items() if not (again and key in OF_THE_ROLLOUT)}
        judged = {key: value for key, value in judged.items() if not key.endswith("_s")}  # no clock in a checkpoint
        return self.health.check(judged) or self.judging.infeasible()

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """With gradient_checkpointing, training mode, in which alone transformers recomputes; dropout is 0 anyway."""
        self.model.module.train(self.config.gradient_checkpointing)
        try:
            yield
        finally:
            self.model.module.eval()

    def _collect(self, number: int, clock: Clock) -> Rollout:
        config, model = self.config, self.model
        rows = self.pool.draw(number, config.rollout_batch_size)
        seeds = [seed_for(config.seed, "rollout", number, slot) for slot in range(len(rows))]
        with compute_dtype(model.module, config, model.device):
            rollout = collect(
                model,
                self.reference,
                [self.pool.examples[row] for row in rows],
                [self.pool.prompts[row] for row in rows],
                self.judging,
                sampling=self.sampling,
                group=config.num_generations,
                seeds=seeds,
                batch=config.per_device_train_batch_size,
                timed=clock,
            )
            if config.updates_per_rollout == 1 and config.truncation != "bootstrap":
                return rollout  # the update's own forward gives them
            with clock("old"):
                return with_old(model, self.method, rollout, config, batch=config.per_device_train_batch_size)

    def _minibatch(self, number: int, place: int) -> list[int]:
        """Prompts of one update: every prompt once per pass, in an order of its own."""
        iteration, index = divmod(place, self.config.num_minibatches)
        order = list(range(self.config.rollout_batch_size))
        if self.config.num_minibatches > 1:
            random.Random(seed_for(self.config.seed, "minibatch", number, iteration)).shuffle(order)
        return sorted(order[index :: self.config.num_minibatches])

    def _journal(self, number: int) -> None:
        assert self.rollout is not None
        for row in journal_rows(self.rollout, number):
            append_row(self.run.path / JOURNAL, row)

    def save(self, state: RLState, fingerprint: str, notes: Mapping[str, Any] | None, on_event: OnEvent) -> None:
        """Commit checkpoint-N with everything the next update needs, the rollout in use included."""
        optimizer_tensors, optimizer = flatten_state(self.updater.state())
        rng_tensors, rng = capture_rng()
        in_use = self.rollout if state.step % self.config.updates_per_rollout else None
        tensors = {"optimizer": optimizer_tensors, "rng": rng_tensors}
        if own := self.method.tensors():
            tensors["value_head"] = own
        if in_use is not None:
            tensors["rollout"] = in_use.tensors()
        document = {
            "step": state.step,
            "best_step": state.best_step,
            "best_value": state.best_value,
            "result_step": state.result_step(self.config),
            "metrics_bytes": sync_rows(self.run.metrics),
            "journal_bytes": sync_rows(self.run.path / JOURNAL),
        }
        documents = {
            "optimizer_state": optimizer,
            "rng_state": rng,
            "train_state": document,
            "rl_state": {
                "beta": self.beta.to_dict(),
                "judging": self.judging.to_dict(),
                "health": self.health.to_dict(),
                "rollout": None if in_use is None else in_use.document(),
            },
        }
        try:
            save_checkpoint(
                self.run.path,
                state.step,
                tensors,
                documents,
                lambda folder: save_model(self.model, folder, notes),
                keep=self.config.save_total_limit,
                protect=() if state.best_step is None else (state.best_step,),
                fingerprint=fingerprint,
                model_bytes=self.updater.trained_bytes,
            )
        except CheckpointError as error:
            if self.config.on_save_error == "stop":
                raise
            on_event("note", {"text": str(error)})
            return
        on_event("save", {"step": state.step})

    def restore(self, start: Checkpoint) -> RLState:
        """Everything as it was when `start` was saved; the model's weights are the caller's affair."""
        document, rl = start.document("train_state"), start.document("rl_state")
        device = str(self.model.device)
        self.updater.load_state(unflatten_state(start.tensors("optimizer"), start.document("optimizer_state")))
        restore_rng(start.tensors("rng"), start.document("rng_state"))
        truncate_rows(self.run.metrics, document.pop("metrics_bytes"))
        truncate_rows(self.run.path / JOURNAL, document.pop("journal_bytes"))
        document.pop("result_step")
        if self.method.tensors():
            self.method.load_tensors(start.tensors("value_head", device))
        # What a forced resume changed counts; a beta that adapts goes on from where it was.
        beta = AdaptiveBeta.from_dict(rl["beta"])
        self.beta = replace(self.beta, value=beta.value) if beta.target and self.beta.target else self.beta
        self.judging.load_dict(rl["judging"])
        self.health = Health.from_dict(rl["health"])
        if rl["rollout"] is not None:
            self.rollout = Rollout.restore(start.tensors("rollout", device), rl["rollout"])
            self.method.begin(self.rollout, self.beta.value)
        return RLState(**document)


def _note_best(state: RLState, record: Mapping[str, Any]) -> RLState:
    """The state after an evaluation: the least objective wins, among those shown to keep what they must."""
    value = record.get("eval_objective")
    if value is None or not record.get("eval_acceptable"):
        return state
    if state.best_value is None or value < state.best_value:
        return replace(state, best_step=state.step, best_value=value)
    return state
