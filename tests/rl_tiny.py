"""Tiny start policies whose completions end by themselves, recipes for them, and rewards, for tests of the loop."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import make_model
from torch import Tensor

from dialtune.config.rl_schema import RLConfig
from dialtune.data.reading import read_examples
from dialtune.models.loading import load_model, save_model
from dialtune.models.lora import attach_lora
from dialtune.prompts import build_prompts
from dialtune.rewards.base import FunctionReward
from dialtune.rl.rollouts import Judged, Rollout, collect
from dialtune.runs import read_rows
from dialtune.tasks import find_task
from dialtune.trainers import rl_run
from dialtune.trainers.rl import Clock
from dialtune.trainers.rl_run import Prepared, run_rl
from dialtune.types import Example

KINDS = ("bart", "gpt2", "llama", "t5")
CAP = 24  # tokens a completion may have
# Fine-tuned until completions end, and not until they are all alike.
STEPS = {"bart": 40, "gpt2": 30, "llama": 30, "t5": 60}
LORA = {"r": 4, "dropout": 0.0}


@cache
def home() -> Path:
    """A folder that lasts as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="dialtune-rl-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_rows(path: Path, words: Sequence[str]) -> Path:
    """One DialogSum-like row per word."""
    rows = [
        {
            "id": word,
            "dialogue": f"#Person1#: hello {word}{' again' * (i % 3)}\n#Person2#: {word} is fine today",
            "summary": f"{word} now",
        }
        for i, word in enumerate(words)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@cache
def data() -> dict[str, str]:
    """Eight training rows and two others, as a recipe names them."""
    train = write_rows(home() / "train.jsonl", ["tea", "milk", "rain", "snow", "cars", "dogs", "cats", "books"])
    validation = write_rows(home() / "validation.jsonl", ["trains", "songs"])
    return {"train": str(train), "validation": str(validation)}


def examples() -> tuple[Example, ...]:
    return read_examples(data()["train"]).examples


@cache
def start_policy(kind: str) -> Path:
    """A saved tiny model that answers with a few words and a stop token more often than not."""
    torch.set_num_threads(1)
    model = make_model(kind)
    _fit(model, [example.references[0] for example in examples()], steps=STEPS[kind])
    return _saved(model, f"start-{kind}")


@cache
def start_adapter(kind: str) -> Path:
    """An adapter on `start_policy(kind)` that learned other answers: not its base by far."""
    model = load_model(str(start_policy(kind)), dtype="float32")
    adapted = attach_lora(model, r=4, alpha=16, dropout=0.0, target_modules="all-linear", seed=1)
    _fit(adapted, [f"{example.references[0]} she said" for example in examples()], steps=15)
    return _saved(adapted, f"adapter-{kind}")


def _fit(model: Any, targets: Sequence[str], *, steps: int) -> None:
    batch = model.training_batch(build_prompts(examples(), find_task("summarize")), targets)
    trained = [p for p in model.module.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (-model.logprobs(batch.query, batch.response, batch.mask).sum() / batch.mask.sum()).backward()
        optimizer.step()


def _saved(model: Any, name: str) -> Path:
    folder = home() / name
    folder.mkdir()
    save_model(model, folder, {"task": "summarize", "template": "summarize", "max_prompt_length": 1024})
    return folder


def rl_config(model: Path | str, out: Path | str, **settings: Any) -> RLConfig:
    """A recipe of a few small updates; the reward is given beside it, and `length` weighs next to nothing."""
    defaults: dict[str, Any] = {
        "method": "grpo",
        "task": "summarize",
        "data": {"train": data()["train"]},
        "max_steps": 4,
        "rollout_batch_size": 4,
        "num_generations": 4,
        "per_device_train_batch_size": 2,
        "max_completion_length": CAP,
        "learning_rate": 1e-3,
        "rewards": {"length": 0.01},
        "constraint": None,
        "alarm_scorer": None,
        "bf16": False,
        "eval_steps": 0,
        "truncation": "mask",
        "value_warmup_steps": 0,
        "seed": 3,
    }
    return RLConfig.model_validate({**defaults, "model": str(model), "output_dir": str(out), **settings})


def share_of_o(completions: Sequence[str], **_: Any) -> list[float]:
    """How much of a text is the letter o."""
    return [text.count("o") / (1 + len(text)) for text in completions]


def letter_reward(function: Callable[..., Any] = share_of_o, name: str = "letter", **settings: Any) -> FunctionReward:
    return FunctionReward(function, name, judges="other", **settings)


@dataclass
class ValueReward:
    """A reward by a function of the text; NaN is a fault, as everywhere."""

    value: Callable[[str], float]
    name: str = "value"
    judges: str = "other"

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Any:
        assert len(examples) == len(completions)
        return np.array([self.value(text) for text in completions], dtype=np.float64)


def judge_by(value: Callable[[str], float]) -> Callable[..., Judged]:
    """A judge without constraint: NaN makes a row invalid."""

    def judge(rows: Sequence[Example], texts: Sequence[str], lengths: Any, finish: Sequence[str]) -> Judged:
        assert len(rows) == len(texts) == len(lengths) == len(finish)
        found = torch.tensor([value(text) for text in texts], dtype=torch.float32)
        valid = torch.isfinite(found)
        return Judged(torch.where(valid, found, 0.0), valid, {"value": found})

    return judge


def metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without their wall-clock fields."""
    rows = read_rows(run / "metrics.jsonl")
    return [{key: row[key] for key in row if not key.endswith("_s")} for row in rows]


def updates(run: Path) -> list[dict[str, Any]]:
    """The rows of updates: without the evaluation of the start policy."""
    return [row for row in metrics(run) if row["step"]]


def trained(kind: str, out: Path, *, reward: Any = None, on_event: Any = None, **settings: Any) -> Path:
    config = rl_config(start_policy(kind), out, **settings)
    return run_rl(config, rewards=[reward or letter_reward()], **({"on_event": on_event} if on_event else {}))


def unexamined(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the doctor, which has tests of its own."""
    monkeypatch.setattr(rl_run, "_checks", lambda prepared: [])


def weights_of(checkpoint: Path) -> dict[str, Tensor]:
    adapter = checkpoint / "adapter_model.safetensors"
    found = load_file(adapter if adapter.exists() else checkpoint / "model.safetensors")
    head = checkpoint / "value_head.safetensors"
    return found | (load_file(head) if head.exists() else {})


def start_weights(kind: str) -> dict[str, Tensor]:
    return load_file(start_policy(kind) / "model.safetensors")


def rollout_for(prepared: Prepared, *, old: bool) -> Rollout:
    """A rollout of the first four prompts; with `old`, log-probs of a policy that has moved since."""
    model, config = prepared.model, prepared.config
    rl_run._calibrate(prepared, least=True)
    rows = range(config.rollout_batch_size)
    rollout = collect(
        model, prepared.reference, [prepared.pool.examples[i] for i in rows], [prepared.pool.prompts[i] for i in rows],
        prepared.judging, sampling=rl_run._sampling(config), group=config.num_generations, seeds=list(rows), batch=2,
        timed=Clock(),
    )  # fmt: skip
    if not old:
        return rollout
    torch.manual_seed(0)
    moved = rollout.sampled_logprobs + 0.1 * torch.randn_like(rollout.sampled_logprobs)
    return replace(rollout, old_logprobs=moved * rollout.mask, values=torch.zeros_like(moved))
