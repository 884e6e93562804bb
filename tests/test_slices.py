"""Slices: what is in which, what is too small, and that thirds by length never part dialogues of equal length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.results import EvalRow
from dialtune.slices import MIN_SLICE, slices_of


def row(k: int, **known: object) -> EvalRow:
    return EvalRow.model_validate({"id": f"r{k}", "completion": "", "finish": "stop", "scores": {}} | known)


def test_kinds_come_first_then_length_then_speakers() -> None:
    rows = [
        row(k, kind="plain" if k < 18 else "heated", words=10 * k, speakers=2 if k % 2 else 4 + k % 3)
        for k in range(36)
    ]
    found = slices_of(rows)
    assert {name: len(ids) for name, ids in found.items()} == {
        "heated": 18, "plain": 18, "words 0 to 110": 12, "words 120 to 230": 12, "words 240 to 350": 12,
        "2 speakers": 18, "3 speakers or more": 18,
    }  # fmt: skip
    assert list(found)[:2] == ["heated", "plain"]
    assert found["2 speakers"] == {f"r{k}" for k in range(1, 36, 2)}


def test_a_slice_of_nine_rows_or_of_all_is_left_out() -> None:
    rows = [row(k, kind="plain" if k < 9 else "heated", speakers=2, words=80) for k in range(40)]
    assert list(slices_of(rows)) == ["heated"]


def test_a_lone_speaker_is_one_speaker() -> None:
    rows = [row(k, speakers=1 if k < 20 else 2) for k in range(40)]
    assert list(slices_of(rows)) == ["1 speaker", "2 speakers"]


def test_rows_that_do_not_know_are_in_no_slice() -> None:
    assert slices_of([]) == {}
    assert slices_of([row(k) for k in range(40)]) == {}
    assert slices_of([row(k, kind="plain" if k < 20 else None) for k in range(40)]) == {
        "plain": {f"r{k}" for k in range(20)}
    }


@pytest.mark.parametrize(
    ("lengths", "names"),
    [
        ([5] * 20 + [9] * 20, ["words 5 to 5", "words 9 to 9"]),
        ([5] * 30 + [9] * 10, ["words 5 to 5", "words 9 to 9"]),
        ([1] * 12 + list(range(10, 38)), ["words 1 to 11", "words 12 to 24", "words 25 to 37"]),
    ],
)
def test_ties_stay_together(lengths: list[int], names: list[str]) -> None:
    assert list(slices_of([row(k, words=n) for k, n in enumerate(lengths)])) == names


@given(st.lists(st.integers(0, 60), max_size=90))
def test_thirds_by_length_hold_every_row_at_most_once_and_what_their_name_says(lengths: list[int]) -> None:
    rows = [row(k, words=n) for k, n in enumerate(lengths)]
    seen: set[str] = set()
    for name, ids in slices_of(rows).items():
        low, top = int(name.split()[1]), int(name.split()[3])
        assert ids == {f"r{k}" for k, n in enumerate(lengths) if low <= n <= top}
        assert len(ids) >= MIN_SLICE
        assert not ids & seen
        seen |= ids
