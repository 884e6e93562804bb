"""The text cache: the same values as computing each text, each text computed once, a bound that holds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dialtune.models.text_cache import TextCache


@given(st.integers(1, 4), st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=7), max_size=6))
def test_values_are_those_of_the_texts_and_the_bound_holds(size: int, calls: list[list[str]]) -> None:
    cache = TextCache[str](size)
    asked: list[str] = []

    def compute(unknown: list[str]) -> list[str]:
        assert unknown
        assert len(set(unknown)) == len(unknown)
        asked.extend(unknown)
        return [text.upper() for text in unknown]

    for texts in calls:
        before = len(asked)
        assert cache.fill(texts, compute) == [text.upper() for text in texts]
        assert set(asked[before:]) <= set(texts)
        assert len(cache) <= size


def test_the_texts_asked_last_are_remembered() -> None:
    cache = TextCache[int](2)
    seen: list[str] = []

    def compute(unknown: list[str]) -> list[int]:
        seen.extend(unknown)
        return [1] * len(unknown)

    for texts in (["a", "b"], ["a"], ["c"], ["a"], ["b"]):
        cache.fill(texts, compute)
    assert seen == ["a", "b", "c", "b"]  # b was the older one when c came
