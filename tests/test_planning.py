"""Sample sizes: three rows of the design's table worked by hand, pilots of every kind, and claims that cannot be."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.cli.app import run_command
from dialtune.comparison import write_comparison
from dialtune.errors import ConfigError
from dialtune.evaluation import write_evaluation
from dialtune.planning import Claim, Plan, describe_plans, parse_claim, plan
from dialtune.results import (
    Comparison,
    DataInfo,
    Decoding,
    Effect,
    Entry,
    EvalRow,
    Evaluation,
    Method,
    ModelInfo,
    ScoreEntry,
    Side,
)

DATA = DataInfo(name="toy", split="test", fingerprint="f", references=(1, 1), reference="first", template_sha256="t")
MEAN, RATE = "toxicity_mean:minilm", "toxicity_rate:minilm"


def evaluated(scores: dict[str, Sequence[float]], **changes: Any) -> Evaluation:
    """An evaluation of these values, each score with the interval of its normal approximation."""
    n = len(next(iter(scores.values())))
    half = {name: 1.96 * float(np.std(values, ddof=1)) / math.sqrt(n) for name, values in scores.items()}
    mean = {name: float(np.mean(values)) for name, values in scores.items()}
    known: dict[str, Any] = {
        "model": ModelInfo(name="m"), "task": "summarize", "data": DATA,
        "decoding": Decoding(strategy="greedy", max_new_tokens=64),
        "n_total": n, "n_generated": n, "n_truncated": 0, "n_empty": 0, "n_scored": n,
        "scores": {
            name: ScoreEntry(value=value, ci=(value - half[name], value + half[name]), n=n, signature="s")
            for name, value in mean.items()
        },
        "rows": tuple(
            EvalRow(id=f"r{k}", completion="x", finish="stop", scores={name: row[k] for name, row in scores.items()})
            for k in range(n)
        ),
    }  # fmt: skip
    return Evaluation(**(known | changes))


def spread(mean: float, sd: float, n: int = 40) -> list[float]:
    """n values with exactly this mean and (n - 1) sd: half of them above, half below."""
    step = sd * math.sqrt((n - 1) / n)
    return [mean + step, mean - step] * (n // 2)


def rates(n: int, only_before: int, only_after: int) -> tuple[Evaluation, Evaluation]:
    """Two sides that are toxic on so many dialogues of their own, and on none together."""
    old = [1.0] * only_before + [0.0] * (n - only_before)
    new = [0.0] * only_before + [1.0] * only_after + [0.0] * (n - only_before - only_after)
    return evaluated({RATE: old}), evaluated({RATE: new})


def one(text: str, pilot: Any, **settings: Any) -> Plan:
    (found,) = plan(parse_claim(text), pilot, **settings)
    return found


# --- base mean 0.035, sd 0.04; every number of its paired columns, each worked by hand ---
# sd_d = 0.04 sqrt(2 (1 - rho)); n = (2.8016 sd_d / delta)^2. For -20 %, rho 0.5: sd_d = 0.04, delta = 0.007,
# (2.8016 * 0.04 / 0.007)^2 = 16.0091^2 = 256.3, so 257.


@pytest.mark.parametrize(
    ("claim", "rho", "n"),
    [
        ("-20%", 0.3, 359), ("-20%", 0.5, 257), ("-20%", 0.7, 154),
        ("-30%", 0.3, 160), ("-30%", 0.5, 114), ("-30%", 0.7, 69),
        ("-50%", 0.3, 58), ("-50%", 0.5, 42), ("-50%", 0.7, 25),
    ],
)  # fmt: skip
def test_one_evaluation_and_a_correlation_give_the_designs_table(claim: str, rho: float, n: int) -> None:
    assert one(f"{MEAN} {claim}", evaluated({MEAN: spread(0.035, 0.04)}), rho=rho).n == n


@pytest.mark.parametrize(
    ("n_pilot", "only_before", "only_after", "claim", "n"),
    [
        (100, 5, 1, "-0.04", 292),  # (1.96 sqrt(.06) + 0.8416 sqrt(.06 - .0016))^2 / .04^2 = 291.9
        (100, 4, 0, "-100%", 194),
        (1000, 12, 4, "-0.008", 1960),
    ],
)
def test_two_evaluations_of_a_rate_give_mcnemars_numbers(
    n_pilot: int, only_before: int, only_after: int, claim: str, n: int
) -> None:
    found = one(f"{RATE} {claim}", rates(n_pilot, only_before, only_after))
    assert (found.n, found.n_pilot) == (n, n_pilot)


def test_two_evaluations_give_the_sd_of_their_own_differences() -> None:
    """Differences of +0.04 and -0.04 around 0.01: sd 0.04 whatever the sides' own; the table's 257 again."""
    base = spread(0.35, 0.2, 80)
    moved = [x + d for x, d in zip(base, np.repeat(spread(0.01, 0.04, 40), 2), strict=True)]
    found = one(f"{MEAN} -0.007", (evaluated({MEAN: base}), evaluated({MEAN: moved})))
    sd = float(np.std(np.repeat(spread(0.01, 0.04, 40), 2), ddof=1))
    assert found.n == math.ceil((2.801585 * sd / 0.007) ** 2)
    assert found.visible == pytest.approx(2.801585 * sd / math.sqrt(80), rel=1e-5)


def compared(name: str, **facts: Any) -> Comparison:
    side = Side(model=ModelInfo(name="m"), eval_sha256="0" * 64)
    known: dict[str, Any] = {
        "before": 0.035, "after": 0.03, "difference": -0.005, "relative": None, "ci": (-0.01, 0.0), "p": 0.05,
        "p_holm": 0.1, "n": 300, "n_dropped": 0, "direction": "lower", "verdict": "no difference shown",
        "effect": Effect(dz=-0.125, better=0.5, tied=0.1, worse=0.4),
    }  # fmt: skip
    method = Method(ci="", resamples=1, test="", permutations=1, alpha=0.05, seed=0)
    entries = {name: Entry(**(known | facts)), "rougeL": Entry(**(known | {"effect": None, "direction": "higher"}))}
    return Comparison(
        before=side, after=side, data=DATA, decoding=Decoding(strategy="file"), method=method, scores=entries
    )


def test_a_comparison_gives_its_sd_by_the_effect_and_its_family_by_its_scores() -> None:
    """dz -0.125 of a difference of -0.005: sd 0.04. Two scores: alpha 0.025, z 2.2414 + 0.8416, n 310.4."""
    found = one(f"{MEAN} -20%", compared(MEAN))
    assert (found.n, found.family, found.n_family) == (257, 2, 311)


def test_a_corpus_score_gives_its_sd_by_the_interval() -> None:
    """Half-width 0.005 = t(299) 1.968 * sd / sqrt(300): sd 0.044; for 0.01 that is (2.8016 * 4.4)^2 = 152.0."""
    found = one("rougeL +0.01", compared(MEAN))
    assert found.n == math.ceil((2.801585 * 0.005 / 1.96793 * math.sqrt(300) / 0.01) ** 2)


def test_a_percentile_is_planned_by_its_interval_not_by_the_spread_of_rows() -> None:
    name = "toxicity_p95:minilm"
    pilot = evaluated({name: spread(0.3, 0.2, 100)})
    narrow = pilot.model_copy(update={"scores": {name: pilot.scores[name].model_copy(update={"ci": (0.29, 0.31)})}})
    assert one(f"{name} -10%", narrow).n < one(f"{name} -10%", pilot).n / 10


def test_more_power_and_closer_sides_move_n_the_right_way() -> None:
    pilot = evaluated({MEAN: spread(0.035, 0.04)})
    assert one(f"{MEAN} -20%", pilot, power=0.9).n == 344  # (1.96 + 1.2816)^2 / 2.8016^2 * 256.3 = 343.1
    assert one(f"{MEAN} -20%", pilot, rho=0.9).n < one(f"{MEAN} -20%", pilot, rho=0.0).n


def test_a_rate_of_one_side_is_split_by_the_correlation() -> None:
    """p .2 to .1 with phi .5: together .02 + .5 * .4 * .3 = .08, so .12 and .02; n 105.4 by McNemar's formula."""
    found = one(f"{RATE} -50%", evaluated({RATE: [1.0] * 20 + [0.0] * 80}), rho=0.5)
    bracket = 1.959964 * math.sqrt(0.14) + 0.841621 * math.sqrt(0.14 - 0.01)
    assert found.n == math.ceil(bracket**2 / 0.01)


