"""Probes of replies: short dialogues in which a fitting reply must beat an unrelated one, an echo and silence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from dialtune.errors import MissingExtraError, RewardError
from dialtune.rewards.base import Array, Reward, score_safely
from dialtune.rewards.probes import ProbeReport
from dialtune.types import Example, Message

ASSET = Path(__file__).resolve().parents[1] / "assets" / "reply_probes.jsonl"

LEAST_WINS = 0.80  # share of comparisons that the fitting reply must win, against each kind of wrong one
UNRELATED = (1, 5, 11)  # the replies of the probes so many places further on


@dataclass(frozen=True, slots=True)
class ReplyProbe:
    """What was said, oldest turn first, and a reply that fits there and nowhere else."""

    key: str
    context: tuple[str, ...]
    reply: str

    @property
    def example(self) -> Example:
        """The context as a row, its turns by two people in turn, the last one to be answered."""
        n = len(self.context)
        roles = ["assistant" if (n - place) % 2 == 0 else "user" for place in range(n)]
        turns = tuple(Message(role, text) for role, text in zip(roles, self.context, strict=True))  # type: ignore[arg-type]
        return Example(f"probe {self.key}", turns, (self.reply,), {"dialogue": self.key, "turn": n})


@cache
def load_reply_probes() -> tuple[ReplyProbe, ...]:
    """The packaged probes, in the file's order.

    Raises:
        MissingExtraError: the file is missing from this installation.
    """
    if not ASSET.is_file():
        raise MissingExtraError(f"{ASSET.name}: the packaged probes are missing; reinstall dialtune")
    rows = map(json.loads, ASSET.read_text(encoding="utf-8").splitlines())
    return tuple(ReplyProbe(row["key"], tuple(row["context"]), row["reply"]) for row in rows)


def run_reply_probes(reward: Reward) -> ProbeReport:
    """Whether a reward that judges replies can be trained on.

    On four of five comparisons at least the fitting reply must earn more than the reply of another dialogue, and more
    than the last turn said again; and on every probe more than silence. `numbers` say how often it does.
    """
    probes, name = load_reply_probes(), reward.name
    wrong = [probes[(row + step) % len(probes)].reply for step in UNRELATED for row in range(len(probes))]
    try:
        fits = _values(reward, probes, [probe.reply for probe in probes])
        unrelated = _values(reward, probes * len(UNRELATED), wrong)
        echo = _values(reward, probes, [probe.context[-1] for probe in probes])
        silence = _values(reward, probes, [""] * len(probes))
    except RewardError as error:
        return ProbeReport(False, (str(error),), hint=getattr(reward, "hint", ""))
    shares = {
        "an unrelated one": float((np.tile(fits, len(UNRELATED)) > unrelated).mean()),
        "an echo of the last turn": float((fits > echo).mean()),
    }
    failures = [
        f"reward '{name}' puts a fitting reply above {what} in {share:.0%} of the reply probes; at least "
        f"{LEAST_WINS:.0%} is needed"
        for what, share in shares.items()
        if share < LEAST_WINS
    ]
    if (silent := int((fits <= silence).sum())) > 0:
        failures.append(f"reward '{name}' gives silence as much as a fitting reply in {silent} of {len(probes)} probes")
    numbers = {f"beats {what}": share for what, share in shares.items()}
    return ProbeReport(not failures, tuple(failures), numbers, getattr(reward, "hint", ""))


def _values(reward: Reward, probes: Sequence[ReplyProbe], texts: Sequence[str]) -> Array:
    """(N,) values.

    Raises:
        RewardError: some are missing; a reward of replies has something to say about every reply.
    """
    values = score_safely(reward, [probe.example for probe in probes], texts).values
    if missing := int(np.isnan(values).sum()):
        raise RewardError(f"reward '{reward.name}' gave no value on {missing} of {len(texts)} reply probes")
    return values
