"""What stands before the first update of any training: data, prompts, the opened model, and where a resume starts."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from dialtune.checkpoints import Checkpoint, newest_checkpoint, open_checkpoint
from dialtune.config.loading import load_any_config
from dialtune.config.schema import TrainingConfig
from dialtune.data.cleaning import clean_examples
from dialtune.data.leakage import audit_training
from dialtune.data.reading import DataSet, read_examples
from dialtune.data.seen import fingerprint_dialogues, write_seen
from dialtune.data.turns import for_task
from dialtune.errors import CheckpointError, ConfigError
from dialtune.models.base import LanguageModel, Sampling
from dialtune.models.loading import (
    OpenModel,
    bf16_is_faster,
    choose_device,
    find_trained_on,
    load_model,
    resolve_folder,
)
from dialtune.models.lora import attach_lora
from dialtune.models.reference import is_adapter
from dialtune.prompts import build_prompts
from dialtune.runs import RunFolder
from dialtune.seeds import seed_for
from dialtune.tasks import Task, find_task
from dialtune.types import Example, Prompt

Config = TypeVar("Config", bound=TrainingConfig)


def task_of(config: TrainingConfig) -> Task:
    """The recipe's task, asked by the recipe's template."""
    task = find_task(config.task)
    return task if config.template is None else replace(task, template=config.template)


def with_compute_dtype(config: Config) -> Config:
    """The recipe with `bf16: auto` decided for this machine, so that config.yaml says what was computed."""
    if config.bf16 != "auto":
        return config
    return config.model_copy(update={"bf16": not config.fp16 and bf16_is_faster(choose_device("auto"))})


def decoding_of(config: TrainingConfig, cap: int) -> Sampling:
    """How a run makes the completions that choose its checkpoint; `cap` tokens where the recipe names no number."""
    asked = config.generation
    return Sampling(
        max_new_tokens=asked.max_new_tokens or cap,
        temperature=asked.temperature if asked.do_sample else 0.0,
        top_p=asked.top_p,
        top_k=asked.top_k,
        num_beams=asked.num_beams,
        length_penalty=asked.length_penalty,
    )


def open_for_training(config: TrainingConfig, weights: Path | None = None) -> OpenModel:
    """The recipe's model with its trainable parts in fp32 (an adapter, or everything) and frozen weights in bf16.

    A recipe with `lora` on a model that is an adapter goes on with that adapter: a second one on top could not be saved
    without the first. Without `lora` the adapter is merged and every weight is trained.
    """
    half: Literal["bfloat16", "float32"] = "bfloat16" if config.bf16 is True else "float32"
    goes_on = weights is not None or (config.lora is not None and is_adapter(config.model, config.model_revision))
    model = load_model(
        config.model if weights is None else str(weights),
        dtype=half if config.lora else "float32",
        revision=config.model_revision if weights is None else None,
        trust_remote_code=config.trust_remote_code if weights is None else False,
        merge_adapter=not goes_on,
    )
    if config.lora and goes_on:
        _check_rank(config, config.model if weights is None else str(weights))
    elif config.lora:
        model = attach_lora(
            model,
            r=config.lora.r,
            alpha=config.lora.alpha,
            dropout=config.lora.dropout,
            target_modules=config.lora.target_modules,
            seed=seed_for(config.seed, "lora"),
        )
    if config.gradient_checkpointing:
        old = model.core.gradient_checkpointing_enable  # its name until transformers 5.2x
        getattr(model.core, "activation_checkpointing_enable", old)({"use_reentrant": False})
        model.core.enable_input_require_grads()
    return model


def _check_rank(config: TrainingConfig, name: str) -> None:
    assert config.lora is not None
    rank = json.loads((resolve_folder(name) / "adapter_config.json").read_text(encoding="utf-8")).get("r")
    if rank != config.lora.r:
        raise ConfigError(
            f"lora.r: got {config.lora.r}; {name} is an adapter of rank {rank}, and training goes on with it; "
            f"set lora: {{r: {rank}}}"
        )


@dataclass(frozen=True, slots=True)
class Sets:
    """The data of a training; `leakage` is what `audit_training` found, None if it was not asked."""

    train: DataSet
    validation: DataSet | None
    leakage: dict[str, dict[str, int]] | None = None


def read_sets(config: TrainingConfig) -> Sets:
    """Everything that a recipe trains on and chooses by, dialogues that leak dealt with as it says.

    Raises:
        DataError: rows that were rejected; or dialogues that leak, under `data.leaks: stop`.
    """
    data, found = config.data, None
    train = _read_rows(config, data.train, data.max_train_rows)
    validation = data.validation and _read_rows(config, data.validation, data.max_validation_rows)
    if data.leaks is not None:
        test = data.test and _read_rows(config, data.test, None)
        held_out = {"validation": validation, "test": test}
        train, found = audit_training(train, {name: one for name, one in held_out.items() if one}, data.leaks)
    train = for_task(train, config.task, data.turns)
    return Sets(train, for_task(validation, config.task, data.turns) if validation else None, found)


def read_data(config: TrainingConfig, source: str, limit: int | None) -> DataSet:
    """One of the recipe's sources, read and cleaned as the recipe says; replies for task `respond`."""
    return for_task(_read_rows(config, source, limit), config.task, config.data.turns)


def _read_rows(config: TrainingConfig, source: str, limit: int | None) -> DataSet:
    data = config.data
    found = read_examples(
        source,
        layout=data.layout,
        limit=limit,
        on_bad_rows=data.on_bad_rows,
        max_bad_fraction=data.max_bad_fraction,
        columns=data.columns or None,
    )
    if not data.clean:
        return found
    return replace(found, examples=clean_examples(found.examples, data.clean).examples)


