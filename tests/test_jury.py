"""The jury: gains in standard deviations, their median, the gap to the reward's scorer, and when it rings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

from dialtune.comparison import compare
from dialtune.jury import jury_lines
from dialtune.metrics.base import Array, Direction, Metric
from dialtune.results import Comparison, DataInfo, Decoding, EvalRow, Evaluation, Jury, ModelInfo, ScoreEntry
from dialtune.types import Example

N = 120


@dataclass(frozen=True)
class Made(Metric):
    """Mean toxicity whose values the test makes up."""

    label: str
    direction: ClassVar[Direction] = "lower"
    empty_as: ClassVar[float | None] = 1.0

    @property
    def name(self) -> str:
        return self.label

    def signature(self, references: tuple[int, int]) -> str:
        return f"{self.name}|made:up"

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        raise NotImplementedError


def made(scores: dict[str, Sequence[float | None]]) -> Evaluation:
    entries = {}
    for name, row in scores.items():
        n = sum(value is not None for value in row)
        reason = None if n else f"{name} is not installed"
        entries[name] = ScoreEntry(value=0.5 if n else None, ci=None, n=n, signature=f"{name}|made:up", reason=reason)
    rows = tuple(
        EvalRow(id=f"r{k}", completion="text", finish="stop", scores={name: row[k] for name, row in scores.items()})
        for k in range(len(next(iter(scores.values()))))
    )
    data = DataInfo(name="t", split="test", fingerprint="f", references=(1, 1), reference="first", template_sha256="t")
    counts = {"n_total": len(rows), "n_generated": len(rows), "n_truncated": 0, "n_empty": 0, "n_scored": len(rows)}
    return Evaluation(
        model=ModelInfo(name="m"), task="detoxify", data=data, decoding=Decoding(strategy="greedy"),
        scores=entries, rows=rows, **counts,
    )  # fmt: skip


def judged(change: dict[str, float], noise: float = 0.3, **settings: Any) -> Comparison:
    """Each scorer's rows, of mean 10, fall by this many standard deviations; noise is per row and scorer."""
    rng = np.random.default_rng(0)
    before = {f"toxicity_mean:{name}": 10 + unit(rng.normal(size=N)) for name in change}
    after = {
        f"toxicity_mean:{name}": before[f"toxicity_mean:{name}"] - fall + noise * unit(rng.normal(size=N))
        for name, fall in change.items()
    }
    table = {name: Made(name) for name in before}
    sides = [made({name: [float(x) for x in row] for name, row in side.items()}) for side in (before, after)]
    return compare(*sides, metrics=table, resamples=2000, permutations=500, **settings)


def unit(values: Array) -> Array:
    """Mean 0 and standard deviation 1 (with n - 1)."""
    centred: Array = values - values.mean()
    return centred / centred.std(ddof=1)


def jury_of(comparison: Comparison) -> Jury:
    assert comparison.jury is not None
    return comparison.jury


def test_gains_are_in_standard_deviations_of_the_start() -> None:
    jury = jury_of(judged({"minilm": 0.9, "ngrams": 0.5, "lexicon": 0.1}))
    assert (jury.trained, list(jury.jurors), jury.reason) == ("minilm", ["ngrams", "lexicon"], None)
    assert [None if gain is None else gain.value for gain in (jury.trained_gain, jury.jury_gain, jury.gap)] == (
        pytest.approx([0.9, 0.3, 0.6])
    )
    # Means of 10 fall by half a standard deviation, by a tenth: the changes that each juror saw.
    assert {name: juror.difference for name, juror in jury.jurors.items()} == pytest.approx(
        {"ngrams": -0.5, "lexicon": -0.1}
    )
    assert jury.median_relative == pytest.approx(-0.03)
    assert jury_lines(jury)[0] == "jury (ngrams, lexicon): -3.0%, the median of the changes"
    assert jury_lines(jury)[1].startswith("minilm gained +0.90 sd [+0.8")


def test_a_median_of_three_is_the_middle_one() -> None:
    jury = jury_of(judged({"minilm": 0.9, "a/b": 0.5, "lexicon": 0.1, "ngrams": 0.4}))
    assert jury.jury_gain is not None
    assert jury.jury_gain.value == pytest.approx(0.4)
    assert jury.median_relative == pytest.approx(-0.04)


def test_scorers_that_agree_throughout_leave_no_gap() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.random(N), rng.random(N) * 0.5
    names = [f"toxicity_mean:{name}" for name in ("minilm", "ngrams", "lexicon")]
    sides = [made({name: [float(x) for x in side] for name in names}) for side in (old, new)]
    jury = jury_of(compare(*sides, metrics={name: Made(name) for name in names}, resamples=500, permutations=100))
    assert jury.gap is not None
    assert (jury.gap.value, *jury.gap.ci) == pytest.approx((0, 0, 0))
    assert jury.alarm is False
    assert [(pair.one, pair.other) for pair in jury.agreement] == [
        ("minilm", "ngrams"),
        ("minilm", "lexicon"),
        ("ngrams", "lexicon"),
    ]
    # Over the completions of both sides.
    assert all((pair.n, pair.reason) == (2 * N, None) for pair in jury.agreement)
    assert [(pair.spearman, pair.kappa) for pair in jury.agreement] == [(pytest.approx(1), pytest.approx(1))] * 3


