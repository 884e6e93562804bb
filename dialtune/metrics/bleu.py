"""BLEU and chrF over sacrebleu: its statistics per row, its formulas over sums of many rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, ClassVar, Literal

import numpy as np

from dialtune.metrics.base import EVERY, Array, Direction, Metric, chosen_references, prepare, reference_settings
from dialtune.metrics.base import signature as write_signature
from dialtune.types import Example

ORDER = 4  # BLEU word n-grams
CHAR_ORDER = 6  # chrF character n-grams
BETA = 2  # chrF weighs recall twice as much as precision


@dataclass(frozen=True)
class Bleu(Metric):
    """Corpus BLEU (Papineni et al. 2002), 0 to 100, exponential smoothing, all chosen references at once.

    Statistics of a row: its length, the closest reference length, matches of order 1..4, n-grams of order 1..4.
    """

    reference: str = "first"
    lowercase: bool = False
    tokenize: Literal["13a", "none", "char", "intl", "zh"] = "13a"
    name: ClassVar[str] = "bleu"
    direction: ClassVar[Direction] = "higher"
    row_wise: ClassVar[bool] = False

    def with_reference(self, reference: str) -> Bleu:
        return replace(self, reference=reference)

    def signature(self, references: tuple[int, int]) -> str:
        return write_signature(
            self.name,
            **_corpus(self.reference, references),
            case="lc" if self.lowercase else "mixed",
            eff="no",
            tok=self.tokenize,
            smooth="exp",
            empty="zero",
            tool=f"sacrebleu-{version('sacrebleu')}",
        )

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        from sacrebleu.metrics.bleu import BLEU

        tool = BLEU(lowercase=self.lowercase, tokenize=self.tokenize, smooth_method="exp", force=True)
        return _segments(tool, completions, examples, self.reference, width=2 + 2 * ORDER)

    def combine(self, sums: Array, n: Array) -> Array:
        """BLEU from summed counts; mteval-v13a smoothing: the k-th order without a match counts 1 / (2^k total)."""
        del n
        length, ref_length = sums[..., 0], sums[..., 1]
        matches, totals = sums[..., 2 : 2 + ORDER], sums[..., 2 + ORDER :]
        missed = np.cumsum(matches == 0, axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            precision = np.where(matches > 0, matches, 0.5**missed) / totals
            brevity = np.where(length < ref_length, np.exp(1 - ref_length / length), 1.0)
            score = 100 * brevity * np.exp(np.log(precision).mean(axis=-1))
        # No text long enough for a 4-gram, or not one word in common: 0, as sacrebleu has it.
        scored: Array = np.where((totals > 0).all(axis=-1) & (matches > 0).any(axis=-1), score, 0.0)
        return scored


@dataclass(frozen=True)
class Chrf(Metric):
    """Corpus chrF2 (Popović 2015), 0 to 100; with several references a row takes its best one.

    Statistics of a row: for each order 1..6 the n-grams of the text, of the reference, and of both.
    """

    reference: str = "first"
    name: ClassVar[str] = "chrf"
    direction: ClassVar[Direction] = "higher"
    row_wise: ClassVar[bool] = False

    def with_reference(self, reference: str) -> Chrf:
        return replace(self, reference=reference)

    def signature(self, references: tuple[int, int]) -> str:
        return write_signature(
            self.name,
            **_corpus(self.reference, references),
            case="mixed",
            eff="yes",
            nc=CHAR_ORDER,
            nw=0,
            space="no",
            empty="zero",
            tool=f"sacrebleu-{version('sacrebleu')}",
        )

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        from sacrebleu.metrics.chrf import CHRF

        tool = CHRF(char_order=CHAR_ORDER, word_order=0, beta=BETA)
        return _segments(tool, completions, examples, self.reference, width=3 * CHAR_ORDER)

    def combine(self, sums: Array, n: Array) -> Array:
        """F2 of precision and recall, each averaged over the orders that both sides have."""
        del n
        text, reference, both = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
        used = (text > 0) & (reference > 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            orders = used.sum(axis=-1)
            precision = np.where(used, both / text, 0.0).sum(axis=-1) / orders
            recall = np.where(used, both / reference, 0.0).sum(axis=-1) / orders
            score = 100 * (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)
        scored: Array = np.nan_to_num(score, nan=0.0)
        return scored


def _corpus(reference: str, references: tuple[int, int]) -> dict[str, str]:
    """Mean, max and best all mean here: every reference goes in. The choice of one reference is named."""
    settings = reference_settings(reference, references)
    return {"refs": settings["refs"], "agg": "corpus" if reference in EVERY else f"corpus-{reference}"}


def _segments(
    tool: Any, completions: Sequence[str], examples: Sequence[Example], reference: str, *, width: int
) -> Array:
    """The tool's statistics per row, (N,width); NaN for rows without a reference.

    `_extract_corpus_statistics` is private, but chrF has no public way to its counts; tests hold both scores equal to
    `corpus_score`, and the requirement stays below sacrebleu 3.
    """
    rows = [[prepare(text) for text in chosen_references(example, reference)] for example in examples]
    out = np.full((len(rows), width), np.nan)
    kept = [place for place, row in enumerate(rows) if row]
    texts = [prepare(text) for text in completions]
    assert len(texts) == len(rows), (len(texts), len(rows))
    if kept:
        most = max(len(rows[place]) for place in kept)
        streams = [[rows[place][k] if k < len(rows[place]) else None for place in kept] for k in range(most)]
        out[kept] = tool._extract_corpus_statistics([texts[place] for place in kept], streams)
    return out
