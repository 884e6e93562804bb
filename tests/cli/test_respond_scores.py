"""All scores of the task respond through the command line: evaluate before and after, compare by dialogue."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from dialtune.cli.app import run_command
from dialtune.tasks import TASKS

PLACES = [
    f"{what} {where}" for what in ("old", "new", "red", "far") for where in ("inn", "bay", "mill", "yard", "gate")
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind, seed in (("llama", 0), ("llama", 1), ("t5", 0)):
        folders[f"{kind}{seed}"] = tmp_path_factory.mktemp(f"tiny-{kind}-{seed}")
        make_model(kind, seed=seed).save(folders[f"{kind}{seed}"])
    return folders


def talks(name: str, places: list[str]) -> str:
    turns = ("Where is the {} ?", "Behind the hill , I think .", "Did you see the {} ?", "Not since Monday .")
    lines = [" ".join(f"{turn.format(place)} __eou__" for turn in turns) for place in places]
    Path(name).write_text("".join(line + "\n" for line in lines))
    return name


def evaluate(model: str | Path, out: str, *more: str) -> int:
    return run_command(
        ["evaluate", "--model", str(model), "--task", "respond", "--max-new-tokens", "12", "--out", out, *more]
    )


def written(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


def test_every_score_of_the_task_is_made_and_compared_by_dialogue(tiny: dict[str, Path], capsys: Any) -> None:
    data, train = talks("test.txt", PLACES), talks("train.txt", ["big house"] * 4)
    for side, model in (("before", "llama0"), ("after", "llama1")):
        assert evaluate(tiny[model], side, "--data", data, "--train", train, "--metric", "reward:length",
                        *(part for name in TASKS["respond"].metrics for part in ("--metric", name))) == 0  # fmt: skip
    table = capsys.readouterr().out
    result = written("before/eval.json")
    assert set(result["scores"]) == {*TASKS["respond"].metrics, "reward:length"}
    missing = {name for name, score in result["scores"].items() if score["value"] is None}
    assert missing <= {
        "relevance_reference",
        "relevance_dialogue",
        "context_auc",
        "context_mrr",
        "distinct_1",
        "distinct_2",
    }
    assert (
        "list:train-3|" in result["scores"]["generic_rate"]["signature"]
    )  # each of the three replies is there four times
    assert "context_ll_auc" in table
    assert [row["unit"] for row in result["rows"][:3]] == [None, "test.txt:1#1", "test.txt:1#1"]
    assert result["n_scored"] == 60

    assert run_command(["compare", "before", "after"]) == 0
    lines = capsys.readouterr().out
    assert "n 60 in 20 dialogues" in lines
    compared = written("after/compare.json")["scores"]
    assert {entry["n_dialogues"] for entry in compared.values() if entry["n"]} == {20}
    assert all(entry["verdict"] == "no difference shown" for entry in compared.values())  # 20 dialogues are too few
    assert run_command(["report", "after"]) == 0


def test_models_that_cut_replies_otherwise_are_not_compared_by_likelihood(tiny: dict[str, Path], capsys: Any) -> None:
    data = talks("test.txt", PLACES[:6])
    for side, model in (("before", "llama0"), ("after", "t50")):
        assert evaluate(tiny[model], side, "--data", data, "--metric", "perplexity", "--metric", "echo_rate") == 0
    capsys.readouterr()
    assert run_command(["compare", "before", "after"]) == 2
    assert "perplexity tokens:" in capsys.readouterr().err
    assert run_command(["compare", "before", "after", "--score", "echo_rate"]) == 0


def test_a_reward_that_trained_the_model_is_marked_where_it_judges(tiny: dict[str, Path], capsys: Any) -> None:
    data = talks("test.txt", PLACES[:6])
    run = tiny["llama0"] / "run.json"
    run.write_text(json.dumps({"rewards": {"rewards": {"length": 1.0}, "qualities": []}}))
    try:
        assert (
            evaluate(tiny["llama0"], "e", "--data", data, "--metric", "reward:length", "--metric", "reward:copy") == 0
        )
    finally:
        run.unlink()
    told = [line for line in capsys.readouterr().out.splitlines() if "also trained" in line]
    assert told == ["reward:length: this reward also trained the model: a gain in it is no evidence; judge by another"]


def test_an_unknown_reward_is_refused_before_anything_is_generated(tiny: dict[str, Path], capsys: Any) -> None:
    assert evaluate(tiny["llama0"], "e", "--data", talks("t.txt", PLACES[:6]), "--metric", "reward:lenght") == 2
    assert "reward 'lenght': unknown; did you mean 'length'?" in capsys.readouterr().err
    assert not Path("e").exists()


def test_the_command_that_a_report_shows_makes_the_same_file_again(tiny: dict[str, Path], capsys: Any) -> None:
    asked = ["--turns", "system='Be brief: yes, or \"no\".'", "--turns", "window=2", "--turns", "speaker=second"]
    data = talks("test.txt", PLACES)
    assert evaluate(tiny["llama0"], "e", "--data", data, *asked, "--limit", "3", "--metric", "bleu") == 0
    assert run_command(["report", "e", "--format", "json", "--out", "r.json"]) == 0
    (command,) = [row["command"] for row in written("r.json")["jobs"][0]["commands"]]
    first = written("e/eval.json")
    assert first["n_total"] == 6
    assert first["data"]["turns"] == {"system": 'Be brief: yes, or "no".', "window": 2, "speaker": "second"}

    Path("e/eval.json").unlink()
    program, *arguments = shlex.split(command)
    assert (program, run_command([*arguments, "--out", "again"])) == ("dialtune", 0)
    assert written("again/eval.json") == first
