"""Advantages against plain loops over rows, values by hand, and relations between the estimators."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dialtune.rl.advantages import (
    equal_rewards,
    generalized_advantages,
    group_relative,
    kept_rows,
    leave_one_out,
    masked_mean,
    sequence_rewards,
    shaped_rewards,
    whiten,
)

NAN, INF = math.nan, math.inf
F64 = torch.float64

rewards_in_groups = st.integers(2, 5).flatmap(
    lambda group: st.tuples(
        st.just(group),
        st.lists(
            st.tuples(*[st.tuples(st.floats(-9, 9, width=32), st.booleans()) for _ in range(group)]),
            min_size=1,
            max_size=4,
        ),
    )
)


def by_hand(groups: list, how: str, *, floor: float = 0.0) -> list[float]:
    """Advantages from the definitions, in Python floats, one row at a time."""
    used = [[r for r, ok in group if ok] if sum(ok for _, ok in group) >= 2 else [] for group in groups]
    pooled = [r for group in used for r in group]
    out = []
    for group, kept in zip(groups, used, strict=True):
        for index, (reward, ok) in enumerate(group):
            siblings = [r for other, (r, good) in enumerate(group) if good and other != index]
            if not ok or not siblings:
                out.append(0.0)
            elif how == "rloo":
                out.append(reward - sum(siblings) / len(siblings))
            else:
                away = reward - sum(kept) / len(kept)
                std = {"none": None, "group": kept, "batch": pooled}[how]
                out.append(away if std is None else away / (max(np.std(std, ddof=1), floor) + 1e-4))
    return out


def flat(groups: list) -> tuple[Tensor, Tensor]:
    """Rewards float64 and what is valid; an invalid row's reward is NaN."""
    rewards = [r if ok else NAN for group in groups for r, ok in group]
    return torch.tensor(rewards, dtype=F64), torch.tensor([ok for group in groups for _, ok in group])


@given(rewards_in_groups)
def test_leave_one_out_is_the_loop_over_siblings(drawn: tuple[int, list]) -> None:
    group, groups = drawn
    rewards, valid = flat(groups)
    want = torch.tensor(by_hand(groups, "rloo"), dtype=F64)
    torch.testing.assert_close(leave_one_out(rewards, group, valid), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("scale", "floor"), [("none", 0.0), ("batch", 0.0), ("group", 0.0), ("group", 2.5)])
@given(drawn=rewards_in_groups)
def test_group_relative_is_the_loop_over_groups(scale: str, floor: float, drawn: tuple[int, list]) -> None:
    group, groups = drawn
    rewards, valid = flat(groups)
    want = torch.tensor(by_hand(groups, scale, floor=floor), dtype=F64)
    got = group_relative(rewards, group, scale, valid, floor=floor)  # type: ignore[arg-type]
    # Rewards a few 1e-9 apart are divided by 1e-4: rounding of the mean shows.
    torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@given(st.integers(2, 8), st.integers(1, 4), st.integers(0, 999))
def test_rloo_is_dr_grpo_times_g_over_g_minus_one(group: int, prompts: int, seed: int) -> None:
    rewards = torch.randn(prompts * group, dtype=F64, generator=torch.Generator().manual_seed(seed))
    want = group_relative(rewards, group, "none") * group / (group - 1)
    torch.testing.assert_close(leave_one_out(rewards, group), want, rtol=1e-10, atol=1e-12)


def test_values_by_hand() -> None:
    # 3, 1, 2 | 0, 0, 6: siblings' means 1.5, 2.5, 2 | 3, 3, 0; group means 2 | 2; stds 1 | sqrt(12)
    rewards = torch.tensor([3.0, 1, 2, 0, 0, 6], dtype=F64)
    assert leave_one_out(rewards, 3).tolist() == [1.5, -1.5, 0, -3, -3, 6]
    assert group_relative(rewards, 3, "none").tolist() == [1, -1, 0, -2, -2, 4]
    tall = math.sqrt(12) + 1e-4
    want = [1 / 1.0001, -1 / 1.0001, 0, -2 / tall, -2 / tall, 4 / tall]
    assert group_relative(rewards, 3, "group").tolist() == pytest.approx(want, rel=1e-12)
    # all six: mean 2, squares 1 + 1 + 0 + 4 + 4 + 16 = 26 over 5
    wide = math.sqrt(26 / 5) + 1e-4
    want = [1 / wide, -1 / wide, 0, -2 / wide, -2 / wide, 4 / wide]
    assert group_relative(rewards, 3, "batch").tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("estimator", [leave_one_out, group_relative])
