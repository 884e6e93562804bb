"""Rewards that fail, numbers that are not finite, rules that stop a run, signals: what is saved, and what is said."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_tiny import (
    data,
    letter_reward,
    metrics,
    rl_config,
    share_of_o,
    start_policy,
    trained,
    unexamined,
    updates,
    weights_of,
)
from torch import Tensor

from dialtune.errors import (
    ConfigError,
    DialtuneError,
    InterruptedRunError,
    ModelError,
    RewardError,
    RewardTimeoutError,
    TrainingError,
)
from dialtune.rl.health import Health
from dialtune.rl.judging import Judging
from dialtune.runs import RunFolder, read_rows
from dialtune.trainers import rl, rl_run
from dialtune.trainers.rl_run import prepare, run_rl

pytestmark = pytest.mark.usefixtures("one_thread")


# rewards that fail on the way


class Breaking:
    """`share_of_o` until `on_event` has seen update `after`; then `fault`."""

    def __init__(self, after: int, fault: Callable[[Sequence[str]], Any]) -> None:
        self.after, self.fault, self.broken = after, fault, False

    def __call__(self, completions: Sequence[str], **_: Any) -> Any:
        return self.fault(completions) if self.broken else share_of_o(completions)

    def on_event(self, kind: str, facts: Any) -> None:
        if kind == "step" and facts["step"] == self.after:
            self.broken = True


def raising(completions: Sequence[str]) -> Any:
    raise ZeroDivisionError("of the reward\nwith a second line")


def hanging(completions: Sequence[str]) -> Any:
    time.sleep(0.3)  # six time-outs
    return [0.0] * len(completions)


FAULTS: list[tuple[str, Callable[[Sequence[str]], Any], type[DialtuneError], str]] = [
    ("raises", raising, RewardError, "reward 'letter' failed twice: ZeroDivisionError: of the reward"),
    ("wrong length", lambda c: [1.0], RewardError, "reward 'letter' returned 1 values for 16 completions; one each is"),
    ("wrong type", lambda c: ["x"] * len(c), RewardError, "reward 'letter' returned 'x' (str) for completion 0"),
    ("hangs", hanging, RewardTimeoutError, "reward 'letter' gave no answer within 0.05 s for 16 completions"),
    ("nan", lambda c: [math.nan] * len(c), TrainingError, "had no usable reward (limit 5%): reward 'letter' gave nan"),
    ("inf", lambda c: [-math.inf] * len(c), TrainingError, "no usable reward (limit 5%): reward 'letter' gave -inf"),
    ("a fifth", lambda c: [math.nan] * 4 + [0.5] * (len(c) - 4), TrainingError, "had no usable reward (limit 5%)"),
]  # fmt: skip


@pytest.mark.parametrize(("fault", "error", "line"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_reward_that_fails_stops_the_run_with_one_line_and_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any, error: type[DialtuneError], line: str
) -> None:
    unexamined(monkeypatch)
    run, function = tmp_path / "run", Breaking(2, fault)
    reward = letter_reward(function, timeout_s=0.05 if fault is hanging else 60.0)
    with pytest.raises(error) as caught:
        trained("gpt2", run, reward=reward, on_event=function.on_event, max_steps=6)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert [row["step"] for row in updates(run)] == [1, 2]
    assert list(RunFolder(run).checkpoints()) == [2]
    assert line[:30] in json.loads((run / "run.json").read_text())["outcome"]
    assert len(read_rows(run / "rollouts.jsonl")) == 2 * 16
    # mended, it goes on, and ends as if nothing had happened
    unbroken = trained("gpt2", tmp_path / "unbroken", max_steps=6)
    config = rl_config(start_policy("gpt2"), run, max_steps=6)
    resumed = run_rl(config, rewards=[letter_reward()], resume="newest")
    assert all(weights_of(unbroken)[name].equal(weight) for name, weight in weights_of(resumed).items())
    assert metrics(run) == metrics(tmp_path / "unbroken")


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_n1_one_bad_reward_in_a_rollout_is_masked_counted_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    unexamined(monkeypatch)
    calls: list[int] = []

    def once(completions: Sequence[str], **_: Any) -> list[float]:
        calls.append(len(completions))
        found = share_of_o(completions)
        return [value, *found[1:]] if len(calls) == 4 else found

    trained("gpt2", tmp_path / "run", reward=letter_reward(once), max_steps=6)
    rows = updates(tmp_path / "run")
    bad = [row for row in rows if row["bad_rewards"]]
    assert [row["bad_rewards"] for row in bad] == [1 / 16]
    assert bad[0]["problems"][0].startswith(
        f"reward 'letter' gave {value} for 1 of 16 completions, which are masked: '"
    )
    assert all("problems" not in row for row in rows if row not in bad)
    journal = [row for row in read_rows(tmp_path / "run" / "rollouts.jsonl") if row["reward"] is None]
    assert len(journal) == 1
    assert journal[0]["rollout"] == bad[0]["rollout"]
    saved = weights_of(tmp_path / "run" / "checkpoint-6")
    assert all(bool(torch.isfinite(weight).all()) for weight in saved.values())


def test_a_reward_that_does_not_apply_to_some_leaves_their_sum_and_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unexamined(monkeypatch)
    sometimes = letter_reward(lambda completions: [None if "a" in c else c.count("o") for c in completions])
    trained("gpt2", tmp_path / "run", reward=sometimes, max_steps=2)
    assert {row["bad_rewards"] for row in updates(tmp_path / "run")} == {0}


def test_a_reward_that_applies_to_nothing_any_more_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unexamined(monkeypatch)
    function = Breaking(1, lambda completions: [None] * len(completions))
    config = rl_config(start_policy("gpt2"), tmp_path / "run")
    prepared = prepare(config, [letter_reward(function)])
    del prepared.judging.rewards["length"]  # which applies to everything
    monkeypatch.setattr(rl_run, "prepare", lambda *a, **k: prepared)
    with pytest.raises(TrainingError, match="no reward applies to 16 of 16 completions, which are left out"):
        run_rl(config, on_event=function.on_event)


def test_what_a_reward_prints_and_changes_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unexamined(monkeypatch)

    def loud(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
        print("x" * 1_000_000)  # noqa: T201
        found = share_of_o(completions)
        completions.clear()
        prompts[:] = ["changed"]
        return found

    trained("gpt2", tmp_path / "loud", reward=letter_reward(loud), max_steps=2)
    assert capsys.readouterr().out == ""
    trained("gpt2", tmp_path / "quiet", max_steps=2)
    texts = [[row["text"] for row in read_rows(tmp_path / name / "rollouts.jsonl")] for name in ("loud", "quiet")]
    assert texts[0] == texts[1]
    assert "reward 'letter' printed 1,000,001 characters: dropped" in updates(tmp_path / "loud")[0]["problems"]


# N1: numbers that are not finite


class Poison:
    """The value head's answers times `value` in chosen updates."""

    def __init__(self, value: float, chosen: range, monkeypatch: pytest.MonkeyPatch) -> None:
        self.number = -1
        update, loss_sum = rl._Loop.update, rl_run.PPOMethod.loss_sum

        def counted(loop: Any, number: int) -> Any:
            self.number = number
            return update(loop, number)

        def poisoned(method: Any, *args: Any, **kwargs: Any) -> Tensor:
            if self.number not in chosen:
                return loss_sum(method, *args, **kwargs)
            handle = method.head.linear.register_forward_hook(lambda *a: a[2] * value)
            try:
                return loss_sum(method, *args, **kwargs)
            finally:
                handle.remove()

        monkeypatch.setattr(rl._Loop, "update", counted)
        monkeypatch.setattr(rl_run.PPOMethod, "loss_sum", poisoned)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_n1_one_bad_value_skips_one_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    unexamined(monkeypatch)
    Poison(value, range(2, 3), monkeypatch)
    result = trained("gpt2", tmp_path / "run", method="ppo", max_steps=5)
    rows = updates(tmp_path / "run")
    assert [row["step"] for row in rows if row["skipped"]] == [3]
    assert rows[2]["skipped"].startswith("loss is not finite")
    assert rows[-1]["n_skipped"] == 1
    assert all(bool(torch.isfinite(weight).all()) for weight in weights_of(result).values())


