"""A trained reward on rows it never saw: calibrated on one half, measured on the other, and its card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dialtune.config.reward_schema import RewardConfig
from dialtune.errors import DataError
from dialtune.markdown import code, plain, table
from dialtune.rewards.learned import LearnedReward, LearnedRewardConfig
from dialtune.rewards.measures import Measured, pair_accuracy, rank_correlation, roc_auc
from dialtune.scorers.base import sigmoid
from dialtune.trainers.contrast import CHEAP, SHUFFLED, Exchange, Lessons, RatedDialogue, ReplyPair
from dialtune.trainers.scorer import platt

Array = NDArray[np.float64]


def calibrate(reward: LearnedReward, lessons: Lessons) -> LearnedRewardConfig:
    """The reward's config with slope and intercept such that sigmoid(slope * raw + intercept) is a probability.

    By Platt's method on held-out rows of its first signal: of contexts and preferences, the better exchange of each
    pair is a 1 and the worse one a 0; of ratings, the mean value of a dialogue meets its rating between 0 and 1.

    Raises:
        DataError: nothing to calibrate on, or ratings that are all alike.
    """
    raw, targets = _calibration_rows(reward, lessons)
    if not len(raw) or np.ptp(targets) == 0:
        what = f"every rating is {targets[0]:.3g} of 1" if len(raw) else "no pair and no rated dialogue"
        raise DataError(
            f"held-out rows: {what}; a reward is calibrated on rows that differ: bring more to data.validation"
        )
    slope, intercept = platt(raw, targets, np.ones(len(raw)))
    return replace(reward.config, slope=slope, intercept=intercept)


def _calibration_rows(reward: LearnedReward, lessons: Lessons) -> tuple[Array, Array]:
    pairs = next((lessons.pairs[name] for name in reward.config.signals if lessons.pairs.get(name)), None)
    if pairs is None:
        means = _dialogue_means(reward, lessons.rated)
        return means, np.array([dialogue.target for dialogue in lessons.rated])
    better, worse = _values(reward, pairs)
    return np.concatenate([better, worse]), np.repeat([1.0, 0.0], len(pairs))


def measure(reward: LearnedReward, lessons: Lessons) -> dict[str, dict[str, Any]]:
    """Held-out numbers of each signal, JSON values.

    `contexts`: accuracy over shuffled pairs, its AUC, Brier score of the probabilities, and accuracy by kind, cheap
    ones beside it. `preferences`: accuracy. `ratings`: Spearman's correlation of the mean value of a dialogue's replies
    with its rating. Intervals resample dialogues.
    """
    found: dict[str, dict[str, Any]] = {}
    if contexts := lessons.pairs.get("contexts"):
        found["contexts"] = _measure_contexts(reward, contexts)
    if preferences := lessons.pairs.get("preferences"):
        better, worse = _values(reward, preferences)
        found["preferences"] = {"accuracy": pair_accuracy(better, worse, _units(preferences)).to_dict()}
    if lessons.rated:
        targets = [dialogue.target for dialogue in lessons.rated]
        found["ratings"] = {"spearman": rank_correlation(_dialogue_means(reward, lessons.rated), targets).to_dict()}
    return found


def _measure_contexts(reward: LearnedReward, pairs: Sequence[ReplyPair]) -> dict[str, Any]:
    better, worse = _values(reward, pairs)
    units, kinds = _units(pairs), np.array([pair.kind for pair in pairs])

    def accuracy(*chosen: str) -> Measured:
        rows = np.isin(kinds, chosen)
        return pair_accuracy(better[rows], worse[rows], units[rows])

    rows = np.isin(kinds, SHUFFLED)
    scores, labels = np.concatenate([better[rows], worse[rows]]), np.repeat([True, False], int(rows.sum()))
    chances = sigmoid(reward.config.slope * scores + reward.config.intercept)
    found: dict[str, Any] = {
        "accuracy": accuracy(*SHUFFLED).to_dict(),
        "auc": roc_auc(scores, labels, np.tile(units[rows], 2)).to_dict(),
        "brier": float(((chances - labels) ** 2).mean()) if len(scores) else None,
    }
    kinds_there = [kind for kind in (*SHUFFLED, *CHEAP) if kind in kinds]
    return found | {f"accuracy:{kind}": accuracy(kind).to_dict() for kind in kinds_there}


def _values(reward: LearnedReward, pairs: Sequence[ReplyPair]) -> tuple[Array, Array]:
    """Raw values of the better and of the worse exchange of each pair, (N,) each."""
    return _raw(reward, [pair.better for pair in pairs]), _raw(reward, [pair.worse for pair in pairs])


def _raw(reward: LearnedReward, exchanges: Sequence[Exchange]) -> Array:
    return reward.raw([one.context for one in exchanges], [one.reply for one in exchanges])


def _dialogue_means(reward: LearnedReward, rated: Sequence[RatedDialogue]) -> Array:
    return np.array([_raw(reward, dialogue.exchanges).mean() for dialogue in rated])


def _units(pairs: Sequence[ReplyPair]) -> NDArray[np.intp]:
    return np.array([pair.unit for pair in pairs], dtype=np.intp)


def card_text(config: LearnedRewardConfig, recipe: RewardConfig) -> str:
    """CARD.md: what it is, how well it does, what it learned from and under which licence."""
    training = config.training
    rows = [
        (plain(signal), plain(name), _number(value))
        for signal, numbers in config.measured.items()
        for name, value in numbers.items()
    ]
    sources = [
        (plain(role), code(facts["name"]), f"{facts['replies']:,}", f"{facts['dialogues']:,}", code(facts["licence"]))
        for role, facts in training["data"].items()
    ]
    signals = ", ".join(f"{name} (weight {weight:g})" for name, weight in recipe.signals.items())
    reader = f"{code(Path(config.base).name)} ({'fine-tuned' if config.scale else 'frozen'})"
    parts = [
        f"# {plain(config.name)}",
        "How good a reply is where it was given, in [0, 1]: a reward for `dialtune rl`, a score for `dialtune "
        f"evaluate`. It learned from {signals}, reads the last {config.window} turns and the reply with {reader}, and "
        "sees no system message.",
        "## Measured on held-out dialogues",
        table(("signal", "number", "value (95 % interval by dialogue)"), rows),
        _MEANING,
        "## Data",
        table(("role", "source", "replies", "dialogues", "licence"), sources),
        "Weights carry what their data allow: with a non-commercial or unstated licence above, so are these.",
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(parts) + "\n"


_MEANING = (
    "`accuracy` is the share of pairs in the right order: a true reply against another one of like length from another "
    "dialogue (`reply`), the same reply in another context (`context`), and, beside the main number, against the last "
    "turn said again (`echo`) and the one before it (`repeat`). `brier` is the mean "
    "squared error of the probability where one half is true (0.25: knows nothing). `spearman` compares the mean value "
    "of a dialogue's replies with its rating."
)
_LIMITS = (
    "A value is a guess about fit, not about truth, safety or manners: put a reward for toxicity beside it. A policy "
    "that is trained on it will look for its blind spots, so judge that policy by something else as well."
)


def _number(value: Any) -> str:
    if not isinstance(value, Mapping):
        return "not measured" if value is None else f"{value:.3f}"
    if value["value"] is None:
        return f"not measured ({plain(str(value.get('reason', '')))})"
    ci = f" ({value['ci'][0]:.3f} to {value['ci'][1]:.3f})" if value["ci"] else ""
    return f"{value['value']:.3f}{ci}, n {value['n']:,}"
