"""Splits: seeded, by cluster, in the asked shares."""

from __future__ import annotations

import random

import pytest

from dialtune.data.dialogue import parse_dialogue
from dialtune.data.splits import split_examples
from dialtune.errors import ConfigError
from dialtune.types import Example


def rows(n: int, copies: int = 1) -> list[Example]:
    draw = random.Random(0)
    texts = [" ".join(draw.choice("abcdefghijklmnop") * 3 for _ in range(20)) for _ in range(n)]
    return [Example(f"{i}.{k}", parse_dialogue(text)) for i, text in enumerate(texts) for k in range(copies)]


def test_every_row_lands_once_and_shares_are_kept() -> None:
    examples = rows(200)
    parts = split_examples(examples, seed=0)
    assert {name: len(part) for name, part in parts.items()} == {"train": 160, "validation": 20, "test": 20}
    assert sorted(e.id for part in parts.values() for e in part) == sorted(e.id for e in examples)


def test_a_dialogue_and_its_copies_stay_on_one_side() -> None:
    examples = rows(50, copies=3)
    near = [
        Example(f"{e.id}n", parse_dialogue(" ".join(["zzz", *e.messages[0].content.split()[1:]])))
        for e in examples[:60:3]
    ]
    parts = split_examples([*examples, *near], {"a": 0.5, "b": 0.5}, seed=1)
    sides = [{e.id.split(".")[0] for e in part} for part in parts.values()]
    assert not sides[0] & sides[1]
    assert abs(len(parts["a"]) - len(parts["b"])) <= 4


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    examples = rows(60)
    one, two, three = (split_examples(e, seed=s) for e, s in ((examples, 0), (examples[::-1], 0), (examples, 1)))
    ids = [{name: {e.id for e in part} for name, part in parts.items()} for parts in (one, two, three)]
    assert ids[0] == ids[1] != ids[2]
    assert [e.id for e in one["train"]] == [e.id for e in examples if e.id in ids[0]["train"]]


def test_the_words_decide_and_the_ids_do_not() -> None:
    examples = rows(60)
    renamed = [Example(f"x{59 - i}", e.messages) for i, e in enumerate(examples)]
    one, two = split_examples(examples, seed=0), split_examples(renamed, seed=0)
    assert [e.messages for e in one["test"]] == [e.messages for e in two["test"]]


def test_a_split_that_stays_empty_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="split: validation stays empty: the 6 rows form only 1 clusters of duplicates"
    ):
        split_examples(rows(1, copies=6), seed=0)


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.6}, {"a": 1.0, "b": 0.0}, {"a": -1.0, "b": 2.0}])
def test_shares_that_do_not_sum_to_one_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"fractions: got a .*, b .*; allowed: positive shares that sum to 1"):
        split_examples(rows(10), shares, seed=0)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="split: got 2 examples for 3 splits; at least one each is needed"):
        split_examples(rows(2), seed=0)
