"""Execute the labs' scripts, the source, and write them as notebooks with outputs: what `make notebooks` runs."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
_ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def scripts() -> list[Path]:
    """The labs in order."""
    return sorted(HERE.glob("[0-9]_*.py"))


def execute(script: Path, folder: Path) -> Any:
    """The notebook of a percent script, executed top to bottom in `folder`; raises at the first cell that fails."""
    notebook = jupytext.read(script)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=7200, kernel_name="python3", resources=resources).execute()
    return tidy(notebook, folder)


def tidy(notebook: Any, folder: Path) -> Any:
    """Without what differs from run to run and says nothing: times, ids, progress bars, folders of this machine."""
    for place, cell in enumerate(notebook.cells):
        cell.id = f"cell-{place}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            # stderr is progress bars and warnings of libraries
            cell.outputs = [kept for kept in cell.outputs if kept.get("name") != "stderr"]
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.text = _ESCAPES.sub("", output.text).replace(f"{folder}/", "")
    notebook.metadata.pop("jupytext", None)
    notebook.metadata.pop("language_info", None)  # which Python it was
    return notebook


def retell(script: Path, path: Path) -> Any:
    """The notebook at `path` with the script's text and the outputs that it has; raises if the code changed."""
    fresh, old = jupytext.read(script), nbformat.read(path, as_version=4)
    code, ran = ([cell for cell in book.cells if cell.cell_type == "code"] for book in (fresh, old))
    if [cell.source for cell in code] != [cell.source for cell in ran]:
        raise SystemExit(f"{path.name}: its code changed, so its outputs are old; run it without --text")
    for cell, known in zip(code, ran, strict=True):
        cell.outputs, cell.execution_count = known.outputs, known.execution_count
    return tidy(fresh, Path.cwd())


def main() -> None:
    """Writes the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="1_summarize and so on; all if none is named")
    parser.add_argument("--out", type=Path, default=HERE, help="the folder of the notebooks")
    parser.add_argument("--text", action="store_true", help="run nothing: take edited text, keep the outputs")
    given = parser.parse_args()
    if unknown := set(given.names) - {script.stem for script in scripts()}:
        parser.error(f"no lab {', '.join(sorted(unknown))}; there are: {', '.join(s.stem for s in scripts())}")
    for script in scripts():
        if not given.names or script.stem in given.names:
            path = given.out / f"{script.stem}.ipynb"
            nbformat.write(retell(script, path) if given.text else execute(script, Path.cwd()), path)
            print(f"written: {path}", flush=True)


if __name__ == "__main__":
    main()
