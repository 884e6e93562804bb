"""A word list as a juror, and as the cheapest detoxifier: find the listed words in any disguise, score them, mask them.

The list is assets/lexicon.txt, written for this project. It knows words and not meaning: it sees no implied insult, and
a quoted one is the same to it as a thrown one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

LEXICON = Path(__file__).resolve().parents[1] / "assets" / "lexicon.txt"
CLEAN_LOGIT = -4.0  # p = 0.018: no listed word is weak evidence that a text is clean
MAX_LOGIT = 8.5
MASK = "[...]"

_LOOKALIKES = {"a": "a4@", "b": "b8", "e": "e3", "g": "g9", "i": "i1!|", "l": "l1|", "o": "o0", "s": "s5$", "t": "t7+"}
_LONGEST_RUN = 30  # of one letter; bounds what a hostile text can cost


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the list: forms that count as one thing, severity 1 (rude) to 3 (abuse)."""

    severity: int
    forms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A listed word as it stands in a text: text[start:stop], and the first form of its entry."""

    start: int
    stop: int
    severity: int
    entry: str


class LexiconScorer:
    """Log-odds from the summed severity S of the listed words: -4 without any, else 1.5 S - 2, at most 8.5.

    So one rude word alone stays just below even odds (-0.5), one insult is above (1.0), strong profanity far above.
    """

    name = "lexicon"

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) natural log-odds that each text is toxic."""
        totals = np.array([_total(text) for text in texts], dtype=np.float64)
        return np.where(totals > 0, np.minimum(1.5 * totals - 2.0, MAX_LOGIT), CLEAN_LOGIT)

    def settings(self) -> dict[str, str]:
        """For signatures; `sha` is of the list."""
        sha = hashlib.sha256(LEXICON.read_bytes()).hexdigest()[:8]
        return {"scorer": "dialtune-lexicon-1", "sha": sha, "label": "listed", "link": "sigmoid", "max": "none"}


@cache
def load_lexicon() -> LexiconScorer:
    """The packaged word list as a scorer."""
    return LexiconScorer()


def find_words(text: str) -> tuple[Match, ...]:
    """The listed words and phrases in a text, left to right, longest first, without overlaps.

    Upper case, drawn-out letters (`idiooot`, three or more), digits and signs that look like letters (`1d!ot`), stars
    over letters (`f**k`) and dots or hyphens between them (`i.d.i.o.t`) hide nothing. Words are whole words: Scunthorpe
    and class hold none. A match with more digits than letters is a number (`455`) and does not count.

    >>> [(found.entry, found.severity) for found in find_words("What an IDI0T, go to hell!")]
    [('idiot', 2), ('go to hell', 2)]
    """
    pattern, entries = _pattern()
    found = []
    for match in pattern.finditer(_lower(text)):
        letters = sum(char.isalpha() for char in match.group())
        if sum(char.isdigit() for char in match.group()) <= letters:
            assert match.lastindex is not None
            entry = entries[match.lastindex - 1]
            found.append(Match(match.start(), match.end(), entry.severity, entry.forms[0]))
    return tuple(found)


def mask_words(text: str, mask: str = MASK) -> str:
    """The text with every listed word replaced: what a plain word filter makes of it.

    >>> mask_words("Dean is a lying toad, says Ann.")
    'Dean is a [...], says Ann.'
    """
    out, end = [], 0
    for match in find_words(text):
        out += [text[end : match.start], mask]
        end = match.stop
    return "".join([*out, text[end:]])


@cache
def load_entries() -> tuple[Entry, ...]:
    """The packaged list."""
    return read_entries(LEXICON.read_text(encoding="utf-8"))


def read_entries(text: str) -> tuple[Entry, ...]:
    """Entries of a list's text: `SEVERITY form, form`; blank lines and lines that begin with # say nothing.

    >>> read_entries("2 half-wit, half-wits")
    (Entry(severity=2, forms=('half-wit', 'half-wits')),)
    """
    entries = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            severity, _, forms = line.partition(" ")
            assert severity in ("1", "2", "3"), line
            entries.append(Entry(int(severity), tuple(form.strip() for form in forms.split(","))))
    return tuple(entries)


@lru_cache(maxsize=65_536)
def _total(text: str) -> int:
    return sum(match.severity for match in find_words(text))


def _lower(text: str) -> str:
    """Lower case of the same length, so that places in it are places in the text."""
    lowered = text.lower()
    return lowered if len(lowered) == len(text) else "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


@cache
def _pattern() -> tuple[re.Pattern[str], tuple[Entry, ...]]:
    """One pattern over all forms, phrases and long words first, and the entry of each of its groups.

    The group is empty and stands at the end of its form: sre skips an alternative by its first character only where
    that is the first thing in it.
    """
    pairs = [(form, entry) for entry in load_entries() for form in entry.forms]
    pairs.sort(key=lambda pair: (-len(pair[0].split()), -len(pair[0]), pair[0]))
    alternatives = "|".join(f"{form_pattern(form)}()" for form, _ in pairs)
    pattern = re.compile(rf"(?<![^\W_])(?:{alternatives})(?![^\W_])")
    return pattern, tuple(entry for _, entry in pairs)


def form_pattern(form: str) -> str:
    """A regular expression, without groups, for one form in lower-case text, boundaries aside."""
    return r"[\s,'’-]{1,4}".join(_any_of(map(_word_pattern, word.split("/"))) for word in form.split())


def _any_of(patterns: Iterable[str]) -> str:
    found = list(patterns)
    return found[0] if len(found) == 1 else f"(?:{'|'.join(found)})"


def _word_pattern(word: str) -> str:
    """Letters one by one: as often as written or more, as a lookalike, or as a star each; a lone first letter too."""
    runs = [(char, len(list(same))) for char, same in groupby(word)]
    pieces = []
    for place, (char, count) in enumerate(runs):
        if not char.isalpha():
            pieces.append(r"['’]?" if char in "'’" else r"[\s-]{0,2}")
            continue
        letter = _letter(char)
        # Drawn out means three or more: a second letter makes other words (loser, looser; asses, assess).
        drawn = f"{letter * count}(?:{letter}{{{2 if count == 1 else 1},{_LONGEST_RUN}}})?"
        star = _starred(letter, count, last=place == len(runs) - 1) if place else None
        joint = r"[._-]?" if place + 1 < len(runs) and runs[place + 1][0].isalpha() else ""
        pieces.append((f"(?:{drawn}|{star})" if star else drawn) + joint)
    whole = "".join(pieces)
    # f***, but not `so*`, which is a footnote
    starred = len(word) >= 4 and word.isalpha()
    return rf"{_letter(word[0])}(?:{whole.removeprefix(_letter(word[0]))}|\*{{{len(word) - 1}}})" if starred else whole


def _starred(letter: str, count: int, *, last: bool) -> str | None:
    """A run of one or two letters with a star in it, which no plain run matches: else work would double at each letter.

    The last letter of a word is never a star.
    """
    if last:
        return rf"\*{letter}" if count == 2 else None
    return rf"\*(?:\*|{letter})|{letter}\*" if count == 2 else r"\*" * count


def _letter(char: str) -> str:
    return f"[{re.escape(_LOOKALIKES[char])}]" if char in _LOOKALIKES else char
