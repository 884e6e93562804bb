"""Bandits whose optimum is known: every method finds it, and the controller holds its constraint."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dialtune.rl.advantages import generalized_advantages, group_relative, leave_one_out, shaped_rewards, whiten
from dialtune.rl.constraint import Constraint, Multiplier
from dialtune.rl.losses import kl_in_loss, kl_k1, normaliser, policy_loss, value_loss

CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.2}
ARMS = np.array([0.0, 0.6, 1.0, 0.3])
START = np.array([0.4, 0.3, 0.2, 0.1])
EVERY = torch.ones(512, 1, dtype=torch.bool)  # 64 prompts of 8 completions of one token
Update = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (log-probs, old, ref (B,1), arms (B,)) -> loss (B,1)


def play(update: Update, *, steps: int, rate: float, passes: int = 1, seed: int = 0) -> np.ndarray:
    """The policy over four arms after gradient descent from START, averaged over the last third of the steps."""
    rng = np.random.default_rng(seed)
    logits, ref = torch.tensor(np.log(START)), torch.tensor(np.log(START))
    seen = []
    for step in range(steps):
        policy = torch.softmax(logits, 0).numpy()
        arms = torch.tensor(rng.choice(4, size=len(EVERY), p=policy / policy.sum()))
        old = torch.log_softmax(logits, 0)[arms][:, None]
        for _ in range(passes):
            theta = logits.clone().requires_grad_()
            new = torch.log_softmax(theta, 0)[arms][:, None]
            weights, denominator = normaliser(EVERY, 1, "constant")
            (weights * update(new, old, ref[arms][:, None], arms)).sum().div(denominator).backward()
            assert theta.grad is not None
            logits = logits - rate / (1 + step / 50) * theta.grad
        seen.append(policy)
    return np.mean(seen[-steps // 3 :], axis=0)


def optimum(beta: float) -> np.ndarray:
    """argmax of E[R] - beta * KL: ref * exp(R / beta), normalised."""
    tilted = START * np.exp(ARMS / beta)
    return tilted / tilted.sum()


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Total variation."""
    return float(np.abs(one - other).sum() / 2)


@pytest.mark.parametrize("method", ["rloo", "grpo", "ppo"])
def test_the_kl_in_the_reward_leads_to_the_known_optimum(method: str) -> None:
    gains, value = torch.tensor(ARMS), torch.zeros(())

    def update(new: Tensor, old: Tensor, ref: Tensor, arms: Tensor) -> Tensor:
        nonlocal value
        rho = shaped_rewards(gains[arms], kl_k1(old, ref), EVERY, 0.5)
        if method == "ppo":
            before = value.expand(EVERY.shape).double()
            advantages, returns = generalized_advantages(rho, before, EVERY)
            critic = value.clone().requires_grad_()
            value_loss(critic.expand(EVERY.shape), before, returns, EVERY, clip=0.2).mean().backward()
            assert critic.grad is not None
            value = value - 0.5 * critic.grad
            advantages = 0.3 * whiten(advantages, EVERY)
        elif method == "rloo":
            advantages = leave_one_out(rho[:, 0], 8)
        else:
            advantages = group_relative(rho[:, 0], 8, "none")
        return policy_loss(new, old, advantages, EVERY, **CLIP)[0]

    found = play(update, steps=240, rate=2.0, passes=2 if method == "ppo" else 1)
    assert distance(START, optimum(0.5)) > 0.2
    assert distance(found, optimum(0.5)) < 0.02, found  # 512 draws a step
    if method == "ppo":
        # log sum(ref * exp(R / beta)) * beta is the value of the optimum
        assert float(value) == pytest.approx(0.5 * math.log((START * np.exp(ARMS / 0.5)).sum()), abs=0.02)