def test_n1_five_in_a_row_stop_the_run_after_a_checkpoint_of_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unexamined(monkeypatch)
    good = trained("gpt2", tmp_path / "good", method="ppo", max_steps=2)
    Poison(math.nan, range(2, 99), monkeypatch)
    with pytest.raises(TrainingError, match="training stopped: loss is not finite") as caught:
        trained("gpt2", tmp_path / "run", method="ppo", max_steps=20)
    assert caught.value.exit_code == 1
    assert list(RunFolder(tmp_path / "run").checkpoints()) == [6]  # four skipped ones were recorded
    saved = weights_of(tmp_path / "run" / "checkpoint-6")
    assert all(saved[name].equal(weight) for name, weight in weights_of(good).items())
    journal = read_rows(tmp_path / "run" / "rollouts.jsonl")
    assert {row["rollout"] for row in journal} == set(range(6))


def test_a_bare_function_is_a_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unexamined(monkeypatch)
    assert trained("gpt2", tmp_path / "run", reward=share_of_o, max_steps=1).name == "checkpoint-1"
    assert "share_of_o" in updates(tmp_path / "run")[0]


@pytest.mark.parametrize("given", ["length", 3, Judging], ids=str)
def test_what_is_no_reward_is_refused_in_one_line(tmp_path: Path, given: Any) -> None:
    with pytest.raises(ConfigError, match=r"rewards: got .*; allowed: a function with TRL's signature, an object with"):
        trained("gpt2", tmp_path / "run", reward=given, max_steps=1)


