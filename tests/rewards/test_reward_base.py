"""Rewards that misbehave (N2 of the reliability design), and TRL's reward functions as rewards."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_fakes import FakeReward, example

from dialtune.errors import ConfigError, MissingExtraError, RewardError, RewardTimeoutError
from dialtune.rewards.base import FunctionReward, optional_values, parse_values, score_safely
from dialtune.types import Example, Message

ROWS = [example("d1", references=("They greet.", "Two greetings.")), example("d2"), example("d3", references=("Bye.",))]
TEXTS = ["one", "two words", "three more words"]


def lengths(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def answer(function: Any, **settings: Any):
    return score_safely(FunctionReward(function, **settings), ROWS, TEXTS)


# what a function is given


def test_a_function_sees_prompts_completions_and_columns_as_trl_passes_them() -> None:
    seen: dict[str, Any] = {}

    def look(prompts, completions, **columns):
        seen.update(columns, prompts=prompts, completions=completions)
        return [1, None, 0.5]

    rows = [Example("a", ROWS[0].messages, ("x", "y"), {"topic": "tea", "n": 3, "names": ["x"]}), *ROWS[1:]]
    found = score_safely(FunctionReward(look), rows, TEXTS)
    assert seen == {
        "prompts": ["#Person1#: Hi.\n#Person2#: Hello."] * 3,
        "completions": TEXTS,
        "reference": ["x", None, "Bye."],
        "references": [["x", "y"], [], ["Bye."]],
        "example_id": ["a", "d2", "d3"],
        "topic": ["tea", None, None],
        "n": [3, None, None],  # `names` is no scalar, so it is no column
    }
    assert (found.values.tolist()[0], found.bad.tolist(), found.problems) == (1.0, [False] * 3, ())
    assert np.isnan(found.values[1])


def test_a_function_without_keywords_gets_the_columns_it_names() -> None:
    def named(completions, reference, weight=2.0):
        return [weight * (gold is not None) for gold in reference]

    assert answer(named).values.tolist() == [2.0, 0.0, 2.0]


def test_a_column_that_the_rows_lack_is_named() -> None:
    def asks(completions, solution):
        return [0.0] * len(completions)

    columns = "prompts, completions, reference, references, example_id"
    with pytest.raises(RewardError, match=f"^reward 'asks' asks for 'solution'; the rows have: {columns}$"):
        answer(asks)


def test_an_async_function_is_awaited() -> None:
    async def later(completions, **columns):
        return [2.0 for _ in completions]

    assert answer(later).values.tolist() == [2.0, 2.0, 2.0]


def test_a_name_is_the_functions_own_unless_given() -> None:
    assert FunctionReward(lengths).name == "lengths"
    assert FunctionReward(lengths, "size").name == "size"


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_time_limit_must_be_positive(limit: float) -> None:
    with pytest.raises(ConfigError, match=r"timeout_s: got .*; allowed: more than 0"):
        FunctionReward(lengths, timeout_s=limit)


# N2: what may go wrong, and its documented result


def test_none_does_not_apply_and_is_not_bad() -> None:
    found = answer(lambda completions, **_: [None, 1.0, None])
    assert np.isnan(found.values).tolist() == [True, False, True]
    assert found.bad.tolist() == [False, False, False]
    assert found.problems == ()


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_number_that_is_not_finite_makes_its_row_bad_and_is_named(value: float, shown: str) -> None:
    found = answer(lambda completions, **_: [1.0, value, None], name="odd")
    assert found.bad.tolist() == [False, True, False]
    assert np.isnan(found.values).tolist() == [False, True, True]
    assert found.problems == (f"reward 'odd' gave {shown} for 1 of 3 completions, which are masked: 'd2'",)


def test_many_bad_rows_are_counted_and_a_few_are_named() -> None:
    rows = [example(f"d{i}") for i in range(9)]
    found = score_safely(FakeReward(lambda text: np.nan), rows, ["x"] * 9)
    assert found.problems == (
        "reward 'fake' gave nan for 9 of 9 completions, which are masked: 'd0', 'd1', 'd2', 6 more",
    )


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1.0], "returned 1 values for 3 completions; one each is needed"),
        ([1.0] * 4, "returned 4 values for 3 completions; one each is needed"),
        (None, "returned NoneType; a list with one number or None per completion is needed"),
        (1.0, "returned float; a list"),
        ({"a": 1}, "returned dict; a list"),
        ([1.0, "2", 3.0], r"returned '2' \(str\) for completion 1; a finite number or None is needed"),
        ([1.0, [2], 3.0], r"returned \[2\] \(list\) for completion 1"),
        (np.ones((3, 1)), r"returned \[1.0\] \(list\) for completion 0"),
        ([1.0, 10**400, 3.0], "for completion 1"),
        ([1.0, 1j, 3.0], "complex"),
    ],
)
def test_a_wrong_length_or_type_is_refused_by_name(returned: Any, message: str) -> None:
    with pytest.raises(RewardError, match=f"^reward 'odd' .*{message}"):
        answer(lambda **_: returned, name="odd")
    masked = score_safely(FunctionReward(lambda **_: returned, "odd"), ROWS, TEXTS, on_failure="mask")
    assert masked.bad.all()
    assert np.isnan(masked.values).all()
    assert masked.problems[0].endswith("; 3 completions are masked")


@pytest.mark.parametrize(
    "returned",
    [(1, 2, 3), np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0], dtype=object), [np.float32(1), np.int64(2), True + 2]],
    ids=["tuple", "array", "objects", "scalars"],
)
def test_what_counts_as_a_list_of_numbers(returned: Any) -> None:
    assert answer(lambda **_: returned).values.tolist() == [1.0, 2.0, 3.0]


def test_a_torch_tensor_counts_as_a_list_of_numbers() -> None:
    torch = pytest.importorskip("torch")
    assert answer(lambda **_: torch.tensor([1.0, 2.0, 3.0])).values.tolist() == [1.0, 2.0, 3.0]
    assert answer(lambda **_: [torch.tensor(1.0), torch.tensor(2), None]).values.tolist()[:2] == [1.0, 2.0]


def test_an_exception_is_tried_once_more_and_then_raised_in_one_line() -> None:
    calls: list[int] = []

    def breaks(**_):
        calls.append(1)
        raise KeyError("boom\nand more")

    with pytest.raises(RewardError) as caught:
        answer(breaks)
    assert str(caught.value) == "reward 'breaks' failed twice: KeyError: 'boom\\nand more'"
    assert isinstance(caught.value.__cause__, KeyError)
    assert len(calls) == 2
    masked = score_safely(FunctionReward(breaks), ROWS, TEXTS, on_failure="mask")
    assert masked.problems == (f"{caught.value}; 3 completions are masked",)
    assert masked.bad.tolist() == [True, True, True]


def test_a_failure_that_passes_leaves_no_trace() -> None:
    calls: list[int] = []

    def flaky(completions, **_):
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError
        return [1.0] * len(completions)

    found = answer(flaky)
    assert (found.values.tolist(), found.problems) == ([1.0] * 3, ())


def test_a_function_that_hangs_is_left_behind_after_two_tries() -> None:
    release, calls = threading.Event(), []

    def hangs(**_):
        calls.append(1)
        release.wait(60)
        return [0.0] * 3

    try:
        with pytest.raises(RewardTimeoutError) as caught:
            answer(hangs, timeout_s=0.02)
    finally:
        release.set()
    assert str(caught.value) == (
        "reward 'hangs' gave no answer within 0.02 s for 3 completions; raise timeout_s or make it faster"
    )
    assert isinstance(caught.value, TimeoutError)
    assert len(calls) == 2


def test_what_a_function_prints_is_dropped_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def talks(completions, **_):
        print("x" * 999_999)  # noqa: T201
        return [1.0] * len(completions)

    found = answer(talks)
    assert found.values.tolist() == [1.0] * 3
    assert found.problems == ("reward 'talks' printed 1,000,000 characters: dropped",)
    assert capsys.readouterr().out == ""


def test_a_function_that_changes_its_inputs_changes_nothing() -> None:
    rows = [Example("a", (Message("user", "Hi."),), ("gold",), {"n": 1})]
    texts = ["text"]

    def spoils(**columns):
        for values in columns.values():
            values.clear()
        return [1.0]

    reward = FunctionReward(spoils)
    first, second = score_safely(reward, rows, texts), score_safely(reward, rows, texts)
    assert first.values.tolist() == second.values.tolist() == [1.0]
    assert rows == [Example("a", (Message("user", "Hi."),), ("gold",), {"n": 1})]
    assert texts == ["text"]


def test_a_function_that_exits_does_not_end_the_run() -> None:
    def leaves(**_):
        raise SystemExit(3)

    with pytest.raises(RewardError, match=r"^reward 'leaves' raised SystemExit: 3$"):
        answer(leaves)


def test_the_users_own_mistakes_are_not_tried_twice() -> None:
    calls: list[int] = []

    def missing(text: str) -> float:
        calls.append(1)
        raise MissingExtraError("install it")

    with pytest.raises(MissingExtraError, match=r"^install it$"):
        score_safely(FakeReward(missing), ROWS, TEXTS)
    assert len(calls) == 1


# rewards that are objects


def test_a_masked_entry_does_not_apply_and_nan_in_a_plain_array_is_a_fault() -> None:
    class Half:
        name = "half"

        def scores(self, examples, completions):
            return np.ma.array([1.0, np.nan, np.nan], mask=[False, True, False])

    found = score_safely(Half(), ROWS, TEXTS)
    assert found.bad.tolist() == [False, False, True]
    assert np.isnan(found.values).tolist() == [False, True, True]
    plain = score_safely(FakeReward(lambda text: np.nan if text == "one" else 1.0), ROWS, TEXTS)
    assert plain.bad.tolist() == [True, False, False]


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_an_object_that_answers_in_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    class Odd:
        name = "odd"

        def scores(self, examples, completions):
            return np.zeros(shape)

    with pytest.raises(RewardError, match=r"^reward 'odd' returned shape .* for 3 completions; .* shape \(3,\)$"):
        score_safely(Odd(), ROWS, TEXTS)


def test_an_array_of_text_is_refused() -> None:
    class Odd:
        name = "odd"

        def scores(self, examples, completions):
            return np.array(["1", "2", "3"])

    with pytest.raises(RewardError, match=r"of <U1"):
        score_safely(Odd(), ROWS, TEXTS)


def test_integers_and_truth_values_are_numbers() -> None:
    class Whole:
        name = "whole"

        def scores(self, examples, completions):
            return np.array([True, False, True])

    assert score_safely(Whole(), ROWS, TEXTS).values.tolist() == [1.0, 0.0, 1.0]


def test_no_completions_are_no_question() -> None:
    def never(**_):
        raise AssertionError

    found = score_safely(FunctionReward(never), [], [])
    assert (found.values.shape, found.bad.shape, found.problems) == ((0,), (0,), ())


@given(st.lists(st.one_of(st.none(), st.floats(), st.integers(-(2**60), 2**60), st.booleans())))
def test_every_list_of_numbers_and_none_comes_back_as_it_was(values: list[float | None]) -> None:
    rows, texts = [example(str(i)) for i in range(len(values))], ["x"] * len(values)
    found = score_safely(FunctionReward(lambda **_: list(values), "f"), rows, texts)
    for value, got, bad in zip(values, found.values, found.bad, strict=True):
        finite = value is not None and np.isfinite(value)
        assert bad == (value is not None and not finite)
        assert got == float(value) if finite else np.isnan(got)


@given(
    st.one_of(st.text(), st.binary(), st.lists(st.text(max_size=3), min_size=1), st.dictionaries(st.text(), st.none()))
)
def test_anything_else_is_a_reward_error(returned: Any) -> None:
    with pytest.raises(RewardError):
        parse_values("f", returned, len(returned) if isinstance(returned, list) else 1)


def test_optional_values_keep_none_apart() -> None:
    assert optional_values([]).shape == (0,)
    assert optional_values([None]).tolist() == [None]
