"""A recipe → a run folder: read, open, tokenise, train, record. What `dialtune sft` calls."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dialtune.cards import write_run_card
from dialtune.config.loading import to_yaml
from dialtune.config.schema import RunConfig
from dialtune.data.reading import DataSet
from dialtune.environment import environment
from dialtune.errors import DataError
from dialtune.generation import generate
from dialtune.metrics.base import chosen_references
from dialtune.metrics.table import METRICS
from dialtune.models.base import LanguageModel
from dialtune.models.loading import OpenModel
from dialtune.models.lora import count_parameters
from dialtune.reply_likelihood import bind_likelihoods
from dialtune.runs import RunFolder, record_end, record_start, write_text_atomic
from dialtune.tasks import Task
from dialtune.trainers.batching import TokenRow, tokenize_rows
from dialtune.trainers.packing import join_replies
from dialtune.trainers.setup import (
    Sets,
    check_same_run,
    command_line,
    data_facts,
    decoding_of,
    notes_of,
    open_for_training,
    prompt_limit,
    prompts_of,
    read_sets,
    record_seen,
    result_of,
    start_of,
    task_of,
    with_compute_dtype,
)
from dialtune.trainers.sft import Evaluate, OnEvent, Plan, ignore_events, mean_loss, train_sft
from dialtune.types import Example


@dataclass(frozen=True, slots=True)
class Targets:
    """The texts to learn, tokenised; `n_cut` of the `n` targets were over the cap."""

    rows: list[TokenRow]
    n: int
    n_cut: int
    dropped_turns: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything that stands before the first update."""

    config: RunConfig
    task: Task
    model: OpenModel
    sets: Sets
    targets: Targets
    validation_rows: list[TokenRow]
    fingerprint: str

    @property
    def train(self) -> DataSet:
        """What is learned from."""
        return self.sets.train

    @property
    def validation(self) -> DataSet | None:
        """What chooses the best checkpoint."""
        return self.sets.validation

    @property
    def rows(self) -> list[TokenRow]:
        """What an epoch goes through: a target a row, or the replies of a dialogue in one."""
        return self.targets.rows


