"""Civility: the bounded log-odds that a text is not toxic, from any toxicity scorer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dialtune.metrics.base import is_empty
from dialtune.rewards.base import Array, Judges
from dialtune.types import Example

if TYPE_CHECKING:
    from dialtune.scorers.base import ToxicityScorer


@dataclass(frozen=True)
class Civility:
    """s = clip(-logit(toxic), -c, s_sat): raw log-odds, since a probability is flat where text is very toxic.

    It saturates at s_sat, a toxic probability of about 0.02, so that clean text earns nothing by becoming bland, and
    at -c, so that one extreme text does not outweigh a batch. A completion without letters or digits gets -c: it
    must be the worst there is. Only the completion is read. A logit that is not finite stays NaN, a fault.
    """

    scorer: ToxicityScorer
    name: str = "toxicity"
    limit: float = 8.0  # c
    saturation: float = 4.0  # s_sat
    judges: ClassVar[Judges] = "toxicity"
    toxic_below: ClassVar[float] = 0.0  # probability 0.5
    needs: ClassVar[str] = ""

    @property
    def hint(self) -> str:
        """Which label of which scorer decides, for the message of a failed probe."""
        label = self.scorer.settings().get("label", "")
        return f"It reads {f'label {label!r} of ' if label else ''}the scorer '{self.scorer.name}'."

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [-limit, saturation]; higher is more civil."""
        del examples
        logits = np.asarray(self.scorer.logits(completions), dtype=np.float64)
        civil = np.clip(np.where(np.isfinite(logits), -logits, np.nan), -self.limit, self.saturation)
        return np.where([is_empty(text) for text in completions], -self.limit, civil)
