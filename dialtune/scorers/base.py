"""What every toxicity scorer offers, probabilities from its logits, and the cache that scorers share by kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dialtune.models.text_cache import TextCache

__all__ = ["CACHE_SIZE", "TextCache", "ToxicityScorer", "probabilities", "sigmoid"]

CACHE_SIZE = 65_536  # texts a scorer remembers; one float each, so the texts themselves are the cost


class ToxicityScorer(Protocol):
    """A judge of single texts; toxic means a probability of at least 0.5 after calibration."""

    name: str

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) finite natural log-odds that each text is toxic; an empty text gets a low value."""
        ...

    def settings(self) -> dict[str, str]:
        """What a signature must say: `scorer`, `sha` (8 hex), `label`, `link`, `max` (tokens)."""
        ...


def probabilities(scorer: ToxicityScorer, texts: Sequence[str]) -> NDArray[np.float64]:
    """(N,) in [0, 1]: the sigmoid of the scorer's logits."""
    return sigmoid(scorer.logits(texts))


def sigmoid(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)), through tanh so that nothing overflows.

    >>> sigmoid(np.array([-1e9, 0.0, 1e9])).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.asarray(0.5 * (1.0 + np.tanh(np.asarray(logits, dtype=np.float64) / 2)), dtype=np.float64)
