"""Task respond from files to eval.json through the command line, on tiny weights; leaks refused, dropped, allowed."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from dialtune.cli.app import run_command
from dialtune.data.audit import leaks
from dialtune.data.reading import read_examples
from dialtune.models.loading import find_trained_on, read_notes

TALKS = 12


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, Path]:
    """Family -> a saved model."""
    folders = {}
    for kind in ("llama", "t5"):
        folders[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
        make_model(kind).save(folders[kind])
    return folders


def talk(number: int) -> list[str]:
    return [f"Hello number {number} .", "Hi , how are you ?", f"I am {number * 7} today , thanks .", "Good to hear ."]


def eou_file(name: str, *numbers: int) -> str:
    lines = [" ".join(f"{turn} __eou__" for turn in talk(number)) for number in numbers]
    Path(name).write_text("".join(line + "\n" for line in lines))
    return name


def sft(model: Path, *more: str, out: str = "run") -> int:
    small = ["max_steps=1", "bf16=false", "per_device_train_batch_size=2", "task=respond"]
    sets = [part for text in small for part in ("--set", text)]
    return run_command(["sft", "--model", str(model), "--output_dir", out, *sets, *more])


def evaluate(model: str | Path, data: str, *more: str, out: str = "e") -> int:
    common = ["--task", "respond", "--max-new-tokens", "2", "--metric", "bleu", "--out", out]
    return run_command(["evaluate", "--model", str(model), "--data", data, *common, *more])


def result(out: str = "e") -> dict[str, Any]:
    return json.loads(Path(out, "eval.json").read_text())


# train and evaluate


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_an_eou_file_trains_and_is_evaluated_reply_by_reply(tiny, kind, capsys):
    train, test = eou_file("train.txt", *range(8)), eou_file("test.txt", 8, 9)
    turns = [
        "--set",
        "data.turns.speaker=second",
        "--set",
        "data.turns.system=Be kind.",
        "--set",
        "data.turns.window=1",
    ]
    clean = ["--set", "data.clean=[tokenised_spacing]"]
    assert sft(tiny[kind], "--data", train, "--validation", eou_file("val.txt", 10), *turns, *clean) == 0
    notes = read_notes("run")
    assert notes["turns"] == {"speaker": "second", "window": 1, "system": "Be kind."}
    assert [(source["name"], source["rows"]) for source in notes["trained_on"]] == [("train.txt", 8)]
    assert evaluate("run", test, "--clean", "tokenised_spacing") == 0
    found = result()
    assert [row["id"] for row in found["rows"]] == ["test.txt:1#1", "test.txt:1#3", "test.txt:2#1", "test.txt:2#3"]
    assert found["task"] == "respond"
    assert found["data"]["leakage"] == {"exact": 0, "near": 0}
    examples = [json.loads(line) for line in Path("e/examples.jsonl").read_text().splitlines()]
    assert examples[1]["references"] == ["Good to hear."]
    assert "Be kind." in examples[1]["dialogue"]
    assert "Hello number" not in examples[1]["dialogue"]


def test_messages_and_pairs_are_replies_too(tiny):
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"messages": said * 2}] * 2
    Path("chat.jsonl").write_text("".join(json.dumps(row | {"id": f"c{k}"}) + "\n" for k, row in enumerate(rows)))
    Path("pairs.jsonl").write_text(json.dumps({"id": "p", "prompt": "Is it open?", "completion": "Until nine."}) + "\n")
    assert sft(tiny["llama"], "--data", "chat.jsonl") == 0
    assert json.loads(Path("run/run.json").read_text())["data"]["train"]["rows"] == 4
    assert evaluate("run", "pairs.jsonl") == 0
    assert [row["id"] for row in result()["rows"]] == ["p"]


def test_a_baseline_is_asked_like_the_trained_model(tiny):
    train, test = eou_file("train.txt", *range(8)), eou_file("test.txt", 6, 7, 8, 9)
    assert sft(tiny["llama"], "--data", train, "--set", "data.turns.window=1") == 0
    assert evaluate("run", test, "--drop-leaks", out="after") == 0
    assert evaluate(tiny["llama"], test, "--drop-leaks", "--like", "run", out="before") == 0
    before, after = result("before"), result("after")
    assert before["data"] == after["data"]
    assert after["data"]["leakage"] == {"exact": 0, "near": 0, "dropped": 2}
    assert after["n_total"] == 6
    assert run_command(["compare", "before", "after"]) == 0


def test_turns_on_the_command_line_go_over_the_trained_ones(tiny, capsys):
    train, test = eou_file("train.txt", *range(4)), eou_file("test.txt", 8)
    assert sft(tiny["llama"], "--data", train, "--set", "data.turns.speaker=second") == 0
    assert evaluate("run", test, "--turns", "speaker=first", "--turns", "per_dialogue=1") == 0
    assert [row["id"] for row in result()["rows"]] == ["test.txt:1#2"]
    capsys.readouterr()
    assert evaluate("run", test, "--turns", "windw=3") == 2
    assert "data.turns.windw: unknown key; did you mean 'window'?" in capsys.readouterr().err


def test_predictions_of_another_program_are_scored_reply_by_reply():
    test = eou_file("test.txt", 1, 2)
    Path("p.txt").write_text("".join(turn + "\n" for number in (1, 2) for turn in talk(number)[1:]))
    arguments = ["--predictions", "p.txt", "--data", test, "--task", "respond", "--metric", "rougeL", "--out", "e"]
    assert run_command(["evaluate", *arguments]) == 0
    assert (result()["scores"]["rougeL"]["value"], result()["n_total"]) == (100.0, 6)
    assert result()["data"]["leakage"] is None


def test_generate_says_the_next_turn_of_each_dialogue(tiny):
    Path("open.jsonl").write_text(
        json.dumps({"id": "d", "dialogue": "Anna: Is it open?\nBen: Yes.\nAnna: Good."}) + "\n"
    )
    common = ["generate", "--model", str(tiny["llama"]), "--task", "respond", "--max-new-tokens", "2"]
    assert run_command([*common, "--data", "open.jsonl", "--out", "out.jsonl"]) == 0
    assert json.loads(Path("out.jsonl").read_text())["id"] == "d"


# leaks


def test_training_on_test_dialogues_stops_is_dropped_or_is_recorded(tiny, capsys):
    train, test = eou_file("train.txt", *range(8)), eou_file("test.txt", 6, 7, 8)
    data = ["--data", train, "--set", f"data.test={test}"]
    assert sft(tiny["llama"], *data) == 3
    assert capsys.readouterr().err.startswith(
        "dialtune: train.txt: 2 of 8 training dialogues are also in test.txt, 0 more nearly; 2 of its 3 would be scored"
    )
    assert sft(tiny["llama"], *data, "--drop-leaks", out="dropped") == 0
    assert sft(tiny["llama"], *data, "--allow-leaks", out="allowed") == 0
    kept, whole = (json.loads(Path(out, "run.json").read_text())["data"] for out in ("dropped", "allowed"))
    assert (kept["train"]["rows"], whole["train"]["rows"]) == (18, 24)
    assert kept["leakage"] == whole["leakage"] == {"test": {"exact": 2, "near": 0, "trained": 2}}
    assert evaluate("dropped", test) == 0
    assert evaluate("allowed", test) == 3


def test_other_tasks_are_not_audited_unless_asked(tiny, capsys):
    rows = [{"id": f"r{n}", "dialogue": "\n".join(talk(n)), "summary": "They greet."} for n in range(4)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ["--data", "train.jsonl", "--validation", "train.jsonl", "--set", "task=summarize"]
    assert sft(tiny["llama"], *data) == 0
    assert "leakage" not in json.loads(Path("run/run.json").read_text())["data"]
    assert sft(tiny["llama"], *data, "--set", "data.leaks=stop", out="asked") == 3
    assert find_trained_on("run").names == "train.jsonl"
    assert evaluate("run", "train.jsonl") == 3  # as replies, the same dialogues are refused


def test_a_model_trained_on_another_model_of_ours_has_seen_both(tiny):
    first, second = eou_file("first.txt", 0, 1), eou_file("second.txt", 2, 3)
    assert sft(tiny["llama"], "--data", first) == 0
    assert sft(Path("run"), "--data", second, out="again") == 0
    assert find_trained_on("again").names == "first.txt, second.txt"
    assert evaluate("again", eou_file("test.txt", 0, 9)) == 3


def test_the_check_needs_neither_the_training_file_nor_its_place(tiny, capsys):
    train, test = eou_file("train.txt", *range(4)), eou_file("test.txt", 3, 9)
    assert sft(tiny["llama"], "--data", train) == 0
    Path(train).unlink()
    Path("run").rename("elsewhere")
    assert evaluate("elsewhere", test) == 3
    assert evaluate("elsewhere/checkpoint-1", test) == 3
    Path("elsewhere/checkpoint-1").rename("alone")
    capsys.readouterr()
    assert evaluate("alone", test) == 0
    assert capsys.readouterr().err.startswith(
        "alone: trained on train.txt, but its trained_on.safetensors is gone; --train FILE looks for copies"
    )
    assert result()["data"]["leakage"] is None
    eou_file("train.txt", *range(4))
    assert evaluate("alone", test, "--train", "train.txt") == 3


def test_resuming_asks_for_the_same_answer_about_leaks(tiny, capsys):
    train, test = eou_file("train.txt", *range(8)), eou_file("test.txt", 6)
    data = ["--data", train, "--set", f"data.test={test}"]
    assert sft(tiny["llama"], *data, "--drop-leaks") == 0
    assert sft(tiny["llama"], *data, "--drop-leaks", "--resume") == 0
    assert sft(tiny["llama"], *data, "--resume") == 3
    assert run_command(["sft", "run/config.yaml", "--resume"]) == 0


@pytest.mark.parametrize("lines", ["copies and some", pytest.param("all", marks=pytest.mark.slow)])
def test_dailydialog_to_dialogsum_is_refused_with_the_number_of_dialogues(tiny, shared_data, lines, capsys):
    """269 of the 500 test dialogues are 323 lines of DailyDialog's train (../shared/data/README.md).

    Tokenising all 11,118 lines takes a while, and lines that are no copies change nothing: the fast test has few.
    """
    source = shared_data / "dailydialog" / "dialogues_train.txt.gz"
    test = str(shared_data / "dialogsum" / "dialogsum.test.jsonl.gz")
    train = Path("dialogues_train.txt")
    text = gzip.decompress(source.read_bytes()).decode().splitlines(keepends=True)
    if lines != "all":
        leaking = leaks({"a": read_examples(source).examples, "b": read_examples(test).examples}).leaking["a", "b"]
        text = [line for number, line in enumerate(text, 1) if f"{source.name}:{number}" in leaking or number <= 100]
    train.write_text("".join(text))
    few = ["--set", "data.turns={window: 1, per_dialogue: 1}"]  # fewer replies to tokenise, of every dialogue
    assert sft(tiny["llama"], "--data", str(train), *few) == 0
    capsys.readouterr()
    assert evaluate("run", test) == 3
    assert capsys.readouterr().err.splitlines() == [
        "dialtune: dialogsum.test.jsonl.gz: 269 of 500 dialogues are what run was trained on, 42 more nearly "
        "(323 and 95 rows of dialogues_train.txt)",
        "  --drop-leaks leaves them out of the evaluation, --allow-leaks goes on and records the count, which "
        "withholds 'improved'",
    ]
    assert evaluate("run", test, "--drop-leaks", "--turns", "per_dialogue=1") == 0
    assert result()["data"]["leakage"] == {"exact": 0, "near": 0, "dropped": 311}
    assert result()["n_total"] == 189


def test_rewards_train_on_the_same_replies(tiny, capsys):
    """`rl` reads dialogues as `sft` does: one prompt a reply, leaks refused by dialogue and not by shared openings."""
    train, validation = eou_file("train.txt", *range(8)), eou_file("val.txt", 20, 21)
    small = ["task=respond", "max_steps=1", "output_dir=run", "rollout_batch_size=2", "num_generations=2"]
    small += ["max_completion_length=24", "rewards={length: 1.0}", "constraint=null", "alarm_scorer=null", "bf16=false"]
    small += [f"data.train={train}", f"data.validation={validation}", "data.turns.speaker=second", "eval_steps=1"]
    sets = [part for text in small for part in ("--set", text)]
    start = ["max_steps=40", "learning_rate=0.01", "data.turns.speaker=second"]  # until its replies end
    assert sft(tiny["llama"], "--data", train, *[p for text in start for p in ("--set", text)], out="start") == 0
    arguments = ["rl", "--model", "start", *sets]
    assert run_command([*arguments, "--set", f"data.test={eou_file('test.txt', 3)}"]) == 3
    assert "1 of 8 training dialogues are also in test.txt" in capsys.readouterr().err
    assert run_command(arguments) == 0
    record = json.loads(Path("run/run.json").read_text())
    assert (record["task"], record["data"]["train"]["rows"]) == ("respond", 16)
    assert record["data"]["leakage"] == {"validation": {"exact": 0, "near": 0, "trained": 0}}
    assert read_notes("run")["turns"]["speaker"] == "second"
    assert find_trained_on("run").names == "train.txt"  # the start policy's rows are the same ones
