"""The labs' notebooks: executed with next to nothing, switched to the hub's names, and committed with real outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from dialtune.data.corpus import packaged
from dialtune.data.dialogue import render_dialogue

jupytext = pytest.importorskip("jupytext", reason="the notebooks' tools come with the dev extra")
nbformat = pytest.importorskip("nbformat", reason="the notebooks' tools come with the dev extra")

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
LABS = ("1_summarize", "2_respond", "3_detoxify")
LARGEST = 300_000  # bytes of a committed notebook
COMMIT = "0" * 40

# What a reader must have seen, in printed outputs: the traps of each lab with their numbers.
SHOWN = {
    "1_summarize": (
        r"with a blank in its tags +ROUGE-1 [0-9]{2}\.[0-9]\n",
        r"with a hidden copy: [0-9]+ exact and [1-9][0-9]* near",
        r"rougeL +[0-9.]+ +95 % CI .*rougeL\|refs:1\|",
        r"\[<\|im_end\|>\]",
        r"everybody swapped +-",
    ),
    "2_respond": (
        r"also in training: [0-9]+ exact, [0-9]+ near copies",
        r"echo of the last turn [0-9.]+\n",
        r"\[?n [0-9]+ in [0-9]+ dialogues",
    ),
    "3_detoxify": (
        r"REFUSED: reward 'index_0_of_a_sorted_list'",
        r"REFUSED: reward 'wrong_index' is upside down",
        r"toxicity: passes",
        r"KL to the frozen start policy: 0\.000 nats",
        r"KL to 'adapter off': (?!0\.000)[0-9.]+ nats",
        r"relevance_dialogue kept [0-9.]+%",
    ),
}


def environment(folder: Path, **more: str) -> dict[str, str]:
    """A run that takes almost nothing and writes into `folder`; the package is the one of this checkout."""
    paths = os.pathsep.join(filter(None, [more.pop("PYTHONPATH", ""), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    quick = {"DIALTUNE_NOTEBOOK_QUICK": "1", "DIALTUNE_NOTEBOOK_RUNS": str(folder / "runs"), "PYTHONPATH": paths}
    return os.environ | quick | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"} | more


def run(command: list[str], folder: Path, env: dict[str, str]) -> str:
    done = subprocess.run([sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def code_of(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def check_outputs(lab: str, notebook: Any) -> str:
    """Every cell ran without an error; plots, traps, a verdict and texts are there. Gives what was printed."""
    code = code_of(notebook)
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(images) == {"1_summarize": 2, "2_respond": 2, "3_detoxify": 1}[lab]
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    for pattern in SHOWN[lab]:
        assert re.search(pattern, printed), pattern
    assert re.search(r"rougeL [0-9.]+ -> [0-9.]+, .*: (improved|worse|cannot tell)", printed)
    table = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert len(table) == 1
    assert "<th>before</th><th>after</th>" in table[0]
    assert table[0].count("<tr>") >= 5  # the head and four dialogues
    return printed


def test_there_are_three_labs_in_sequence() -> None:
    assert [path.stem for path in sorted(FOLDER.glob("*_*.py"))] == list(LABS)
    for before, after in pairwise(LABS):
        assert f"({after}.ipynb)" in (FOLDER / f"{before}.py").read_text(encoding="utf-8")
        assert f"({before}.ipynb)" in (FOLDER / f"{after}.py").read_text(encoding="utf-8")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("lab", LABS)
def test_it_runs_from_top_to_bottom(lab: str, tmp_path: Path) -> None:
    """The packaged model and dialogues, two updates; `make notebooks` runs the same program in full."""
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # what a kernel draws with
    run([str(FOLDER / "build.py"), lab, "--out", str(tmp_path)], tmp_path, environment(tmp_path, **inline))
    notebook = nbformat.read(tmp_path / f"{lab}.ipynb", as_version=4)
    printed = check_outputs(lab, notebook)
    assert "no verdict below 30 dialogues" in printed
    assert str(tmp_path) not in json.dumps(notebook)


def switched(script: str) -> str:
    """The script with the first alternative to the model, and the data of the hub, taken: comments become code."""
    lines, taken = script.splitlines(), 0
    for place, line in enumerate(lines):
        if (line.startswith("# MODEL") and "flan-t5-base" in line) or (line.startswith("# TRAIN") and "hub:" in line):
            lines[place] = line.removeprefix("# ")
            taken += 1
        if line.startswith("# RUDE"):
            lines[place] = line.removeprefix("# ")
    assert taken == 1 + ('# TRAIN, VALIDATION, TEST = (f"hub:' in script)
    # a tiny random model has nothing that reinforcement learning could keep, and it would say so
    return "\n".join(lines).partition("result = run_rl(")[0]


def hub(folder: Path) -> dict[str, str]:
    """A cache with a tiny google/flan-t5-base, and a `datasets` package that offers packaged rows as DialogSum."""
    cache = folder / "hub" / "models--google--flan-t5-base"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(COMMIT)
    (cache / "snapshots" / COMMIT).mkdir(parents=True)
    make_model("t5").save(cache / "snapshots" / COMMIT)
    rows = {
        split: [
            # the hub's rows, and its test set flattened: one row per reference
            {
                "id": f"{split}_{n}" + (f"_{k + 1}" if split == "test" else ""),
                "dialogue": render_dialogue(example.messages),
            }
            | {"summary": text, "topic": "none"}
            for n, example in enumerate(packaged(split).examples)
            for k, text in enumerate((*example.references, "They talk.") if split == "test" else example.references)
        ]
        for split in ("train", "validation", "test")
    }
    rows["train"].insert(5, rows["test"][0] | {"id": "copy"})  # as DialogSum has them: must be left out
    (folder / "datasets").mkdir()
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "datasets" / "__init__.py").write_text(
        "import json\n__version__ = '5.0'\n"
        "def load_dataset(repository, split, streaming):\n"
        "    assert repository == 'knkarthick/dialogsum' and streaming\n"
        f"    return json.load(open({str(folder / 'rows.json')!r}))[split]\n"
    )
    return {"PYTHONPATH": str(folder), "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("lab", LABS)
def test_the_other_lines_of_the_first_cell_work(lab: str, tmp_path: Path) -> None:
    """Flan-T5 and DialogSum by the names that a student uncomments; an encoder-decoder goes through every cell."""
    script = tmp_path / f"{lab}.py"
    script.write_text(switched((FOLDER / f"{lab}.py").read_text(encoding="utf-8")), encoding="utf-8")
    printed = run([str(script)], tmp_path, environment(tmp_path, **hub(tmp_path)))
    assert re.search("KL to 'adapter off'" if lab == LABS[2] else r"rougeL [0-9.]+ -> [0-9.]+", printed)
    assert "withheld" not in printed
    assert lab == LABS[2] or re.search(r"(our test set|also in training): 1 exact", printed)
    job = tmp_path / "runs" / lab.partition("_")[2]
    trained, read = {LABS[0]: ("train", "train"), LABS[1]: ("train", "judge"), LABS[2]: ("start", "start")}[lab]
    assert "model: google/flan-t5-base" in (job / trained / "config.yaml").read_text()
    assert "train: hub:knkarthick/dialogsum:train" in (job / read / "config.yaml").read_text()


@pytest.mark.parametrize("lab", LABS)
def test_what_is_committed_is_the_script_with_real_outputs(lab: str) -> None:
    """`make notebooks` writes it; a script that was edited since needs another run."""
    path = FOLDER / f"{lab}.ipynb"
    text = path.read_text(encoding="utf-8")
    committed, script = nbformat.read(path, as_version=4), jupytext.read(FOLDER / f"{lab}.py")
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [
        (cell.cell_type, cell.source) for cell in script.cells
    ]
    assert len(text.encode()) < LARGEST
    nbformat.validate(committed)
    printed = check_outputs(lab, committed)
    assert ": improved" in printed
    assert "below 30 dialogues" not in printed
    sizes = [int(n) for n in re.findall(r"rougeL .*, n (?:[0-9]+ in )?([0-9]+)", printed)]
    assert sizes
    assert min(sizes) >= 30  # dialogues
    assert not re.search(r"[\"' (](/root|/home|/tmp|/work|/Users)/", text)  # no folder of a machine
