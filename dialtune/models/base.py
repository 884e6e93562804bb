"""The one question that everything after `models/` asks: how likely is each token of this response, given this query?

Dims: P prompts, G completions per prompt, B = P*G rows in prompt-major order (row p*G + g), Q query tokens,
R response tokens, D hidden, V vocabulary. Position r is always the view from which response token r is predicted,
so no caller shifts anything. A mask is True where a token counts, by position and never by its id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dialtune.results import ModelInfo
from dialtune.types import FinishReason, Message, Prompt

# Rows of the language-model head that are turned into fp32 logits at a time: 2,048 rows of a 50,000-token vocabulary
# are 0.4 GB.
HEAD_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Query:
    """Encoded prompts; the padding side is the family's affair."""

    ids: Tensor  # (P,Q) int64
    mask: Tensor  # (P,Q) bool

    def rows(self, start: int, stop: int) -> Query:
        """Prompts start to stop, cut to the longest of them."""
        ids, mask = self.ids[start:stop], self.mask[start:stop]
        used = mask.any(dim=0)
        return Query(ids[:, used], mask[:, used])


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Prompts with the texts to learn: right-padded responses, stop token included."""

    query: Query
    response: Tensor  # (B,R) int64
    mask: Tensor  # (B,R) bool


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was sampled, nothing re-tokenised; `logprobs` are those of the sampling distribution."""

    response: Tensor  # (B,R) int64
    mask: Tensor  # (B,R) bool, the stop token counts
    logprobs: Tensor  # (B,R) fp32, natural log, 0 outside the mask
    finish: tuple[FinishReason, ...]  # (B,)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. `temperature` 0 is greedy; with `num_beams` > 1 it must be 0.

    Nothing is inherited from a checkpoint's own generation file: no penalties, no forced tokens, no bans.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    num_beams: int = 1
    length_penalty: float = 1.0  # beam search only: scores are divided by length ** length_penalty

    @property
    def strategy(self) -> str:
        """`beam`, `greedy` or `sample`."""
        return "beam" if self.num_beams > 1 else "greedy" if self.temperature == 0 else "sample"


