"""The LanguageModel contract, every family in turn: scores against the models' own loss and a naive loop, one path for
groups, sampled equals scored, decoding against transformers' own."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dialtune.models.base import Query, Sampling, TrainingBatch, forbidden_ids, pad_right
from dialtune.models.decoding import ONE_TOKEN
from dialtune.models.seq2seq import Seq2SeqLM
from dialtune.results import ModelInfo
from dialtune.types import Message, Prompt

TEXTS = (
    "Summarize the dialogue. #Person1#: Hello Anna, the train leaves at ten.",
    "Why?",
    "#Person1#: Thanks, I will be there on Monday. #Person2#: Because: no. Naïve café, 12 €.",
)
TARGETS = ("They agree to meet at the station.", "No.", "Anna will be there on Monday, before the meeting starts.")
PROMPTS = [Prompt(str(i), (Message("user", text),), "plain") for i, text in enumerate(TEXTS)]
TINY_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
TINY_BART = {
    **{"d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "dropout": 0.0, "max_position_embeddings": 128},
}


def ragged(model: Any, seed: int, *, n: int = 4, group: int = 1) -> TrainingBatch:
    """n prompts of 1 to 9 random ids and n*group responses of 1 to 7, stop token last (but for the last row)."""
    rng = random.Random(seed)
    queries = [[rng.randrange(5, 300) for _ in range(rng.randint(1, 9))] for _ in range(n)]
    lengths = [rng.randint(0, 6) for _ in range(n * group)]
    responses = [[*(rng.randrange(5, 300) for _ in range(length)), model.stop_ids[0]] for length in lengths]
    responses[-1] = [17, 18, 19]
    return model.batch(queries, responses)  # type: ignore[no-any-return]


def ids_of(ids: Tensor, mask: Tensor, row: int) -> list[int]:
    return ids[row][mask[row]].tolist()  # type: ignore[no-any-return]


def own_losses(model: Any, query: list[int], response: list[int]) -> tuple[float, list[float]]:
    """The module's `labels=` loss of one unpadded row: summed, and of each token alone."""
    seq2seq = model.core.config.is_encoder_decoder
    inputs = [query if seq2seq else query + response]
    labels = torch.tensor([response if seq2seq else [-100] * len(query) + response])

    def loss(labels: Tensor, **extra: Tensor) -> float:
        return float(model.core(input_ids=torch.tensor(inputs), labels=labels, **extra).loss)

    # With labels left out, an encoder-decoder would feed padding in their place.
    extra = {"decoder_input_ids": torch.tensor([[model.start_id, *response[:-1]]])} if seq2seq else {}
    single = []
    for position in range(len(response)):
        one = torch.full_like(labels, -100)
        one[0, labels.shape[1] - len(response) + position] = response[position]
        single.append(loss(one, **extra))
    return loss(labels) * len(response), single


def assert_own_loss(model: Any, batch: TrainingBatch) -> None:
    with torch.no_grad():
        ours = model.logprobs(batch.query, batch.response, batch.mask)
        for row in range(len(ours)):
            total, single = own_losses(
                model, ids_of(batch.query.ids, batch.query.mask, row), ids_of(batch.response, batch.mask, row)
            )
            assert float(-ours[row].sum()) == pytest.approx(total, rel=1e-5)
            torch.testing.assert_close(-ours[row][batch.mask[row]], torch.tensor(single), atol=1e-5, rtol=1e-6)
    assert ours.dtype == torch.float32
    assert not ours[~batch.mask].any()


def test_logprobs_equal_the_models_own_loss_in_sum_and_per_token(model: Any) -> None:
    assert_own_loss(model, model.training_batch(PROMPTS, TARGETS))
    assert_own_loss(model, ragged(model, 0))


@pytest.fixture(params=["t5", "bart"])
def real_vocabulary(request: pytest.FixtureRequest, shared_data: Path) -> Seq2SeqLM:
    """Random weights under the published tokenizers."""
    from transformers import (
        AutoTokenizer,
        BartConfig,
        BartForConditionalGeneration,
        BartTokenizer,
        T5Config,
        T5ForConditionalGeneration,
    )

    torch.manual_seed(0)
    folder = shared_data / "tokenizers" / request.param
    info = ModelInfo(name=request.param)
    if request.param == "t5":
        config = T5Config(vocab_size=32128, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, **TINY_T5)
        return Seq2SeqLM(T5ForConditionalGeneration(config).eval(), AutoTokenizer.from_pretrained(folder), info)
    return Seq2SeqLM(
        BartForConditionalGeneration(BartConfig(**TINY_BART)).eval(), BartTokenizer.from_pretrained(folder), info
    )


