"""Pairs and ratings that a reward learns from: never one dialogue against itself, drawn by the seed alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialtune.config.reward_schema import RewardConfig
from dialtune.data.turns import reply_examples
from dialtune.errors import DataError
from dialtune.trainers.contrast import (
    CHEAP,
    Exchange,
    Lessons,
    cheap_pairs,
    exchange_of,
    lessons_of,
    preference_pairs,
    rated_dialogues,
    shuffled_pairs,
    usable,
)
from dialtune.types import Example, Message


def dialogue(name: str, *turns: str, **meta: Any) -> list[Example]:
    """The replies of a dialogue of two people."""
    said = tuple(Message("user", text, f"#Person{1 + place % 2}#") for place, text in enumerate(turns))
    return reply_examples([Example(name, said, (), meta)])


def words(n: int, mark: str) -> str:
    return " ".join(f"{mark}{place}" for place in range(n))


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)
corpora = st.lists(st.lists(texts, min_size=1, max_size=6), min_size=0, max_size=6)


def replies(corpus: list[list[str]]) -> list[Example]:
    return usable([reply for name, turns in enumerate(corpus) for reply in dialogue(f"d{name}", *turns)])


@given(corpora, st.integers(1, 6), st.integers(0, 3), st.integers(1, 4))
@settings(max_examples=150)
def test_no_pair_holds_a_dialogue_against_itself(corpus: list[list[str]], n: int, seed: int, window: int):
    examples = replies(corpus)
    own = {
        e.id: {exchange_of(o, window) for o in examples if o.meta["dialogue"] == e.meta["dialogue"]} for e in examples
    }
    pairs = shuffled_pairs(examples, n, seed=seed, window=window)
    for pair in pairs:
        assert pair.worse != pair.better
        assert 1 <= len(pair.better.context) <= window
        if pair.kind == "reply":
            assert pair.worse.context == pair.better.context
            assert pair.worse.reply.lower().split() != pair.better.reply.lower().split()
        else:
            assert pair.kind == "context"
            assert pair.worse.reply == pair.better.reply
            assert pair.worse.context != pair.better.context
        example = examples[pair.unit]
        assert pair.better in own[example.id]
        said = {exchange for others in own.values() for exchange in others}
        assert any(pair.worse.context == one.context for one in said)
        assert any(pair.worse.reply == one.reply for one in said)
    assert pairs == shuffled_pairs(list(examples), n, seed=seed, window=window)


def test_the_worse_one_is_of_another_dialogue_and_the_seed_chooses_it():
    examples = [e for d in range(12) for e in dialogue(f"d{d}", *(words(4, f"d{d}t{t}w") for t in range(4)))]
    pairs = shuffled_pairs(examples, 4, seed=0, window=3)
    assert len(pairs) == 4 * len(examples)
    assert {kind: sum(p.kind == kind for p in pairs) for kind in ("reply", "context")} == {"reply": 72, "context": 72}
    for pair in pairs:
        mine = pair.better.reply.partition("t")[0]
        other = pair.worse.reply if pair.kind == "reply" else pair.worse.context[0]
        assert other.partition("t")[0] != mine
    assert pairs == shuffled_pairs(examples, 4, seed=0, window=3)
    assert pairs != shuffled_pairs(examples, 4, seed=1, window=3)


def test_a_wrong_reply_is_about_as_long_as_the_true_one():
    """30 dialogues whose replies have 1 to 30 words: the wrong one is among the 8 nearest, so at most 8 words away."""
    examples = [e for n in range(1, 31) for e in dialogue(f"d{n}", f"question {n}", words(n, f"d{n}w"))]
    gaps = [
        abs(len(pair.better.reply.split()) - len(pair.worse.reply.split()))
        for pair in shuffled_pairs(examples, 4, seed=0, window=1)
        if pair.kind == "reply"
    ]
    assert 0 < max(gaps) <= 8


def test_a_copy_of_the_dialogue_is_no_wrong_context_and_its_replies_are_no_wrong_ones():
    turns = ("where do you live", "in the old town")
    examples = [
        *dialogue("a", *turns),
        *dialogue("copy", *turns),
        *dialogue("b", "tea or coffee", "coffee would be nice"),
    ]
    pairs = [p for p in shuffled_pairs(examples, 4, seed=0, window=2) if p.better.reply == turns[1]]
    assert pairs
    assert {pair.worse.reply for pair in pairs if pair.kind == "reply"} == {"coffee would be nice"}
    assert {pair.worse.context for pair in pairs if pair.kind == "context"} == {("tea or coffee",)}


def test_what_others_replied_to_the_same_words_is_no_wrong_reply():
    examples = [
        *dialogue("a", "how are you", "fine thank you"),
        *dialogue("b", "how are you", "not well at all"),
        *dialogue("c", "one ticket please", "here you are"),
    ]
    wrong = {p.worse.reply for p in shuffled_pairs(examples, 4, seed=0, window=1) if p.better.reply == "fine thank you"}
    assert wrong == {"here you are", "fine thank you"}  # the second one in another context


def test_where_others_said_the_same_is_no_wrong_context():
    examples = [
        *dialogue("a", "is it far", "Not at all!"),
        *dialogue("b", "do you mind", "not at all."),
        *dialogue("c", "one ticket please", "here you are"),
    ]
    wrong = {p.worse for p in shuffled_pairs(examples, 4, seed=0, window=1) if p.better.reply == "Not at all!"}
    assert wrong == {Exchange(("is it far",), "here you are"), Exchange(("one ticket please",), "Not at all!")}


@pytest.mark.parametrize("corpus", [[], [["hello there", "hi yourself", "bye now"]]])
def test_one_dialogue_or_none_gives_no_pair(corpus: list[list[str]]):
    assert shuffled_pairs(replies(corpus), 4, seed=0, window=2) == []


def test_only_what_was_said_counts_as_context():
    system = Message("system", "You are a waiter.")
    turns = (system, Message("user", "Hello."), Message("user", " ... "), Message("assistant", " Good day! "))
    example = Example("x", turns, (" What will it be? ",))
    assert exchange_of(example, 5) == Exchange(("Hello.", "Good day!"), "What will it be?")
    assert exchange_of(example, 1).context == ("Good day!",)
    nothing = [
        Example("a", (system,), ("Hi",)),
        Example("b", turns, ("?!",)),
        Example("c", turns),
        Example("d", (), ("x",)),
    ]
    assert usable([*nothing, example]) == [example]


# cheap replies


def test_an_echo_and_a_repeat_are_worse():
    (_, example) = dialogue("d", "Do you like jazz?", "I do.", "Then come along.")
    found = {pair.kind: pair.worse for pair in cheap_pairs([example], window=3)}
    context = ("Do you like jazz?", "I do.")
    assert found == {
        "echo": Exchange(context, "I do."),
        "repeat": Exchange(context, "Do you like jazz?"),
    }


def test_a_reply_that_is_an_echo_itself_is_not_held_against_itself():
    examples = dialogue("d", "Goodbye!", "good bye", "See you.", "Goodbye!")
    kinds = [(pair.better.reply, pair.kind, pair.worse.reply) for pair in cheap_pairs(examples, window=2)]
    assert kinds == [
        ("See you.", "echo", "good bye"),
        ("Goodbye!", "echo", "See you."),
    ]  # both first turns are one text


@given(corpora)
def test_cheap_replies_are_never_the_reply_itself_and_come_once(corpus: list[list[str]]):
    examples = replies(corpus)
    pairs = cheap_pairs(examples, window=3)
    assert all(pair.worse.reply != pair.better.reply and pair.worse.context == pair.better.context for pair in pairs)
    assert all(pair.kind in CHEAP for pair in pairs)
    assert len({(pair.unit, pair.better, pair.worse.reply) for pair in pairs}) <= len(pairs) <= 2 * len(examples)


# preferences


def preference(row: str, rejected: Any, chosen: str = "Yes, at noon.") -> Example:
    meta = {"layout": "preference", "dialogue": row, "turn": 1, "rejected": rejected}
    return Example(row, (Message("user", "Is lunch ready?"),), (chosen,), meta)


def test_the_chosen_reply_is_better_whether_given_as_text_or_as_messages():
    answer = [{"role": "assistant", "content": "Go away."}]
    rows = [preference("a", " No. "), preference("b", answer, chosen="In an hour.")]
    found = preference_pairs(rows, window=2)
    assert [(pair.better.reply, pair.worse.reply, pair.kind, pair.unit) for pair in found] == [
        ("Yes, at noon.", "No.", "preference", 0),
        ("In an hour.", "Go away.", "preference", 1),
    ]


@pytest.mark.parametrize("rejected", ["", "  ", "yes at noon", None, 7, [], [3], [{"role": "assistant"}]])
def test_rows_without_another_reply_are_no_pairs(rejected: Any):
    assert preference_pairs([preference("a", rejected)], window=2) == []


# ratings


def test_the_mean_rating_lies_between_the_ends_of_the_scale():
    examples = [
        *dialogue("a", "hi there", "hello", "how are you", witty=2, upbeat="4.5"),
        *dialogue("b", "hi there", "oh no", witty=10),  # one of two is no rating
        *dialogue("c", "good day", "to you too", witty=10, upbeat=10.0),
        *dialogue("d", "so long", "good bye", witty=None, upbeat=3),
    ]
    found = rated_dialogues(examples, ["witty", "upbeat"], (0, 10), window=3)
    assert [(dialogue.target, len(dialogue.exchanges), dialogue.unit) for dialogue in found] == [
        (pytest.approx(0.325), 2, 0),
        (1.0, 1, 3),
    ]
    shifted = rated_dialogues(examples, ["witty"], (1, 10), window=3)
    assert [dialogue.target for dialogue in shifted] == pytest.approx([1 / 9, 1.0, 1.0])


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (11, "11"),
        (-0.1, "-0.1"),
        ("good", "'good'"),
        (True, "True"),
        ([5], "'list'"),
    ],
)
def test_a_rating_that_is_off_the_scale_is_an_error_with_its_row(value: Any, shown: str):
    examples = dialogue("chat-7", "hi there", "hello", witty=value)
    with pytest.raises(DataError, match=r"chat-7#1: rating 'witty' is .*; a number from 0 to 10 is needed") as error:
        rated_dialogues(examples, ["witty"], (0, 10), window=3)
    assert shown.strip("'") in str(error.value)


# together


def config(**values: Any) -> RewardConfig:
    return RewardConfig.model_validate({"data": {"train": "t", "validation": "v"}, **values})


def test_each_signal_brings_its_own_lessons():
    examples = [
        *dialogue("a", "is it raining", "yes it is", "take a coat then", witty=3),
        *dialogue("b", "coffee or tea", "tea if you please", "with milk or without", witty=9),
    ]
    examples[0] = replace(examples[0], meta={**examples[0].meta, "rejected": "leave me alone"})
    both = lessons_of(examples, config(signals={"contexts": 1, "ratings": 1}, ratings=["witty"]), n=2, seed=0)
    assert {pair.kind for pair in both.pairs["contexts"]} == {"reply", "context", *CHEAP}
    assert [rated.target for rated in both.rated] == [0.3, 0.9]
    assert "preferences" not in both.pairs
    plain = lessons_of(examples, config(cheap_replies=False), n=2, seed=0)
    assert {pair.kind for pair in plain.pairs["contexts"]} == {"reply", "context"}
    preferred = lessons_of(examples, config(signals={"preferences": 1}), n=2, seed=0)
    assert [pair.worse.reply for pair in preferred.pairs["preferences"]] == ["leave me alone"]
    assert not preferred.empty
    assert Lessons({"contexts": []}).empty
    assert set(both.texts) == {text for one in both.exchanges for text in (*one.context, one.reply)}
    assert len(both.exchanges) == len(set(both.exchanges))
