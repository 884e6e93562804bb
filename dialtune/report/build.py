"""A folder's files to one HTML page, to Markdown, JSON or a model card: the same files, the same bytes, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dialtune.cards import CARD
from dialtune.errors import ConfigError
from dialtune.report import wording
from dialtune.report.card import card_of, place_of
from dialtune.report.facts import to_json
from dialtune.report.pull_request import to_markdown
from dialtune.report.reading import Job, read_jobs
from dialtune.report.scores import forest_plot
from dialtune.report.views import Section, section
from dialtune.runs import RunFolder, write_text_atomic

SIZE_LIMIT = 1_000_000  # bytes of the page
_SHOWN = (3, 1, 0)  # dialogues at each end: the first number that keeps the limit
_TEMPLATES = Path(__file__).parent / "templates"

Format = Literal["html", "md", "json"]


def build_report(folder: str | Path, out: str | Path | None = None, *, kind: Format = "html") -> Path:
    """Write the report of a run folder, an evaluation, a job, a grid, or a folder of jobs, and return the file.

    Args:
        folder: what is reported; see reading.read_jobs for what it may hold.
        out: the file to write; report.html (or .md, .json) in `folder` if not given.
        kind: the page; the same in Markdown, for a pull request; or the same facts as data.

    Raises:
        ConfigError: the folder or a file that belongs to it is missing.
        DataError: a file in it is not what it should be.
    """
    jobs = read_jobs(Path(folder))
    file = Path(out) if out is not None else RunFolder(folder).report.with_suffix(f".{kind}")
    write_text_atomic(file, _MAKERS[kind](jobs))
    return file


def build_cards(folder: str | Path, out: str | Path | None = None, *, trained_only: bool = False) -> list[Path]:
    """Write the model card of each job in a folder, into its result's checkpoint or else beside its evaluation.

    Args:
        folder: as for build_report.
        out: the file to write instead, for a folder of one job.
        trained_only: leave out jobs without a training; otherwise one about texts of a file is an error.

    Raises:
        ConfigError: besides build_report's, no model to write about, or `out` for several.
    """
    jobs = read_jobs(Path(folder))
    if out is not None and len(jobs) > 1:
        raise ConfigError(f"--out: one file for {len(jobs)} jobs; give one job's folder, such as {jobs[0].home}")
    written = []
    for place, job in enumerate(jobs, start=1):
        if trained_only and job.training is None:
            continue
        file = Path(out) if out is not None else place_of(job) / CARD
        write_text_atomic(file, wording.visible(card_of(job, section(job, place, 0))))
        written.append(file)
    return written


def _page(jobs: Sequence[Job]) -> str:
    """The page with as many dialogues as fit."""
    page = ""
    for shown in _SHOWN:
        page = _rendered(jobs, shown)
        if len(page.encode()) < SIZE_LIMIT:
            break
    return page


def _rendered(jobs: Sequence[Job], shown: int) -> str:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    sections = _sections(jobs, shown)
    title = "dialtune report: " + ", ".join(section.title for section in sections)
    return environment.get_template("report.html").render(title=title, sections=sections, forest=forest_plot(jobs))


def _sections(jobs: Sequence[Job], shown: int) -> list[Section]:
    return [section(job, place, shown) for place, job in enumerate(jobs, start=1)]


_MAKERS: Mapping[Format, Callable[[Sequence[Job]], str]] = {
    "html": _page,
    "md": lambda jobs: wording.visible(to_markdown(_sections(jobs, 0))),
    "json": lambda jobs: to_json(jobs, _sections(jobs, 0), _SHOWN[0]),
}


def _finalize(value: Any) -> Any:
    """What a template prints: text with its invisible characters shown; our own markup as it is."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else wording.visible(value)