def test_with_the_real_tokenizers_logprobs_equal_the_models_own_loss(real_vocabulary: Seq2SeqLM) -> None:
    assert_own_loss(real_vocabulary, real_vocabulary.training_batch(PROMPTS, TARGETS))


def test_the_real_tokenizers_write_the_published_ids(real_vocabulary: Seq2SeqLM) -> None:
    if real_vocabulary.name == "t5":  # ids from the README beside the tokenizers
        assert real_vocabulary.query_ids([Message("user", "summarize: Hello world")]) == [21603, 10, 8774, 296, 1]
        assert real_vocabulary.response_ids("Hello world") == [8774, 296, 1]
    else:
        assert real_vocabulary.query_ids([Message("user", "Hello world")]) == [0, 31414, 232, 2]
        assert real_vocabulary.response_ids("Hello world") == [0, 31414, 232, 2]


def naive_logprobs(model: Any, batch: TrainingBatch, temperature: float, forbidden: set[int]) -> Tensor:
    """(B,R) float64: every token of every row by a forward of its own, without padding, cache or grouping."""
    group = len(batch.response) // len(batch.query.ids)
    found = torch.zeros(batch.response.shape, dtype=torch.float64)
    for row in range(len(batch.response)):
        query = ids_of(batch.query.ids, batch.query.mask, row // group)
        response = ids_of(batch.response, batch.mask, row)
        for step, wanted in enumerate(response):
            if model.core.config.is_encoder_decoder:
                decoder = torch.tensor([[model.start_id, *response[:step]]])
                logits = model.core(input_ids=torch.tensor([query]), decoder_input_ids=decoder).logits
            else:
                logits = model.core(input_ids=torch.tensor([query + response[:step]])).logits
            scores = {i: float(z) / temperature for i, z in enumerate(logits[0, -1]) if i not in forbidden}
            top = max(scores.values())
            total = sum(torch.tensor([z - top for z in scores.values()], dtype=torch.float64).exp().tolist())
            found[row, step] = scores[wanted] - top - torch.tensor(total, dtype=torch.float64).log()
    return found


@pytest.mark.parametrize(("temperature", "sampleable", "group"), [(1.0, False, 1), (0.7, True, 2)])
def test_logprobs_equal_a_naive_loop_in_float64_on_ragged_shapes(
    model: Any, temperature: float, sampleable: bool, group: int
) -> None:
    model.module.double()
    vocabulary = model.core.get_output_embeddings().weight.shape[0]
    forbidden = {model.pad_id, *range(len(model.tokenizer), vocabulary)} if sampleable else set()
    for seed in range(3):
        batch = ragged(model, seed, n=3, group=group)
        with torch.no_grad():
            ours = model.logprobs(
                batch.query, batch.response, batch.mask, temperature=temperature, sampleable=sampleable
            )
            naive = naive_logprobs(model, batch, temperature, forbidden)
        torch.testing.assert_close(ours.double(), naive, atol=1e-6, rtol=0)


def wider(model: Any, batch: TrainingBatch, extra: int) -> TrainingBatch:
    """The same batch with `extra` more columns of padding on the query's padded side and behind the response."""
    ids, mask = batch.query.ids, batch.query.mask
    more, off = ids.new_full((len(ids), extra), model.pad_id), mask.new_zeros(len(mask), extra)
    right = bool(mask[:, 0].all())
    query = Query(
        torch.cat([ids, more] if right else [more, ids], dim=1), torch.cat([mask, off] if right else [off, mask], dim=1)
    )
    rows = len(batch.response)
    response = torch.cat([batch.response, batch.response.new_full((rows, extra), model.pad_id)], dim=1)
    return TrainingBatch(query, response, torch.cat([batch.mask, batch.mask.new_zeros(rows, extra)], dim=1))


@pytest.mark.parametrize("group", [1, 2])
def test_more_padding_changes_nothing(model: Any, group: int) -> None:
    narrow = ragged(model, 1, group=group)
    wide = wider(model, narrow, 5)
    assert wide.query.ids.shape[1] == narrow.query.ids.shape[1] + 5
    with torch.no_grad():
        before = model.logprobs(narrow.query, narrow.response, narrow.mask)
        after = model.logprobs(wide.query, wide.response, wide.mask)
    torch.testing.assert_close(after[:, : before.shape[1]], before, atol=2e-6, rtol=0)
    assert not after[:, before.shape[1] :].any()


def test_permuting_rows_permutes_results(model: Any) -> None:
    batch, order = ragged(model, 2), [2, 0, 3, 1]
    with torch.no_grad():
        straight = model.logprobs(batch.query, batch.response, batch.mask)
        query = Query(batch.query.ids[order], batch.query.mask[order])
        permuted = model.logprobs(query, batch.response[order], batch.mask[order])
    torch.testing.assert_close(permuted, straight[order], atol=2e-6, rtol=0)


@pytest.mark.parametrize("group", [1, 2])
def test_a_mask_selects_tokens_and_hides_none(model: Any, group: int) -> None:
    """Leaving tokens out, whole rows included, does not change the log-probs of those that stay."""
    batch = ragged(model, 3, group=group)
    holes = batch.mask.clone()
    holes[:, 0] = False
    holes[:, 2::2] = False
    holes[1] = False
    assert holes.any()
    with torch.no_grad():
        full = model.logprobs(batch.query, batch.response, batch.mask)
        some = model.logprobs(batch.query, batch.response, holes)
        none = model.logprobs(batch.query, batch.response, torch.zeros_like(holes))
    torch.testing.assert_close(some, full * holes, atol=2e-6, rtol=0)
    assert not none.any()


def _gradient(model: Any, total: Tensor) -> Tensor:
    model.module.zero_grad()
    total.backward()
    return torch.cat([p.grad.flatten() for p in model.module.parameters() if p.grad is not None])


@pytest.mark.parametrize("group", [1, 2, 5])
def test_a_shared_prompt_gives_the_logprobs_and_gradients_of_row_by_row(model: Any, group: int) -> None:
    batch = ragged(model, group, n=3, group=group)
    query = batch.query
    weight = torch.linspace(-1.0, 1.0, batch.mask.numel()).reshape(batch.mask.shape)  # an advantage for every token
    shared = model.logprobs(query, batch.response, batch.mask)
    shared_gradient = _gradient(model, (shared * weight).sum())
    rows = []
    for row in range(3 * group):
        one = slice(row, row + 1)
        rows.append(model.logprobs(query.rows(row // group, row // group + 1), batch.response[one], batch.mask[one]))
    alone = torch.cat(rows)
    gradient = _gradient(model, (alone * weight).sum())
    torch.testing.assert_close(shared, alone, atol=1e-5, rtol=0)
    assert float((shared_gradient - gradient).norm() / gradient.norm()) < 1e-4


@pytest.mark.parametrize(
    ("model", "layer"), [("t5", "EncDecAttention.k"), ("bart", "encoder_attn.k_proj")], indirect=["model"]
)
def test_a_group_projects_its_prompt_for_cross_attention_once(model: Any, layer: str) -> None:
    seen: list[int] = []
    for name, part in model.core.named_modules():
        if name.endswith(layer):
            part.register_forward_hook(lambda _part, given, _out: seen.append(len(given[0])))
    batch = ragged(model, 4, n=3, group=4)
    model.logprobs(batch.query, batch.response, batch.mask)
    model.sample(batch.query, Sampling(5, 1.0), seeds=[1, 2, 3], group=4)
    assert len(seen) >= 4  # two layers, scored and sampled
    assert set(seen) == {3}


@pytest.mark.parametrize("model", ["t5", "bart"], indirect=True)
def test_where_layers_are_computed_twice_no_cache_is_counted_on(model: Any) -> None:
    """Gradient checkpointing drops caches while training; the group's rows must then stand on their own."""
    batch = ragged(model, 5, n=2, group=3)
    with torch.no_grad():
        expected = model.logprobs(batch.query, batch.response, batch.mask)
    model.core.activation_checkpointing_enable({"use_reentrant": False})
    model.module.train()
    found = model.logprobs(batch.query, batch.response, batch.mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("model", ["llama", "gpt2"], indirect=True)
def test_without_sharing_a_group_repeats_its_prompt(model: Any) -> None:
    """The way that gradient checkpointing takes, where no cache is kept."""
    batch = ragged(model, 7, n=2, group=3)
    query = batch.query
    with torch.no_grad():
        shared = model.logprobs(query, batch.response, batch.mask)
        model.shared_prompt = False
        repeated = model.logprobs(query, batch.response, batch.mask)
    torch.testing.assert_close(repeated, shared, atol=1e-5, rtol=0)


def several_stops(model: Any) -> Any:
    """A fifth of the vocabulary ends a row, so that rows end at different steps."""
    model.stop_ids = (model.stop_ids[0], *range(40, 110))
    return model


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.6])
def test_sampled_logprobs_are_the_scored_ones(model: Any, temperature: float) -> None:
    query = several_stops(model).encode(PROMPTS)
    sampled = model.sample(query, Sampling(12, temperature), seeds=[3, 4, 5], group=4)
    with torch.no_grad():
        scored = model.logprobs(query, sampled.response, sampled.mask, temperature=temperature or 1.0, sampleable=True)
    assert len(set(sampled.mask.sum(1).tolist())) > 1 or temperature == 0
    torch.testing.assert_close(sampled.logprobs, scored, atol=1e-5, rtol=0)


def test_no_id_is_sampled_that_is_no_token(model: Any) -> None:
    """At a temperature that makes every id as likely as any other."""
    query = model.encode(PROMPTS[:1])
    response = model.sample(query, Sampling(40, 1e6), seeds=[0], group=40).response
    drawn = set(response[response != model.pad_id].tolist())
    vocabulary = model.core.get_output_embeddings().weight.shape[0]
    banned = forbidden_ids(vocabulary, len(model.tokenizer), model.pad_id, model.device)
    assert len(drawn) > 300
    assert not drawn & set(banned.nonzero()[:, 0].tolist())


def test_the_mask_holds_the_first_token_and_the_stop_token_and_nothing_after(model: Any) -> None:
    """T5 starts with its padding id and BART with its stop id: neither may end or hide the first token."""
    query = several_stops(model).encode(PROMPTS)
    sampled = model.sample(query, Sampling(9, 1.0), seeds=[0, 1, 2], group=8)
    assert sampled.mask[:, 0].all()
    assert {"stop", "length"} == set(sampled.finish)
    for response, mask, finish in zip(sampled.response.tolist(), sampled.mask.tolist(), sampled.finish, strict=True):
        kept = [i for i, inside in zip(response, mask, strict=True) if inside]
        assert response[: len(kept)] == kept  # the mask has no holes
        assert set(response[len(kept) :]) <= {model.pad_id}
        assert not set(kept[:-1]) & set(model.stop_ids)
        assert (kept[-1] in model.stop_ids) == (finish == "stop")
        assert finish == "stop" or len(kept) == 9


def test_a_response_that_is_only_a_stop_token_counts_it(model: Any) -> None:
    vocabulary = model.core.get_output_embeddings().weight.shape[0]
    model.stop_ids = tuple(range(vocabulary))
    sampled = model.sample(model.encode(PROMPTS), Sampling(5), seeds=[0, 1, 2])
    assert sampled.mask.tolist() == [[True]] * 3
    assert sampled.finish == ("stop",) * 3
    assert bool((sampled.logprobs < 0).all())


def test_masks_go_by_position_even_where_padding_is_the_stop_token(model: Any) -> None:
    honest = model.training_batch(PROMPTS, TARGETS)
    with torch.no_grad():
        expected = model.logprobs(honest.query, honest.response, honest.mask)
    model.pad_id = model.stop_ids[0]
    batch = model.training_batch(PROMPTS, TARGETS)
    assert batch.mask.equal(honest.mask)
    assert batch.query.mask.equal(honest.query.mask)
    assert batch.mask.sum(1).tolist() == [len(model.response_ids(target)) for target in TARGETS]
    with torch.no_grad():
        ours = model.logprobs(batch.query, batch.response, batch.mask)
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=0)


def test_draws_depend_on_the_prompts_seed_and_the_place_in_its_group(model: Any) -> None:
    query = model.encode(PROMPTS[:2])
    twin = Query(query.ids[[0, 0]], query.mask[[0, 0]])
    sampling = Sampling(12, 1.0)
    first = model.sample(twin, sampling, seeds=[1, 2], group=3)
    again = model.sample(twin, sampling, seeds=[1, 2], group=3)
    same = model.sample(twin, sampling, seeds=[1, 1], group=3)
    assert again.response.equal(first.response)
    assert len({tuple(row) for row in first.response.tolist()}) == 6  # members differ, and so do seeds
    assert same.response[:3].equal(same.response[3:])
    assert same.response[:3].equal(first.response[:3])


def as_transformers(model: Any, query: Sequence[int], **settings: Any) -> list[int]:
    """The new ids of transformers' own generate for one unpadded prompt, up to the first stop token."""
    from transformers import GenerationConfig

    seq2seq = model.core.config.is_encoder_decoder
    start = {"decoder_start_token_id": model.start_id} if seq2seq else {}
    config = GenerationConfig(
        do_sample=False, pad_token_id=model.pad_id, eos_token_id=list(model.stop_ids), **start, **settings
    )
    model.core.generation_config = config
    ids = model.core.generate(torch.tensor([query]), generation_config=config)[0].tolist()
    new = ids[1:] if seq2seq else ids[len(query) :]
    stops = [i for i, index in enumerate(new) if index in model.stop_ids]
    return new[: stops[0] + 1] if stops else new


@pytest.mark.parametrize("beams", [1, 3])
def test_greedy_and_beam_equal_transformers_own_generate(model: Any, beams: int) -> None:
    model.stop_ids = (model.stop_ids[0], *range(40, 52))
    query = model.encode(PROMPTS)
    ours = model.sample(query, Sampling(10, num_beams=beams, length_penalty=0.6), seeds=[0, 0, 0])
    vocabulary = model.core.get_output_embeddings().weight.shape[0]
    settings: dict[str, Any] = {"max_new_tokens": 10, "num_beams": beams, "length_penalty": 0.6}
    if beams == 1:
        settings |= {"length_penalty": 1.0, "suppress_tokens": [model.pad_id, *range(len(model.tokenizer), vocabulary)]}
    for row in range(len(PROMPTS)):
        theirs = as_transformers(model, ids_of(query.ids, query.mask, row), **settings)
        assert ids_of(ours.response, ours.mask, row) == theirs
        assert ours.finish[row] == ("stop" if theirs[-1] in model.stop_ids else "length")


def test_decoding_leaves_the_models_own_attention_in_place(model: Any) -> None:
    decoder = model.core.get_decoder()
    before = decoder.config._attn_implementation
    seen: set[str] = set()
    decoder.register_forward_pre_hook(lambda part, _: seen.add(part.config._attn_implementation))
    model.sample(model.encode(PROMPTS), Sampling(4, 1.0), seeds=[0, 1, 2])
    assert seen == {before, ONE_TOKEN}  # the prompt by the first, tokens by the second
    assert decoder.config._attn_implementation == before


@pytest.mark.parametrize("beams", [1, 2])
def test_nothing_is_inherited_from_a_checkpoints_generation_file(model: Any, beams: int) -> None:
    query = model.encode(PROMPTS)
    before = model.sample(query, Sampling(8, num_beams=beams), seeds=[0, 0, 0])
    stored = model.core.generation_config
    stored.update(repetition_penalty=9.0, no_repeat_ngram_size=1, forced_eos_token_id=7, min_new_tokens=8, num_beams=5)
    after = model.sample(query, Sampling(8, num_beams=beams), seeds=[0, 0, 0])
    assert after.response.equal(before.response)
    assert model.core.generation_config is stored


def test_decode_reads_nothing_outside_the_mask_and_shows_no_control_token(model: Any) -> None:
    rows = [model.response_ids(target) for target in TARGETS]
    ids, mask = pad_right(rows, 50, model.device)  # 50 is an ordinary token
    assert model.decode(ids, mask) == list(TARGETS)
    assert model.decode(ids, torch.zeros_like(mask)) == [""] * 3
    assert len(model.tokens(rows[0])) == len(rows[0])


def test_a_saved_model_keeps_its_tokenizers_padding(model: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model.save(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.pad_token_id == model.pad_id
    assert model.pad_id not in model.stop_ids
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja"}