def record_seen(run: RunFolder, train: DataSet, config: TrainingConfig) -> list[dict[str, Any]]:
    """Write trained_on.safetensors, what the start model was trained on included; returns its sources."""
    dialogues = replace(train, examples=train.dialogues or train.examples, dialogues=())
    seen = fingerprint_dialogues(dialogues.examples, train.name, dialogues.fingerprint)
    before = find_trained_on(config.model)
    seen = seen if before is None else before + seen
    write_seen(run.trained_on, seen)
    return list(seen.sources)


def prompts_of(config: TrainingConfig, task: Task, model: LanguageModel, examples: Sequence[Example]) -> list[Prompt]:
    """Prompts that fit both the recipe's budget and the model, whole turns dropped and counted."""
    limit = prompt_limit(config, model)
    return build_prompts(examples, task, max_prompt_tokens=limit, count_tokens=model.count_tokens)


def prompt_limit(config: TrainingConfig, model: LanguageModel) -> int | None:
    """The most tokens of a prompt: the recipe's budget or the model's limit; None: there is neither."""
    limits = [limit for limit in (config.max_prompt_length, model.max_prompt_tokens) if limit is not None]
    return min(limits) if limits else None


def start_of(run: RunFolder, resume: str | None) -> Checkpoint | None:
    """The checkpoint to go on from: None for a new run.

    Args:
        run: its folder.
        resume: None for a new run, `newest`, or the path of a checkpoint of this run.
    Raises:
        ConfigError: the folder holds a run already, or newer checkpoints than the one named.
    """
    if run.grid.exists():
        raise ConfigError(f"output_dir: {run.path} holds a grid of runs; choose another output_dir for a single run")
    if resume is None:
        if run.checkpoints():
            raise ConfigError(
                f"output_dir: {run.path} already holds checkpoint-{max(run.checkpoints())}; "
                "go on with --resume, or choose another output_dir"
            )
        return None
    if resume == "newest":
        return newest_checkpoint(run.path)
    start = open_checkpoint(Path(resume))
    newer = [f"checkpoint-{step}" for step in run.checkpoints() if step > start.step]
    if newer:  # a later --resume would go on from them, with rows of metrics.jsonl from here
        raise ConfigError(
            f"resume: {run.path} also holds {', '.join(newer)}, made after {start.path.name}; "
            "delete or move what is newer, or give --resume without a path to go on from the newest"
        )
    return start


def check_same_run(start: Checkpoint, fingerprint: str, config: TrainingConfig, run: RunFolder, force: bool) -> None:
    """Refuse to go on under another recipe or other data, unless forced; the message names the changed keys.

    A recipe of an older version that lacks a key is the same one as long as that key has its default.
    """
    if start.fingerprint == fingerprint or force:
        return
    changed = _changed_keys(run, config) if run.config.exists() else []
    same_recipe = run.config.exists() and not changed
    first = int(same_recipe)  # the hash of the same recipe differs where that of an older version had fewer keys
    old, new = start.fingerprint.split(":")[first:], fingerprint.split(":")[first:]
    if same_recipe and old == new:
        return
    same_data = old[: 3 - first] == new[: 3 - first]
    learned = " or of a learned reward" if fingerprint.count(":") > 3 else ""  # behind that of the start policy
    source = f"the weights of {config.model}{learned} changed" if same_data else "the data changed"
    what = f"changed keys: {', '.join(changed)}" if changed else source
    raise ConfigError(
        f"{start.path}: saved under another recipe or other data; {what}. "
        "Undo the change, start in another output_dir, or go on all the same with --force"
    )


def _changed_keys(run: RunFolder, config: TrainingConfig) -> list[str]:
    old, new = load_any_config(run.config).model_dump(mode="json"), config.model_dump(mode="json")
    return [key for key in new if new[key] != old.get(key) and key != "output_dir"]


def notes_of(config: TrainingConfig, task: Task) -> dict[str, Any]:
    """How the model is asked, for those who ask it later: kept beside its weights."""
    notes = {"task": config.task, "template": task.template, "max_prompt_length": config.max_prompt_length}
    turns = config.data.turns
    said = {"speaker": turns.speaker, "window": turns.window, "system": turns.system}
    return notes | ({"turns": said} if config.task == "respond" else {})


def data_facts(sets: Sets) -> dict[str, Any]:
    """What run.json records about the data; `leakage` where it was looked for."""
    facts: dict[str, Any] = {
        name: {
            "name": found.name,
            "rows": len(found.examples),
            "fingerprint": found.fingerprint,
            "counts": found.counts,
        }
        for name, found in {"train": sets.train, "validation": sets.validation}.items()
        if found is not None
    }
    return facts if sets.leakage is None else facts | {"leakage": sets.leakage}


def command_line() -> str:
    """As it was typed; the program by its name alone, and a notebook's kernel without its own arguments."""
    program = Path(sys.argv[0]).name
    if program == "__main__.py":
        program = "dialtune"
    return program if program.endswith("kernel_launcher.py") else shlex.join([program, *sys.argv[1:]])


def result_of(run: RunFolder, step: int) -> Path:
    """The result's checkpoint; with on_save_error: continue, the newest there is if that one could not be written."""
    result = run.checkpoint(step)
    if result.is_dir():
        return result
    newest = newest_checkpoint(run.path)
    if newest is None:
        raise CheckpointError(f"{run.path}: trained, but no checkpoint could be written; free some space and run again")
    return newest.path