def test_the_kl_in_the_loss_meets_rewards_that_were_divided_by_their_std() -> None:
    """Where advantages are (R - mean) / std, beta weighs like beta * std * G / (G - 1) does on the rewards."""

    def update(new: Tensor, old: Tensor, ref: Tensor, arms: Tensor) -> Tensor:
        advantages = group_relative(torch.tensor(ARMS)[arms], 8, "batch")
        return policy_loss(new, old, advantages, EVERY, **CLIP)[0] + kl_in_loss(new, ref, old, EVERY, **CLIP)

    want = START
    for _ in range(200):  # the std is that of the optimum itself
        std = math.sqrt(want @ ARMS**2 - (want @ ARMS) ** 2)
        want = 0.5 * want + 0.5 * optimum(std * 8 / 7)
    assert distance(START, want) > 0.2
    assert distance(play(update, steps=240, rate=1.0), want) < 0.02


def test_grpo_without_a_kl_finds_the_best_arm() -> None:
    def update(new: Tensor, old: Tensor, ref: Tensor, arms: Tensor) -> Tensor:
        return policy_loss(new, old, group_relative(torch.tensor(ARMS)[arms], 8, "group"), EVERY, **CLIP)[0]

    assert play(update, steps=150, rate=2.0)[2] > 0.95


# A constrained bandit: the least toxic arm is the least relevant one.

TOXICITY = np.array([0.9, 0.5, 0.1, 0.02])
RELEVANCE = np.array([0.70, 0.66, 0.62, 0.30])


def detoxify(
    multiplier: float, *, rate: float = 0.1, steps: int = 400, step_size: float = 2.0, seed: int = 0
) -> np.ndarray:
    """The policy that the controller ends with: 64 prompts of 8 completions per rollout."""
    mean, sd = float(START @ RELEVANCE), float(np.sqrt(START @ (RELEVANCE - START @ RELEVANCE) ** 2))
    sd_s = float(np.sqrt(START @ (TOXICITY - START @ TOXICITY) ** 2))
    constraint = Constraint((Multiplier("relevance", 0.98 * mean, sd, mean, multiplier),), rate=rate)
    rng, logits = np.random.default_rng(seed), torch.tensor(np.log(START))
    for _ in range(steps):
        policy = torch.softmax(logits, 0).numpy()
        arms = rng.choice(4, size=len(EVERY), p=policy / policy.sum())
        rewards = constraint.combine(-TOXICITY[arms], sd_s, {"relevance": RELEVANCE[arms]})
        theta = logits.clone().requires_grad_()
        new = torch.log_softmax(theta, 0)[torch.tensor(arms)][:, None]
        policy_loss(new, new, leave_one_out(torch.tensor(rewards), 8), EVERY, **CLIP)[0].mean().backward()
        assert theta.grad is not None
        logits = logits - step_size * theta.grad
        constraint = constraint.update({"relevance": RELEVANCE[arms]}, 8)
    return torch.softmax(logits, 0).numpy()


def test_the_constrained_bandits_exact_optimum() -> None:
    from scipy.optimize import linprog

    tau = 0.98 * START @ RELEVANCE
    best = linprog(TOXICITY, A_ub=[-RELEVANCE], b_ub=[-tau], A_eq=[np.ones(4)], b_eq=[1.0])
    assert tau == pytest.approx(0.6194, abs=5e-5)
    assert best.fun == pytest.approx(0.0998, abs=5e-5)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_controller_ends_near_the_constrained_optimum(seed: int) -> None:
    policy = detoxify(1.0, seed=seed)
    assert policy @ TOXICITY < 0.102
    assert policy @ RELEVANCE >= 0.98 * START @ RELEVANCE - 0.001


def test_a_multiplier_that_starts_at_nothing_rises_in_time() -> None:
    policy = detoxify(0.0, steps=800, step_size=1.0)
    assert policy @ TOXICITY < 0.102
    assert policy @ RELEVANCE >= 0.98 * START @ RELEVANCE - 0.001


def test_without_the_controller_relevance_is_lost() -> None:
    policy = detoxify(0.0, rate=0.0, steps=300)
    assert policy @ TOXICITY < 0.03
    assert policy @ RELEVANCE < 0.32
