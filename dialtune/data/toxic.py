"""Toxic sentences with their civil rewrites: read from a file, judged as turns of a talk, kept apart by split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dialtune.data.decoding import kind_of
from dialtune.data.duplicates import normal_form
from dialtune.data.reading import SPLITS, BadRows, Policy, Scanned
from dialtune.data.rows import RawRow, scan_rows
from dialtune.errors import DataError

WORDS = (4, 25)  # of a toxic sentence: shorter ones say nothing, longer ones are no turn
REWRITE_WORDS = (3, 30)
MAX_TOKEN = 20  # letters of one word

# What a file with this name is known to be; anything else is the user's to name.
KNOWN_SOURCES = {"paradetox": ("ParaDetox (Logacheva et al., ACL 2022)", "CC0 1.0")}

_REWRITE = re.compile(r"neutral(\d*)")
_WORD = re.compile(r"[^\W\d_][\w'’]*|\d+")
_ODD = re.compile(r"[^\w\s.,!?'\"’():;&%$£€-]|_|(.)\1{3}")
# Ends that nobody means: a word that wants another one, or the letter that a smiley left behind.
_HANGING = re.compile(
    r"(?:\b(?:a|an|the|and|or|but|of|my|your|their|our|because|if|into|than|very|so that)|\s[b-hj-z])[\s.!?]*$"
)
_ABOUT_YOU = re.compile(
    r"\b(?:you|your|yours|yourself|youre|youve|youll|ya|ur)\b"
    r"|^(?:shut|go|get|stop|kiss|suck|eat|leave|dont|don 't|fuck (?:off|you)|screw you)\b",
    re.IGNORECASE,
)
_SPOKEN = re.compile(
    r"\b(?:i|im|ive|me|my|we|our|us)\b|^(?:damn|oh|hell|well|what|who|why|how|this|that|thats|its|it)\b", re.IGNORECASE
)
# Words of web pages and of the news: in a talk about a hotel room they come from nowhere.
_WRITTEN = re.compile(
    r"\b(?:articles?|pages?|edit(?:s|ed|ing|ors?)?|users?|block(?:s|ed|ing)?|wiki\w*|post(?:s|ed|ing|ers?)?|"
    r"comment(?:s|ed|ing|ers?)?|threads?|t?weet\w*|sub(?:reddits?)?|reddit\w*|mods?|vandal\w*|revert\w*|admins?|"
    r"delet\w+|(?:up|down)votes?|op|lol|lmao|rt|xd+|smh|imma|da|dat|u|ur|dis|wit|facebook|twitter|blogs?|troll\w*|"
    r"http\w*|forums?|nigg\w*|"
    r"trump\w*|obama\w*|clintons?|hillary|killary|bush|comey|sanders|bernie|palin|trudeau|putin|liberal\w*|libs?|"
    r"republicans?|democrat\w*|dems?|gop|presidents?|elections?|vot(?:es?|ed|ing|ers?)|conservatives?|leftists?|"
    r"congress|senat\w+|politic\w+|government|media|cnn|fascis\w+|communis\w+|socialis\w+|nazis?|isis|muslims?|"
    r"islam\w*|jew\w*|christian\w*|catholic\w*|priests?|blacks?|whites?|gays?|immigra\w+|refugees?|russia\w*|"
    r"americans?|america|canad\w*|country)\b",
    re.IGNORECASE,
)

_CLITIC = re.compile(r"\s+['’]\s*(s|t|re|ll|ve|d|m)\b", re.IGNORECASE)
_JOINED = {
    "im": "i'm", "ive": "i've", "youre": "you're", "youve": "you've", "youll": "you'll", "theyre": "they're",
    "thats": "that's", "whats": "what's", "theres": "there's", "hes": "he's", "shes": "she's", "whos": "who's",
    "dont": "don't", "cant": "can't", "wont": "won't", "isnt": "isn't", "arent": "aren't", "wasnt": "wasn't",
    "werent": "weren't", "doesnt": "doesn't", "didnt": "didn't", "hasnt": "hasn't", "havent": "haven't",
    "hadnt": "hadn't", "couldnt": "couldn't", "wouldnt": "wouldn't", "shouldnt": "shouldn't", "aint": "ain't",
}  # fmt: skip
_JOINED_WORD = re.compile(rf"\b(?:{'|'.join(_JOINED)})\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ToxicPair:
    """A toxic sentence and a human rewrite that keeps what it says without the offence."""

    toxic: str
    neutral: str
    source: str = ""
    licence: str = ""

    @property
    def id(self) -> str:
        """12 hex digits, the same wherever the sentence comes from."""
        return _digest(self.toxic)[:12]


@dataclass(frozen=True)
class PairSet:
    """The pairs of one file, each toxic sentence once; `counts` holds rows, pairs, repeated and dropped rows."""

    name: str
    pairs: tuple[ToxicPair, ...]
    counts: Mapping[str, int] = field(default_factory=dict)


def paradetox_split(sentence: str) -> str:
    """`train`, `validation` or `test` of a toxic sentence, by its words alone: 8, 1 and 1 of 10 buckets.

    bucket = sha256(lower case, blanks collapsed, stripped) mod 10; 0-7 train, 8 validation, 9 test. What trains a
    scorer and what builds stress rows agree by this, whatever file and order the sentence comes in.

    >>> paradetox_split("You fool .") == paradetox_split("  you  FOOL . ")
    True
    """
    bucket = int(_digest(sentence), 16) % 10
    return SPLITS[max(0, bucket - 7)]


def _digest(sentence: str) -> str:
    return hashlib.sha256(" ".join(sentence.lower().split()).encode("utf-8")).hexdigest()


def read_pairs(
    source: str | Path,
    *,
    licence: str | None = None,
    on_bad_rows: Policy = "fail",
    max_bad_fraction: float = 0.01,
) -> PairSet:
    """The pairs of a file with the columns `toxic` and `neutral` (or `neutral1`, `neutral2`, ...), in its order.

    Of several rewrites the first that can stand in a summary is taken. A sentence that an earlier row has is left out.

    Args:
        source: a file in any format that rows are read from, e.g. `paradetox.tsv.gz`.
        licence: of the sentences, for the record; known for ParaDetox, else `not stated`.
        on_bad_rows: `fail` reports all of them at once; `skip` and `quarantine` go on.
        max_bad_fraction: share of bad rows, 0 to 1, above which `skip` and `quarantine` fail too.

    Raises:
        DataError: a column is missing, rows were rejected, or none is left.
    """
    name = Path(source).name
    title, known = next((said for key, said in KNOWN_SOURCES.items() if name.startswith(key)), (name, "not stated"))
    bad = BadRows(str(source), on_bad_rows, max_bad_fraction)
    found: dict[str, ToxicPair] = {}
    rows = good = 0
    for row in scan_rows(Path(source)):
        rows += 1
        if rows == 1 and row.data is not None and (reason := _missing_column(row.data)):
            raise DataError(f"{source}:{row.line}: {reason}")
        try:
            pair = _pair(row, title, licence or known)
        except DataError as error:
            bad.add(Scanned(row.line, None, str(error), row.raw, "toxic"))
            if bad.hopeless():
                break
            continue
        good += 1
        found.setdefault(_digest(pair.toxic), pair)
    bad.judge(rows)
    if not found:
        raise DataError(f"{source}: no rows; expected the columns toxic, neutral")
    counts = {"rows": rows, "pairs": len(found), "repeated": good - len(found)}
    counts |= {f"dropped: {kind}": count for kind, count in sorted(bad.kinds.items())}
    return PairSet(name, tuple(found.values()), counts)


def _missing_column(data: Mapping[str, Any]) -> str:
    lacks_rewrite = not any(_REWRITE.fullmatch(name) for name in data)
    lost = "toxic" if "toxic" not in data else "neutral" if lacks_rewrite else ""
    return f"missing column: '{lost}'; the row has: {', '.join(data)[:200]}" if lost else ""


def _pair(row: RawRow, source: str, licence: str) -> ToxicPair:
    """The pair of one row; DataError says what is wrong, without a place."""
    if row.data is None:
        raise DataError(row.reason)
    if reason := _missing_column(row.data):
        raise DataError(reason)
    toxic = _text(row.data, "toxic")
    if not toxic:
        raise DataError("empty text: 'toxic' is blank")
    names = [name for name in row.data if _REWRITE.fullmatch(name)]
    rewrites = [text for name in names if (text := _text(row.data, name))]
    if not rewrites:
        raise DataError(f"empty text: '{names[0]}' is blank")
    pairs = [ToxicPair(toxic, text, source, licence) for text in rewrites]
    return next((pair for pair in pairs if not why_unusable(pair)), pairs[0])


def _text(data: Mapping[str, Any], column: str) -> str:
    value = data[column]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"wrong type: '{column}' should be text, got {kind_of(value)}")
    return " ".join(value.split())


def why_unusable(pair: ToxicPair) -> str:
    """Why a pair cannot become a turn and its mention, in two or three words; empty if it can."""
    if normal_form(pair.toxic.lower()) == normal_form(pair.neutral.lower()):
        return "rewrite changes nothing"
    for text, (low, high) in ((pair.toxic, WORDS), (pair.neutral, REWRITE_WORDS)):
        words = words_of(text)
        if not low <= len(words) <= high:
            return "too short" if len(words) < low else "too long"
        if _ODD.search(text) or max(map(len, words)) > MAX_TOKEN or sum(map(str.isalpha, text)) < 0.6 * len(text):
            return "not plain words"
        if text.count('"') % 2 or text.count("(") != text.count(")") or _HANGING.search(text.lower()):
            return "cut off"
    return ""


def addresses(text: str) -> bool:
    """Whether a sentence speaks to somebody: it says `you`, or opens with an order.

    >>> addresses("shut your mouth"), addresses("he is late again")
    (True, False)
    """
    return _ABOUT_YOU.search(text) is not None


def spoken_rank(text: str) -> int:
    """How far a sentence is from a talk between two: 0 speaks to the other, 1 of those present, 2 of others.

    4 is of the web or the news. English word lists; in another language every sentence has rank 2.
    """
    if _WRITTEN.search(text):
        return 4
    if addresses(text):
        return 0
    return 1 if _SPOKEN.search(text) else 2


def words_of(text: str) -> list[str]:
    """Lower-case words of a sentence or dialogue.

    >>> words_of("I'm late , 2 hours .")
    ["i'm", 'late', '2', 'hours']
    """
    return _WORD.findall(text.lower().replace("’", "'"))


def tidy(text: str) -> str:
    """The sentence as somebody would type it: blanks, apostrophes, capitals and the stop; its words stay.

    >>> tidy("i 'm late , dont say ( a ) lie ! ! !")
    "I'm late, don't say (a) lie!"
    """
    text = _CLITIC.sub(r"'\1", " ".join(text.replace("’", "'").replace("&", " and ").split()))
    text = re.sub(r'"\s*([^"]*?)\s*"', r"'\1'", text).replace('"', "'")
    text = _CLITIC.sub(r"'\1", text)  # a quote that was left alone may stand in front of one now
    text = re.sub(r"([.!?])(?:\s*[.!?])+", r"\1", text)
    text = re.sub(r"\s+(?=[,.!?;:)])", "", text)
    text = re.sub(r"(?<=\()\s+", "", text).strip(" ,.;:!?-") + _stop(text)
    text = _JOINED_WORD.sub(lambda found: found[0][0] + _JOINED[found[0].lower()][1:], text)
    text = re.sub(r"\bi\b", "I", re.sub(r"\bi (m|ve|ll)\b", r"i'\1", text))
    return re.sub(r"(?:^|(?<=[.!?]\s))\W?[a-z]", lambda found: found[0].upper(), text)


def _stop(text: str) -> str:
    last = text.rstrip()[-1:]
    return last if last in {"!", "?"} else "."
