"""The weighted sum: units of the start policy, parts that leave the sum, masked rows, silence at the bottom."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_fakes import FakeReward, example

from dialtune.errors import CheckpointError, ConfigError, RewardError
from dialtune.rewards.base import FunctionReward, Reward, optional_values
from dialtune.rewards.composite import CompositeReward, Rewards, Scale


class Table:
    """A reward that gives listed values, None where it does not apply."""

    judges = "other"

    def __init__(self, name: str, *values: float | None) -> None:
        self.name, self.values = name, values

    def scores(self, examples, completions):
        return optional_values(self.values)


def measure(composite: CompositeReward, *texts: str) -> Rewards:
    return composite.measure([example(f"d{i}") for i in range(len(texts))], texts)


def two(one: Reward, other: Reward, weights: tuple[float, float] = (1.0, 1.0), **scales: Scale) -> CompositeReward:
    return CompositeReward(((one, weights[0]), (other, weights[1])), scales)


def test_the_total_is_the_weighted_sum_in_units_of_the_start_policy() -> None:
    composite = two(Table("a", 1.0, 3.0), Table("b", 0.5, 0.1), (2.0, -1.0), a=Scale(2.0, 4.0, 9), b=Scale(0.3, 0.1, 9))
    found = measure(composite, "x", "y")
    assert found.total == pytest.approx([2 * 1 / 4 - 0.5 / 0.1, 2 * 3 / 4 - 0.1 / 0.1])
    assert {name: part.tolist() for name, part in found.parts.items()} == {"a": [1.0, 3.0], "b": [0.5, 0.1]}
    assert (found.valid.tolist(), found.empty.tolist(), found.problems) == ([True] * 2, [False] * 2, ())


def test_without_scales_values_count_as_they_are() -> None:
    assert measure(two(Table("a", 1.5), Table("b", -0.5)), "x").total.tolist() == [1.0]


def test_what_lies_beyond_five_standard_deviations_is_cut_there() -> None:
    # Mean 0.6, std 0.1: 0.05 is 5.5 below, 1.2 is 6 above; the mean itself, 6 in these units, stays.
    composite = CompositeReward(((Table("q", 0.05, 0.1, 0.6, 1.1, 1.2), 1.0),), {"q": Scale(0.6, 0.1, 64)})
    assert measure(composite, *"abcde").total == pytest.approx([1.0, 1.0, 6.0, 11.0, 11.0])


def test_a_part_that_does_not_apply_leaves_its_rows_sum_only() -> None:
    found = measure(two(Table("a", 1.0, 1.0), Table("b", None, 2.0)), "x", "y")
    assert found.total.tolist() == [1.0, 3.0]
    assert found.valid.all()
    assert np.isnan(found.parts["b"]).tolist() == [True, False]
    assert found.problems == ()


def test_a_bad_part_masks_the_whole_row_and_is_never_a_zero() -> None:
    found = measure(two(Table("a", 1.0, 1.0, 1.0), Table("b", np.nan, 2.0, np.inf)), "x", "y", "z")
    assert found.valid.tolist() == [False, True, False]
    assert np.isnan(found.total).tolist() == [True, False, True]
    assert found.problems == ("reward 'b' gave inf, nan for 2 of 3 completions, which are masked: 'd0', 'd2'",)


def test_a_bad_part_without_weight_masks_too() -> None:
    found = measure(two(Table("a", 1.0, 1.0), Table("b", np.nan, 2.0), (1.0, 0.0)), "x", "y")
    assert found.valid.tolist() == [False, True]


def test_a_part_without_weight_is_measured_and_not_summed() -> None:
    found = measure(two(Table("a", 1.0), Table("q", 0.7), (1.0, 0.0), q=Scale(0.5, 0.1, 9)), "x")
    assert found.total.tolist() == [1.0]
    assert found.parts["q"].tolist() == [0.7]


def test_a_row_to_which_nothing_applies_is_left_out_and_counted() -> None:
    found = measure(two(Table("a", None, 1.0), Table("q", 0.5, 0.5), (1.0, 0.0)), "x", "y")
    assert found.valid.tolist() == [False, True]
    assert np.isnan(found.total[0])
    assert found.problems == ("no reward applies to 1 of 2 completions, which are left out",)


@pytest.mark.parametrize("text", ["", "  ", "?!", "🙂"])
def test_an_empty_completion_gets_the_lowest_value_whatever_the_parts_say(text: str) -> None:
    composite = two(Table("a", 99.0, 0.0), Table("b", np.nan, -99.0), a=Scale(0.0, 1.0, 2), b=Scale(0.0, 1.0, 2))
    found = measure(composite, text, "x")
    assert found.empty.tolist() == [True, False]
    assert found.valid.all()
    assert found.total.tolist() == [composite.lowest, -5.0]
    assert composite.lowest == -11.0


values = st.one_of(st.none(), st.floats(-1e6, 1e6))
scales = st.builds(Scale, st.floats(-100, 100), st.floats(0.01, 100), st.just(9))
weights = st.floats(-10, 10)


@given(values, values, weights, weights, scales, scales)
def test_silence_is_strictly_below_any_other_row(a, b, v, w, one: Scale, other: Scale) -> None:
    if not (v or w):
        v = 1.0
    composite = two(Table("a", a, a), Table("b", b, b), (v, w), a=one, b=other)
    silent, spoken = measure(composite, "", "x").total
    assert silent == composite.lowest
    assert np.isnan(spoken) or silent < spoken


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8), st.randoms())
def test_permuting_rows_permutes_totals(numbers: list[float], random) -> None:
    order = list(range(len(numbers)))
    random.shuffle(order)
    texts = [str(number) for number in numbers]
    composite = CompositeReward(((FakeReward(float), 2.0),), {"fake": Scale(1.0, 3.0, 4)})
    whole, moved = measure(composite, *texts).total, measure(composite, *(texts[i] for i in order)).total
    assert [whole[i] for i in order] == moved.tolist()


# scales


def test_scales_are_the_start_policys_mean_and_spread_without_empty_and_masked_rows() -> None:
    composite = two(Table("a", 1.0, 3.0, 100.0, 7.0), Table("b", 0.2, None, 0.9, np.nan))
    start = measure(composite, "x", "y", "", "z")
    with pytest.raises(RewardError, match=r"^reward 'b': 1 of 4 completions of the start policy have a value; "):
        composite.calibrated(start)
    only = CompositeReward(((Table("a", 1.0, 3.0, 100.0, 5.0), 1.0),))
    scaled = only.calibrated(measure(only, "x", "y", "", "z"))
    # 1, 3, 5: mean 3, population variance (4 + 0 + 4) / 3.
    assert scaled.scales == {"a": Scale(pytest.approx(3.0), pytest.approx((8 / 3) ** 0.5), 3)}
    assert only.scales == {}


def test_a_part_that_never_varies_keeps_its_own_unit() -> None:
    composite = CompositeReward(((Table("a", 1.0, 1.0), 1.0),))
    assert composite.calibrated(measure(composite, "x", "y")).scales["a"] == Scale(1.0, 1.0, 2)


def test_scales_survive_a_checkpoint_exactly() -> None:
    scaled = two(Table("a", 1.0), Table("b", 2.0), a=Scale(0.1, 1 / 3, 512), b=Scale(-2.0, 0.7, 64))
    stored = json.loads(json.dumps(scaled.state(), allow_nan=False))
    again = two(Table("a", 1.0), Table("b", 2.0)).restored(stored)
    assert again.scales == scaled.scales
    assert measure(again, "x").total.tolist() == measure(scaled, "x").total.tolist()


def test_a_checkpoint_of_other_rewards_is_refused() -> None:
    composite = two(Table("a", 1.0), Table("b", 2.0))
    with pytest.raises(CheckpointError, match=r"^the checkpoint has scales for c; the recipe has a, b$"):
        composite.restored({"c": {"mean": 0.0, "std": 1.0, "n": 2}})
    with pytest.raises(CheckpointError, match=r"has scales for no reward"):
        composite.restored({})


# misuse


def test_two_rewards_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^rewards: 'a' occurs 2 times; give each a name of its own$"):
        two(Table("a"), Table("a"))


@pytest.mark.parametrize("given_weights", [(0.0, 0.0), (float("nan"), 1.0), (float("inf"), 1.0)])
def test_weights_must_be_finite_and_not_all_zero(given_weights: tuple[float, float]) -> None:
    with pytest.raises(ConfigError, match=r"^rewards: got weights a .*; allowed: finite numbers, at least one of them"):
        two(Table("a"), Table("b"), given_weights)


def test_no_rewards_at_all_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^rewards: got weights none"):
        CompositeReward(())


def test_a_reward_that_breaks_stops_or_masks_as_asked() -> None:
    def breaks(**_):
        raise ValueError("boom")

    parts = ((Table("a", 1.0), 1.0), (FunctionReward(breaks), 1.0))
    with pytest.raises(RewardError, match=r"^reward 'breaks' failed twice: ValueError: boom$"):
        measure(CompositeReward(parts), "x")
    found = measure(CompositeReward(parts, on_failure="mask"), "x")
    assert found.valid.tolist() == [False]
    assert found.problems == ("reward 'breaks' failed twice: ValueError: boom; 1 completions are masked",)


def test_no_completions_give_no_rewards() -> None:
    found = measure(CompositeReward(((Table("a"), 1.0),)))
    assert (found.total.shape, found.valid.shape) == ((0,), (0,))


def test_a_composite_is_itself_a_reward() -> None:
    composite = two(Table("a", 1.0, np.nan), Table("b", 2.0, 0.0))
    assert str(composite.scores([example("x"), example("y")], ["x", "y"]).tolist()) == "[3.0, nan]"
