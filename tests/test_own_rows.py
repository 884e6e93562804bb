"""`dialtune demo --data FILE`: rows of one's own are split, trained on and judged; a tiny model stands in."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune import labs
from dialtune.cli.app import run_command
from dialtune.config.loading import load_config
from dialtune.errors import DataError
from dialtune.labs import own_recipe, own_rows, own_shares
from dialtune.models.base import Sampling

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path: Path, n: int, *, summary: bool = True) -> Path:
    rows = [
        {"dialogue": f"Anna: Is number {i} here?\nBen: It came on day {i * 7}."}
        | ({"summary": f"Number {i} came on day {i * 7}."} if summary else {})
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@given(st.integers(2, 100_000))
def test_every_row_goes_somewhere_and_fifty_are_enough_for_a_claim(n):
    shares = own_shares(n)
    assert math.isclose(sum(shares.values()), 1)
    counts = {name: round(share * n) for name, share in shares.items()}
    assert min(counts.values()) >= 1
    assert counts["train"] >= 0.4 * n
    assert (counts["test"] >= 30) == (n >= 50)
    assert counts["test"] <= 200
    assert ("validation" in shares) == (n >= 200)


def test_own_rows_are_split_trained_on_and_judged(tmp_path, saved_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labs, "Sampling", lambda max_new_tokens: Sampling(max_new_tokens=3))
    write(Path("my.jsonl"), 10)
    twin = json.dumps({"dialogue": "Anna: Is number 3 here?\nBen: It came on day 21.", "summary": "The same again."})
    with Path("my.jsonl").open("a") as file:
        file.write(twin + "\n")
    model = str(saved_model("llama"))
    assert run_command(["demo", "--data", "my.jsonl", "--model", model, "--out", "out"]) == 0
    out, err = capsys.readouterr()
    assert out.endswith("report: out/report.html\n")
    assert "rougeL " in err
    folder = Path("out/own")
    names = {path.name for path in folder.iterdir()}
    assert names == {"data", "before", "after", "train", "compare.json"}
    rows = {name: Path(f"out/own/data/{name}.jsonl").read_text().splitlines() for name in ("train", "test")}
    assert sum(map(len, rows.values())) == 11
    sides = {name for name in rows for line in rows[name] if "number 3 here" in line}
    assert len(sides) == 1  # a dialogue and its copy stay together
    evaluated = json.loads((folder / "after" / "eval.json").read_text())
    assert evaluated["data"]["leakage"] == {"exact": 0, "near": 0}
    assert evaluated["n_total"] == len(rows["test"])
    assert load_config(folder / "train" / "config.yaml").data.train == "out/own/data/train.jsonl"
    assert json.loads((folder / "compare.json").read_text())["scores"]["rougeL"]["n"] == len(rows["test"])
    # a second one replaces the first, and nothing beside it
    (folder / "of-the-first").write_text("")
    Path("out/notes.txt").write_text("mine")
    assert run_command(["demo", "--data", "my.jsonl", "--model", model, "--out", "out"]) == 0
    assert not (folder / "of-the-first").exists()
    assert Path("out/notes.txt").read_text() == "mine"


def test_the_recipe_suits_the_model_and_the_number_of_rows(tmp_path):
    few, many = (str(write(tmp_path / f"{n}.jsonl", n)) for n in (20, 120))
    recipe = own_recipe("smollm2-135m", {"train": few, "test": few}, tmp_path)
    assert (recipe.learning_rate, recipe.num_train_epochs, recipe.template) == (1e-3, 4, None)
    assert recipe.data.validation is None
    recipe = own_recipe("google/flan-t5-base", {"train": many, "validation": few, "test": few}, tmp_path).resolve()
    assert (recipe.learning_rate, recipe.num_train_epochs, recipe.template) == (2e-4, 1, "summarize-flan")
    assert recipe.data.validation == few
    assert recipe.lora is not None


@pytest.mark.parametrize(("n", "summary"), [(1, True), (5, False)])
def test_rows_without_gold_texts_are_refused_before_anything_is_replaced(tmp_path, n, summary):
    kept = tmp_path / "out" / "own" / "compare.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    source = write(tmp_path / "my.jsonl", n, summary=summary)
    with pytest.raises(DataError, match=r"my\.jsonl: [01] rows with a gold text; 2 can be split, and 50 are"):
        own_rows(str(source), tmp_path / "out")
    assert kept.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "my.jsonl", "--job", "summarize"], "--data is a job of its own; leave --job out"),
        (["--model", "m"], "--model goes with --data; the jobs train the packaged model"),
    ],
)
def test_flags_that_do_not_go_together_are_named(words, message, capsys):
    assert run_command(["demo", *words]) == 2
    assert message in capsys.readouterr().err
