"""PPO: a value head says what to expect, and advantages are what came on top of it (arXiv 1707.06347)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dialtune.config.rl_schema import RLConfig
from dialtune.models.base import LanguageModel
from dialtune.models.value_head import ValueHead
from dialtune.rl.advantages import generalized_advantages, shaped_rewards, whiten
from dialtune.rl.losses import normaliser, policy_loss, value_loss
from dialtune.rl.rollouts import Rollout
from dialtune.trainers.method import Measured, measure_policy


class PPOMethod:
    """Clipped surrogate on GAE advantages (arXiv 1506.02438), with the KL to the start policy in the reward."""

    needs_values = True

    def __init__(self, model: LanguageModel, config: RLConfig) -> None:
        self.model, self.config = model, config
        self.head = ValueHead(model.hidden_size, model.device)
        self.trained: nn.Module = nn.ModuleList([model.module, self.head])
        self.rollout: Rollout
        self.mask: Tensor  # (B,R) bool
        self.advantages: Tensor  # (B,R)
        self.returns: Tensor  # (B,R)
        self.value_scale = config.vf_coef

    def begin(self, rollout: Rollout, beta: float) -> None:
        """Take a rollout that carries `old_logprobs` and `values`."""
        assert rollout.old_logprobs is not None
        assert rollout.values is not None
        self.rollout, config = rollout, self.config
        self.mask = rollout.mask & rollout.valid[:, None]
        truncated = torch.tensor([reason == "length" for reason in rollout.finish], device=self.mask.device)
        if config.truncation == "mask":
            self.mask = self.mask & ~truncated[:, None]
        kl = rollout.old_logprobs - rollout.ref_logprobs
        rewards = shaped_rewards(rollout.rewards, kl, rollout.mask, beta)
        bootstrap = None if rollout.last_values is None else rollout.last_values * truncated
        advantages, self.returns = generalized_advantages(
            rewards, rollout.values, rollout.mask, gamma=config.gamma, lam=config.gae_lambda, bootstrap=bootstrap
        )
        self.advantages = whiten(advantages, self.mask)

    def start_update(self, prompts: Sequence[int]) -> float:
        """What the summed loss of an update over these prompts is divided by."""
        mask = self.mask[self.rollout.rows(prompts)]
        denominator = normaliser(mask, self.config.max_completion_length, self.config.loss_type)[1]
        # The value loss is a mean over tokens whatever divides the policy's.
        self.value_scale = self.config.vf_coef * denominator / max(1, int(mask.sum()))
        return denominator

    def loss_sum(self, prompts: Sequence[int], measured: Measured, *, policy_is_frozen: bool) -> Tensor:
        """Summed loss of some prompts' groups; with a frozen policy only the value head's."""
        rollout, config, rows = self.rollout, self.config, self.rollout.rows(prompts)
        assert rollout.old_logprobs is not None
        assert rollout.values is not None
        mask, old, response = self.mask[rows], rollout.old_logprobs[rows], rollout.response[rows]
        with torch.set_grad_enabled(not policy_is_frozen):
            states = self.model.states(rollout.queries(prompts), response, rollout.mask[rows])
            logprobs = self.model.score(
                states, response, rollout.mask[rows], temperature=config.temperature, sampleable=True
            )
        values = self.head(states)
        weights, _ = normaliser(mask, config.max_completion_length, config.loss_type)
        high = config.epsilon_high or config.epsilon
        policy, stats = policy_loss(
            logprobs, old, self.advantages[rows], mask, epsilon_low=config.epsilon, epsilon_high=high
        )
        error = value_loss(values, rollout.values[rows], self.returns[rows], mask, clip=config.cliprange_value)
        measure_policy(measured, rollout, rows, logprobs.detach(), old, mask)
        with torch.no_grad():
            kept, returns = mask.float(), self.returns[rows]
            measured.add(
                0,
                clip_fraction=float(stats["clip_fraction"]) * float(kept.sum()),
                value_loss=float((error * kept).sum()),
                return_sum=float((returns * kept).sum()),
                return_square=float((returns**2 * kept).sum()),
                value_error=float(((values - returns) * kept).sum()),
                value_error_square=float(((values - returns) ** 2 * kept).sum()),
            )
        value_part = self.value_scale * (error * mask).sum()
        return value_part if policy_is_frozen else (policy * weights).sum() + value_part

    def values(self, states: Tensor) -> Tensor:
        """(B,R) fp32."""
        values: Tensor = self.head(states)
        return values

    def tensors(self) -> dict[str, Tensor]:
        """The value head."""
        return {name: tensor.detach() for name, tensor in self.head.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `tensors()`."""
        self.head.load_state_dict(dict(tensors))
