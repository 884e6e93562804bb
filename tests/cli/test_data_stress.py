"""dialtune data stress: what it prints, writes beside the rows, and refuses."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dialtune.cli.app import run_command
from dialtune.cli.data import app
from dialtune.data.corpus import blunt_summary, of_kind
from dialtune.data.reading import read_examples
from dialtune.data.stress import original_messages, paradetox_split
from dialtune.errors import ConfigError, DataError

PLACES = ["kitchen", "garden", "office", "station", "market", "bridge", "school", "harbor", "museum", "bakery"]


def row(number: int) -> dict[str, str]:
    place = PLACES[number % 10]
    turns = [
        f"Hello, call {number}.",
        f"You left it at the {place}, {number}.",
        f"Good, I go there at {number}.",
        "Bye.",
    ]
    dialogue = "\n".join(f"#Person{1 + at % 2}#: {turn}" for at, turn in enumerate(turns))
    return {"fname": f"d{number}", "dialogue": dialogue, "summary": f"#Person1# goes to the {place} at {number}."}


def save(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    return save(tmp_path / "talks.test.jsonl", [row(number) for number in range(40)])


@pytest.fixture
def toxic(tmp_path: Path) -> Path:
    path = tmp_path / "toxic.tsv"
    rows = [f"you are a fool of the {place} {n} .\tyou are at the {place} {n}" for n in range(60) for place in PLACES]
    path.write_text("\n".join(["toxic\tneutral", *rows]))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["stress", *(str(argument) for argument in arguments)])


def test_the_rows_are_written_with_their_provenance_beside_them(talks: Path, toxic: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "stress.test.jsonl"
    done = run(
        talks, toxic, "--split", "test", "--out", out, "--rows", 12, "--seed", 5, "--controls", "--licence", "MIT"
    )
    assert (done.exit_code, done.exception) == (0, None)
    data = read_examples(out)
    assert (len(of_kind(data, "heated")), len(of_kind(data, "control")), data.split) == (12, 3, "test")
    record = json.loads((tmp_path / "new" / "stress.test.stress.json").read_text())
    assert record["seed"] == 5
    assert record["split"] == "test"
    assert record["file"] == "stress.test.jsonl"
    assert record["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert record["toxic"]["sha256"] == hashlib.sha256(toxic.read_bytes()).hexdigest()
    assert (record["toxic"]["name"], record["toxic"]["licence"]) == ("toxic.tsv", "MIT")
    assert record["toxic"]["counts"] == {"rows": 600, "pairs": 600, "repeated": 0}
    assert record["dialogues"] == {
        "source": str(talks),
        "rows": 40,
        "fingerprint": read_examples(talks).fingerprint,
    }
    assert record["counts"]["heated"] == 12
    originals = {example.id: example for example in read_examples(talks).examples}
    for example in data.examples:
        assert original_messages(example) == originals[example.meta["twin"]].messages
    heated = of_kind(data, "heated")[0]
    assert {"place", "speaker", "toxic", "source", "licence", "dialogue", "seed"} <= set(heated.meta["stress"])
    assert "fool" in (blunt_summary(heated) or "")
    assert "fool" not in heated.references[0]


def test_the_screen_shows_counts_and_a_sample(talks: Path, toxic: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.jsonl"
    lines = run(talks, toxic, "--split", "test", "--out", out, "--rows", 9).output.splitlines()
    heated = read_examples(out).examples[0]
    place = heated.meta["stress"]["place"]
    assert lines[0] == f"{out}: 9 heated rows, 0 controls"
    assert "  40 usable dialogues" in lines
    assert f"for example {heated.id}, turn {place + 1} of 5 is new (*):" in lines
    assert f"  * {heated.messages[place].speaker}: {heated.messages[place].content}" in lines
    assert lines[-2:] == [f"  blunt:  {heated.meta['summary_blunt']}", f"  civil:  {heated.references[0]}"]


def test_the_seed_decides_the_bytes(talks: Path, toxic: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(talks, toxic, "--split", "test", "--out", tmp_path / f"{name}.jsonl", "--seed", seed).exit_code == 0
    one, two, three = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert one == two != three


def test_one_file_without_a_split_in_its_name_gives_three_that_share_nothing(toxic: Path, tmp_path: Path) -> None:
    source = save(tmp_path / "talks.jsonl", [row(number) for number in range(100)])
    twins, sentences = [], []
    for split, rows in (("train", 20), ("validation", 5), ("test", 5)):
        out = tmp_path / f"s.{split}.jsonl"
        assert run(source, toxic, "--split", split, "--out", out, "--rows", rows).exit_code == 0
        examples = read_examples(out).examples
        twins += [example.meta["twin"] for example in examples]
        sentences += [example.meta["stress"]["toxic"] for example in examples]
        assert {example.meta["split"] for example in examples} == {split}
    assert len(twins) == len(set(twins)) == len(set(sentences)) == 30


def test_dialogues_of_another_split_are_left_out_and_counted(talks: Path, toxic: Path, tmp_path: Path) -> None:
    train = save(tmp_path / "talks.train.jsonl", [row(number) for number in (3, 4, 5, 90, 91)])
    out = tmp_path / "o.jsonl"
    done = run(talks, toxic, "--split", "test", "--out", out, "--against", train)
    assert "  3 dialogues left out: also in talks.train.jsonl" in done.output
    assert {"d3", "d4", "d5"}.isdisjoint(example.meta["twin"] for example in read_examples(out).examples)
    assert json.loads((tmp_path / "o.stress.json").read_text())["against"] == {"talks.train.jsonl": 3}
    every = run(talks, toxic, "--split", "test", "--out", out, "--against", talks).exception
    assert isinstance(every, ConfigError)
    assert str(every) == (f"{talks}: every dialogue also occurs in talks.test.jsonl; give another split --against")


def test_a_stress_file_that_shares_sentences_is_refused(talks: Path, toxic: Path, tmp_path: Path) -> None:
    other = save(tmp_path / "more.test.jsonl", [row(number) for number in range(50, 90)])
    assert run(other, toxic, "--split", "test", "--out", tmp_path / "one.jsonl").exit_code == 0
    out = tmp_path / "two.jsonl"
    failed = run(talks, toxic, "--split", "test", "--out", out, "--against", tmp_path / "one.jsonl").exception
    assert isinstance(failed, DataError)
    assert str(failed).startswith("stress: two.jsonl and one.jsonl share 0 dialogues and ")
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--rows", "41"], 2, "stress: 41 dialogues are needed, 40 of 40 are usable (left out: none); ask for fewer"),
        (["--rows", "0"], 2, "rows: got 0; at least 1"),
        (["--split", "dev"], 2, "split: got 'dev'; known: train, validation, test"),
        (["--split", "train"], 2, "split: got 'train', but TALKS holds the test dialogues by its name; try 'test'"),
        (["--out", "rows.csv"], 2, "--out: got 'rows.csv'; expected a name that ends in .jsonl"),
        (["--on-bad-rows", "maybe"], 2, "--on-bad-rows: got 'maybe'; known: fail, skip, quarantine"),
    ],
)
def test_a_wrong_argument_is_one_line(
    talks: Path,
    toxic: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    line: str,
) -> None:
    given = {"--split": "test", "--out": str(tmp_path / "o.jsonl")} | dict(
        zip(arguments[::2], arguments[1::2], strict=True)
    )
    flags = [part for pair in given.items() for part in pair]
    assert run_command(["data", "stress", str(talks), str(toxic), *flags]) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dialtune: " + line.replace("TALKS", str(talks)))
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "no rows; expected the columns toxic, neutral"),
        ("toxic\tcivil\nyou are a fool now\tyes", "missing column: 'neutral'; the row has: toxic, civil"),
        ("toxic\tneutral\nyou are a fool now\t", "empty text: 'neutral' is blank"),
        ("toxic\tneutral\nyou are a fool now", "wrong number of columns: expected 2, got 1"),
    ],
)
def test_a_toxic_file_that_will_not_do_is_one_line(
    talks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: str
) -> None:
    path = tmp_path / "bad.tsv"
    path.write_text(text)
    out = tmp_path / "o.jsonl"
    assert run_command(["data", "stress", str(talks), str(path), "--split", "test", "--out", str(out)]) == 3
    said = capsys.readouterr().err
    assert line in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_an_empty_dialogue_file_and_too_few_sentences_are_refused(talks: Path, toxic: Path, tmp_path: Path) -> None:
    empty = save(tmp_path / "empty.test.jsonl", [])
    out = tmp_path / "o.jsonl"
    assert "empty.test.jsonl: no rows" in str(run(empty, toxic, "--split", "test", "--out", out).exception)
    lines = toxic.read_text().splitlines()
    few = [line for line in lines[1:] if paradetox_split(line.split("\t")[0]) == "test"][:4]
    toxic.write_text("\n".join([lines[0], *few]))
    failed = run(talks, toxic, "--split", "test", "--out", out, "--rows", 5).exception
    assert str(failed).startswith("stress: 5 toxic sentences are needed, 4 of 4 are usable")


def test_help_fits_on_a_page() -> None:
    done = run("--help")
    assert done.exit_code == 0
    assert len(done.output.splitlines()) <= 60