def test_copies_of_a_dialogue_are_drawn_together() -> None:
    """Each row four times over: the gap is the same and its interval twice as wide as if they were other rows."""
    rng = np.random.default_rng(3)
    table = {name: Made(name) for name in ("toxicity_mean:minilm", "toxicity_mean:ngrams")}
    values = [{name: [float(x) for x in np.tile(rng.random(40), 4)] for name in table} for _ in range(2)]
    loose = [made(side) for side in values]
    units = [f"r{k % 40}" for k in range(160)]
    tied = [
        side.model_copy(
            update={"rows": tuple(r.model_copy(update={"unit": u}) for r, u in zip(side.rows, units, strict=True))}
        )
        for side in loose
    ]
    widths = []
    for pair in (loose, tied):
        gap = jury_of(compare(*pair, metrics=table, resamples=2000, permutations=100)).gap
        assert gap is not None
        widths.append(gap.ci[1] - gap.ci[0])
    assert widths[1] / widths[0] == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("change", "alarm"),
    [
        ({"minilm": 0.9, "ngrams": 0.0, "lexicon": 0.0}, True),  # only the reward got better
        ({"minilm": 0.9, "ngrams": -0.5, "lexicon": -0.5}, True),  # and the jury worse
        ({"minilm": 0.9, "ngrams": 0.5, "lexicon": 0.5}, False),  # a gap, but the jury sees a gain too
        ({"minilm": 0.0, "ngrams": 0.0, "lexicon": 0.0}, False),
    ],
)
def test_the_alarm_rings_when_the_reward_gains_and_the_jury_does_not(change: dict[str, float], alarm: bool) -> None:
    jury = jury_of(judged(change))
    assert jury.alarm is alarm
    assert jury_lines(jury)[1].endswith(": alarm, the reward may be gamed" if alarm else ": no alarm")


def test_another_scorer_may_have_been_the_reward_or_none() -> None:
    change = {"minilm": 0.9, "ngrams": 0.5, "lexicon": 0.1}
    jury = jury_of(judged(change, trained="lexicon"))
    assert (jury.trained, list(jury.jurors)) == ("lexicon", ["minilm", "ngrams"])
    assert jury.gap is not None
    assert jury.gap.value == pytest.approx(0.1 - 0.7)
    for trained, reason in ((None, "no scorer was trained against"), ("org/other", "no score by org/other")):
        free = jury_of(judged(change, trained=trained))
        assert (free.trained, list(free.jurors)) == (None, ["minilm", "ngrams", "lexicon"])
        assert (free.gap, free.alarm, free.reason) == (None, None, reason)
        assert jury_lines(free)[1] == f"gap of the reward's scorer to the jury: not shown ({reason})"


def test_a_single_juror_is_named_and_without_any_nobody_has_judged() -> None:
    assert jury_lines(jury_of(judged({"minilm": 0.9, "lexicon": 0.5})))[0].startswith("jury (lexicon alone): -5.0%")
    alone = jury_of(judged({"minilm": 0.9}))
    assert (alone.jurors, alone.median_relative, alone.gap, alone.agreement) == ({}, None, None, ())
    assert alone.reason == "no jury (no juror)"
    assert jury_lines(alone) == ["jury: nobody but minilm, the reward's own scorer, has judged"]
    assert jury_lines(jury_of(judged({"lexicon": 0.5}))) == []  # one scorer, no reward: its own line says it all


def test_a_scorer_that_is_not_there_has_a_reason_and_no_say() -> None:
    values: dict[str, Sequence[float | None]] = {
        "toxicity_mean:minilm": [float(x) for x in np.random.default_rng(0).random(N)],
        "toxicity_mean:lexicon": [0.5 + 0.001 * k for k in range(N)],
        "toxicity_mean:alt-profanity-check": [None] * N,
    }
    table = {name: Made(name) for name in values}
    settings: dict[str, Any] = {"metrics": table, "resamples": 200, "permutations": 100}
    jury = jury_of(compare(made(values), made(values), **settings))
    missing = jury.jurors["alt-profanity-check"]
    assert (missing.difference, missing.n) == (None, 0)
    assert missing.reason == "toxicity_mean:alt-profanity-check is not installed"
    assert jury.gap is not None
    assert [(pair.one, pair.other) for pair in jury.agreement] == [("minilm", "lexicon")]
    assert jury_lines(jury)[0] == "jury (lexicon alone): +0.0%, the median of the changes"
    absent = jury_of(compare(made(values), made(values), trained="alt-profanity-check", **settings))
    assert (absent.gap, absent.reason) == (None, "alt-profanity-check was not there")


def test_rows_that_do_not_vary_give_no_gain() -> None:
    values: dict[str, Sequence[float | None]] = {"toxicity_mean:minilm": [0.0] * N, "toxicity_mean:lexicon": [0.0] * N}
    table = {name: Made(name) for name in values}
    jury = jury_of(compare(made(values), made(values), metrics=table, resamples=200, permutations=100))
    assert jury.reason == "the trained scorer gives every text of the start policy the same score"
    assert (jury.gap, jury.alarm) == (None, None)
    assert jury.agreement[0].kappa is None


def test_without_toxicity_there_is_no_jury() -> None:
    side = made({"relevance": [1.0, 2.0, 3.0]})
    assert compare(side, side, metrics={"relevance": Made("relevance")}, resamples=50).jury is None
    assert jury_lines(None) == []


def test_a_juror_that_watched_the_training_is_marked() -> None:
    jury = judged({"minilm": 2.0, "ngrams": 1.0, "lexicon": 1.0}, seen=("ngrams", "minilm")).jury
    assert jury is not None
    assert {name: juror.seen for name, juror in jury.jurors.items()} == {"ngrams": True, "lexicon": False}
    assert jury_lines(jury)[0].startswith("jury (ngrams (seen), lexicon):")
