"""Judging: what completions earn under the constraint, which rewards may be used, what the log and a checkpoint say."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rl_tiny import ValueReward, rl_config

from dialtune.errors import ConfigError, TrainingError
from dialtune.metrics.base import is_empty
from dialtune.models.base import Query
from dialtune.rewards.base import FunctionReward
from dialtune.rewards.toxicity import Civility
from dialtune.rl import judging as module
from dialtune.rl.judging import COLUMNS, Judging
from dialtune.rl.rollouts import Rollout
from dialtune.scorers.table import find_scorer
from dialtune.types import Example, FinishReason, Message

Rewards = dict[str, tuple[Any, float]]


def rows(n: int) -> list[Example]:
    return [Example(f"d{i}", (Message("user", "Hello."),), ("gold",)) for i in range(n)]


def number(text: str) -> float:
    """The number that a text starts with: what these tests are scored by."""
    return float(text.split()[0]) if text.split() else 0.0


def second(text: str) -> float:
    """The second number, as a quality in [0,1]; NaN does not exist here."""
    return float(text.split()[1])


class Scorer:
    """A toxicity scorer: the log-odds are the text's first number."""

    name = "numbers"

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([number(text) for text in texts])

    def settings(self) -> dict[str, str]:
        return {"scorer": "numbers", "label": "toxic"}


def judging(
    monkeypatch: pytest.MonkeyPatch | None = None, rewards: Rewards | None = None, alarm: Any = None, **settings: Any
) -> Judging:
    """Judging by the first number of a text; with a constraint, its quality `rougeL` is the second number."""
    if monkeypatch is not None:
        monkeypatch.setattr(module, "find_reward", lambda name: ValueReward(second, name))
    config = rl_config("m", "o", **settings)
    return Judging(rewards or {"value": (ValueReward(number), 1.0)}, config, alarm=alarm)


ONE = {"qualities": ["rougeL"], "delta": 0.02, "length": None, "multiplier": 1.0}


def judge(found: Judging, texts: Sequence[str], lengths: Sequence[int] | None = None, cut: Sequence[int] = ()) -> Any:
    finish: list[FinishReason] = ["length" if i in cut else "stop" for i in range(len(texts))]
    return found(rows(len(texts)), texts, torch.tensor(lengths or [4] * len(texts)), finish)


