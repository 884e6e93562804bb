"""What an update minimises, per token: clipped policy loss, clipped value loss, KL, entropy, and what divides the sum.

Pure functions over (B,R) log-probs in nats. The caller multiplies by the weights of `normaliser`, sums, and divides by
its denominator, which is fixed for the whole update before the first backward; so cutting an update into micro-batches
does not change its gradient. Results are float32 (float64 for float64) under any input dtype. A gradient flows into
the first argument and into nothing else: old log-probs, ref log-probs, advantages, old values and returns are
constants. Nothing outside the mask is read, not even a NaN.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from dialtune.rl.advantages import at_least_float32, masked_mean

LossType = Literal["constant", "tokens", "sequence"]
RatioStats = dict[str, float]  # n_tokens, clip_fraction, ratio_mean, ratio_min, ratio_max

LOG_RATIO_CAP = 20.0  # nats; exp(20) is finite in float32 and far outside any clip


def _constant(values: Tensor) -> Tensor:
    return at_least_float32(values.detach())


def kl_k1(logprobs: Tensor, ref: Tensor) -> Tensor:
    """k1 = l - l_ref, of any shape: unbiased, either sign. For the reward; carries no gradient.

    k1, k2, k3: Schulman 2020, joschu.net/blog/kl-approx.html. As a loss its expected gradient would be zero, so none
    flows.
    """
    return _constant(logprobs) - _constant(ref)


def kl_k2(logprobs: Tensor, ref: Tensor) -> Tensor:
    """k2 = (l - l_ref)^2 / 2, of any shape: its expected gradient is that of the KL. For the loss; see `kl_in_loss`."""
    return (at_least_float32(logprobs) - _constant(ref)) ** 2 / 2


def kl_k3(logprobs: Tensor, ref: Tensor) -> Tensor:
    """k3 = exp(-k1) - 1 + k1, of any shape: unbiased, never negative, little noise. For the log; carries no gradient.

    exp(-k1) is capped at exp(20).
    """
    k1 = kl_k1(logprobs, ref)
    return torch.expm1((-k1).clamp(max=LOG_RATIO_CAP)) + k1


def probability_ratio(logprobs: Tensor, old: Tensor, mask: Tensor) -> Tensor:
    """exp(l - l_old) (B,R), 1 outside the mask.

    Masked before exp: a large difference at a padded place would give a finite masked value and, in backward,
    0 * inf = NaN. Differences are cut at +-20 nats, where the gradient ends too.
    """
    assert logprobs.shape == old.shape == mask.shape, (logprobs.shape, old.shape, mask.shape)
    log_ratio = (at_least_float32(logprobs) - _constant(old)).masked_fill(~mask.bool(), 0)
    return torch.exp(log_ratio.clamp(-LOG_RATIO_CAP, LOG_RATIO_CAP))


def policy_loss(
    logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor, *, epsilon_low: float, epsilon_high: float
) -> tuple[Tensor, RatioStats]:
    """The clipped surrogate of every token, and what the ratio did.

    loss = -min(ratio * A, clip(ratio, 1 - epsilon_low, 1 + epsilon_high) * A)       PPO: arXiv 1707.06347

    Where `old` is `logprobs.detach()` the ratio is 1 and the gradient is -A * grad l: plain REINFORCE.

    Args:
        logprobs: (B,R) under the policy being trained, with gradient.
        old: (B,R) under the policy that sampled.
        advantages: (B,R), or (B,) for all tokens of a row.
        mask: (B,R) bool.
        epsilon_low: in [0,1].
        epsilon_high: >= 0.
    Returns:
        loss (B,R), 0 outside the mask; statistics over the mask. A token counts as clipped where the minimum takes the
        clipped term, so that no gradient flows.
    """
    inside = mask.bool()
    ratio = probability_ratio(logprobs, old, mask)
    a = _constant(advantages if advantages.ndim == 2 else advantages[:, None]).expand(mask.shape)
    a = a.masked_fill(~inside, 0)
    free, clipped = ratio * a, ratio.clamp(1 - epsilon_low, 1 + epsilon_high) * a
    return -torch.minimum(free, clipped), _ratio_stats(ratio.detach()[inside], (clipped < free)[inside])


def _ratio_stats(ratio: Tensor, clipped: Tensor) -> RatioStats:
    """Statistics of the tokens given, (T,) each; of no token, those of a policy that did not move."""
    if not len(ratio):
        return {"n_tokens": 0, "clip_fraction": 0.0, "ratio_mean": 1.0, "ratio_min": 1.0, "ratio_max": 1.0}
    return {
        "n_tokens": len(ratio),
        "clip_fraction": float(clipped.double().mean()),
        "ratio_mean": float(ratio.double().mean()),
        "ratio_min": float(ratio.min()),
        "ratio_max": float(ratio.max()),
    }


def merged_stats(parts: Sequence[Mapping[str, float]]) -> RatioStats:
    """The statistics of all micro-batches together: means weighted by tokens, extremes of extremes."""
    seen = [part for part in parts if part["n_tokens"]]
    if not seen:
        return _ratio_stats(torch.empty(0), torch.empty(0))
    n = sum(part["n_tokens"] for part in seen)
    means = {name: sum(p[name] * p["n_tokens"] for p in seen) / n for name in ("clip_fraction", "ratio_mean")}
    extremes = {"ratio_min": min(p["ratio_min"] for p in seen), "ratio_max": max(p["ratio_max"] for p in seen)}
    return {"n_tokens": n, **means, **extremes}


def normaliser(mask: Tensor, cap: int, kind: LossType) -> tuple[Tensor, float]:
    """Weights of a row's tokens (B,R), and what their weighted sum over an update is divided by.

    constant: sum(m * u) / (N * C)            no length bias; C is the cap, not the longest row (Dr.GRPO)
    tokens:   sum(m * u) / sum(m)             mild bias
    sequence: mean_i(sum_t(m * u) / L_i)      GRPO's; favours short good rows and long bad ones

    A weight depends on its own row only, so it may be computed per micro-batch. The denominator must come from the
    mask of the whole update. N counts rows with a token in the mask: a row that is masked out is not there.

    Args:
        mask: (B,R) bool.
        cap: C, the most tokens a completion may have.
        kind: which of the three.
    Returns:
        weights (B,R) float32, 0 outside the mask; the denominator, at least 1.
    """
    inside = mask.bool()
    weights = inside.float()
    if kind == "tokens":
        return weights, float(max(1, int(inside.sum())))
    rows = max(1, int(inside.any(1).sum()))
    if kind == "constant":
        assert cap >= mask.shape[1], (cap, mask.shape)
        return weights, float(rows * cap)
    assert kind == "sequence", kind
    return weights / inside.sum(1, keepdim=True).clamp(min=1), float(rows)


def value_loss(values: Tensor, old: Tensor, returns: Tensor, mask: Tensor, *, clip: float) -> Tensor:
    """Half the squared error of every token's value (B,R), the larger of free and clipped; 0 outside the mask.

    loss = max((v - ret)^2, (clip(v, v_old - clip, v_old + clip) - ret)^2) / 2

    A value that ran further than `clip` from the old one, towards its return, gets no more gradient. Form: the
    baselines code of arXiv 1707.06347.

    Args:
        values: (B,R) with gradient.
        old: (B,R) when the rollout was made.
        returns: (B,R) from `generalized_advantages`.
        mask: (B,R) bool.
        clip: > 0, in the unit of the values.
    """
    assert values.shape == old.shape == returns.shape == mask.shape, (values.shape, returns.shape, mask.shape)
    outside = ~mask.bool()
    v = at_least_float32(values).masked_fill(outside, 0)
    v_old, target = _constant(old).masked_fill(outside, 0), _constant(returns).masked_fill(outside, 0)
    held = torch.clamp(v, v_old - clip, v_old + clip)
    return torch.maximum((v - target) ** 2, (held - target) ** 2) / 2


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float | None:
    """1 - var(ret - v) / var(ret) over the mask: 1 is a perfect critic, 0 a constant one; None if returns are equal."""
    inside = mask.bool()
    target, v = at_least_float32(returns)[inside], at_least_float32(values)[inside]
    if len(target) < 2 or bool(target.max() == target.min()):
        return None
    return float(1 - (target - v).var() / target.var())


def kl_in_loss(
    logprobs: Tensor, ref: Tensor, old: Tensor, mask: Tensor, *, epsilon_low: float, epsilon_high: float
) -> Tensor:
    """The KL to the start policy of every token (B,R), to be weighted with beta; 0 outside the mask.

    loss = clip(ratio, 1 - epsilon_low, 1 + epsilon_high) * (l - l_ref)^2 / 2, the ratio without gradient

    k2's expected gradient is that of the per-token KL under the policy itself; after the first pass the samples come
    from an older policy, which the ratio makes good. It ignores what a token does to later states,
    so it serves where rewards are divided by a standard deviation, which would turn beta into beta / std.
    """
    assert ref.shape == mask.shape, (ref.shape, mask.shape)
    outside = ~mask.bool()
    weight = probability_ratio(logprobs, old, mask).detach().clamp(1 - epsilon_low, 1 + epsilon_high)
    k2 = kl_k2(logprobs.masked_fill(outside, 0), ref.masked_fill(outside, 0))
    return weight * k2


def entropy(logits: Tensor) -> Tensor:
    """Entropy over the last axis in nats, with gradient; an id at -inf cannot be sampled and adds nothing.

    Args:
        logits: (..., V), divided by the sampling temperature.
    """
    logprobs = torch.log_softmax(at_least_float32(logits), dim=-1)
    finite = logprobs.masked_fill(logprobs == -torch.inf, 0)
    return -(logprobs.exp() * finite).sum(-1)


def sampled_entropy(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean of -l over the mask, a scalar without gradient: an unbiased estimate of the entropy per token, in nats."""
    return masked_mean(-_constant(logprobs), mask)
