"""What must not be lost while the reward rises: multipliers of constraints, the KL weight, and what is acceptable.

Lower toxicity is cheap if relevance may go: say little, say it blandly. So training maximises E[s] subject to
E[q_j] >= tau_j, by a multiplier per quality that rises while its quality is short and falls while there is slack
(Tessler et al. 2018, arXiv 1805.11074; for text Dai et al. 2023, arXiv 2310.12773). Numpy only; every state is frozen,
an update returns the next one, and JSON keeps it exactly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dialtune.errors import TrainingError
from dialtune.statistics import RESAMPLES, bootstrap_interval, resampled_sums, unit_sums

Array = NDArray[np.float64]

MEMORY = 0.9  # of the running mean, per rollout
CLIP = 5.0  # start-policy standard deviations that one quality can add to a completion
LEAST_START = 0.05  # a quality whose mean is lower cannot be held to 2 % of it
ROLLOUTS_AT_CAP = 20  # then the constraint cannot be met
KEPT_SHARE = 0.98  # of the start policy's quality, in an acceptable checkpoint
_LEAST_SD = 0.01  # of the mean: a quality that hardly varies must not make a multiplier jump
_BETA_STEP, _BETA_CLIP = 0.1, 0.2


@dataclass(frozen=True, slots=True)
class Multiplier:
    """One constrained quality: where it must stay, where it is, and how much it weighs now."""

    name: str
    tau: float  # bound on the mean, in the quality's unit
    sd: float  # of single completions under the start policy, > 0
    ema: float  # running mean over rollouts; starts at the start policy's mean
    value: float = 1.0  # lambda, >= 0
    at_least: bool = True  # False: the mean must stay at or below tau
    n_at_cap: int = 0  # rollouts in a row
    missing: float = 0.0  # what the last rollout left it short of tau, margin included, in sd; < 0: to spare
    pays: float = CLIP  # the largest slack of a completion that is rewarded, in sd; 0: none beyond the bound

    def slack(self, quality: ArrayLike) -> Array:
        """How far on the right side of tau, in standard deviations; NaN where the quality is."""
        away = (np.asarray(quality, dtype=np.float64) - self.tau) / self.sd
        return away if self.at_least else -away

    def updated(
        self, quality: Array, counts: NDArray[np.bool_], *, rate: float, cap: float, memory: float
    ) -> Multiplier:
        """The state after a rollout, given its quality (P,G) and which entries count; unchanged if none does."""
        if not counts.any():
            return self
        n = counts.sum(axis=1)
        sums = np.where(counts, quality, 0.0).sum(axis=1)
        means = sums[n > 0] / n[n > 0]
        ema = memory * self.ema + (1 - memory) * float(sums.sum() / n.sum())
        # Standard error of the running mean of rollouts of len(means) groups each.
        spread = float(means.std(ddof=1)) if len(means) > 1 else 0.0
        error = spread * math.sqrt((1 - memory) / (1 + memory) / len(means))
        missing = error / self.sd - float(self.slack(ema))
        value = min(max(self.value + rate * missing, 0.0), cap)
        n_at_cap = self.n_at_cap + 1 if value >= cap else 0
        return replace(self, ema=ema, value=value, n_at_cap=n_at_cap, missing=missing)


def quality_floor(name: str, start: ArrayLike, *, delta: float = 0.02, value: float = 1.0) -> Multiplier:
    """A multiplier that holds a quality's mean at (1 - delta) of the start policy's.

    Args:
        name: of the quality.
        start: (N,) in [0,1], its value for completions of the start policy, 0 for empty ones; NaN does not count.
        delta: share that may be lost, in [0,1).
        value: lambda before the first update.
    Raises:
        TrainingError: nothing was scored, a value is outside [0,1], or the mean is below 0.05.
    """
    mean, sd = _start(name, start)
    high, low = np.nanmax(start), np.nanmin(start)
    if low < 0 or high > 1:
        raise TrainingError(
            f"constraint '{name}': values from {low:.3g} to {high:.3g} under the start policy; a constrained quality "
            "is in [0, 1]: clip a cosine at 0, divide a score of 100 by 100"
        )
    if mean < LEAST_START:
        raise TrainingError(
            f"constraint '{name}': mean {mean:.3f} under the start policy; below {LEAST_START:g} there is nothing to "
            f"keep. Fine-tune the start policy first, or leave '{name}' out of constraint.qualities"
        )
    return Multiplier(name, (1 - delta) * mean, sd, mean, value)


def length_bounds(
    start: ArrayLike, shares: tuple[float, float] = (0.9, 1.2), *, value: float = 1.0
) -> tuple[Multiplier, Multiplier]:
    """Two multipliers, `length_min` and `length_max`, that keep the mean length near the start policy's.

    Args:
        start: (N,) tokens of the start policy's completions, 0 for empty ones.
        shares: the bounds, as shares of their mean.
        value: lambda of both before the first update.
    Raises:
        TrainingError: the start policy writes nothing.
    """
    mean, sd = _start("length", start)
    if mean <= 0:
        raise TrainingError("constraint 'length': the start policy writes nothing; fine-tune it first")
    low, high = shares
    return (
        Multiplier("length_min", low * mean, sd, mean, value, pays=0.0),
        Multiplier("length_max", high * mean, sd, mean, value, at_least=False, pays=0.0),
    )


def _start(name: str, start: ArrayLike) -> tuple[float, float]:
    """Mean and standard deviation of what was scored, the second at least a hundredth of the first."""
    values = np.asarray(start, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not len(values):
        raise TrainingError(
            f"constraint '{name}': no completion of the start policy has a value; check what it needs from a row"
        )
    mean = float(values.mean())
    return mean, max(float(values.std()), _LEAST_SD * mean)


def prompt_shifts(start: ArrayLike) -> Array:
    """How much better than the others each prompt lets the start policy be: (P,), mean 0 where every prompt is known.

    A rollout has few prompts, and what their means differ by is mostly the prompts' own. Taken off a rollout's values
    it leaves what the policy changed: a control variate with its best coefficient, between / (between + within / m),
    the share of the variance of the prompts' means that is no chance of their m completions (Glasserman 2003, 4.1).

    Args:
        start: (P,m) a quality of the start policy's completions, m >= 1; NaN does not count.
    Returns:
        (P,) 0 where a prompt has no value; all 0 where chance explains what differs, or cannot be told (m = 1).
    """
    table = np.asarray(start, dtype=np.float64)
    assert table.ndim == 2, table.shape
    whole = ~np.isnan(table).any(axis=1)
    shifts = np.zeros(len(table))
    m = table.shape[1]
    if m < 2 or whole.sum() < 2:
        return shifts
    means = table[whole].mean(axis=1)
    chance = float(table[whole].var(axis=1, ddof=1).mean()) / m
    total = float(means.var(ddof=1))
    if total > 0:
        shifts[whole] = max(0.0, 1 - chance / total) * (means - means.mean())
    return shifts


@dataclass(frozen=True, slots=True)
class Constraint:
    """All multipliers of a run.

    rate is the step of a multiplier per rollout, cap its largest value. memory, in [0, 1), is the share of a running
    mean that a rollout leaves: less follows the policy faster, and every rollout's luck too. proportional is what a
    standard deviation that is missing now adds to a multiplier, and one to spare takes away: with it a multiplier acts
    before its sum of steps has grown, and stops before that has shrunk (Stooke et al. 2020, arXiv 2007.03964).
    """

    multipliers: tuple[Multiplier, ...]
    rate: float = 0.1
    cap: float = 50.0
    memory: float = MEMORY
    proportional: float = 0.0

    def __post_init__(self) -> None:
        names = [multiplier.name for multiplier in self.multipliers]
        assert len(set(names)) == len(names), names
        assert all(multiplier.sd > 0 for multiplier in self.multipliers), self.multipliers

    def combine(
        self,
        s: ArrayLike,
        sd_s: float,
        qualities: Mapping[str, ArrayLike],
        *,
        empty: ArrayLike | None = None,
        penalties: ArrayLike | None = None,
    ) -> Array:
        """The reward that the policy is trained on, one per completion.

        R = (s / sd_s + sum_j lambda_j * clip(slack_j, -5, pays_j)) / (1 + sum_j lambda_j) - penalty
        slack_j = (q_j - tau_j) / sd_j, with the other sign where the quality must stay below tau
        pays_j  = 5, more of a quality is better; 0 for length, or the longest sibling wins until all are too long
        lambda_j = `weight(j)`

        Dividing by 1 + sum(lambda) keeps the reward's scale, hence the learning rate, while multipliers move.

        Args:
            s: (B,) what is to rise; NaN gives NaN.
            sd_s: its standard deviation under the start policy, > 0; 1 if it comes in such units.
            qualities: name -> (B,), one for every multiplier. NaN does not apply: that term leaves the row's sum, above
                and below the line.
            empty: (B,) bool; such rows get the worst slack of every quality that applies, and the largest penalty of
                any row, so that the lowest `s` stays the lowest reward. (No tokens would else be the best way not to
                be long.)
            penalties: (B,) >= 0, e.g. for truncation.
        """
        above = np.asarray(s, dtype=np.float64) / sd_s
        assert above.ndim == 1, above.shape
        below = np.ones_like(above)
        nothing = np.zeros(len(above), dtype=np.bool_) if empty is None else np.asarray(empty, dtype=np.bool_)
        for multiplier in self.multipliers:
            slack = np.clip(multiplier.slack(qualities[multiplier.name]), -CLIP, multiplier.pays)
            assert slack.shape == above.shape, (multiplier.name, slack.shape)
            applies = ~np.isnan(slack)  # to the row: an empty text is divided by what its siblings are
            slack = np.where(nothing, -CLIP, slack)
            weight = self.weight(multiplier)
            above = above + weight * np.where(applies, slack, 0.0)
            below = below + weight * applies
        minus = np.zeros_like(above) if penalties is None else np.asarray(penalties, dtype=np.float64)
        worst = minus.max(initial=0.0)
        result: Array = above / below - np.where(nothing, worst, minus)
        return result

    def weight(self, multiplier: Multiplier) -> float:
        """What a quality weighs in the next rollout's reward: clip(value + proportional * missing, 0, cap)."""
        if not self.proportional:
            return multiplier.value
        return min(max(multiplier.value + self.proportional * multiplier.missing, 0.0), self.cap)

    def update(self, qualities: Mapping[str, ArrayLike], group: int, valid: ArrayLike | None = None) -> Constraint:
        """The state after a rollout; once per rollout, after the policy's step.

        ema    <- m * ema + (1 - m) * mean(q),   m = memory
        lambda <- clip(lambda + rate * (se / sd - slack(ema)), 0, cap)
        se     =  sd of group means * sqrt((1 - m) / (1 + m) / P)

        The standard error is a margin: the mean must be on the right side by one sigma before lambda falls.

        Args:
            qualities: name -> (B,) in prompt-major order, 0 for empty completions; NaN does not count.
            group: G.
            valid: (B,) bool; rows with False do not count.
        """
        updated = []
        for multiplier in self.multipliers:
            table = np.asarray(qualities[multiplier.name], dtype=np.float64).reshape(-1, group)
            counts = ~np.isnan(table)
            if valid is not None:
                counts &= np.asarray(valid, dtype=np.bool_).reshape(-1, group)
            updated.append(multiplier.updated(table, counts, rate=self.rate, cap=self.cap, memory=self.memory))
        return replace(self, multipliers=tuple(updated))

    def infeasible(self) -> str | None:
        """Why no policy near this one meets a constraint, once its multiplier stood at the cap for 20 rollouts."""
        for m in self.multipliers:
            if m.n_at_cap >= ROLLOUTS_AT_CAP:
                bound = "at least" if m.at_least else "at most"
                return (
                    f"constraint '{m.name}' is infeasible: its multiplier stood at {self.cap:g} for {m.n_at_cap} "
                    f"rollouts and the mean is {m.ema:.3f}, where {bound} {m.tau:.3f} is needed; "
                    "allow more loss (constraint.delta), lower learning_rate, or start from a better policy"
                )
        return None

    def record(self) -> dict[str, float]:
        """`lambda:NAME`, `ema:NAME` and `tau:NAME` of every quality, for the log."""
        found: dict[str, float] = {}
        for m in self.multipliers:
            found |= {f"lambda:{m.name}": self.weight(m), f"ema:{m.name}": m.ema, f"tau:{m.name}": m.tau}
        return found

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        settings = {"rate": self.rate, "cap": self.cap, "memory": self.memory, "proportional": self.proportional}
        return {"multipliers": [asdict(m) for m in self.multipliers], **settings}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Constraint:
        """From `to_dict()`."""
        multipliers = tuple(Multiplier(**one) for one in state["multipliers"])
        return cls(multipliers, **{name: value for name, value in state.items() if name != "multipliers"})