def rollout_of(
    texts: Sequence[str], rewards: Sequence[float], *, group: int, valid: Sequence[bool] | None = None,
    parts: Mapping[str, Sequence[float]] | None = None, lengths: Sequence[int] | None = None, cut: Sequence[int] = (),
    problems: tuple[str, ...] = (),
) -> Rollout:  # fmt: skip
    n = len(texts)
    lengths = lengths or [3] * n
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    query = Query(torch.ones(n // group, 1, dtype=torch.int64), torch.ones(n // group, 1, dtype=torch.bool))
    return Rollout(
        example_ids=tuple(f"d{i}" for i in range(n // group)), query=query,
        response=torch.zeros(mask.shape, dtype=torch.int64), mask=mask, sampled_logprobs=torch.zeros(mask.shape),
        ref_logprobs=torch.zeros(mask.shape), rewards=torch.tensor(rewards),
        valid=torch.tensor(valid or [True] * n), texts=tuple(texts),
        finish=tuple("length" if i in cut else "stop" for i in range(n)),
        parts={name: torch.tensor(part, dtype=torch.float32) for name, part in (parts or {}).items()},
        problems=problems,
    )  # fmt: skip


# what is measured once


def test_scales_and_bounds_are_those_of_the_start_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judging(monkeypatch, constraint={**ONE, "length": (0.9, 1.2)})
    texts = ["1 0.5", "3 0.7", "5 0.9", "7 0.3"]  # mean 4, sd sqrt(5); quality mean 0.6, sd sqrt(0.05)
    found.calibrate(rows(4), texts, [2, 4, 4, 6])
    scale = found.composite.scales["value"]
    assert (scale.mean, scale.std, scale.n) == (4.0, pytest.approx(math.sqrt(5)), 4)
    by_name = {m.name: m for m in found.constraint.multipliers}
    assert list(by_name) == ["rougeL", "length_min", "length_max"]
    assert by_name["rougeL"].tau == pytest.approx(0.98 * 0.6)
    assert by_name["rougeL"].sd == pytest.approx(math.sqrt(0.05))
    assert (by_name["length_min"].tau, by_name["length_max"].tau) == (pytest.approx(3.6), pytest.approx(4.8))
    assert [m.value for m in found.constraint.multipliers] == [1.0, 1.0, 0.0]
    assert found.start == {"value": 4.0, "rougeL": pytest.approx(0.6), "tokens": 4.0}


def test_a_rollout_of_hard_prompts_is_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the start policy met them, it found them as hard."""
    found = judging(monkeypatch, constraint={**ONE, "memory": 0.0, "multiplier": 1.0})
    asked = [row for row in rows(4) for _ in range(2)]
    texts = ["1 0.2", "1 0.2", "1 0.4", "1 0.4", "1 0.6", "1 0.6", "1 0.8", "1 0.8"]
    found.calibrate(asked, texts, [4] * 8, group=2)
    assert found.shifts["rougeL"] == pytest.approx({"d0": -0.3, "d1": -0.1, "d2": 0.1, "d3": 0.3})
    quality = {"rougeL": [0.2, 0.2, 0.4, 0.4]}
    hard = rollout_of(["1 0.2", "1 0.2", "1 0.4", "1 0.4"], [1.0] * 4, group=2, parts=quality)
    found.update(hard)
    held = found.constraint.multipliers[0]
    assert held.ema == pytest.approx(0.5)  # as good as the start policy's mean, though these two say 0.3
    again = judging(monkeypatch, constraint={**ONE, "memory": 0.0})
    again.load_dict(json.loads(json.dumps(found.to_dict())))
    assert again.shifts == found.shifts
    older = {name: value for name, value in found.to_dict().items() if name != "shifts"}
    again.load_dict(older)
    again.update(hard)  # a run that began without them goes on without them
    assert again.constraint.multipliers[0].ema == pytest.approx(0.3)


def test_a_quality_too_low_to_be_held_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """D22."""
    found = judging(monkeypatch, constraint=ONE)
    with pytest.raises(TrainingError, match=r"constraint 'rougeL': mean 0\.020 under the start policy; below 0\.05"):
        found.calibrate(rows(2), ["1 0.01", "2 0.03"], [4, 4])


# what completions earn


def test_the_reward_under_the_constraint_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judging(monkeypatch, constraint=ONE)
    found.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "7 0.3"], [4] * 4)
    judged = judge(found, ["5 0.7", "1 0.5"])
    for got, (s, q) in zip(judged.rewards.tolist(), [(5, 0.7), (1, 0.5)], strict=True):
        slack = (q - 0.98 * 0.6) / math.sqrt(0.05)
        assert got == pytest.approx((s / math.sqrt(5) + 1.0 * slack) / (1 + 1.0), rel=1e-6)
    assert judged.parts["value"].tolist() == [5, 1]
    assert judged.parts["rougeL"].tolist() == pytest.approx([0.7, 0.5])
    assert judged.valid.tolist() == [True, True]


@pytest.mark.parametrize(("truncation", "price"), [("penalise", 1.0), ("mask", 0.0)])
def test_a_completion_that_hit_the_cap_pays_one_standard_deviation(truncation: str, price: float) -> None:
    found = judging(truncation=truncation)
    found.calibrate(rows(2), ["1", "3"], [4, 4])
    whole, cut = judge(found, ["2", "2"], cut=[1]).rewards.tolist()
    assert whole - cut == price


def test_nothing_earns_less_than_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judging(monkeypatch, truncation="penalise", constraint={**ONE, "length": (0.9, 1.2)})
    monkeypatch.setattr(found, "qualities", {"rougeL": ValueReward(lambda t: second(t) if t.split() else 0.5, "q")})
    found.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "7 0.3"], [4] * 4)
    judged = judge(found, ["-900 0.0", "", " ", "7 0.9"], [40, 1, 2, 4], cut=[0])
    rewards = judged.rewards.tolist()
    assert max(rewards[1:3]) < min(rewards[0], rewards[3])
    assert judged.parts["empty"].tolist() == [0, 1, 1, 0]
    assert judged.parts["rougeL"].tolist()[1:3] == [0, 0]
    assert judged.valid.all()


def test_silence_is_divided_like_its_siblings_where_a_quality_does_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without a reference: the quality leaves every sibling's sum, the empty one's too."""
    value = ValueReward(lambda text: number(text) if text.split() else -8.0)
    found = judging(monkeypatch, rewards={"value": (value, 3.0)}, constraint={**ONE, "multiplier": 50.0})
    found.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "-7 0.3"], [4] * 4)
    monkeypatch.setattr(found, "qualities", {"rougeL": FunctionReward(lambda completions: [None] * len(completions))})
    silent, toxic = judge(found, ["", "-8 0.1"]).rewards.tolist()
    assert silent <= toxic


def test_the_alarm_is_a_probability_that_no_reward_reads() -> None:
    found = judging(alarm=Scorer())
    found.calibrate(rows(2), ["1", "3"], [4, 4])
    with_alarm = judge(found, ["0", "2"])
    assert with_alarm.parts["alarm"].tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
    assert judge(judging(), ["0", "2"]).parts.keys() == {"value", "empty"}


# rewards that fail


def silent_above(limit: float) -> Callable[[str], float]:
    return lambda text: number(text) if number(text) < limit else math.nan


def test_a_row_whose_reward_failed_is_left_out_counted_and_named() -> None:
    found = judging(rewards={"value": (ValueReward(silent_above(100)), 1.0)})
    found.calibrate(rows(4), ["1", "2", "3", "4"], [4] * 4)
    texts = ["1", "2", "100", *["3"] * 21]
    judged = judge(found, texts)
    assert judged.valid.tolist() == [True, True, False, *[True] * 21]
    assert judged.rewards[2] == 0
    assert math.isnan(judged.parts["value"][2])
    assert judged.problems == ("reward 'value' gave nan for 1 of 24 completions, which are masked: 'd2'",)
    assert sum(found.bad) == 1


def test_more_than_one_in_twenty_stop_the_run_and_are_not_held_against_a_mended_reward() -> None:
    found = judging(rewards={"value": (ValueReward(silent_above(100)), 1.0)})
    found.calibrate(rows(4), ["1", "2", "3", "4"], [4] * 4)
    judge(found, ["1"] * 40)
    before = copy.deepcopy(found.to_dict())
    with pytest.raises(TrainingError) as caught:
        judge(found, ["100"] * 4 + ["1"] * 12)
    assert str(caught.value) == (
        "4 of the last 56 completions had no usable reward (limit 5%): "
        "reward 'value' gave nan for 4 of 16 completions, which are masked: 'd0', 'd1', 'd2', 1 more"
    )
    assert found.to_dict() == before
    judge(found, ["100"] * 2 + ["1"] * 14)  # 2 of 56 are fewer


def test_the_window_forgets() -> None:
    found = judging(rewards={"value": (ValueReward(silent_above(100)), 1.0)})
    found.calibrate(rows(4), ["1", "2", "3", "4"], [4] * 4)
    for _ in range(40):  # 5 of 100 each time, for ever
        judge(found, ["100"] * 5 + ["1"] * 95)
    assert len(found.bad) == 256


def test_a_reward_that_applies_to_nothing_is_said_to() -> None:
    class Silent(ValueReward):
        def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Any:
            values = super().scores(examples, completions)
            return np.ma.array(values, mask=values >= 100)

    found = judging(rewards={"value": (Silent(number), 1.0)})
    found.calibrate(rows(4), ["1", "2", "3", "4"], [4] * 4)
    with pytest.raises(TrainingError, match=r"no reward applies to 8 of 8 completions, which are left out"):
        judge(found, ["100"] * 8)


@pytest.mark.parametrize("name", ["tokens", "reward", "loss", "entropy", "step"])
def test_a_name_that_the_log_uses_is_refused(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        judging(rewards={name: (ValueReward(number, name), 1.0)})
    assert str(caught.value) == (
        f"reward '{name}': metrics.jsonl has a column of that name; give the reward another (name=...)"
    )


# multipliers


def qualities(found: Judging, values: Sequence[float], lengths: Sequence[int] | None = None) -> None:
    texts = [f"1 {value}" for value in values]
    parts = {"value": [1.0] * len(values), "rougeL": list(values)}
    found.update(rollout_of(texts, [0.0] * len(values), group=2, parts=parts, lengths=lengths))


def test_a_multiplier_rises_while_its_quality_is_short_and_falls_while_there_is_slack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = judging(monkeypatch, constraint={**ONE, "learning_rate": 0.1})
    found.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "7 0.3"], [4] * 4)
    qualities(found, [0.1, 0.1, 0.1, 0.1])
    # By hand: ema = 0.9 * 0.6 + 0.1 * 0.1 = 0.55; groups agree, so the margin is 0; lambda = 1 + 0.1 (tau - ema) / sd.
    short = (0.588 - 0.55) / math.sqrt(0.05)
    assert found.constraint.record() == {
        "lambda:rougeL": pytest.approx(1 + 0.1 * short),
        "ema:rougeL": pytest.approx(0.55),
        "tau:rougeL": pytest.approx(0.588),
    }
    for _ in range(30):
        qualities(found, [0.9, 0.9, 0.9, 0.9])
    assert found.constraint.multipliers[0].value < 1


def test_length_is_held_from_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judging(monkeypatch, constraint={**ONE, "length": (0.9, 1.2), "learning_rate": 1.0})
    found.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "7 0.3"], [4, 5, 3, 4])
    for lengths, rising, still in (([9] * 4, "length_max", "length_min"), ([1] * 4, "length_min", "length_max")):
        for _ in range(12):
            before = {m.name: m.value for m in found.constraint.multipliers}
            qualities(found, [0.6] * 4, lengths)
        after = {m.name: m.value for m in found.constraint.multipliers}
        assert after[rising] > before[rising]
        assert after[still] <= before[still]


