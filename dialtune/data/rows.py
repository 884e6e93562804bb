"""Files to raw rows, in constant memory: jsonl, json, csv, tsv, parquet and __eou__ text, each also as .gz.

What a row means is decided in `layouts`, what happens to a bad one in `reading`.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

from dialtune.data.decoding import BLOCK, ByteSource, Line, parse_object, text_lines
from dialtune.data.dialogue import EOU
from dialtune.data.json_array import ArrayReader
from dialtune.errors import ConfigError, DataError, MissingExtraError

REFUSED = (".pkl", ".pickle", ".pt", ".pth", ".bin", ".npy", ".npz", ".joblib", ".ckpt")


class RawRow(NamedTuple):
    """One row as found: `data` is None exactly when `reason` is set; `raw` is what quarantine keeps."""

    line: int  # 1-based line on which the row begins; for parquet the number of the row
    data: dict[str, Any] | None
    reason: str  # "kind: detail"
    raw: bytes


def iter_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) for every row of a file; the first bad row raises DataError as `file:line: reason`."""
    for row in scan_rows(path):
        if row.data is None:
            raise DataError(f"{path}:{row.line}: {row.reason}")
        yield row.line, row.data


def scan_rows(path: str | Path) -> Iterator[RawRow]:
    """Every row of a file, bad ones with their reason.

    Raises:
        ConfigError: no such file, or a format that is not read.
        DataError: a pickled format, an encoding other than UTF-8, a damaged gzip stream.
    """
    path = Path(path)
    suffix = format_of(path)
    if suffix == ".parquet":
        yield from _scan_parquet(path)
        return
    with path.open("rb") as file:
        zipped = path.suffix.lower() == ".gz"
        stream = io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file)), BLOCK) if zipped else file
        last = 0
        try:
            for row in SCANNERS[suffix](ByteSource(path, stream)):
                last = row.line
                yield row
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path}:{last + 1}: damaged gzip: {error}") from error


def format_of(path: Path) -> str:
    """The suffix that names the format, `.gz` aside; refuses what cannot or must not be read."""
    suffix = next((s.lower() for s in reversed(path.suffixes) if s.lower() != ".gz"), "")
    known = " ".join([*SCANNERS, ".parquet"])
    if suffix in REFUSED:
        raise DataError(f"{path}: refused: opening a {suffix} file can run code; export its rows to one of: {known}")
    if not path.is_file():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = get_close_matches(path.name, names, n=1)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near and not path.is_dir() else ""
        raise ConfigError(f"{path}: {'is a folder; name a file in it' if path.is_dir() else 'no such file'}{hint}")
    if suffix not in SCANNERS and suffix != ".parquet":
        raise ConfigError(f"{path}: format '{suffix or path.name}' is not read; known, each also with .gz: {known}")
    return suffix


def _scan_jsonl(source: ByteSource) -> Iterator[RawRow]:
    for number, raw, text, reason in text_lines(source):
        data = None
        if not reason:
            data, reason = parse_object(text)
        yield RawRow(number, data, reason, raw)


def _scan_json(source: ByteSource) -> Iterator[RawRow]:
    if source.begins_with(b"{"):  # many hubs call their JSON lines .json
        yield from _scan_jsonl(source)
    else:
        yield from (RawRow(*row) for row in ArrayReader(source).rows())


def _scan_txt(source: ByteSource) -> Iterator[RawRow]:
    """One dialogue a line, as DailyDialog is written; the last turn may lack its mark."""
    for number, raw, text, reason in text_lines(source):
        if not reason and EOU not in text:
            reason = f"no {EOU}: a line of a text file is one dialogue, each turn of which ends in {EOU}"
        yield RawRow(number, None if reason else {"dialogue": text.strip()}, reason, raw)


def _scan_csv(source: ByteSource) -> Iterator[RawRow]:
    yield from _scan_table(source, ",")


def _scan_tsv(source: ByteSource) -> Iterator[RawRow]:
    yield from _scan_table(source, "\t")


