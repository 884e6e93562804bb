"""The value head: zero at the start, fp32 under any dtype, and no gradient into the policy."""

from __future__ import annotations

import pytest
import torch

from dialtune.models.value_head import ValueHead

CPU = torch.device("cpu")


def test_a_fresh_head_says_zero_of_every_state() -> None:
    head = ValueHead(5, CPU)
    values = head(torch.randn(3, 4, 5))
    assert values.shape == (3, 4)
    assert not values.any()


def test_a_value_is_a_linear_map_of_its_state_by_hand() -> None:
    head = ValueHead(2, CPU)
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[2.0, -1.0]]))
        head.linear.bias.fill_(0.5)
    assert head(torch.tensor([[[1.0, 3.0], [0.0, -4.0]]])).tolist() == [[2 - 3 + 0.5, 4 + 0.5]]


def test_the_gradient_reaches_the_head_and_not_the_states() -> None:
    """d sum(v) / d weight is the sum of the states, d sum(v) / d bias their number."""
    head = ValueHead(3, CPU)
    states = torch.arange(12.0).reshape(2, 2, 3).requires_grad_()
    head(states).sum().backward()
    assert states.grad is None
    assert head.linear.weight.grad is not None
    assert head.linear.bias.grad is not None
    assert head.linear.weight.grad.tolist() == [[0.0 + 3 + 6 + 9, 1.0 + 4 + 7 + 10, 2.0 + 5 + 8 + 11]]
    assert head.linear.bias.grad.tolist() == [4.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_values_are_fp32_whatever_the_states_and_the_products_around(dtype: torch.dtype) -> None:
    head = ValueHead(64, CPU)
    torch.manual_seed(0)
    torch.nn.init.normal_(head.linear.weight)
    states = torch.randn(2, 3, 64).to(dtype)
    exact = (states.double() @ head.linear.weight.double().T)[..., 0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = head(states)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact.detach(), atol=1e-5, rtol=1e-5)
    assert {p.dtype for p in head.parameters()} == {torch.float32}


def test_its_tensors_have_the_names_that_checkpoints_use() -> None:
    assert {name: tuple(t.shape) for name, t in ValueHead(4, CPU).state_dict().items()} == {
        "linear.weight": (1, 4),
        "linear.bias": (1,),
    }
