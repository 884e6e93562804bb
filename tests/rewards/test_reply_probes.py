"""Probes of replies: what they hold, and that each kind of bad reward is refused for its own reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from dialtune.errors import MissingExtraError, RewardError
from dialtune.rewards import reply_probes as module
from dialtune.rewards.base import Array
from dialtune.rewards.reply_probes import UNRELATED, load_reply_probes, run_reply_probes
from dialtune.types import Example


class Judge:
    """A reward made of a function of (context turns, reply, the fitting reply)."""

    judges, name, hint = "reply", "judge", "It is a test."

    def __init__(self, value: Callable[[list[str], str, str], float]) -> None:
        self.value = value

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        rows = zip(examples, completions, strict=True)
        return np.array([self.value([m.content for m in e.messages], c, e.references[0]) for e, c in rows])


def knows(context: list[str], reply: str, fitting: str) -> float:
    return 1.0 if reply == fitting else 0.5 if reply else 0.0


def test_the_probes_are_short_dialogues_that_differ_in_every_word_that_counts():
    probes = load_reply_probes()
    assert len(probes) >= 20
    assert len({probe.key for probe in probes}) == len({probe.reply for probe in probes}) == len(probes)
    for probe in probes:
        assert 2 <= len(probe.context) <= 3
        assert probe.reply not in probe.context
        assert all(text.strip() == text and text.isascii() for text in (*probe.context, probe.reply))
        example = probe.example
        assert [message.content for message in example.messages] == list(probe.context)
        assert example.messages[-1].role == "user"  # the reply is the assistant's
        assert all(one.role != other.role for one, other in zip(example.messages, example.messages[1:], strict=False))


def test_a_missing_file_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    load_reply_probes.cache_clear()
    monkeypatch.setattr(module, "ASSET", tmp_path / "reply_probes.jsonl")
    with pytest.raises(MissingExtraError, match=r"reply_probes\.jsonl: the packaged probes are missing; reinstall"):
        load_reply_probes()


def test_an_unrelated_reply_is_never_the_own_one():
    n = len(load_reply_probes())
    assert all(step % n for step in UNRELATED)


def test_a_reward_that_knows_passes_and_says_how_well():
    report = run_reply_probes(Judge(knows))
    report.require()
    assert report.passed
    assert report.numbers == {"beats an unrelated one": 1.0, "beats an echo of the last turn": 1.0}


@pytest.mark.parametrize(
    ("value", "lines"),
    [
        (
            lambda context, reply, fitting: -knows(context, reply, fitting),
            [
                "above an unrelated one in 0%",
                "above an echo of the last turn in 0%",
                "gives silence as much as a fitting",
            ],
        ),
        (
            lambda context, reply, fitting: 2.0 if reply == context[-1] else knows(context, reply, fitting),
            ["puts a fitting reply above an echo of the last turn in 0% of the reply probes; at least 80% is needed"],
        ),
        (lambda context, reply, fitting: float(len(reply) > 0), ["an unrelated one in 0%", "an echo"]),
        (
            lambda context, reply, fitting: knows(context, reply, fitting) if reply else 1.0,
            ["gives silence as much as a fitting reply in 24 of 24 probes"],
        ),
    ],
)
def test_a_bad_reward_is_refused_for_its_own_reason(value: Callable[..., float], lines: list[str]):
    report = run_reply_probes(Judge(value))
    assert not report.passed
    assert len(report.failures) == len(lines)
    for failure, line in zip(report.failures, lines, strict=True):
        assert line in failure
        assert failure.startswith("reward 'judge' ")
    with pytest.raises(RewardError, match=r"reward 'judge'[^$]*It is a test\."):
        report.require()


def test_four_of_five_are_enough_and_fewer_are_not():
    """24 probes: an echo may win 4 of them (83 % left) and not 5 (79 %)."""
    keys = [probe.context[-1] for probe in load_reply_probes()]

    def fooled(n: int) -> Judge:
        tricked = set(keys[:n])
        return Judge(lambda context, reply, fitting: 2.0 if reply in tricked else knows(context, reply, fitting))

    assert run_reply_probes(fooled(4)).passed
    assert not run_reply_probes(fooled(5)).passed


def test_a_value_that_is_missing_is_said_and_not_a_crash():
    report = run_reply_probes(Judge(lambda context, reply, fitting: float("nan") if reply == fitting else 1.0))
    assert report.failures == ("reward 'judge' gave no value on 24 of 24 reply probes",)


def test_a_reward_that_breaks_is_said_and_not_a_crash():
    def broken(*_arguments: object) -> float:
        raise ZeroDivisionError("division by zero")

    report = run_reply_probes(Judge(broken))
    assert not report.passed
    assert "failed twice: ZeroDivisionError: division by zero" in report.failures[0]
