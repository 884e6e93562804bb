"""Relevance on vectors small enough to work out by hand, and a metric's value as a reward."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_fakes import FakeEmbedder

from dialtune.errors import ConfigError
from dialtune.metrics.table import METRICS
from dialtune.rewards.base import score_safely
from dialtune.rewards.relevance import MetricReward, Relevance
from dialtune.types import Example, Message

# Cosines with the dialogue (x axis): near 0.8, far 0.6, across 0, against -1; near with far: 0.8*0.6 + 0.6*0.8 = 0.96.
VECTORS = {
    "A: hi": (1.0, 0.0, 0.0), "near": (0.8, 0.6, 0.0), "far": (0.6, 0.8, 0.0), "across": (0.0, 1.0, 0.0),
    "against": (-1.0, 0.0, 0.0), "same": (1.0, 0.0, 0.0),
}  # fmt: skip
TALK = (Message("user", "hi", "A"),)


def row(*references: str) -> Example:
    return Example("d", TALK, references)


@pytest.fixture(autouse=True)
def embedder(monkeypatch: pytest.MonkeyPatch) -> FakeEmbedder:
    fake = FakeEmbedder(VECTORS)
    monkeypatch.setattr("dialtune.metrics.relevance.load_embedder", lambda: fake)
    return fake


def values(reward: Relevance, *pairs: tuple[str, Example]):
    found = score_safely(reward, [row for _, row in pairs], [text for text, _ in pairs])
    assert not found.bad.any()
    return found.values


def test_similarity_to_the_dialogue_is_a_cosine_between_0_and_1() -> None:
    reward = Relevance(dialogue=1, reference=0)
    found = values(reward, *((text, row()) for text in ("near", "far", "across", "against", "same")))
    assert found == pytest.approx([0.8, 0.6, 0.0, 0.0, 1.0], abs=1e-6)


def test_an_echo_earns_no_more_than_the_mean_of_the_references() -> None:
    reward = Relevance(dialogue=1, reference=0)
    found = values(reward, ("same", row("near", "far")), ("same", row("far")), ("across", row("far")))
    assert found == pytest.approx([0.7, 0.6, 0.0], abs=1e-6)  # (0.8 + 0.6) / 2
    free = Relevance(dialogue=1, reference=0, capped=False)
    assert values(free, ("same", row("near", "far"))) == pytest.approx([1.0])


def test_similarity_to_references_is_their_mean_capped_by_how_alike_they_are() -> None:
    reward = Relevance(dialogue=0, reference=1)
    found = values(
        reward,
        ("near", row("far")),  # 0.96, one reference: no cap
        ("near", row("near")),
        ("near", row("near", "far")),  # (1 + 0.96) / 2 = 0.98, and 0.96 between the two
        ("across", row("near", "far")),  # (0.6 + 0.8) / 2
    )
    assert found == pytest.approx([0.96, 1.0, 0.96, 0.7], abs=1e-6)
    assert values(Relevance(dialogue=0, reference=1, capped=False), ("near", row("near", "far"))) == pytest.approx(
        [0.98], abs=1e-6
    )


def test_the_two_are_weighed_and_a_part_that_does_not_apply_is_left_out() -> None:
    reward = Relevance(dialogue=3, reference=1)
    # Dialogue part 0.6 (capped at the reference's own 0.6), reference part 0.96: (3 * 0.6 + 0.96) / 4.
    found = values(reward, ("near", row("far")), ("near", row()), ("near", Example("d", (), ("far",))))
    assert found == pytest.approx([0.69, 0.8, 0.96], abs=1e-6)


@pytest.mark.parametrize("text", ["", "  ", "...", "🙂"])
def test_an_empty_completion_is_0(text: str) -> None:
    assert values(Relevance(), (text, row("far"))).tolist() == [0.0]


def test_a_row_with_neither_part_has_no_value() -> None:
    silent = Example("d", (Message("user", " ", "A"),), ("", "…"))
    found = values(Relevance(), ("near", silent), ("", silent), ("near", row()))
    assert np.isnan(found).tolist() == [True, True, False]
    assert np.isnan(values(Relevance(dialogue=0, reference=1), ("near", row()))).all()


def test_a_broken_encoder_is_a_fault_and_not_silence(embedder: FakeEmbedder) -> None:
    embedder.vectors = VECTORS | {"near": (np.nan, 0.0, 0.0)}
    found = score_safely(Relevance(), [row("far"), row("far")], ["near", "far"])
    assert found.bad.tolist() == [True, False]


def test_no_rows_give_no_values() -> None:
    assert Relevance().scores([], []).shape == (0,)


@pytest.mark.parametrize("weights", [(0, 0), (-1, 2), (1, float("nan")), (float("inf"), 1)])
def test_weights_are_positive_and_not_both_zero(weights: tuple[float, float]) -> None:
    with pytest.raises(
        ConfigError, match=r"^reward 'relevance': got weights dialogue .*; allowed: >= 0 and not both 0$"
    ):
        Relevance(dialogue=weights[0], reference=weights[1])


@given(st.permutations(range(4)))
def test_rows_do_not_see_each_other(order: list[int]) -> None:
    texts = ["near", "", "same", "across"]
    rows = [row("far"), row("far"), row("near", "far"), Example("d", (), ())]
    whole = Relevance(capped=False).scores(rows, texts)
    moved = Relevance(capped=False).scores([rows[i] for i in order], [texts[i] for i in order])
    assert [whole.tolist()[i] for i in order] == moved.tolist()


def test_what_a_row_must_bring_is_said() -> None:
    assert Relevance().needs == "dialogues"
    assert Relevance(dialogue=0, reference=1).needs == "references"


# a metric as a reward


def test_rouge_l_is_a_reward_between_0_and_1() -> None:
    reward = MetricReward(METRICS["rougeL"])
    # "they greet" against "they greet now": precision 1, recall 2/3, F1 = 0.8.
    found = score_safely(
        reward, [row("They greet now."), row("They greet."), row("Bye."), row()], ["they greet"] * 3 + ["x"]
    )
    assert found.values[:3] == pytest.approx([0.8, 1.0, 0.0])
    assert np.isnan(found.values[3])
    assert not found.bad.any()
    assert reward.name == "rougeL"
    assert reward.needs == "references"


def test_a_corpus_score_says_nothing_about_one_text() -> None:
    with pytest.raises(ConfigError, match=r"^reward 'bleu': bleu is a corpus score"):
        MetricReward(METRICS["bleu"])