def test_rows_that_do_not_count_move_no_multiplier(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judging(monkeypatch, constraint=ONE)
    found.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "7 0.3"], [4] * 4)
    before = found.to_dict()
    parts = {"rougeL": [0.1] * 4}
    found.update(rollout_of(["1 0.1"] * 4, [0.0] * 4, group=2, parts=parts, valid=[False] * 4))
    assert found.to_dict() == before


def test_a_constraint_that_cannot_be_met_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judging(monkeypatch, constraint={**ONE, "learning_rate": 10.0, "max_multiplier": 2.0})
    found.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "7 0.3"], [4] * 4)
    for _ in range(24):
        assert found.infeasible() is None or found.constraint.multipliers[0].n_at_cap >= 20
        qualities(found, [0.0] * 4)
    assert "constraint 'rougeL' is infeasible: its multiplier stood at 2" in str(found.infeasible())


# the log


def test_the_record_of_a_rollout_by_hand() -> None:
    texts = ["a b a b", "a b", "c d", "c d", "x", "y z", "y z", ""]
    rollout = rollout_of(
        texts, [1.0, 1.0, 3.0, 3.0, 2.0, 2.0, 2.0, 0.0], group=4, valid=[True] * 7 + [False],
        lengths=[4, 2, 2, 2, 1, 2, 2, 1], cut=[0], parts={"empty": [0] * 7 + [1], "p": [1.0] * 7 + [math.nan]},
        problems=("reward 'p' gave nan",),
    )  # fmt: skip
    record = judging().record(rollout)
    assert record["reward"] == 2.0  # of the seven valid rows
    assert record["reward_std"] == pytest.approx(math.sqrt(4 / 7))
    assert record["frac_zero_std"] == 0.5  # three valid rows of the second group earn the same; the fourth is not there
    assert record["tokens"] == 2.0
    assert record["tokens_p95"] == pytest.approx(4 - 0.35 * 2)  # place 6.65 of 1 1 2 2 2 2 2 4
    assert record["truncated"] == 1 / 8
    assert record["bad_rewards"] == 1 / 8
    assert record["identical"] == 4 / 8  # the pair `c d` of one prompt and the pair `y z` of the other
    # word pairs: ab ba ab, ab, cd, cd, yz, yz: 8 of which ab, ba, cd, yz are different
    assert record["distinct_2"] == 4 / 8
    assert (record["p"], record["empty"]) == (1.0, 1 / 8)
    assert record["problems"] == ["reward 'p' gave nan"]
    json.dumps(record, allow_nan=False)


