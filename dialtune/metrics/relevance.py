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
from dialtune.metrics.contexts import context_turns, dialogue_of, dialogue_units, wrong_contexts
from dialtune.metrics.text import words
from dialtune.models.embedder import MAX_TOKENS, MINILM, PACKAGED_ENCODERS, load_embedder, packaged_encoder_folder
from dialtune.types import Example

N_OTHERS = 99  # wrong contexts that a reply is held against; with its own a hundred
CONTEXT_WORDS = 170  # of the latest turns, which the encoder's 256 tokens hold nearly always
_ROWS = 512  # of the matrix of all texts against all contexts, held at once


def _sign(name: str, *, long: str = "cut", **settings: str) -> str:
    known = PACKAGED_ENCODERS[MINILM]
    sha = known.files["model.safetensors"][:8]
    return signature(name, encoder=known.title, sha=sha, pool="mean", long=long, max=MAX_TOKENS, **settings)


def _are_replies(examples: Sequence[Example]) -> bool:
    return any(dialogue_of(example) is not None for example in examples)


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
    """Cosine of completion and dialogue, its first 256 tokens with speaker tags, clipped at 0; 0 if empty.

    Of a reply it is the context that counts, `context_text`: its latest turns.
    """

    replies: bool = False
    name: ClassVar[str] = "relevance_dialogue"
    needs: ClassVar[str] = "a dialogue"
    direction: ClassVar[Direction] = "higher"

    def unavailable(self) -> str | None:
        return _missing()

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return _sign(self.name, long="latest-turns" if self.replies else "cut", agg="mean", empty="zero")

    def with_rows(self, examples: Sequence[Example], train: Sequence[Example] | None = None) -> RelevanceDialogue:
        del train
        return replace(self, replies=_are_replies(examples))

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        contexts = [context_text(example) for example in examples]
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
    """How well a completion picks out its own dialogue among others.

    `context_auc`: share of the others that are less similar to it than its own, ties half. `context_mrr`: one over the
    rank of its own, where ties share their middle rank. Both 0 for an empty completion. Not scored: a row with no other
    dialogue to compare with.

    The others are all other dialogues of the data, copies of the own one left out. For replies (`n_others` set) they
    are the contexts of up to 99 other dialogues, near in length (`contexts.wrong_contexts`).
    """

    kind: Literal["context_auc", "context_mrr"]
    n_others: int | None = None
    needs: ClassVar[str] = "another dialogue to compare with"
    direction: ClassVar[Direction] = "higher"

    @property
    def name(self) -> str:
        return self.kind

    def unavailable(self) -> str | None:
        return _missing()

    def with_rows(self, examples: Sequence[Example], train: Sequence[Example] | None = None) -> ContextMatch:
        del train
        others = min(N_OTHERS, len(set(dialogue_units(examples))) - 1)
        return replace(self, n_others=max(1, others) if _are_replies(examples) else None)

    def signature(self, references: tuple[int, int]) -> str:
        del references
        how = {"agg": "mean", "ties": "half", "empty": "zero"}
        if self.n_others is None:
            return _sign(self.name, among="data", **how)
        near = {"among": "other-dialogues", "k": str(self.n_others), "near": "length", "seed": "0"}
        return _sign(self.name, long="latest-turns", **near, **how)

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        out = np.full((len(completions), 1), np.nan)
        if self.n_others is None:
            self._among_all(completions, examples, out[:, 0])
        else:
            self._among_chosen(completions, examples, out[:, 0], self.n_others)
        return out

    def _among_all(self, completions: Sequence[str], examples: Sequence[Example], out: Array) -> None:
        """Fill `out` (N,) by comparing with every dialogue there is."""
        contexts = [dialogue_text(example) for example in examples]
        others = sorted(set(contexts) - {""})
        place = {context: column for column, context in enumerate(others)}
        rows = [row for row, context in enumerate(contexts) if context and len(others) > 1]
        for start in range(0, len(rows), _ROWS):
            block = rows[start : start + _ROWS]
            own = np.array([place[contexts[row]] for row in block])
            similar = _vectors([completions[row] for row in block]) @ _vectors(others).T  # (rows, contexts)
            mine = similar[np.arange(len(own)), own]
            similar[np.arange(len(own)), own] = -np.inf
            out[block] = self._score(mine, similar, len(others) - 1)
        out[[row for row in rows if is_empty(completions[row])]] = 0.0

    def _among_chosen(self, completions: Sequence[str], examples: Sequence[Example], out: Array, n: int) -> None:
        """Fill `out` (N,) by comparing each row with the contexts drawn for it."""
        wrong = wrong_contexts(examples, n)
        contexts = _vectors([context_text(example) for example in examples])
        texts = _vectors(completions)
        for row, others in enumerate(wrong):
            if others:
                similar = contexts[[row, *others]] @ texts[row]
                out[row] = self._score(similar[:1], similar[None, 1:], len(others))[0]
        out[[row for row, others in enumerate(wrong) if others and is_empty(completions[row])]] = 0.0

    def _score(self, mine: Array, similar: Array, n: int) -> Array:
        """(N,) from the similarity of the own context (N,) and of others (N,M), of which n count."""
        tied = np.abs(similar - mine[:, None]) < 1e-6  # equal texts differ in the last bits of float32
        ahead: Array = (~tied & (similar > mine[:, None])).sum(axis=1) + tied.sum(axis=1) / 2
        return 1 / (1 + ahead) if self.kind == "context_mrr" else 1 - ahead / n


def context_text(example: Example) -> str:
    """What a reply answers, as the encoder reads it: the latest whole turns of 170 words in all, one at least.

    The encoder cuts a long text at its end, which is what a reply answers. Any other row gives its `dialogue_text`.
    """
    if dialogue_of(example) is None:
        return dialogue_text(example)
    turns = context_turns(example)
    kept = len(turns) - 1
    budget = CONTEXT_WORDS - len(words(turns[-1].content)) if turns else 0
    while kept > 0 and (budget := budget - len(words(turns[kept - 1].content))) >= 0:
        kept -= 1
    return render_dialogue(turns[kept:]) if any(turn.content.strip() for turn in turns) else ""


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
