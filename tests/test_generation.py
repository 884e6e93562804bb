"""Completions: one per prompt, in order, whatever else is in the batch; settings out of range are refused together."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dialtune.errors import ConfigError
from dialtune.generation import check_sampling, generate
from dialtune.models.base import Query, Sampled, Sampling
from dialtune.seeds import seed_for
from dialtune.types import Completion, Message, Prompt

TEXTS = (
    "Hello Anna, the train leaves at ten.",
    "Why?",
    "Summarize the dialogue. #Person1#: Thanks, I will be there on Monday. #Person2#: Because: no.",
    "Why? No.",
    "They agree to meet at the station before the meeting starts.",
)
PROMPTS = [Prompt(f"id-{i}", (Message("user", text),), "plain") for i, text in enumerate(TEXTS)]
DRAWS = Sampling(max_new_tokens=12, temperature=1.0)


@pytest.fixture
def several_stops(model: Any) -> Any:
    """Every family, with stop ids enough that rows end at different steps."""
    model.stop_ids = (model.stop_ids[0], *range(40, 70))
    return model


@pytest.mark.parametrize("sampling", [Sampling(12), DRAWS, Sampling(12, 0.8, 0.9, 20)], ids=lambda s: s.strategy)
def test_a_completion_does_not_depend_on_its_batch(several_stops: Any, sampling: Sampling) -> None:
    at_once = generate(several_stops, PROMPTS, sampling, batch_size=len(PROMPTS), seed=7)
    for batch_size in (1, 3):
        assert generate(several_stops, PROMPTS, sampling, batch_size=batch_size, seed=7) == at_once
    backwards = generate(several_stops, PROMPTS[::-1], sampling, batch_size=2, seed=7)
    assert backwards == at_once[::-1]
    assert generate(several_stops, PROMPTS[2:3], sampling, seed=7) == at_once[2:3]
    if (
        sampling.temperature and several_stops.core.config.model_type != "pegasus"
    ):  # whose few noisy draws all run to the cap
        assert {completion.finish for completion in at_once} == {"stop", "length"}


@pytest.mark.parametrize("beams", [1, 2])
def test_prompts_get_their_own_completions_in_their_order(model: Any, beams: int) -> None:
    found = generate(model, PROMPTS, Sampling(6, num_beams=beams), batch_size=2)
    assert [completion.example_id for completion in found] == [prompt.example_id for prompt in PROMPTS]
    for prompt, completion in zip(PROMPTS, found, strict=True):
        assert generate(model, [prompt], Sampling(6, num_beams=beams)) == [completion]


def test_the_same_seed_writes_the_same_text_and_another_seed_another(model: Any) -> None:
    first = generate(model, PROMPTS, DRAWS, seed=0)
    assert generate(model, PROMPTS, DRAWS, seed=0) == first
    other = generate(model, PROMPTS, DRAWS, seed=1)
    assert all(a.token_ids != b.token_ids for a, b in zip(first, other, strict=True))
    greedy = Sampling(max_new_tokens=12)
    assert generate(model, PROMPTS, greedy, seed=0) == generate(model, PROMPTS, greedy, seed=1)


def test_draws_belong_to_an_examples_id_and_not_to_its_text_or_place(model: Any) -> None:
    twins = [Prompt("a", PROMPTS[0].messages, "plain"), Prompt("b", PROMPTS[0].messages, "plain")]
    a, b, again = generate(model, [*twins, twins[0]], DRAWS)  # ids need not be unique
    assert a == again
    assert a.token_ids != b.token_ids


def test_random_numbers_of_the_process_are_neither_read_nor_moved(model: Any) -> None:
    torch.manual_seed(1)
    first, state = generate(model, PROMPTS, DRAWS), torch.get_rng_state()
    torch.manual_seed(2)
    assert generate(model, PROMPTS, DRAWS) == first
    torch.manual_seed(1)
    assert torch.get_rng_state().equal(state)


def test_a_completion_holds_its_ids_with_the_stop_token_and_its_text_without(several_stops: Any) -> None:
    found = generate(several_stops, PROMPTS, DRAWS, seed=7)
    for completion in found:
        last = completion.token_ids[-1]
        assert completion.finish == ("stop" if last in several_stops.stop_ids else "length")
        assert completion.finish == "stop" or len(completion.token_ids) == 12
        ids = torch.tensor([completion.token_ids])
        assert completion.text == several_stops.decode(ids, torch.ones_like(ids, dtype=torch.bool))[0]
        assert completion.text == completion.text.strip()


def test_a_turn_that_ends_at_once_is_an_empty_completion_that_stopped(model: Any) -> None:
    stop = model.stop_ids[0]

    def sample(query: Query, sampling: Sampling, *, seeds: Any, group: int = 1) -> Sampled:
        ids = torch.full((len(seeds), 1), stop)
        return Sampled(ids, ids == stop, torch.zeros(len(seeds), 1), ("stop",) * len(seeds))

    model.sample = sample
    assert generate(model, PROMPTS[:2], DRAWS) == [Completion(f"id-{i}", "", (stop,), "stop") for i in range(2)]


def test_the_cap_is_kept_and_said(model: Any) -> None:
    model.stop_ids = (model.stop_ids[0],)
    found = generate(model, PROMPTS, Sampling(max_new_tokens=3))
    assert all(len(completion.token_ids) <= 3 for completion in found)
    assert "length" in {completion.finish for completion in found}


def test_the_longest_prompts_go_first_and_progress_counts_every_batch(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, counts, sample = [], [], model.sample

    def watched(query: Query, sampling: Sampling, *, seeds: Any) -> Sampled:
        lengths.append(query.mask.sum(1).tolist())
        assert torch.is_inference_mode_enabled()
        return sample(query, sampling, seeds=seeds)  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "sample", watched)
    generate(model, PROMPTS, Sampling(3), batch_size=2, progress=lambda done, total: counts.append((done, total)))
    assert [len(batch) for batch in lengths] == [2, 2, 1]
    flat = [n for batch in lengths for n in batch]
    assert flat == sorted(flat, reverse=True)
    assert counts == [(2, 5), (4, 5), (5, 5)]


def test_each_prompts_seed_is_of_its_id(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, sample = [], model.sample

    def watched(query: Query, sampling: Sampling, *, seeds: Any) -> Sampled:
        seen.extend(seeds)
        return sample(query, sampling, seeds=seeds)  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "sample", watched)
    generate(model, PROMPTS[:1], Sampling(1), seed=5)
    assert seen == [seed_for(5, "generate", 0, "id-0")]


@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_off_while_writing_and_the_mode_is_given_back(model: Any, training: bool) -> None:
    modes: list[bool] = []
    model.module.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    model.core.base_model.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    model.core.get_output_embeddings().register_forward_pre_hook(lambda module, args: modes.append(module.training))
    model.module.train(training)
    generate(model, PROMPTS[:1], Sampling(2))
    assert modes
    assert not any(modes)
    assert model.module.training is training


def test_the_mode_is_given_back_after_a_failure_too(model: Any) -> None:
    def fail(query: Query, sampling: Sampling, *, seeds: Any) -> Sampled:
        raise MemoryError

    model.module.train()
    model.sample = fail
    with pytest.raises(MemoryError):
        generate(model, PROMPTS, Sampling(2))
    assert model.module.training


def test_nothing_asked_nothing_written(model: Any) -> None:
    assert generate(model, [], Sampling(2), progress=lambda done, total: pytest.fail("there is no batch")) == []


@pytest.mark.parametrize("model", ["gpt2", "llama"], indirect=True)
def test_a_prompt_at_the_models_limit_leaves_room_for_its_response(model: Any) -> None:
    """GPT-2's positions are a table: one past its end is an index error, not a worse text."""
    limit = model.max_prompt_tokens
    assert limit == 512 - 128
    words = next(n for n in range(1, 600) if model.count_tokens([Message("user", "a " * n)]) >= limit)
    prompt = Prompt("long", (Message("user", "a " * words),), "plain")
    assert model.count_tokens(prompt.messages) - limit < 3
    assert len(generate(model, [prompt], Sampling(max_new_tokens=100))[0].token_ids) > 0


