"""How close in meaning a completion is to its dialogue and its references, by the packaged sentence encoder.

Cosines of unit vectors, clipped at 0. An encoder that is not installed makes its scores `not scored (reason)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import ClassVar, Literal

import numpy as np

from dialtune.data.dialogue import render_dialogue
from dialtune.errors import MissingExtraError
from dialtune.metrics.base import (
    Array,
    Direction,
    Metric,
    chosen_references,
    is_empty,
    prepare,
    reference_settings,
    signature,
)
from dialtune.models.embedder import MAX_TOKENS, MINILM, PACKAGED_ENCODERS, load_embedder, packaged_encoder_folder
from dialtune.types import Example

_ROWS = 512  # of the matrix of all texts against all contexts, held at once


def _sign(name: str, **settings: str) -> str:
    known = PACKAGED_ENCODERS[MINILM]
    sha = known.files["model.safetensors"][:8]
    return signature(name, encoder=known.title, sha=sha, pool="mean", long="cut", max=MAX_TOKENS, **settings)


@cache
def _missing() -> str | None:
    """Why the packaged encoder cannot be opened, in one line; None if it can."""
    try:
        packaged_encoder_folder(MINILM)
    except MissingExtraError as error:
        return " ".join(str(error).split())[:300]
    return None


@dataclass(frozen=True)
class RelevanceDialogue(Metric):
    """Cosine of completion and dialogue, its first 256 tokens with speaker tags, clipped at 0; 0 if empty."""

    name: ClassVar[str] = "relevance_dialogue"
    needs: ClassVar[str] = "a dialogue"
    direction: ClassVar[Direction] = "higher"

    def unavailable(self) -> str | None:
        return _missing()

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return _sign(self.name, agg="mean", empty="zero")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        contexts = [dialogue_text(example) for example in examples]
        scores = cosines(completions, contexts)
        return np.array([s if c else np.nan for s, c in zip(scores, contexts, strict=True)]).reshape(-1, 1)


@dataclass(frozen=True)
class RelevanceReference(Metric):
    """Cosine of completion and references, clipped at 0: their mean, the best, or one of them; 0 if empty."""

    reference: str = "first"
    needs: ClassVar[str] = "a reference"
    direction: ClassVar[Direction] = "higher"

    @property
    def name(self) -> str:
        return "relevance_reference_max" if self.reference == "max" else "relevance_reference"

    def with_reference(self, reference: str) -> RelevanceReference:
        if self.reference == "max":
            return self
        # The reference with the best ROUGE-1 is a choice of ROUGE; here every reference has its say.
        return replace(self, reference="mean" if reference == "best_rouge1" else reference)

    def unavailable(self) -> str | None:
        return _missing()

    def signature(self, references: tuple[int, int]) -> str:
        return _sign(self.name, **reference_settings(self.reference, references), empty="zero")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        rows = [chosen_references(example, self.reference) for example in examples]
        texts = [text for text, row in zip(completions, rows, strict=True) for _ in row]
        scores = cosines(texts, [target for row in rows for target in row])
        out, start = np.full((len(rows), 1), np.nan), 0
        for place, row in enumerate(rows):
            block = scores[start : start + len(row)]
            start += len(row)
            if row:
                out[place, 0] = block.max() if self.reference == "max" else block.mean()
        return out


@dataclass(frozen=True)
class ContextMatch(Metric):
    """How well a completion picks out its own dialogue among all dialogues of the data.

    `context_auc`: share of the other dialogues that are less similar to it than its own, ties half. `context_mrr`: one
    over the rank of its own, where ties share their middle rank. Both 0 for an empty completion. Copies of the own
    dialogue do not take part. Not scored: a row with no other dialogue to compare with.
    """

    kind: Literal["context_auc", "context_mrr"]
    needs: ClassVar[str] = "another dialogue to compare with"
    direction: ClassVar[Direction] = "higher"

    @property
    def name(self) -> str:
        return self.kind

    def unavailable(self) -> str | None:
        return _missing()

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return _sign(self.name, among="data", agg="mean", ties="half", empty="zero")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        contexts = [dialogue_text(example) for example in examples]
        others = sorted(set(contexts) - {""})
        place = {context: column for column, context in enumerate(others)}
        out = np.full((len(completions), 1), np.nan)
        rows = [row for row, context in enumerate(contexts) if context and len(others) > 1]
        for start in range(0, len(rows), _ROWS):
            block = rows[start : start + _ROWS]
            own = np.array([place[contexts[row]] for row in block])
            similar = _vectors([completions[row] for row in block]) @ _vectors(others).T  # (rows, contexts)
            out[block, 0] = self._score(similar, own)
        out[[row for row in rows if is_empty(completions[row])], 0] = 0.0
        return out

    def _score(self, similar: Array, own: Array) -> Array:
        mine = similar[np.arange(len(own)), own][:, None]
        tied = np.abs(similar - mine) < 1e-6  # equal texts differ in the last bits of float32
        n_tied, n_better = tied.sum(axis=1) - 1, (~tied & (similar > mine)).sum(axis=1)
        ahead: Array = n_better + n_tied / 2
        return 1 / (1 + ahead) if self.kind == "context_mrr" else 1 - ahead / (similar.shape[1] - 1)


def dialogue_text(example: Example) -> str:
    """The dialogue as the encoder reads it: one turn a line with its speaker's tag; empty if nobody says anything."""
    return render_dialogue(example.messages) if any(m.content.strip() for m in example.messages) else ""


def cosines(texts: Sequence[str], others: Sequence[str]) -> Array:
    """Cosine of each text with its other, (N,) in [0,1]: clipped at 0, and 0 where either is empty."""
    assert len(texts) == len(others), (len(texts), len(others))
    if not texts:
        return np.zeros(0)
    similar = np.einsum("nd,nd->n", _vectors(texts), _vectors(others))
    blank = np.array([is_empty(one) or is_empty(other) for one, other in zip(texts, others, strict=True)])
    return np.where(blank, 0.0, np.clip(similar, 0.0, 1.0))


def _vectors(texts: Sequence[str]) -> Array:
    """(N,D) float64 unit rows."""
    return load_embedder().embed([prepare(text) for text in texts]).astype(np.float64)
