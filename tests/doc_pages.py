"""What the pages hold: fenced blocks, command lines, links, headings and code in the text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GENERATED = {"config.md", "cli.md", "errors.md", "metrics.md"}
WRITTEN = [ROOT / "README.md", *sorted(path for path in DOCS.glob("*.md") if path.name not in GENERATED)]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "peers.md", *sorted(DOCS.glob("*.md"))]

_FENCE = re.compile(r"^```(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text."""

    file: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}"


def blocks(file: Path, language: str | None = None) -> list[Block]:
    """The fenced blocks of a page, in order, of one language or of all."""
    text = file.read_text(encoding="utf-8")
    found = [Block(file, text.count("\n", 0, match.start()) + 2, match[1], match[2]) for match in _FENCE.finditer(text)]
    return [block for block in found if language is None or block.language == language]


def every(language: str) -> list[Block]:
    return [block for file in WRITTEN for block in blocks(file, language)]


def commands(block: Block) -> Iterator[list[str]]:
    """The words of each command of a bash block: comments gone, lines joined, `&&` taken apart, variables left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word != "&&":
                words.append(word)
            elif words:
                while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
                    words.pop(0)
                yield words
                words = []


def without_blocks(file: Path) -> str:
    return _FENCE.sub("", file.read_text(encoding="utf-8"))


def links(file: Path) -> list[str]:
    return _LINK.findall(without_blocks(file))


def spans(file: Path) -> list[str]:
    """Code in the running text, lines joined; a bar inside a table is written with a backslash."""
    text = re.sub(r"\n(?!\n)", " ", without_blocks(file))
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`]+)`", text)]


def anchors(file: Path) -> set[str]:
    """The anchors that a forge gives to the headings of a page."""
    found: set[str] = set()
    for heading in _HEADING.findall(without_blocks(file)):
        plain = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = sum(one == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", one) is not None for one in found)
        found.add(slug if not number else f"{slug}-{number}")
    return found
