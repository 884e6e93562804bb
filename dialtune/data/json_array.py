"""The rows of one JSON array, `[{...}, {...}]`, parsed as they stream by: exact lines, memory of about one row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from dialtune.data.decoding import DECODER, MAX_DEPTH, MAX_ROW_BYTES, ByteSource, checked_row, too_deep
from dialtune.errors import DataError

Row = tuple[int, dict[str, Any] | None, str, bytes]  # line, row, reason, raw bytes

# How near the end of the buffer an error may be the buffer's fault; longer than `-Infinity` or a surrogate pair.
_MARGIN = 16
_LENIENT = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\n\r]*")
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


class ArrayReader:
    """Walks over the text of one array. After a syntax error it goes on at the next line that begins like a row."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text, self._at, self._line = "", 0, 1
        self._ended = False

    def rows(self) -> Iterator[Row]:
        """Every element, bad ones with their reason."""
        if self._peek() != "[":
            yield self._fault("a .json file holds one array of rows, or one row a line")
            return
        self._advance(self._at + 1)
        mark = self._peek()
        while mark != "]":
            row, resumed = self._element()
            yield row
            if resumed:
                continue
            mark = self._peek()
            if mark == ",":
                self._advance(self._at + 1)
                self._peek()
            elif mark != "]":
                if not (self._ended and row[2]):  # a row that swallowed the rest has been reported
                    yield self._fault("expected ',' or ']' behind a row; the rest of the file is not read")
                return
        self._advance(self._at + 1)
        if self._peek():
            yield self._fault("text behind the array")

    def _element(self) -> tuple[Row, bool]:
        """The row at the cursor, and whether the cursor stands on the next one already."""
        line, start = self._line, self._at
        value, length, reason, below = self._parse()
        if length < 0:
            head = self._text[self._at : self._at + MAX_ROW_BYTES]
            return (line + below, None, reason, head.encode("utf-8", "surrogateescape")), self._skip_to_next(start)
        text = self._text[self._at : self._at + length]
        self._advance(self._at + length)
        row: dict[str, Any] | None = None
        if not text.isascii() and (bad := _NOT_UTF8.search(text)):
            below = text.count("\n", 0, bad.start())
            reason = f"invalid UTF-8: byte 0x{ord(bad[0]) - 0xDC00:02x}"
        reason = reason or too_deep(text)
        if not reason and length > MAX_ROW_BYTES:
            reason = f"row too long: {length:,} characters, at most {MAX_ROW_BYTES:,}"
        if not reason:
            row, reason = checked_row(value, text)
        return (line + below, row, reason, text[:MAX_ROW_BYTES].encode("utf-8", "surrogateescape")), False

    def _parse(self) -> tuple[object, int, str, int]:
        """(value, length or -1 if the row has no end, reason, lines from its start to the fault)."""
        while True:
            reason = ""
            try:
                try:
                    value, end = DECODER.raw_decode(self._text, self._at)
                except DataError as error:
                    reason = str(error)
                    value, end = _LENIENT.raw_decode(self._text, self._at)
                return value, end - self._at, reason, 0
            except json.JSONDecodeError as error:
                at, fault = error.pos, error.msg
            except RecursionError:
                return None, -1, f"nested too deeply: more than {MAX_DEPTH} levels", 0
            except ValueError as error:  # an integer of more than 4,300 digits
                return None, -1, f"not valid JSON: {str(error).partition(';')[0]}", 0
            cut = at >= len(self._text) - _MARGIN or fault.startswith("Unterminated")
            size = len(self._text) - self._at
            if cut and size > MAX_ROW_BYTES:
                return None, -1, f"row too long: more than {MAX_ROW_BYTES:,} characters", 0
            if cut and self._more():
                continue
            column = at - self._text.rfind("\n", 0, at)
            return None, -1, f"not valid JSON: {fault} at column {column}", self._text.count("\n", self._at, at)

    def _skip_to_next(self, start: int) -> bool:
        """Moves behind a broken row; False if no later line begins as this row did, and then nothing is left."""
        indent = self._text[self._text.rfind("\n", 0, start) + 1 : start] if start else "?"
        begin = f"\n{indent}{{" if not indent.strip() else None
        while True:
            found = self._text.find(begin, self._at + 1) if begin else -1
            if found >= 0:
                self._advance(found + len(begin or "") - 1)
                return True
            self._advance(max(self._at, len(self._text) - (len(begin) if begin else 0)))
            if not self._more():
                self._advance(len(self._text))
                return False

    def _peek(self) -> str:
        """The next character that is not blank, the cursor moved to it; empty at the end."""
        while True:
            blank = _BLANK.match(self._text, self._at)
            self._advance(blank.end() if blank else self._at)
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Appends the next block and forgets the lines behind the cursor; False at the end of the file."""
        if self._ended:
            return False
        block = self._source.read()
        self._ended = not block
        text = self._decoder.decode(block, final=self._ended)
        if self._ended and not text:
            return False
        keep = max(self._text.rfind("\n", 0, self._at), self._at - 200, 0)
        self._text = self._text[keep:] + text
        self._at -= keep
        return True

    def _advance(self, to: int) -> None:
        self._line += self._text.count("\n", self._at, to)
        self._at = to

    def _fault(self, detail: str) -> Row:
        return self._line, None, f"not valid JSON: {detail}", b""
