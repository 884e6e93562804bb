"""A recipe → a reinforcement-learning run folder: read, open, check, calibrate, train, record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dialtune.cards import write_run_card
from dialtune.checkpoints import Checkpoint
from dialtune.config.loading import to_yaml
from dialtune.config.rl_schema import RLConfig
from dialtune.data.audit import leaks
from dialtune.data.reading import DataSet
from dialtune.environment import environment
from dialtune.errors import ConfigError, TrainingError
from dialtune.generation import generate
from dialtune.metrics.base import is_empty
from dialtune.metrics.contexts import dialogue_units
from dialtune.models.base import LanguageModel, Sampling
from dialtune.models.loading import OpenModel, resolve_folder, weights_sha256
from dialtune.models.lora import count_parameters
from dialtune.models.reference import Reference, disable_dropout, open_reference
from dialtune.rewards.base import Reward, as_reward
from dialtune.rewards.learned import LearnedReward
from dialtune.rewards.table import REWARDS, find_reward
from dialtune.rewards.toxicity import Civility
from dialtune.rl.doctor import Check, Patient, examine, failures
from dialtune.rl.judging import TOKENS, Judging
from dialtune.rl.rollouts import Rollout, chunks
from dialtune.runs import RunFolder, record_end, record_start, write_text_atomic
from dialtune.scorers.huggingface import HuggingFaceScorer
from dialtune.scorers.table import find_scorer
from dialtune.seeds import seed_for
from dialtune.tasks import Task
from dialtune.trainers.group import GroupMethod
from dialtune.trainers.memory import keep_freed_memory
from dialtune.trainers.method import Measured, Method
from dialtune.trainers.ppo import PPOMethod
from dialtune.trainers.rl import JOURNAL, Clock, Evaluate, Pool, train_rl
from dialtune.trainers.setup import (
    Sets,
    check_same_run,
    command_line,
    data_facts,
    decoding_of,
    notes_of,
    open_for_training,
    prompts_of,
    read_sets,
    record_seen,
    result_of,
    start_of,
    task_of,
    with_compute_dtype,
)
from dialtune.trainers.sft import OnEvent, ignore_events, seed_generators
from dialtune.trainers.update import compute_dtype
from dialtune.types import Example

# Per prompt: prompts differ more than completions of one do, so many prompts bound a mean best; two show their spread.
BASELINE_COMPLETIONS = 2
CALIBRATION_ROWS = 64  # completions sampled at a time when the start policy is measured


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that stands before the first rollout."""

    config: RLConfig
    task: Task
    model: OpenModel
    reference: Reference
    method: Method
    judging: Judging
    sets: Sets
    pool: Pool
    fingerprint: str

    @property
    def train(self) -> DataSet:
        """What is learned from."""
        return self.sets.train

    @property
    def validation(self) -> DataSet | None:
        """What chooses the best checkpoint."""
        return self.sets.validation


