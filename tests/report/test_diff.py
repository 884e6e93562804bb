"""Marked differences: joined they are the texts, and a small change is marked small."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from dialtune.report.diff import marked


def test_only_the_words_that_changed_are_marked() -> None:
    assert marked(
        "Anna calls Ben a lazy pig and asks for the keys.", "Anna is angry with Ben and asks for the keys."
    ) == (
        (("same", "Anna "), ("gone", "calls Ben a lazy pig "), ("same", "and asks for the keys.")),
        (("same", "Anna "), ("new", "is angry with Ben "), ("same", "and asks for the keys.")),
    )


def test_space_that_changed_is_no_difference() -> None:
    assert marked("a  b c", "a b\nc") == ((("same", "a  b c"),), (("same", "a b\nc"),))


def test_texts_with_little_in_common_are_not_marked() -> None:
    assert marked("the weather was fine all week", "Ben took a train") is None
    assert marked("", "something") is None
    assert marked("something", " \n") is None


_TEXT = st.text(alphabet="ab \n.é漢", max_size=60)


@given(_TEXT, _TEXT)
def test_the_parts_of_a_side_are_its_text(before: str, after: str) -> None:
    found = marked(before, after)
    if found is None:
        return
    assert "".join(text for _, text in found[0]) == before
    assert "".join(text for _, text in found[1]) == after
    assert {mark for mark, _ in found[0]} <= {"same", "gone"}
    assert {mark for mark, _ in found[1]} <= {"same", "new"}
    for side in found:
        assert all(one[0] != other[0] for one, other in itertools.pairwise(side))


@given(_TEXT)
def test_a_text_against_itself_has_no_mark(text: str) -> None:
    assert marked(text, text) in (None, ((("same", text),), (("same", text),)))
