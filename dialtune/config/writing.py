"""A first recipe as text: the keys that a run is about, each under its doc line from the schema."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from dialtune.config.loading import check_rl_text, check_text, load_any_config
from dialtune.config.reading import as_yaml
from dialtune.config.rl_schema import RLConfig
from dialtune.config.schema import RunConfig, TaskName, TrainingConfig, explain
from dialtune.errors import ConfigError

METHODS = ("sft", "grpo", "rloo", "ppo")
# What each task is trained by, and on which packaged rows, if nobody says so.
USUAL_METHOD = {"summarize": "sft", "respond": "sft", "detoxify": "grpo"}
USUAL_DATA = {"summarize": "packaged:{}", "respond": "chitchat:{}", "detoxify": "packaged:{}:heated"}
USUAL_REWARDS = {
    "summarize": {"rougeL": 1.0},
    "respond": {"relevance": 1.0, "toxicity": 1.0},
    "detoxify": {"toxicity": 1.0},
}
# How published models were asked to summarize: the first pattern that the last part of a name matches.
_TEMPLATES = (("flan-t5", "summarize-flan"), ("t5", "summarize-t5"), ("bart|pegasus", "plain"))


def write_recipe(
    task: str,
    model: str,
    *,
    method: str | None = None,
    data: tuple[str | None, str | None] = (None, None),
    lora: bool = False,
    file: str = "recipe.yaml",
) -> str:
    """The text of a recipe that loads, every key commented.

    Args:
        task: summarize, respond or detoxify.
        model: as the key `model`.
        method: sft, grpo, rloo or ppo; None: what the task is usually trained by.
        data: rows to learn from and rows that choose the best checkpoint; without the first, both are packaged.
        lora: an adapter instead of all weights.
        file: what the text will be called, for its first lines and for messages.
    Raises:
        ConfigError: no such task or method, or a value that the schema refuses.
    """
    task = _one_of("task", task, get_args(TaskName))
    method = _one_of("method", method or USUAL_METHOD[task], METHODS)
    train, validation = data
    if train is None:
        train, validation = USUAL_DATA[task].format("train"), validation or USUAL_DATA[task].format("validation")
    learning: dict[str, Any] = {"lora": {"r": 16}} if lora else {"learning_rate": 5e-5 if method == "sft" else 1e-5}
    values: dict[str, Any] = {"task": task}
    values |= {} if method == "sft" else {"method": method}
    values |= {"model": model}
    template = usual_template(model, task)
    values |= {"template": template} if template else {}
    values |= {"data": {"train": train, "validation": validation}}
    values |= {"output_dir": f"runs/{task}-{Path(model.rstrip('/')).name}"}
    if method == "sft":
        values |= {"num_train_epochs": 3, **learning, "per_device_train_batch_size": 8}
    else:
        values |= {**learning, "max_steps": 100, "num_generations": 8, "rewards": USUAL_REWARDS[task]}
    text = "\n".join([*_head(method, file), *_lines(values, RunConfig if method == "sft" else RLConfig)]) + "\n"
    check_text(text, file) if method == "sft" else check_rl_text(text, file)
    return text


def _one_of(key: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ConfigError(f"{key}: got '{value}'; known: {', '.join(known)}")
    return value


def _head(method: str, file: str) -> list[str]:
    first = f"dialtune sft {file} --dry-run" if method == "sft" else f"dialtune doctor rl {file}"
    run, topic = (f"dialtune sft {file}", "") if method == "sft" else (f"dialtune rl {file}", " rl")
    return [
        f"# Look first: {first}",
        f"# Train:      {run}",
        f"# Every other key, with its range and default: dialtune config explain{topic}",
    ]


def usual_template(model: str, task: str) -> str | None:
    """How this model was asked before: what a folder of ours remembers, else what is known of a published name.

    None where that is the task's own template, or nothing is known.
    """
    folder = Path(model)
    if (folder / "dialtune.json").is_file():
        known = json.loads((folder / "dialtune.json").read_text(encoding="utf-8")).get("template")
        return str(known) if known else None
    if (folder / "config.yaml").is_file():
        return load_any_config(folder / "config.yaml").template
    if task == "respond" or folder.is_dir():
        return None
    name = folder.name.lower()
    return next((template for pattern, template in _TEMPLATES if re.search(pattern, name)), None)


def _lines(values: dict[str, Any], schema: type[TrainingConfig], prefix: str = "") -> Iterator[str]:
    """Each key under its doc line; a section's keys are set in by two columns."""
    margin = "  " * prefix.count(".")
    for key, value in values.items():
        _, allowed, default, doc = explain(prefix + key, schema)[0]
        if isinstance(value, dict) and allowed == "section":  # `lora` and `rewards` are read as one thing
            yield from ("", f"{margin}{key}:  # {doc}")
            yield from _lines(value, schema, f"{prefix}{key}.")
            continue
        if not prefix:
            yield ""
        known = f"[{allowed}; {default if default == 'required' else f'default {default}'}]"
        yield from (f"{margin}# {line}" for line in textwrap.wrap(f"{doc} {known}", 100, break_on_hyphens=False))
        yield margin + (as_yaml({key: value}) if not isinstance(value, dict) else f"{key}: {_flow(value)}\n").rstrip()


def _flow(values: dict[str, Any]) -> str:
    return "{" + ", ".join(as_yaml({key: value}).strip() for key, value in values.items()) + "}"
