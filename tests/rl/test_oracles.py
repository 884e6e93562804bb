"""Whole objectives against full enumeration: a tabular policy, every completion it can write, float64.

The expectation of a gradient estimator is a finite sum here, so "unbiased" is an equality, not a trend.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dialtune.rl.advantages import (
    generalized_advantages,
    group_relative,
    leave_one_out,
    sequence_rewards,
    shaped_rewards,
)
from dialtune.rl.losses import kl_in_loss, kl_k1, kl_k2, kl_k3, normaliser, policy_loss

F64 = torch.float64
BETA = 0.3
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.2}
WIDE = {"epsilon_low": 1.0, "epsilon_high": 1e9}  # no ratio is clipped


class Tabular:
    """A policy with a row of logits for every prefix, and every completion of at most `cap` of V ids; id 0 ends one.

    S completions; `prefix`, `ids` and `mask` (S,cap). V = 4 and cap = 3 give 40 completions.
    """

    def __init__(self, vocabulary: int, cap: int) -> None:
        texts: list[tuple[int, ...]] = []
        prefixes: dict[tuple[int, ...], int] = {}
        open_ones: list[tuple[int, ...]] = [()]
        for length in range(1, cap + 1):
            for prefix in open_ones:
                prefixes[prefix] = len(prefixes)
            longer = [(*prefix, token) for prefix in open_ones for token in range(vocabulary)]
            texts += [text for text in longer if text[-1] == 0 or length == cap]
            open_ones = [text for text in longer if text[-1] != 0]
        self.cap, self.n_prefixes, self.vocabulary = cap, len(prefixes), vocabulary
        self.mask = torch.tensor([[t < len(text) for t in range(cap)] for text in texts])
        self.ids = torch.tensor([[*text, *[0] * (cap - len(text))] for text in texts])
        self.prefix = torch.tensor([[prefixes[text[:t]] if t < len(text) else 0 for t in range(cap)] for text in texts])
        self.rewards = torch.randn(len(texts), dtype=F64, generator=torch.Generator().manual_seed(7))

    def logits(self, seed: int) -> Tensor:
        """Random logits (prefixes,V) of spread 1: two such policies are far apart."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.n_prefixes, self.vocabulary, dtype=F64, generator=generator)

    def logprobs(self, logits: Tensor) -> Tensor:
        """(S,cap), 0 outside the mask."""
        return torch.log_softmax(logits, dim=1)[self.prefix, self.ids] * self.mask

    def objective(self, logits: Tensor, ref: Tensor, beta: float, rewards: Tensor | None = None) -> Tensor:
        """E[R] - beta * KL, exactly."""
        sequence = self.logprobs(logits).sum(1)
        gain = self.rewards if rewards is None else rewards
        return (sequence.exp() * (gain - beta * (sequence - self.logprobs(ref).sum(1)))).sum()


