"""Each stop rule on records on both sides of its limit; state through JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.rl.health import Health

SOUND: dict[str, Any] = {
    "step": 1,
    "kl_per_sequence": 2.0,
    "abs_kl": 0.02,
    "sample_score_gap": 1e-4,
    "entropy": 2.0,
    "truncated": 0.1,
    "empty": 0.0,
    "identical": 0.05,
    "distinct_2": 0.8,
    "bad_rewards": 0.0,
    "ema:relevance": 0.5,
    "lambda:relevance": 1.0,
    "toxicity:trained": 0.6,
    "toxicity:alarm": 0.5,
    "skipped": None,
    "note": "words are not judged",
}


def verdicts(health: Health, *changes: dict[str, Any]) -> list[str | None]:
    """The rule named for each record, each a change of the sound one."""
    found = [health.check(SOUND | change) for change in changes]
    return [None if line is None else line.partition(": ")[0] for line in found]


def begun(kl_target: float | None = 6.0) -> Health:
    """A watch that saw one sound record."""
    health = Health(kl_target)
    assert health.check(SOUND) is None
    return health


def test_a_sound_run_is_not_stopped() -> None:
    assert verdicts(begun(), *[{}] * 100) == [None] * 100


@pytest.mark.parametrize(
    ("rule", "key", "at_limit", "beyond"),
    [
        ("kl", "kl_per_sequence", 24.0, 24.1),
        ("kl jump", "abs_kl", 0.5, 0.501),
        ("sample gap", "sample_score_gap", 0.05, 0.0501),
        ("entropy", "entropy", 0.2, 0.199),
    ],
)
def test_rules_that_one_record_breaks(rule: str, key: str, at_limit: float, beyond: float) -> None:
    assert verdicts(begun(), {key: at_limit}) == [None]
    assert verdicts(begun(), {key: beyond}) == [rule]


@pytest.mark.parametrize(
    ("key", "limit"), [("truncated", 0.9), ("empty", 0.1), ("identical", 0.3), ("bad_rewards", 0.05)]
)
def test_shares_are_judged_over_five_records(key: str, limit: float) -> None:
    five = [{key: limit * 0.99}] * 5
    assert verdicts(Health(), *five, *five) == [None] * 10
    above = verdicts(Health(), *[{key: limit * 1.01}] * 5)
    assert above == [None] * 4 + [key]
    # One small rollout above the limit is no trend; what came long ago does not count.
    assert verdicts(Health(), {key: 0.0}, {key: min(1.0, limit * 4.9)}, *[{key: 0.0}] * 9) == [None] * 11


@pytest.mark.parametrize("key", ["empty", "identical", "bad_rewards"])
def test_rollouts_that_are_bad_altogether_stop_soon(key: str) -> None:
    found = verdicts(Health(), {key: 1.0}, {key: 1.0})  # a fifth, then two fifths
    assert found == ([key, key] if key != "identical" else [None, key])


def test_repetition_is_measured_against_the_start() -> None:
    assert verdicts(begun(), *[{"distinct_2": 0.41}] * 9) == [None] * 9
    # the window fills: (4 * 0.8 + 0.1) / 5 = 0.66, 0.52, 0.38 < 0.4
    assert verdicts(begun(), *[{"distinct_2": 0.1}] * 3) == [None, None, "distinct_2"]


def test_without_a_target_the_kl_has_no_upper_limit() -> None:
    assert verdicts(begun(None), {"kl_per_sequence": 1e6}) == [None]


def test_a_jump_counts_from_a_twentieth_of_a_nat() -> None:
    """The first update leaves a KL of about zero: any step is infinitely many times larger."""
    health = Health()
    assert verdicts(health, {"abs_kl": 1e-9}, {"abs_kl": 0.09}, {"abs_kl": 0.5}, {"abs_kl": 5.1}) == [None] * 3 + [
        "kl jump"
    ]
    assert verdicts(Health(), {"abs_kl": 1e-9}, {"abs_kl": 0.51}) == [None, "kl jump"]


def test_negative_kl_must_last_five_records() -> None:
    low = {"kl_per_sequence": -0.51}
    assert verdicts(begun(), low, low, low, low, {}, low, low, low, low, low) == [None] * 9 + ["kl negative"]
    assert verdicts(begun(), *[{"kl_per_sequence": -0.5}] * 9) == [None] * 9


def test_a_quality_that_stays_short_while_its_multiplier_rises_stops_after_twenty() -> None:
    def short(step: int, ema: float = 0.474) -> dict[str, float]:  # 0.475 is 95 % of the start
        return {"ema:relevance": ema, "lambda:relevance": 1.0 + 0.1 * step}

    assert verdicts(begun(), *[short(k) for k in range(20)]) == [None] * 19 + ["quality:relevance"]
    assert verdicts(begun(), *[short(k, 0.476) for k in range(40)]) == [None] * 40
    falling = [short(-k) for k in range(1, 40)]
    assert verdicts(begun(), *falling) == [None] * 39
    interrupted = [short(k) if k != 10 else {"lambda:relevance": 2.0} for k in range(29)]
    assert verdicts(begun(), *interrupted) == [None] * 29


def test_a_multiplier_that_fell_to_nothing_says_that_its_bound_is_met() -> None:
    """A length may fall to 0.9 of the start's: below 0.95 of it nothing is wrong while the multiplier is 0."""
    met = {"ema:length_min": 9.2, "lambda:length_min": 0.0, "ema:length_max": 9.2, "lambda:length_max": 0.0}
    start = {"ema:length_min": 10.0, "ema:length_max": 10.0}
    assert verdicts(Health(start=start), *[met] * 60) == [None] * 60


