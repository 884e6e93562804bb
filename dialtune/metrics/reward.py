"""`reward:NAME`: the mean of a reward as a score, whatever the reward is.

Comparing needs no more than a name, a direction and a mean, so the metric alone opens nothing; `rewards.score` puts the
opened reward into it before anything is scored. That keeps one direction: rewards know metrics, metrics no reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import ClassVar

import numpy as np

from dialtune.metrics.base import Array, Direction, Metric, signature
from dialtune.types import Example

PREFIX = "reward:"
Score = Callable[[Sequence[Example], Sequence[str]], Array]  # (N,), NaN where the reward does not apply


def short_name(reward: str) -> str:
    """What a reward is called in results: its name, and of a folder's path the last part.

    >>> short_name("relevance"), short_name("runs/reward/"), short_name("toxicity:org/name#LABEL")
    ('relevance', 'reward', 'toxicity:org/name#LABEL')
    """
    return reward if ":" in reward or "/" not in reward else PurePath(reward).name


@dataclass(frozen=True)
class RewardScore(Metric):
    """Mean value of a reward over the completions. Not scored: a row to which the reward does not apply.

    Args:
        reward: what `rewards.table.find_reward` takes.
        score: the opened reward; None: not opened.
        settings: of the reward, for the signature.
        problem: why it could not be opened.
        warning: what a reader must know.
    """

    reward: str
    score: Score | None = field(default=None, compare=False, repr=False)
    settings: tuple[tuple[str, str], ...] = ()
    problem: str | None = "the reward has not been opened"
    warning: str | None = None
    direction: ClassVar[Direction] = "higher"
    true_zero: ClassVar[bool] = True
    needs: ClassVar[str] = "what the reward needs"

    @property
    def name(self) -> str:
        return PREFIX + short_name(self.reward)

    @property
    def note(self) -> str | None:
        return self.warning

    def unavailable(self) -> str | None:
        return None if self.score else self.problem

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature("reward", by=short_name(self.reward), **dict(self.settings), agg="mean")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        if self.score is None:
            return np.full((len(completions), 1), np.nan)
        return self.score(examples, completions).reshape(-1, 1)
