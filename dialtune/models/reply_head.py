"""The head of a learned reward: vectors of the turns before a reply and of the reply itself to one number.

Functions of tensors, no state. `N` exchanges, `K` turns of context, `D` width of the encoder, `H` hidden units, `M`
texts. Importing this module loads no torch; calling it does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# The mean of |x - y| over entries of two unrelated vectors of unit variance: sqrt(2) times that of |N(0, 1)|. If it
# were not taken away, all differences would be positive, and one step of the optimizer would move every hidden unit the
# same way, often to where it stays at 0 (seen at a learning rate of 2e-3).
UNRELATED = 2 / math.sqrt(math.pi)


def unit_means(states: Tensor, mask: Tensor) -> Tensor:
    """(M,D) fp32 unit vectors of texts: the mean of their token states, divided by its length.

    Args:
        states: (M,T,D), any float dtype.
        mask: (M,T) bool, True on tokens.
    """
    import torch

    kept = mask[..., None].to(torch.float32)
    return torch.nn.functional.normalize((states.float() * kept).sum(1) / kept.sum(1), dim=1)


def turn_index(contexts: Sequence[Sequence[str]], place: Mapping[str, int], window: int) -> Tensor:
    """(N,K) int64 rows of the last `window` turns, the latest first; where there are fewer, -1.

    >>> turn_index([["a", "b", "c"], ["c"]], {"a": 0, "b": 1, "c": 2}, window=2).tolist()
    [[2, 1], [2, -1]]

    Args:
        contexts: turns, oldest first.
        place: row of each turn in a table of vectors.
        window: K.
    """
    import torch

    rows = [[place[turn] for turn in reversed(context[-window:])] for context in contexts]
    return torch.tensor([[*row, *([-1] * (window - len(row)))] for row in rows])


def turn_vectors(vectors: Tensor, index: Tensor) -> Tensor:
    """(N,K,D) the vectors (M,D) that `turn_index` names; zeros where there is no turn."""
    return vectors[index.clamp(min=0)] * (index >= 0)[..., None]


def new_head(width: int, window: int, hidden: int) -> dict[str, Tensor]:
    """A head, as `reply_logits` reads it, that starts as a cosine; draws from torch's generator.

    Args:
        width: D.
        window: K.
        hidden: H.
    """
    import torch

    def uniform(*shape: int) -> Tensor:
        bound = shape[-1] ** -0.5  # as nn.Linear begins
        return torch.empty(*shape).uniform_(-bound, bound)

    return {
        "near": torch.tensor([0.5, *[0.25] * (window - 1)]),
        "expect": uniform(hidden, window * width),
        "expect_out": torch.zeros(width, hidden),
        "offer": uniform(hidden, width),
        "offer_out": torch.zeros(width, hidden),
        "log_sharpness": torch.tensor(2.5),
        "compare": uniform(hidden, 2 * window * width),
        "read": uniform(hidden, (window + 1) * width),
        "bias": torch.zeros(hidden),
        "out": torch.zeros(hidden),
    }


def reply_logits(turns: Tensor, reply: Tensor, head: Mapping[str, Tensor], *, dropout: float = 0.0) -> Tensor:
    """(N,) how good each reply is where it was given; before calibration, any real number.

        r = exp(log_sharpness) cos(c, o) + out . gelu(compare [x_k y; |x_k - y| - 2/sqrt(pi)]_k + read [x; y] + bias)
        c = sum_k near_k x_k + expect_out gelu(expect x),    o = y + offer_out gelu(offer y)

    over turns t_k and the reply v, with x = sqrt(D) t and y = sqrt(D) v, whose entries have unit variance; an absent
    turn has zeros in place of its differences. The cosine asks whether the reply is what the turns let expect, as dual
    encoders do (Henderson et al. 2020, arXiv 1911.03688); products and differences tell a fitting reply from an echo,
    which any cosine takes for the best reply there is.

    Args:
        turns: (N,K,D) unit vectors, the latest turn first; zeros where there is none.
        reply: (N,D) unit vectors.
        head: `near` (K,), `expect` (H,KD), `expect_out` (D,H), `offer` (H,D), `offer_out` (D,H), `log_sharpness` (),
            `compare` (H,2KD), `read` (H,(K+1)D), `bias` (H,), `out` (H,).
        dropout: share of hidden units dropped, by torch's generator.
    """
    import torch
    from torch.nn.functional import cosine_similarity, linear

    assert turns.shape[::2] == reply.shape, (turns.shape, reply.shape)

    def hidden(inner: Tensor) -> Tensor:
        units = torch.nn.functional.gelu(inner)
        return torch.nn.functional.dropout(units, dropout, training=dropout > 0)

    x, y, there = turns * turns.shape[2] ** 0.5, reply * reply.shape[1] ** 0.5, (turns != 0).any(-1, keepdim=True)
    flat = x.flatten(1)
    expected = (x * head["near"][:, None]).sum(1) + linear(hidden(linear(flat, head["expect"])), head["expect_out"])
    offered = y + linear(hidden(linear(y, head["offer"])), head["offer_out"])
    fits = head["log_sharpness"].exp() * cosine_similarity(expected, offered, dim=1)
    differences = ((x - y[:, None]).abs() - UNRELATED) * there
    compared = torch.cat([x * y[:, None], differences], dim=-1).flatten(1)
    units = hidden(linear(compared, head["compare"]) + linear(torch.cat([flat, y], dim=1), head["read"], head["bias"]))
    return fits + (units * head["out"]).sum(-1)  # a sum and no product, which autocast would round to bfloat16
