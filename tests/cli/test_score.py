"""dialtune score: the file it writes, the line it prints, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dialtune.cli.app import run_command


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_packaged_scorer_writes_a_row_a_line(capsys):
    Path("a.txt").write_text("You are a stupid idiot.\nThe train leaves at ten.\n")
    assert run_command(["score", "lexicon", "a.txt", "--out", "scores.jsonl"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("written: scores.jsonl (2 texts by lexicon, mean 0.")
    rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["score", "text"]] * 2
    assert 0 <= rows[1]["score"] < 0.5 <= rows[0]["score"] <= 1


def test_a_recipes_name_of_a_scorer_works_too(capsys):
    Path("a.txt").write_text("You are a stupid idiot.\n")
    assert run_command(["score", "toxicity:lexicon", "a.txt"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] > 0.5


def test_without_out_the_rows_are_the_output(capsys):
    Path("a.txt").write_text("one two three four five\n")
    assert run_command(["score", "length", "a.txt"]) == 0
    assert capsys.readouterr().out == '{"text": "one two three four five", "score": 1.0}\n'


def test_rouge_reads_the_dialogues(capsys):
    Path("rows.jsonl").write_text(json.dumps({"dialogue": "A: hi\nB: ho", "summary": "They greet."}) + "\n")
    Path("a.txt").write_text("They greet.\n")
    assert run_command(["score", "rougeL", "a.txt", "--data", "rows.jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["score"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "raw", "code", "message"),
    [
        (["toxcity", "a.txt"], b"x", 2, "scorer 'toxcity': unknown; did you mean 'toxicity'?"),
        (["lexicon", "b.txt"], b"x", 2, "b.txt: no such file; did you mean 'a.txt'?"),
        (["rougeL", "a.txt"], b"x", 2, "rougeL compares texts with references; add: --data FILE"),
        (["lexicon", "a.txt"], b"", 3, "a.txt: no text to score: the file is empty"),
        (["lexicon", "a.txt"], b"\x89PNG\n", 3, "a.txt:1: invalid UTF-8: byte 0x89 at byte 1 of the line"),
        (["lexicon", "a.txt"], b"x" * (1 << 21), 3, "a.txt:1: row too long: 2,097,152 bytes, at most 1,048,576"),
        (["lexicon", "a.jsonl"], b'{"a": "b"}\n', 3, "a.jsonl:1: no text: needs a column text, completion"),
    ],
)
def test_a_bad_input_is_one_line_and_writes_nothing(arguments, raw, code, message, capsys):
    Path("a.jsonl" if "a.jsonl" in arguments else "a.txt").write_bytes(raw)
    assert run_command(["score", *arguments, "--out", "out.jsonl"]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"dialtune: {message}")
    assert len(err.splitlines()) == 1
    assert not Path("out.jsonl").exists()
