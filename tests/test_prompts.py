"""Prompts: what a model is given, and which turns a budget costs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.data.dialogue import parse_dialogue
from dialtune.errors import ConfigError
from dialtune.prompts import TEMPLATES, Template, build_prompts, render_prompt, template_sha256
from dialtune.tasks import TASKS, Task, find_task
from dialtune.types import Example, Message

SUMMARIZE = TASKS["summarize"]
EXAMPLE = Example("1", parse_dialogue("Anna: one {x}\nBen: two\nAnna: three"), ("ref",))
CHAT = Task("chat", template="chat", metrics=(), max_new_tokens=8)


def words(messages: Sequence[Message]) -> int:
    return sum(len(message.content.split()) for message in messages)


def test_a_dialogue_becomes_one_user_message_with_its_tags() -> None:
    (prompt,) = build_prompts([EXAMPLE], SUMMARIZE)
    assert prompt.messages == (
        Message("system", "You summarize dialogues."),
        Message(
            "user",
            "Summarize the dialogue in one or two sentences.\n\nAnna: one {x}\nBen: two\nAnna: three\n\nSummary:",
        ),
    )
    assert (prompt.example_id, prompt.template, prompt.dropped_turns) == ("1", "summarize", 0)


def test_a_chat_goes_as_it_is() -> None:
    chat = Example("1", (Message("system", "Be kind."), Message("user", "Hi")))
    assert build_prompts([chat], CHAT)[0].messages == chat.messages


def test_a_system_message_goes_in_front_unless_the_chat_has_one() -> None:
    template = Template("t", None, system="Short.")
    assert render_prompt((Message("user", "Hi"),), template)[0] == Message("system", "Short.")
    assert render_prompt((Message("system", "Be kind."), Message("user", "Hi")), template)[0].content == "Be kind."


def test_the_oldest_turns_go_first_and_are_counted() -> None:
    full = words(build_prompts([EXAMPLE], SUMMARIZE)[0].messages)
    for budget, dropped, start in ((full, 0, "Anna: one"), (full - 1, 1, "Ben: two"), (full - 4, 2, "Anna: three")):
        (prompt,) = build_prompts([EXAMPLE], SUMMARIZE, max_prompt_tokens=budget, count_tokens=words)
        assert prompt.dropped_turns == dropped
        assert start in prompt.messages[-1].content
        assert words(prompt.messages) <= budget


def test_a_last_turn_that_is_too_long_is_cut_from_its_end_and_counted() -> None:
    long = Example("1", parse_dialogue("Anna: hi\nBen: " + " ".join(f"w{i}" for i in range(50))))
    (prompt,) = build_prompts([long], SUMMARIZE, max_prompt_tokens=20, count_tokens=words)
    assert words(prompt.messages) == 20
    assert prompt.dropped_turns == 2
    assert "Ben: w0 w1" in prompt.messages[-1].content


def test_the_system_message_of_a_chat_is_never_dropped() -> None:
    turns = (Message("system", "Be kind."), *(Message("user", f"a b c {i}") for i in range(9)))
    (prompt,) = build_prompts([Example("1", turns)], CHAT, max_prompt_tokens=10, count_tokens=words)
    assert prompt.messages == (turns[0], *turns[-2:])
    assert prompt.dropped_turns == 7


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(10, 60))
def test_what_is_kept_fits_and_one_turn_more_would_not(sizes: list[int], budget: int) -> None:
    turns = tuple(Message("user", " ".join(["w"] * size), "Anna") for size in sizes)
    (prompt,) = build_prompts([Example("1", turns)], SUMMARIZE, max_prompt_tokens=budget, count_tokens=words)
    assert words(prompt.messages) <= max(budget, 14)  # the template has 12 words, the tag and one word of the turn stay
    if 0 < prompt.dropped_turns < len(turns):
        more = render_prompt(turns[prompt.dropped_turns - 1 :], TEMPLATES["summarize"])
        assert words(more) > budget


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(3, 60), st.sampled_from([1, 3, 7]))
def test_the_most_turns_that_fit_are_kept_however_tokens_add_up(sizes: list[int], budget: int, share: int) -> None:
    """Counts that do not add up turn by turn (shared tokens, a step for each message) only move the first guess."""

    def count(messages: Sequence[Message]) -> int:
        return sum(len(message.content) for message in messages) // share + 2 * (len(messages) > 3)

    turns = tuple(Message("user" if k % 2 else "assistant", "x" * size) for k, size in enumerate(sizes))
    (prompt,) = build_prompts([Example("1", turns)], CHAT, max_prompt_tokens=budget, count_tokens=count)
    fitting = [start for start in range(len(turns)) if count(turns[start:]) <= budget]
    if fitting:
        assert (prompt.dropped_turns, prompt.messages) == (min(fitting), turns[min(fitting) :])
    else:
        assert prompt.dropped_turns == len(turns)
        assert len(prompt.messages) == 1


def test_a_turn_is_counted_once_however_many_replies_it_is_before() -> None:
    """Long dialogues: beside two counts of what fits for each reply, every turn is counted once."""
    turns = tuple(Message("user" if k % 2 else "assistant", f"turn {k} of a talk") for k in range(100))
    examples = [Example(str(k), turns[:k]) for k in range(1, 101)]
    counted: list[int] = []

    def count(messages: Sequence[Message]) -> int:
        counted.append(len(messages))
        return words(messages)

    prompts = build_prompts(examples, CHAT, max_prompt_tokens=50, count_tokens=count)
    assert [len(prompt.messages) for prompt in prompts] == [*range(1, 11), *[10] * 90]
    assert sum(counted) <= 100 * (10 + 11) + 102


def test_a_budget_needs_a_count() -> None:
    with pytest.raises(ConfigError, match="max_prompt_tokens: needs count_tokens"):
        build_prompts([EXAMPLE], SUMMARIZE, max_prompt_tokens=9)


def test_unknown_names_are_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="template: got 'sum'; known: summarize, "):
        template_sha256("sum")
    with pytest.raises(ConfigError, match="task: got 'sum'; known: summarize"):
        find_task("sum")


def test_templates_differ_in_their_hash_and_tasks_name_existing_ones() -> None:
    assert len({template_sha256(name) for name in TEMPLATES}) == len(TEMPLATES)
    assert all(len(template_sha256(name)) == 64 for name in TEMPLATES)
    assert {task.template for task in TASKS.values()} <= set(TEMPLATES)
    assert all(template.user is None or template.user.count("{dialogue}") == 1 for template in TEMPLATES.values())
