"""Civility: bounded, saturated, worst for silence, and honest about a broken scorer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_fakes import FakeScorer, example

from dialtune.rewards.base import score_safely
from dialtune.rewards.toxicity import Civility


def civility(logits: dict[str, float], **settings: float):
    reward = Civility(FakeScorer(lambda text: logits[text]), **settings)
    return reward.scores([example()] * len(logits), list(logits)).tolist()


def test_civility_is_minus_the_logit_between_its_bounds() -> None:
    # s = clip(-logit, -8, 4).
    assert civility({"a": 0.0, "b": 2.5, "c": -3.0, "d": 9.0, "e": -5.0}) == [0.0, -2.5, 3.0, -8.0, 4.0]
    assert civility({"a": 3.0, "b": -3.0}, limit=2.0, saturation=1.0) == [-2.0, 1.0]


def test_the_saturation_is_a_probability_of_about_two_percent() -> None:
    assert 1 / (1 + np.exp(Civility.saturation)) == pytest.approx(0.02, abs=0.005)


@pytest.mark.parametrize("text", ["", " ", "...", "🙂", "\n\t"])
def test_text_without_letters_or_digits_earns_the_least(text: str) -> None:
    assert civility({text: -20.0}) == [-8.0]


@given(st.floats(-50, 50), st.floats(-50, 50))
def test_more_toxic_never_earns_more(one: float, other: float) -> None:
    low, high = civility({"a": max(one, other), "b": min(one, other)})
    assert -8.0 <= low <= high <= 4.0


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), -float("inf")])
def test_a_logit_that_is_not_finite_stays_a_fault(logit: float) -> None:
    reward = Civility(FakeScorer(lambda text: logit))
    found = score_safely(reward, [example()], ["text"])
    assert found.bad.tolist() == [True]


def test_the_hint_names_label_and_scorer() -> None:
    assert Civility(FakeScorer(len, label="hate")).hint == "It reads label 'hate' of the scorer 'fake'."
    assert Civility(FakeScorer(len, label="")).hint == "It reads the scorer 'fake'."
