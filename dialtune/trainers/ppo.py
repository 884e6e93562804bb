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
from dialtune.trainers.method import Measured, measure_policy, with_old


class PPOMethod:
    """Clipped surrogate on GAE advantages (arXiv 1506.02438), with the KL to the start policy in the reward.

    When a rollout feeds one update in one forward, the log-probs and values of the policy that sampled are those of
    that forward, detached, as in `group.py`. Whitened advantages need all rows, so several forwards are preceded by a
    pass over all of them.
    """

    needs_values = True

    def __init__(self, model: LanguageModel, config: RLConfig) -> None:
        self.model, self.config = model, config
        self.head = ValueHead(model.hidden_size, model.device)
        self.trained: nn.Module = nn.ModuleList([model.module, self.head])
        self.rollout: Rollout
        self.mask: Tensor  # (B,R) bool
        self.beta = config.beta
        self.advantages: Tensor | None  # (B,R); None: they need the values of the update's own forward
        self.returns: Tensor  # (B,R)
        self.value_scale = config.vf_coef

    def begin(self, rollout: Rollout, beta: float) -> None:
        """Take a rollout; without `old_logprobs` it feeds one update."""
        self.rollout, self.beta = rollout, beta
        self.mask = rollout.mask & rollout.valid[:, None]
        if self.config.truncation == "mask":
            self.mask = self.mask & ~self._truncated()[:, None]
        self.advantages = None
        if rollout.old_logprobs is not None and rollout.values is not None:
            self._estimate(rollout.old_logprobs, rollout.values)

    def _truncated(self) -> Tensor:
        """(B,) bool: hit the cap."""
        return torch.tensor([reason == "length" for reason in self.rollout.finish], device=self.mask.device)

    def _estimate(self, old: Tensor, values: Tensor) -> None:
        """Advantages and returns of the whole rollout from the old log-probs and values (B,R)."""
        rollout, config = self.rollout, self.config
        rewards = shaped_rewards(rollout.rewards, old - rollout.ref_logprobs, rollout.mask, self.beta)
        bootstrap = None if rollout.last_values is None else rollout.last_values * self._truncated()
        advantages, self.returns = generalized_advantages(
            rewards, values, rollout.mask, gamma=config.gamma, lam=config.gae_lambda, bootstrap=bootstrap
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
        config = self.config
        if self.advantages is None and len(prompts) < len(self.rollout.example_ids):
            self.begin(with_old(self.model, self, self.rollout, config, batch=len(prompts)), self.beta)
        rollout, rows = self.rollout, self.rollout.rows(prompts)
        mask, response = self.mask[rows], rollout.response[rows]
        with torch.set_grad_enabled(not policy_is_frozen):
            states = self.model.states(rollout.queries(prompts), response, rollout.mask[rows])
            logprobs = self.model.score(
                states, response, rollout.mask[rows], temperature=config.temperature, sampleable=True
            )
        values = self.head(states)
        if self.advantages is None:
            self._estimate(logprobs.detach(), values.detach() * rollout.mask)
        assert self.advantages is not None
        old = logprobs.detach() if rollout.old_logprobs is None else rollout.old_logprobs[rows]
        old_values = values.detach() if rollout.values is None else rollout.values[rows]
        weights, _ = normaliser(mask, config.max_completion_length, config.loss_type)
        high = config.epsilon_high or config.epsilon
        policy, stats = policy_loss(
            logprobs, old, self.advantages[rows], mask, epsilon_low=config.epsilon, epsilon_high=high
        )
        error = value_loss(values, old_values, self.returns[rows], mask, clip=config.cliprange_value)
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
