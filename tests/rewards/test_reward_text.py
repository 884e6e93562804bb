"""Length, form, copying, repeating and echoing as rewards, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_fakes import example

from dialtune.errors import ConfigError
from dialtune.rewards.base import score_safely
from dialtune.rewards.text import CopyReward, FormatReward, LengthReward, NoEcho, NoRepetition
from dialtune.types import Example, Message

TALK = example(dialogue="#Person1#: Please bring the blue folder to the second floor.\n#Person2#: I will.")


def one(reward, text: str, row: Example = TALK) -> float:
    found = score_safely(reward, [row], [text])
    assert not found.bad.any()
    return float(found.values[0])


def say(n: int) -> str:
    return " ".join(f"w{i}" for i in range(n))


# length


@pytest.mark.parametrize(
    ("n", "value"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (7, 1.0), (10, 1.0), (15, 0.5), (20, 0.0), (99, 0.0)]
)
def test_length_is_1_in_the_band_and_falls_in_straight_lines(n: int, value: float) -> None:
    assert one(LengthReward(4, 10), say(n)) == pytest.approx(value)


def test_the_band_may_follow_the_references() -> None:
    reward = LengthReward(0.5, 1.5, of="reference")
    row = example(references=(say(8), say(12)))  # mean 10: 5 to 15 words
    assert [one(reward, say(n), row) for n in (4, 5, 15, 24)] == pytest.approx([0.8, 1.0, 1.0, 0.4])
    assert np.isnan(one(reward, say(5), example()))
    assert np.isnan(one(reward, say(5), example(references=("...",))))
    assert (reward.needs, LengthReward().needs) == ("references", "")


def test_length_may_be_counted_in_anything() -> None:
    assert one(LengthReward(2, 4, count=len), "abc") == 1.0
    assert one(LengthReward(2, 4, count=len), "abcdef") == 0.5
    assert one(LengthReward(2, 4, count=len), "...") == 0.0  # nothing is said


@pytest.mark.parametrize(("low", "high"), [(0, 5), (5, 4), (-1, 3), (1, float("inf")), (float("nan"), 3)])
def test_a_band_is_positive_and_not_upside_down(low: float, high: float) -> None:
    with pytest.raises(ConfigError, match=r"^reward 'length': got .* to .*; allowed: 0 < low <= high$"):
        LengthReward(low, high)


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^reward 'length': of: got 'tokens'; known: absolute, reference$"):
        LengthReward(of="tokens")  # type: ignore[arg-type]


@given(st.text())
def test_text_rewards_stay_between_0_and_1(text: str) -> None:
    for reward in (LengthReward(), FormatReward(), CopyReward(), NoRepetition(), NoEcho()):
        assert 0.0 <= one(reward, text) <= 1.0


# form


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("#Person1# asks #Person2# for the folder.", 1.0),
        ("#Person3# asks for the folder.", 0.0),
        ("#Person 1# asks for the folder.", 0.0),
        ("Person1 asks for the folder.", 0.0),
        ("They agree.", 1.0),
        ("", 0.0),
        ("...", 0.0),
        ("a b c a b c", 0.75),  # abc bca cab abc: three of four are new
        ("no no no no no", pytest.approx(1 / 3)),
    ],
)
def test_form_is_legal_tags_times_what_is_not_said_again(text: str, value: float) -> None:
    assert one(FormatReward(), text) == value


def test_a_dialogue_without_speakers_has_no_tags_to_break() -> None:
    assert one(FormatReward(), "Person1 asks for it.", example(dialogue="Where is it?")) == 1.0


# copying


def test_copying_costs_beyond_the_free_share() -> None:
    copied = "bring the blue folder to the"  # six of six words are in one turn
    assert one(CopyReward(free=0.5), copied) == 0.0
    assert one(CopyReward(free=0.0), "#Person1# asks for it.") == 1.0
    half = f"{copied} one two three four five six"
    assert one(CopyReward(free=0.5), half) == 1.0
    assert one(CopyReward(free=0.0), half) == pytest.approx(0.5)
    assert one(CopyReward(free=0.25), half) == pytest.approx(2 / 3)  # 1 - 0.25 / 0.75
    assert one(CopyReward(), "...") == 0.0


@pytest.mark.parametrize("free", [1.0, -0.1, float("nan")])
def test_the_free_share_leaves_room(free: float) -> None:
    with pytest.raises(ConfigError, match=r"^reward 'copy': free: got .*; allowed: 0 up to, not including, 1$"):
        CopyReward(free)


def test_what_a_row_must_bring_is_said() -> None:
    assert (FormatReward().needs, CopyReward().needs) == ("dialogues", "dialogues")
    assert (NoRepetition().needs, NoEcho().needs) == ("", "a turn to answer")


# repeating and echoing


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("I like it a lot.", 1.0),
        ("Yes.", 1.0),  # too short to repeat anything
        ("I like it a lot, I like it a lot.", 5 / 7),  # ten words, seven runs of four, two of them again
        ("ha ha ha ha ha ha ha ha ha ha ha ha ha", 1 / 10),
        ("", 0.0),
        (" ?! ", 0.0),  # else silence would repeat nothing
    ],
)
def test_no_repetition_is_the_share_of_runs_said_for_the_first_time(text: str, value: float) -> None:
    assert one(NoRepetition(), text) == pytest.approx(value)


ASKED = Example("a#2", (Message("assistant", "Hi you two."), Message("user", "Do you like green tea with milk?")))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Only when it rains.", 1.0),
        ("Do you like green tea with milk?", 0.0),
        ("Oh, do you like green tea?", 0.25),  # oh-do-you is new; do-you-like, you-like-green, like-green-tea are not
        ("Hi you two.", 1.0),  # said before, and not in the last turn
        ("green tea", 1.0),  # two words are no echo
        ("", 0.0),
    ],
)
def test_no_echo_is_the_share_of_runs_that_the_last_turn_does_not_have(text: str, value: float) -> None:
    assert one(NoEcho(), text, ASKED) == pytest.approx(value)


def test_without_a_turn_to_answer_nothing_is_echoed_or_not() -> None:
    alone = Example("b", (Message("system", "Be kind to everybody."),))
    assert np.isnan(one(NoEcho(), "Be kind to everybody.", alone))
    assert one(NoRepetition(), "Be kind to everybody.", alone) == 1.0


@pytest.mark.parametrize(("reward", "good", "bad"), [
    (NoRepetition(), "I had it with lemon today.", "I had it with lemon, had it with lemon, had it with lemon."),
    (NoEcho(), "I had it with lemon today.", "Do you like green tea with milk too?"),
])  # fmt: skip
def test_what_repeats_or_echoes_earns_less_and_silence_least(reward, good: str, bad: str) -> None:
    assert one(reward, good, ASKED) > one(reward, bad, ASKED) > one(reward, "", ASKED)