def test_the_same_words_for_two_prompts_are_not_a_sibling_s() -> None:
    rollout = rollout_of(["yes it is", "no", "yes it is", "maybe"], [0.0, 1.0, 0.0, 1.0], group=2)
    assert judging().record(rollout)["identical"] == 0


def test_single_words_have_no_pairs_and_are_not_called_repetition() -> None:
    assert judging().record(rollout_of(["a", "a"], [0.0, 1.0], group=2))["distinct_2"] is None


def test_a_reward_called_length_and_the_length_in_tokens_are_two_things() -> None:
    found = judging(rewards={"length": (ValueReward(number, "length"), 1.0)})
    found.calibrate(rows(2), ["1", "3"], [10, 20])
    assert found.start == {"length": 2.0, "tokens": 15.0}
    record = found.record(rollout_of(["1", "3"], [0.0, 1.0], group=2, parts={"length": [1.0, 3.0]}, lengths=[7, 9]))
    assert (record["length"], record["tokens"]) == (2.0, 8.0)


def test_a_toxicity_that_failed_on_a_row_can_still_be_written_down() -> None:
    rollout = rollout_of(["a", "b"], [0.0, 1.0], group=2, parts={"toxicity": [math.nan, 0.0]}, valid=[False, True])
    civil = judging(rewards={"toxicity": (Civility(Scorer()), 1.0)})
    record = civil.record(rollout)
    assert (record["toxic"], record["toxicity"]) == (0.5, 0.0)
    nothing = rollout_of(["a", "b"], [0.0, 1.0], group=2, parts={"toxicity": [math.nan] * 2}, valid=[False] * 2)
    assert "toxic" not in civil.record(nothing)
    assert civil.record(nothing)["reward"] is None
    json.dumps(civil.record(nothing), allow_nan=False)


