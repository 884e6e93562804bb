"""A file, a packaged name or a hub dataset to Examples: layout named, every bad row as `file:line: reason`."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from dialtune.data.chitchat import chitchat_rows, is_chitchat, load_chats
from dialtune.data.layouts import Layout, detect_layout, find_layout, no_layout, to_example
from dialtune.data.rows import RawRow, iter_rows, scan_rows
from dialtune.errors import ConfigError, DataError, MissingExtraError
from dialtune.types import Example

__all__ = ["BadRows", "DataSet", "Scanned", "iter_rows", "read_examples", "scan_examples", "split_of"]

Policy = Literal["fail", "skip", "quarantine"]

PACKAGED = Path(__file__).resolve().parents[1] / "assets" / "dialogues.jsonl"
SPLITS = ("train", "validation", "test")
# What may follow a packaged split: rows of these kinds; `blunt` is all rows, told with the offence repeated.
VIEWS = {"heated": ("heated",), "calm": ("plain", "control"), "control": ("control",), "blunt": ()}
SHOWN_PROBLEMS = 20  # lines of an error message
KEPT_PROBLEMS = 1_000  # a file worse than this is not read to its end
_PEEK = 32  # rows that vote on the layout
_SPLIT_NAME = re.compile(r"(?:^|[._-])(train|validation|valid|val|dev|test)(?=[._-]|$)", re.IGNORECASE)
_FLATTENED_ID = re.compile(r"(.+_\d+)_(\d+)")


@dataclass(frozen=True)
class DataSet:
    """The examples of one source, and what was not read.

    `counts` holds rows, examples, without_reference, regrouped (rows merged into the example before them) and one
    `dropped: <kind>` per kind of bad row. `references` is (min, max) per example. `dialogues` are the whole dialogues
    that replies were made of (data/turns.py); empty where each example is one itself. `limit` and `turns` are what was
    asked for, so that a report can ask again: rows at most, and the settings of the replies that are not the default.
    """

    name: str
    split: str
    layout: str
    examples: tuple[Example, ...]
    problems: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    references: tuple[int, int] = (0, 0)
    dialogues: tuple[Example, ...] = ()
    limit: int | None = None
    turns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over the sorted (id, normalised messages, references): same rows in any order, same fingerprint.

        Of replies it is that of their dialogues with each reply's context told by its roles, so that what is said in a
        dialogue is read once and not once for every reply.
        """
        digest = hashlib.sha256()
        lines = [_canonical(example) for example in self.dialogues or self.examples]
        lines += [_outline(example) for example in self.examples if self.dialogues]
        for line in sorted(lines):
            digest.update(line.encode("utf-8") + b"\n")
        return digest.hexdigest()


class Scanned(NamedTuple):
    """One row of a source: an example, or the reason why there is none."""

    line: int
    example: Example | None
    reason: str
    raw: bytes
    layout: str


class BadRows:
    """What is wrong with a source, row by row, and what the policy makes of it."""

    def __init__(self, source: str, policy: Policy, max_fraction: float, quarantine: Path | None = None) -> None:
        if policy not in {"fail", "skip", "quarantine"}:
            raise ConfigError(f"on_bad_rows: got '{policy}'; known: fail, skip, quarantine")
        if not 0 <= max_fraction <= 1:
            raise ConfigError(f"max_bad_fraction: got {max_fraction}; allowed: 0 to 1")
        self.problems: list[str] = []
        self.kinds: Counter[str] = Counter()
        self._source, self._policy, self._max_fraction = source, policy, max_fraction
        self._path = quarantine or Path(f"{Path(source.replace(':', '_')).name}.quarantine.jsonl")
        self._file: IO[str] | None = None

    @property
    def count(self) -> int:
        """How many rows were bad."""
        return self.kinds.total()

    def add(self, row: Scanned) -> None:
        """Counts a bad row, and writes it down if rows are quarantined."""
        self.kinds[row.reason.partition(":")[0]] += 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(f"{self._source}:{row.line}: {row.reason}")
        if self._policy == "quarantine":
            self._write(row)

    def hopeless(self) -> bool:
        """Whether reading on would only find more of the same."""
        return self._policy == "fail" and self.count >= KEPT_PROBLEMS

    def judge(self, total: int) -> None:
        """Raises DataError if the policy does not accept `count` bad rows of `total`."""
        if self._file:
            self._file.close()
        fraction = self.count / max(total, 1)
        if not self.count or (self._policy != "fail" and fraction <= self._max_fraction):
            return
        shown = self.problems[:SHOWN_PROBLEMS]
        if self.count > len(shown):
            more = " or more; reading stopped there" if self.hopeless() else ""
            shown.append(f"{self._source}: {self.count:,} bad rows{more}; the first {len(shown)} are shown")
        if self._policy != "fail":
            limit = f"more than max_bad_fraction {self._max_fraction:g}"
            shown.append(f"{self._source}: {self.count:,} of {total:,} rows are bad ({fraction:.1%}), {limit}")
        raise DataError(shown)

    def _write(self, row: Scanned) -> None:
        if self._file is None:
            try:
                self._file = self._path.open("w", encoding="utf-8")
            except OSError as error:
                raise DataError(f"{self._path}: cannot write the quarantine file: {error.strerror}") from error
        record: dict[str, Any] = {"file": self._source, "line": row.line, "reason": row.reason}
        try:
            record["raw"] = row.raw.decode("utf-8")
        except UnicodeDecodeError:
            record["raw_base64"] = base64.b64encode(row.raw).decode("ascii")
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")