def gradient(f: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    leaf = at.clone().requires_grad_()
    f(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def expected(world: Tabular, logits: Tensor, loss: Callable[[Tensor], Tensor], old: Tensor | None = None) -> Tensor:
    """Minus the expected gradient of a loss per completion (S,) of log-probs (S,cap), sampled from `old`."""
    weight = world.logprobs(logits if old is None else old).sum(1).exp()
    assert float(weight.sum()) == pytest.approx(1)
    return -gradient(lambda theta: (weight * loss(world.logprobs(theta))).sum(), logits)


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


SHAPES = pytest.mark.parametrize("world", [Tabular(3, 3), Tabular(4, 3), Tabular(4, 1)], ids=["3x3", "4x3", "4x1"])


def test_the_tabular_world_is_whole() -> None:
    world = Tabular(4, 3)
    assert len(world.ids) == 40
    assert len({tuple(row[keep].tolist()) for row, keep in zip(world.ids, world.mask, strict=True)}) == 40
    logits, ref = world.logits(0), world.logits(1)
    exact = gradient(lambda theta: world.objective(theta, ref, BETA), logits)
    numeric = torch.zeros_like(exact)
    for row, column in itertools.product(*map(range, exact.shape)):
        step = torch.zeros_like(exact)
        step[row, column] = 1e-5
        numeric[row, column] = world.objective(logits + step, ref, BETA) - world.objective(logits - step, ref, BETA)
    torch.testing.assert_close(exact, numeric / 2e-5, rtol=1e-6, atol=1e-9)


# --- unbiased: REINFORCE, RLOO, Dr.GRPO, PPO with k1 in the reward ---


def over_groups(
    world: Tabular, policies: tuple[Tensor, Tensor], group: int, estimator: Callable[[Tensor], Tensor], kind: str
) -> Tensor:
    """Minus the expected gradient of the loss that a trainer would take, over all S^G groups of one prompt."""
    logits, ref = policies
    rows = torch.cartesian_prod(*[torch.arange(len(world.ids))] * group)  # (S^G,G)
    weight = world.logprobs(logits).sum(1).exp()[rows].prod(1)
    mask, flat = world.mask[rows.reshape(-1)], rows.reshape(-1)
    ref_logprobs = world.logprobs(ref)[flat]
    denominators = torch.tensor([normaliser(world.mask[one], world.cap, kind)[1] for one in rows])  # type: ignore[arg-type]

    def loss(theta: Tensor) -> Tensor:
        l_new = world.logprobs(theta)[flat]
        rewards = sequence_rewards(world.rewards[flat], kl_k1(l_new, ref_logprobs), mask, BETA)
        per_token, _ = policy_loss(l_new, l_new, estimator(rewards), mask, **CLIP)
        weights, _ = normaliser(mask, world.cap, kind)  # type: ignore[arg-type]
        sums = (weights.double() * per_token).reshape(len(rows), -1).sum(1)
        return (weight * sums / denominators).sum()

    return -gradient(loss, logits)


@SHAPES
def test_k1_in_the_reward_is_unbiased(world: Tabular) -> None:
    logits, ref = world.logits(0), world.logits(1)
    ref_logprobs = world.logprobs(ref)

    def loss(logprobs: Tensor) -> Tensor:
        rewards = sequence_rewards(world.rewards, kl_k1(logprobs, ref_logprobs), world.mask, BETA)
        return policy_loss(logprobs, logprobs, rewards, world.mask, **CLIP)[0].sum(1)

    want = gradient(lambda theta: world.objective(theta, ref, BETA), logits)
    torch.testing.assert_close(expected(world, logits, loss), want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("world", "group"), [(Tabular(3, 3), 2), (Tabular(3, 2), 3), (Tabular(4, 3), 2)])
def test_rloo_and_dr_grpo_with_the_constant_normaliser_are_unbiased(world: Tabular, group: int) -> None:
    """Dr.GRPO's baseline holds the completion itself, which scales its gradient by (G - 1) / G and changes no more."""
    logits, ref = world.logits(0), world.logits(1)
    want = gradient(lambda theta: world.objective(theta, ref, BETA), logits) / world.cap
    rloo = over_groups(world, (logits, ref), group, lambda rewards: leave_one_out(rewards, group), "constant")
    torch.testing.assert_close(rloo, want, rtol=1e-8, atol=1e-10)
    dr_grpo = over_groups(world, (logits, ref), group, lambda r: group_relative(r, group, "none"), "constant")
    torch.testing.assert_close(dr_grpo * group / (group - 1), want, rtol=1e-8, atol=1e-10)


def test_dividing_by_the_groups_std_or_the_rows_length_points_elsewhere() -> None:
    """GRPO as published: no rescaling of its expected gradient gives the objective's."""
    world, group = Tabular(3, 3), 2
    logits, ref = world.logits(0), world.logits(1)
    want = gradient(lambda theta: world.objective(theta, ref, BETA), logits)
    for kind, estimator in (
        ("constant", lambda rewards: group_relative(rewards, group, "group", floor=0.0)),
        ("sequence", lambda rewards: leave_one_out(rewards, group)),
    ):
        got = over_groups(world, (logits, ref), group, estimator, kind)
        scale = float((got * want).sum() / (got * got).sum())
        assert relative_error(scale * got, want) > 0.1, kind


@SHAPES
def test_ppo_with_lambda_one_is_unbiased_whatever_the_critic_says(world: Tabular) -> None:
    logits, ref = world.logits(0), world.logits(1)
    ref_logprobs, values = world.logprobs(ref), world.logits(2)[:, 0][world.prefix]

    def loss(logprobs: Tensor) -> Tensor:
        rho = shaped_rewards(world.rewards, kl_k1(logprobs, ref_logprobs), world.mask, BETA)
        advantages, _ = generalized_advantages(rho, values, world.mask, gamma=1.0, lam=1.0)
        return policy_loss(logprobs, logprobs, advantages, world.mask, **CLIP)[0].sum(1)

    want = gradient(lambda theta: world.objective(theta, ref, BETA), logits)
    torch.testing.assert_close(expected(world, logits, loss), want, rtol=1e-8, atol=1e-10)


def test_a_true_critic_makes_every_lambda_unbiased() -> None:
    """With v = E[return | prefix] the TD errors are the advantages, also for lambda = 0."""
    world = Tabular(4, 3)
    logits, ref = world.logits(0), world.logits(1)
    logprobs, ref_logprobs = world.logprobs(logits), world.logprobs(ref)
    rho = shaped_rewards(world.rewards, kl_k1(logprobs, ref_logprobs), world.mask, BETA)
    weight, to_go = logprobs.sum(1).exp(), rho.flip(1).cumsum(1).flip(1)
    mass, total = torch.zeros(world.n_prefixes, dtype=F64), torch.zeros(world.n_prefixes, dtype=F64)
    flat = world.prefix[world.mask]
    mass.index_add_(0, flat, weight[:, None].expand_as(world.mask)[world.mask])
    total.index_add_(0, flat, (weight[:, None] * to_go)[world.mask])
    values = (total / mass)[world.prefix]
    want = gradient(lambda theta: world.objective(theta, ref, BETA), logits)
    for lam in (0.0, 0.5):
        advantages, _ = generalized_advantages(rho, values, world.mask, gamma=1.0, lam=lam)
        got = expected(world, logits, lambda x, a=advantages: policy_loss(x, x, a, world.mask, **CLIP)[0].sum(1))
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def test_later_passes_stay_unbiased_through_the_ratio() -> None:
    """One token, samples of an older policy, no clipping: the ratio makes good for both reward and KL."""
    world = Tabular(4, 1)
    logits, old, ref = world.logits(0), world.logits(3), world.logits(1)
    old_logprobs, ref_logprobs = world.logprobs(old), world.logprobs(ref)

    def loss(logprobs: Tensor) -> Tensor:
        surrogate, _ = policy_loss(logprobs, old_logprobs, world.rewards, world.mask, **WIDE)
        return (surrogate + BETA * kl_in_loss(logprobs, ref_logprobs, old_logprobs, world.mask, **WIDE)).sum(1)

    want = gradient(lambda theta: world.objective(theta, ref, BETA), logits)
    torch.testing.assert_close(expected(world, logits, loss, old), want, rtol=1e-8, atol=1e-10)


# --- where the KL stands ---


def kl_gradients(world: Tabular) -> tuple[dict[str, Tensor], Tensor]:
    """Expected gradients of every estimator and place, and that of the KL itself."""
    logits, ref_logprobs = world.logits(0), world.logprobs(world.logits(1))
    nothing = torch.zeros_like(world.rewards)

    def in_reward(k: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def loss(l_new: Tensor) -> Tensor:
            rewards = sequence_rewards(nothing, k(l_new, ref_logprobs), world.mask, beta=1.0)
            return policy_loss(l_new, l_new, rewards, world.mask, **CLIP)[0].sum(1)

        return loss

    def k3(x: Tensor) -> Tensor:  # with the gradient that ours refuses to carry
        return torch.exp(ref_logprobs - x) - 1 + (x - ref_logprobs)

    losses = {
        "k1 reward": in_reward(kl_k1),
        "k2 reward": in_reward(kl_k2),
        "k3 reward": in_reward(kl_k3),
        "k2 loss, sequence": lambda x: kl_k2(x.sum(1), ref_logprobs.sum(1)),
        "k2 loss, token": lambda x: kl_in_loss(x, ref_logprobs, x, world.mask, **CLIP).sum(1),
        "k3 x ratio loss": lambda x: (torch.exp(x - x.detach()) * k3(x)).sum(1),
        "k3 loss": lambda x: k3(x).sum(1),
        "k1 loss": lambda x: (x - ref_logprobs).sum(1),
    }
    found = {name: -expected(world, logits, loss) for name, loss in losses.items()}
    return found, gradient(lambda theta: -world.objective(theta, world.logits(1), 1.0, nothing), logits)


def test_kl_estimators_on_one_step() -> None:
    found, want = kl_gradients(Tabular(4, 1))
    errors = {name: relative_error(got, want) for name, got in found.items()}
    for name in ("k1 reward", "k2 loss, sequence", "k2 loss, token", "k3 x ratio loss"):
        assert errors[name] < 1e-8, name
    for name in ("k2 reward", "k3 reward", "k3 loss"):
        assert errors[name] > 0.1, name
    assert errors["k1 loss"] == pytest.approx(1, abs=1e-8)  # its expected gradient is zero


def test_kl_estimators_on_three_steps() -> None:
    found, want = kl_gradients(Tabular(4, 3))
    errors = {name: relative_error(got, want) for name, got in found.items()}
    for name in ("k1 reward", "k2 loss, sequence"):
        assert errors[name] < 1e-8, name
    for name in ("k2 reward", "k3 reward", "k3 loss", "k2 loss, token"):
        assert errors[name] > 0.1, name
    assert errors["k1 loss"] == pytest.approx(1, abs=1e-8)
    torch.testing.assert_close(found["k2 loss, token"], found["k3 x ratio loss"], rtol=1e-8, atol=1e-10)