def test_a_group_with_one_valid_row_gets_nothing_and_gives_nothing(estimator: object) -> None:
    rewards = torch.tensor([1.0, 2, 100, NAN, INF, -50])
    valid = torch.tensor([True, True, True, False, False, True])
    if estimator is leave_one_out:
        assert leave_one_out(rewards, 2, valid).tolist() == [-1, 1, 0, 0, 0, 0]
    else:
        # the std of `batch` is that of 1 and 2 alone: sqrt(0.5)
        want = [-0.5 / (math.sqrt(0.5) + 1e-4), 0.5 / (math.sqrt(0.5) + 1e-4), 0, 0, 0, 0]
        assert group_relative(rewards, 2, "batch", valid).tolist() == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("scale", ["none", "batch", "group"])
def test_equal_rewards_give_exactly_nothing(scale: str) -> None:
    # 0.1 * 3 / 3 is not 0.1 in floating point
    rewards = torch.tensor([0.1, 0.1, 0.1, 0.7, 0.1, 0.1], dtype=F64)
    assert group_relative(rewards, 3, scale)[:3].tolist() == [0, 0, 0]  # type: ignore[arg-type]
    assert leave_one_out(rewards, 3)[:3].tolist() == [0, 0, 0]
    assert group_relative(rewards, 3, scale)[3] > 0.3  # type: ignore[arg-type]


def test_groups_that_teach_nothing_are_named() -> None:
    rewards = torch.tensor([0.1, 0.1, 0.1, 1, 2, 1, 5, NAN, NAN, 4, 4, 9])
    valid = torch.tensor([True] * 7 + [False] * 2 + [True, True, False])
    assert equal_rewards(rewards, 3, valid).tolist() == [True, False, True, True]
    assert kept_rows(valid, 3).tolist() == [True] * 6 + [False] * 3 + [True, True, False]


def test_the_floor_keeps_a_group_that_agrees_small() -> None:
    """Eight rewards that differ by 0.003 get advantages up to 1.7 from GRPO's own formula."""
    rewards = torch.linspace(0, 0.003, 8, dtype=F64) + 0.5
    loud = group_relative(rewards, 8, "group", floor=0.0).abs().max()
    quiet = group_relative(rewards, 8, "group").abs().max()
    assert loud > 1.2
    assert quiet == pytest.approx(0.0015 / 0.1001, rel=1e-9)


@pytest.mark.parametrize("scale", ["none", "batch", "group"])
def test_permuting_rows_of_a_group_permutes_results(scale: str) -> None:
    rewards = torch.tensor([0.3, -1.0, 2.0, 0.5, 0.25, 4.0], dtype=F64)
    order = torch.tensor([2, 0, 1, 4, 5, 3])
    for got, want in (
        (group_relative(rewards[order], 3, scale), group_relative(rewards, 3, scale)[order]),  # type: ignore[arg-type]
        (leave_one_out(rewards[order], 3), leave_one_out(rewards, 3)[order]),
    ):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_rewards_give_float32_without_gradient(dtype: torch.dtype) -> None:
    rewards = torch.tensor([1.0, 2, 4, 4], dtype=dtype, requires_grad=True)
    mask = torch.ones(4, 2, dtype=torch.bool)
    kl = torch.ones(4, 2, dtype=dtype, requires_grad=True)
    shaped = shaped_rewards(rewards, kl, mask, 0.5)
    results = [
        leave_one_out(rewards, 2),
        group_relative(rewards, 2, "group"),
        shaped,
        sequence_rewards(rewards, kl, mask, 0.5),
        *generalized_advantages(shaped, kl, mask),
        whiten(kl * rewards[:, None], mask),
    ]
    assert all(result.dtype == torch.float32 and not result.requires_grad for result in results)
    assert results[0].tolist() == [-1, 1, 0, 0]


def test_a_group_of_one_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        leave_one_out(torch.ones(4), 1)
    with pytest.raises(AssertionError):
        group_relative(torch.ones(5), 2, "none")


# --- tokens ---


MASK = torch.tensor([[True, True, True], [True, True, False], [True, False, False], [False, False, False]])


def test_the_reward_stands_on_the_last_token_and_every_token_pays_for_its_kl() -> None:
    kl = torch.tensor([[0.5, -1.0, 2.0], [1.0, 3.0, NAN], [4.0, INF, 7.0], [NAN, NAN, NAN]], dtype=F64)
    rewards = torch.tensor([10.0, 20, 30, NAN], dtype=F64)
    shaped = shaped_rewards(rewards, kl, MASK, beta=0.1)
    want = [[-0.05, 0.1, 9.8], [-0.1, 19.7, 0], [29.6, 0, 0], [0, 0, 0]]
    torch.testing.assert_close(shaped, torch.tensor(want, dtype=F64), rtol=1e-12, atol=1e-12)
    totals = sequence_rewards(rewards, kl, MASK, beta=0.1)
    torch.testing.assert_close(totals, torch.tensor([9.85, 19.6, 29.6, 0], dtype=F64), rtol=1e-12, atol=1e-12)
    assert shaped_rewards(rewards[:3], torch.zeros(3, 3), MASK[:3], beta=0.0).sum() == 60


