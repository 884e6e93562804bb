"""Prompts kept once per group give the numbers of prompts repeated for every row: states, gradients, ragged groups."""

from __future__ import annotations

import logging

import pytest
import torch
from tiny import make_model

from dialtune.models import causal
from dialtune.models.base import Query, Sampling
from dialtune.models.causal import CausalLM, _RepeatedPrompts, _SharedPrompts

KINDS = ("llama", "gpt2")


def _model(kind: str) -> CausalLM:
    model = make_model(kind)
    assert isinstance(model, CausalLM)
    model.module.eval()
    return model


def _query(model: CausalLM, n_prompts: int, width: int) -> Query:
    generator = torch.Generator().manual_seed(n_prompts)
    ids = torch.randint(5, len(model.tokenizer), (n_prompts, width), generator=generator)
    pads = torch.randint(0, width, (n_prompts, 1), generator=generator)
    pads[0] = 0
    return Query(ids, torch.arange(width) >= pads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", [2, 5])
@pytest.mark.parametrize("pieces", [(4,), (1, 1, 2), (3, 1)])
def test_states_equal_those_of_repeated_prompts(kind, group, pieces):
    model = _model(kind)
    query = _query(model, 3, 7)
    ids = torch.randint(5, len(model.tokenizer), (3 * group, sum(pieces)), generator=torch.Generator().manual_seed(1))
    found = []
    for behind in (_SharedPrompts, _RepeatedPrompts):
        with torch.no_grad():
            run = behind(model.core, query, model._prefill(query)[0], group)
            found.append(torch.cat([run.states(part) for part in ids.split(pieces, dim=1)], dim=1))
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_leave_take_nothing_from_those_that_stay(kind):
    model = _model(kind)
    query = _query(model, 3, 6)
    ids = torch.randint(5, len(model.tokenizer), (9, 4), generator=torch.Generator().manual_seed(2))
    stay = [[0, 2, 3, 4, 5, 8], [1, 5]]  # of the nine, then of the six: ragged groups, then a prompt without rows
    found = []
    for behind in (_SharedPrompts, _RepeatedPrompts):
        with torch.no_grad():
            run, rows, states = behind(model.core, query, model._prefill(query)[0], 3), torch.arange(9), []
            for step, kept in zip(range(4), [None, stay[0], stay[1], None], strict=True):
                if kept is not None:
                    run.keep(torch.tensor(kept))
                    rows = rows[kept]
                states.append(run.states(ids[rows, step][:, None]))
            found.append(states)
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_a_group_add_up_in_its_prompt(kind):
    model = _model(kind)
    query = _query(model, 2, 6)
    response = torch.randint(5, len(model.tokenizer), (6, 5), generator=torch.Generator().manual_seed(3))
    mask = torch.arange(5) < torch.tensor([5, 2, 1, 4, 5, 3])[:, None]
    found = []
    for share in (True, False):
        model.__dict__["_can_share"] = share
        model.module.zero_grad(set_to_none=True)
        logprobs = model.logprobs(query, response, mask)
        (logprobs * torch.arange(1, 31).reshape(6, 5)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])
        found.append((logprobs.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    assert (found[0][1] - found[1][1]).norm() <= 1e-4 * found[1][1].norm()


@pytest.mark.parametrize("kind", KINDS)
def test_sampled_ids_are_those_of_repeated_prompts(kind):
    model = _model(kind)
    query, sampling = _query(model, 3, 8), Sampling(max_new_tokens=12, temperature=1.5)
    found = []
    for share in (True, False):
        model.__dict__["_can_share"] = share
        found.append(model.sample(query, sampling, seeds=[1, 2, 3], group=4))
    assert torch.equal(found[0].response, found[1].response)
    torch.testing.assert_close(found[0].logprobs, found[1].logprobs, rtol=0, atol=1e-5)


def test_grouped_query_attention_is_covered():
    config = _model("llama").core.config
    assert config.num_attention_heads > config.num_key_value_heads


def test_the_config_is_as_it_was_after_a_failure(monkeypatch):
    model = _model("llama")
    before = model.core.config._attn_implementation
    query = _query(model, 2, 4)
    run = _SharedPrompts(model.core, query, model._prefill(query)[0], 2)
    with pytest.raises(IndexError):
        run.states(torch.full((4, 1), 10**9))
    assert model.core.config._attn_implementation == before


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_an_odd_architecture_falls_back_to_repeated_prompts_and_says_so(fault, monkeypatch, caplog):
    def states(self: _SharedPrompts, ids: torch.Tensor) -> torch.Tensor:
        if fault == "broken":
            raise AttributeError("no such layer")
        return original(self, ids) + 1

    original = _SharedPrompts.states
    plain = _model("llama")
    query, sampling = _query(plain, 2, 5), Sampling(max_new_tokens=4, temperature=1.0)
    expected = plain.sample(query, sampling, seeds=[1, 2], group=3)
    monkeypatch.setattr(causal._SharedPrompts, "states", states)
    model = _model("llama")
    with caplog.at_level(logging.WARNING):
        found = model.sample(query, sampling, seeds=[1, 2], group=3)
    assert "prompts are repeated for each completion" in caplog.text
    assert torch.equal(found.response, expected.response)
