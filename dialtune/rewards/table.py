"""REWARDS: every built-in reward by name, with the function that builds it; `find_reward` also opens learned ones."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from dialtune.errors import ConfigError
from dialtune.metrics.table import METRICS
from dialtune.models.embedder import load_embedder
from dialtune.rewards.base import Reward
from dialtune.rewards.learned import load_reward
from dialtune.rewards.relevance import MetricReward, Relevance
from dialtune.rewards.text import CopyReward, FormatReward, LengthReward, NoEcho, NoRepetition
from dialtune.rewards.toxicity import Civility
from dialtune.scorers.table import find_scorer


def _toxicity(
    *,
    model: str = "minilm",
    label: str | None = None,
    limit: float = 8.0,
    saturation: float = 4.0,
    name: str = "toxicity",
) -> Reward:
    """Log-odds that the completion is not toxic, -8 to 4; `model` is any toxicity scorer, `label` its label."""
    if not (limit > 0 and -limit < saturation):
        raise ConfigError(
            f"reward '{name}': got limit {limit:g}, saturation {saturation:g}; allowed: -limit < saturation"
        )
    return Civility(find_scorer(model, label=label), name, limit, saturation)


def _relevance(
    *, dialogue: float = 0.5, reference: float = 0.5, capped: bool = True, name: str = "relevance"
) -> Reward:
    """Similarity to the dialogue and to its references, capped at what human references reach; 0 to 1."""
    load_embedder()  # if it cannot be opened, now is the time to say so
    return Relevance(name, dialogue, reference, capped)


def _relevance_dialogue(*, capped: bool = True, name: str = "relevance_dialogue") -> Reward:
    """Similarity to the dialogue, capped at that of its references; 0 to 1."""
    return _relevance(dialogue=1.0, reference=0.0, capped=capped, name=name)


def _relevance_reference(*, capped: bool = True, name: str = "relevance_reference") -> Reward:
    """Mean similarity to the references, capped at that between them; 0 to 1."""
    return _relevance(dialogue=0.0, reference=1.0, capped=capped, name=name)


def _rouge(*, reference: str = "mean", name: str = "rougeL") -> Reward:
    """ROUGE-L F1 against the references, 0 to 1."""
    return MetricReward(METRICS["rougeL"].with_reference(reference), name)


def _length(
    *, low: float = 5.0, high: float = 40.0, of: Literal["absolute", "reference"] = "absolute", name: str = "length"
) -> Reward:
    """1 for `low` to `high` words, less outside; `of: reference` makes the ends multiples of the references' length."""
    return LengthReward(low, high, of, name=name)


def _format(*, name: str = "format") -> Reward:
    """Legal speaker tags, and nothing said twice; 0 to 1."""
    return FormatReward(name)


def _copy(*, free: float = 0.3, name: str = "copy") -> Reward:
    """1 while at most `free` of the words are copied from a turn, less beyond that; 0 to 1."""
    return CopyReward(free, name)


def _no_repetition(*, name: str = "no_repetition") -> Reward:
    """Share of word 4-grams that the completion does not say again; 0 to 1."""
    return NoRepetition(name)


def _no_echo(*, name: str = "no_echo") -> Reward:
    """Share of the completion's word 3-grams that the last turn does not have; 0 to 1."""
    return NoEcho(name)


REWARDS: dict[str, Callable[..., Reward]] = {
    "toxicity": _toxicity,
    "relevance": _relevance,
    "relevance_dialogue": _relevance_dialogue,
    "relevance_reference": _relevance_reference,
    "rougeL": _rouge,
    "length": _length,
    "format": _format,
    "copy": _copy,
    "no_repetition": _no_repetition,
    "no_echo": _no_echo,
}


def is_learned(name: str) -> bool:
    """Whether a name means a folder: it is one, or has a slash, and no built-in reward is called so."""
    head = name.partition(":")[0]
    return head not in REWARDS and ("/" in head or (bool(name) and Path(name).is_dir()))


def find_reward(name: str, /, **settings: Any) -> Reward:
    """The reward called `name`, which is also what it is called in logs unless `name=` is a setting.

    A built-in one, or the folder of a learned one (`dialtune reward` makes them; a name with a slash is a folder).
    `toxicity:NAME` takes another toxicity scorer and `toxicity:NAME#LABEL` its label, as in recipes.

    Raises:
        ConfigError: an unknown name or setting, with those that exist.
        DialtuneError: the scorer, embedder or folder that it needs cannot be used.
    """
    if is_learned(name):
        if unknown := [key for key in settings if key != "name"]:
            raise ConfigError(f"reward '{name}': no setting '{unknown[0]}'; known: name")
        return load_reward(Path(name), name=settings.get("name", name))
    head, _, scorer = name.partition(":")
    if head not in REWARDS or (scorer and head != "toxicity"):
        close = get_close_matches(head, REWARDS, n=1)
        hint = f"did you mean '{close[0]}'? " if close and close[0] != head else ""
        known = f"{', '.join(REWARDS)}, toxicity:NAME#LABEL, or the folder of a learned reward"
        raise ConfigError(f"reward '{name}': unknown; {hint}known: {known}")
    if scorer:
        model, _, label = scorer.partition("#")
        settings = {"name": name, "model": model, "label": label or None} | settings
    allowed = list(inspect.signature(REWARDS[head]).parameters)
    if unknown := [key for key in settings if key not in allowed]:
        raise ConfigError(f"reward '{name}': no setting '{unknown[0]}'; known: {', '.join(allowed)}")
    return REWARDS[head](**settings)