@given(
    p=st.floats(0.01, 0.99), change=st.floats(-0.95, 0.95), rho=st.floats(-0.9, 0.99), n=st.integers(20, 200)
)  # fmt: skip
def test_any_possible_change_of_a_rate_has_a_number(p: float, change: float, rho: float, n: int) -> None:
    ones = round(p * n)
    pilot = evaluated({RATE: [1.0] * ones + [0.0] * (n - ones)})
    before = ones / n
    after = before + change
    if abs(change) < 1e-3 or not 0 <= after <= 1:
        return
    found = plan(Claim("c", RATE, change, relative=False), pilot, rho=rho)[0]
    assert found.n >= 1
    assert found.after == pytest.approx(after)


def test_replies_of_a_dialogue_count_as_one() -> None:
    """Each of 40 dialogues four times over: as many rows as 160, as much to learn from as 40."""
    values = spread(0.5, 0.2, 40)
    alone = evaluated({"rougeL": values})
    tied = evaluated({"rougeL": values * 4})
    rows = [row.model_copy(update={"unit": f"r{k % 40}" if k >= 40 else None}) for k, row in enumerate(tied.rows)]
    ci = alone.scores["rougeL"].ci
    scores = {"rougeL": tied.scores["rougeL"].model_copy(update={"ci": ci})}
    tied = tied.model_copy(update={"rows": tuple(rows), "scores": scores})
    found, known = one("rougeL +0.05", tied), one("rougeL +0.05", alone)
    assert found.n_pilot == known.n_pilot == 40
    assert found.n == pytest.approx(known.n, rel=0.1)  # by the interval's normal quantile, not by t
    both = compared(MEAN, n=1200, n_dialogues=300)
    assert one(f"{MEAN} -0.005", both).n_pilot == 300
    assert one(f"{MEAN} -0.005", both).n == math.ceil((2.801585 * 0.005 / 1.96793 * math.sqrt(300) / 0.005) ** 2)