def run_sft(
    config: RunConfig,
    *,
    resume: str | None = None,
    force: bool = False,
    on_event: OnEvent = ignore_events,
) -> Path:
    """Train by a recipe and return the checkpoint that is the result.

    Args:
        config: a loaded recipe.
        resume: None for a new run; `newest` for the newest checkpoint that verifies (or a new run if there is none);
            else the path of a checkpoint of this run.
        force: go on although the recipe or the data changed since the checkpoint.
        on_event: told about the start, each update, each save and notes.
    Raises:
        ConfigError: the folder holds a run already, or a resume under another recipe.
        DataError, ModelError, CheckpointError, TrainingError, InterruptedRunError: see the modules that raise them.
    """
    config = with_compute_dtype(config.resolve())
    run = RunFolder(config.output_dir)
    with run.lock():
        start = start_of(run, resume)
        prepared = prepare(config, weights=None if start is None else start.path)
        if start is not None:
            check_same_run(start, prepared.fingerprint, prepared.config, run, force)
        elif run.metrics.exists():
            run.metrics.unlink()  # rows of a run that was killed before its first checkpoint
        write_text_atomic(run.config, to_yaml(config))
        record_start(run, _facts(prepared) | {"forced": force}, resumed_from=None if start is None else start.step)
        on_event("note", {"text": _summary(prepared)})
        try:
            state = train_sft(
                prepared.model,
                prepared.rows,
                config,
                run,
                evaluate=_evaluator(prepared),
                start=start,
                fingerprint=prepared.fingerprint,
                notes=notes_of(config, prepared.task) | {"trained_on": record_seen(run, prepared.train, config)},
                on_event=on_event,
            )
            result = result_of(run, state.result_step(config))
        except BaseException as error:
            record_end(run, f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        record_end(run, "done", notes=[f"result: {result.name}"])
        write_run_card(run, result)
        return result


def prepare(config: RunConfig, *, weights: Path | None = None) -> Prepared:
    """Read the data, open the model (from `weights` when resuming), build and tokenise the rows."""
    task = task_of(config)
    sets = read_sets(config)
    train, validation = sets.train, sets.validation
    model = open_for_training(config, weights)
    targets = _tokenize(config, task, model, train)
    validation_rows = [] if validation is None else _tokenize(config, task, model, validation).rows
    fingerprint = ":".join(
        [config.fingerprint, train.fingerprint, "" if validation is None else validation.fingerprint]
    )
    return Prepared(config, task, model, sets, targets, validation_rows, fingerprint)


def preview_sft(config: RunConfig) -> list[str]:
    """What a run would do, without doing it: the recipe, sizes, and two examples with their loss mask."""
    config = with_compute_dtype(config.resolve())
    prepared = prepare(config)
    lines = [to_yaml(config).rstrip(), "", _summary(prepared)]
    lengths = sorted(row.length for row in prepared.rows)
    learned = sum(row.n_learned for row in prepared.rows)
    trainable, _ = count_parameters(prepared.model.module)
    # AdamW keeps two fp32 numbers per trained weight and one gradient; activations come on top.
    fixed = sum(p.numel() * p.element_size() for p in prepared.model.module.parameters()) + 12 * trainable
    lines += [
        f"tokens: {sum(lengths):,} in all, {learned:,} of them learned; per row median {lengths[len(lengths) // 2]}, "
        f"longest {lengths[-1]}",
        f"memory: about {fixed / 1e9:.2f} GB for weights, gradients and optimizer, plus activations",
    ]
    for row in prepared.rows[:2]:
        lines += ["", f"example {row.example_id}: learned tokens in [brackets]", _marked(prepared.model, row)]
    return lines


def _marked(model: LanguageModel, row: TokenRow) -> str:
    learn = row.learn or (True,) * len(row.response)
    pieces = zip(model.tokens(row.response), learn, strict=True)
    marked = "".join(f"[{piece}]" if is_learned else piece for piece, is_learned in pieces)
    return "".join(model.tokens(row.query)) + " " + marked


def _tokenize(config: RunConfig, task: Task, model: LanguageModel, data: DataSet) -> Targets:
    usable = [(example, text) for example in data.examples if (text := _target(example, config.data.reference))]
    if not usable:
        raise DataError(
            f"{data.name}: none of {len(data.examples)} rows has a reference {config.data.reference!r} to learn from; "
            "name the column with data.reference or data.columns"
        )
    examples = [example for example, _ in usable]
    prompts = prompts_of(config, task, model, examples)
    rows = tokenize_rows(model, prompts, [text for _, text in usable], max_response=config.max_completion_length)
    n, n_cut, dropped = len(rows), sum(1 for row in rows if row.cut), sum(prompt.dropped_turns for prompt in prompts)
    if task.name == "respond" and config.data.turns.pack:
        rows = join_replies(model, examples, prompts, rows, max_length=_row_limit(config, model))
    return Targets(rows, n, n_cut, dropped)


def _row_limit(config: RunConfig, model: LanguageModel) -> int | None:
    """Tokens of a row with replies that see more than their own prompts hold; None: there are none."""
    if config.data.turns.pack is not True:
        return None
    limit = prompt_limit(config, model)
    return sys.maxsize if limit is None else limit + config.max_completion_length


def _target(example: Example, reference: str) -> str:
    return next(iter(chosen_references(example, reference)), "").strip()


def _evaluator(prepared: Prepared) -> Evaluate | None:
    """Validation scores for the loop: the loss on all rows, and generated metrics where the recipe asks for them."""
    data, config = prepared.validation, prepared.config
    if data is None:
        return None
    names: list[str] = list(config.evaluation.metrics or ())
    if config.metric_for_best_model != "eval_loss" and config.metric_for_best_model not in names:
        names.append(config.metric_for_best_model)

    def evaluate(model: LanguageModel) -> Mapping[str, float]:
        scores = {"eval_loss": mean_loss(model, prepared.validation_rows, config)}
        return scores | (_generated_scores(model, prepared, data, names) if names else {})

    return evaluate


def _generated_scores(model: LanguageModel, prepared: Prepared, data: DataSet, names: list[str]) -> dict[str, float]:
    config, task = prepared.config, prepared.task
    examples = data.examples[: config.evaluation.max_rows]
    decoding = config.generation
    sampling = decoding_of(config, task.max_new_tokens)
    prompts = prompts_of(config, task, model, examples)
    completions = generate(model, prompts, sampling, batch_size=decoding.batch_size, seed=config.seed)
    texts = [completion.text for completion in completions]
    reference = config.evaluation.reference
    choice = ("mean" if data.references[1] > 1 else "first") if reference == "auto" else reference
    metrics = [METRICS[name].with_reference(choice).with_rows(examples, prepared.train.examples) for name in names]
    ask = partial(prompts_of, config, task, model)
    metrics = bind_likelihoods(metrics, model, examples, ask, batch_size=decoding.batch_size)
    values = (metric.aggregate(metric.segments(texts, examples)) for metric in metrics)
    return {f"eval_{name}": float(value) for name, value in zip(names, values, strict=True)}


def _facts(prepared: Prepared) -> dict[str, Any]:
    trainable, total = count_parameters(prepared.model.module)
    return environment() | {
        "command": command_line(),
        "task": prepared.config.task,
        "seed": prepared.config.seed,
        "model": prepared.model.info.model_dump(),
        "parameters": {"trainable": trainable, "total": total},
        "data": data_facts(prepared.sets),
        "targets": prepared.targets.n,
        "rows": len(prepared.rows),
        "dropped_turns": prepared.targets.dropped_turns,
        "cut_targets": prepared.targets.n_cut,
        "fingerprint": prepared.fingerprint,
    }


def _summary(prepared: Prepared) -> str:
    trainable, total = count_parameters(prepared.model.module)
    config = prepared.config
    precision = "bf16 products" if config.bf16 is True else "fp16 products" if config.fp16 else "fp32"
    plan = Plan(tuple(row.length for row in prepared.rows), config)
    targets, n_rows = prepared.targets, len(prepared.rows)
    parts = [
        f"{prepared.model.name}: {total / 1e6:.1f} M parameters, {trainable / 1e6:.2f} M trained, {precision}, "
        f"on {prepared.model.device}",
        f"{f'{targets.n:,} replies in ' if targets.n > n_rows else ''}{n_rows:,} rows ({prepared.train.layout})",
        f"{plan.total_steps:,} updates, {plan.steps_per_epoch:,} per epoch",
    ]
    parts += [f"{targets.dropped_turns} turns dropped to fit"] if targets.dropped_turns else []
    return "; ".join(parts + ([f"{targets.n_cut} targets cut"] if targets.n_cut else []))
