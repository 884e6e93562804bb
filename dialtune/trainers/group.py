"""RLOO and GRPO: a completion is judged against its siblings. The two differ by one function, the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dialtune.config.rl_schema import RLConfig
from dialtune.models.base import LanguageModel
from dialtune.rl.advantages import group_relative, leave_one_out
from dialtune.rl.losses import kl_in_loss, normaliser, policy_loss
from dialtune.rl.rollouts import Rollout
from dialtune.trainers.method import Measured, measure_policy


class GroupMethod:
    """REINFORCE with a baseline of siblings (RLOO, arXiv 2402.14740; GRPO, 2402.03300; Dr.GRPO, 2503.20783).

    When a rollout feeds one update only, the log-probs of the policy that sampled are those of the update's own
    forward, detached: no extra pass, and the ratio is 1 by construction.
    """

    needs_values = False

    def __init__(self, model: LanguageModel, config: RLConfig) -> None:
        self.model, self.config = model, config
        self.trained: nn.Module = model.module
        self.beta = config.beta
        self.rollout: Rollout
        self.mask: Tensor  # (B,R) bool: tokens that are learned from
        self.advantages: Tensor | None  # (B,); None: they need the log-probs of the update's own forward

    def begin(self, rollout: Rollout, beta: float) -> None:
        """Take a rollout; without `old_logprobs` it feeds one update."""
        self.rollout, self.beta = rollout, beta
        self.mask = rollout.mask & rollout.valid[:, None]
        if self.config.truncation == "mask":
            ended = torch.tensor([reason == "stop" for reason in rollout.finish], device=self.mask.device)
            self.mask = self.mask & ended[:, None]
        everything = torch.arange(len(rollout.texts), device=self.mask.device)
        waits = rollout.old_logprobs is None and self._kl_in_reward
        self.advantages = None if waits else self._advantages(everything, rollout.old_logprobs)

    def start_update(self, prompts: Sequence[int]) -> float:
        """What the summed loss of an update over these prompts is divided by."""
        mask = self.mask[self.rollout.rows(prompts)]
        return normaliser(mask, self.config.max_completion_length, self.config.loss_type)[1]

    def loss_sum(self, prompts: Sequence[int], measured: Measured, *, policy_is_frozen: bool = False) -> Tensor:
        """Summed loss of some prompts' groups; what was seen goes into `measured`."""
        assert not policy_is_frozen
        rollout, config, rows = self.rollout, self.config, self.rollout.rows(prompts)
        mask = self.mask[rows]
        logprobs = self.model.logprobs(
            rollout.queries(prompts),
            rollout.response[rows],
            rollout.mask[rows],
            temperature=config.temperature,
            sampleable=True,
        )
        old = logprobs.detach() if rollout.old_logprobs is None else rollout.old_logprobs[rows]
        advantages = self._advantages(rows, old) if self.advantages is None else self.advantages[rows]
        high = config.epsilon_high or config.epsilon
        loss, stats = policy_loss(logprobs, old, advantages, mask, epsilon_low=config.epsilon, epsilon_high=high)
        if not self._kl_in_reward:
            ref = rollout.ref_logprobs[rows]
            loss = loss + self.beta * kl_in_loss(
                logprobs, ref, old, mask, epsilon_low=config.epsilon, epsilon_high=high
            )
        measure_policy(measured, rollout, rows, logprobs.detach(), old, mask)
        measured.add(0, clip_fraction=float(stats["clip_fraction"]) * float(mask.sum()))
        measured.add_rows(0, advantage=float(advantages.sum()), advantage_square=float((advantages**2).sum()))
        weights, _ = normaliser(mask, config.max_completion_length, config.loss_type)
        return (loss * weights).sum()

    def values(self, states: Tensor) -> Tensor:
        """There is no value head."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Nothing but the model is trained."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Nothing to load."""
        del tensors

    @property
    def _kl_in_reward(self) -> bool:
        """k1 in the reward, unless rewards are divided by a std, which would turn beta into beta / std."""
        return self.config.scale_rewards == "none"

    def _advantages(self, rows: Tensor, old: Tensor | None) -> Tensor:
        """(B',) advantages of whole groups; `old` (B',R) is read where the KL is part of the reward."""
        rollout, config = self.rollout, self.config
        rewards, valid = rollout.rewards[rows], rollout.valid[rows]
        if self._kl_in_reward and self.beta:
            assert old is not None
            rewards = rewards - self.beta * ((old - rollout.ref_logprobs[rows]) * rollout.mask[rows]).sum(1)
        if config.method == "rloo":
            return leave_one_out(rewards, rollout.group, valid)
        return group_relative(rewards, rollout.group, config.scale_rewards, valid)
