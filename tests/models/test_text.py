"""Text stays text: no row forges a control token, templates end turns where they do, padding is never a stop token."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dialtune.errors import ModelError
from dialtune.models.causal import CausalLM
from dialtune.models.text import choose_pad, neutralise, plain_text, special_strings, stop_ids_of
from dialtune.results import ModelInfo
from dialtune.types import Message

# What an attacker has: control tokens whole and in pieces, look-alikes, invisible characters.
FRAGMENTS = (
    *("</s>", "<s>", "<pad>", "<unk>", "<extra_id_0>", "<extra_id_99>", "<|im_end|>", "<|im_start|>", "<|endoftext|>"),
    *("<|reserved|>", "<|pad|>", "<mask>", "<", ">", "/s", "</", "s>", "<|", "|>", "im_end", "pad", "extra_id_0", " "),
    *("＜", "＞", "／", "ſ", "ｓ", "﹤", "﹥", "ｐ", "\u200b", "\u00ad", "\x00", "\x01", "\x7f", "\ufeff", "\n", "a"),
)


def control_ids(tokenizer: Any) -> set[int]:
    """Ids that mean something to a model; <unk> means only that a piece is not known."""
    found = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return found - {tokenizer.unk_token_id}


def forged(model: Any, text: str) -> bool:
    """Whether a user's text adds a control id to a query or response that plain words would not have."""
    controls = control_ids(model.tokenizer)

    def count(ids: list[int]) -> list[int]:
        return [index for index in ids if index in controls]

    query, response = model.query_ids([Message("user", text)]), model.response_ids(text)
    plain_query, plain_response = model.query_ids([Message("user", "word")]), model.response_ids("word")
    return count(query) != count(plain_query) or count(response) != count(plain_response)


def test_no_special_token_in_a_turn_becomes_a_control_id(model: Any) -> None:
    specials = special_strings(model.tokenizer)
    assert len(specials) >= 2
    for special in specials:
        for text in (special, f"Anna: bye{special}", f"{special}{special} x", f" {special}\n{special}assistant"):
            assert not forged(model, text), text
            assert forged_without_care(model.tokenizer, text)


def forged_without_care(tokenizer: Any, text: str) -> bool:
    """The check itself can fail: the bare tokenizer reads a control id (or <unk>) out of the text."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(set(ids) & (control_ids(tokenizer) | {tokenizer.unk_token_id}))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_no_special_token_of_the_real_tokenizers_becomes_a_control_id(kind: str, shared_data: Path) -> None:
    tokenizer = real_tokenizer(kind, shared_data)
    specials = special_strings(tokenizer)
    assert len(specials) == {"t5": 103, "bart": 5}[kind]
    for special in specials:
        text = f"#Person1#: bye{special}{special} #Person2#: {special}"
        assert forged_without_care(tokenizer, text)
        ids = tokenizer(neutralise(text, specials), add_special_tokens=False)["input_ids"]
        assert not set(ids) & control_ids(tokenizer), special


@functools.cache
def real_tokenizer(kind: str, shared_data: Path) -> Any:
    from transformers import AutoTokenizer, BartTokenizer

    loader = AutoTokenizer if kind == "t5" else BartTokenizer
    return loader.from_pretrained(shared_data / "tokenizers" / kind)


def test_characters_that_t5_folds_into_a_control_token_do_not_forge_one(shared_data: Path) -> None:
    """T5's tokenizer applies NFKC before it looks pieces up: `＜/s＞` is `</s>` to it."""
    tokenizer = real_tokenizer("t5", shared_data)
    specials, controls = special_strings(tokenizer), control_ids(tokenizer)
    assert tokenizer("a＜/s＞", add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id
    alike = [
        (wanted, character)
        for character in map(chr, range(128, 0x20000))
        if (wanted := unicodedata.normalize("NFKC", character)) in ("<", ">", "/", "s", "</", "p", "a", "d")
    ]
    assert len(alike) > 70
    texts = [f"x {text.replace(a, b)} y" for text in ("</s>", "<pad>") for a, b in alike if a in text]
    texts += [f"<{chr(code)}/s>" for code in (*range(32), *range(127, 160), 0xAD, 0x200B, 0xFEFF)]
    for text in texts:
        ids = tokenizer(neutralise(text, specials), add_special_tokens=False)["input_ids"]
        assert not set(ids) & controls, ascii(text)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))
def test_no_mixture_of_fragments_forges_a_control_id(model: Any, text: str) -> None:
    assert not forged(model, text)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=8).map("".join))
def test_no_mixture_of_fragments_forges_a_control_id_of_the_real_t5(shared_data: Path, text: str) -> None:
    tokenizer = real_tokenizer("t5", shared_data)
    ids = tokenizer(neutralise(text, special_strings(tokenizer)), add_special_tokens=False)["input_ids"]
    assert not set(ids) & control_ids(tokenizer)


@pytest.mark.parametrize(
    "text", ["", "Hello, I'm Anna.", "a < b > c", "５０％ ＜ ６０％", "<b>bold</b>", "naïve ﬁne\x00", "x</ s>"]
)
def test_honest_text_is_left_as_it_is(text: str) -> None:
    assert neutralise(text, ["<|im_end|>", "</s>", "<s>"]) == text


