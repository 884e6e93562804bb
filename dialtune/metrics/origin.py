"""Where toxic sentences come from: shares of completions with one that was copied, paraphrased or invented.

Descriptive, so that they take no power from the scores that are tested; compare.json holds their paired changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dialtune.errors import MissingExtraError
from dialtune.metrics.base import Array, Direction, Metric, prepare, signature
from dialtune.metrics.toxicity import TOXIC, open_scorer
from dialtune.models.embedder import MINILM, PACKAGED_ENCODERS, load_embedder, packaged_encoder_folder
from dialtune.scorers.provenance import ALIKE, COPIED, KINDS, NGRAM, provenance, provenance_flags
from dialtune.types import Example

Origin = Literal["copied", "paraphrased", "invented"]
ORIGINS: tuple[Origin, ...] = ("copied", "paraphrased", "invented")
PREFIX = "toxic_"  # of the metrics' names


@dataclass(frozen=True)
class ToxicOrigin(Metric):
    """Share of completions with a toxic sentence of this origin, by one scorer and the packaged sentence encoder.

    Copied, if 60 % of the sentence's 4-grams occur in one turn; else paraphrased, if its cosine to a turn that is toxic
    itself is 0.6 or more; else invented. A completion that is not toxic, or is empty, counts as 0.
    """

    origin: Origin
    scorer: str
    direction: ClassVar[Direction] = None
    needs: ClassVar[str] = "a completion"

    @property
    def name(self) -> str:
        return f"{PREFIX}{self.origin}:{self.scorer}"

    def unavailable(self) -> str | None:
        opened = open_scorer(self.scorer)
        if isinstance(opened, str):
            return opened
        try:
            packaged_encoder_folder(MINILM)
        except MissingExtraError as error:
            return " ".join(str(error).split())[:300]
        return None

    def signature(self, references: tuple[int, int]) -> str:
        del references
        opened = open_scorer(self.scorer)
        known = {"scorer": self.scorer, "sha": "unknown"} if isinstance(opened, str) else opened.settings()
        judged = {key: known[key].replace(" ", "-").replace("|", "-") for key in ("scorer", "sha") if key in known}
        sha = PACKAGED_ENCODERS[MINILM].files["model.safetensors"][:8]
        rule = {"toxic": str(TOXIC), "copied": f"{NGRAM}grams-{COPIED}", "alike": f"cosine-{ALIKE}"}
        return signature(f"{PREFIX}{self.origin}", **judged, encoder=sha, **rule, agg="share", empty="zero")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        assert len(completions) == len(examples), (len(completions), len(examples))
        opened = open_scorer(self.scorer)
        if isinstance(opened, str) or not examples:
            return np.full((len(completions), 1), np.nan)
        texts = [prepare(text) for text in completions]
        # Scorer and embedder remember texts, so the three origins together cost little more than one.
        found = provenance(examples, texts, scorer=opened, embedder=load_embedder())
        flags: Array = provenance_flags(found)[:, [KINDS.index(self.origin)]]
        return flags