def read_examples(  # noqa: PLR0913 - keyword-only, each a flag of the command line
    source: str | Path,
    *,
    layout: str = "auto",
    split: str | None = None,
    limit: int | None = None,
    on_bad_rows: Policy = "fail",
    max_bad_fraction: float = 0.01,
    columns: Mapping[str, str] | None = None,
    quarantine: Path | None = None,
) -> DataSet:
    """The examples of a source, in its order.

    Args:
        source: a path, `packaged:train|validation|test` with or without one of VIEWS behind (`packaged:test:heated`),
            `chitchat` with or without `:train|validation|test` (an optional wheel), or `hub:org/name[:split]` (extra
            `[hub]`).
        layout: a name from LAYOUTS, or `auto` to find it by the columns.
        split: rows whose `split` column says otherwise are left out; without one, what the source is called.
        limit: at most this many examples.
        on_bad_rows: `fail` reports all of them at once; `skip` and `quarantine` go on.
        max_bad_fraction: share of bad rows, 0 to 1, above which `skip` and `quarantine` fail too.
        columns: our column name to the file's, e.g. {"dialogue": "text"}.
        quarantine: where bad rows go; by default `<file>.quarantine.jsonl` in the working folder.

    Raises:
        DataError: rows were rejected, or none is left.
    """
    bad = BadRows(str(source), on_bad_rows, max_bad_fraction, quarantine)
    examples: list[Example] = []
    lines: dict[str, int] = {}
    rows = regrouped = 0
    found_layout = layout
    for row in scan_examples(source, layout=layout, split=split, columns=columns):
        rows += 1
        found_layout = row.layout or found_layout
        if row.example is None:
            bad.add(row)
            if bad.hopeless():
                break
        elif examples and _is_next_reference(examples[-1], row.example):
            examples[-1] = _with_reference(examples[-1], row.example)
            regrouped += 1
        elif row.example.id in lines:
            reason = f"duplicate id: '{row.example.id[:60]}' is also on line {lines[row.example.id]}"
            bad.add(row._replace(example=None, reason=reason))
        else:
            if limit is not None and len(examples) >= limit:
                rows -= 1
                break
            lines[row.example.id] = row.line
            examples.append(row.example)
    bad.judge(rows)
    if not examples:
        raise DataError(f"{source}: no rows{f' of split {split!r}' if split else ''}")
    numbers = [len(example.references) for example in examples]
    counts = {"rows": rows, "examples": len(examples), "without_reference": numbers.count(0), "regrouped": regrouped}
    counts |= {f"dropped: {kind}": n for kind, n in sorted(bad.kinds.items())}
    counts |= load_chats().counts if is_chitchat(str(source)) else {}
    return DataSet(
        name=_name_of(source),
        split=split or split_of(source),
        layout=found_layout,
        examples=tuple(examples),
        problems=tuple(bad.problems),
        counts=counts,
        references=(min(numbers), max(numbers)),
        limit=limit,
    )


