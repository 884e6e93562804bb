"""Dialogues about one thing each, so that a reply shows which one it belongs to; recipes for a tiny encoder."""

from __future__ import annotations

import atexit
import json
import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from tiny_encoder import save_tiny_encoder

from dialtune.config.reward_schema import RewardConfig

TOPICS = ("cake", "train", "brute", "monday", "tea", "bus", "station", "noon")
PHRASES = (
    "the {} and the table",
    "they agree to {} at ten",
    "you bring {} to nobody",
    "{} leaves !",
    "meet {} ?",
)


@cache
def home() -> Path:
    """A folder that lasts as long as the process."""
    folder = Path(tempfile.mkdtemp(prefix="dialtune-reward-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def encoder() -> str:
    return str(save_tiny_encoder(home() / "encoder"))


def rows(split: str, n: int, **columns: Any) -> list[dict[str, Any]]:
    """Dialogues of four turns that name their topic in every turn; `witty` rises with the topic's place."""
    draw = random.Random(split)
    found = []
    for number in range(n):
        topic = TOPICS[number % len(TOPICS)]
        turns = [draw.choice(PHRASES).format(topic) + f" {split[:2]}{number}" for _ in range(4)]
        said = "\n".join(f"#Person{1 + place % 2}#: {turn}" for place, turn in enumerate(turns))
        found.append({"id": f"{split}-{number}", "dialogue": said, "witty": number % len(TOPICS) + 1, **columns})
    return found


def preferences(split: str, n: int) -> list[dict[str, Any]]:
    """A reply on the topic is chosen, one on another topic rejected."""
    found = []
    for number in range(n):
        topic, other = TOPICS[number % 8], TOPICS[(number + 3) % 8]
        prompt = f"the {topic} and the table {split[:2]}{number}"
        found.append(
            {"id": f"{split}-{number}", "prompt": prompt, "chosen": f"meet {topic} ?", "rejected": f"meet {other} ?"}
        )
    return found


def write(path: Path, values: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return str(path)


@cache
def data() -> dict[str, str]:
    """Files of dialogues: train, validation, test."""
    sizes = {"train": 32, "validation": 24, "test": 16}
    return {split: write(home() / f"{split}.jsonl", rows(split, n)) for split, n in sizes.items()}


def values(**changes: Any) -> dict[str, Any]:
    """A recipe that takes a second: a frozen tiny encoder and a small head."""
    files = data()
    known: dict[str, Any] = {
        "model": encoder(), "data": {"train": files["train"], "validation": files["validation"], "leaks": "allow"},
        "output_dir": "reward", "head_size": 8, "per_device_train_batch_size": 8, "num_train_epochs": 3,
        "learning_rate": 1e-2, "comparisons": 4, "bf16": False, "seed": 0, "max_turn_length": 32, "window": 2,
    }  # fmt: skip
    return known | changes


def recipe(**changes: Any) -> RewardConfig:
    return RewardConfig.model_validate(values(**changes))