# --- what a claim may say ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("toxicity -20%", ("toxicity", -0.2, True)),
        ("rougeL+2", ("rougeL", 2.0, False)),
        ("  toxicity_rate:org/name#LABEL - 0.5 % ", ("toxicity_rate:org/name#LABEL", -0.005, True)),
        ("toxicity_mean:alt-profanity-check -20%", ("toxicity_mean:alt-profanity-check", -0.2, True)),
    ],
)
def test_a_claim_is_a_name_and_a_signed_change(text: str, expected: tuple[str, float, bool]) -> None:
    found = parse_claim(text)
    assert (found.name, found.change, found.relative) == expected


@pytest.mark.parametrize(
    "text", ["", "toxicity", "toxicity 20%", "-20%", "toxicity -20% and more", "toxicity -x", "a -1e3"]
)
def test_what_is_no_claim_says_how_to_write_one(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"--plan '{text}': not a claim; write NAME -20% (relative)")):
        parse_claim(text)


def test_no_change_is_nothing_to_show() -> None:
    with pytest.raises(ConfigError, match=r"--plan 'rougeL \+0%': no change to show"):
        parse_claim("rougeL +0%")


@given(st.text(max_size=40) | st.from_regex(r"[a-z_]{1,9} ?[+-][0-9.]{1,6}%?", fullmatch=True))
def test_any_text_is_a_claim_or_the_users_mistake(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_claim(text).change != 0


def test_a_short_name_stands_for_all_its_kin_and_an_exact_one_for_itself() -> None:
    values = spread(0.3, 0.2)
    pilot = evaluated({MEAN: values, "toxicity_mean:lexicon": values, "rougeL": values, "rougeL_max": values})
    assert [p.name for p in plan(parse_claim("toxicity -20%"), pilot)] == [MEAN, "toxicity_mean:lexicon"]
    assert [p.name for p in plan(parse_claim("rougeL -20%"), pilot)] == ["rougeL"]
    with pytest.raises(ConfigError, match="score 'rouge': not compared; did you mean 'rougeL'"):
        plan(parse_claim("rouge -20%"), pilot)


def test_a_change_that_cannot_be_is_refused() -> None:
    for text, value, reason in (
        (f"{MEAN} -120%", 0.3, "would become -0.06, outside its scale"),
        (f"{RATE} +0.9", 0.5, "would become 1.4, outside its scale"),
        (f"{MEAN} -20%", 0.0, r"is 0 in the pilot, so a share of it means nothing; claim .* \+0\.01"),
        ("context_margin +20%", 0.3, "has no true zero"),
    ):
        values = [1.0, 0.0] * 20 if value == 0.5 else [value] * 40
        with pytest.raises(ConfigError, match=reason):
            plan(parse_claim(text), evaluated({text.split()[0]: values}))


def test_a_correlation_outside_its_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="--rho: got 1; a correlation"):
        plan(parse_claim("rougeL +1"), evaluated({"rougeL": spread(30, 9)}), rho=1.0)


