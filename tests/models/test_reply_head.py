"""The head of a learned reward: by hand in numpy, gradients by finite differences, absent turns, a cosine at first."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dialtune.models.reply_head import UNRELATED, new_head, reply_logits, turn_index, turn_vectors, unit_means


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(drawn, dim=-1)


def head_of(width: int, window: int, hidden: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A head in which every part counts, in fp64."""
    torch.manual_seed(seed)
    head = {name: value.double() for name, value in new_head(width, window, hidden).items()}
    zero = [name for name, value in head.items() if not value.any()]
    assert sorted(zero) == ["bias", "expect_out", "offer_out", "out"]
    return head | {name: torch.randn_like(head[name]) for name in zero}


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def test_the_equation_by_hand():
    """Row by row in plain Python, from the docstring alone."""
    turns, reply, head = unit(3, 2, 4), unit(3, 4, seed=1), head_of(4, 2, 5)
    turns[1, 1] = 0.0  # a first reply has one turn before it
    values = {name: value.numpy() for name, value in head.items()}
    expected = []
    for t, v in zip(turns.numpy(), reply.numpy(), strict=True):
        x, y = 2 * t, 2 * v  # sqrt(4)
        said = np.r_[x[0], x[1]]
        c = values["near"][0] * x[0] + values["near"][1] * x[1]
        c = c + values["expect_out"] @ [gelu(one) for one in values["expect"] @ said]
        o = y + values["offer_out"] @ [gelu(one) for one in values["offer"] @ y]
        cosine = float(c @ o) / math.sqrt(float(c @ c) * float(o @ o))
        far = [abs(row - y) - 2 / math.sqrt(math.pi) if row.any() else 0 * y for row in x]
        compared = np.concatenate([np.r_[row * y, away] for row, away in zip(x, far, strict=True)])
        inner = values["compare"] @ compared + values["read"] @ np.r_[said, y] + values["bias"]
        units = sum(weight * gelu(one) for weight, one in zip(values["out"], inner, strict=True))
        expected.append(math.exp(values["log_sharpness"]) * cosine + units)
    assert reply_logits(turns, reply, head).tolist() == pytest.approx(expected, rel=1e-12)


def test_differences_of_unrelated_vectors_are_about_0_on_average():
    one, other = unit(2000, 384), unit(2000, 384, seed=1)
    mean = float(((one - other).abs() * math.sqrt(384)).mean())
    assert mean == pytest.approx(UNRELATED, rel=1e-3)


def test_gradients_are_those_of_finite_differences():
    turns, reply, head = unit(2, 2, 3), unit(2, 3, seed=1), head_of(3, 2, 4)
    names = sorted(head)

    def value(*parts: torch.Tensor) -> torch.Tensor:
        return reply_logits(turns, reply, dict(zip(names, parts, strict=True)))

    for at, name in enumerate(names):
        given = [head[n].clone().requires_grad_(n == name) for n in names]
        (found,) = torch.autograd.grad(value(*given).sum(), given[at])
        step = torch.zeros_like(head[name]).view(-1)
        step[0] = 1e-5
        moved = [head[n] + (step.view_as(head[n]) if n == name else 0) for n in names]
        back = [head[n] - (step.view_as(head[n]) if n == name else 0) for n in names]
        slope = float((value(*moved) - value(*back)).sum()) / 2e-5
        assert float(found.reshape(-1)[0]) == pytest.approx(slope, rel=1e-6, abs=1e-8), name


def test_a_new_head_is_a_cosine_with_the_turns_the_latest_counting_most():
    torch.manual_seed(0)
    head = new_head(6, 3, 7)
    turns, reply = unit(5, 3, 6).float(), unit(5, 6, seed=1).float()
    mixed = 0.5 * turns[:, 0] + 0.25 * turns[:, 1] + 0.25 * turns[:, 2]
    expected = math.exp(2.5) * (torch.nn.functional.normalize(mixed, dim=1) * reply).sum(1)
    assert torch.allclose(reply_logits(turns, reply, head), expected, atol=1e-5)
    assert {name: tuple(value.shape) for name, value in head.items()} == {
        "near": (3,), "expect": (7, 18), "expect_out": (6, 7), "offer": (7, 6), "offer_out": (6, 7),
        "log_sharpness": (), "compare": (7, 36), "read": (7, 24), "bias": (7,), "out": (7,),
    }  # fmt: skip


def test_a_turn_that_is_not_there_says_nothing():
    head = head_of(4, 3, 5)
    one = torch.cat([unit(1, 1, 4), torch.zeros(1, 2, 4, dtype=torch.float64)], dim=1)
    found = reply_logits(one, unit(1, 4, seed=1), head)
    # Whatever the weights of absent turns are: columns by turn, eight of `compare` and four of the others.
    for part, columns in (("compare", slice(8, 24)), ("read", slice(4, 12)), ("expect", slice(4, 12))):
        head[part] = head[part].clone()
        head[part][:, columns] = 99.0
    head["near"] = torch.tensor([head["near"][0], 99.0, 99.0], dtype=torch.float64)
    assert torch.equal(reply_logits(one, unit(1, 4, seed=1), head), found)


def test_dropout_is_off_unless_asked_for():
    head, turns, reply = head_of(4, 2, 64), unit(1, 2, 4), unit(1, 4, seed=1)
    still = reply_logits(turns, reply, head)
    assert torch.equal(still, reply_logits(turns, reply, head))
    torch.manual_seed(0)
    assert not torch.equal(still, reply_logits(turns, reply, head, dropout=0.5))


def test_rows_do_not_influence_each_other():
    head, turns, reply = head_of(4, 2, 5), unit(6, 2, 4), unit(6, 4, seed=1)
    alone = torch.cat([reply_logits(turns[row : row + 1], reply[row : row + 1], head) for row in range(6)])
    assert torch.allclose(reply_logits(turns, reply, head), alone, rtol=1e-12)


def test_the_latest_turn_comes_first():
    index = turn_index([("a", "b", "c"), ("c",), ("a", "a")], {"a": 0, "b": 1, "c": 2}, window=2)
    assert index.tolist() == [[2, 1], [2, -1], [0, 0]]
    vectors = unit(3, 4)
    found = turn_vectors(vectors, index)
    assert torch.equal(found[0], vectors[[2, 1]])
    assert torch.equal(found[1], torch.stack([vectors[2], torch.zeros(4, dtype=torch.float64)]))


def test_a_text_is_the_mean_of_its_tokens_and_padding_is_none_of_it():
    states = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [50.0, 50.0]], [[0.0, 2.0], [9.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert torch.allclose(unit_means(states, mask), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))
    assert unit_means(states.bfloat16(), mask).dtype == torch.float32
