"""Rewards train replies: the packaged recipe on tiny models of both families, its constraint in log and checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import make_model

from dialtune.config.loading import load_rl_config
from dialtune.config.rl_schema import RLConfig
from dialtune.config.schema import RunConfig
from dialtune.data.dialogue import EOU
from dialtune.models.loading import read_notes
from dialtune.rewards.score import training_rewards
from dialtune.rl import judging
from dialtune.runs import read_rows
from dialtune.trainers.rl_run import check_rl, prepare, run_rl
from dialtune.trainers.setup import with_compute_dtype
from dialtune.trainers.sft_run import run_sft

SAID = ["Where is the {}?", "Behind the {}.", "Is the {} far?", "Not far at all."]
PLACES = ["bridge", "station", "kitchen", "market", "harbor", "museum"]
HELD = ("no_repetition", "no_echo", "length_min", "length_max")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Dialogues of four turns, one a line: three replies each; validation talks about something else."""
    folder, found = tmp_path_factory.mktemp("files"), {}
    for name, places in (("train", PLACES), ("validation", ["circus", "chapel"])):
        lines = ["".join(f"{text.format(place)} {EOU} " for text in SAID) + "\n" for place in places]
        (folder / f"{name}.txt").write_text("".join(lines))
        found[name] = str(folder / f"{name}.txt")
    return found


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]) -> dict[str, Path]:
    """Family -> a tiny model that learned to reply, until its replies end by themselves."""
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for kind, steps in (("llama", 30), ("bart", 60)):
        base = tmp_path_factory.mktemp(kind)
        make_model(kind).save(base)
        out = tmp_path_factory.mktemp(f"start-{kind}")
        config = RunConfig(
            model=str(base), task="respond", data={"train": files["train"]}, output_dir=str(out), max_steps=steps,
            learning_rate=1e-2, lr_scheduler_type="constant", per_device_train_batch_size=18, bf16=False,
        )  # fmt: skip
        found[kind] = run_sft(config)
    torch.set_num_threads(threads)
    return found


def recipe(start: Path, files: Mapping[str, str], out: Path, *more: str) -> RLConfig:
    """The packaged recipe on a tiny start policy and tiny files; what a tiny model's noise cannot earn is replaced."""
    small = [
        f"model={start}", f"output_dir={out}", "max_steps=2", "eval_steps=1", "num_generations=4", "bf16=false",
        "rollout_batch_size=4", "temperature=1", "max_completion_length=24",
        "rewards={length: 1.0}", "alarm_scorer=null", "lora=null", "data.test=null",
        "constraint.baseline_prompts=8", "truncation=mask", "learning_rate=1e-3",
        *(f"data.{name}={path}" for name, path in files.items()),
    ]  # fmt: skip
    return load_rl_config("respond-rl-smollm2", [*small, *more])


@pytest.mark.parametrize("kind", ["llama", "bart"])
def test_the_recipe_trains_replies_and_logs_and_keeps_what_it_holds(
    starts: dict[str, Path], files: dict[str, str], tmp_path: Path, kind: str
) -> None:
    notes: list[str] = []
    config = recipe(starts[kind], files, tmp_path / "run")
    result = run_rl(config, on_event=lambda what, facts: notes.append(facts["text"]) if what == "note" else None)
    assert "; grpo, 2 updates of 4 prompts x 4 completions; 18 prompts" in notes[0]
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert {f"{what}:{name}" for what in ("lambda", "ema", "tau") for name in HELD} <= row.keys()
        assert 0 <= row["no_repetition"] <= 1
        assert 0 <= row["no_echo"] <= 1
    for row in rows:
        assert {"eval_length", "eval_no_repetition_ratio_low", "eval_no_echo_ratio"} <= row.keys()
        assert row["eval_objective"] == -row["eval_reward"]
    saved = json.loads((tmp_path / "run" / "checkpoint-2" / "rl_state.json").read_text())
    multipliers = {m["name"]: m for m in saved["judging"]["constraint"]["multipliers"]}
    assert list(multipliers) == list(HELD)
    moved = [name for name in HELD if multipliers[name]["value"] != rows[-1][f"lambda:{name}"]]
    assert moved  # once more after the last record
    assert multipliers["no_repetition"]["tau"] == rows[-1]["tau:no_repetition"]
    assert rows[-1]["tau:no_repetition"] == pytest.approx(0.98 * saved["judging"]["start"]["no_repetition"])
    journal = read_rows(tmp_path / "run" / "rollouts.jsonl")
    assert len(journal) == 2 * 4 * 4
    assert all(row["example_id"].rpartition("#")[2] in "123" for row in journal)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["task"], record["data"]["train"]["rows"]) == ("respond", 18)
    assert record["rewards"]["qualities"] == ["no_repetition", "no_echo"]
    assert read_notes(result)["turns"]["window"] == 6
    assert training_rewards(str(result)) == ("length", "no_repetition", "no_echo")  # `evaluate` warns by this list


def test_the_doctor_finds_the_recipe_sound(starts: dict[str, Path], files: dict[str, str], tmp_path: Path) -> None:
    checks = check_rl(recipe(starts["llama"], files, tmp_path / "run"))
    assert [check for check in checks if check.problem] == []
    held = next(check.title for check in checks if check.name == "D22")
    assert held.startswith("qualities of the start policy can be held: no_repetition ")
    assert not (tmp_path / "run").exists()


def test_intervals_of_replies_are_by_dialogue(
    starts: dict[str, Path], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    verdict = judging.Judging.verdict

    def spy(self: judging.Judging, before: Any, after: Any, unit: Any = None) -> dict[str, Any]:
        asked.append(unit)
        return verdict(self, before, after, unit)

    monkeypatch.setattr(judging.Judging, "verdict", spy)
    run_rl(recipe(starts["llama"], files, tmp_path / "run", "max_steps=1"))
    assert asked == [[0, 0, 0, 3, 3, 3]] * 2  # two dialogues of three replies, at the start and after the update


def test_prompts_are_the_chat_with_its_system_message_and_at_most_the_window(
    starts: dict[str, Path], files: dict[str, str], tmp_path: Path
) -> None:
    config = recipe(starts["llama"], files, tmp_path / "run", "data.turns.window=2")
    pool = prepare(with_compute_dtype(config.resolve())).pool
    last = next(prompt for prompt in pool.prompts if prompt.example_id.endswith("#3"))
    assert [message.role for message in last.messages] == ["system", "assistant", "user"]
    assert [message.content for message in last.messages[1:]] == ["Behind the bridge.", "Is the bridge far?"]


def test_a_copy_of_a_validation_dialogue_stops_the_run(
    starts: dict[str, Path], files: dict[str, str], tmp_path: Path
) -> None:
    from dialtune.errors import DataError

    with pytest.raises(DataError, match=r"6 of 6 training dialogues are also in"):
        run_rl(recipe(starts["llama"], files, tmp_path / "run", f"data.validation={files['train']}"))