def test_a_toxicity_of_any_name_is_shown_as_a_probability() -> None:
    rewards = {f"toxicity:{name}": (Civility(Scorer(), f"toxicity:{name}"), 1.0) for name in ("a", "b")}
    parts = {"toxicity:a": [0.0, 0.0], "toxicity:b": [-math.log(3), -math.log(3)]}  # probabilities 1/2 and 3/4
    record = judging(rewards=rewards).record(rollout_of(["a", "b"], [0.0, 1.0], group=2, parts=parts))
    assert record["toxic"] == pytest.approx(0.625)


def test_one_completion_per_prompt_has_no_siblings_to_differ_from() -> None:
    assert judging(method="ppo", num_generations=1).record(rollout_of(["a"], [1.0], group=1))["frac_zero_std"] is None


# the verdict on a checkpoint


def verdict(
    found: Judging, before: Sequence[str], after: Sequence[str], tokens: tuple[float, float] = (4, 4)
) -> dict[str, Any]:
    def measured(texts: Sequence[str], length: float) -> dict[str, Any]:
        values = dict(found.measure(rows(len(texts)), texts))
        empty = [float(not text.split()) for text in texts]
        return values | {"tokens": np.full(len(texts), length), "empty": np.array(empty)}

    return found.verdict(measured(before, tokens[0]), measured(after, tokens[1]))


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Judging:
    """Toxicity by the first number, the quality by the second, length within 0.9 and 1.2."""
    rewards: Rewards = {"toxicity": (Civility(Scorer()), 1.0)}
    found = judging(monkeypatch, rewards, constraint={**ONE, "length": (0.9, 1.2)})
    found.calibrate(rows(3), ["1 0.5", "2 0.7", "3 0.6"], [4, 4, 4])
    return found


START = [f"{2 + i % 2} {0.5 + 0.01 * i}" for i in range(20)]


def test_less_toxic_text_of_the_same_quality_is_better_and_acceptable(held: Judging) -> None:
    row = verdict(held, START, [f"-2 {0.5 + 0.01 * i}" for i in range(20)])
    assert row["eval_objective"] == row["eval_toxicity"] == pytest.approx(1 / (1 + math.exp(2)))
    assert (row["eval_rougeL_ratio"], row["eval_rougeL_ratio_low"]) == (1.0, 1.0)
    assert row["eval_acceptable"] is True
    assert verdict(held, START, START)["eval_objective"] > row["eval_objective"]


@pytest.mark.parametrize(
    ("after", "tokens"),
    [
        ([f"-2 {0.9 * (0.5 + 0.01 * i)}" for i in range(20)], (4, 4)),  # a tenth of the quality lost
        ([f"-2 {0.5 + 0.01 * i}" for i in range(20)], (4, 3.5)),  # too short
        ([f"-2 {0.5 + 0.01 * i}" for i in range(20)], (4, 5)),  # too long
    ],
    ids=["quality", "short", "long"],
)
def test_what_was_lost_makes_a_checkpoint_unacceptable(
    held: Judging, after: list[str], tokens: tuple[float, float]
) -> None:
    assert verdict(held, START, after, tokens)["eval_acceptable"] is False


def test_silence_is_not_acceptable(held: Judging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "qualities", {})
    quiet = ["", *START[1:]]
    assert verdict(held, START, quiet)["eval_acceptable"] is False
    assert verdict(held, START, START)["eval_acceptable"] is True


def test_without_a_toxicity_reward_the_weighted_reward_decides() -> None:
    low = ValueReward(lambda text: -number(text), "low")
    found = judging(rewards={"low": (low, -2.0), "length": (ValueReward(lambda _: 1.0, "length"), 0.1)})
    found.calibrate(rows(3), ["1", "2", "3"], [4] * 3)
    small = verdict(found, ["1", "2"], ["1", "1"], (4, 9))
    large = verdict(found, ["1", "2"], ["3", "3"], (4, 1))
    assert large["eval_objective"] < small["eval_objective"]  # -2 * -3 is more than -2 * -1, whatever the lengths
    assert large["eval_objective"] == -large["eval_reward"]


