"""Our formulas against those of trl 1.16, where one of them can be called without a model; skipped without trl."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dialtune.rl.advantages import group_relative
from dialtune.rl.losses import entropy, kl_in_loss, normaliser, policy_loss

F64 = torch.float64
BETA = 0.3
CLIP = {"epsilon_low": 0.2, "epsilon_high": 0.2}


@pytest.fixture(scope="module")
def trl() -> Any:
    """The GRPO trainer's module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("trl", exc_type=ImportError)
        import trl.trainer.grpo_trainer as module
        from trl.trainer import utils
    return SimpleNamespace(trainer=module.GRPOTrainer, nanstd=utils.nanstd, entropy=utils.entropy_from_logits)


def their_loss(trl: Any, logprobs: Tensor, inputs: dict[str, Tensor], **settings: Any) -> Tensor:
    """`GRPOTrainer._compute_loss` on given log-probs; what would ask a model or other processes is a stand-in."""
    alone = SimpleNamespace(reduce=lambda x, reduction: x, gather=lambda x: x)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_args, **_kwargs: (logprobs, torch.zeros_like(logprobs), None),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=True),
        accelerator=alone,
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        **settings,
    )
    ids = torch.zeros(logprobs.shape, dtype=torch.long)
    given = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, **inputs}
    loss: Tensor = trl.trainer._compute_loss(trainer, None, given)
    return loss


LENGTHS = torch.tensor([5, 1, 3, 2, 5, 4])
THEIR_NAMES = [("constant", "dr_grpo"), ("tokens", "bnpo"), ("sequence", "grpo")]


@pytest.mark.parametrize(("ours", "theirs"), THEIR_NAMES)
def test_policy_loss_and_normalisers_agree_with_trl(trl: Any, ours: str, theirs: str) -> None:
    generator = torch.Generator().manual_seed(0)
    old, noise, advantages = (torch.randn(6, 5, dtype=F64, generator=generator) for _ in range(3))
    new, advantages, mask = old + 0.3 * noise, advantages[:, 0], torch.arange(5) < LENGTHS[:, None]
    weights, denominator = normaliser(mask, 9, ours)  # type: ignore[arg-type]
    per_token, stats = policy_loss(new, old, advantages, mask, epsilon_low=0.2, epsilon_high=0.28)
    inputs = {"completion_mask": mask.long(), "advantages": advantages, "old_per_token_logps": old}
    want = their_loss(
        trl, new, inputs, loss_type=theirs, beta=0.0, epsilon_low=0.2, epsilon_high=0.28, max_completion_length=9
    )
    assert 0 < stats["clip_fraction"] < 1
    # our weights are float32, 1 / 3 is off by 1e-8; terms of size 1 cancel
    assert float((weights * per_token).sum() / denominator) == pytest.approx(float(want), rel=1e-7, abs=1e-8)


@pytest.mark.parametrize(("ours", "theirs"), THEIR_NAMES)
def test_on_the_first_pass_our_k2_has_the_gradient_of_trls_k3_times_the_ratio(trl: Any, ours: str, theirs: str) -> None:
    generator = torch.Generator().manual_seed(1)
    new, ref, advantages = (torch.randn(6, 5, dtype=F64, generator=generator) for _ in range(3))
    mask, advantages = torch.arange(5) < LENGTHS[:, None], advantages[:, 0]
    weights, denominator = normaliser(mask, 9, ours)  # type: ignore[arg-type]

    def our_loss(x: Tensor) -> Tensor:
        kl = kl_in_loss(x, ref, x, mask, **CLIP)
        return (weights * (policy_loss(x, x, advantages, mask, **CLIP)[0] + BETA * kl)).sum() / denominator

    def loss_of_theirs(x: Tensor) -> Tensor:
        inputs = {"completion_mask": mask.long(), "advantages": advantages, "ref_per_token_logps": ref}
        return their_loss(trl, x, inputs, loss_type=theirs, beta=BETA, max_completion_length=9, **CLIP)

    def gradient(f: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = new.clone().requires_grad_()
        return torch.autograd.grad(f(leaf), leaf)[0]

    torch.testing.assert_close(gradient(our_loss), gradient(loss_of_theirs), rtol=1e-7, atol=1e-12)


def test_standard_deviations_and_entropy_agree_with_trl(trl: Any) -> None:
    generator = torch.Generator().manual_seed(2)
    rewards = torch.randn(12, dtype=F64, generator=generator)
    valid = torch.tensor([True] * 5 + [False] + [True] * 6)
    seen = rewards.masked_fill(~valid, math.nan).reshape(3, 4)
    centred = seen - seen.nanmean(1, keepdim=True)
    for scale, std in (("group", trl.nanstd(seen, dim=1, keepdim=True)), ("batch", trl.nanstd(seen))):
        got = group_relative(rewards, 4, scale, valid, floor=0.0)  # type: ignore[arg-type]
        want = (centred / (std + 1e-4)).nan_to_num(0.0).reshape(-1)
        torch.testing.assert_close(got, want, rtol=1e-7, atol=0)  # n / (n - 1) is float32 in theirs
    logits = torch.randn(2, 7, 11, dtype=F64, generator=generator)
    torch.testing.assert_close(entropy(logits), trl.entropy(logits), rtol=1e-12, atol=1e-12)
