"""ROUGE-1, -2, -L and -Lsum over rouge-score, with rouge-score-rs in its place where that proves equal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np

from dialtune.metrics.base import Array, Direction, Metric, chosen_references, prepare, reference_settings, signature
from dialtune.types import Example

TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Kind = Literal["rouge1", "rouge2", "rougeL", "rougeLsum"]

# Target, prediction and the four F1 by hand: stemmed "cats sat" meets "cat sat"; lines matter to Lsum alone.
_PROBES = (
    ("The cats sat\non the mat.", "A cat sat.", (4 / 9, 2 / 7, 4 / 9, 4 / 9)),
    ("one two three\nfour five", "four five\none two three", (1.0, 3 / 4, 3 / 5, 1.0)),
    ("#Person1# is running late.", "#person1 ran", (1 / 3, 0.0, 1 / 3, 1 / 3)),
    ("Zoë paid £20.", "", (0.0, 0.0, 0.0, 0.0)),
)


@dataclass(frozen=True)
class Rouge(Metric):
    """F1 x100 of one ROUGE type: the mean over rows of what a row's references say together.

    `reference` is `first`, `summary2` and so on, `mean` or `max` (each type takes its own best reference; the name then
    ends in `_max`), or `best_rouge1` (the reference with the best ROUGE-1 serves all types). `split` says what a line
    is to rougeLsum: `sentences` (after . ! ?) or `none` (the text's own lines).
    """

    kind: Kind
    reference: str = "first"
    stemmer: bool = True
    split: Literal["sentences", "none"] = "sentences"
    direction: ClassVar[Direction] = "higher"

    @property
    def name(self) -> str:
        return f"{self.kind}_max" if self.reference == "max" else self.kind

    def with_reference(self, reference: str) -> Rouge:
        # A metric asked for as rouge1_max stays what it is when the others take the mean.
        return self if self.reference == "max" else replace(self, reference=reference)

    def signature(self, references: tuple[int, int]) -> str:
        return signature(
            self.name,
            **reference_settings(self.reference, references),
            f="f1",
            stem="porter" if self.stemmer else "none",
            split=self.split if self.kind == "rougeLsum" else "none",
            case="lower",
            empty="zero",
            tool=f"rouge-score-{version('rouge-score')}",
        )

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        rows = [
            [(prepare(target), prepare(text)) for target in chosen_references(example, self.reference)]
            for text, example in zip(completions, examples, strict=True)
        ]
        scores = f_scores(tuple(pair for row in rows for pair in row), stemmer=self.stemmer, split=self.split)
        column = TYPES.index(self.kind)
        out, start = np.full((len(rows), 1), np.nan), 0
        for place, row in enumerate(rows):
            block = scores[start : start + len(row)]
            start += len(row)
            if row:
                out[place, 0] = 100 * self._over_references(block, column)
        return out

    def _over_references(self, block: Array, column: int) -> float:
        if self.reference == "max":
            return float(block[:, column].max())
        if self.reference == "best_rouge1":
            return float(block[int(block[:, 0].argmax()), column])
        return float(block[:, column].mean())


@lru_cache(maxsize=8)
def f_scores(pairs: tuple[tuple[str, str], ...], *, stemmer: bool, split: str) -> Array:
    """F1 of the four TYPES for (target, prediction) pairs, (M,4) in [0,1].

    All four at once, since tokenising and stemming cost most and the four metrics ask one after the other. Splitting
    turns white space into line ends, which only rougeLsum sees.
    """
    scorer = _scorer(stemmer)
    prepared = [(_lines(target), _lines(text)) for target, text in pairs] if split == "sentences" else list(pairs)
    out = np.zeros((len(prepared), len(TYPES)))
    for place, (target, text) in enumerate(prepared):
        scores = scorer.score(target, text)
        out[place] = [scores[kind].fmeasure for kind in TYPES]
    out.flags.writeable = False  # shared through the cache
    return out


def _lines(text: str) -> str:
    return re.sub(r"(?<=[.!?])\s+", "\n", text)


@cache
def _scorer(stemmer: bool) -> Any:
    """rouge-score-rs if it is installed and right on the probes, else rouge-score; both give the same bits."""
    with suppress(ImportError):
        from rouge_score_rs import RougeScorer as Fast

        if proves_equal(Fast):
            return Fast(list(TYPES), use_stemmer=stemmer)  # type: ignore[no-untyped-call]
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(TYPES), use_stemmer=stemmer)


def proves_equal(scorer_class: Any) -> bool:
    """True if this class scores the probes, whose fractions are worked out by hand, as rouge-score must."""
    scorer = scorer_class(list(TYPES), use_stemmer=True)
    return all(
        all(abs(scores[kind].fmeasure - want) < 1e-12 for kind, want in zip(TYPES, wanted, strict=True))
        for target, text, wanted in _PROBES
        for scores in (scorer.score(target, text),)
    )
