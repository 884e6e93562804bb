"""`dialtune reward` from end to end on a tiny encoder: trained, scored with, refused by and used in `dialtune rl`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from reward_tiny import data, values, write
from rl_tiny import CAP, start_policy
from rl_tiny import data as rl_data

from dialtune.cli.app import run_command
from dialtune.rewards.probes import ProbeReport
from dialtune.rl import judging
from dialtune.runs import read_rows


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    monkeypatch.chdir(tmp_path)


def recipe(**changes: Any) -> str:
    Path("r.yaml").write_text(json.dumps(values(signals={"contexts": 1.0}, **changes)))  # JSON is YAML
    return "r.yaml"


@pytest.fixture
def made(capsys: pytest.CaptureFixture[str]) -> str:
    """The folder of a reward that was made by the command."""
    assert run_command(["reward", recipe(), "--max-steps", "4", "--output-dir", "fit"]) == 0
    out = capsys.readouterr()
    assert out.out.startswith("fit: done. Next, in a recipe for rl: rewards: {fit: 1.0}; to judge: --metric reward:fit")
    assert "contexts: held-out accuracy 0." in out.err
    assert "update 4/4: loss" in out.err
    return "fit"


def test_a_reward_is_made_and_scores_texts_for_dialogues(made: str, capsys: pytest.CaptureFixture[str]):
    rows = [{"id": f"x{k}", "messages": [{"role": "user", "content": "the cake and tea"}]} for k in range(2)]
    write(Path("chats.jsonl"), rows)
    texts = [{"id": "x0", "text": "meet at noon"}, {"id": "x1", "text": ""}]
    write(Path("texts.jsonl"), texts)
    assert run_command(["score", made, "texts.jsonl", "--data", "chats.jsonl", "--out", "scores.jsonl"]) == 0
    first, second = read_rows(Path("scores.jsonl"))
    assert 0 < first["score"] < 1
    assert second["score"] == 0.0
    capsys.readouterr()
    assert run_command(["score", f"./{made}", "texts.jsonl"]) == 2
    assert "compares texts with a context to reply to; add: --data FILE" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str]):
    assert run_command(["reward", recipe(), "--dry-run", "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "seed: 3" in out
    assert "echo: worse" in out
    assert not Path("reward").exists()


def test_the_flags_are_recipe_keys_and_no_recipe_is_needed(capsys: pytest.CaptureFixture[str]):
    files, made = data(), values()
    flags = [
        "--data",
        files["train"],
        "--validation",
        files["validation"],
        "--model",
        made["model"],
        "--output-dir",
        "x",
    ]
    sets = [f"--set={key}={made[key]}" for key in ("head_size", "window", "max_turn_length")]
    assert run_command(["reward", *flags, "--max-steps=2", "--set=data.leaks=allow", *sets]) == 0
    assert Path("x/CARD.md").is_file()
    assert run_command(["reward", *flags, "--max-steps=2", "--set=data.leaks=allow", *sets]) == 2
    assert "already holds checkpoint-2; go on with --resume" in capsys.readouterr().err
    assert run_command(["reward", *flags, "--max-steps=2", "--set=data.leaks=allow", *sets, "--resume"]) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--model", "no-such"], 2, "no-such: no such encoder; give a packaged name (all-minilm-l6-v2)"),
        (["--set", "signals.preferences=1"], 3, "signals.preferences: none of 96 rows of train.jsonl has a chosen and"),
        (["--set", "window=0"], 2, "window: got 0; allowed integer, at least 1"),
        (["--validation", "none.jsonl"], 2, "none.jsonl: no such file"),
        (["--config", "other.yaml"], 2, "RECIPE and --config are the same thing; give one"),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(
    arguments: list[str], code: int, line: str, capsys: pytest.CaptureFixture[str]
):
    assert run_command(["reward", recipe(), *arguments]) == code
    assert line in capsys.readouterr().err
    assert not Path("reward/config.json").exists()


def test_other_tools_call_it_otherwise(capsys: pytest.CaptureFixture[str]):
    assert run_command(["rm", "r.yaml"]) == 2
    assert "there is no verb 'rm'; it is: dialtune reward" in capsys.readouterr().err


# in reinforcement learning


def rl_recipe(made: str) -> str:
    settings: dict[str, Any] = {
        "method": "grpo", "model": str(start_policy("gpt2")), "task": "summarize", "data": rl_data(),
        "output_dir": "run", "max_steps": 2, "rollout_batch_size": 4, "num_generations": 4, "eval_steps": 2,
        "max_completion_length": CAP, "rewards": {made: 1.0}, "alarm_scorer": None, "bf16": False,
        "constraint": {"qualities": ["rougeL"], "baseline_prompts": 16}, "truncation": "mask",
    }  # fmt: skip
    Path("rl.yaml").write_text(json.dumps(settings))
    return "rl.yaml"


def test_rl_refuses_a_reward_that_does_not_know_a_fitting_reply(made: str, capsys: pytest.CaptureFixture[str]):
    """The tiny encoder knows none of the words of the probes."""
    assert run_command(["rl", rl_recipe(made)]) == 1
    err = capsys.readouterr().err
    assert "reward 'fit' puts a fitting reply above" in err
    assert "It learned from contexts; CARD.md in its folder says how well it does." in err


def test_rl_trains_on_a_reward_that_passed(made: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judging, "run_reply_probes", lambda _reward: ProbeReport(True, ()))
    assert run_command(["rl", rl_recipe(made)]) == 0
    rows = [row for row in read_rows(Path("run/metrics.jsonl")) if "reward" in row]
    assert rows
    record = json.loads(Path("run/run.json").read_text())
    assert record["rewards"]["rewards"] == {"fit": 1.0}


def test_a_run_does_not_go_on_with_a_reward_that_was_trained_again(
    made: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(judging, "run_reply_probes", lambda _reward: ProbeReport(True, ()))
    assert run_command(["rl", rl_recipe(made)]) == 0
    shutil.rmtree(made)
    assert run_command(["reward", recipe(), "--max-steps", "4", "--output-dir", "fit", "--seed", "1"]) == 0
    capsys.readouterr()
    assert run_command(["rl", rl_recipe(made), "--resume"]) == 2
    assert "or of a learned reward changed" in capsys.readouterr().err
