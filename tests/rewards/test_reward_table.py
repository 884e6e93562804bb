"""Rewards by name: every one builds, and a wrong name or setting is met with the right ones."""

from __future__ import annotations

from typing import get_args

import pytest
from reward_fakes import FakeScorer

from dialtune.config.rl_schema import RewardName
from dialtune.errors import ConfigError
from dialtune.rewards.table import REWARDS, find_reward


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What was asked of the table of scorers; nothing is opened."""
    calls: list[tuple[str, str | None]] = []

    def find(name: str, *, label: str | None = None) -> FakeScorer:
        calls.append((name, label))
        return FakeScorer(lambda text: -1.0, name)

    monkeypatch.setattr("dialtune.rewards.table.find_scorer", find)
    monkeypatch.setattr("dialtune.rewards.table.load_embedder", lambda: None)
    return calls


def test_the_names_are_those_of_the_recipe() -> None:
    assert sorted(REWARDS) == sorted(get_args(RewardName))


@pytest.mark.parametrize("name", REWARDS)
def test_every_reward_builds_bears_its_name_and_is_documented(name: str) -> None:
    reward = find_reward(name)
    assert reward.name == name
    assert reward.judges == ("toxicity" if name == "toxicity" else "other")  # type: ignore[attr-defined]
    assert REWARDS[name].__doc__
    assert find_reward(name, name="mine").name == "mine"


def test_toxicity_takes_the_packaged_scorer_or_any_other(asked: list[tuple[str, str | None]]) -> None:
    find_reward("toxicity")
    find_reward("toxicity", model="org/name", label="hate")
    assert find_reward("toxicity:org/name#hate").name == "toxicity:org/name#hate"
    find_reward("toxicity:lexicon")
    assert asked == [("minilm", None), ("org/name", "hate"), ("org/name", "hate"), ("lexicon", None)]


def test_settings_reach_the_reward() -> None:
    assert find_reward("length", low=2, high=3).low == 2  # type: ignore[attr-defined]
    assert find_reward("relevance_dialogue", capped=False).capped is False  # type: ignore[attr-defined]
    assert find_reward("relevance_reference").dialogue == 0.0  # type: ignore[attr-defined]
    assert find_reward("toxicity", saturation=2.0).saturation == 2.0  # type: ignore[attr-defined]
    assert find_reward("rougeL", reference="first").metric.reference == "first"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("relevence", "^reward 'relevence': unknown; did you mean 'relevance'\\? known: toxicity, "),
        ("xyz", "^reward 'xyz': unknown; known: toxicity, relevance, .*, toxicity:NAME#LABEL, or the folder of"),
        ("relevance:org/name", "^reward 'relevance:org/name': unknown; known"),
        ("", "^reward '': unknown; known"),
    ],
)
def test_an_unknown_name_is_met_with_the_known_ones(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        find_reward(name)


def test_an_unknown_setting_is_met_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^reward 'length': no setting 'lo'; known: low, high, of, name$"):
        find_reward("length", lo=3)


@pytest.mark.parametrize(("limit", "saturation"), [(0.0, 4.0), (8.0, -8.0), (8.0, float("nan"))])
def test_bounds_of_civility_must_leave_room(limit: float, saturation: float) -> None:
    with pytest.raises(ConfigError, match=r"^reward 'toxicity': got limit .*; allowed: -limit < saturation$"):
        find_reward("toxicity", limit=limit, saturation=saturation)