def test_of_replies_the_mean_reward_decides_and_toxicity_is_shown() -> None:
    rewards: Rewards = {"toxicity": (Civility(Scorer()), 0.5), "near": (ValueReward(second, "near"), 1.0)}
    found = judging(rewards=rewards, task="respond")
    found.calibrate(rows(3), ["1 0.5", "2 0.7", "3 0.6"], [4, 4, 4])
    row = verdict(found, START, ["-2 0.75"] * 20)
    assert row["eval_toxicity"] == pytest.approx(1 / (1 + math.exp(2)))
    assert row["eval_near"] == 0.75
    assert row["eval_objective"] == -row["eval_reward"]
    nearer, civiler = verdict(found, START, ["2 0.9"] * 20), verdict(found, START, ["1.9 0.5"] * 20)
    assert nearer["eval_objective"] < civiler["eval_objective"]
    assert nearer["eval_toxicity"] > civiler["eval_toxicity"]


def test_a_reward_takes_no_name_of_a_verdict() -> None:
    found = judging(rewards={"objective": (ValueReward(number, "objective"), -1.0)})
    found.calibrate(rows(2), ["1", "2"], [4] * 2)
    row = verdict(found, ["1", "2"], ["3", "3"])
    assert row["eval_objective"] == -row["eval_reward"] > 0


