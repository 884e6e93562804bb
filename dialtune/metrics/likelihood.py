"""How likely a model finds the true reply, and whether it needs the context for it: from sums that the model gave.

Texts alone have no likelihood, so each metric here is scored once `reply_likelihood` has bound what the model said
(`by`); until then it is not available. No torch here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import numpy as np

from dialtune.metrics.base import Array, Direction, Metric, signature
from dialtune.types import Example

Kind = Literal["perplexity", "context_margin", "context_margin_last", "context_ll_auc", "context_ll_mrr"]
KINDS: tuple[Kind, ...] = get_args(Kind)
N_WRONG = 9  # wrong contexts a reply is held against; with the true one ten candidates
TIE = 1e-4  # nats: what equal texts differ by when they are computed in other company
_NEEDS: dict[Kind, str] = {
    "perplexity": "a reference",
    "context_margin": "a reference and another dialogue to compare with",
    "context_margin_last": "a reference and more than one turn before it",
    "context_ll_auc": "a reference and another dialogue to compare with",
    "context_ll_mrr": "a reference and another dialogue to compare with",
}


@dataclass(frozen=True, eq=False)
class ReplyLogprobs:
    """Log-likelihoods of N true replies, summed over their tokens, stop token included; natural log, NaN: not asked.

    `true` (N,) under the own context, `last` (N,) under the last turn alone, `wrong` (N,K) under contexts of other
    dialogues. `n_tokens` (N,) of each reply; `tokens` names how they were cut: equal names, equal tokens.
    """

    true: Array
    last: Array
    wrong: Array
    n_tokens: Array
    tokens: str
    max_tokens: int


@dataclass(frozen=True)
class ReplyLikelihood(Metric):
    """One score of true replies under a model; nothing here reads what the model wrote itself.

    `perplexity`: exp of the mean negative log-likelihood per token, over all tokens of all replies.
    `context_margin`: log-likelihood per token under the true context minus the mean of that under nine wrong ones.
    `context_margin_last`: the same minus that under the last turn alone. Not scored: a context of one turn.
    `context_ll_auc`: share of the wrong contexts under which the reply is less likely, ties half.
    `context_ll_mrr`: one over the rank of the true context among all ten, where ties share their middle rank.
    """

    kind: Kind
    found: ReplyLogprobs | None = field(default=None, compare=False, repr=False)

    @property
    def name(self) -> str:
        return self.kind

    @property
    def needs(self) -> str:
        return _NEEDS[self.kind]

    @property
    def direction(self) -> Direction:
        return "lower" if self.kind == "perplexity" else "higher"

    @property
    def row_wise(self) -> bool:
        return self.kind != "perplexity"

    @property
    def log_scale(self) -> bool:
        return self.kind == "perplexity"

    @property
    def true_zero(self) -> bool:
        return not self.kind.startswith("context_margin")

    every_row: ClassVar[bool] = False

    def by(self, found: ReplyLogprobs) -> ReplyLikelihood:
        """The same metric with what a model said."""
        return replace(self, found=found)

    def unavailable(self) -> str | None:
        return None if self.found else "needs the model itself; texts alone have no likelihood"

    def signature(self, references: tuple[int, int]) -> str:
        del references
        tokens, longest = (self.found.tokens, self.found.max_tokens) if self.found else ("unknown", "unknown")
        cut = {"unit": "token", "stop": "counts", "max": longest, "tokens": tokens}
        if self.kind == "perplexity":
            return signature(self.name, refs="1", agg="corpus", **cut)
        if self.kind == "context_margin_last":
            return signature(self.name, refs="1", agg="mean", against="last-turn", **cut)
        ties = {} if self.kind == "context_margin" else {"ties": "half"}
        others = {"against": "other-dialogues", "k": N_WRONG, "near": "length", "seed": 0}
        return signature(self.name, refs="1", agg="mean", **others, **ties, **cut)

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        assert len(completions) == len(examples), (len(completions), len(examples))
        found = self.found
        if found is None:
            return np.full((len(examples), 1 if self.row_wise else 2), np.nan)
        assert len(found.true) == len(examples), (len(found.true), len(examples))
        if self.kind == "perplexity":
            return np.where(np.isnan(found.true)[:, None], np.nan, np.stack([-found.true, found.n_tokens], axis=1))
        if self.kind == "context_margin_last":
            return ((found.true - found.last) / found.n_tokens)[:, None]
        return np.array(
            [self._against(true, row, n) for true, row, n in zip(found.true, found.wrong, found.n_tokens, strict=True)]
        )[:, None]

    def _against(self, true: float, wrong: Array, n_tokens: float) -> float:
        """The row's score from the sums under its wrong contexts (K,), NaN where there are fewer."""
        others = wrong[~np.isnan(wrong)]
        if np.isnan(true) or not len(others):
            return np.nan
        if self.kind == "context_margin":
            return float((true - others.mean()) / n_tokens)
        tied = np.abs(others - true) < TIE
        ahead = float((~tied & (others > true)).sum() + tied.sum() / 2)
        return 1 / (1 + ahead) if self.kind == "context_ll_mrr" else 1 - ahead / len(others)

    def combine(self, sums: Array, n: Array) -> Array:
        if self.kind != "perplexity":
            return super().combine(sums, n)
        scored: Array = np.exp(sums[..., 0] / sums[..., 1])
        return scored