def square_sum(
    rho: np.ndarray, v: np.ndarray, lengths: list[int], gamma: float, lam: float, after: list[float]
) -> np.ndarray:
    """A[t] = sum over k of (gamma lam)^k (rho + gamma v' - v)[t + k]: every pair of positions, no recursion."""
    out = np.zeros_like(rho)
    for row, length in enumerate(lengths):
        nexts = [*v[row, 1:length], after[row]]
        for t in range(length):
            for k in range(length - t):
                delta = rho[row, t + k] + gamma * nexts[t + k] - v[row, t + k]
                out[row, t] += (gamma * lam) ** k * delta
    return out


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.booleans(),
    st.integers(0, 999),
)
def test_gae_is_the_square_sum(lengths: list[int], gamma: float, lam: float, truncated: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rho, v = rng.normal(size=(len(lengths), 6)), rng.normal(size=(len(lengths), 6))
    after = list(rng.normal(size=len(lengths))) if truncated else [0.0] * len(lengths)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    advantages, returns = generalized_advantages(
        torch.tensor(rho).masked_fill(~mask, NAN),
        torch.tensor(v).masked_fill(~mask, NAN),
        mask,
        gamma,
        lam,
        torch.tensor(after) if truncated else None,
    )
    want = square_sum(rho, v, lengths, gamma, lam, after)
    np.testing.assert_allclose(advantages.numpy(), want, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(returns.numpy(), (want + v) * mask.numpy(), rtol=1e-10, atol=1e-12)


def test_with_lambda_one_and_no_critic_the_advantage_is_the_return() -> None:
    rho = torch.tensor([[1.0, 2, 3], [4, 5, 0]], dtype=F64)
    advantages, returns = generalized_advantages(rho, torch.zeros(2, 3, dtype=F64), MASK[:2], gamma=1.0, lam=1.0)
    assert advantages.tolist() == [[6, 5, 3], [9, 5, 0]]
    assert torch.equal(advantages, returns)


def test_gae_defaults_are_those_of_the_design() -> None:
    # delta = 0, 0, 1: A = 0.95^2, 0.95, 1
    advantages, _ = generalized_advantages(torch.tensor([[0.0, 0, 1]]), torch.zeros(1, 3), MASK[:1])
    assert advantages[0].tolist() == pytest.approx([0.9025, 0.95, 1])


def test_a_truncated_completion_is_valued_after_its_last_token_and_an_ended_one_is_not() -> None:
    rho, v = torch.zeros(2, 3, dtype=F64), torch.zeros(2, 3, dtype=F64)
    advantages, _ = generalized_advantages(rho, v, MASK[:2], 0.5, 1.0, torch.tensor([8.0, 0.0], dtype=F64))
    assert advantages.tolist() == [[1, 2, 4], [0, 0, 0]]  # 8 * 0.5 at the last token, halved per token before it


def test_a_row_that_is_masked_out_changes_nothing() -> None:
    rho, v = torch.randn(2, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    rho[1] = NAN
    one = generalized_advantages(rho[:1], v[:1], MASK[:1])[0]
    two = generalized_advantages(rho, v, MASK[[0, 3]])[0]
    assert torch.equal(two[:1], one)
    assert two[1].tolist() == [0, 0, 0]
    assert torch.equal(whiten(two, MASK[[0, 3]])[:1], whiten(one, MASK[:1]))


def test_whitening_is_over_the_mask_alone() -> None:
    values = torch.tensor([[1.0, 2, 3], [6, 8, 1e6], [10, NAN, INF], [NAN, 1, 1]], dtype=F64)
    got = whiten(values, MASK)
    inside = np.array([1, 2, 3, 6, 8, 10.0])
    np.testing.assert_allclose(got[MASK].numpy(), (inside - 5) / math.sqrt(64 / 6), rtol=1e-7)
    assert got[~MASK].abs().sum() == 0


@pytest.mark.parametrize("value", [0.1, 0.0, -3.3])
def test_whitening_equal_values_gives_nothing(value: float) -> None:
    # The mean of seven float32 0.1 is not 0.1: without care the rounding error would become 0.4.
    assert whiten(torch.full((1, 9), value), torch.arange(9)[None] < 7).abs().sum() == 0
    assert whiten(torch.full((1, 3), value), MASK[3:]).abs().sum() == 0


def test_a_masked_mean_leaves_padding_out() -> None:
    values = torch.tensor([[1.0, 2, NAN]], requires_grad=True)
    mean = masked_mean(values, torch.tensor([[True, True, False]]))
    mean.backward()
    assert mean == 1.5
    assert values.grad is not None
    assert values.grad.tolist() == [[0.5, 0.5, 0]]
    assert masked_mean(torch.ones(1, 3), MASK[3:]) == 0
