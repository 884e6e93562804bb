"""Two texts word by word: what stayed, what is gone and what is new, so that a reader sees the change at once."""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from typing import Literal

Mark = Literal["same", "gone", "new"]
Parts = tuple[tuple[Mark, str], ...]

ALIKE = 0.2  # share of words in common below which marks would cover nearly everything
_ISLAND = 2  # words; a shorter run in common between two changes only breaks them up
_WORD = re.compile(r"\s*\S+\s*")


def marked(before: str, after: str) -> tuple[Parts, Parts] | None:
    """Both texts cut into marked parts; None where they have too little in common for marks to help.

    The parts of a side, joined, are its text.

    >>> marked("He calls her a fool today.", "He calls her today.")
    ((('same', 'He calls her '), ('gone', 'a fool '), ('same', 'today.')), (('same', 'He calls her today.'),))
    """
    old, new = _WORD.findall(before), _WORD.findall(after)
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new], autojunk=False)
    if not old or not new or matcher.ratio() < ALIKE:
        return None
    sides: tuple[list[tuple[Mark, str]], list[tuple[Mark, str]]] = ([], [])
    codes = matcher.get_opcodes()
    for place, (kind, i1, i2, j1, j2) in enumerate(codes):
        inside = 0 < place < len(codes) - 1
        same = kind == "equal" and not (inside and i2 - i1 < _ISLAND)
        _add(sides[0], "same" if same else "gone", "".join(old[i1:i2]))
        _add(sides[1], "same" if same else "new", "".join(new[j1:j2]))
    return tuple(sides[0]), tuple(sides[1])


def _add(parts: list[tuple[Mark, str]], mark: Mark, text: str) -> None:
    """Append to the parts, into the last one if it has the same mark."""
    if not text:
        return
    if parts and parts[-1][0] == mark:
        text = parts.pop()[1] + text
    parts.append((mark, text))