class _Feed:
    """Lines for csv.reader; remembers those of the record being read, so that a broken one can be read again."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines, self._again = lines, deque[Line]()
        self.taken: list[Line] = []

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        if line.reason:
            raise DataError(line.reason)
        return line.text

    def give_back(self, lines: list[Line]) -> None:
        self._again.extendleft(reversed(lines))


def _scan_table(source: ByteSource, delimiter: str) -> Iterator[RawRow]:
    feed = _Feed(source.lines())
    header: list[str] | None = None
    blank: list[RawRow] = []  # reported unless the file ends with them
    while (record := _record(feed, delimiter)) is not None:
        row, cells = record
        if not cells and not row.reason:
            if len(blank) < 1000:
                blank.append(row._replace(reason="blank line: expected a row"))
            continue
        yield from blank
        blank.clear()
        if row.reason:
            yield row
        elif header is None:
            header = _header(source.path, cells)
        elif len(cells) != len(header):
            yield row._replace(reason=f"wrong number of columns: expected {len(header)}, got {len(cells)}")
        else:
            yield row._replace(data=dict(zip(header, cells, strict=True)))


def _record(feed: _Feed, delimiter: str) -> tuple[RawRow, list[str]] | None:
    """The next record, its cells empty for a blank line; None at the end."""
    feed.taken.clear()
    cells: list[str] = []
    reason = ""
    try:
        # A reader of its own for each record: after an error its state is not to be trusted.
        cells = next(csv.reader(feed, delimiter=delimiter, strict=True))
    except StopIteration:
        return None
    except DataError as error:  # a line that is no text ends its record; the record is lost with it
        return RawRow(feed.taken[-1].number, None, str(error), feed.taken[-1].raw), []
    except csv.Error as error:  # an open quote swallows lines: blame the first, read the others again
        feed.give_back(feed.taken[1:])
        del feed.taken[1:]
        reason = f"not valid csv: {error}"
    raw = feed.taken[0].raw if len(feed.taken) == 1 else b"".join(line.raw for line in feed.taken)
    if cells == [""] or (len(cells) == 1 and cells[0].isspace()):
        cells = []
    return RawRow(feed.taken[0].number, None, reason, raw), cells


def _header(path: Path, cells: list[str]) -> list[str]:
    """Column names; the second `a` becomes `a.1`, as in pandas."""
    names: list[str] = []
    seen: Counter[str] = Counter()
    for cell in (cell.strip() for cell in cells):
        names.append(f"{cell}.{seen[cell]}" if seen[cell] else cell)
        seen[cell] += 1
    if not all(names):
        raise DataError(f"{path}:1: no header: the first line must name every column; got {', '.join(cells)[:200]!r}")
    return names


def _scan_parquet(path: Path) -> Iterator[RawRow]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            f"{path}: reading parquet needs pyarrow, which is not installed: pip install 'dialtune[hub]'"
        ) from error
    with path.open("rb") as file, tempfile.TemporaryFile() as unzipped:
        try:
            if path.suffix.lower() == ".gz":
                shutil.copyfileobj(gzip.GzipFile(fileobj=file), unzipped)  # parquet is read from its end
                unzipped.seek(0)
            table = pq.ParquetFile(unzipped if path.suffix.lower() == ".gz" else file)
            odd = [field.name for field in table.schema_arrow if isinstance(field.type, pa.BaseExtensionType)]
            if odd:
                raise DataError(f"{path}: extension types are refused: column {', '.join(odd)}; export plain columns")
            number = 0
            for batch in table.iter_batches(batch_size=512):
                for row in batch.to_pylist():
                    number += 1
                    yield RawRow(number, row, "", json.dumps(row, ensure_ascii=False, default=str).encode())
        except (pa.ArrowException, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path}: not a readable parquet file: {str(error).splitlines()[0][:200]}") from error


SCANNERS: dict[str, Callable[[ByteSource], Iterator[RawRow]]] = {
    ".jsonl": _scan_jsonl,
    ".ndjson": _scan_jsonl,
    ".json": _scan_json,
    ".csv": _scan_csv,
    ".tsv": _scan_tsv,
    ".txt": _scan_txt,
}
