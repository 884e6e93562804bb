"""One forward pass per dialogue: the very loss and gradients of one per reply, and no reply lost or learned twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import BUILDERS, make_chat_tokenizer, make_model

from dialtune.trainers.batching import TokenRow, learned_logprobs, learned_mask, tokenize_rows
from dialtune.trainers.packing import join_replies
from dialtune.types import Example, Message, Prompt

# The shapes of templates in use: a default system turn; headers and a first token; text that is stripped.
DEFAULT_SYSTEM = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ '<|endoftext|>' }}{% for m in messages %}<|im_start|>{{ m['role'] }}<|reserved|>\n\n{{ m['content'] | trim }}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant<|reserved|>\n\n{% endif %}"
)
# And of those whose old turns do not stay as they were: a remark behind the last one, and reasoning that is dropped.
REMARK = DEFAULT_SYSTEM.replace("{{ m['content'] }}", "{{ m['content'] }}{% if loop.last %} (answer this){% endif %}")
REASONING = DEFAULT_SYSTEM.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n[thinks]{% endif %}")
LINES = [
    "Hello there, how are you?", "Fine. And you?", "Not bad, thanks. Did you see the train?", "No.",
    "It leaves at ten on Monday, from the station.", "Why?", "Because of the meeting, I think.", "I see. Thanks, Anna!",
]  # fmt: skip


def chat_model(kind: str, template: str | None = None) -> Any:
    """A tiny model with a chat template."""
    model = make_model(kind)
    if kind == "gpt2":  # the base tokenizer's vocabulary is smaller than the chat tokenizer's
        from transformers import GPT2Config, GPT2LMHeadModel

        from dialtune.models.causal import CausalLM

        tokenizer = make_chat_tokenizer()
        config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=1024, bos_token_id=1,
                            eos_token_id=2)  # fmt: skip
        torch.manual_seed(0)
        model = CausalLM(GPT2LMHeadModel(config).eval(), tokenizer, model.info)
    if template is not None:
        model.tokenizer.chat_template = template
    return model


def replies(
    dialogue: str,
    turns: Sequence[str],
    *,
    learned: Sequence[int] = (0, 1),
    window: int | None = None,
    system: str | None = None,
) -> list[Example]:
    """Every (context, reply) pair of a dialogue of two speakers, for the speakers learned."""
    found = []
    for turn in range(1, len(turns)):
        if turn % 2 not in learned:
            continue
        start = 0 if window is None else max(0, turn - window)
        context = tuple(
            Message("assistant" if place % 2 == turn % 2 else "user", turns[place]) for place in range(start, turn)
        )
        head = () if system is None else (Message("system", system),)
        meta = {"dialogue": dialogue, "turn": turn}
        found.append(Example(f"{dialogue}#{turn}", head + context, (turns[turn],), meta))
    return found


def rows_of(
    model: Any, examples: Sequence[Example], *, cap: int = 64, max_length: int | None = None
) -> tuple[list[TokenRow], list[TokenRow]]:
    """(a row per reply, joined rows)."""
    prompts = [Prompt(example.id, tuple(example.messages), "respond") for example in examples]
    single = tokenize_rows(model, prompts, [example.references[0] for example in examples], max_response=cap)
    return single, join_replies(model, examples, prompts, single, max_length=max_length)


def dialogues(n: int) -> list[list[str]]:
    """Dialogues of 2 to 8 turns, all different."""
    return [[f"{line} {k}" if k else line for line in LINES[: 2 + (k * 5) % 7]] for k in range(n)]


def loss_sum(model: Any, rows: Sequence[TokenRow]) -> torch.Tensor:
    return -learned_logprobs(model, rows).sum()


def loss_and_gradients(model: Any, batches: Sequence[Sequence[TokenRow]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss per learned token over all batches, and its gradients."""
    n_tokens = sum(row.n_learned for rows in batches for row in rows)
    model.module.zero_grad()
    total = 0.0
    for rows in batches:
        loss = loss_sum(model, rows) / n_tokens
        loss.backward()
        total += float(loss.detach())
    return total, {name: p.grad.clone() for name, p in model.module.named_parameters() if p.grad is not None}