# stop rules


def test_a_stop_rule_writes_a_checkpoint_names_itself_and_exits_1(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        trained("gpt2", tmp_path / "run", max_steps=9, kl_target=1e-4, learning_rate=3e-3)
    steps = len(updates(tmp_path / "run"))
    assert 2 <= steps < 9
    assert str(caught.value).startswith(f"update {steps}: stopped: kl: ")
    assert "limit 4 x kl_target 0.0001; raise beta or lower learning_rate" in str(caught.value)
    result = f"checkpoint-{steps}, which was not shown to be acceptable"
    assert str(caught.value).endswith(f"checkpoint-{steps} is saved; the run's result is {result}")
    assert caught.value.exit_code == 1
    assert list(RunFolder(tmp_path / "run").checkpoints()) == [steps]
    assert "stopped: kl" in json.loads((tmp_path / "run" / "run.json").read_text())["outcome"]


def test_a_constraint_that_cannot_be_met_stops_after_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unexamined(monkeypatch)
    constraint = {
        "qualities": [], "length": (3.0, 4.0), "baseline_prompts": 16, "learning_rate": 10.0, "max_multiplier": 1.0,
    }  # fmt: skip
    with pytest.raises(
        TrainingError, match="constraint 'length_min' is infeasible: its multiplier stood at 1"
    ) as error:
        trained("gpt2", tmp_path / "run", constraint=constraint, max_steps=30, learning_rate=1e-6)
    steps = len(updates(tmp_path / "run"))
    assert list(RunFolder(tmp_path / "run").checkpoints()) == [steps]
    assert f"checkpoint-{steps} is saved" in str(error.value)


def test_every_rule_of_the_watch_stops_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unexamined(monkeypatch)
    monkeypatch.setattr(Health, "check", lambda self, record: "rule: what" if record["step"] == 2 else None)
    with pytest.raises(TrainingError, match=r"update 2: stopped: rule: what\. checkpoint-2 is saved"):
        trained("gpt2", tmp_path / "run", max_steps=4)
    assert len(updates(tmp_path / "run")) == 2


def test_a_policy_that_games_its_reward_is_not_the_best_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update that a rule stops has the least of what the reward pays for; that must not make it the result."""
    unexamined(monkeypatch)
    verdicts = iter([0.9, 0.5, 0.1])
    monkeypatch.setattr(Judging, "verdict", lambda *a: {"eval_objective": next(verdicts), "eval_acceptable": True})
    monkeypatch.setattr(Health, "check", lambda self, record: "hacking: what" if record["step"] == 2 else None)
    with pytest.raises(TrainingError, match=r"checkpoint-2 is saved; the run's result is checkpoint-1$"):
        trained("gpt2", tmp_path / "run", max_steps=4, data=data(), eval_steps=1)


@pytest.mark.parametrize("error", [RewardError, ModelError])
def test_a_reward_that_fails_on_validation_costs_no_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[DialtuneError]
) -> None:
    unexamined(monkeypatch)
    real, calls = Judging.verdict, iter([False, False, True])

    def verdict(self: Judging, *arguments: Any) -> dict[str, Any]:
        if next(calls):
            raise error("reward 'x' failed twice: on validation")
        return real(self, *arguments)

    monkeypatch.setattr(Judging, "verdict", verdict)
    told: list[str] = []
    with pytest.raises(error, match="on validation"):
        trained(
            "gpt2", tmp_path / "run", max_steps=6, data=data(), eval_steps=2, save_total_limit=9,
            on_event=lambda kind, facts: told.append(facts["text"]) if kind == "note" else None,
        )  # fmt: skip
    assert told[-1] == "checkpoint-4 is saved; then go on with --resume"
    assert list(RunFolder(tmp_path / "run").checkpoints()) == [2, 4]
    assert [row["step"] for row in updates(tmp_path / "run")] == [1, 2, 3, 4]


def test_the_shares_of_one_rollout_are_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unexamined(monkeypatch)
    seen: list[dict[str, Any]] = []
    check = Health.check
    monkeypatch.setattr(Health, "check", lambda self, record: [seen.append(dict(record)), check(self, record)][1])
    trained("gpt2", tmp_path / "run", num_iterations=2, num_minibatches=2, max_steps=5)
    assert ["empty" in record for record in seen] == [True, False, False, False, True]
    assert ["distinct_2" in record for record in seen] == [True, False, False, False, True]
    assert all("abs_kl" in record and "ratio_max" in record for record in seen)
    assert all("empty" in row for row in updates(tmp_path / "run"))


def test_an_update_with_nothing_to_learn_from_says_so_by_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every completion left out: no entropy of 0, which a stop rule would take for a collapse, and no KL of 0."""
    unexamined(monkeypatch)
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(Health, "check", lambda self, record: seen.append(dict(record)))
    start = rl.AdaptiveBeta.update
    asked: list[float] = []
    monkeypatch.setattr(rl.AdaptiveBeta, "update", lambda self, kl: [asked.append(kl), start(self, kl)][1])
    monkeypatch.setattr("dialtune.models.decoding.finish_reasons", lambda ids, stops: ("length",) * len(ids))
    trained("gpt2", tmp_path / "run", truncation="mask", max_steps=2, kl_target=1.0)
    rows = updates(tmp_path / "run")
    assert [row["truncated"] for row in rows] == [1, 1]
    assert not {"entropy", "kl", "abs_kl", "ratio_max"} & set().union(*seen)
    assert [row["beta"] for row in rows] == [0.05, 0.05]
    assert all(math.isnan(kl) for kl in asked)


# signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_after_the_current_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    unexamined(monkeypatch)

    def send(kind: str, facts: Any) -> None:
        if kind == "step" and facts["step"] == 2:
            os.kill(os.getpid(), number)

    with pytest.raises(InterruptedRunError, match=r"checkpoint-\d is saved\. Go on with --resume") as caught:
        trained("gpt2", tmp_path / "run", on_event=send, max_steps=9)
    assert caught.value.exit_code == code
    assert len(RunFolder(tmp_path / "run").checkpoints()) == 1
