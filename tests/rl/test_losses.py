"""Losses against values by hand, central finite differences in float64, and each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dialtune.rl.losses import (
    entropy,
    explained_variance,
    kl_in_loss,
    kl_k1,
    kl_k2,
    kl_k3,
    merged_stats,
    normaliser,
    policy_loss,
    probability_ratio,
    sampled_entropy,
    value_loss,
)

NAN, INF = math.nan, math.inf
F64 = torch.float64
MASK = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
Scalar = Callable[[Tensor], Tensor]
KINDS = ("constant", "tokens", "sequence")


def differences(f: Scalar, at: Tensor, h: float = 1e-5) -> Tensor:
    """Central finite differences of a scalar function: error about h^2."""
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        step = torch.zeros_like(at).view(-1)
        step[index] = h
        step = step.view_as(at)
        gradient.view(-1)[index] = (f(at + step) - f(at - step)) / (2 * h)
    return gradient


def gradient_of(f: Scalar, at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    f(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def assert_gradient(
    f: Callable[[Tensor], Tensor], at: Tensor, frozen: Callable[[Tensor], Tensor] | None = None
) -> None:
    """The gradient of f is its finite difference; `frozen` is f with its constants held, where f has some."""
    torch.testing.assert_close(gradient_of(f, at), differences(frozen or f, at), rtol=1e-6, atol=1e-9)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


# --- KL ---


def test_kl_estimators_by_hand() -> None:
    lp, ref = torch.log(torch.tensor([0.5, 0.2], dtype=F64)), torch.log(torch.tensor([0.25, 0.4], dtype=F64))
    assert kl_k1(lp, ref).tolist() == pytest.approx([math.log(2), -math.log(2)])
    assert kl_k2(lp, ref).tolist() == pytest.approx([math.log(2) ** 2 / 2] * 2)
    # exp(-k1) - 1 + k1 with exp(-k1) = 1/2 and 2
    assert kl_k3(lp, ref).tolist() == pytest.approx([math.log(2) - 0.5, 1 - math.log(2)])


def test_k1_and_k3_average_to_the_kl_over_all_ids() -> None:
    p, q = torch.log_softmax(noise(6, seed=1), 0), torch.log_softmax(noise(6, seed=2), 0)
    kl = (p.exp() * (p - q)).sum()
    for k in (kl_k1, kl_k3):
        torch.testing.assert_close((p.exp() * k(p, q)).sum(), kl, rtol=1e-12, atol=0)
    assert (kl_k3(p, q) >= 0).all()
    assert (kl_k1(p, q) < 0).any()


def test_k2_is_differentiable_in_the_policy_alone_and_k1_and_k3_not_at_all() -> None:
    lp, ref = noise(5, seed=3).requires_grad_(), noise(5, seed=4).requires_grad_()
    assert not kl_k1(lp, ref).requires_grad
    assert not kl_k3(lp, ref).requires_grad
    kl_k2(lp, ref).sum().backward()
    assert ref.grad is None
    assert_gradient(lambda x: kl_k2(x, ref.detach()).sum(), lp.detach())


def test_k3_stays_finite_far_from_the_start_policy() -> None:
    assert torch.isfinite(kl_k3(torch.tensor([-300.0]), torch.tensor([0.0]))).all()
    near = torch.tensor([1e-4])
    assert kl_k3(near, torch.tensor([0.0])).item() == pytest.approx(5e-9, rel=1e-3)  # k1^2 / 2: nothing cancels


# --- ratio and policy loss ---


def test_the_ratio_is_masked_before_exp_so_that_padding_cannot_poison_backward() -> None:
    lp = torch.tensor([[math.log(0.6), -500.0, 900.0, NAN]], requires_grad=True)
    old = torch.tensor([[math.log(0.3), 500.0, -900.0, INF]])
    ratio = probability_ratio(lp, old, torch.tensor([[True, False, False, False]]))
    assert ratio[0].tolist() == pytest.approx([2, 1, 1, 1])
    ratio.sum().backward()
    assert lp.grad is not None
    assert lp.grad[0].tolist() == pytest.approx([2, 0, 0, 0])


def test_the_log_ratio_is_cut_at_twenty_nats() -> None:
    lp = torch.tensor([[19.0, 21.0, -21.0, 400.0]], dtype=F64)
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    ratio = probability_ratio(lp, torch.zeros(1, 4, dtype=F64), everywhere)
    assert ratio[0].tolist() == pytest.approx([math.exp(19), math.exp(20), math.exp(-20), math.exp(20)])
    gradient = gradient_of(lambda x: probability_ratio(x, torch.zeros(1, 4, dtype=F64), everywhere).sum(), lp)
    assert gradient[0].tolist() == pytest.approx([math.exp(19), 0, 0, 0])


def test_the_clipped_surrogate_by_hand() -> None:
    # ratios 1.5 and 0.5 with A = 2 and A = -2, clip to [0.8, 1.3]
    lp = torch.log(torch.tensor([[1.5, 1.5, 0.5, 0.5]], dtype=F64))
    a = torch.tensor([[2.0, -2, 2, -2]], dtype=F64)
    loss, stats = policy_loss(lp, torch.zeros_like(lp), a, MASK[:1], epsilon_low=0.2, epsilon_high=0.3)
    # the smaller of 3 and 2.6, of -3 and -2.6, of 1 and 1.6, of -1 and -1.6
    assert loss[0].tolist() == pytest.approx([-2.6, 3, -1, 1.6])
    assert stats == {
        "n_tokens": 4,
        "clip_fraction": 0.5,
        "ratio_mean": pytest.approx(1.0),
        "ratio_min": pytest.approx(0.5),
        "ratio_max": pytest.approx(1.5),
    }
    got = gradient_of(
        lambda x: policy_loss(x, torch.zeros_like(x), a, MASK[:1], epsilon_low=0.2, epsilon_high=0.3)[0].sum(), lp
    )
    assert got[0].tolist() == pytest.approx([0, 3, -1, 0])  # clipped tokens have none, others -A * ratio


@pytest.mark.parametrize("advantage", [1.7, -0.6])
@pytest.mark.parametrize("edge", ["low", "high"])
@pytest.mark.parametrize("side", [-1e-3, 1e-3])
def test_policy_gradients_beside_the_clipping_edges(advantage: float, edge: str, side: float) -> None:
    at = torch.tensor([[math.log(0.8 if edge == "low" else 1.3) + side]], dtype=F64)
    a, mask = torch.tensor([[advantage]], dtype=F64), torch.ones(1, 1, dtype=torch.bool)
    assert_gradient(
        lambda x: policy_loss(x, torch.zeros_like(x), a, mask, epsilon_low=0.2, epsilon_high=0.3)[0].sum(), at
    )


def test_policy_gradients_on_random_rows() -> None:
    old, a = noise(3, 4, seed=5), noise(3, 4, seed=6)
    for spread in (0.05, 0.5, 3.0):
        at = old + spread * noise(3, 4, seed=7)
        assert_gradient(lambda x: policy_loss(x, old, a, MASK, epsilon_low=0.2, epsilon_high=0.28)[0].sum(), at)


def test_at_ratio_one_the_gradient_is_plain_reinforce() -> None:
    lp, a = noise(3, 4, seed=8), noise(3, seed=9)
    got = gradient_of(lambda x: policy_loss(x, x, a, MASK, epsilon_low=0.2, epsilon_high=0.2)[0].sum(), lp)
    torch.testing.assert_close(got, -a[:, None] * MASK, rtol=1e-12, atol=0)
    _, stats = policy_loss(lp, lp, a, MASK, epsilon_low=0.2, epsilon_high=0.2)
    assert (stats["ratio_mean"], stats["ratio_min"], stats["ratio_max"], stats["clip_fraction"]) == (1, 1, 1, 0)


def test_nothing_but_the_policy_gets_a_gradient() -> None:
    lp, old, ref, a = (noise(3, 4, seed=k).requires_grad_() for k in range(4))
    loss, _ = policy_loss(lp, old, a, MASK, epsilon_low=0.2, epsilon_high=0.2)
    kl = kl_in_loss(lp, ref, old, MASK, epsilon_low=0.2, epsilon_high=0.2)
    (loss.sum() + kl.sum() + value_loss(lp, old, ref, MASK, clip=0.2).sum()).backward()
    assert lp.grad is not None
    assert old.grad is None
    assert ref.grad is None
    assert a.grad is None


def test_padding_is_not_read() -> None:
    lp, old, ref, a = (noise(3, 4, seed=k) for k in range(4))
    spoiled = [x.masked_fill(~MASK, bad) for x, bad in ((lp, NAN), (old, INF), (ref, NAN), (a, -INF))]
    leaf = spoiled[0].requires_grad_()
    loss, stats = policy_loss(leaf, spoiled[1], spoiled[3], MASK, epsilon_low=0.2, epsilon_high=0.2)
    kl = kl_in_loss(leaf, spoiled[2], spoiled[1], MASK, epsilon_low=0.2, epsilon_high=0.2)
    error = value_loss(leaf, spoiled[1], spoiled[3], MASK, clip=0.2)
    (loss.sum() + kl.sum() + error.sum()).backward()
    assert stats == policy_loss(lp, old, a, MASK, epsilon_low=0.2, epsilon_high=0.2)[1]
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    for tensor in (loss, kl, error, leaf.grad):
        assert tensor[~MASK].abs().sum() == 0
    assert torch.equal(loss, policy_loss(lp, old, a, MASK, epsilon_low=0.2, epsilon_high=0.2)[0])
    assert torch.equal(kl, kl_in_loss(lp, ref, old, MASK, epsilon_low=0.2, epsilon_high=0.2))
    assert torch.equal(error, value_loss(lp, old, a, MASK, clip=0.2))


def test_statistics_of_micro_batches_merge_to_those_of_the_whole() -> None:
    old, a = noise(3, 4, seed=5), noise(3, 4, seed=6)
    lp = old + 0.5 * noise(3, 4, seed=7)

    def stats(rows: slice, mask: Tensor = MASK) -> dict[str, float]:
        return policy_loss(lp[rows], old[rows], a[rows], mask[rows], epsilon_low=0.2, epsilon_high=0.2)[1]

    nothing = stats(slice(0, 1), torch.zeros_like(MASK))
    assert nothing == {"n_tokens": 0, "clip_fraction": 0, "ratio_mean": 1, "ratio_min": 1, "ratio_max": 1}
    merged = merged_stats([stats(slice(0, 1)), nothing, stats(slice(1, 3))])
    whole = stats(slice(0, 3))
    assert 0 < whole["clip_fraction"] < 1
    assert merged == pytest.approx(whole)
    assert merged_stats([nothing]) == nothing


# --- normaliser ---


def test_normalisers_by_hand() -> None:
    u = torch.tensor([[1.0, 2, 3, 4], [5, 6, NAN, NAN], [7, NAN, NAN, NAN]], dtype=F64).masked_fill(~MASK, 0)
    means = {}
    for kind in KINDS:
        weights, denominator = normaliser(MASK, 10, kind)
        means[kind] = float((weights * u).sum() / denominator)
    # 28 in all; 3 rows of at most 10; 7 tokens; row means 2.5, 5.5, 7
    assert means == pytest.approx({"constant": 28 / 30, "tokens": 4, "sequence": 5})


@pytest.mark.parametrize("kind", KINDS)
@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6), cut=st.integers(0, 6), seed=st.integers(0, 99))
def test_cutting_an_update_into_micro_batches_does_not_change_it(
    kind: str, lengths: list[int], cut: int, seed: int
) -> None:
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    u = noise(len(lengths), 5, seed=seed)
    weights, denominator = normaliser(mask, 5, kind)  # type: ignore[arg-type]
    parts = [normaliser(mask[rows], 5, kind)[0] for rows in (slice(0, cut), slice(cut, None))]  # type: ignore[arg-type]
    assert torch.equal(torch.cat(parts), weights)
    assert weights[~mask].abs().sum() == 0
    counted = [length for length in lengths if length]
    want = {
        "constant": sum(float(u[i, :n].sum()) for i, n in enumerate(lengths)) / (5 * max(1, len(counted))),
        "tokens": sum(float(u[i, :n].sum()) for i, n in enumerate(lengths)) / max(1, sum(lengths)),
        "sequence": sum(float(u[i, :n].mean()) for i, n in enumerate(lengths) if n) / max(1, len(counted)),
    }[kind]
    assert float((weights * u).sum() / denominator) == pytest.approx(want, rel=1e-6, abs=1e-6)  # weights are float32


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_that_is_masked_out_is_not_there(kind: str) -> None:
    more = torch.cat([MASK, torch.zeros(2, 4, dtype=torch.bool)])
    assert normaliser(more, 10, kind)[1] == normaliser(MASK, 10, kind)[1]  # type: ignore[arg-type]
    weights, denominator = normaliser(more[3:], 10, kind)  # type: ignore[arg-type]
    assert weights.sum() == 0
    assert denominator >= 1


def test_a_cap_below_the_rows_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError):
        normaliser(MASK, 3, "constant")


# --- value loss ---


def test_the_clipped_value_loss_by_hand() -> None:
    v = torch.tensor([[1.5, 1.5, 0.9, 1.1]], dtype=F64)
    old, returns = torch.ones(1, 4, dtype=F64), torch.tensor([[2.0, 0.0, 2.0, 2.0]], dtype=F64)
    # held at 1.2, 1.2, 0.9, 1.1: max(.25, .64), max(2.25, 1.44), 1.21, .81, each halved
    loss = value_loss(v, old, returns, MASK[:1], clip=0.2)
    assert loss[0].tolist() == pytest.approx([0.32, 1.125, 0.605, 0.405])
    gradient = gradient_of(lambda x: value_loss(x, old, returns, MASK[:1], clip=0.2).sum(), v)
    assert gradient[0].tolist() == pytest.approx([0, 1.5, -1.1, -0.9])


@pytest.mark.parametrize("target", [2.0, -2.0])
@pytest.mark.parametrize("at", [0.199, 0.201, -0.199, -0.201])
def test_value_gradients_beside_the_clipping_edges(target: float, at: float) -> None:
    mask, old = torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, dtype=F64)
    returns = torch.full((1, 1), target, dtype=F64)
    assert_gradient(lambda x: value_loss(x, old, returns, mask, clip=0.2).sum(), torch.full((1, 1), at, dtype=F64))


def test_value_gradients_on_random_rows() -> None:
    old, returns = noise(3, 4, seed=1), noise(3, 4, seed=2)
    assert_gradient(lambda x: value_loss(x, old, returns, MASK, clip=0.3).sum(), old + 0.5 * noise(3, 4, seed=3))


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one() -> None:
    returns = noise(3, 4)
    assert explained_variance(returns.masked_fill(~MASK, NAN), returns, MASK) == 1
    assert explained_variance(torch.full_like(returns, 3.0), returns, MASK) == pytest.approx(0)
    assert explained_variance(returns - returns / 2, returns, MASK) == pytest.approx(0.75)
    assert explained_variance(returns, torch.ones(3, 4), MASK) is None


# --- KL in the loss, entropy ---


def test_kl_in_the_loss_holds_its_ratio_constant() -> None:
    old, ref = noise(3, 4, seed=1), noise(3, 4, seed=2)
    lp = old + 0.5 * noise(3, 4, seed=3)
    weight = np.clip(np.exp((lp - old).numpy()), 0.8, 1.3)

    def frozen(x: Tensor) -> Tensor:
        return (torch.tensor(weight) * (x - ref) ** 2 / 2 * MASK).sum()

    def loss(x: Tensor) -> Tensor:
        return kl_in_loss(x, ref, old, MASK, epsilon_low=0.2, epsilon_high=0.3).sum()

    torch.testing.assert_close(loss(lp), frozen(lp), rtol=1e-12, atol=0)
    assert_gradient(loss, lp, frozen)
    assert weight.min() == 0.8
    assert weight.max() == 1.3


def test_kl_in_the_loss_is_k2_on_the_first_pass() -> None:
    lp, ref = noise(3, 4, seed=1), noise(3, 4, seed=2)
    got = kl_in_loss(lp, ref, lp, MASK, epsilon_low=0.2, epsilon_high=0.2)
    torch.testing.assert_close(got, (lp - ref) ** 2 / 2 * MASK, rtol=1e-12, atol=0)


def test_entropy_by_hand() -> None:
    assert entropy(torch.zeros(2, 8)).tolist() == pytest.approx([math.log(8)] * 2)
    assert entropy(torch.tensor([math.log(0.5), math.log(0.25), math.log(0.25)])).item() == pytest.approx(
        1.5 * math.log(2)
    )
    assert entropy(torch.tensor([0.0, 900.0, 0.0])).item() == 0


def test_an_id_that_cannot_be_sampled_adds_nothing_to_the_entropy() -> None:
    logits = noise(2, 5)
    banned = torch.cat([logits, torch.full((2, 2), -INF, dtype=F64)], dim=1)
    torch.testing.assert_close(entropy(banned), entropy(logits), rtol=1e-12, atol=0)
    gradient = gradient_of(lambda x: entropy(x).sum(), banned)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(gradient[:, :5], differences(lambda x: entropy(x).sum(), logits), rtol=1e-6, atol=1e-9)


def test_the_sampled_entropy_averages_to_the_entropy() -> None:
    p = torch.log_softmax(noise(6), 0)
    everywhere = torch.ones(1, 1, dtype=torch.bool)
    each = [float(sampled_entropy(x.view(1, 1), everywhere)) for x in p]
    assert sum(w * e for w, e in zip(p.exp().tolist(), each, strict=True)) == pytest.approx(float(entropy(p)))
    assert sampled_entropy(torch.tensor([[-1.0, -3, NAN, NAN]]), MASK[1:2]) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_log_probs_give_float32(dtype: torch.dtype) -> None:
    lp, old, ref, a = (noise(3, 4, seed=k).to(dtype) for k in range(4))
    results = [
        kl_k1(lp, ref),
        kl_k2(lp, ref),
        kl_k3(lp, ref),
        probability_ratio(lp, old, MASK),
        policy_loss(lp, old, a, MASK, epsilon_low=0.2, epsilon_high=0.2)[0],
        kl_in_loss(lp, ref, old, MASK, epsilon_low=0.2, epsilon_high=0.2),
        value_loss(lp, old, ref, MASK, clip=0.2),
        normaliser(MASK, 4, "sequence")[0],
        entropy(lp),
        sampled_entropy(lp, MASK),
    ]
    assert all(result.dtype == torch.float32 for result in results)
    # differences are taken in float32, not rounded to the input's 8 or 11 bits first
    torch.testing.assert_close(kl_k1(lp, ref), lp.float() - ref.float(), rtol=0, atol=0)
