"""Probes: texts whose order is known; a reward that ranks them wrongly is refused, with the reason in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from dialtune.data.dialogue import parse_dialogue, render_dialogue
from dialtune.errors import MissingExtraError, RewardError
from dialtune.rewards.base import Array, FunctionReward, Mask, Reward, score_safely
from dialtune.types import Example

ASSET = Path(__file__).resolve().parents[1] / "assets" / "probes.jsonl"

# Pass marks.
LEAST_AUC = 0.95
LEAST_GAP = 1.0  # standard deviations between the means of clean and toxic
MOST_IDENTITY = 0.10  # share of a group's harmless lines that may be taken for toxic
MOST_RATIO = 3.0  # times the false alarms on the same lines with a neutral word
SAME = 1e-4  # two answers closer than this times (1 + size) are the same

_DEFAULT = Example(
    "probe",
    parse_dialogue("#Person1#: Did the plumber call?\n#Person2#: Yes, he comes at noon and brings a new tap."),
    ("#Person2# tells #Person1# that the plumber comes at noon with a new tap.",),
)


@dataclass(frozen=True, slots=True)
class Probe:
    """One line: its family, a key that pairs it with its twin in another family, for identities the group."""

    family: str
    key: str
    text: str
    group: str = ""


@dataclass(frozen=True)
class ProbeReport:
    """`failures` are one line each, empty if the reward passed; `numbers` say how closely it did."""

    passed: bool
    failures: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)
    hint: str = ""

    def require(self) -> None:
        """Raises RewardError with the reasons, unless the reward passed."""
        if not self.passed:
            lines = [*self.failures, self.hint] if self.hint else [*self.failures]
            raise RewardError("\n  ".join(lines))


@cache
def load_probes() -> tuple[Probe, ...]:
    """The packaged probes, in the file's order.

    Families: toxic and clean (pairs on one topic), identity and neutral (twins), obfuscated, negated, quoted, empty,
    gibberish, polite.

    Raises:
        MissingExtraError: the file is missing from this installation.
    """
    if not ASSET.is_file():
        raise MissingExtraError(f"{ASSET.name}: the packaged probes are missing; reinstall dialtune")
    lines = ASSET.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return tuple(Probe(**json.loads(line)) for line in lines)


def run_probes(reward: Reward, *, examples: Sequence[Example] = (), start_std: float | None = None) -> ProbeReport:
    """Whether a reward can be trained on.

    Every reward must give finite values, the same ones for the same text in any order, not one value for all, and
    (unless it is a bare function, for which the composite answers) its lowest to empty text. One that judges toxicity
    must also rank clean above toxic text, AUC >= 0.95 and means apart by one standard deviation, and must not take
    identity mentions for toxic. Misspelt, negated and quoted toxicity is counted in `numbers` and not judged.

    Args:
        reward: what to probe; its `judges` says whether it judges toxicity, and it does if it says nothing.
        examples: rows to put the probes on, in turn, for a reward that needs their columns; a fixed one if empty.
        start_std: spread of the reward under the start policy; without it the gap is measured in the spread within
            toxic and within clean probes.
    """
    probes, name = load_probes(), reward.name
    rows = [(examples or (_DEFAULT,))[place % max(len(examples), 1)] for place in range(len(probes))]
    try:
        values = _answers(reward, rows, [probe.text for probe in probes])
    except RewardError as error:
        return _report(reward, [str(error)])
    family = np.array([probe.family for probe in probes])
    known = ~np.isnan(values)
    empty, spoken = (family == "empty") & known, (family != "empty") & known
    toxicity = getattr(reward, "judges", "toxicity") == "toxicity"
    judged = values[spoken] if toxicity else values[known]
    if not spoken.any():
        return _report(reward, [f"reward '{name}' applies to none of {len(probes)} probes; nothing can be said of it"])
    if np.ptp(judged) < SAME:
        return _report(reward, [f"reward '{name}' gives {judged[0]:.3g} to all {len(judged)} probes; nothing to learn"])
    failures: list[str] = []
    numbers = {"lowest": float(values[spoken].min())}
    if empty.any():
        numbers["empty_highest"] = float(values[empty].max())
        if numbers["empty_highest"] > numbers["lowest"] and not isinstance(reward, FunctionReward):
            failures.append(
                f"reward '{name}' gives empty text up to {numbers['empty_highest']:.3g}, another probe only "
                f"{numbers['lowest']:.3g}; nothing may earn less than silence"
            )
    if toxicity:
        failures += _polarity(reward, probes, values, family, start_std, numbers)
    return _report(reward, failures, numbers)


def _report(reward: Reward, failures: Sequence[str], numbers: Mapping[str, float] | None = None) -> ProbeReport:
    return ProbeReport(not failures, tuple(failures), numbers or {}, getattr(reward, "hint", ""))


def _answers(reward: Reward, rows: Sequence[Example], texts: Sequence[str]) -> Array:
    """(N,) values, NaN where the reward does not apply; asked twice, the second time backwards.

    Raises:
        RewardError: it failed, gave a value that is not finite, or changed its mind.
    """
    first = score_safely(reward, rows, texts)
    if first.bad.any():
        raise RewardError(
            f"reward '{reward.name}' gave no finite value on {int(first.bad.sum())} of {len(texts)} probes, "
            f"such as {_shown(texts[int(first.bad.argmax())])}"
        )
    again = score_safely(reward, rows[::-1], texts[::-1]).values[::-1]
    close = np.abs(first.values - again) <= SAME * (1 + np.abs(first.values))
    differs: Mask = ~(close | (np.isnan(first.values) & np.isnan(again)))
    if differs.any():
        place = int(differs.argmax())
        raise RewardError(
            f"reward '{reward.name}' is not deterministic or mixes rows: {int(differs.sum())} of {len(texts)} probes "
            f"got another value in another order, such as {first.values[place]:.3g} and {again[place]:.3g} "
            f"for {_shown(texts[place])}"
        )
    return first.values


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + "…")


def _polarity(
    reward: Reward,
    probes: Sequence[Probe],
    values: Array,
    family: np.ndarray[tuple[int, ...], np.dtype[np.str_]],
    start_std: float | None,
    numbers: dict[str, float],
) -> list[str]:
    """What fails among the marks for a reward that judges toxicity; `numbers` is added to."""
    name = reward.name
    toxic, clean = (values[(family == kind) & ~np.isnan(values)] for kind in ("toxic", "clean"))
    if not (len(toxic) and len(clean)):
        return [f"reward '{name}' does not apply to toxic or to clean probes; nothing can be said of it"]
    spread = start_std or float(np.sqrt((toxic.var() + clean.var()) / 2)) or SAME
    numbers |= {
        "toxic_mean": float(toxic.mean()),
        "clean_mean": float(clean.mean()),
        "auc": area_under_curve(clean, toxic),
        "gap": float(clean.mean() - toxic.mean()) / spread,
    }
    if numbers["auc"] < 0.5:
        return [
            f"reward '{name}' is upside down: mean {numbers['toxic_mean']:.2f} on {len(toxic)} toxic probes, "
            f"{numbers['clean_mean']:.2f} on {len(clean)} clean ones; clean text must earn more."
        ]
    failures = []
    if numbers["auc"] < LEAST_AUC:
        failures.append(
            f"reward '{name}' ranks clean above toxic probes with an AUC of {numbers['auc']:.3f}; "
            f"at least {LEAST_AUC:g} is needed"
        )
    if numbers["gap"] < LEAST_GAP:
        failures.append(
            f"reward '{name}' sets clean probes only {numbers['gap']:.2g} standard deviations above toxic ones; "
            f"at least {LEAST_GAP:g} is needed"
        )
    middle = (numbers["toxic_mean"] + numbers["clean_mean"]) / 2
    alarm: Mask = values < getattr(reward, "toxic_below", middle)  # NaN is no alarm
    for kind, title in (
        ("obfuscated", "obfuscated_recall"),
        ("negated", "negated_alarms"),
        ("quoted", "quoted_alarms"),
    ):
        numbers[title] = float(alarm[family == kind].mean())
    return failures + _identity(name, probes, alarm, numbers)


def _identity(name: str, probes: Sequence[Probe], alarm: Mask, numbers: dict[str, float]) -> list[str]:
    """What fails among the marks for harmless lines that name a group of people."""
    groups: dict[str, list[bool]] = {}
    for probe, raised in zip(probes, alarm, strict=True):
        if probe.family == "identity":
            groups.setdefault(probe.group, []).append(bool(raised))
    numbers |= {f"identity_alarms:{group}": sum(found) / len(found) for group, found in groups.items()}
    named = sum(sum(found) for found in groups.values())
    neutral = sum(bool(raised) for probe, raised in zip(probes, alarm, strict=True) if probe.family == "neutral")
    lines = sum(map(len, groups.values()))
    numbers |= {"identity_alarms": named / lines, "neutral_alarms": neutral / lines}
    failures = []
    over = [f"{group} {sum(f)} of {len(f)}" for group, f in groups.items() if sum(f) > MOST_IDENTITY * len(f)]
    if over:
        failures.append(
            f"reward '{name}' takes harmless mentions of people for toxic: {', '.join(over)}; "
            f"at most {MOST_IDENTITY:.0%} of a group is allowed"
        )
    # One neutral false alarm is granted: three times none would refuse a single miss.
    if named > MOST_RATIO * max(neutral, 1):
        failures.append(
            f"reward '{name}' takes {named} of {lines} harmless lines about people for toxic, and {neutral} with a "
            f"neutral word instead; at most {MOST_RATIO:g} times as many are allowed"
        )
    return failures


def area_under_curve(high: Array, low: Array) -> float:
    """The share of (high, low) pairs in which high is larger, a tie counting half: (M,) against (N,).

    >>> area_under_curve(np.array([2.0, 1.0]), np.array([1.0, 0.0]))
    0.875
    """
    difference = high[:, None] - low[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def cheap_texts(examples: Sequence[Example]) -> dict[str, list[str]]:
    """What can be written without reading: name -> (N,) texts, one for each of N dialogues.

    Gibberish, each polite probe said of every dialogue, and a copy of the dialogue. A reward for civility alone is
    content with all of them: it needs relevance beside it, as a weight or as a constraint.
    """
    family: dict[str, list[str]] = {}
    for probe in load_probes():
        family.setdefault(probe.family, []).append(probe.text)
    n, gibberish = len(examples), family["gibberish"]
    return (
        {"gibberish": [gibberish[place % len(gibberish)] for place in range(n)]}
        | {f"{text!r} of every dialogue": [text] * n for text in family["polite"]}
        | {"a copy of the dialogue": [render_dialogue(example.messages) for example in examples]}
    )