def learned_parts(row: TokenRow) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids before, ids) of every run of learned tokens."""
    ids = row.query + row.response
    learn = (False,) * len(row.query) + (row.learn or (True,) * len(row.response))
    parts, at = [], 0
    for is_learned, group in itertools.groupby(learn):
        size = len(list(group))
        if is_learned:
            parts.append((ids[:at], ids[at : at + size]))
        at += size
    return parts


# the same loss


@pytest.mark.parametrize("system", [None, "You are Ben, who sells tickets."], ids=["plain", "system"])
@pytest.mark.parametrize("template", [None, DEFAULT_SYSTEM, HEADERS], ids=["chatml", "default", "headers"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_pass_per_dialogue_has_the_loss_and_gradients_of_a_pass_per_reply(kind, template, system):
    model = chat_model(kind, template)
    examples = [e for k, turns in enumerate(dialogues(5)) for e in replies(f"d{k}", turns, system=system)]
    single, joined = rows_of(model, examples)
    assert len(joined) == sum(min(2, len(turns) - 1) for turns in dialogues(5)) < len(single)
    assert sum(row.n_learned for row in joined) == sum(row.n_learned for row in single)
    loss, gradients = loss_and_gradients(model, [[row] for row in single])
    order = sorted(range(len(joined)), key=lambda place: (place * 7) % len(joined))  # lengths mixed: padding
    for batches in ([joined], [[joined[i] for i in order[:3]], [joined[i] for i in order[3:]]]):
        found, found_gradients = loss_and_gradients(model, batches)
        assert found == pytest.approx(loss, rel=1e-5)
        assert found_gradients.keys() == gradients.keys()
        for name, gradient in gradients.items():
            gap = float((found_gradients[name] - gradient).norm() / gradient.norm())
            assert gap < 1e-4, (name, gap)  # 4e-6 measured


def test_what_stands_behind_or_between_learned_turns_changes_no_loss():
    model = chat_model("llama")
    (row,) = rows_of(model, replies("d", LINES, learned=(1,)))[1]
    before = float(loss_sum(model, [row]).detach())
    longer = TokenRow(row.example_id, row.query, (*row.response, 7, 8, 9), 0, (*(row.learn or ()), False, False, False))
    assert float(loss_sum(model, [longer]).detach()) == pytest.approx(before, rel=1e-6)
    scored = learned_logprobs(model, [longer])
    marks = torch.tensor([longer.learn])
    assert bool((scored[~marks] == 0).all())
    assert bool((scored[marks] < 0).all())


def test_the_mask_of_rows_without_marks_is_the_batch_own():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rows = [TokenRow("a", (1,), (2, 3)), TokenRow("b", (1,), (2, 3, 4))]
    assert learned_mask(rows, mask) is mask
    marked = [rows[0], TokenRow("b", (1,), (2, 3, 4), 0, (True, False, True))]
    assert learned_mask(marked, mask).tolist() == [[True, True, False], [True, False, True]]
    assert [row.n_learned for row in marked] == [2, 2]
    assert [row.length for row in marked] == [3, 4]


# which tokens


@given(
    turns=st.lists(st.lists(st.text(max_size=12), min_size=0, max_size=9), min_size=1, max_size=3),
    learned=st.sampled_from([(0,), (1,), (0, 1)]),
    window=st.none() | st.integers(1, 4),
    cap=st.integers(1, 30),
)
def test_every_reply_is_learned_once_behind_its_own_prompt(turns, learned, window, cap):
    model = MODEL
    examples = [
        e
        for k, texts in enumerate(turns)
        for e in replies(f"d{k}", [t.strip() for t in texts], learned=learned, window=window)
    ]
    single, joined = rows_of(model, examples, cap=cap)
    parts = [part for row in joined for part in learned_parts(row)]
    assert sorted(parts) == sorted((row.query, row.response) for row in single)
    assert sum(row.cut for row in joined) == sum(row.cut for row in single)
    assert {row.example_id for row in joined} <= {example.id for example in examples}


MODEL = chat_model("llama")


def test_one_speaker_gives_one_row_and_both_give_two():
    single, joined = rows_of(MODEL, replies("d", LINES, learned=(1,)))
    assert (len(single), [row.example_id for row in joined]) == (4, ["d#1"])
    single, joined = rows_of(MODEL, replies("d", LINES))
    assert (len(single), [row.example_id for row in joined]) == (7, ["d#1", "d#2"])


def test_the_stop_token_is_learned_after_every_learned_turn_and_no_other():
    (row,) = rows_of(MODEL, replies("d", LINES, learned=(1,)))[1]
    stop = MODEL.stop_ids[0]
    marks = row.learn or ()
    assert [text for text, mark in zip(row.response, marks, strict=True) if mark and text == stop] == [stop] * 4
    assert [text for text, mark in zip(row.response, marks, strict=True) if not mark].count(stop) == 3  # the other's
    texts = [MODEL.tokenizer.decode(ids[:-1]) for _, ids in learned_parts(row)]
    assert texts == LINES[1::2]


def test_replies_of_another_dialogue_never_join_even_where_they_begin_alike():
    examples = [*replies("a", LINES[:4], learned=(1,)), replies("b", LINES[:6], learned=(1,))[-1]]
    joined = rows_of(MODEL, examples)[1]
    assert [row.example_id for row in joined] == ["a#1", "b#5"]


def test_a_single_reply_and_no_reply():
    single, joined = rows_of(MODEL, replies("d", LINES[:2]))
    assert joined == single
    assert rows_of(MODEL, []) == ([], [])


def test_a_reply_over_the_cap_goes_on_in_the_row_and_its_rest_is_not_learned():
    single, joined = rows_of(MODEL, replies("d", LINES, learned=(1,)), cap=3)
    assert len(joined) == 1
    assert joined[0].cut == sum(row.cut for row in single) > 0
    assert [ids for _, ids in learned_parts(joined[0])] == [row.response for row in single]


# where it cannot be done


@pytest.mark.parametrize("template", [REMARK, REASONING], ids=["remark", "reasoning"])
def test_a_template_that_rewrites_old_turns_gives_a_row_per_reply(template):
    model = chat_model("llama", template)
    single, joined = rows_of(model, replies("d", LINES))
    assert joined == single
    assert rows_of(model, replies("d", LINES), max_length=10_000)[1] == single


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_a_model_without_a_chat_template_gives_a_row_per_reply(kind):
    model = make_model(kind)
    if kind == "llama":
        model.tokenizer.chat_template = None
    single, joined = rows_of(model, replies("d", LINES))
    assert joined == single


def test_an_encoder_decoder_gives_a_row_per_reply_even_where_ids_go_on(monkeypatch):
    model = make_model("t5")
    assert not model.one_sequence
    monkeypatch.setattr(type(model), "query_ids", lambda _, messages: [5, 1] * len(messages))
    monkeypatch.setattr(type(model), "response_ids", lambda _, target: [5, 1])
    single, joined = rows_of(model, replies("d", LINES))
    assert joined == single
    monkeypatch.setattr(type(model), "one_sequence", True)
    assert len(rows_of(model, replies("d", LINES))[1]) < len(single)  # so it was the model that said no


# windows and budgets


def test_a_window_gives_rows_of_the_replies_whose_contexts_begin_together():
    _, joined = rows_of(MODEL, replies("d", LINES, learned=(1,), window=3))
    assert [len(learned_parts(row)) for row in joined] == [2, 1, 1]  # turns 1 and 3 begin at 0, 5 at 2, 7 at 4


def test_with_a_length_a_row_goes_on_past_the_window_and_the_next_begins_with_its_own():
    examples = replies("d", LINES, learned=(1,), window=3, system="You are Ben.")
    single, joined = rows_of(MODEL, examples, max_length=10_000)
    assert len(joined) == 1
    whole = rows_of(MODEL, replies("d", LINES, learned=(1,), system="You are Ben."))[1]
    assert joined == whole  # every reply sees the dialogue from its start
    length = single[2].length + 20
    pieces = rows_of(MODEL, examples, max_length=length)[1]
    assert 1 < len(pieces) < len(single)
    assert all(row.length <= length for row in pieces)
    own = {row.example_id: row for row in single}
    for piece in pieces:
        assert piece.query == own[piece.example_id].query  # the window's context, no more
    replied = [ids for row in pieces for _, ids in learned_parts(row)]
    assert replied == [row.response for row in single]  # each once, in order


@given(
    texts=st.lists(st.sampled_from(LINES), min_size=2, max_size=14),
    learned=st.sampled_from([(0,), (1,), (0, 1)]),
    window=st.integers(1, 5),
    max_length=st.integers(1, 300),
)
def test_no_reply_is_lost_or_learned_twice_whatever_the_length(texts, learned, window, max_length):
    turns = [f"{text} {place}" for place, text in enumerate(texts)]
    examples = replies("d", turns, learned=learned, window=window)
    single, joined = rows_of(MODEL, examples, max_length=max_length)
    own = {row.response: row.query for row in single}
    found = [part for row in joined for part in learned_parts(row)]
    assert sorted(ids for _, ids in found) == sorted(row.response for row in single)
    for row in joined:
        parts = learned_parts(row)
        assert row.length <= max_length or len(parts) == 1 or all(before == own[ids] for before, ids in parts)
        for before, ids in parts:
            assert len(before) >= len(own[ids])  # never less context than its own prompt has


def test_turns_that_the_next_prompt_lacks_are_not_made_up():
    # The window is shorter than the way from one reply to the next: what lies between is not known here.
    turns = ["A one.", "B two.", "C three.", "D four.", "E five."]
    far = [
        Example("d#1", (Message("user", turns[0]),), (turns[1],), {"dialogue": "d", "turn": 1}),
        Example("d#4", (Message("user", turns[3]),), (turns[4],), {"dialogue": "d", "turn": 4}),
    ]
    single, joined = rows_of(MODEL, far, max_length=10_000)
    assert joined == single


def test_a_dialogue_that_was_changed_between_replies_is_not_joined():
    examples = replies("d", LINES, learned=(1,), window=3)
    other = Example("d#5", (*examples[2].messages[:-2], Message("assistant", "X"), examples[2].messages[-1]),
                    examples[2].references, examples[2].meta)  # fmt: skip
    single, joined = rows_of(MODEL, [examples[0], examples[1], other], max_length=10_000)
    assert len(joined) == 2
    assert joined[1] == single[2]


def test_prompts_and_rows_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        join_replies(MODEL, replies("d", LINES), [], [])
