"""A recipe to a learned reward: read, encode, train, calibrate, measure, save. What `dialtune reward` calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dialtune.config.loading import to_yaml
from dialtune.config.reward_schema import RewardConfig
from dialtune.data.reading import DataSet
from dialtune.environment import environment
from dialtune.errors import DataError
from dialtune.licences import data_licence
from dialtune.models.embedder import open_encoder
from dialtune.models.lora import count_parameters
from dialtune.rewards.learned import CARD, FORMAT, LearnedRewardConfig, build_reward
from dialtune.runs import RunFolder, record_end, record_start, write_text_atomic
from dialtune.trainers.contrast import (
    Exchange,
    Lessons,
    ReplyPair,
    exchange_of,
    lessons_of,
)
from dialtune.trainers.reward import RewardPlan, train_reward
from dialtune.trainers.reward_data import check_signals, held_out, teaching_dialogues
from dialtune.trainers.reward_network import RewardNetwork
from dialtune.trainers.reward_report import calibrate, card_text, measure
from dialtune.trainers.scorer import save_folder
from dialtune.trainers.setup import (
    Sets,
    check_same_run,
    command_line,
    data_facts,
    read_data,
    read_sets,
    start_of,
    with_compute_dtype,
)
from dialtune.trainers.sft import OnEvent, ignore_events, seed_generators

VECTORS = "vectors.safetensors"  # of all turns, while the run lasts
_SETTINGS = (
    "signals", "window", "max_turn_length", "comparisons", "cheap_replies", "head_size", "head_dropout",
    "num_train_epochs", "max_steps", "per_device_train_batch_size", "learning_rate", "lr_scheduler_type",
    "warmup_ratio", "weight_decay", "bf16", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that stands before the first update."""

    config: RewardConfig
    sets: Sets
    report: DataSet | None  # data.test
    plan: RewardPlan
    choosing: Lessons  # choose the state and calibrate it
    reporting: Lessons  # are reported on
    network: RewardNetwork
    fingerprint: str