def test_every_setting_out_of_range_is_named_at_once(model: Any) -> None:
    wrong = Sampling(max_new_tokens=0, temperature=-1.0, top_p=0.0, top_k=-1, num_beams=0)
    with pytest.raises(ConfigError) as caught:
        generate(model, PROMPTS, wrong, batch_size=0)
    assert caught.value.problems == (
        "generation.batch_size: got 0; allowed: >= 1",
        "generation.max_new_tokens: got 0; allowed: >= 1",
        "generation.temperature: got -1.0; allowed: >= 0 (0 is greedy)",
        "generation.top_p: got 0.0; allowed: in (0, 1]",
        "generation.top_k: got -1; allowed: >= 0 (0 is off)",
        "generation.num_beams: got 0; allowed: >= 1",
        "generation.temperature: got -1.0; allowed: 0 with beams",
    )


@pytest.mark.parametrize(
    ("sampling", "problem"),
    [
        (Sampling(temperature=math.nan), "generation.temperature: got nan; allowed: >= 0 (0 is greedy)"),
        (Sampling(temperature=math.inf), "generation.temperature: got inf; allowed: >= 0 (0 is greedy)"),
        (Sampling(top_p=1.01), "generation.top_p: got 1.01; allowed: in (0, 1]"),
        (Sampling(top_p=math.nan), "generation.top_p: got nan; allowed: in (0, 1]"),
        (Sampling(temperature=0.7, num_beams=4), "generation.temperature: got 0.7; allowed: 0 with beams"),
    ],
)
def test_one_setting_out_of_range_is_one_line(sampling: Sampling, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_sampling(sampling)
    assert str(caught.value) == problem


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1, 2.0, 1e-9, 1), Sampling(num_beams=4), DRAWS])
def test_settings_in_range_pass(sampling: Sampling) -> None:
    check_sampling(sampling)
