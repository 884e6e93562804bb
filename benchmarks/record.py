"""What every benchmark writes: machine, versions, command, date, rows and the headline numbers, as one JSON file."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dialtune.environment import environment

RESULTS = Path(__file__).parent / "results"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(chosen: str | None) -> Path:
    """The real corpora, or a sentence on what is missing."""
    folder = Path(chosen) if chosen else SHARED
    if not folder.is_dir():
        where = "give --shared FOLDER (CONTRIBUTING.md lists what is in it)"
        sys.exit(f"{folder.name}: the real corpora are not beside this checkout; {where}")
    return folder


def machine() -> dict[str, Any]:
    """The machine in words that matter for a number."""
    found = environment()
    found.pop("commit", None)
    return {"processor": _processor(), **found}


def write_result(name: str, rows: Sequence[Mapping[str, Any]], headline: Mapping[str, float], **more: Any) -> Path:
    """Write benchmarks/results/<name>.json and print its headline."""
    path = RESULTS / f"{name}.json"
    given = [
        "FOLDER" if before in ("--work", "--shared") else word
        for before, word in zip(sys.argv, sys.argv[1:], strict=False)
    ]
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *given])
    record = {
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        **more,
        "rows": list(rows),
        "headline": dict(headline),
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    for key, value in headline.items():
        print(f"{key:<28} {value:.4g}")
    print(f"written: {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path.name}")
    return path


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A JSON Lines file of one stage for the next."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    print(f"{path.stem}: {len(rows)} rows", flush=True)


def print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of like keys as an aligned text table."""
    if not rows:
        return
    keys = list(rows[0])
    cells = [[_cell(row.get(key)) for key in keys] for row in rows]
    widths = [max(len(key), *(len(line[i]) for line in cells)) for i, key in enumerate(keys)]
    for line in [keys, *cells]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