def scan_examples(
    source: str | Path,
    *,
    layout: str = "auto",
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> Iterator[Scanned]:
    """Every row of a source as an example or a reason, in constant memory."""
    chosen = None if layout == "auto" else find_layout(layout)
    raw_rows, name, split = _open(source, split)
    if columns:
        raw_rows = (_renamed(row, columns) for row in raw_rows)
    if split:
        raw_rows = (row for row in raw_rows if row.data is None or row.data.get("split", split) == split)
    head = list(islice(raw_rows, _PEEK)) if chosen is None else []
    voted = chosen or _vote(head)
    first = next((row for row in head if row.data is not None), None)
    if voted is None and first is not None and first.data is not None:
        raise DataError(f"{source}:{first.line}: {no_layout(first.data)}")
    for row in chain(head, raw_rows):
        yield _to_scanned(row, voted, chosen is not None, name)


def split_of(source: str | Path) -> str:
    """`train`, `validation` or `test` if the source's name says so, else an empty string."""
    name = str(source)
    if name.startswith(("packaged:", "chitchat:")):
        return name.split(":")[1]
    name = name.partition(":")[2].rpartition(":")[2] if name.startswith("hub:") else Path(name).name
    found = _SPLIT_NAME.findall(name)
    return {"dev": "validation", "val": "validation", "valid": "validation"}.get(
        found[-1].lower() if found else "", found[-1].lower() if found else ""
    )


def _name_of(source: str | Path) -> str:
    name = str(source)
    return name if name.startswith(("packaged:", "chitchat:", "hub:")) else Path(name).name


def _open(source: str | Path, split: str | None) -> tuple[Iterator[RawRow], str, str | None]:
    """(rows, name for ids, split whose rows count)."""
    text = str(source)
    if text.startswith("packaged:"):
        split, _, view = text.removeprefix("packaged:").partition(":")
        if split not in SPLITS or (view and view not in VIEWS):
            known = f"{', '.join(f'packaged:{name}' for name in SPLITS)}, and behind each :{', :'.join(VIEWS)}"
            raise ConfigError(f"data: got '{text}'; known: {known}")
        path = PACKAGED
        if not path.is_file():
            raise MissingExtraError(
                f"{text}: the packaged dialogues are missing from this installation; reinstall dialtune"
            )
        return _viewed(scan_rows(path), view), "packaged", split
    if is_chitchat(text):
        return chitchat_rows(text), "chitchat", split
    if text.startswith("hub:"):
        repository, _, named = text.removeprefix("hub:").partition(":")
        return _scan_hub(repository, named or split or "train"), repository, None
    return scan_rows(Path(source)), Path(source).name, split


def _viewed(rows: Iterator[RawRow], view: str) -> Iterator[RawRow]:
    """The packaged rows of one kind; `blunt`: all of them, their summary the one that repeats the offence."""
    for row in rows:
        if row.data is not None and view == "blunt":
            yield row._replace(data=row.data | {"summary": row.data.get("summary_blunt") or row.data["summary"]})
        elif row.data is None or row.data["kind"] in VIEWS.get(view, (row.data["kind"],)):
            yield row


def _scan_hub(repository: str, split: str) -> Iterator[RawRow]:
    """Rows of a hub dataset, streamed; dataset scripts never run, since `datasets` 4 has no way to."""
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"hub:{repository}: needs the datasets package, which is not installed: pip install 'dialtune[hub]'"
        ) from error
    try:
        rows = datasets.load_dataset(repository, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # offline, no such dataset, no such split
        raise ConfigError(f"hub:{repository}:{split}: cannot be opened: {str(error).splitlines()[0][:200]}") from error
    for number, row in enumerate(rows, start=1):
        yield RawRow(number, dict(row), "", json.dumps(row, ensure_ascii=False, default=str).encode())


def _renamed(row: RawRow, columns: Mapping[str, str]) -> RawRow:
    if row.data is None:
        return row
    theirs = {file: ours for ours, file in columns.items()}
    lost = [file for file in theirs if file not in row.data]
    if lost:
        reason = f"missing column: '{lost[0]}'; the row has: {', '.join(row.data)[:200]}"
        return row._replace(data=None, reason=reason)
    return row._replace(
        data={
            theirs.get(name, name): value for name, value in row.data.items() if name not in columns or name in theirs
        }
    )


def _vote(rows: list[RawRow]) -> Layout | None:
    votes = Counter(found for row in rows if row.data is not None and (found := detect_layout(tuple(row.data))))
    return votes.most_common(1)[0][0] if votes else None


def _to_scanned(row: RawRow, layout: Layout | None, chosen: bool, name: str) -> Scanned:
    reason = row.reason
    if row.data is not None:
        own = layout if chosen else detect_layout(tuple(row.data))
        if own is None or layout is None:
            reason = no_layout(row.data)
        elif own is not layout:
            reason = f"other layout: {own.name} ({own.columns}), but the file is {layout.name} ({layout.columns})"
        else:
            try:
                example = to_example(row.data, layout, f"{name}:{row.line}")
                return Scanned(row.line, example, "", row.raw, layout.name)
            except DataError as error:
                reason = str(error)
    return Scanned(row.line, None, reason, row.raw, layout.name if layout else "")


def _is_next_reference(before: Example, example: Example) -> bool:
    """Whether a row is the next reference of the one before: the hub writes DialogSum's test_0 as test_0_1, _2, _3."""
    two = _FLATTENED_ID.fullmatch(example.id)
    if not two or not example.references or before.messages != example.messages:
        return False
    return before.id in {two[1], f"{two[1]}_1"} and int(two[2]) == len(before.references) + 1


def _with_reference(before: Example, example: Example) -> Example:
    references = before.references + example.references
    names = tuple(f"summary{number}" for number in range(1, len(references) + 1))
    meta = {**before.meta, "reference_names": names}
    return replace(before, id=example.id.rpartition("_")[0], references=references, meta=meta)


def _canonical(example: Example) -> str:
    messages = [[m.role, m.speaker, _squeezed(m.content)] for m in example.messages]
    return json.dumps([example.id, messages, [_squeezed(text) for text in example.references]], ensure_ascii=False)


def _outline(example: Example) -> str:
    """A reply: whose turns are before it, how the first of them begins, and what is replied."""
    roles = "".join(message.role[0] for message in example.messages)
    first = _squeezed(example.messages[0].content)
    return json.dumps([example.id, roles, first, [_squeezed(text) for text in example.references]], ensure_ascii=False)


def _squeezed(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
