"""Attention of G completions to one prompt: its keys and values are kept once, and read once for all of them.

A cache that repeats the prompt G times makes every decoding step copy and read G prompts. Here the completions' queries
are stacked on the prompt's keys, (P, heads, G*T, Q), and one softmax runs over the prompt's and the completion's own
keys together: plain attention. Same idea for inference: Juravsky et al. 2024, arXiv 2402.05099 (Hydragen); here it also
carries gradients too, and those of a group add up in the one prompt.

Dims: P prompts, G completions each, B = P*G rows, K key/value heads, r queries heads per K, T new tokens, S a row's own
tokens so far, Q prompt tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

NAME = "dialtune_shared_prefix"


class SharedPrefixCache(DynamicCache):
    """What transformers sees as a cache: the rows' own keys and values, behind prompts that it knows nothing of."""

    def __init__(self, prompt: DynamicCache, mask: Tensor, group: int) -> None:
        super().__init__()
        layers: list[Any] = prompt.layers
        self.prompt = [(layer.keys.float(), layer.values.float()) for layer in layers]  # (P,K,Q,D) fp32
        self.bias = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)  # (P,Q)
        self.owner = torch.arange(len(mask), device=mask.device).repeat_interleave(group)  # (B,) prompt of each row
        self.table, self.place = self._table()

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only; a prompt without rows is dropped."""
        self.batch_select_indices(rows)
        left, owner = torch.unique(self.owner[rows], return_inverse=True)
        if len(left) < len(self.bias):
            self.prompt = [(keys[left], values[left]) for keys, values in self.prompt]
            self.bias = self.bias[left]
        self.owner = owner
        self.table, self.place = self._table()

    def _table(self) -> tuple[Tensor, Tensor]:
        """(P,G') row numbers, groups padded to the largest with any row, and (B,) where in it each row stands."""
        counts = torch.bincount(self.owner, minlength=len(self.bias))
        width = int(counts.max())
        starts = counts.cumsum(0) - counts
        rank = torch.arange(len(self.owner), device=self.owner.device) - starts[self.owner]
        place = self.owner * width + rank
        table = torch.zeros(len(self.bias) * width, dtype=torch.int64, device=self.owner.device)
        table[place] = torch.arange(len(self.owner), device=self.owner.device)
        return table.reshape(len(self.bias), width), place

    @contextmanager
    def attending(self, config: Any) -> Iterator[None]:
        """Route the attention of a model with this `config` through the shared prompts."""
        before, token = config._attn_implementation, _active.set(self)
        config._attn_implementation = NAME
        try:
            yield
        finally:
            config._attn_implementation = before
            _active.reset(token)


_active: ContextVar[SharedPrefixCache] = ContextVar("shared prefix")


def attend(  # noqa: PLR0913  the signature is transformers'
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax([q Kp^T + bias, causal(q Ks^T)] * scaling) [Vp; Vs], in fp32.

    Args:
        module: the attention layer; its `layer_idx` finds the prompt's keys.
        query: (B,K*r,T,D).
        key, value: (B,K,S,D), the row's own tokens.
        attention_mask: None: padding of prompts is in the cache, a row's own tokens are all real to those before them.
        scaling: None is D ** -0.5.
        dropout: 0 in reinforcement learning.
    Returns:
        (B,T,K*r,D) and no weights.
    """
    assert attention_mask is None
    assert not dropout
    shared = _active.get()
    keys, values = shared.prompt[module.layer_idx]
    n_rows, n_heads, n_steps, size = query.shape
    n_prompts, n_kv, n_prompt, _size = keys.shape
    n_group, per_row = shared.table.shape[1], n_heads // n_kv * n_steps
    scale = size**-0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        asked = (query.float() * scale).reshape(n_rows, n_kv, per_row, size)
        stacked = asked[shared.table].transpose(1, 2).reshape(n_prompts, n_kv, n_group * per_row, size)
        to_prompt = stacked @ keys.transpose(-1, -2) + shared.bias[:, None, None]  # (P,K,G*r*T,Q)
        to_own = (asked @ key.float().transpose(-1, -2)).masked_fill(
            _later(n_steps, key.shape[2], per_row, query), -torch.inf
        )
        to_own = to_own[shared.table].transpose(1, 2).reshape(n_prompts, n_kv, n_group * per_row, -1)
        weights = torch.cat([to_prompt, to_own], dim=-1).softmax(-1)
        from_prompt = weights[..., :n_prompt] @ values  # (P,K,G*r*T,D)
        own = weights[..., n_prompt:].reshape(n_prompts, n_kv, n_group, per_row, -1).transpose(1, 2).flatten(0, 1)
        found = from_prompt.reshape(n_prompts, n_kv, n_group, per_row, size).transpose(1, 2).flatten(0, 1)
        result = found[shared.place] + own[shared.place] @ value.float()  # (B,K,r*T,D)
    return result.reshape(n_rows, n_heads, n_steps, size).transpose(1, 2).to(query.dtype), None


def _later(n_steps: int, n_own: int, per_row: int, like: Tensor) -> Tensor:
    """(r*T,S) True where a key comes after its query."""
    position = torch.arange(n_own - n_steps, n_own, device=like.device).repeat(per_row // n_steps)
    return torch.arange(n_own, device=like.device)[None, :] > position[:, None]


AttentionInterface.register(NAME, attend)
