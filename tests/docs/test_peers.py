"""The page of peers says what the result files say, and those what the packages say."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import doc_pages as pages
import pytest
import typer

from dialtune.cli.app import app

FOLDER = pages.ROOT / "benchmarks"
RESULT = json.loads((FOLDER / "results" / "peers.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def peers() -> Any:
    spec = importlib.util.spec_from_file_location("peers_lookup", FOLDER / "peers.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["peers_lookup"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_result_files_make_of_it(peers):
    """Stale? python benchmarks/peers.py --page writes it again from the files."""
    text = (FOLDER / "peers.md").read_text(encoding="utf-8")
    assert peers.page(text, RESULT, FOLDER / "results") == text


def test_the_claims_are_those_that_were_confirmed(peers):
    assert RESULT["packages"] == peers.PEERS
    assert [row["feature"] for row in RESULT["rows"]] == [row.name for row in peers.ROWS]
    for confirmed, row in zip(RESULT["rows"], peers.ROWS, strict=True):
        assert set(confirmed["peers"]) == set(row.cells)
        for peer, cell in row.cells.items():
            found = confirmed["peers"][peer]
            assert {key: found[key] for key in ("answer", "pattern", "where", "note")} == vars(cell)
            assert bool(found["found"]) == (cell.answer != "no")
            assert found["files_read"] > 0


def test_a_claim_that_is_not_so_is_named(peers, tmp_path):
    """Wheels that hold nothing: every `yes` and `part` is wrong, and so is a `no` whose file is not there."""
    import zipfile

    for requirement in peers.PEERS.values():
        name = requirement.partition("==")[0].replace("-", "_")
        with zipfile.ZipFile(tmp_path / f"{name}-0-py3-none-any.whl", "w") as archive:
            archive.writestr("empty.py", "")
    _, wrong = peers.look_up(tmp_path)
    claimed = [cell for row in peers.ROWS for cell in row.cells.values() if cell.answer != "no" or cell.where]
    assert len(wrong) == len(claimed)


def test_every_row_is_shown_by_a_command_or_a_test_that_exists():
    verbs = typer.main.get_command(app).commands
    for row in RESULT["rows"]:
        program, *words = row["dialtune"].strip("`").split()
        if program == "dialtune":
            assert words[0] in verbs
        elif program == "pytest":
            assert (pages.ROOT / words[-1]).is_file()
        else:
            assert program == "no"


def test_what_is_said_of_trl_holds_for_the_one_installed_here(peers):
    trl = pytest.importorskip("trl")
    if f"trl=={trl.__version__}" != peers.PEERS["TRL"]:
        pytest.skip(f"the page is about {peers.PEERS['TRL']}, here is {trl.__version__}")
    root = Path(trl.__file__).parents[1]
    files = {str(path.relative_to(root)): path.read_text(encoding="utf-8") for path in (root / "trl").rglob("*.py")}
    assert len(files) > 50
    for row in peers.ROWS:
        cell = row.cells.get("TRL")
        if cell is not None:
            assert bool(list(peers.hits(files, cell))) == (cell.answer != "no"), row.name


# Tables of the README that quote a result file: their numbers are those of the file.


def rows_of(title: str) -> list[list[str]]:
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"## {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines[1:]]


NAMES = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL", "BLEU": "bleu", "chrF": "chrf"}


def test_the_readme_quotes_the_benchmark_of_summaries():
    (scores,) = json.loads((FOLDER / "results" / "summarize.json").read_text(encoding="utf-8"))["scores"].values()
    rows = rows_of("On real data")
    assert len(rows) == 5
    for name, before, after, change, interval, verdict in rows:
        entry = scores[NAMES[name]]
        low, high = entry["relative_ci"]
        assert (before, after) == (f"{entry['before']:.2f}", f"{entry['after']:.2f}")
        assert (change, interval) == (f"{entry['relative']:+.0%}", f"{low:+.0%} to {high:+.0%}")
        assert verdict == entry["verdict"]


def test_the_readme_quotes_the_benchmark_of_speed():
    measured = json.loads((FOLDER / "results" / "sft.json").read_text(encoding="utf-8"))["rows"]
    rows = rows_of("Speed")
    assert len(rows) == len(measured) == 6
    for quoted, row in zip(rows, measured, strict=True):
        tools = [row.get(f"{tool} tokens/s") for tool in ("dialtune", "trainer", "trl")]
        for text, speed in zip(quoted[2:5], tools, strict=True):
            assert text == "–" if speed is None else abs(float(text.replace(",", "")) - speed) <= 0.5
        assert quoted[5] == f"{row['ratio']:.2f}"


def test_the_readme_quotes_the_benchmark_of_learning_from_rewards():
    measured = json.loads((FOLDER / "results" / "rl.json").read_text(encoding="utf-8"))["rows"]
    rows = rows_of("Speed of learning from rewards")
    assert len(rows) == len(measured) == 3
    for (_, ours, peer, ratio), row in zip(rows, measured, strict=True):
        assert (ours, peer.split()[0]) == (f"{row['dialtune s']:.1f}", f"{row['peer s']:.1f}")
        assert ratio == f"{row['ratio']:.1f}"