class LanguageModel(Protocol):
    """An encoder-decoder or a decoder-only model behind the same few verbs."""

    name: str

    @property
    def info(self) -> ModelInfo:
        """What eval.json records about the model."""
        ...

    @property
    def module(self) -> nn.Module:
        """The torch module; its parameters with requires_grad are what a trainer updates."""
        ...

    @property
    def device(self) -> torch.device:
        """Where queries and responses must live."""
        ...

    @property
    def hidden_size(self) -> int:
        """D, the width of `states`."""
        ...

    @property
    def max_prompt_tokens(self) -> int | None:
        """The longest query the architecture takes with room for a response, or None when it has no limit."""
        ...

    @property
    def one_sequence(self) -> bool:
        """Whether a response runs behind its query, so that one forward pass can score several replies of a dialogue.

        Position r then sees the query and the response before r as plain text: what a longer prompt that begins with
        these ids would see.
        """
        ...

    def query_ids(self, messages: Sequence[Message]) -> list[int]:
        """A prompt's ids, template and all; text that looks like a control token is broken up first."""
        ...

    def response_ids(self, target: str) -> list[int]:
        """A target's ids as the model would have to sample them, stop token at the end."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Query tokens that these messages cost."""
        ...

    def encode(self, prompts: Sequence[Prompt]) -> Query:
        """(P,Q)."""
        ...

    def batch(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> TrainingBatch:
        """Ids to padded tensors: P queries with P*G responses in prompt-major order; G is 1 in training."""
        ...

    def training_batch(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> TrainingBatch:
        """(B,R) with one response per prompt."""
        ...

    def decode(self, response: Tensor, mask: Tensor) -> list[str]:
        """(B,R) ids to B texts: special tokens skipped, stripped; nothing outside the mask is read."""
        ...

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """One readable piece per id, for people: what --dry-run prints."""
        ...

    def sample(self, query: Query, sampling: Sampling, *, seeds: Sequence[int], group: int = 1) -> Sampled:
        """(B,R), B = P*group; row p*group+g draws from (seeds[p], g) alone, whatever else is in the batch."""
        ...

    def states(self, query: Query, response: Tensor, mask: Tensor) -> Tensor:
        """(B,R,D) hidden states from which each response token is predicted."""
        ...

    def logprobs(
        self, query: Query, response: Tensor, mask: Tensor, *, temperature: float = 1.0, sampleable: bool = False
    ) -> Tensor:
        """(B,R) fp32, natural log, 0 outside the mask.

        Over the whole vocabulary, as a model's own `labels=` loss; with `sampleable` over the ids that `sample` may
        draw, so that the scored distribution is the sampled one.
        """
        ...

    def score(
        self, states: Tensor, response: Tensor, mask: Tensor, *, temperature: float = 1.0, sampleable: bool = False
    ) -> Tensor:
        """`logprobs` of a response whose `states` are already at hand: a value head reads the same ones."""
        ...

    def save(self, folder: Path) -> None:
        """Weights (safetensors) or adapter, config and tokenizer under Hugging Face's names."""
        ...


def recomputes(core: Any) -> bool:
    """Whether a transformers model computes activations anew in the backward pass: it then keeps no cache."""
    asked = (getattr(part, "gradient_checkpointing", False) for part in core.modules())
    return bool(core.training and any(asked))


def token_logprobs(
    head: nn.Module, states: Tensor, ids: Tensor, *, temperature: float = 1.0, forbidden: Tensor | None = None
) -> Tensor:
    """log softmax(head(states) / temperature)[ids], for M positions at once.

    Logits are fp32 and live for HEAD_CHUNK positions at a time; only supervised positions ever reach the head, which
    in a summarization batch saves about five sixths of its work.

    Args:
        head: maps (M,D) to (M,V).
        states: (M,D), any float dtype.
        ids: (M,) int64.
        temperature: > 0, the one that sampled.
        forbidden: (V,) bool, ids that cannot be sampled and get no probability, or None.
    Returns:
        (M,) fp32, <= 0.
    """
    parts = []
    for chunk, wanted in zip(torch.split(states, HEAD_CHUNK), torch.split(ids, HEAD_CHUNK), strict=True):
        logits = head(chunk).float()
        if forbidden is not None:
            logits = logits.masked_fill(forbidden, -torch.inf)
        if temperature != 1.0:
            logits = logits / temperature
        parts.append(-nn.functional.cross_entropy(logits, wanted, reduction="none"))
    return torch.cat(parts) if parts else states.new_zeros(0, dtype=torch.float32)


def scatter_rows(values: Tensor, mask: Tensor) -> Tensor:
    """(M,) values put back where `mask` (B,R) is True, zero elsewhere; differentiable."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def only_trained_adapter(module: Any) -> dict[str, list[str]]:
    """What `save_pretrained` is told, so that a frozen copy of the start policy stays out of the saved folder."""
    return {"selected_adapters": ["default"]} if hasattr(module, "peft_config") else {}


def pad_right(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged ids to (N,T) int64 and a mask (N,T) bool, True on the ids."""
    width = max((len(row) for row in rows), default=0)
    ids = torch.tensor([[*row, *([pad_id] * (width - len(row)))] for row in rows], dtype=torch.int64)
    lengths = torch.tensor([len(row) for row in rows])
    mask = torch.arange(width)[None, :] < lengths[:, None]
    return ids.reshape(len(rows), width).to(device), mask.to(device)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Like `pad_right`, with the padding in front."""
    ids, mask = pad_right([row[::-1] for row in rows], pad_id, device)
    return ids.flip(1), mask.flip(1)


def mask_after_stop(response: Tensor, stop_ids: Sequence[int]) -> Tensor:
    """(B,R) True up to and including the first stop token of each row; all True in a row without one."""
    is_stop = torch.isin(response, torch.tensor(list(stop_ids), device=response.device))
    return (is_stop.cumsum(1) - is_stop.long()) == 0


def forbidden_ids(vocabulary: int, n_tokens: int, pad_id: int, device: torch.device) -> Tensor:
    """(V,) True on ids that are no tokens: padding, and logit rows beyond the tokenizer (Flan-T5 has 28 of them)."""
    index = torch.arange(vocabulary, device=device)
    return (index >= n_tokens) | (index == pad_id)
