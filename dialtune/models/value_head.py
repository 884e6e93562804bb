"""One fp32 scalar per response state, over either family: PPO's estimate of the reward to come."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """A linear map of the state from which a token is predicted; zero at the start, so first advantages are returns.

    The trunk is detached: its gradient would move the policy towards what is easy to predict.
    """

    def __init__(self, hidden_size: int, device: torch.device) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1, device=device, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(B,R,D) states, any dtype, to (B,R) fp32 values; no gradient reaches the states."""
        with torch.autocast(states.device.type, enabled=False):
            values: Tensor = self.linear(states.detach().float())
        return values[..., 0]
