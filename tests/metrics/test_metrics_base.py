"""What holds for every metric in the table, and the pieces they share."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dialtune.metrics.base import chosen_references, is_empty, prepare
from dialtune.metrics.table import METRICS
from dialtune.types import Example, Message

EXAMPLE = Example(
    "1",
    (Message("user", "Can you come at ten?", "#Person1#"), Message("user", "Yes, at ten.", "#Person2#")),
    ("#Person1# asks #Person2# to come.", "They meet at ten."),
    {"reference_names": ("blunt", "civil"), "mention": "They meet at ten."},
)
OTHER = Example("2", (Message("user", "The ferry is late again.", "#Person1#"),), ("The ferry is late.",))


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_is_named_signed_and_scores(name: str) -> None:
    metric = METRICS[name]
    assert metric.name == name
    # The scorer of a toxicity score is a setting of its own.
    assert re.fullmatch(rf"{name.partition(':')[0]}(\|[a-z]+:[^|\s]+)+\|dialtune:1", metric.signature((2, 2)))
    assert metric.direction in ("higher", "lower", None)
    assert metric.needs
    if metric.unavailable():
        pytest.skip(str(metric.unavailable()))
    text = " ".join(["#Person1# asks #Person2# to come at ten."] * (metric.budget or 1))
    stats = metric.segments([text] * 4, [EXAMPLE] * 3 + [OTHER])[:3]
    assert stats.shape[0] == 3
    assert stats.dtype == np.float64
    assert (stats.shape[1] == 1) == metric.row_wise
    score = metric.aggregate(stats)
    assert np.isfinite(score)
    drawn = metric.aggregate(stats, np.array([[0, 0, 0], [2, 1, 0]]))
    assert drawn == pytest.approx(np.array([score, score]))


def test_rows_that_were_not_scored_take_no_part() -> None:
    stats = np.array([[1.0], [np.nan], [3.0]])
    metric = METRICS["length_ratio"]
    assert metric.aggregate(stats) == 2
    assert metric.aggregate(stats, np.array([[0, 0, 1], [1, 2, 2]])) == pytest.approx(np.array([1.0, 3.0]))


def test_texts_are_stripped_and_composed_and_nothing_else() -> None:
    assert prepare("  Cafe\u0301 #Person1#\n") == "Café #Person1#"
    assert prepare("A  B") == "A  B"


@pytest.mark.parametrize(("text", "empty"), [("", True), (" .!?", True), ("a", False), ("7", False), ("好", False)])
def test_empty_means_no_letter_and_no_digit(text: str, empty: bool) -> None:
    assert is_empty(text) is empty


@pytest.mark.parametrize(
    ("reference", "picked"),
    [
        ("first", (0,)),
        ("summary1", (0,)),
        ("summary2", (1,)),
        ("civil", (1,)),
        ("mean", (0, 1)),
        ("max", (0, 1)),
        ("best_rouge1", (0, 1)),
        ("summary3", ()),
        ("summary0", ()),
        ("polite", ()),
    ],
)
def test_references_are_chosen_by_name_or_number(reference: str, picked: tuple[int, ...]) -> None:
    assert chosen_references(EXAMPLE, reference) == tuple(EXAMPLE.references[k] for k in picked)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_reads_the_references_it_is_told_to_or_none(name: str) -> None:
    told = METRICS[name].with_reference("summary2")
    if told.unavailable():
        pytest.skip(str(told.unavailable()))
    stats = told.segments(["They meet at ten."], [EXAMPLE])
    assert getattr(told, "reference", "summary2") in ("summary2", "max")
    if name in ("rouge1", "bleu", "chrf"):
        assert told.aggregate(stats) == pytest.approx(100)
