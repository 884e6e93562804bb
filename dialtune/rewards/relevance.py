"""Relevance in [0, 1]: embedding similarity to dialogue and references, and any row-wise metric as a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np

from dialtune.errors import ConfigError
from dialtune.metrics.base import Metric, is_empty
from dialtune.metrics.relevance import context_text, cosines
from dialtune.rewards.base import Array, Judges, Mask, where_it_applies
from dialtune.types import Example


@dataclass(frozen=True)
class Relevance:
    """The weighted mean of two similarities, each a cosine of the packaged encoder's vectors, clipped at 0.

    To the dialogue (of a reply: its context): cos(completion, dialogue), no more than the mean that the row's own
    references reach. An echo of it is nearer to it than any summary, so more is not better.
    To the references: the mean of cos(completion, reference) over them, no more than the mean between two of them.

    A part applies if the row has a dialogue, or a reference with a letter in it; without a reference (two, for the
    second part) there is no cap. A row to which no part with a weight applies has no value. An empty completion is 0.

    Args:
        name: what parts and logs call it.
        dialogue, reference: weights >= 0, not both 0.
        capped: False leaves the cosines as they are.
    """

    name: str = "relevance"
    dialogue: float = 0.5
    reference: float = 0.5
    capped: bool = True
    judges: ClassVar[Judges] = "other"

    def __post_init__(self) -> None:
        weights = (self.dialogue, self.reference)
        if not (all(np.isfinite(weights)) and min(weights) >= 0 and sum(weights) > 0):
            got = f"dialogue {self.dialogue:g}, reference {self.reference:g}"
            raise ConfigError(f"reward '{self.name}': got weights {got}; allowed: >= 0 and not both 0")

    @property
    def needs(self) -> str:
        """What a row must bring."""
        return "dialogues" if self.dialogue else "references"

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [0,1], masked where neither part applies."""
        contexts = [context_text(example) for example in examples]
        golds = [[text for text in example.references if not is_empty(text)] for example in examples]
        above, below = np.zeros(len(completions)), np.zeros(len(completions))
        if self.dialogue:
            near, cap = cosines(completions, contexts), _dialogue_cap(contexts, golds)
            applies = np.array([bool(context) for context in contexts], dtype=np.bool_)
            above += np.where(applies, self.dialogue * self._capped(near, cap), 0.0)
            below += self.dialogue * applies
        if self.reference:
            near, cap = _reference_means(completions, golds), _reference_cap(golds)
            applies = np.array([bool(gold) for gold in golds], dtype=np.bool_)
            above += np.where(applies, self.reference * self._capped(near, cap), 0.0)
            below += self.reference * applies
        known: Mask = below > 0
        return where_it_applies(above / np.where(known, below, 1.0), known)

    def _capped(self, values: Array, cap: Array) -> Array:
        """The smaller of both (N,); NaN in `cap` is no cap, NaN in `values` is a fault and stays."""
        return np.where(np.isnan(cap), values, np.minimum(values, cap)) if self.capped else values


def _reference_means(completions: Sequence[str], golds: Sequence[Sequence[str]]) -> Array:
    """(N,) mean cosine of each completion with its references; NaN without any."""
    pairs = [(row, text, gold) for row, text in enumerate(completions) for gold in golds[row]]
    return _means(pairs, len(completions))


def _dialogue_cap(contexts: Sequence[str], golds: Sequence[Sequence[str]]) -> Array:
    """(N,) mean cosine of each dialogue with its references; NaN without any."""
    pairs = [(row, gold, context) for row, context in enumerate(contexts) for gold in golds[row]]
    return _means(pairs, len(contexts))


def _reference_cap(golds: Sequence[Sequence[str]]) -> Array:
    """(N,) mean cosine between two references of a row; NaN with fewer than two."""
    pairs = [(row, one, other) for row, gold in enumerate(golds) for one, other in combinations(gold, 2)]
    return _means(pairs, len(golds))


def _means(pairs: Sequence[tuple[int, str, str]], n: int) -> Array:
    """(N,) mean cosine of the pairs of each row; NaN for a row without a pair."""
    rows = np.array([row for row, _, _ in pairs], dtype=np.intp)
    found = cosines([one for _, one, _ in pairs], [other for _, _, other in pairs])
    counts = np.bincount(rows, minlength=n)
    sums = np.bincount(rows, weights=found, minlength=n)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True)
class MetricReward:
    """A row-wise metric's value for a completion, over `scale`: ROUGE counts to 100, a reward to 1.

    A row that the metric does not score has no value.
    """

    metric: Metric
    name: str = ""
    scale: float = 100.0
    judges: ClassVar[Judges] = "other"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.metric.name)
        if not self.metric.row_wise:
            raise ConfigError(
                f"reward '{self.name}': {self.metric.name} is a corpus score and says nothing about one text; "
                "take a row-wise metric such as rougeL"
            )

    @property
    def needs(self) -> str:
        """What a row must bring."""
        return "references"

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in the metric's unit over `scale`, masked where the metric does not apply."""
        values = self.metric.segments(completions, examples)[:, 0] / self.scale
        return where_it_applies(values, ~np.isnan(values))