def run_reward(
    config: RewardConfig, *, resume: str | None = None, force: bool = False, on_event: OnEvent = ignore_events
) -> Path:
    """Train by a recipe and return the folder of the reward, which is the run's folder.

    Args:
        config: a loaded recipe.
        resume: None for a new run; `newest` for the newest checkpoint that verifies (or a new run if there is none);
            else the path of a checkpoint of this run. A resumed run ends in the same bytes as an unbroken one.
        force: go on although the recipe or the data changed since the checkpoint.
        on_event: told about the start, each update, each save and notes.
    Raises:
        ConfigError: the folder holds a run already, or a resume under another recipe.
        DataError: nothing to learn from, or to calibrate and report on.
        ModelError, CheckpointError, TrainingError, InterruptedRunError: see the modules that raise them.
    """
    config = with_compute_dtype(config.resolve())
    run = RunFolder(config.output_dir)
    with run.lock():
        start = start_of(run, resume)
        prepared = prepare(config)
        if start is not None:
            check_same_run(start, prepared.fingerprint, config, run, force)
        elif run.metrics.exists():
            run.metrics.unlink()  # rows of a run that was killed before its first checkpoint
        write_text_atomic(run.config, to_yaml(config))
        record_start(run, _facts(prepared) | {"forced": force}, resumed_from=None if start is None else start.step)
        on_event("note", {"text": _summary(prepared)})
        try:
            seed_generators(config.seed)
            if start is None or start.step < prepared.plan.total_steps:  # else nothing is left to train
                prepared.network.remember(readable_texts(prepared), on_event, file=run.path / VECTORS)
            state = train_reward(
                prepared.network,
                prepared.plan,
                prepared.choosing,
                run,
                start=start,
                fingerprint=prepared.fingerprint,
                on_event=on_event,
            )
            assert state.best is not None  # the last update is always evaluated
            on_event("note", {"text": "measuring on held-out dialogues"})
            config_json = save_reward(prepared, state.best, run.path)
        except BaseException as error:
            record_end(run, f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        for line in _findings(config_json):
            on_event("note", {"text": line})
        (run.path / VECTORS).unlink(missing_ok=True)
        record_end(run, "done", notes=[f"best state: update {state.best_step}"])
        return run.path


def prepare(config: RewardConfig) -> Prepared:
    """Read the data, make lessons of it, open the encoder.

    Raises:
        DataError: a signal of which the training rows teach nothing, or held-out rows that cannot judge.
    """
    sets = read_sets(config)
    assert sets.validation is not None  # the recipe says so
    report = read_data(config, config.data.test, None) if config.data.test else None
    check_signals(sets.train, config)
    plan = RewardPlan(teaching_dialogues(sets.train, config), config)
    if len(plan.dialogues) < 2:
        raise DataError(
            f"{sets.train.name}: {len(plan.dialogues)} dialogues with a reply to learn from; at least 2 are needed, "
            "and hundreds to learn anything"
        )
    choosing, reporting = held_out(sets.validation, report, config)
    network = RewardNetwork(config)
    parts = [config.fingerprint, sets.train.fingerprint, sets.validation.fingerprint]
    parts += [network.reader.sha256, "" if report is None else report.fingerprint]
    return Prepared(config, sets, report, plan, choosing, reporting, network, ":".join(parts))


def preview_reward(config: RewardConfig) -> list[str]:
    """What a run would do, without doing it: the recipe, sizes, and a pair of each kind from the first batch."""
    config = with_compute_dtype(config.resolve())
    prepared = prepare(config)
    lessons = prepared.plan.lessons(0, prepared.plan.batches(0)[0])
    lines = [to_yaml(config).rstrip(), "", _summary(prepared)]
    shown: dict[str, ReplyPair] = {}
    for pair in (pair for pairs in lessons.pairs.values() for pair in pairs):
        shown.setdefault(pair.kind, pair)
    for kind, pair in shown.items():
        lines += ["", f"{kind}: better", *_lines(pair.better), f"{kind}: worse", *_lines(pair.worse)]
    for dialogue in lessons.rated[:1]:
        lines += ["", f"rated {dialogue.target:.2f} of 1, {len(dialogue.exchanges)} replies, such as"]
        lines += _lines(dialogue.exchanges[0])
    return lines


def _lines(exchange: Exchange) -> list[str]:
    return [f"  | {' '.join(turn.split())}" for turn in exchange.context] + [f"  > {' '.join(exchange.reply.split())}"]


def save_reward(prepared: Prepared, tensors: Mapping[str, Tensor], folder: Path) -> LearnedRewardConfig:
    """Calibrate and measure what was learned, and write model.safetensors, config.json and CARD.md, in this order."""
    config = prepared.config
    made = LearnedRewardConfig(
        name=folder.resolve().name,
        base=config.model,
        base_sha256=prepared.network.reader.sha256,
        signals=list(config.signals),
        window=config.window,
        max_tokens=config.max_turn_length,
        scale=config.lora.alpha / config.lora.r if config.lora else 0.0,
        slope=1.0,
        intercept=0.0,
        weights_sha256="",
        measured={},
        training=_training(prepared),
    )
    encoder = open_encoder(config.model, max_tokens=config.max_turn_length)
    reward = build_reward(encoder, tensors, made, name=made.name)
    reward.remember([*prepared.choosing.texts, *prepared.reporting.texts])
    reward.config = calibrate(reward, prepared.choosing)
    final = replace(reward.config, measured=measure(reward, prepared.reporting))
    save_folder(folder, tensors, {"format": FORMAT, **asdict(final)})
    write_text_atomic(folder / CARD, card_text(final, config))
    return final


def readable_texts(prepared: Prepared) -> list[str]:
    """Every text that training and choosing can meet, in an order that is always the same."""
    config, texts = prepared.config, list[str]()
    for rows in prepared.plan.dialogues:
        exchanges = [exchange_of(example, config.window) for example in rows]
        texts += [text for one in exchanges for text in (*one.context, one.reply)]
        texts += lessons_of(rows, config, n=1, seed=0).texts  # rejected and cheap replies
    return [*texts, *prepared.choosing.texts]


def _training(prepared: Prepared) -> dict[str, Any]:
    """What config.json says about how it was made; names and numbers, no folder of this machine."""
    config, sources = prepared.config, {"train": prepared.sets.train, "validation": prepared.sets.validation}
    given = {"train": config.data.train, "validation": config.data.validation, "test": config.data.test}
    data = {
        role: {
            "name": found.name,
            "replies": len(found.examples),
            "dialogues": len(found.dialogues or found.examples),
            "fingerprint": found.fingerprint,
            "licence": config.data_licence or data_licence(str(given[role])) or "not stated",
        }
        for role, found in (sources | {"test": prepared.report}).items()
        if found is not None
    }
    values = config.model_dump(mode="json")
    return {"data": data, "settings": {key: values[key] for key in _SETTINGS}}


def _facts(prepared: Prepared) -> dict[str, Any]:
    trainable, total = count_parameters(prepared.network)
    reader = prepared.network.reader
    return environment() | {
        "command": command_line(),
        "task": prepared.config.task,
        "seed": prepared.config.seed,
        "model": {"name": reader.name, "sha256": reader.sha256},
        "parameters": {"trainable": trainable, "total": total},
        "data": data_facts(prepared.sets),
        "fingerprint": prepared.fingerprint,
    }


def _summary(prepared: Prepared) -> str:
    config, plan = prepared.config, prepared.plan
    trainable, _ = count_parameters(prepared.network)
    signals = ", ".join(f"{name} {weight:g}" for name, weight in config.signals.items())
    return (
        f"{config.model} {'with an update' if config.lora else 'frozen'}, {trainable / 1e6:.2f} M parameters trained; "
        f"{sum(map(len, plan.dialogues)):,} replies of {len(plan.dialogues):,} dialogues; signals: {signals}; "
        f"{plan.total_steps:,} updates, {plan.steps_per_epoch:,} per epoch"
    )


def _findings(config: LearnedRewardConfig) -> list[str]:
    """What a user must know at the end: the held-out numbers, and whether they are any good."""
    lines = []
    for signal, number in (("contexts", "accuracy"), ("preferences", "accuracy"), ("ratings", "spearman")):
        found = config.measured.get(signal, {}).get(number)
        if found and found["value"] is not None:
            ci = f" ({found['ci'][0]:.3f} to {found['ci'][1]:.3f})" if found["ci"] else ""
            lines.append(f"{signal}: held-out {number} {found['value']:.3f}{ci}, n {found['n']:,}")
    if config.slope <= 0:
        lines.append("the value falls where held-out rows are better: nothing was learned, do not train on this reward")
    return lines
