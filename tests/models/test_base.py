"""Log-probs by hand on a three-token head, masks and padding on handwritten rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dialtune.models import base
from dialtune.models.base import (
    Query,
    Sampling,
    forbidden_ids,
    mask_after_stop,
    pad_left,
    pad_right,
    scatter_rows,
    token_logprobs,
)

CPU = torch.device("cpu")


@pytest.fixture
def head() -> nn.Linear:
    """State [x] gives logits x * [0, ln 2, ln 3]: at x = 1 the probabilities are 1/6, 2/6, 3/6."""
    linear = nn.Linear(1, 3, bias=False)
    linear.weight.data = torch.tensor([[0.0], [math.log(2)], [math.log(3)]])
    return linear


def _logs(*probabilities: float) -> Tensor:
    return torch.tensor([math.log(p) for p in probabilities])


def test_logprobs_are_a_softmax_by_hand(head: nn.Linear) -> None:
    found = token_logprobs(head, torch.ones(3, 1), torch.tensor([0, 1, 2]))
    torch.testing.assert_close(found, _logs(1 / 6, 2 / 6, 3 / 6))


def test_temperature_divides_the_logits(head: nn.Linear) -> None:
    """Halving T doubles the logits: 0, ln 4, ln 9; T = 2 takes roots."""
    found = token_logprobs(head, torch.ones(3, 1), torch.tensor([0, 1, 2]), temperature=0.5)
    torch.testing.assert_close(found, _logs(1 / 14, 4 / 14, 9 / 14))
    whole = 1 + math.sqrt(2) + math.sqrt(3)
    found = token_logprobs(head, torch.ones(1, 1), torch.tensor([1]), temperature=2.0)
    torch.testing.assert_close(found, _logs(math.sqrt(2) / whole))


def test_a_forbidden_id_gives_its_probability_to_the_others(head: nn.Linear) -> None:
    forbidden = torch.tensor([False, False, True])
    found = token_logprobs(head, torch.ones(3, 1), torch.tensor([0, 1, 2]), forbidden=forbidden)
    torch.testing.assert_close(found, torch.cat([_logs(1 / 3, 2 / 3), torch.tensor([-math.inf])]))
    found = token_logprobs(head, torch.ones(1, 1), torch.tensor([1]), temperature=0.5, forbidden=forbidden)
    torch.testing.assert_close(found, _logs(4 / 5))


def test_the_gradient_is_one_hot_minus_the_probabilities(head: nn.Linear) -> None:
    """d log p[1] / d logits = [0,1,0] - p, and the state is 1."""
    token_logprobs(head, torch.ones(1, 1), torch.tensor([1])).sum().backward()
    assert head.weight.grad is not None
    torch.testing.assert_close(head.weight.grad[:, 0], torch.tensor([-1 / 6, 4 / 6, -3 / 6]))


def test_chunks_of_the_head_change_nothing(head: nn.Linear, monkeypatch: pytest.MonkeyPatch) -> None:
    states, ids = torch.linspace(-2, 2, 7)[:, None], torch.tensor([0, 1, 2, 0, 1, 2, 0])
    whole = token_logprobs(head, states, ids)
    sizes: list[int] = []
    head.register_forward_hook(lambda module, args, out: sizes.append(len(out)))
    monkeypatch.setattr(base, "HEAD_CHUNK", 3)
    assert token_logprobs(head, states, ids).equal(whole)
    assert sizes == [3, 3, 1]


def test_logprobs_are_fp32_whatever_the_head_is(head: nn.Linear) -> None:
    found = token_logprobs(head.bfloat16(), torch.ones(2, 1, dtype=torch.bfloat16), torch.tensor([0, 1]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, _logs(1 / 6, 2 / 6), atol=0.01, rtol=0)  # bf16 keeps 8 bits of ln 2 and ln 3


def test_no_position_gives_no_logprob(head: nn.Linear) -> None:
    found = token_logprobs(head, torch.ones(0, 1), torch.zeros(0, dtype=torch.int64))
    assert found.shape == (0,)
    assert found.dtype == torch.float32


def test_scatter_puts_values_back_in_reading_order() -> None:
    mask = torch.tensor([[True, False, True], [False, True, False]])
    values = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    found = scatter_rows(values, mask)
    assert found.tolist() == [[1, 0, 2], [0, 3, 0]]
    (found * torch.tensor([[5.0, 9, 6], [9, 7, 9]])).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [5, 6, 7]


def test_ragged_rows_are_padded_on_the_side_asked_for() -> None:
    right, mask = pad_right([[7, 8], [9], []], 0, CPU)
    assert right.tolist() == [[7, 8], [9, 0], [0, 0]]
    assert mask.tolist() == [[True, True], [True, False], [False, False]]
    left, mask = pad_left([[7, 8], [9], []], 0, CPU)
    assert left.tolist() == [[7, 8], [0, 9], [0, 0]]
    assert mask.tolist() == [[True, True], [False, True], [False, False]]
    assert pad_right([], 0, CPU)[0].shape == (0, 0)


def test_an_id_that_equals_padding_still_counts_inside_a_row() -> None:
    ids, mask = pad_right([[0, 5, 0], [0]], 0, CPU)
    assert mask.sum(1).tolist() == [3, 1]
    assert ids[mask].tolist() == [0, 5, 0, 0]


T, F = True, False


@pytest.mark.parametrize(
    ("row", "stops", "expected"),
    [
        ([5, 6, 2, 0, 0], [2], [T, T, T, F, F]),  # the stop token counts
        ([2, 0, 0, 0, 0], [2], [T, F, F, F, F]),  # a stop token first
        ([5, 6, 7, 8, 9], [2], [T, T, T, T, T]),  # cut off
        ([5, 2, 6, 2, 0], [2], [T, T, F, F, F]),  # only the first one
        ([5, 3, 2, 0, 0], [2, 3], [T, T, F, F, F]),  # several stop ids
        ([5, 2, 2, 2, 2], [2], [T, T, F, F, F]),  # padding is the stop token
        ([0, 5, 1, 0, 0], [1], [T, T, T, F, F]),  # T5: the start id, which is padding, as a first token
        ([0, 0, 1, 0, 0], [1], [T, T, T, F, F]),  # padding before the stop token is a token
    ],
)
def test_masks_of_handwritten_rows(row: list[int], stops: list[int], expected: list[bool]) -> None:
    assert mask_after_stop(torch.tensor([row]), stops).tolist() == [expected]


def test_padding_and_rows_beyond_the_tokenizer_are_no_tokens() -> None:
    assert forbidden_ids(6, 4, 1, CPU).tolist() == [F, T, F, F, T, T]


def test_a_slice_of_a_query_is_cut_to_its_longest_row() -> None:
    query = Query(*pad_left([[1], [2, 3, 4], [5, 6]], 0, CPU))
    cut = query.rows(2, 3)
    assert cut.ids.tolist() == [[5, 6]]
    assert cut.mask.all()
    assert query.rows(0, 2).ids.tolist() == [[0, 0, 1], [2, 3, 4]]


def test_the_strategy_is_named_after_the_settings() -> None:
    assert [Sampling().strategy, Sampling(temperature=0.7).strategy] == ["greedy", "sample"]
    assert Sampling(num_beams=4).strategy == "beam"