def run_rl(
    config: RLConfig,
    *,
    rewards: Sequence[Reward | Callable[..., Any]] = (),
    resume: str | None = None,
    force: bool = False,
    on_event: OnEvent = ignore_events,
) -> Path:
    """Train by a recipe and return the checkpoint that is the result.

    Args:
        config: a loaded recipe.
        rewards: rewards of your own, beside those of the recipe, with weight 1; a bare function is one with TRL's
            signature, as `rewards.base.FunctionReward(function)`.
        resume: None for a new run; `newest`, or the path of a checkpoint of this run.
        force: go on although the recipe or the data changed since the checkpoint.
        on_event: told about the start, each update, each save and notes.
    Raises:
        ConfigError: the folder holds a run already, or a resume under another recipe.
        TrainingError: a check before the first update failed, or a stop rule held.
        DataError, ModelError, CheckpointError, InterruptedRunError: see the modules that raise them.
    """
    config = with_compute_dtype(config.resolve())
    run = RunFolder(config.output_dir)
    with run.lock():
        start = start_of(run, resume)
        prepared = prepare(config, rewards, weights=None if start is None else start.path)
        if start is not None:
            check_same_run(start, prepared.fingerprint, config, run, force)
        else:
            _forget_rows(run)
        write_text_atomic(run.config, to_yaml(config))
        record_start(run, _facts(prepared) | {"forced": force}, resumed_from=None if start is None else start.step)
        on_event("note", {"text": _summary(prepared)})
        try:
            result = _train(prepared, run, start, on_event)
        except BaseException as error:
            record_end(run, f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        record_end(run, "done", notes=[f"result: {result.name}"])
        write_run_card(run, result)
        return result


def check_rl(config: RLConfig, *, rewards: Sequence[Reward | Callable[..., Any]] = ()) -> list[Check]:
    """What `dialtune doctor rl` prints: every check that stands before the first update, passed or not."""
    config = with_compute_dtype(config.resolve())
    prepared = prepare(config, rewards)
    _calibrate(prepared, least=True)
    return _checks(prepared)


def prepare(
    config: RLConfig, rewards: Sequence[Reward | Callable[..., Any]] = (), *, weights: Path | None = None
) -> Prepared:
    """Read the data, open policy and start policy, build prompts and rewards."""
    task = task_of(config)
    sets = read_sets(config)
    train, validation = sets.train, sets.validation
    model = open_for_training(config, weights)
    if model.device.type == "cpu":
        keep_freed_memory()
    disable_dropout(model.module)
    model.module.eval()
    reference = open_reference(
        model,
        config.model,
        dtype="float32",
        revision=config.model_revision,
        trust_remote_code=config.trust_remote_code,
    )
    named = {name: (find_reward(name), weight) for name, weight in config.rewards.items()}
    for given in rewards:
        reward = as_reward(given)
        if reward.name in named or reward.name in REWARDS:
            raise ConfigError(f"reward '{reward.name}': there is one of that name; give yours another (name=...)")
        named[reward.name] = (reward, 1.0)
    judging = Judging(named, config, alarm=find_scorer(config.alarm_scorer) if config.alarm_scorer else None)
    method: Method = PPOMethod(model, config) if config.method == "ppo" else GroupMethod(model, config)
    seed = config.seed if config.data_seed is None else config.data_seed
    pool = Pool(train.examples, prompts_of(config, task, model, train.examples), seed)
    parts = [config.fingerprint, train.fingerprint, "" if validation is None else validation.fingerprint]
    parts.append(weights_sha256(resolve_folder(config.model, config.model_revision)))  # of the start policy
    parts += [reward.sha for reward, _ in named.values() if isinstance(reward, LearnedReward)]
    civil = [reward.scorer for reward, _ in named.values() if isinstance(reward, Civility)]
    parts += [scorer.sha for scorer in civil if isinstance(scorer, HuggingFaceScorer)]
    return Prepared(config, task, model, reference, method, judging, sets, pool, ":".join(parts))


def _train(prepared: Prepared, run: RunFolder, start: Checkpoint | None, on_event: OnEvent) -> Path:
    config = prepared.config
    if start is None:
        on_event("note", {"text": "measuring the start policy"})
        if prepared.judging.alarm is not None and prepared.validation is None:
            on_event("note", {"text": "no data.validation: nothing chooses a checkpoint or sees a hacked reward"})
        seed_generators(config.seed)
        _calibrate(prepared)
        checks = _checks(prepared)
        if problems := failures(checks):
            raise TrainingError("\n".join(problems))
        for check in checks:
            if check.advice:
                on_event("note", {"text": check.advice})
    state = train_rl(
        prepared.model,
        prepared.reference,
        prepared.pool,
        prepared.judging,
        prepared.method,
        config,
        run,
        evaluate=_evaluator(prepared, fresh=start is None),
        start=start,
        fingerprint=prepared.fingerprint,
        notes=notes_of(config, prepared.task) | {"trained_on": record_seen(run, prepared.train, config)},
        on_event=on_event,
    )
    if prepared.validation is not None and config.load_best_model_at_end and state.best_step is None:
        text = f"no checkpoint was shown to keep what it must on validation: the last counts, checkpoint-{state.step}"
        on_event("note", {"text": text})
    return result_of(run, state.result_step(config))


def _calibrate(prepared: Prepared, *, least: bool = False) -> None:
    """Measure rewards and qualities of the start policy, with the decoding of the rollouts."""
    config, pool, model = prepared.config, prepared.pool, prepared.model
    wanted = 16 if least else config.constraint.baseline_prompts if config.constraint else 64
    rows = pool.draw(0, min(wanted, len(pool.examples)))  # the first rollouts' own
    group = -(-BASELINE_COMPLETIONS * wanted // len(rows))  # more of fewer prompts
    group = min(group, max(BASELINE_COMPLETIONS, config.num_generations))
    examples: list[Example] = []
    texts: list[str] = []
    lengths: list[int] = []
    with torch.no_grad(), prepared.reference.active() as start, compute_dtype(model.module, config, model.device):
        for chosen in chunks(len(rows), max(1, CALIBRATION_ROWS // group)):
            seeds = [seed_for(config.seed, "baseline", 0, rows[i]) for i in chosen]
            query = start.encode([pool.prompts[rows[i]] for i in chosen])
            sampled = start.sample(query, _sampling(config), seeds=seeds, group=group)
            texts += start.decode(sampled.response, sampled.mask)
            lengths += sampled.mask.sum(1).tolist()
            examples += [pool.examples[rows[i]] for i in chosen for _ in range(group)]
    prepared.judging.calibrate(examples, texts, lengths, group)


def _sampling(config: RLConfig) -> Sampling:
    return Sampling(max_new_tokens=config.max_completion_length, temperature=config.temperature)


def _checks(prepared: Prepared) -> list[Check]:
    """The doctor's findings: data, rewards, then the policy on eight real prompts."""
    config, model, pool = prepared.config, prepared.model, prepared.pool
    rows = pool.draw(0, min(8, len(pool.examples)))
    examples = [pool.examples[row] for row in rows]
    found = [*_data_checks(prepared), *prepared.judging.checks(examples)]
    if config.method == "ppo":
        weights = prepared.method.tensors().values()
        fresh = all(w.dtype == torch.float32 and not w.any() for w in weights)
        found.append(
            Check("D15", "value head starts at 0 in fp32", None if fresh else "value head does not start at 0")
        )
    patient = Patient(
        model=model,
        reference=prepared.reference,
        examples=examples,
        prompts=[pool.prompts[row] for row in rows],
        judge=prepared.judging,
        sampling=_sampling(config),
        group=min(2, config.num_generations),
        siblings=config.num_generations,
        seeds=[seed_for(config.seed, "doctor", 0, row) for row in rows],
        half=config.bf16 is True or config.fp16,
        objective=lambda rollout: _loss(prepared.method, rollout),
    )
    with compute_dtype(model.module, config, model.device):
        found += examine(patient, trained=model.module, timed=Clock())
    prepared.method.trained.zero_grad(set_to_none=True)
    return found


def _loss(method: Method, rollout: Rollout) -> Tensor:
    """What an update would minimise on a whole rollout, without a KL."""
    everything = list(range(len(rollout.example_ids)))
    method.begin(rollout, beta=0.0)
    denominator = method.start_update(everything)
    return method.loss_sum(everything, Measured(), policy_is_frozen=False) / denominator


def _data_checks(prepared: Prepared) -> list[Check]:
    """D23: no evaluation dialogue among the training prompts, unless the recipe allows it."""
    if prepared.validation is None or prepared.config.data.leaks == "allow":
        return []
    sets = {"train": prepared.train, "validation": prepared.validation}
    shared = leaks({name: data.dialogues or data.examples for name, data in sets.items()}).across[0]
    n = shared.right_exact + shared.right_near
    problem = f"{n} validation dialogues occur in the training prompts; run: dialtune data leaks" if n else None
    return [Check("D23", "validation dialogues are not trained on", problem)]


def _evaluator(prepared: Prepared, *, fresh: bool) -> Evaluate | None:
    """Completions on the validation dialogues, as the recipe decodes them, judged against those of the start policy.

    The first call of a `fresh` run comes before its first update: the policy is the start policy, which D10 has shown,
    so that it is measured once.
    """
    data, config = prepared.validation, prepared.config
    if data is None:
        return None
    examples = data.examples
    prompts = prompts_of(config, prepared.task, prepared.model, examples)
    sampling = decoding_of(config, config.max_completion_length)
    before: dict[str, NDArray[np.float64]] = {}
    unit = dialogue_units(examples)

    def measure(model: LanguageModel) -> dict[str, NDArray[np.float64]]:
        with compute_dtype(model.module, config, model.device):
            completions = generate(model, prompts, sampling, batch_size=config.generation.batch_size, seed=config.seed)
        texts = [completion.text for completion in completions]
        found = prepared.judging.measure(examples, texts)
        found[TOKENS] = np.array([len(completion.token_ids) for completion in completions], dtype=np.float64)
        found["empty"] = np.array([is_empty(text) for text in texts], dtype=np.float64)
        return found

    def evaluate() -> Mapping[str, Any]:
        if not before:
            with prepared.reference.active() as start:
                before.update(measure(start))
            if fresh:
                return prepared.judging.verdict(before, before, unit)
        return prepared.judging.verdict(before, measure(prepared.model), unit)

    return evaluate


def _forget_rows(run: RunFolder) -> None:
    """Rows of a run that was killed before its first checkpoint."""
    for path in (run.metrics, run.path / JOURNAL):
        path.unlink(missing_ok=True)


def _facts(prepared: Prepared) -> dict[str, Any]:
    trainable, total = count_parameters(prepared.method.trained)
    return environment() | {
        "command": command_line(),
        "task": prepared.config.task,
        "method": prepared.config.method,
        "seed": prepared.config.seed,
        "model": prepared.model.info.model_dump(),
        "parameters": {"trainable": trainable, "total": total},
        "rewards": prepared.judging.describe(),
        "data": data_facts(prepared.sets),
        "dropped_turns": sum(prompt.dropped_turns for prompt in prepared.pool.prompts),
        "fingerprint": prepared.fingerprint,
    }


def _summary(prepared: Prepared) -> str:
    config = prepared.config
    trainable, total = count_parameters(prepared.method.trained)
    precision = "bf16 products" if config.bf16 is True else "fp16 products" if config.fp16 else "fp32"
    return (
        f"{prepared.model.name}: {total / 1e6:.1f} M parameters, {trainable / 1e6:.2f} M trained, {precision}, "
        f"on {prepared.model.device}; {config.method}, {config.max_steps:,} updates of {config.rollout_batch_size} "
        f"prompts x {config.num_generations} completions; {len(prepared.pool.examples):,} prompts"
    )
