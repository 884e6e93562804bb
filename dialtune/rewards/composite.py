"""Several rewards as one number per completion: each in units of the start policy's spread, weighted, summed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from dialtune.errors import CheckpointError, ConfigError, RewardError
from dialtune.metrics.base import is_empty
from dialtune.rewards.base import Array, Judges, Mask, OnFailure, Reward, RewardResult, score_safely
from dialtune.types import Example

CLIP = 5.0  # start-policy standard deviations
_LEAST_STD = 1e-6


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of one reward under the start policy, over n rows."""

    mean: float = 0.0
    std: float = 1.0
    n: int = 0


@dataclass(frozen=True)
class Rewards:
    """What N completions earned.

    `total` (N,) float64 is what the policy is trained on, NaN where not `valid`. `parts` name -> (N,) are the raw
    values, NaN where a part does not apply or failed. `valid` (N,) bool: the row may be used. `empty` (N,) bool: no
    letter and no digit. `problems` are lines for a log.
    """

    total: Array
    parts: Mapping[str, Array]
    valid: Mask
    empty: Mask
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompositeReward:
    """R = sum_k w_k * (clip((x_k - m_k) / sd_k, -5, 5) + m_k / sd_k), with m and sd of the start policy.

    That is x_k / sd_k, whose mean is left in, since the baseline takes it out; only what lies further than five
    standard deviations from the start policy's mean is cut. (Cutting x_k / sd_k itself at 5 would cut every value of
    a reward such as a cosine of 0.6 with a spread of 0.1.)

    A part that does not apply leaves its row's sum. A row with a part that failed, or to which no weighted part
    applies, is not valid. An empty completion gets `lowest`, whatever the parts say. Rewards of weight 0 are measured
    and not summed: the constraint reads them.

    Args:
        components: (reward, weight) pairs; names differ, weights are finite and not all 0.
        scales: name -> Scale, from `calibrated` or `restored`; a missing one is mean 0, std 1.
        on_failure: what a reward that failed twice does: `stop` raises, `mask` makes its rows invalid.
    """

    components: tuple[tuple[Reward, float], ...]
    scales: Mapping[str, Scale] = field(default_factory=dict)
    on_failure: OnFailure = "stop"
    name: ClassVar[str] = "composite"
    judges: ClassVar[Judges] = "other"  # its parts are probed one by one

    def __post_init__(self) -> None:
        names = [reward.name for reward, _ in self.components]
        weights = [weight for _, weight in self.components]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"rewards: '{twice[0]}' occurs {names.count(twice[0])} times; give each a name of its own"
            )
        if not all(map(math.isfinite, weights)) or not any(weights):
            got = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True)) or "none"
            raise ConfigError(f"rewards: got weights {got}; allowed: finite numbers, at least one of them not 0")

    @property
    def lowest(self) -> float:
        """What an empty completion earns: one below the least that any other row can, in any mix of parts."""
        ends = 0.0
        for reward, weight in self.components:
            scale = self._scale(reward.name)
            # min with 0: a part that does not apply adds nothing, which may be less than the least that it can add.
            ends += min(0.0, weight * scale.mean / scale.std - CLIP * abs(weight))
        return ends - 1.0

    def measure(self, examples: Sequence[Example], completions: Sequence[str]) -> Rewards:
        """Total and parts for N completions; examples[i] belongs to completions[i].

        Raises:
            RewardError: a reward failed twice and `on_failure` is `stop`.
        """
        n = len(completions)
        total, usable, counted = np.zeros(n), np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        parts: dict[str, Array] = {}
        problems: list[str] = []
        for reward, weight in self.components:
            result = score_safely(reward, examples, completions, on_failure=self.on_failure)
            total += self._contribution(reward.name, weight, result)
            usable &= ~result.bad
            counted |= ~np.isnan(result.values) & (weight != 0)
            parts[reward.name] = result.values
            problems += result.problems
        empty = np.array([is_empty(text) for text in completions], dtype=np.bool_)
        if nothing := int((usable & ~counted & ~empty).sum()):
            problems.append(f"no reward applies to {nothing} of {n} completions, which are left out")
        valid = (usable & counted) | empty
        total = np.where(empty, self.lowest, np.where(valid, total, np.nan))
        return Rewards(total, parts, valid, empty, tuple(problems))

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) the totals, as any reward gives its values; NaN where a row is not valid."""
        return self.measure(examples, completions).total

    def _scale(self, name: str) -> Scale:
        return self.scales.get(name, Scale())

    def _contribution(self, name: str, weight: float, result: RewardResult) -> Array:
        """(N,) what a part adds to each row's sum; 0 where it does not apply."""
        scale = self._scale(name)
        away = np.clip((result.values - scale.mean) / scale.std, -CLIP, CLIP)
        return np.where(np.isnan(away), 0.0, weight * (away + scale.mean / scale.std))

    def calibrated(self, start: Rewards) -> CompositeReward:
        """The same rewards with the scales that `start`, completions of the start policy, show; they stay from then on.

        Empty and invalid rows do not count. A part whose values are all alike keeps std 1, its own unit.

        Raises:
            RewardError: fewer than two rows have a part.
        """
        scales = {}
        for name, values in start.parts.items():
            kept = values[start.valid & ~start.empty & ~np.isnan(values)]
            if len(kept) < 2:
                raise RewardError(
                    f"reward '{name}': {len(kept)} of {len(values)} completions of the start policy have a value; "
                    "its spread needs at least 2"
                )
            std = float(kept.std())
            scales[name] = Scale(float(kept.mean()), std if std > _LEAST_STD else 1.0, len(kept))
        return replace(self, scales=scales)

    def state(self) -> dict[str, dict[str, Any]]:
        """The scales as JSON values, for a checkpoint."""
        return {name: {"mean": s.mean, "std": s.std, "n": s.n} for name, s in self.scales.items()}

    def restored(self, state: Mapping[str, Mapping[str, Any]]) -> CompositeReward:
        """The same rewards with the scales of a checkpoint.

        Raises:
            CheckpointError: it holds the scales of other rewards.
        """
        mine = {reward.name for reward, _ in self.components}
        if set(state) != mine:
            raise CheckpointError(
                f"the checkpoint has scales for {', '.join(sorted(state)) or 'no reward'}; "
                f"the recipe has {', '.join(sorted(mine))}"
            )
        return replace(self, scales={name: Scale(s["mean"], s["std"], s["n"]) for name, s in state.items()})
