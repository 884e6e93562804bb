"""A folder's files to one HTML page: the same files give the same bytes. No script, no request, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dialtune.report import wording
from dialtune.report.reading import Job, read_jobs
from dialtune.report.scores import forest_plot
from dialtune.report.views import section
from dialtune.runs import RunFolder, write_text_atomic

SIZE_LIMIT = 1_000_000  # bytes of the page
_SHOWN = (3, 1, 0)  # dialogues at each end: the first number that keeps the limit
_TEMPLATES = Path(__file__).parent / "templates"


def build_report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run folder, an evaluation, a job, or a folder of jobs, and return the file.

    Args:
        folder: what is reported; see reading.read_jobs for what it may hold.
        out: the file to write; report.html in `folder` if not given.

    Raises:
        ConfigError: the folder or a file that belongs to it is missing.
        DataError: a file in it is not what it should be.
    """
    jobs = read_jobs(Path(folder))
    page = ""
    for shown in _SHOWN:
        page = _page(jobs, shown)
        if len(page.encode()) < SIZE_LIMIT:
            break
    file = Path(out) if out is not None else RunFolder(folder).report
    write_text_atomic(file, page)
    return file


def _page(jobs: Sequence[Job], shown: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    sections = [section(job, place, shown) for place, job in enumerate(jobs, start=1)]
    title = "dialtune report: " + ", ".join(section.title for section in sections)
    return environment.get_template("report.html").render(title=title, sections=sections, forest=forest_plot(jobs))


def _finalize(value: Any) -> Any:
    """What a template prints: text with its invisible characters shown; our own markup as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else wording.visible(value)
