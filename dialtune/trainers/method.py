"""What a reinforcement-learning method is to the loop, and what is measured while its loss is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from dialtune.config.rl_schema import RLConfig
from dialtune.models.base import LanguageModel
from dialtune.rl.losses import kl_k1, kl_k3
from dialtune.rl.rollouts import Rollout, chunks


@dataclass
class Measured:
    """Sums over the tokens and completions of one update, from which the log record is made."""

    tokens: float = 0.0
    rows: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)  # per token
    row_sums: dict[str, float] = field(default_factory=dict)  # per completion
    ratio_min: float = float("inf")
    ratio_max: float = 0.0

    def add(self, n_tokens: float, **sums: float) -> None:
        """Add sums over `n_tokens` tokens."""
        self.tokens += n_tokens
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def add_rows(self, n_rows: float, **sums: float) -> None:
        """Add sums over `n_rows` completions."""
        self.rows += n_rows
        for name, value in sums.items():
            self.row_sums[name] = self.row_sums.get(name, 0.0) + value

    def record(self) -> dict[str, float]:
        """Means by name; empty if no token was learned from."""
        if not self.tokens:
            return {}
        found = {name: value / self.tokens for name, value in self.sums.items()}
        found |= {name: value / self.rows for name, value in self.row_sums.items()}
        if self.ratio_max:
            found |= {"ratio_min": self.ratio_min, "ratio_max": self.ratio_max}
        if "advantage_square" in found:
            found["advantage_std"] = max(0.0, found.pop("advantage_square") - found.pop("advantage") ** 2) ** 0.5
        if "return_square" in found:
            spread = found.pop("return_square") - found.pop("return_sum") ** 2
            error = found.pop("value_error_square") - found.pop("value_error") ** 2
            found["explained_variance"] = 1 - error / spread if spread > 0 else 0.0
        return found


class Method(Protocol):
    """PPO, RLOO or GRPO: from a rollout to a loss."""

    trained: nn.Module  # every parameter with requires_grad in it is updated

    @property
    def needs_values(self) -> bool:
        """Whether a rollout must carry values."""
        ...

    def values(self, states: Tensor) -> Tensor:
        """(B,R) fp32 values of states; only where `needs_values`."""
        ...

    def begin(self, rollout: Rollout, beta: float) -> None:
        """Take a rollout; `beta` is the KL's weight for as long as it lasts."""
        ...

    def start_update(self, prompts: Sequence[int]) -> float:
        """What the summed loss of an update over these prompts is divided by."""
        ...

    def loss_sum(self, prompts: Sequence[int], measured: Measured, *, policy_is_frozen: bool) -> Tensor:
        """Summed loss of some prompts' groups, a scalar with gradient; what was seen goes into `measured`."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Trained tensors that are not the model's, for a checkpoint."""
        ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from `tensors()`."""
        ...


@torch.no_grad()
def with_old(model: LanguageModel, method: Method, rollout: Rollout, config: RLConfig, *, batch: int) -> Rollout:
    """The rollout with the log-probs of the policy that sampled it, by the code that trains, and its values.

    Args:
        model: the policy before its update.
        method: gives the values, if it needs any.
        rollout: without them.
        config: temperature and truncation are read.
        batch: prompts per forward.
    """
    logprobs, values, last_values = [], [], []
    for chosen in chunks(len(rollout.example_ids), batch):
        rows = rollout.rows(chosen)
        response, mask = rollout.response[rows], rollout.mask[rows]
        beyond = config.truncation == "bootstrap"  # one position more: the state after a cut-off last token
        wide = (nn.functional.pad(tensor, (0, int(beyond)), value=1) for tensor in (response, mask))
        states = model.states(rollout.queries(chosen), *wide)
        if beyond:
            last_values.append(method.values(states)[:, -1])
            states = states[:, :-1]
        logprobs.append(model.score(states, response, mask, temperature=config.temperature, sampleable=True))
        if method.needs_values:
            values.append(method.values(states) * mask)
    return replace(
        rollout,
        old_logprobs=torch.cat(logprobs),
        values=torch.cat(values) if values else None,
        last_values=torch.cat(last_values) if last_values else None,
    )


def measure_policy(
    measured: Measured, rollout: Rollout, rows: Tensor, logprobs: Tensor, old: Tensor, mask: Tensor
) -> None:
    """KL, entropy, ratio and the gap between sampled and scored log-probs of some rows, summed over their tokens.

    KL and entropy are those of the policy that sampled: of one that has moved since, its samples say nothing true (k1
    even turns negative). abs_kl is of the policy as it is, so that a jump shows at once. The entropy is the sample
    estimate -log p of the sampled tokens; KL estimators as in Schulman 2020, joschu.net/blog/kl-approx.html: k1
    unbiased, k3 unbiased and never negative.
    """
    with torch.no_grad():
        ref, sampled = rollout.ref_logprobs[rows], rollout.sampled_logprobs[rows]
        kept = mask.float()
        ratio = torch.exp((logprobs - old).clamp(-20, 20))[mask]
        sequence = (kl_k1(old, ref) * kept).sum(1)
        measured.add(
            float(kept.sum()),
            kl=float(sequence.sum()),
            kl_k3=float((kl_k3(old, ref) * kept).sum()),
            abs_kl=float(((logprobs - ref).abs() * kept).sum()),
            entropy=float(-(old * kept).sum()),
            sample_score_gap=float(((sampled - old).abs() * kept).sum()),
            ratio_mean=float(ratio.sum()),
        )
        measured.add_rows(float(mask.any(1).sum()), kl_per_sequence=float(sequence.sum()))
        if len(ratio):
            measured.ratio_min = min(measured.ratio_min, float(ratio.min()))
            measured.ratio_max = max(measured.ratio_max, float(ratio.max()))
