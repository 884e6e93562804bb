"""Stand-ins for scorers, encoders and rewards, each with one method that a test controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dialtune.data.dialogue import parse_dialogue
from dialtune.rewards.probes import load_probes
from dialtune.types import Example

TOXIC = frozenset(probe.text for probe in load_probes() if probe.family in ("toxic", "obfuscated"))


def example(name: str = "d1", dialogue: str = "#Person1#: Hi.\n#Person2#: Hello.", references: tuple[str, ...] = ()):
    return Example(name, parse_dialogue(dialogue), references)


@dataclass
class FakeScorer:
    """Logits by a function of the text."""

    logit: Callable[[str], float]
    name: str = "fake"
    label: str = "toxic"

    def logits(self, texts: Sequence[str]):
        return np.array([self.logit(text) for text in texts], dtype=np.float64)

    def settings(self) -> dict[str, str]:
        return {"scorer": self.name, "sha": "0" * 8, "label": self.label, "link": "sigmoid", "max": "256"}


@dataclass
class FakeEmbedder:
    """Unit vectors by text; a text that is not listed gets the last axis."""

    vectors: Mapping[str, Sequence[float]]
    size: int = 3
    asked: list[str] = field(default_factory=list)

    def embed(self, texts: Sequence[str]):
        self.asked += texts
        rows = [self.vectors.get(text, [0.0] * (self.size - 1) + [1.0]) for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), self.size)


@dataclass
class FakeReward:
    """Values by a function of the text, or of all texts."""

    value: Callable[[str], float]
    name: str = "fake"
    judges: str = "other"

    def scores(self, examples: Sequence[Example], completions: Sequence[str]):
        assert len(examples) == len(completions)
        return np.array([self.value(text) for text in completions], dtype=np.float64)
