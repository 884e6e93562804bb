"""The page of a grid: which run won, all of them in one drawing and one table, from files alone."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from dialtune.errors import DataError
from dialtune.grids import GridRecord, GridRow, write_grid
from dialtune.report import plots, wording
from dialtune.report.build import SIZE_LIMIT, build_report

RATES = (1e-5, 3e-5, 1e-4)
LOSSES = {1e-5: 3.9, 3e-5: 3.25, 1e-4: 3.4}


def write_run(folder: Path, rate: float, steps: int = 40) -> GridRow:
    """A run of four epochs as `dialtune sft` leaves it; its last validation loss is the one in LOSSES."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: tiny\nlearning_rate: {rate}\n")
    record = {"command": "dialtune sft grid.yaml", "versions": {"torch": "2.13.0"}, "outcome": "done"}
    (folder / "run.json").write_text(json.dumps(record))
    end = LOSSES.get(rate, 3.5)
    rows = []
    for step in range(1, steps + 1):
        loss = end + 2 * math.exp(-step / 6)
        row = {"step": step, "epoch": step / 10, "loss": None if step == 3 else loss, "n_tokens": 9, "step_s": 0.5}
        rows.append(row | ({"eval_loss": end + 2 * math.exp(-step / 6)} if step % 10 == 0 else {}))
    rows[-1]["eval_loss"] = end
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return GridRow(
        name=folder.name, values={"learning_rate": rate}, fingerprint="f", status="done", step=steps, eval_loss=end,
        train_loss=end - 0.1, score=end, seconds=20.0,
    )  # fmt: skip


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Three finished runs and one that diverged."""
    rows = [write_run(tmp_path / f"learning_rate={rate:g}", rate) for rate in RATES]
    failed = GridRow(name="learning_rate=1", values={"learning_rate": 1.0}, fingerprint="f", status="failed",
                     reason="training stopped: loss is not finite <b>")  # fmt: skip
    write_grid(tmp_path, record_of([*rows, failed], best="learning_rate=3e-05"))
    return tmp_path


def record_of(rows: list[GridRow], best: str | None, metric: str = "eval_loss") -> GridRecord:
    axes = {"learning_rate": tuple(row.values["learning_rate"] for row in rows)}
    direction = "lower" if metric == "eval_loss" else "higher"
    return GridRecord(metric=metric, direction=direction, axes=axes, rows=tuple(rows), best=best)


class Cells(HTMLParser):
    """The rows of the page's tables as lists of texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.rows[-1][-1] += data.strip()


def test_the_page_names_the_winner_and_ranks_every_run(grid):
    page = build_report(grid).read_text(encoding="utf-8")
    assert "Of 4 runs, learning_rate 3e-05 has the lowest validation loss: 3.250, after 40 updates." in page
    table = Cells(page).rows
    assert table[0] == ["learning_rate", "Step", "Validation loss", "Training loss", "Seconds", ""]
    assert table[1:4] == [
        ["3e-05", "40", "3.2500", "3.1500", "20", "best"],
        ["0.0001", "40", "3.4000", "3.3000", "20", ""],
        ["1e-05", "40", "3.9000", "3.8000", "20", ""],
    ]
    assert table[4] == ["1.0", "", "", "", "", "failed"]
    assert table[5][0].startswith("training stopped: loss is not finite <b>")
    assert "loss is not finite &lt;b&gt;" in page
    assert "Training of learning_rate=3e-05" in page
    assert "learning_rate: 3e-05" in page  # its recipe
    assert page.count("dialtune sft grid.yaml") >= 1


def test_all_runs_are_in_one_drawing_with_training_and_validation(grid):
    page = build_report(grid).read_text(encoding="utf-8")
    drawings = [svg for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL) if ">epoch<" in svg]
    assert len(drawings) == 2  # wide and narrow
    for svg in drawings:
        texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
        assert [text for text in texts if text in ("3e-05", "0.0001", "1e-05")] == ["3e-05", "0.0001", "1e-05"]
        for colour in (1, 2, 3):
            lines = [path.get("style") for path in ElementTree.fromstring(svg).iter("path")]
            drawn = [style for style in lines if f"stroke:var(--run{colour})" in (style or "") and "fill:none" in style]
            assert len(drawn) == 3  # training, validation, and the legend's
        assert "var(--run4)" not in svg


def test_the_page_is_small_repeats_and_asks_for_nothing(grid, tmp_path):
    first = build_report(grid, tmp_path / "a.html").read_bytes()
    assert build_report(grid, tmp_path / "b.html").read_bytes() == first
    assert len(first) < SIZE_LIMIT
    assert b"<script" not in first
    assert not re.findall(rb'(?:src|href)="(?!#)', first)


def test_an_unfinished_grid_says_so_and_shows_what_there_is(tmp_path):
    rows = [write_run(tmp_path / "learning_rate=1e-05", 1e-5)]
    rows.append(GridRow(name="learning_rate=3e-05", values={"learning_rate": 3e-5}, fingerprint="f"))
    write_grid(tmp_path, record_of(rows, best=None))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "1 of 2 runs finished; none is chosen yet." in page
    assert ["3e-05", "", "", "", "", "waiting"] in Cells(page).rows


def test_a_grid_that_has_not_begun_has_a_page_without_a_drawing(tmp_path):
    row = GridRow(name="learning_rate=1e-05", values={"learning_rate": 1e-5}, fingerprint="f")
    write_grid(tmp_path, record_of([row], best=None))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "0 of 1 runs finished" in page
    assert "<svg" not in page


def test_a_grid_ranked_by_a_generated_score_shows_it(tmp_path):
    rows = []
    for rate, score in ((1e-5, 12.5), (3e-5, 20.25)):
        row = write_run(tmp_path / f"learning_rate={rate:g}", rate)
        rows.append(row.model_copy(update={"score": score}))
    write_grid(tmp_path, record_of(rows, "learning_rate=3e-05", "rougeL"))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    assert "learning_rate 3e-05 has the highest ROUGE-L: 20.2, after 40 updates." in page
    table = Cells(page).rows
    assert table[0] == ["learning_rate", "Step", "Validation loss", "Training loss", "ROUGE-L", "Seconds", ""]
    assert [line[0] for line in table[1:3]] == ["3e-05", "1e-05"]
    assert table[1][4] == "20.2"


def test_more_runs_than_colours_share_a_faint_one(tmp_path):
    rows = [write_run(tmp_path / f"learning_rate={k}e-05", k * 1e-5) for k in range(1, 10)]
    write_grid(tmp_path, record_of(rows, rows[0].name))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    svg = next(svg for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL) if ">epoch<" in svg)
    assert svg.count(">other runs<") == 1
    assert all(f"var(--run{colour})" in svg for colour in range(1, 7))


def test_a_table_that_was_edited_is_refused(grid):
    file = grid / "grid.json"
    file.write_text(file.read_text().replace('"status": "failed"', '"status": "lost"'))
    with pytest.raises(DataError, match=r"grid\.json: rows\.3\.status: .*; it was cut or edited"):
        build_report(grid)


def test_the_drawing_keeps_labels_from_data_plain():
    run = plots.Run("$x_{ <b>&", [(0.1, 3.0)], [(1.0, 2.0)])
    svg = plots.runs([run], [], width=340, y_label="loss", title="t", key="k")
    assert "$x_{ <b>&" in [element.text for element in ElementTree.fromstring(svg).iter("text")]


@pytest.mark.parametrize(("value", "text"), [(None, "null"), (True, "true"), (3e-5, "3e-05"), ("cosine", "cosine")])
def test_values_read_as_in_a_recipe(value, text):
    assert wording.plain(value) == text