def test_rows_of_one_dialogue_are_drawn_together(held: Judging) -> None:
    """Ten dialogues lose a tenth and ten gain one: forty rows say that nothing changed more surely than twenty."""
    after = [f"-2 {(0.9 + 0.2 * (i % 2)) * (0.5 + 0.01 * i)}" for i in range(20)]
    twice = [rows_of for text in zip(START, after, strict=True) for rows_of in (text, text)]
    before, changed = [b for b, _ in twice], [a for _, a in twice]

    def low(unit: list[int] | None) -> float:
        measured = [dict(held.measure(rows(40), texts)) for texts in (before, changed)]
        for values in measured:
            values |= {"tokens": np.full(40, 4.0), "empty": np.zeros(40)}
        return held.verdict(*measured, unit)["eval_rougeL_ratio_low"]

    by_dialogue = low([i // 2 for i in range(40)])
    assert by_dialogue == pytest.approx(verdict(held, START, after)["eval_rougeL_ratio_low"], abs=1e-9)
    assert by_dialogue < low(None)


def test_what_repeats_pays_and_its_multiplier_rises() -> None:
    """The real quality: siblings that earn the same, of which one says everything three times."""
    found = judging(constraint={"qualities": ["no_repetition"], "length": None, "learning_rate": 0.5})
    plain, again = "1 and that was all he said", " ".join(["1 and that was all he said"] * 3)
    found.calibrate(rows(4), [plain, plain, "3 then it rained for hours", again], [7] * 4)
    good, bad = judge(found, [plain, again]).rewards.tolist()
    assert good > bad
    rollout = rollout_of([again] * 4, [0.0] * 4, group=2, parts={"no_repetition": [7 / 18] * 4})
    before = found.constraint.record()["lambda:no_repetition"]
    for _ in range(3):
        found.update(rollout)
    assert found.constraint.record()["lambda:no_repetition"] > before
    # By hand: 21 words are 18 runs of four; the 7 of one saying that wraps around once are distinct, 11 come again.
    assert judge(found, [again] * 2).parts["no_repetition"].tolist() == pytest.approx([7 / 18] * 2)


def test_a_mean_of_nothing_is_none_and_not_nan(held: Judging) -> None:
    nothing = {"reward": np.full(2, np.nan), "rougeL": np.full(2, np.nan), "toxic:toxicity": np.full(2, np.nan)}
    nothing |= {"tokens": np.array([4.0, 4.0]), "empty": np.zeros(2)}
    row = held.verdict(nothing, nothing)
    assert (row["eval_objective"], row["eval_rougeL"], row["eval_rougeL_ratio"]) == (None, None, None)
    assert row["eval_acceptable"] is False
    json.dumps(row, allow_nan=False)


def test_a_juror_that_disagrees_is_written_for_the_hacking_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judging(rewards={"toxicity": (Civility(Scorer()), 1.0)}, alarm=Scorer())
    found.calibrate(rows(2), ["1", "2"], [4, 4])
    row = verdict(found, START, ["0"] * 20)
    assert row["toxicity:trained"] == row["toxicity:alarm"] == row["eval_alarm"] == 0.5


# the probes


def test_a_reward_that_changes_its_mind_fails_d18_and_no_other() -> None:
    draw = np.random.default_rng(0)
    found = judging(rewards={"moody": (ValueReward(lambda text: float(draw.normal()), "moody"), 1.0)})
    checks = {check.name: check.problem for check in found.checks()}
    assert "reward 'moody' is not deterministic or mixes rows" in str(checks["D18"])
    assert checks["D21"] is None


def test_what_a_toxicity_reward_makes_of_misspelt_negated_and_quoted_abuse_is_told() -> None:
    found = judging(rewards={"toxicity": (Civility(find_scorer("lexicon")), 1.0)}).checks(rows(2))
    (title,) = [check.title for check in found if check.name == "D21"]
    told = re.fullmatch(
        r"reward toxicity ranks probes rightly: AUC (0\.9\d\d|1\.000), finds (\d+)% of misspelt abuse, "
        r"takes (\d+)% of negated, and (\d+)% of quoted abuse for toxic",
        title,
    )
    assert told is not None, title


def test_a_reward_upside_down_fails_d21_and_says_which_label_it_reads() -> None:
    from dialtune.rewards.probes import load_probes

    toxic = {probe.text for probe in load_probes() if probe.family == "toxic"}

    class Swapped(Scorer):
        def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
            return np.array([-3.0 if text in toxic else 2.0 + len(text) % 3 for text in texts])

    checks = {c.name: c.problem for c in judging(rewards={"toxicity": (Civility(Swapped()), 1.0)}).checks()}
    assert checks["D18"] is None
    assert str(checks["D21"]).startswith(f"reward 'toxicity' is upside down: mean 3.00 on {len(toxic)} toxic probes")
    assert "It reads label 'toxic' of the scorer 'numbers'." in str(checks["D21"])


def test_a_reward_of_one_value_fails_d21() -> None:
    checks = {c.name: c.problem for c in judging(rewards={"flat": (ValueReward(lambda _: 1.0, "flat"), 1.0)}).checks()}
    assert "gives 1 to all" in str(checks["D21"])


def test_qualities_that_can_be_held_are_shown(held: Judging) -> None:
    titles = {check.name: check.title for check in held.checks()}
    assert titles["D22"] == "qualities of the start policy can be held: rougeL 0.600"


def test_a_reward_that_reads_a_column_is_probed_on_rows_that_have_it() -> None:
    def weighs(completions: list[str], topic: list[str]) -> list[float]:
        return [float(len(text) + len(name)) for text, name in zip(completions, topic, strict=True)]

    found = judging(rewards={"weighs": (FunctionReward(weighs, judges="other"), 1.0)})
    own = [replace(row, meta={"topic": "rent"}) for row in rows(3)]
    assert [check.problem for check in found.checks(own)] == [None, None]
    assert "asks for 'topic'" in str(found.checks(rows(3))[1].problem)


# a checkpoint


def test_a_forced_resume_goes_on_under_the_changed_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = judging(monkeypatch, constraint={**ONE, "length": (0.9, 1.2)})
    before.calibrate(rows(4), ["1 0.5", "3 0.7", "5 0.9", "7 0.3"], [4] * 4)
    changed = {**ONE, "length": (0.5, 1.2), "delta": 0.1, "learning_rate": 0.3, "memory": 0.5, "proportional": 2.0}
    after = judging(monkeypatch, constraint={**changed, "max_multiplier": 9.0})
    after.load_dict(before.to_dict())
    least, short, most = after.constraint.multipliers
    assert (least.tau, short.tau, most.tau) == pytest.approx((0.9 * 0.6, 0.5 * 4, 1.2 * 4))
    assert (after.constraint.rate, after.constraint.cap) == (0.3, 9.0)
    assert (after.constraint.memory, after.constraint.proportional) == (0.5, 2.0)
    assert least.value == 1.0  # where it was


def test_its_state_is_json_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge restored from a checkpoint gives what the one that never stopped gives, bit for bit."""
    settings: dict[str, Any] = {"constraint": {**ONE, "length": (0.9, 1.2)}, "truncation": "penalise"}
    one = judging(monkeypatch, **settings)
    one.calibrate(rows(4), ["1 0.51", "3 0.72", "5 0.93", "7 0.34"], [4, 6, 3, 5])
    texts = ["2 0.313", "4 0.717", "9 0.111", "1 0.999"]
    parts = {"rougeL": [second(text) for text in texts]}
    for _ in range(3):
        judge(one, texts, [4, 5, 6, 7], cut=[3])
        one.update(rollout_of(texts, [0.0] * 4, group=2, parts=parts, lengths=[4, 5, 6, 7]))
    state = json.loads(json.dumps(one.to_dict(), allow_nan=False))
    two = judging(monkeypatch, **settings)
    two.load_dict(state)
    for _ in range(3):
        mine, theirs = (judge(found, texts, [4, 5, 6, 7], cut=[0]) for found in (one, two))
        assert mine.rewards.equal(theirs.rewards)
        for found in (one, two):
            found.update(rollout_of(texts, [0.0] * 4, group=2, parts=parts, lengths=[4, 5, 6, 7]))
        assert one.to_dict() == two.to_dict()
        assert (one.bad, one.start, one.composite.scales) == (two.bad, two.start, two.composite.scales)
    fixed = {"rewards", "config", "alarm", "qualities"}  # from the recipe
    fixed.add("sample")  # for the checks before the first update
    assert set(vars(one)) == fixed | {"composite", "constraint", "start", "shifts", "bad"}
    assert set(state) == {"scales", "constraint", "start", "shifts", "bad"}


def test_what_is_rewarded_held_and_watched_goes_into_run_json(held: Judging) -> None:
    assert held.describe() == {"rewards": {"toxicity": 1.0}, "qualities": ["rougeL"], "alarm": None}
    assert judging(alarm=Scorer()).describe()["alarm"] == "numbers"


def test_columns_are_those_of_a_record() -> None:
    record = judging().record(rollout_of(["a b"] * 2, [0.0, 1.0], group=2))
    assert set(record) - {"value"} <= COLUMNS


# what can be written without reading


def cheap(found: Judging, texts: Sequence[str]) -> Any:
    found.calibrate(rows(len(texts)), texts, [len(text.split()) for text in texts])
    return {check.name: check for check in found.checks()}["D24"]


def polite(text: str) -> float:
    """What most of OWN earns is 1; two of the polite probes earn more."""
    much = {"Thank you very much": 1.5, "Have a wonderful day": 1.2, "a b c": 1.0}
    return next((value for part, value in much.items() if part in text), 0.5)


OWN = ["a b c d e f", "a b c d e g", "b c", "a b c d e h"]  # earns 1 but for one


def rewarded(constraint: Any = None) -> Judging:
    return judging(rewards={"polite": (ValueReward(polite, "polite"), 1.0)}, constraint=constraint)


def test_a_sentence_that_suits_every_dialogue_is_told_and_stops_nothing() -> None:
    check = cheap(rewarded(), OWN)
    assert check.problem is None
    sd = float(np.std([1, 1, 0.5, 1]))
    assert check.advice == (
        f"'Thank you very much for your kind help.' of every dialogue earns {1.5 / sd:.2f}, the median completion of "
        f"the start policy {1 / sd:.2f}, and no constraint is against it: a policy may learn that. "
        "Add relevance to rewards or qualities"
    )


def test_a_quality_that_it_lacks_takes_care_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_reward", lambda name: ValueReward(lambda text: float("b c" in text), name))
    assert cheap(rewarded({**ONE, "length": None}), OWN).advice is None
    monkeypatch.setattr(module, "find_reward", lambda name: ValueReward(lambda text: 0.5, name))
    assert cheap(rewarded({**ONE, "length": None}), OWN).advice is not None


def test_a_length_that_it_lacks_takes_care_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_reward", lambda name: ValueReward(lambda text: 0.5, name))
    long = [text + " x" * 40 for text in OWN]
    assert cheap(rewarded({**ONE, "length": (0.9, 1.2)}), long).advice is None


def test_a_copy_is_told_where_it_pays() -> None:
    def ends(text: str) -> float:
        return 0.0 if is_empty(text) else 3.0 if text.endswith("Hello.") else 1.0

    assert str(cheap(judging(rewards={"ends": (ValueReward(ends, "ends"), 1.0)}), OWN).advice).startswith(
        "a copy of the dialogue earns"
    )


def test_the_start_policy_that_earns_most_needs_no_advice() -> None:
    assert cheap(rewarded(), ["Thank you very much, a", "Thank you very much, b", "c"]).advice is None


def test_a_reward_that_failed_its_probes_is_not_asked_again() -> None:
    found = judging(rewards={"flat": (ValueReward(lambda _: 1.0, "flat"), 1.0)})
    found.calibrate(rows(4), OWN, [4] * 4)
    assert "D24" not in {check.name for check in found.checks()}
