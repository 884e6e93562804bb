"""A report in Markdown for a pull request: verdicts and tables, no dialogue; text of data can do nothing there."""

from __future__ import annotations

from collections.abc import Sequence

from dialtune.markdown import code, plain, table
from dialtune.report.findings import Cell, Finding
from dialtune.report.scores import ScoreLine
from dialtune.report.views import Section

_MARKS = {"good": "✓ ", "bad": "✗ "}


def to_markdown(sections: Sequence[Section]) -> str:
    """The whole text; each job's details are folded."""
    parts = ["## " + ", ".join(plain(section.title) for section in sections)]
    parts += [_verdict(section) for section in sections]
    parts += [_details(section) for section in sections]
    return "\n\n".join(parts) + "\n"


def _verdict(section: Section) -> str:
    lines = [f"**{plain(section.sentence)}**", *(plain(line) for line in (section.tally, *section.notes) if line)]
    return "  \n".join(lines)


def _details(section: Section) -> str:
    compared = [line for line in section.lines if line.p]
    chosen = compared or section.lines
    parts = [
        f"<details><summary>{plain(section.title)}: scores, jury, counts, commands</summary>",
        _scores(chosen, paired=bool(compared)),
        *(_finding(finding) for finding in (*section.limits, *section.findings)),
        _counts(section),
        plain(section.method),
        table(("what", "name", "licence"), [(plain(a), code(b), plain(c)) for a, b, c in section.licences]),
        "\n".join(f"- {code(name)}: {code(command)}" for name, command in section.commands),
        "</details>",
    ]
    return "\n\n".join(part for part in parts if part)


def _scores(lines: Sequence[ScoreLine], *, paired: bool) -> str:
    if not paired:
        rows = [(plain(line.name), f"{line.after} {_small(line.after_ci)}".strip(), line.n) for line in lines]
        return table(("score", "value", "dialogues"), rows)
    head = ("score", "before", "after", "difference", "relative", "p (Holm)", "dialogues", "verdict")
    rows8 = [
        (
            plain(line.name), line.before, line.after, f"{line.change} {_small(line.change_ci)}".strip(),
            f"{line.relative} {_small(line.relative_ci)}".strip(), plain(line.p), line.n,
            _MARKS.get(line.tone, "") + line.verdict,
        )
        for line in lines
    ]  # fmt: skip
    return table(head, rows8)


def _small(interval: str) -> str:
    return f"({interval})" if interval else ""


def cell_text(cell: Cell) -> str:
    """A cell in one line; what is small there stands in brackets, or behind a comma if it has brackets itself."""
    small = plain(cell.small)
    behind = f", {small}" if "(" in small else f" ({small})" if small else ""
    return f"{_MARKS.get(cell.tone, '')}{plain(cell.text)}{behind}"


def _finding(finding: Finding) -> str:
    rows = [tuple(map(cell_text, row)) for row in finding.rows]
    said = "\n".join(plain(sentence) for sentence in finding.sentences)
    return "\n\n".join(part for part in (f"#### {finding.heading}", said, table(finding.columns, rows)) if part)


def _counts(section: Section) -> str:
    if not section.counts:
        return ""
    head = ("dialogues", "before", "after") if section.paired else ("dialogues", "count")
    rows = [(what, before, after) if section.paired else (what, after) for what, before, after in section.counts]
    missing = "\n".join(f"- {plain(name)}: not scored, {plain(reason)}" for name, reason in section.unscored)
    return "\n\n".join(part for part in ("#### What was not scored", table(head, rows), missing) if part)