def ratio_interval(
    before: ArrayLike,
    after: ArrayLike,
    *,
    unit: ArrayLike | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of mean(after) / mean(before) by a paired bootstrap over dialogues; its low end decides.

    Args:
        before: (N,) a quality of the start policy, one value per row, N >= 1, no NaN.
        after: (N,) the same of a checkpoint, in the same order.
        unit: (N,) integers, the same for rows that are drawn together, such as replies of one dialogue; None: each row
            is a dialogue.
        resamples: draws.
        seed: of the draws.
        level: coverage.
    Returns:
        (low, high); None if the mean before may be 0, or if there are not two dialogues.
    """
    pairs = np.stack([np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)], axis=1)
    assert pairs.ndim == 2, pairs.shape
    assert np.isfinite(pairs).all(), "leave out dialogues without a value, in both"
    if unit is not None:
        pairs = unit_sums(pairs, np.unique(np.asarray(unit), return_inverse=True)[1])
    if len(pairs) < 2:
        return None
    sums = resampled_sums(pairs, resamples=resamples, seed=seed)
    if sums[:, 0].min() <= 0:
        return None
    point = pairs.sum(axis=0)
    return bootstrap_interval(float(point[1] / point[0]), sums[:, 1] / sums[:, 0], units=len(pairs), level=level)


def is_acceptable(before: ArrayLike, after: ArrayLike, *, share: float = KEPT_SHARE, seed: int = 0) -> bool:
    """Whether a checkpoint is shown to keep a quality: the interval's low end is at least `share` of the start's."""
    interval = ratio_interval(before, after, seed=seed)
    return interval is not None and interval[0] >= share


@dataclass(frozen=True, slots=True)
class AdaptiveBeta:
    """The weight of the KL, which moves towards the value that keeps the KL at a target; fixed without a target.

    beta <- beta * (1 + 0.1 * clip((KL - target) / target, -0.2, 0.2))      Ziegler et al. 2019, arXiv 1909.08593
    """

    value: float  # beta, per nat
    target: float | None = None  # nats per completion, > 0; None: beta is fixed

    def update(self, kl: float) -> AdaptiveBeta:
        """The state after a rollout of `kl` nats per completion on average; a value that is not finite says nothing."""
        if self.target is None or not math.isfinite(kl):
            return self
        error = min(max((kl - self.target) / self.target, -_BETA_CLIP), _BETA_CLIP)
        return replace(self, value=self.value * (1 + _BETA_STEP * error))

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> AdaptiveBeta:
        """From `to_dict()`."""
        return cls(state["value"], state["target"])
