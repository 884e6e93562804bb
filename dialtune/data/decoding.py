"""Bytes to checked text and JSON: encoding, line length, depth, duplicate keys, finite numbers; each refusal says why.

A reason reads "kind: detail"; drops are counted by its kind.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, NoReturn

from dialtune.errors import DataError

MAX_ROW_BYTES = 1 << 20
MAX_DEPTH = 64
BLOCK = 1 << 16  # bytes read at a time

_BOM = b"\xef\xbb\xbf"
# Longest marks first: UTF-32-LE begins like UTF-16-LE.
_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32LE"),
    (b"\x00\x00\xfe\xff", "UTF-32BE"),
    (b"\xff\xfe", "UTF-16LE"),
    (b"\xfe\xff", "UTF-16BE"),
)
# ASCII text without a mark, by which of its first four bytes are zero.
_UNMARKED = {(1, 3): "UTF-16LE", (0, 2): "UTF-16BE", (1, 2, 3): "UTF-32LE", (0, 1, 2): "UTF-32BE"}


class Line(NamedTuple):
    """One line of a file: `text` is decoded, unless `reason` says why it could not be."""

    number: int  # 1-based
    raw: bytes  # with its line end; at most 1 MiB of it
    text: str
    reason: str


class ByteSource:
    """The bytes of one file without their mark, and the number of the last line that was read."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self.path, self.line, self._stream = path, 0, stream
        head = stream.read(4)
        name = next((name for mark, name in _MARKS if head.startswith(mark)), None)
        name = name or _UNMARKED.get(tuple(i for i, byte in enumerate(head) if byte == 0))
        if name:
            raise DataError(f"{path}:1: not UTF-8: the file is {name}; convert it: iconv -f {name} -t UTF-8 IN > OUT")
        self._head = head.removeprefix(_BOM)

    def begins_with(self, mark: bytes) -> bool:
        """Whether `mark` comes first, blanks aside; looks at one block and consumes nothing."""
        self._head = self.read()
        return self._head.lstrip().startswith(mark)

    def read(self) -> bytes:
        """The next block; empty at the end."""
        head, self._head = self._head, b""
        return head + self._stream.read(BLOCK)

    def lines(self) -> Iterator[Line]:
        """Each line, blank ones too; a line over the limit is skipped in constant memory and reported."""
        while raw := self._readline():
            self.line += 1
            if len(raw) > MAX_ROW_BYTES + 1:
                size = len(raw) + (0 if raw.endswith(b"\n") else self._skip_line())
                reason = f"row too long: {size:,} bytes, at most {MAX_ROW_BYTES:,}"
                yield Line(self.line, raw[:MAX_ROW_BYTES], "", reason)
                continue
            try:
                yield Line(self.line, raw, raw.decode("utf-8"), "")
            except UnicodeDecodeError as error:
                at = error.start
                yield Line(self.line, raw, "", f"invalid UTF-8: byte 0x{raw[at]:02x} at byte {at + 1} of the line")

    def _readline(self) -> bytes:
        if not self._head:
            return self._stream.readline(MAX_ROW_BYTES + 2)
        first, end, rest = self._head.partition(b"\n")
        self._head = rest
        return first + end if end else first + self._stream.readline(MAX_ROW_BYTES + 2)

    def _skip_line(self) -> int:
        size = 0
        while more := self._stream.readline(BLOCK):
            size += len(more)
            if more.endswith(b"\n"):
                break
        return size


def text_lines(source: ByteSource) -> Iterator[Line]:
    """The lines of a row-per-line format: blank ones are faults, except at the end of the file."""
    blank: list[Line] = []
    for line in source.lines():
        if not line.reason and (not line.text or line.text.isspace()):
            if len(blank) < 1000:  # a file of nothing but blank lines must not fill the memory
                blank.append(line._replace(reason="blank line: expected a row"))
            continue
        yield from blank
        blank.clear()
        yield line


def parse_object(text: str) -> tuple[dict[str, Any] | None, str]:
    """(row, "") or (None, reason) for the JSON text of one row."""
    if reason := too_deep(text):
        return None, reason
    try:
        row = DECODER.decode(text)
    except json.JSONDecodeError as error:
        return None, f"not valid JSON: {error.msg} at column {error.colno}"
    except DataError as error:
        return None, str(error)
    except ValueError as error:  # an integer of more than 4,300 digits
        return None, f"not valid JSON: {str(error).partition(';')[0]}"
    return checked_row(row, text)


def checked_row(row: object, text: str) -> tuple[dict[str, Any] | None, str]:
    """(row, "") if the parsed value is an object of sound Unicode, else (None, reason)."""
    if not isinstance(row, dict):
        return None, f"not an object: expected {{...}}, got {kind_of(row)}"
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            return None, "invalid Unicode: half of a surrogate pair"
    return row, ""


def kind_of(value: object) -> str:
    """What a JSON value is, in words for a message."""
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def too_deep(text: str) -> str:
    """The reason to refuse JSON nested beyond 64 levels, or an empty string."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return ""
    depth = deepest = 0
    for found in _BRACKET.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(found[0], 0)
        deepest = max(deepest, depth)
    return f"nested too deeply: {deepest} levels, at most {MAX_DEPTH}" if deepest > MAX_DEPTH else ""


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(f"duplicate key: '{twice[:40]}'")
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(f"not a finite number: {name}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise DataError(f"not a finite number: {text[:20]}")
    return number


DECODER = json.JSONDecoder(object_pairs_hook=_refuse_duplicates, parse_constant=_refuse_constant, parse_float=_finite)
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
