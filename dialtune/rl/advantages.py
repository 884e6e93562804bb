"""How much better than expected each completion or token was: leave-one-out, group-relative, GAE, whitening.

Pure functions. Rows come in prompt-major order, B = P * G; a response's mask is True up to its last token and False
after it. What comes back is float32 (float64 for float64) under any input dtype and carries no gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Scale = Literal["none", "batch", "group"]

STD_EPSILON = 1e-4  # GRPO's, arXiv 2402.03300 as trl computes it
STD_FLOOR = 0.1  # rewards come in units of the start policy's std; a group that agrees to a tenth of it agrees
_WHITEN_EPSILON = 1e-8


def at_least_float32(values: Tensor) -> Tensor:
    """The values in float32; float64 stays, for proofs."""
    return values if values.dtype == torch.float64 else values.float()


def kept_rows(valid: Tensor, group: int) -> Tensor:
    """(B,) bool: valid rows of groups that have at least two of them; the others have nobody to be compared with.

    >>> kept_rows(torch.tensor([True, True, False, True, False, False]), group=3)
    tensor([ True,  True, False, False, False, False])
    """
    assert valid.ndim == 1, valid.shape
    assert len(valid) % group == 0, (len(valid), group)
    table = valid.bool().reshape(-1, group)
    return (table & (table.sum(1, keepdim=True) >= 2)).reshape(-1)


def equal_rewards(rewards: Tensor, group: int, valid: Tensor | None = None) -> Tensor:
    """(P,) bool: groups that teach nothing, since all rewards that count are equal; their mean is `frac_zero_std`.

    A group with fewer than two valid rows is one of them.
    """
    table, counts = _grouped(rewards, group, valid)
    return _is_flat(table, counts)[:, 0]


@torch.no_grad()
def leave_one_out(rewards: Tensor, group: int, valid: Tensor | None = None) -> Tensor:
    """Each completion's reward minus the mean reward of its siblings.

    A[p,g] = r[p,g] - sum(r[p,h] for h != g) / (G - 1)    RLOO: Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740

    Args:
        rewards: (B,) float, any unit.
        group: G >= 2. The recipe refuses 1; here it is asserted.
        valid: (B,) bool; rows with False are nobody's sibling and get 0, whatever their reward, NaN included. A group
            with fewer than two valid rows gets 0.
    Returns:
        (B,) in the unit of `rewards`; sums to 0 over each group; exactly 0 where all rewards of a group are equal.

    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.0, 0.0]), group=4)
    tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    table, counts = _grouped(rewards, group, valid)
    siblings = (counts.sum(1, keepdim=True) - 1).clamp(min=1)
    advantages = table - (table.sum(1, keepdim=True) - table) / siblings
    return _only(advantages, counts & ~_is_flat(table, counts)).reshape(-1)


@torch.no_grad()
def group_relative(
    rewards: Tensor, group: int, scale: Scale, valid: Tensor | None = None, floor: float = STD_FLOOR
) -> Tensor:
    """Each completion's reward minus its group's mean, over nothing or a standard deviation.

    none:  A = r - mean_group                                           Dr.GRPO: Liu et al. 2025, arXiv 2503.20783
    batch: A = (r - mean_group) / (std of all rewards + 1e-4)
    group: A = (r - mean_group) / (max(std_group, floor) + 1e-4)        GRPO: Shao et al. 2024, arXiv 2402.03300

    Standard deviations divide by n - 1. Without a floor, eight rewards that differ by 0.003 would get advantages as
    large as eight that differ by 3.

    Args:
        rewards: (B,) float, any unit; the whole rollout for `batch`.
        group: G >= 2.
        scale: which of the three.
        valid: (B,) bool, as in `leave_one_out`; rows that are left out are in no mean and in no standard deviation.
        floor: least std_group, in the unit of `rewards`; 0 is the paper's formula.
    Returns:
        (B,); exactly 0 where all rewards of a group are equal.
    """
    table, counts = _grouped(rewards, group, valid)
    n = counts.sum(1, keepdim=True)
    centred = _only(table - table.sum(1, keepdim=True) / n.clamp(min=1), counts & ~_is_flat(table, counts))
    if scale == "group":
        std = ((centred**2).sum(1, keepdim=True) / (n - 1).clamp(min=1)).sqrt()
        centred = centred / (std.clamp(min=floor) + STD_EPSILON)
    elif scale == "batch":
        total = counts.sum()
        away = _only(table - table.sum() / total.clamp(min=1), counts)
        centred = centred / (((away**2).sum() / (total - 1).clamp(min=1)).sqrt() + STD_EPSILON)
    return centred.reshape(-1)


