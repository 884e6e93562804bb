"""Comparisons: what is refused, what is concluded, what a gate demands, and in which words."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from dialtune.comparison import (
    check_requirements,
    compare,
    describe,
    parse_gates,
    read_comparison,
    write_comparison,
)
from dialtune.data.reading import DataSet
from dialtune.errors import ConfigError, DataError, GateFailedError, NotComparableError
from dialtune.evaluation import evaluate_completions
from dialtune.metrics.base import Array, Direction, Metric
from dialtune.metrics.table import METRICS
from dialtune.results import Comparison, DataInfo, Decoding, Entry, EvalRow, Evaluation, ModelInfo, ScoreEntry, to_json
from dialtune.statistics import n_paired, paired_interval, sign_flip_p
from dialtune.types import Completion, Example, Message
from dialtune.verdicts import Rule, decide

GREEDY = Decoding(strategy="greedy", max_new_tokens=64)


@dataclass(frozen=True)
class Made(Metric):
    """A row-wise score whose values the test makes up."""

    label: str
    better: Direction
    true_zero: bool = True
    empty_as: float | None = None
    percent: int | None = None

    @property
    def name(self) -> str:
        return self.label

    @property
    def direction(self) -> Direction:
        return self.better

    def signature(self, references: tuple[int, int]) -> str:
        return f"{self.name}|made:up"

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        raise NotImplementedError


TABLE: dict[str, Metric] = {
    "toxicity_mean": Made("toxicity_mean", "lower"),
    "relevance": Made("relevance", "higher"),
    "margin": Made("margin", "higher", true_zero=False),
    "length": Made("length", None),
    "toxicity_mean:a": Made("toxicity_mean:a", "lower", empty_as=1.0),
    "toxicity_mean:b": Made("toxicity_mean:b", "lower", empty_as=1.0),
    "toxicity_p95:a": Made("toxicity_p95:a", "lower", empty_as=1.0, percent=95),
    "relevance_reference": Made("relevance_reference", "higher"),
    "rougeL": Made("rougeL", "higher"),
    "toxic_copied:a": Made("toxic_copied:a", None),
    "toxic_invented:a": Made("toxic_invented:a", None),
}


def made(scores: dict[str, Sequence[float | None]], **changes: Any) -> Evaluation:
    """An evaluation with these values per row; `changes` replace parts of it, dots becoming double underscores."""
    n = len(next(iter(scores.values())))
    rows = tuple(
        EvalRow(id=f"r{k}", completion="text", finish="stop", scores={name: row[k] for name, row in scores.items()})
        for k in range(n)
    )
    data = {"name": "toy", "split": "test", "fingerprint": "f1", "references": (1, 1), "reference": "first"}
    fields: dict[str, Any] = {
        "model": ModelInfo(name="m"),
        "task": "detoxify",
        "data": DataInfo(**{**data, "template_sha256": "t1", **changes.pop("data", {})}),
        "decoding": GREEDY,
        "n_total": n,
        "n_generated": n,
        "n_truncated": 0,
        "n_empty": 0,
        "n_scored": n,
        "scores": {
            name: ScoreEntry(value=0.5, ci=None, n=n, signature=TABLE[name].signature((1, 1))) for name in scores
        },
        "rows": rows,
    }
    return Evaluation(**{**fields, **changes})


def normal(mean: float, sd: float, n: int, seed: int = 0) -> list[float]:
    values = np.random.default_rng(seed).normal(size=n)
    return [float(x) for x in mean + sd * (values - values.mean()) / values.std()]


def quick(before: Evaluation, after: Evaluation, **settings: Any) -> Comparison:
    settings.setdefault("resamples", 1000)
    settings.setdefault("permutations", 2000)
    return compare(before, after, metrics=TABLE, **settings)


def shifted(n: int, shift: float, sd: float = 1.0, seed: int = 0, name: str = "relevance") -> Comparison:
    base = normal(5.0, 1.0, n, seed=99)
    moved = [x + d for x, d in zip(base, normal(shift, sd, n, seed=seed), strict=True)]
    return quick(made({name: base}), made({name: moved}))


# --- what is concluded ---


def test_numbers_of_an_entry_are_those_of_the_statistics() -> None:
    old, new = normal(5, 1, 250, seed=1), normal(5.3, 1, 250, seed=2)
    entry = compare(made({"relevance": old}), made({"relevance": new}), metrics=TABLE).scores["relevance"]
    d = np.subtract(new, old)
    assert entry.before == pytest.approx(5)
    assert entry.after == pytest.approx(5.3)
    assert entry.difference == pytest.approx(0.3)
    assert entry.relative == pytest.approx(0.06)
    assert entry.ci == pytest.approx(paired_interval(d, seed=4), abs=0.01)
    assert entry.p == pytest.approx(sign_flip_p(d, seed=4), abs=0.002)
    assert entry.effect is not None
    assert entry.effect.dz == pytest.approx(d.mean() / d.std(ddof=1))
    assert entry.effect.better + entry.effect.worse == 1


def test_a_clear_change_is_improved_or_worse_by_direction() -> None:
    assert shifted(200, 1.0).scores["relevance"].verdict == "improved"
    assert shifted(200, -1.0).scores["relevance"].verdict == "worse"
    assert shifted(200, -1.0, name="toxicity_mean").scores["toxicity_mean"].verdict == "improved"
    assert shifted(200, 1.0, name="toxicity_mean").scores["toxicity_mean"].verdict == "worse"


def test_no_change_says_how_many_dialogues_would_show_it() -> None:
    entry = shifted(200, 0.05).scores["relevance"]
    assert entry.verdict == "no difference shown"
    assert entry.n_needed == pytest.approx(n_paired(1.0, 0.05), rel=0.1)  # resampling noise of the sd, squared
    assert shifted(200, 1.0).scores["relevance"].n_needed is None


def test_a_minimal_difference_replaces_the_observed_one() -> None:
    base = normal(5.0, 1.0, 200, seed=99)
    moved = [x + d for x, d in zip(base, normal(0.05, 1, 200), strict=True)]
    pair = made({"relevance": base}), made({"relevance": moved})
    assert quick(*pair, minimal={"relevance": 0.2}).scores["relevance"].n_needed == pytest.approx(197, rel=0.1)


def test_more_scores_need_more_dialogues() -> None:
    values = {name: normal(5, 1, 200) for name in ("relevance", "toxicity_mean")}
    moved = {name: [x + d for x, d in zip(row, normal(0.05, 1, 200), strict=True)] for name, row in values.items()}
    entry = quick(made(values), made(moved)).scores["relevance"]
    assert entry.n_needed == pytest.approx(n_paired(1.0, 0.05, alpha=0.025), rel=0.1)  # 21 % more than at 0.05


def test_identical_outputs_show_no_difference_and_need_no_number() -> None:
    same = made({"relevance": normal(1, 1, 50)})
    entry = quick(same, same).scores["relevance"]
    assert (entry.difference, entry.ci, entry.p, entry.n_needed) == (0, (0, 0), 1, None)
    assert entry.verdict == "no difference shown"
    assert entry.effect is not None
    assert (entry.effect.dz, entry.effect.tied) == (None, 1)


def test_below_30_dialogues_there_is_no_verdict() -> None:
    for n, verdict in ((29, "no difference shown"), (30, "improved")):
        entry = shifted(n, 3.0).scores["relevance"]
        assert entry.verdict == verdict
        assert entry.p is not None
        assert entry.p < 0.01
        assert entry.n_needed == (30 if n == 29 else None)
    assert shifted(29, 3.0).scores["relevance"].note == "no verdict below 30 dialogues"
    assert shifted(99, 3.0).scores["relevance"].note == "fewer than 100 dialogues: read the interval with care"
    assert shifted(100, 3.0).scores["relevance"].note is None


def test_the_labs_eleven_rows_show_no_difference() -> None:
    """Toxicity falls by 48 % over eleven sampled summaries, as a public lab reports: that shows nothing."""
    before = [0.003, 0.012, 0.004, 0.055, 0.002, 0.017, 0.008, 0.140, 0.031, 0.004, 0.049]
    after = [0.003, 0.009, 0.010, 0.012, 0.002, 0.021, 0.005, 0.048, 0.027, 0.006, 0.027]
    comparison = quick(made({"toxicity_mean": before}), made({"toxicity_mean": after}))
    entry = comparison.scores["toxicity_mean"]
    assert entry.relative == pytest.approx(-0.477, abs=0.001)
    assert entry.verdict == "no difference shown"
    assert comparison.method.permutations == 2**11
    with pytest.raises(GateFailedError, match=r"toxicity_mean<=-40%: not met: -47\.7%"):
        check_requirements(comparison, ["toxicity_mean<=-40%"])


def test_verdicts_need_p_interval_and_sign_together() -> None:
    rule = Rule(alpha=0.05, family=1, leaked=0, minimal=None)
    assert decide(1.0, (0.1, 2.0), 0.01, 500, "higher", rule) == ("improved", None)
    assert decide(1.0, (0.1, 2.0), 0.06, 500, "higher", rule)[0] == "no difference shown"
    assert decide(1.0, (-0.1, 2.0), 0.01, 500, "higher", rule)[0] == "no difference shown"
    assert decide(1.0, (0.0, 2.0), 0.01, 500, "higher", rule)[0] == "no difference shown"
    assert decide(1.0, None, 0.01, 500, "higher", rule)[0] == "no difference shown"
    assert decide(-1.0, (-2.0, -0.1), 0.01, 500, "higher", rule)[0] == "worse"
    assert decide(-1.0, (-2.0, -0.1), 0.01, 500, "lower", rule)[0] == "improved"


def test_p_is_corrected_over_the_scores_of_the_file() -> None:
    base = {name: normal(5, 1, 100, seed=k) for k, name in enumerate(("relevance", "toxicity_mean", "margin"))}
    moved = {name: [x + d for x, d in zip(row, normal(0.2, 1, 100, seed=7), strict=True)] for name, row in base.items()}
    entries = quick(made(base), made(moved)).scores
    raw = [entry.p for entry in entries.values() if entry.p is not None]
    assert [entry.p_holm for entry in entries.values()] == pytest.approx([min(1, 3 * p) for p in raw], rel=0.35)
    alone = quick(made(base), made(moved), scores=["relevance"]).scores
    assert list(alone) == ["relevance"]
    assert alone["relevance"].p_holm == alone["relevance"].p


def test_improved_is_withheld_when_training_saw_the_rows() -> None:
    old, new = made({"relevance": normal(5, 1, 200)}), made({"relevance": normal(6, 1, 200, seed=1)})
    seen = new.model_copy(update={"data": new.data.model_copy(update={"leakage": {"exact": 2, "near": 1}})})
    assert quick(old, new).scores["relevance"].verdict == "improved"
    entry = quick(old, seen).scores["relevance"]
    assert (entry.verdict, entry.note) == (
        "no difference shown",
        "withheld: 3 of these rows are also in the training data",
    )


def test_rows_scored_on_one_side_only_are_dropped_and_counted() -> None:
    old: list[float | None] = [*normal(5, 1, 60), 100.0]
    new: list[float | None] = [*normal(6, 1, 60, seed=1), None]
    entry = quick(made({"relevance": old}), made({"relevance": new})).scores["relevance"]
    assert (entry.n, entry.n_dropped) == (60, 1)
    assert entry.before == pytest.approx(5)
    assert "n 60 (1 not scored)" in describe(quick(made({"relevance": old}), made({"relevance": new})))[0]


def test_nothing_scored_is_said_in_words() -> None:
    blank: list[float | None] = [None] * 40
    some = normal(1, 1, 40)
    comparison = quick(
        made({"relevance": blank, "toxicity_mean": some}), made({"relevance": some, "toxicity_mean": some})
    )
    entry = comparison.scores["relevance"]
    assert (entry.before, entry.p, entry.p_holm, entry.n, entry.n_dropped) == (None, None, None, 0, 40)
    assert describe(comparison)[0] == "relevance not scored (no pair was scored on both sides)"


def test_one_pair_has_no_interval() -> None:
    entry = quick(made({"relevance": [1.0]}), made({"relevance": [2.0]})).scores["relevance"]
    assert (entry.difference, entry.ci, entry.relative_ci, entry.p) == (1, None, None, 1)


def test_scores_without_a_direction_are_not_compared() -> None:
    both = {"relevance": normal(1, 1, 40), "length": normal(9, 1, 40)}
    assert list(quick(made(both), made(both)).scores) == ["relevance"]


def test_relative_change_needs_a_true_zero_and_a_positive_base() -> None:
    assert shifted(100, 1.0).scores["relevance"].relative_ci is not None
    entry = shifted(100, 1.0, name="margin").scores["margin"]
    assert (entry.relative, entry.relative_ci) == (None, None)
    zero = quick(made({"relevance": [0.0] * 40}), made({"relevance": [1.0] * 40})).scores["relevance"]
    assert (zero.relative, zero.relative_ci) == (None, None)


def test_the_relative_interval_comes_from_the_ratio_of_the_same_draws() -> None:
    """Both sides move together, so the ratio is known exactly although neither mean is."""
    base = [abs(x) + 1 for x in normal(5, 2, 300)]
    entry = quick(made({"relevance": base}), made({"relevance": [1.1 * x for x in base]})).scores["relevance"]
    assert entry.relative_ci == pytest.approx((0.1, 0.1))
    assert entry.ci is not None
    assert entry.ci[1] - entry.ci[0] > 0.01


def test_copies_of_a_dialogue_count_once() -> None:
    """Forty rows that are ten dialogues, four times each, are ten units: no verdict, and a wider interval."""
    old, new = normal(5, 1, 10) * 4, normal(6, 1, 10, seed=1) * 4
    loose, tied = made({"relevance": old}), made({"relevance": new})
    rows = tuple(row.model_copy(update={"unit": f"r{k % 10}"}) for k, row in enumerate(tied.rows))
    tied = tied.model_copy(update={"rows": rows})
    one, other = quick(loose, made({"relevance": new})).scores["relevance"], quick(loose, tied).scores["relevance"]
    assert (other.n, other.difference) == (40, pytest.approx(one.difference))
    assert one.ci is not None
    assert other.ci is not None
    assert other.ci[1] - other.ci[0] > 1.8 * (one.ci[1] - one.ci[0])
    assert (one.verdict, other.verdict) == ("improved", "no difference shown")


def test_the_order_of_the_rows_does_not_matter() -> None:
    old, new = made({"relevance": normal(5, 1, 40)}), made({"relevance": normal(5.2, 1, 40, seed=1)})
    turned = old.model_copy(update={"rows": old.rows[::-1]})
    assert quick(old, new).scores == quick(turned, new).scores


def test_the_same_comparison_gives_the_same_bytes_and_swapping_sides_mirrors_it() -> None:
    old, new = made({"relevance": normal(5, 1, 40)}), made({"relevance": normal(5.2, 1, 40, seed=1)})
    assert to_json(quick(old, new)) == to_json(quick(old, new))
    there, back = quick(old, new).scores["relevance"], quick(new, old).scores["relevance"]
    assert there.ci is not None
    assert back.ci is not None
    assert back.difference == pytest.approx(-(there.difference or 0))
    assert back.ci == pytest.approx((-there.ci[1], -there.ci[0]))
    assert back.p == pytest.approx(there.p)


# --- constraints ---


@pytest.mark.parametrize(("factor", "held"), [(1.0, "yes"), (0.8, "no"), (0.98, "not shown")])
def test_a_floor_is_held_lost_or_not_shown(factor: float, held: str) -> None:
    base = normal(1.0, 0.1, 200)
    noise = normal(0.0, 0.02, 200, seed=3)
    old = made({"relevance": base, "toxicity_mean": base})
    after = [factor * x + e for x, e in zip(base, noise, strict=True)]
    new = made({"relevance": after, "toxicity_mean": after})
    comparison = quick(old, new, scores=["toxicity_mean"], constraints={"relevance": 0.98})
    assert list(comparison.scores) == ["toxicity_mean"]
    constraint = comparison.constraints["relevance"]
    assert constraint.held == held
    assert constraint.ratio == pytest.approx(factor)
    assert describe(comparison)[1].startswith(f"relevance kept {factor:.1%} [")
    assert describe(comparison)[1].endswith(f"of before, floor 98.0%: {held}")


def test_a_ratio_to_nothing_is_refused() -> None:
    old, new = made({"relevance": [0.0] * 40}), made({"relevance": [1.0] * 40})
    with pytest.raises(ConfigError, match="constraint 'relevance': no ratio; before must be above 0"):
        quick(old, new, constraints={"relevance": 0.98})


def test_detoxification_must_keep_relevance_unless_told_otherwise() -> None:
    """Without being asked: relevance and ROUGE-L at 98 % of before, for this task and where both sides have them."""
    base = normal(1.0, 0.1, 200)
    values = {"toxicity_mean": base, "relevance_reference": base, "rougeL": base}
    lower = {"toxicity_mean": base, "relevance_reference": [0.9 * x for x in base], "rougeL": base}
    kept = quick(made(values), made(lower)).constraints
    assert {name: (c.floor, c.held) for name, c in kept.items()} == {
        "relevance_reference": (0.98, "no"),
        "rougeL": (0.98, "yes"),
    }
    assert quick(made(values, task="summarize"), made(lower, task="summarize")).constraints == {}
    assert quick(made(values), made(lower), constraints={}).constraints == {}
    assert list(quick(made(values), made(lower), constraints={"rougeL": 0.5}).constraints) == ["rougeL"]


def test_a_floor_nobody_asked_for_is_not_shown_rather_than_refused() -> None:
    old, new = made({"rougeL": [0.0] * 40}), made({"rougeL": [1.0] * 40})
    comparison = quick(old, new)
    constraint = comparison.constraints["rougeL"]
    assert (constraint.ratio, constraint.ci, constraint.held) == (None, None, "not shown")
    assert describe(comparison)[1] == (
        "rougeL kept: not shown (no ratio; before must be above 0 on 2 dialogues or more), floor 98.0%"
    )


# --- silence ---


def silent(evaluation: Evaluation, rows: Sequence[int]) -> Evaluation:
    """The same with these completions empty."""
    changed = [
        row.model_copy(update={"completion": " ."}) if k in rows else row for k, row in enumerate(evaluation.rows)
    ]
    return evaluation.model_copy(update={"rows": tuple(changed), "n_empty": len(rows)})


def quieter(n: int, empty: int, drop: float = 0.2) -> tuple[Evaluation, Evaluation]:
    """Toxicity falls by `drop`; the first `empty` completions of the candidate are empty and so not scored."""
    base = normal(0.5, 0.1, n)
    moved: list[float | None] = [x - drop + e for x, e in zip(base, normal(0, 0.05, n, seed=1), strict=True)]
    moved[:empty] = [None] * empty
    return made({"toxicity_mean:a": base}), silent(made({"toxicity_mean:a": moved}), range(empty))


def test_improved_is_withheld_when_more_than_one_in_a_hundred_is_empty() -> None:
    for n, empty, verdict in ((200, 2, "improved"), (200, 3, "no difference shown")):
        entry = quick(*quieter(n, empty)).scores["toxicity_mean:a"]
        assert (entry.verdict, entry.n, entry.n_dropped) == (verdict, n - empty, empty)
    assert entry.note == "withheld: 1.5% of the completions are empty, which this score leaves out; at most 1% may be"
    # Silence withholds nothing from a score that counts it, and never hides that something got worse.
    base = normal(5, 1, 200)
    old = made({"relevance": base, "toxicity_mean:a": base})
    new = silent(made({"relevance": [x + 1 for x in base], "toxicity_mean:a": [x + 1 for x in base]}), range(50))
    scores = quick(old, new).scores
    assert (scores["relevance"].verdict, scores["toxicity_mean:a"].verdict) == ("improved", "worse")


def test_a_second_verdict_takes_empty_completions_as_toxic() -> None:
    """Two hundred rows from about 0.5 to 0.3; with sixty empty ones as 1.0 toxicity has not fallen at all."""
    before, after = quieter(200, 60)
    entry = quick(before, after).scores["toxicity_mean:a"]
    silence = entry.empty_as_toxic
    assert silence is not None
    values = [1.0 if row.scores["toxicity_mean:a"] is None else row.scores["toxicity_mean:a"] for row in after.rows]
    assert silence.after == pytest.approx(np.mean(values))
    assert silence.before == pytest.approx(0.5)
    assert silence.n == 200
    assert silence.difference == pytest.approx(silence.after - silence.before)
    assert silence.ci is not None
    assert silence.ci[0] < silence.difference < silence.ci[1]
    assert entry.difference is not None
    assert entry.difference < -0.15
    assert silence.verdict == "no difference shown"
    text = describe(quick(before, after))
    assert text[1] == f"toxicity_mean:a with empty completions as toxic: {silence.difference:+.3f}, no difference shown"


def test_a_few_empty_completions_do_not_turn_the_second_verdict() -> None:
    entry = quick(*quieter(200, 1)).scores["toxicity_mean:a"]
    assert entry.empty_as_toxic is not None
    assert (entry.verdict, entry.empty_as_toxic.verdict) == ("improved", "improved")


def test_without_an_empty_completion_there_is_no_second_verdict() -> None:
    assert quick(*quieter(60, 0)).scores["toxicity_mean:a"].empty_as_toxic is None


def test_a_model_that_says_nothing_has_only_the_second_verdict() -> None:
    before, after = quieter(40, 40)
    gone = ScoreEntry(value=None, ci=None, n=0, signature="toxicity_mean:a|made:up", reason="no row has a completion")
    entry = quick(before, after.model_copy(update={"scores": {"toxicity_mean:a": gone}})).scores["toxicity_mean:a"]
    assert (entry.difference, entry.note) == (None, "no row has a completion")
    assert entry.empty_as_toxic is not None
    assert (entry.empty_as_toxic.after, entry.empty_as_toxic.verdict) == (1.0, "worse")


# --- scorers that are not there ---


def absent(evaluation: Evaluation, name: str, reason: str) -> Evaluation:
    """The same evaluation made where the scorer of this score is not installed."""
    gone = ScoreEntry(value=None, ci=None, n=0, signature=f"{name}|sha:unknown", reason=reason)
    rows = tuple(row.model_copy(update={"scores": {**row.scores, name: None}}) for row in evaluation.rows)
    return evaluation.model_copy(update={"scores": {**evaluation.scores, name: gone}, "rows": rows})


@pytest.mark.parametrize("sides", [(True, True), (False, True), (True, False)])
def test_a_juror_that_is_not_there_is_not_scored_and_never_an_error(sides: tuple[bool, bool]) -> None:
    values = {"toxicity_mean:a": normal(0.5, 0.1, 60), "toxicity_mean:b": normal(0.5, 0.1, 60, seed=1)}
    moved = {name: [x - 0.2 for x in row] for name, row in values.items()}
    pair = [
        absent(side, "toxicity_mean:b", "b is not installed") if missing else side
        for side, missing in zip((made(values), made(moved)), sides, strict=True)
    ]
    pair[1] = silent(pair[1], [0])
    comparison = quick(*pair)
    entry = comparison.scores["toxicity_mean:b"]
    assert (entry.before, entry.after, entry.p, entry.n) == (None, None, None, 0)
    assert (entry.note, entry.empty_as_toxic) == ("b is not installed", None)
    assert "toxicity_mean:b not scored (b is not installed)" in describe(comparison)
    there = comparison.scores["toxicity_mean:a"]
    assert there.p_holm == there.p  # what was not tested costs no power


# --- percentiles ---


def test_a_percentile_is_paired_resampled_and_swapped_as_a_percentile() -> None:
    """Twelve dialogues, every assignment written out; the percentile by numpy on the lists."""
    rng = np.random.default_rng(4)
    old, new = rng.random(12), rng.random(12) * 0.6
    entry = quick(made({"toxicity_p95:a": list(old)}), made({"toxicity_p95:a": list(new)})).scores["toxicity_p95:a"]

    def p95(values: Any) -> float:
        return float(np.sort(values)[-(-95 * len(values) // 100) - 1])

    assert (entry.before, entry.after) == (p95(old), p95(new))
    gaps = []
    for bits in range(2**12):
        swap = (bits >> np.arange(12) & 1).astype(bool)
        gaps.append(abs(p95(np.where(swap, old, new)) - p95(np.where(swap, new, old))))
    observed = abs(p95(new) - p95(old))
    assert entry.p == np.mean([gap >= observed - 1e-12 for gap in gaps])
    assert entry.ci is not None
    assert entry.ci[0] < entry.difference < entry.ci[1]  # type: ignore[operator]


def test_a_percentile_of_many_rows_has_the_interval_of_its_draws() -> None:
    """Both sides drawn together by hand with another generator: the interval agrees within resampling noise."""
    rng = np.random.default_rng(5)
    old = rng.beta(0.5, 3, size=300)
    new = old * 0.5
    entry = quick(made({"toxicity_p95:a": list(old)}), made({"toxicity_p95:a": list(new)}), resamples=4000).scores[
        "toxicity_p95:a"
    ]
    rows = np.random.default_rng(6).integers(300, size=(4000, 300))
    changes = np.quantile(new[rows], 0.95, axis=1, method="inverted_cdf") - np.quantile(
        old[rows], 0.95, axis=1, method="inverted_cdf"
    )
    assert entry.ci == pytest.approx(np.quantile(changes, [0.025, 0.975]), abs=0.01)
    assert entry.relative == pytest.approx(-0.5)
    assert entry.relative_ci == pytest.approx((-0.5, -0.5))  # every draw halves
    assert entry.verdict == "improved"


def test_percentiles_leave_out_what_a_side_could_not_score() -> None:
    old: list[float | None] = [*normal(0.5, 0.1, 40), 9.0]
    new: list[float | None] = [*normal(0.4, 0.1, 40), None]
    entry = quick(made({"toxicity_p95:a": old}), made({"toxicity_p95:a": new})).scores["toxicity_p95:a"]
    assert (entry.n, entry.n_dropped) == (40, 1)
    assert entry.before is not None
    assert entry.before < 1


# --- kinds of rows ---


def test_origins_of_toxic_sentences_are_paired_shares_outside_the_family() -> None:
    """20 of 50 copied before, 5 of those after: 40 % to 10 %; t(49) 2.0096, sd of the differences 0.4629."""
    before = {"rougeL": normal(3, 1, 50), "toxic_copied:a": [1.0] * 20 + [0.0] * 30, "toxic_invented:a": [0.0] * 50}
    after = before | {"toxic_copied:a": [1.0] * 5 + [0.0] * 45, "toxic_invented:a": [0.0] * 48 + [1.0] * 2}
    comparison = quick(made(before), made(after), resamples=10_000)
    assert list(comparison.scores) == ["rougeL"]
    assert list(comparison.origins) == ["copied:a", "invented:a"]
    copied = comparison.origins["copied:a"]
    assert (copied.before, copied.after, copied.difference, copied.n) == (0.4, 0.1, pytest.approx(-0.3), 50)
    assert copied.ci == pytest.approx((-0.3 - 2.0096 * 0.4629 / 50**0.5, -0.3 + 2.0096 * 0.4629 / 50**0.5), abs=0.01)
    assert comparison.origins["invented:a"].difference == pytest.approx(0.04)
    lines = [line for line in describe(comparison) if line.startswith("toxic and ")]
    assert lines[0].startswith("toxic and copied (a): 40.0% -> 10.0% of 50 dialogues, -30.0% [")
    assert lines[1].startswith("toxic and invented (a): 0.0% -> 4.0% of 50 dialogues, +4.0% [")


def test_an_origin_on_one_side_only_is_left_out_and_one_by_another_rule_is_refused() -> None:
    one = {"rougeL": normal(3, 1, 40)}
    both = one | {"toxic_copied:a": [0.0] * 40}
    assert quick(made(one), made(both)).origins == {}
    other = made(both)
    changed = other.scores["toxic_copied:a"].model_copy(update={"signature": "toxic_copied:a|made:otherwise"})
    with pytest.raises(NotComparableError, match="toxic_copied:a made: up against otherwise"):
        quick(made(both), other.model_copy(update={"scores": {**other.scores, "toxic_copied:a": changed}}))


def of_kinds(evaluation: Evaluation, kinds: Sequence[str | None]) -> Evaluation:
    rows = [row.model_copy(update={"kind": kind}) for row, kind in zip(evaluation.rows, kinds, strict=True)]
    return evaluation.model_copy(update={"rows": tuple(rows)})


def test_each_kind_of_row_is_compared_by_itself() -> None:
    kinds: list[str | None] = ["heated"] * 40 + ["plain"] * 30 + ["control"] * 9 + [None] * 5
    base = normal(0.5, 0.1, 84)
    moved = [x - (0.2 if kind == "heated" else 0.0) for x, kind in zip(base, kinds, strict=True)]
    pair = [of_kinds(made({"toxicity_mean:a": row}), kinds) for row in (base, moved)]
    comparison = quick(*pair)
    assert list(comparison.slices) == ["heated", "plain"]  # nine rows are too few to be shown
    heated = comparison.slices["heated"]["toxicity_mean:a"]
    alone = quick(made({"toxicity_mean:a": base[:40]}), made({"toxicity_mean:a": moved[:40]})).scores["toxicity_mean:a"]
    assert (heated.before, heated.after, heated.n) == (alone.before, alone.after, 40)
    assert comparison.slices["plain"]["toxicity_mean:a"].difference == 0
    assert describe(comparison)[-1] == (
        "by slice, exploratory, in compare.json; dialogues in each: heated: 40, plain: 30"
    )
    assert (
        comparison.scores == quick(*(of_kinds(side, [None] * 84) for side in pair)).scores
    )  # no claim depends on them


def test_one_kind_for_all_rows_is_no_slice() -> None:
    pair = of_kinds(made({"relevance": normal(1, 1, 40)}), ["heated"] * 40)
    assert quick(pair, pair).slices == {}


def test_a_score_that_no_row_of_a_kind_has_is_left_out_of_its_slice() -> None:
    kinds = ["plain"] * 20 + ["control"] * 20
    values: dict[str, Sequence[float | None]] = {
        "relevance": normal(1, 1, 40),
        "rougeL": [None] * 20 + normal(1, 1, 20),
    }
    side = of_kinds(made(values), kinds)
    slices = quick(side, side).slices
    assert {kind: list(entries) for kind, entries in slices.items()} == {
        "control": ["relevance", "rougeL"],
        "plain": ["relevance"],
    }


# --- what is refused ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "respond"}, "task: detoxify against respond"),
        ({"data": {"fingerprint": "f2"}}, "data.fingerprint: f1 against f2"),
        ({"data": {"reference": "mean"}}, "data.reference: first against mean"),
        ({"data": {"references": (1, 3)}}, r"data.references: \(1, 1\) against \(1, 3\)"),
        ({"data": {"template_sha256": "t2"}}, "data.template_sha256: t1 against t2"),
        ({"decoding": Decoding(strategy="greedy", max_new_tokens=32)}, "decoding.max_new_tokens: 64 against 32"),
    ],
)
def test_each_differing_key_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    values = {"relevance": normal(1, 1, 40)}
    with pytest.raises(NotComparableError, match=message):
        quick(made(values), made(values, **changes))


def test_a_differing_signature_is_refused_by_its_setting() -> None:
    one = made({"relevance": normal(1, 1, 40)})
    entry = one.scores["relevance"].model_copy(update={"signature": "relevance|made:down|at:night"})
    with pytest.raises(NotComparableError, match="relevance made: up against down; relevance at: absent against night"):
        quick(one, one.model_copy(update={"scores": {"relevance": entry}}))


def test_all_differences_are_named_at_once() -> None:
    values = {"relevance": normal(1, 1, 40)}
    other = made(values, task="respond", data={"fingerprint": "a" * 64, "reference": "mean"})
    with pytest.raises(NotComparableError) as caught:
        quick(made(values), other)
    assert str(caught.value) == (
        "not comparable: task: detoxify against respond; data.fingerprint: f1 against aaaaaaaaaaaa...; "
        "data.reference: first against mean\n"
        "  A difference could come from these alone; evaluate both in the same way, and compare again"
    )


def test_different_rows_are_refused() -> None:
    with pytest.raises(NotComparableError, match=r"rows\.id: 0 only in before, 2 only in after"):
        quick(made({"relevance": normal(1, 1, 40)}), made({"relevance": normal(1, 1, 42)}))


def test_scores_of_one_side_are_refused_unless_the_family_is_declared() -> None:
    one = made({"relevance": normal(1, 1, 40)})
    two = made({"relevance": normal(1, 1, 40), "toxicity_mean": normal(1, 1, 40), "length": normal(1, 1, 40)})
    with pytest.raises(NotComparableError, match=r"scores\.toxicity_mean: only in after"):
        quick(one, two)
    assert list(quick(one, two, scores=["relevance"]).scores) == ["relevance"]


def test_unknown_scores_are_refused() -> None:
    values = {"relevance": normal(1, 1, 40)}
    with pytest.raises(NotComparableError, match="scores this version does not know: relevance"):
        compare(made(values), made(values), metrics={"toxicity_mean": TABLE["toxicity_mean"]})
    for key in ("scores", "constraints", "minimal"):
        asked: Any = ["relevence"] if key == "scores" else {"relevence": 1.0}
        with pytest.raises(ConfigError, match="'relevence': not compared; did you mean 'relevance'"):
            quick(made(values), made(values), **{key: asked})


def test_a_decoding_change_is_allowed_on_request_and_written_down() -> None:
    values = {"relevance": normal(1, 1, 40)}
    sampled = made(values, decoding=Decoding(strategy="sample", temperature=0.7, max_new_tokens=64))
    with pytest.raises(NotComparableError, match="--allow-decoding-change"):
        quick(made(values), sampled)
    comparison = quick(made(values), sampled, allow_decoding_change=True)
    assert comparison.allowed == ("decoding.strategy: greedy against sample", "decoding.temperature: 1.0 against 0.7")
    assert describe(comparison)[-1] == "allowed on request: decoding.temperature: 1.0 against 0.7"
    with pytest.raises(NotComparableError, match="task"):
        quick(made(values), made(values, task="respond"), allow_decoding_change=True)


def test_the_template_of_a_file_is_as_unknown_as_its_decoding() -> None:
    values = {"relevance": normal(1, 1, 40)}
    file = made(values, decoding=Decoding(strategy="file"), data={"template_sha256": "unknown"})
    with pytest.raises(NotComparableError, match=r"template_sha256: unknown against t1\n.*--allow-decoding-change"):
        quick(file, made(values))
    assert "data.template_sha256: unknown against t1" in quick(file, made(values), allow_decoding_change=True).allowed


# --- gates ---


def gate_failure(text: str, **fields: Any) -> str | None:
    values: dict[str, Any] = {
        "before": 40.0,
        "after": 54.0,
        "difference": 14.0,
        "relative": 0.35,
        "ci": (12.0, 16.0),
        "relative_ci": (0.3, 0.4),
        "p": 0.001,
        "p_holm": 0.001,
        "n": 500,
        "n_dropped": 0,
        "effect": None,
        "direction": "higher",
        "verdict": "improved",
    }
    return parse_gates([text])[0].failure(Entry(**{**values, **fields}))


def test_a_gate_needs_the_point_and_an_interval_that_excludes_zero() -> None:
    assert gate_failure("rougeL>=+30%") is None
    assert gate_failure("rougeL >= +14") is None
    assert gate_failure(" rougeL>=+13.9 ") is None
    assert gate_failure("rougeL>=+36%") == (
        "rougeL>=+36%: not met: +35.0% [+30.0%, +40.0%], n 500; the point must reach it and the interval exclude 0"
    )
    assert gate_failure("rougeL>=+30%", relative_ci=(-0.01, 0.7)) is not None
    assert gate_failure("rougeL>=+14", ci=(0.0, 28.0)) is not None
    assert gate_failure("rougeL<=-1") is not None


def test_a_gate_downwards_mirrors_one_upwards() -> None:
    down = {"difference": -0.03, "relative": -0.45, "ci": (-0.04, -0.02), "relative_ci": (-0.6, -0.3)}
    assert gate_failure("toxicity_mean<=-40%", **down) is None
    assert gate_failure("toxicity_mean<=-50%", **down) is not None
    assert gate_failure("toxicity_mean<=-40%", **{**down, "relative_ci": (-0.9, 0.0)}) is not None
    assert gate_failure("toxicity_mean<=-0.031", **down) is not None


def test_a_gate_may_name_a_scorer() -> None:
    for name in ("toxicity_mean:minilm", "toxicity_rate:alt-profanity-check", "toxicity_mean:org/a-b.c#hate"):
        gate = parse_gates([f"{name} <= -40%"])[0]
        assert (gate.name, gate.bound, gate.at_least) == (name, -0.4, False)


def test_a_limit_must_be_kept_by_the_whole_interval() -> None:
    slight = {"difference": -0.5, "relative": -0.01, "ci": (-1.5, 0.5), "relative_ci": (-0.03, 0.01)}
    assert gate_failure("relevance>=-4%", **slight) is None
    assert gate_failure("relevance>=-2%", **slight) == (
        "relevance>=-2%: not met: -1.0% [-3.0%, +1.0%], n 500; the whole interval must keep it"
    )
    assert gate_failure("length<=+0.5", **slight) is None
    assert gate_failure("length<=+0.4", **slight) is not None


def test_no_gate_is_met_below_30_dialogues_or_without_a_measurement() -> None:
    assert gate_failure("rougeL>=+30%", n=29) == (
        "rougeL>=+30%: not met: +35.0% [+30.0%, +40.0%], n 29; gates need 30 dialogues"
    )
    assert gate_failure("rougeL>=+30%", relative=None) == (
        "rougeL>=+30%: not measured (before is 0, or too few dialogues)"
    )
    assert gate_failure("rougeL>=+3", ci=None, note="why") == "rougeL>=+3: not measured (why)"


@pytest.mark.parametrize(
    "text", ["", "rougeL", "rougeL>=30%", "rougeL>+3", "rougeL=+3", ">=+3", "rougeL>=+", "rougeL>=+3%%", "rougeL>=+1e3"]
)
def test_what_is_no_gate_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match=r"not a gate; write NAME>=\+30% \(relative\)"):
        parse_gates([text])


def test_gates_are_checked_together() -> None:
    comparison = shifted(200, 1.0)
    check_requirements(comparison, ["relevance>=+10%", "relevance>=+0.9"])
    with pytest.raises(GateFailedError) as caught:
        check_requirements(comparison, ["relevance>=+50%", "relevance>=+10%", "relevance>=+7"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["relevance>=+50%", "relevance>=+7"]
    with pytest.raises(ConfigError, match=r"'bad1': not a gate.*\n.*'bad2': not a gate"):
        check_requirements(comparison, ["bad1", "relevance>=+1", "bad2"])
    with pytest.raises(ConfigError, match="score 'bleu': not compared; there are: relevance"):
        check_requirements(comparison, ["bleu>=+1"])


# --- in words, and as a file ---


def line(**fields: Any) -> str:
    base = shifted(60, 1.0)
    values: dict[str, Any] = {
        "before": 0.081,
        "after": 0.052,
        "difference": -0.029,
        "relative": None,
        "ci": (-0.041, -0.018),
        "p": 0.0001,
        "p_holm": 0.0004,
        "n": 500,
        "n_dropped": 0,
        "effect": None,
        "direction": "lower",
        "verdict": "improved",
    }
    scores = {"toxicity_mean": Entry(**{**values, **fields})}
    return describe(base.model_copy(update={"scores": scores}))[0]


def test_lines_read_as_in_the_protocol() -> None:
    assert line() == "toxicity_mean 0.081 -> 0.052, -0.029 [-0.041, -0.018], p 0.0004, n 500: improved"
    assert line(verdict="no difference shown", n_needed=1934).endswith(": cannot tell, needs about 1,900 dialogues")
    assert line(verdict="no difference shown").endswith("n 500: no difference shown")
    assert "n 1,500: improved (few)" in line(n=1500, note="few")
    assert "p < 0.0001" in line(p_holm=0.00004)
    assert "-35.8% [-50.0%, -22.0%], p" in line(relative=-0.358, relative_ci=(-0.5, -0.22))
    assert line(ci=None, p_holm=None) == "toxicity_mean 0.081 -> 0.052, -0.029, n 500: improved"
    assert line(before=38.711, after=40.02, difference=1.309, ci=None).startswith(
        "toxicity_mean 38.71 -> 40.02, +1.31,"
    )


def test_a_comparison_survives_its_file_and_names_its_evaluations(tmp_path: Path) -> None:
    values = {"relevance": normal(1, 1, 40)}
    before, after = made(values), made({"relevance": normal(2, 1, 40)})
    comparison = quick(before, after)
    file = write_comparison(tmp_path, comparison)
    assert file.name == "compare.json"
    assert read_comparison(file) == read_comparison(tmp_path) == comparison
    assert comparison.before.eval_sha256 == hashlib.sha256(to_json(before).encode()).hexdigest()
    assert json.loads(file.read_text())["method"] == {
        "ci": "paired percentile bootstrap by dialogue; below 200 the wider of it and a t interval",
        "resamples": 1000,
        "test": "two-sided randomisation: the two outputs of a dialogue swap sides; every assignment if 16 or fewer",
        "permutations": 2000,
        "correction": "holm",
        "alpha": 0.05,
        "seed": 0,
        "unit": "dialogue",
    }
    assert comparison.jury is None
    older = json.loads(file.read_text())
    for key in ("jury", "slices", "constraints", "origins"):  # as files were before these existed
        del older[key]
    for entry in older["scores"].values():
        del entry["empty_as_toxic"]
    file.write_text(json.dumps(older))
    assert read_comparison(file) == comparison
    with pytest.raises(ConfigError, match="no such file; make it with: dialtune compare BEFORE AFTER"):
        read_comparison(tmp_path / "none")
    file.write_text('{"schema": "dialtune.compare/1"}')
    with pytest.raises(DataError, match=r"compare\.json: before: Field required"):
        read_comparison(file)
    with pytest.raises(ValidationError):
        Comparison.model_validate_json("{}")


# --- corpus scores, and the whole way from texts ---

WORDS = tuple("the a cat mat sat on Anna pays twenty late is it no they meet at ten about car".split())  # noqa: SIM905


def corpus(n: int, quality: Sequence[float]) -> tuple[DataSet, list[list[str]], list[str]]:
    """References and, for each quality, texts that keep that share of the reference's words."""
    draw = random.Random(3)
    references = [" ".join(draw.choices(WORDS, k=12)) for _ in range(n)]
    systems = [
        [" ".join(word if draw.random() < keep else draw.choice(WORDS) for word in text.split()) for text in references]
        for keep in quality
    ]
    examples = tuple(Example(f"e{k}", (Message("user", f"{k}", "A"),), (text,)) for k, text in enumerate(references))
    return DataSet("toy", "test", "dialogsum", examples), systems, references


