"""Rows to named slices: kind of row, length of the dialogue, number of speakers. No claim rests on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from dialtune.results import EvalRow

MIN_SLICE = 10  # rows: of fewer nothing is said
_PARTS = 3  # of the dialogues by length
_MANY = 3  # speakers and more are one slice

_Key = TypeVar("_Key", str, int)


def slices_of(rows: Sequence[EvalRow]) -> dict[str, frozenset[str]]:
    """Row ids by slice: kinds by name, then thirds by length, then numbers of speakers.

    A slice of fewer than 10 rows, or of all of them, is left out; so is a row that does not know what is asked.

    >>> rows = [EvalRow(id=str(k), completion="", finish="stop", scores={}, words=k) for k in range(60)]
    >>> {name: len(ids) for name, ids in slices_of(rows).items()}
    {'words 0 to 19': 20, 'words 20 to 39': 20, 'words 40 to 59': 20}
    """
    kinds = _group(rows, lambda row: row.kind)
    found = {**dict(sorted(kinds.items())), **_by_length(rows)}
    speakers = _group(rows, lambda row: None if row.speakers is None else min(row.speakers, _MANY))
    words = {1: "1 speaker", _MANY: f"{_MANY} speakers or more"}
    found |= {words.get(n, f"{n} speakers"): ids for n, ids in sorted(speakers.items())}
    return {name: ids for name, ids in found.items() if MIN_SLICE <= len(ids) < len(rows)}


def _by_length(rows: Sequence[EvalRow]) -> dict[str, frozenset[str]]:
    """Thirds by the dialogue's words, shortest first; dialogues of equal length stay together."""
    lengths = sorted(row.words for row in rows if row.words is not None)
    if not lengths:
        return {}
    tops = sorted({lengths[-(-len(lengths) * part // _PARTS) - 1] for part in range(1, _PARTS + 1)})
    parts = _group(rows, lambda row: None if row.words is None else next(top for top in tops if row.words <= top))
    bottoms = [lengths[0], *(min(n for n in lengths if n > top) for top in tops[:-1])]
    return {f"words {low} to {top}": parts[top] for low, top in zip(bottoms, tops, strict=True)}


def _group(rows: Sequence[EvalRow], key: Callable[[EvalRow], _Key | None]) -> Mapping[_Key, frozenset[str]]:
    found: dict[_Key, set[str]] = {}
    for row in rows:
        if (value := key(row)) is not None:
            found.setdefault(value, set()).add(row.id)
    return {value: frozenset(ids) for value, ids in found.items()}