def test_two_qualities_are_counted_apart() -> None:
    health = Health(start={"ema:rougeL": 0.3})
    pair = [{"ema:rougeL": 0.2, "lambda:rougeL": 1.0 + k, "lambda:relevance": 1.0 + k} for k in range(21)]
    assert verdicts(health, *pair) == [None] * 20 + ["quality:rougeL"]


def test_hacking_is_the_juror_worse_at_three_checks_in_a_row() -> None:
    hacked = {"toxicity:trained": 0.2, "toxicity:alarm": 0.56}
    between = {"toxicity:trained": None, "toxicity:alarm": None}  # updates without a check
    assert verdicts(begun(), hacked, between, hacked, between, between, hacked) == [None] * 5 + ["hacking"]
    honest = {"toxicity:trained": 0.2, "toxicity:alarm": 0.3}
    assert verdicts(begun(), hacked, hacked, honest, hacked, hacked) == [None] * 5
    noise = {"toxicity:trained": 0.2, "toxicity:alarm": 0.549}
    assert verdicts(begun(), *[noise] * 9) == [None] * 9
    both_worse = {"toxicity:trained": 0.7, "toxicity:alarm": 0.7}
    assert verdicts(begun(), *[both_worse] * 9) == [None] * 9


def test_five_skipped_updates_in_a_row() -> None:
    bad = {"skipped": "loss is not finite"}
    assert verdicts(begun(), bad, bad, bad, bad, {}, bad, bad, bad, bad, bad) == [None] * 9 + ["skipped"]


@pytest.mark.parametrize("value", [None, math.nan, "n/a", True])
def test_what_was_not_measured_is_not_judged(value: object) -> None:
    numbers = [key for key in SOUND if key not in ("skipped", "note")]
    assert verdicts(begun(), *[dict.fromkeys(numbers, value)] * 30) == [None] * 30
    assert verdicts(begun(), {"entropy": value}, {"entropy": 0.1}) == [None, "entropy"]  # the start is kept
    assert Health().check({}) is None


def test_an_infinite_kl_stops() -> None:
    assert verdicts(begun(), {"kl_per_sequence": math.inf}) == ["kl"]


def test_the_start_may_be_given() -> None:
    assert verdicts(Health(start={"entropy": 30.0}), {}) == ["entropy"]


def test_a_rule_that_was_named_starts_over() -> None:
    low = {"kl_per_sequence": -1.0}
    assert verdicts(begun(), *[low] * 10) == ([None] * 4 + ["kl negative"]) * 2
    assert verdicts(Health(), *[{"truncated": 1.0}] * 10) == ([None] * 4 + ["truncated"]) * 2


def test_lines_say_what_the_limit_was_and_what_to_do() -> None:
    assert begun().check(SOUND | {"kl_per_sequence": 41.23}) == (
        "kl: 41.2 nats per completion to the start policy, limit 4 x kl_target 6; raise beta or lower learning_rate"
    )
    health = Health()
    lines = [health.check(SOUND | {"empty": 0.3}) for _ in range(2)]
    assert lines[1] == (
        "empty: 12% of completions over the last 5 updates, limit 10%; silence earns too much; "
        "constrain the length, and check the rewards with their probes"
    )
    hacked = SOUND | {"toxicity:trained": 0.2, "toxicity:alarm": 0.9}
    watch = begun()
    assert [watch.check(hacked) for _ in range(3)][2] == (
        "hacking: toxicity went from 0.6 to 0.2 by the reward's scorer, 0.5 to 0.9 by the juror, at 3 checks in a row; "
        "the policy learned the scorer, not the task; take an earlier checkpoint, or add a second scorer"
    )


RECORDS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            key: st.none() | st.sampled_from([-1.0, 0.0, 0.04, 0.2, 0.5, 1.0, 3.0, math.nan, math.inf])
            for key in SOUND
            if key not in ("skipped", "note", "step")
        }
        | {"skipped": st.none() | st.just("loss")},
    ),
    max_size=12,
)


@given(RECORDS, st.integers(0, 12), st.none() | st.floats(0.1, 10))
def test_a_watch_restored_from_json_goes_on_as_if_nothing_had_happened(
    records: list[dict[str, Any]], cut: int, kl_target: float | None
) -> None:
    whole, first = Health(kl_target), Health(kl_target)
    want = [whole.check(record) for record in records]
    got = [first.check(record) for record in records[:cut]]
    second = Health.from_dict(json.loads(json.dumps(first.to_dict(), allow_nan=False)))
    got += [second.check(record) for record in records[cut:]]
    assert got == want
    assert all(line is None or ("\n" not in line and ": " in line and "; " in line) for line in got)
