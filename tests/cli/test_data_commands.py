"""dialtune data: what each command prints, writes and refuses."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dialtune.cli.data import app
from dialtune.data.reading import read_examples
from dialtune.errors import ConfigError, DataError, GateFailedError

TEXT = "Anna: Hello number {0} , how are you ?\nBen: Fine &amp; well, {0} times."
ROWS = [{"id": f"r{i}", "dialogue": TEXT.format(i), "summary": f"They meet, {i}."} for i in range(40)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return path


def test_check_says_what_the_file_is(data: Path) -> None:
    done = run("check", data)
    assert done.exit_code == 0
    assert done.output.splitlines() == [
        f"{data}: 40 rows, layout dialogsum, references per row: 1",
        "  40 rows with HTML tags or entities",
    ]


def test_check_of_a_broken_row_raises_one_line(data: Path) -> None:
    lines = [json.dumps({**ROW, "id": f"q{i}"}) for i, ROW in enumerate(ROWS * 250)]
    lines[4710] = lines[4710][:30]
    data.write_text("\n".join(lines))
    done = run("check", data)
    assert isinstance(done.exception, DataError)
    assert str(done.exception).startswith(f"{data}:4711: not valid JSON: ")
    assert (len(str(done.exception).splitlines()), done.exception.exit_code, done.output) == (1, 3, "")


def test_check_as_json_reports_everything_and_still_exits_3(data: Path, tmp_path: Path) -> None:
    data.write_text(data.read_text() + "\n{\n[]")
    done = run("check", data, "--json", "--report", tmp_path / "report.json")
    (found,) = json.loads(done.stdout)
    assert done.exit_code == 3
    assert found["bad"] == {"not an object": 1, "not valid JSON": 1}
    assert json.loads((tmp_path / "report.json").read_text()) == [found]


def test_check_skips_when_asked(data: Path) -> None:
    data.write_text(data.read_text() + "\n{")
    done = run("check", data, "--on-bad-rows", "skip", "--max-bad-fraction", 0.1)
    assert done.exit_code == 0
    assert "  1 rows dropped: not valid JSON" in done.output
    assert isinstance(run("check", data, "--on-bad-rows", "perhaps").exception, ConfigError)


def test_check_takes_packaged_names() -> None:
    assert "packaged:test: 60 rows, layout dialogsum" in run("check", "packaged:test").output


def test_stats_prints_a_table_and_json(data: Path) -> None:
    done = run("stats", data)
    assert done.exit_code == 0
    assert f"{data}: 40 rows, 0 repeat an earlier dialogue, references 1 to 1" in done.output.replace("\n", "")
    assert "speakers: Anna 40, Ben 40" in done.output
    numbers: dict[str, Any] = json.loads(run("stats", data, "--json").stdout)[str(data)]
    assert numbers["distributions"]["turns"]["mean"] == 2.0


def test_clean_writes_rows_that_read_back_and_says_what_changed(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "clean.jsonl"
    done = run("clean", data, "--out", out, "--without", "urls")
    assert done.exit_code == 0
    assert "html_entities: 40 texts changed" in done.output
    assert "    'Fine &amp; well, 0 times.' -> 'Fine & well, 0 times.'" in done.output
    assert "urls" not in done.output
    first = read_examples(out).examples[0]
    assert [m.content for m in first.messages] == ["Hello number 0, how are you?", "Fine & well, 0 times."]
    assert first.id == "r0"
    with pytest.raises(ConfigError, match="cleaning step: got 'all'"):
        raise run("clean", data, "--out", out, "--step", "all").exception or AssertionError


def test_split_writes_one_file_per_split_and_the_seed_decides(data: Path, tmp_path: Path) -> None:
    done = run("split", data, "--out", tmp_path / "s", "--share", "train=0.75", "--share", "test=0.25", "--exact")
    assert done.output.splitlines()[0] == f"train: 30 rows (75.0%) in {tmp_path / 's' / 'train'}.jsonl"
    test = read_examples(tmp_path / "s" / "test.jsonl")
    assert (len(test.examples), test.split) == (10, "test")
    again = run("split", data, "--out", tmp_path / "t", "--share", "train=0.75", "--share", "test=0.25", "--exact")
    assert again.exit_code == 0
    assert (tmp_path / "t" / "test.jsonl").read_bytes() == (tmp_path / "s" / "test.jsonl").read_bytes()
    assert isinstance(run("split", data, "--out", tmp_path, "--share", "train=most").exception, ConfigError)
    assert isinstance(run("split", data, "--out", tmp_path, "--share", "train").exception, ConfigError)


def test_split_keeps_near_duplicates_together_unless_told_otherwise(tmp_path: Path) -> None:
    path, words = tmp_path / "near.jsonl", " ".join(f"word{i}" for i in range(30))
    path.write_text("\n".join(json.dumps({"dialogue": f"Anna: {words} {i}", "summary": "x"}) for i in range(9)))
    alike = run("split", path, "--out", tmp_path / "a").exception
    assert str(alike).startswith("split: validation stays empty: the 9 rows form only 1 clusters of duplicates")
    assert run("split", path, "--out", tmp_path / "b", "--exact").exit_code == 0


def test_leaks_names_both_sides_and_can_fail_a_pipeline(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "test.jsonl"
    other.write_text(json.dumps({**ROWS[3], "id": "t0"}))
    done = run("leaks", data, other, "--exact")
    assert done.exit_code == 0
    assert "data.jsonl: 40 unique of 40; 0 with a near duplicate" in done.output
    assert "test.jsonl: 1 rows also in data.jsonl, 0 nearly (Jaccard >= 0.6)" in done.output
    assert "    r3 ~ t0 1.00" in done.output
    failed = run("leaks", data, other, "--exact", "--fail").exception
    assert isinstance(failed, GateFailedError)
    assert str(failed) == "leaks: data.jsonl and test.jsonl share dialogues; remove them from one side before training"
    document = json.loads(run("leaks", data, other, "--exact", "--json").stdout)
    assert document["across"][0]["right_exact"] == 1


def test_columns_can_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("chat,gist\nAnna: hi,They meet.\n")
    assert (
        "1 rows, layout dialogsum" in run("check", path, "--column", "dialogue=chat", "--column", "summary=gist").output
    )


@pytest.mark.parametrize("command", ["", "check", "stats", "clean", "split", "leaks"])
def test_help_fits_on_a_page(command: str) -> None:
    done = run(*([command] if command else []), "--help")
    assert done.exit_code == 0
    assert len(done.output.splitlines()) <= 60


@pytest.mark.timeout(60)
def test_the_audit_of_both_corpora_takes_well_under_a_minute(shared_data: Path) -> None:
    files = sorted([*shared_data.glob("dialogsum/*.jsonl.gz"), *shared_data.glob("dailydialog/*.txt.gz")])
    start = time.process_time()
    done = run("leaks", *files)
    assert time.process_time() - start < 30
    assert "dialogsum.train.jsonl.gz: 11,312 unique of 12,460" in done.output
    assert "dialogues_train.txt.gz: 323 rows also in dialogsum.test.jsonl.gz" in done.output