def evaluated(dataset: DataSet, texts: Sequence[str], names: Sequence[str], **settings: Any) -> Evaluation:
    completions = [Completion(e.id, text, (), "stop") for e, text in zip(dataset.examples, texts, strict=True)]
    return evaluate_completions(
        dataset, completions, names, model=ModelInfo(name="m"), task="summarize", **{"resamples": 500, **settings}
    )


def test_corpus_scores_agree_with_sacrebleus_paired_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.significance import PairedTest

    monkeypatch.setenv("SACREBLEU_SEED", "12345")
    dataset, systems, references = corpus(40, (0.60, 0.66))
    pair = [evaluated(dataset, texts, ["bleu", "chrf"], resamples=4000) for texts in systems]
    entries = compare(*pair, resamples=2000, permutations=20_000).scores
    tools = {"BLEU": BLEU(force=True), "chrF2": CHRF()}
    named = [("before", systems[0]), ("after", systems[1])]
    _, swapped = PairedTest(named, tools, [references], test_type="ar", n_samples=4000)()
    _, resampled = PairedTest(named, tools, [references], test_type="bs", n_samples=1000)()
    for name, theirs in (("bleu", "BLEU"), ("chrf", "chrF2")):
        entry, (old, new) = entries[name], swapped[theirs][:2]
        assert (entry.before, entry.after) == pytest.approx((old.score, new.score), rel=1e-9)
        assert 0.01 < new.p_value < 0.5  # a case that could tell a wrong test
        assert entry.p == pytest.approx(new.p_value, abs=0.025)  # three standard errors at 4,000 trials
        low, high = pair[1].scores[name].ci or (0.0, 0.0)
        # Theirs is half the percentile width; ours is the wider of that and a t interval, which adds 3 % at n = 40.
        assert (high - low) / 2 == pytest.approx(resampled[theirs][1].ci, rel=0.12)