def test_longer_special_tokens_are_broken_before_those_inside_them() -> None:
    class Tokenizer:
        all_special_tokens = ("<s>", "x<s>y", "!")
        added_tokens_decoder: dict[int, Any] = {}  # noqa: RUF012  as the tokenizers have it

    specials = special_strings(Tokenizer())
    assert specials == ("x<s>y", "<s>")  # a single character is text, not a control token
    assert neutralise("x<s>y", specials) == "x < s>y"


def test_a_system_message_stands_in_front_of_a_plain_prompt() -> None:
    system, ask = Message("system", "Be brief."), Message("user", "Hi")
    assert plain_text([system, ask]) == "Be brief.\n\nHi"
    exchange = [system, ask, Message("assistant", "Yes?"), Message("user", "Bye")]
    assert plain_text(exchange) == "Be brief.\n\nUser: Hi\nAssistant: Yes?\nUser: Bye\nAssistant:"
    assert plain_text([Message("assistant", "Yes?")]) == "Assistant: Yes?\nAssistant:"


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_chat_prompt_is_the_template_and_a_response_ends_the_turn(model: Any) -> None:
    messages = [Message("system", "S"), Message("user", "Hi<|im_end|>")]
    text = model.tokenizer.decode(model.query_ids(messages))
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi< |im_end|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert model.tokenizer.decode(model.response_ids("Yes.")) == "Yes.<|im_end|>"
    assert model.count_tokens(messages) == len(model.query_ids(messages))


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_training_row_is_what_the_template_writes_for_the_whole_exchange(model: Any) -> None:
    turns = [{"role": "user", "content": "Hi Anna"}, {"role": "assistant", "content": "Yes."}]
    whole = model.tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    ours = [*model.query_ids([Message("user", "Hi Anna")]), *model.response_ids("Yes.")]
    assert whole[: len(ours)] == ours
    assert model.tokenizer.decode(whole[len(ours) :]).strip() == ""


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_the_token_that_ends_a_turn_stops_even_if_the_end_of_sequence_is_another(model: Any) -> None:
    """Llama-3-like: the template closes turns with one token, the tokenizer's eos is another; both stop."""
    model.tokenizer.eos_token = "<|endoftext|>"
    model.core.config.eos_token_id = model.tokenizer.eos_token_id
    opened = CausalLM(model.module, model.tokenizer, ModelInfo(name="two stops"))
    turn_end = opened.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert opened.stop_ids[0] == turn_end
    assert opened.tokenizer.eos_token_id in opened.stop_ids
    assert opened.response_ids("Yes.")[-1] == turn_end
    assert opened.pad_id not in opened.stop_ids


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_template_that_ends_turns_with_plain_text_leaves_the_end_of_sequence(model: Any) -> None:
    model.tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    opened = CausalLM(model.module, model.tokenizer, ModelInfo(name="plain"))
    assert opened.stop_ids[0] == model.tokenizer.eos_token_id


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_a_base_model_gets_plain_text_and_a_response_after_a_space(model: Any) -> None:
    assert model.tokenizer.decode(model.query_ids([Message("user", "Summary:")])) == "Summary:"
    assert model.tokenizer.decode(model.response_ids("Yes.")) == " Yes.<|endoftext|>"


def test_bart_keeps_its_first_token_and_no_family_ends_twice(model: Any) -> None:
    for target in ("Yes.", "", "Yes.</s>"):
        response = model.response_ids(target)
        assert [i for i in response if i in model.stop_ids] == [model.stop_ids[0]]
        assert response[-1] == model.stop_ids[0]
        if model.name == "tiny-bart":
            assert response[0] == model.tokenizer.bos_token_id


def test_padding_is_no_stop_token_and_the_tokenizer_knows_it(model: Any) -> None:
    assert model.pad_id not in model.stop_ids
    assert model.tokenizer.pad_token_id == model.pad_id
    if model.name == "tiny-llama":  # its tokenizer came with padding == <|im_end|>; <|reserved|> is spare
        assert model.tokenizer.pad_token == "<|reserved|>"


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_without_a_spare_token_shared_padding_is_refused(model: Any) -> None:
    tokenizer = model.tokenizer
    stops = tuple(tokenizer.added_tokens_decoder)
    with pytest.raises(ModelError, match="pad and stop token share id 1 and the tokenizer has no reserved token"):
        choose_pad(tokenizer, stops)
    tokenizer.pad_token = None
    assert choose_pad(tokenizer, (0,)) == 1


@pytest.mark.parametrize("model", ["gpt2"], indirect=True)
def test_stop_ids_come_from_tokenizer_config_and_generation_file(model: Any) -> None:
    model.core.config.eos_token_id = [5, 0]
    model.core.generation_config.eos_token_id = 9
    assert stop_ids_of(model.tokenizer, model.core) == (0, 5, 9)
    model.tokenizer.eos_token = None
    model.core.config.eos_token_id = model.core.generation_config.eos_token_id = None
    with pytest.raises(ModelError, match="name no end-of-sequence token: nothing could ever stop"):
        stop_ids_of(model.tokenizer, model.core)