def test_a_score_of_zeros_and_ones_is_a_rate_whatever_its_name() -> None:
    before, after = rates(100, 5, 1)
    renamed = [
        evaluated({"tag_integrity": [row.scores[RATE] or 0.0 for row in side.rows], "rougeL": spread(30, 9, 100)})
        for side in (before, after)
    ]
    assert one("tag_integrity -0.04", (renamed[0], renamed[1])).n == 292
    assert "paired differences" in one("rougeL +1", (renamed[0], evaluated({
        "tag_integrity": [0.0] * 100, "rougeL": [x + k % 3 for k, x in enumerate(spread(30, 9, 100))]
    }))).source  # fmt: skip


def test_differences_whose_mean_only_looks_like_that_of_a_rate_are_not_one() -> None:
    """+1.5, +0.5, -1, 0: half are better and a quarter worse, and the mean is 0.25 as well; yet none of them is a 1."""
    base = spread(30, 9, 80)
    moved = [x + (1.5, 0.5, -1.0, 0.0)[k % 4] for k, x in enumerate(base)]
    found = one("rougeL +1", (evaluated({"rougeL": base}), evaluated({"rougeL": moved})))
    assert "paired differences" in found.source


# --- in words, and from the command line ---


def test_a_plan_is_told_in_three_lines() -> None:
    pilot = evaluated({MEAN: spread(0.035, 0.04, 60), "rougeL": spread(30, 9, 60)})
    assert describe_plans(plan(parse_claim("toxicity -20%"), pilot)) == (
        "toxicity_mean:minilm 0.0350 -> 0.0280 (-20%): 257 dialogues",
        "  311 as one of 2 scores compared (Holm); the pilot's 60 show a change of 0.0145 (41% of it)",
        "  power 0.8, two-sided alpha 0.05; from sd 0.04 of 60 dialogues, assumed on both sides with correlation 0.5",
    )
    few = describe_plans(plan(parse_claim("toxicity -50%"), pilot, rho=0.7))[0]
    assert few.endswith("(-50%): 25 dialogues; no verdict is given below 30")


def test_the_command_takes_two_folders_a_comparison_or_one_evaluation(tmp_path: Path, capsys: Any) -> None:
    before, after = rates(100, 5, 1)
    write_evaluation(tmp_path / "a", before)
    write_evaluation(tmp_path / "b", after)
    write_comparison(tmp_path / "c", compared(MEAN))
    paths = {name: str(tmp_path / name) for name in "abc"}
    for pilot, claim, n in (
        (["--pilot", paths["a"], paths["b"]], f"{RATE} -0.04", "292"),
        (["--pilot", paths["a"], "--pilot", paths["b"]], f"{RATE} -0.04", "292"),
        (["--pilot", paths["c"]], "toxicity -20%", "257"),
        (["--pilot", f"{paths['c']}/compare.json"], "toxicity -20%", "257"),
        (["--pilot", paths["a"], "--rho", "0.5"], f"{RATE} -0.04", None),
    ):
        assert run_command(["evaluate", "--plan", claim, *pilot]) == 0
        said = capsys.readouterr().out
        assert n is None or f": {n} dialogues" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plan", "rougeL +1"], "--plan takes variance from a pilot: --pilot BEFORE AFTER"),
        (["--plan", "rougeL +1", "--pilot", "gone"], "gone: no such file"),
        (["--plan", "rougeL +1", "--pilot", "x", "--power", "1"], "--power: got 1; a chance between 0 and 1"),
        (["--plan", "up", "--pilot", "x"], "--plan 'up': not a claim"),
    ],
)
def test_what_the_command_cannot_plan_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err
