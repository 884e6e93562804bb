"""A reward opened to be a score for people, and whether the model that is scored was trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from dialtune.errors import MissingExtraError, ModelNotFoundError
from dialtune.metrics.base import Metric
from dialtune.metrics.reward import RewardScore, short_name
from dialtune.rewards.base import Array, Reward, score_safely
from dialtune.rewards.table import find_reward
from dialtune.runs import RunFolder
from dialtune.scorers.table import ALIASES
from dialtune.types import Example

_HOPS = 8  # runs that a model may descend from, one after the other


def open_score(metric: Metric, model: str) -> Metric:
    """The metric ready to score; any but an unopened `reward:NAME` is returned as it is.

    Args:
        metric: any.
        model: the name or folder of the model that will be scored. If its run.json, or that of the run it started from,
            says that this reward trained it, the score says so.
    Raises:
        ConfigError: no such reward.
        ModelError: a reward's folder that cannot be used.
    """
    if not isinstance(metric, RewardScore) or metric.score is not None:
        return metric
    try:
        reward = find_reward(metric.reward)
    except (MissingExtraError, ModelNotFoundError) as error:
        return replace(metric, problem=" ".join(str(error).split())[:300])

    def score(examples: Sequence[Example], completions: Sequence[str]) -> Array:
        return score_safely(reward, examples, completions).values

    settings = {
        key: _plain(value) for key, value in reward_settings(reward).items() if key not in ("name", "by", "agg")
    }
    warning = None
    if short_name(metric.reward) in map(short_name, training_rewards(model)):
        warning = "this reward also trained the model: a gain in it is no evidence; judge by another"
    return replace(metric, score=score, settings=tuple(settings.items()), problem=None, warning=warning)


def _plain(value: str) -> str:
    return value.replace(" ", "-").replace("|", "-")


def reward_settings(reward: Reward) -> dict[str, str]:
    """What a reward's values depend on, as words: what its `settings()` says, else the fields that it was made with."""
    told = getattr(reward, "settings", None)
    if callable(told):
        return {str(key): str(value) for key, value in told().items()}
    found: dict[str, str] = {}
    made: Any = reward
    names = [field.name for field in fields(made)] if is_dataclass(made) else []
    for name in names:
        value: Any = getattr(reward, name)
        if isinstance(value, str | int | float | None) and name != "name":
            found[name] = f"{value:g}" if isinstance(value, float) else str(value).lower()
        elif callable(getattr(value, "settings", None)):
            found |= {str(key): str(one) for key, one in value.settings().items()}
        elif isinstance(value, Metric):
            found["metric"] = value.name
    return found


def training_rewards(model: str) -> tuple[str, ...]:
    """Rewards and held qualities of every run that this model comes from; none for a model that no run made.

    A run folder, a checkpoint in one, or a name; what a run started from is followed.
    """
    names: list[str] = []
    for record in _runs_behind(model):
        said = record.get("rewards")
        if isinstance(said, dict):
            names += [name for key in ("rewards", "qualities") for name in said.get(key) or () if isinstance(name, str)]
    return tuple(dict.fromkeys(names))


def trained_scorer(model: str) -> str | None:
    """The toxicity scorer that was the first reward of a model's runs, by its short name; None if there was none.

    >>> trained_scorer("no such run")
    """
    for name in training_rewards(model):
        head, _, scorer = name.partition(":")
        if head == "toxicity":
            return ALIASES.get(scorer or head, scorer)
    return None


def alarm_scorers(model: str) -> tuple[str, ...]:
    """The toxicity scorers that watched a model's runs on rewards."""
    said = (record.get("rewards") for record in _runs_behind(model))
    names = [rewards.get("alarm") for rewards in said if isinstance(rewards, dict)]
    return tuple(dict.fromkeys(ALIASES.get(name, name) for name in names if isinstance(name, str)))


def _runs_behind(model: str) -> Iterator[dict[str, Any]]:
    for _ in range(_HOPS):
        path = Path(model)
        files = [RunFolder(folder).record for folder in (path, path.parent) if path.is_dir()]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            return
        try:
            record = json.loads(file.read_bytes())
        except ValueError:
            return
        if not isinstance(record, dict):
            return
        yield record
        start = record.get("model")
        name = start.get("name") if isinstance(start, dict) else None
        if not isinstance(name, str) or name == model:
            return
        model = name