@torch.no_grad()
def shaped_rewards(rewards: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """The reward of every token: what the KL costs there, and the completion's reward on its last token.

    rho[t] = -beta * kl[t] + R * [t = L - 1]            PPO for text: Ziegler et al. 2019, arXiv 1909.08593

    Args:
        rewards: (B,) float.
        kl: (B,R) nats, the k1 of `losses.kl_k1`; what stands outside the mask is not read.
        mask: (B,R) bool.
        beta: KL weight per nat, >= 0.
    Returns:
        (B,R), 0 outside the mask. A row that is masked out altogether has no reward.
    """
    assert kl.shape == mask.shape, (kl.shape, mask.shape)
    assert rewards.shape == mask.shape[:1], (rewards.shape, mask.shape)
    penalties = -beta * _only(at_least_float32(kl), mask)
    return penalties + _only(at_least_float32(rewards)[:, None].expand(mask.shape), _last_token(mask))


def sequence_rewards(rewards: Tensor, kl: Tensor, mask: Tensor, beta: float) -> Tensor:
    """(B,) reward of each completion minus beta times its summed KL: the sum of `shaped_rewards` over its tokens.

    For RLOO and Dr.GRPO. k2 or k3 here would bias the gradient by more than half.
    """
    return shaped_rewards(rewards, kl, mask, beta).sum(1)


@torch.no_grad()
def generalized_advantages(
    token_rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantage of every token, and the return that its value should have predicted.

    delta[t] = rho[t] + gamma * v[t+1] - v[t];  A[t] = sum_k (gamma * lam)^k * delta[t+k];  return[t] = A[t] + v[t]
    GAE: Schulman et al. 2016, arXiv 1506.02438.

    Args:
        token_rewards: (B,R) rho, from `shaped_rewards`.
        values: (B,R) v[t], expected before token t; what stands outside the mask is not read.
        mask: (B,R) bool.
        gamma: discount per token, in [0,1].
        lam: 0 trusts the values, 1 the rewards.
        bootstrap: (B,) value after the last token; 0 for a completion that ended by itself. None is 0 for all.
    Returns:
        advantages (B,R), not whitened, and returns (B,R); both 0 outside the mask.
    """
    assert token_rewards.shape == values.shape == mask.shape, (token_rewards.shape, values.shape, mask.shape)
    known = _only(at_least_float32(values), mask)
    following = torch.cat([known[:, 1:], torch.zeros_like(known[:, :1])], dim=1)
    if bootstrap is not None:
        assert bootstrap.shape == mask.shape[:1], (bootstrap.shape, mask.shape)
        following = torch.where(_last_token(mask), at_least_float32(bootstrap)[:, None], following)
    delta = _only(at_least_float32(token_rewards), mask) + gamma * following - known
    advantages, running = torch.zeros_like(delta), torch.zeros_like(delta[:, 0])
    for t in reversed(range(mask.shape[1])):
        running = delta[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages, advantages + known


@torch.no_grad()
def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """The values with mean 0 and standard deviation 1 over the mask; 0 outside it, and everywhere if all are equal.

    The standard deviation divides by n. Of several processes each needs the values of all.

    Args:
        values: (B,R) float.
        mask: (B,R) bool.
    """
    assert values.shape == mask.shape, (values.shape, mask.shape)
    inside = at_least_float32(values)[mask.bool()]
    if not len(inside) or bool(inside.max() == inside.min()):
        return torch.zeros_like(at_least_float32(values))
    std = inside.std(correction=0) + _WHITEN_EPSILON
    return _only((at_least_float32(values) - inside.mean()) / std, mask)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the mask, a scalar with the gradient of `values`; 0 for an empty mask."""
    return _only(at_least_float32(values), mask).sum() / mask.sum().clamp(min=1)


def _only(values: Tensor, mask: Tensor) -> Tensor:
    """The values with 0 outside the mask. Not a product: 0 * NaN is NaN."""
    return values.masked_fill(~mask.bool(), 0)


def _last_token(mask: Tensor) -> Tensor:
    """(B,R) bool: True at the last position of each row's mask."""
    inside = mask.bool()
    return inside & ~torch.cat([inside[:, 1:], torch.zeros_like(inside[:, :1])], dim=1)


def _grouped(rewards: Tensor, group: int, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rewards (P,G) with 0 where they do not count, and what counts (P,G) bool."""
    assert rewards.ndim == 1, rewards.shape
    assert group >= 2, group
    everything = torch.ones_like(rewards, dtype=torch.bool)
    counts = kept_rows(everything if valid is None else valid, group).reshape(-1, group)
    return _only(at_least_float32(rewards).reshape(-1, group), counts), counts


def _is_flat(table: Tensor, counts: Tensor) -> Tensor:
    """(P,1) bool: no two rewards that count differ. By extremes: a standard deviation of equal floats need not be 0."""
    high = table.masked_fill(~counts, -torch.inf).amax(1, keepdim=True)
    low = table.masked_fill(~counts, torch.inf).amin(1, keepdim=True)
    return high <= low