def test_few_rows_swap_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows, 32 assignments, each scored by sacrebleu itself."""
    from sacrebleu.metrics.chrf import CHRF

    dataset, systems, references = corpus(5, (0.5, 0.7))
    entry = compare(*(evaluated(dataset, texts, ["chrf"]) for texts in systems), resamples=100).scores["chrf"]
    tool, gaps = CHRF(), []
    for bits in range(32):
        sides = [[systems[side ^ (bits >> k & 1)][k] for k in range(5)] for side in (0, 1)]
        one, other = (tool.corpus_score(side, [references]).score for side in sides)
        gaps.append(abs(other - one))
    assert entry.p == np.mean([gap >= gaps[0] - 1e-9 for gap in gaps])


def test_max_companions_are_left_out_of_the_family_unless_they_are_asked_for() -> None:
    dataset, systems, _ = corpus(40, (0.4, 0.8))
    doubled = DataSet("toy", "test", "dialogsum", tuple(_with_two(e) for e in dataset.examples))
    pair = [evaluated(doubled, texts, ["rouge1", "bleu", "length_ratio"]) for texts in systems]
    assert list(pair[0].scores) == ["rouge1", "bleu", "length_ratio", "rouge1_max"]
    assert list(compare(*pair, resamples=100, permutations=100).scores) == ["rouge1", "bleu"]
    asked = compare(*pair, scores=["rouge1_max"], resamples=100, permutations=100)
    assert list(asked.scores) == ["rouge1_max"]
    alone = [evaluated(doubled, texts, ["rouge1"], reference="max") for texts in systems]
    assert list(compare(*alone, resamples=100, permutations=100).scores) == ["rouge1_max"]


def _with_two(example: Example) -> Example:
    return Example(example.id, example.messages, (*example.references, "they meet at ten"))


def test_a_corpus_score_that_could_not_be_made_is_dropped() -> None:
    dataset, systems, _ = corpus(40, (0.4, 0.8))
    bare = DataSet("toy", "test", "dialogsum", tuple(Example(e.id, e.messages) for e in dataset.examples))
    pair = [evaluated(bare, texts, ["bleu", "rouge1"]) for texts in systems]
    entries = compare(*pair, resamples=100, permutations=100).scores
    assert {name: (entry.n, entry.n_dropped) for name, entry in entries.items()} == {"bleu": (0, 40), "rouge1": (0, 40)}


def test_comparing_eight_scores_of_500_dialogues_takes_seconds() -> None:
    dataset, systems, _ = corpus(500, (0.5, 0.6))
    names = ["rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf", "tag_integrity", "speaker_coverage"]
    pair = [evaluated(dataset, texts, names) for texts in systems]
    start = time.perf_counter()
    comparison = compare(*pair)
    assert time.perf_counter() - start < 20  # 1 s on an idle machine
    assert comparison.scores["bleu"].verdict == "improved"
    assert set(comparison.scores) == {name for name in names if METRICS[name].direction}


def test_nothing_in_common_but_descriptions_compares_to_nothing() -> None:
    only = made({"length": normal(1, 1, 40)})
    comparison = quick(only, only)
    assert comparison.scores == {}
    assert describe(comparison) == ()
