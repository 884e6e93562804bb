"""Which rows belong together, and which contexts a reply is held against."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.metrics.contexts import (
    POOL,
    context_turns,
    dialogue_of,
    dialogue_units,
    last_turn_only,
    wrong_contexts,
)
from dialtune.types import Example, Message

SYSTEM = Message("system", "Answer in one sentence.")


def reply(dialogue: str, turn: int, *turns: str, text: str = "Sure.", system: bool = False) -> Example:
    roles = ("user", "assistant")
    said = tuple(Message(roles[(len(turns) - 1 - k) % 2], content) for k, content in enumerate(turns))  # type: ignore[arg-type]
    meta = {"dialogue": dialogue, "turn": turn}
    return Example(f"{dialogue}#{turn}", ((SYSTEM,) if system else ()) + said, (text,), meta)


def whole(key: str, text: str) -> Example:
    return Example(key, (Message("user", text, "Ann"),), ("a summary",))


def corpus(sizes: list[int]) -> list[Example]:
    """Dialogues of so many replies; turn t of dialogue d has t + 1 words of its own."""
    return [
        reply(f"d{d}", t + 1, *(" ".join([f"w{d}x{k}"] * (k + 1)) for k in range(t + 1)))
        for d, size in enumerate(sizes)
        for t in range(size)
    ]


def test_a_reply_names_its_dialogue_and_its_turn() -> None:
    assert dialogue_of(reply("d1", 3, "Hi.")) == "d1"
    assert dialogue_of(whole("1", "Hi.")) is None
    assert dialogue_of(Example("1", (), (), {"dialogue": "d1"})) is None
    assert dialogue_of(Example("1", (), (), {"dialogue": 1, "turn": 2})) is None


def test_a_context_is_what_was_said_and_no_instruction() -> None:
    row = reply("d", 2, "Hi.", "Hello.", system=True)
    assert [message.content for message in context_turns(row)] == ["Hi.", "Hello."]
    assert [message.content for message in last_turn_only(row).messages] == [SYSTEM.content, "Hello."]
    assert last_turn_only(row).references == row.references
    assert last_turn_only(Example("1", (SYSTEM,))).messages == (SYSTEM,)


def test_replies_of_a_dialogue_are_one_unit_wherever_they_stand() -> None:
    rows = [reply("a", 1, "One."), reply("b", 1, "Two."), reply("a", 2, "One.", "Sure.", text="No."), whole("w", "x")]
    assert dialogue_units(rows) == [0, 1, 0, 3]


def test_copies_are_one_unit_only_if_all_their_rows_are() -> None:
    same = [reply(key, turn, *turns, text=text) for key in ("a", "b") for turn, turns, text in (
        (1, ("Hi there.",), "Hello."), (2, ("Hi there.", "Hello."), "Bye."))]  # fmt: skip
    assert dialogue_units(same) == [0, 0, 0, 0]
    other = [*same[:3], reply("b", 2, "Hi  THERE.", "hello.", text="See you.")]
    assert dialogue_units(other) == [0, 0, 2, 2]  # the same opening is no copy
    assert dialogue_units([whole("1", "Hi you."), whole("2", "hi  YOU."), whole("3", " "), whole("4", " ")]) == [
        0, 0, 2, 3
    ]  # fmt: skip


def test_a_dialogue_and_a_row_of_the_same_name_stay_apart() -> None:
    rows = [reply("x", 1, "Hi."), Example("row 0", (Message("user", "Yes."),))]
    assert dialogue_units(rows) == [0, 1]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=12), st.integers(1, 6), st.integers(0, 3))
def test_wrong_contexts_are_of_other_dialogues_one_of_each(sizes: list[int], n: int, seed: int) -> None:
    rows = corpus(sizes)
    found = wrong_contexts(rows, n, seed=seed)
    units = dialogue_units(rows)
    for row, others in enumerate(found):
        drawn = [units[other] for other in others]
        assert len(set(drawn)) == len(drawn)
        assert units[row] not in drawn
        assert len(drawn) == min(n, len(sizes) - 1)
    assert found == wrong_contexts(rows, n, seed=seed)


def test_what_says_the_same_is_no_wrong_context() -> None:
    rows = [
        reply("a", 1, "How are you?"),
        reply("b", 1, "how  are YOU?", text="Fine."),
        reply("c", 1, "Tea or coffee?"),
    ]
    assert wrong_contexts(rows, 2) == [(2,), (2,), (0,)] or wrong_contexts(rows, 2)[2] in ((0, 1), (1, 0))
    assert [set(others) for others in wrong_contexts(rows, 2)[:2]] == [{2}, {2}]


def test_a_row_that_answers_nothing_gets_none_and_serves_nobody() -> None:
    rows = [
        reply("a", 1, "One."),
        Example("b#0", (SYSTEM,), ("Hi.",), {"dialogue": "b", "turn": 0}),
        reply("c", 1, "Two"),
    ]
    assert wrong_contexts(rows, 3) == [(2,), (), (0,)]
    assert wrong_contexts(rows[:1], 3) == [()]
    assert wrong_contexts([], 3) == []


def test_wrong_contexts_are_about_as_long_as_the_own_one() -> None:
    rows = [reply(f"d{k}", 1, " ".join([f"w{k}"] * (k + 1))) for k in range(100)]
    found = wrong_contexts(rows, 3)
    for row, others in enumerate(found):
        nearest = sorted(abs(other - row) for other in range(100) if other != row)[: POOL * 3]
        assert max(abs(other - row) for other in others) <= nearest[-1]


def test_every_context_serves_about_equally_often_and_the_seed_decides() -> None:
    rows = [reply(f"d{k}", 1, f"word{k} again{k}") for k in range(60)]
    found = wrong_contexts(rows, 9)
    used = Counter(other for others in found for other in others)
    assert max(used.values()) <= 11
    assert min(used[row] for row in range(60)) >= 6
    assert found != wrong_contexts(rows, 9, seed=1)


def test_what_a_row_gets_does_not_hang_on_the_order_of_the_rows() -> None:
    rows = corpus([2, 3, 1, 2, 4])
    found = dict(zip([row.id for row in rows], wrong_contexts(rows, 2), strict=True))
    turned = rows[::-1]
    back = dict(zip([row.id for row in turned], wrong_contexts(turned, 2), strict=True))
    for key, others in found.items():
        assert [rows[other].id for other in others] == [turned[other].id for other in back[key]]


def test_at_least_one_is_asked_for() -> None:
    with pytest.raises(AssertionError):
        wrong_contexts([], 0)
