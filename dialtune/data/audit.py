"""What is in the data and what is wrong with it: check, stats, and leaks within and across splits and files."""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from dialtune.data.dialogue import near_miss_tags
from dialtune.data.duplicates import THRESHOLD, near_pairs, normal_form, plain_text
from dialtune.data.reading import BadRows, Policy, scan_examples
from dialtune.seeds import seed_for
from dialtune.types import Example

PERCENTILES = (5, 50, 95)
MAX_SHOWN = 5  # examples of one kind of overlap

_TEXT_RULES: dict[str, re.Pattern[str]] = {
    "NUL": re.compile("\x00"),
    "control characters": re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "bidi controls": re.compile(r"[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"),
    "zero-width characters": re.compile(r"[\u200b-\u200d\u2060\ufeff\u00ad]"),
    "HTML tags or entities": re.compile(r"</?[a-zA-Z]\w{0,9}\b[^<>]{0,200}>|&(?:#\d{1,7}|[a-z]{2,8});"),
    "replacement characters": re.compile("\ufffd"),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One source read to its end: rows, bad rows by kind, and how many rows break each text rule."""

    source: str
    layout: str
    rows: int
    bad: Mapping[str, int]
    problems: tuple[str, ...]
    without_reference: int
    references: tuple[int, int]  # min and max per example
    duplicates: int  # rows whose dialogue an earlier row holds already
    text: Mapping[str, int]


def check(
    source: str | Path,
    *,
    layout: str = "auto",
    columns: Mapping[str, str] | None = None,
    on_bad_rows: Policy = "fail",
    max_bad_fraction: float = 0.01,
) -> tuple[Check, BadRows]:
    """The findings on one source, in constant memory (8 bytes a row), and its bad rows, not yet judged."""
    bad = BadRows(str(source), on_bad_rows, max_bad_fraction)
    rows = bare = 0
    low, high = 1 << 30, 0
    text: Counter[str] = Counter()
    keys = array("q")
    found_layout = layout
    for row in scan_examples(source, layout=layout, columns=columns):
        rows += 1
        if row.example is None:
            bad.add(row)
            if bad.hopeless():
                break
            continue
        found_layout = row.layout
        count = len(row.example.references)
        bare, low, high = bare + (count == 0), min(low, count), max(high, count)
        text.update(broken_text_rules(row.example))
        keys.append(hash(normal_form(plain_text(row.example))))
    unique = len(np.unique(np.frombuffer(keys, dtype=np.int64))) if keys else 0
    result = Check(
        source=str(source),
        layout=found_layout,
        rows=rows,
        bad=dict(sorted(bad.kinds.items())),
        problems=tuple(bad.problems),
        without_reference=bare,
        references=(min(low, high), high),
        duplicates=len(keys) - unique,
        text={rule: text[rule] for rule in (*_TEXT_RULES, "not NFC", "near-miss speaker tags") if text[rule]},
    )
    return result, bad


def broken_text_rules(example: Example) -> Iterator[str]:
    """The text rules that an example breaks; such a row is read all the same, `clean` repairs it."""
    text = " ".join([*[message.content for message in example.messages], *example.references])
    speakers = {message.speaker for message in example.messages}
    if any(map(_odd_speaker, speakers)) or (("erson" in text or "ERSON" in text) and near_miss_tags(text)):
        yield "near-miss speaker tags"
    if text.isascii() and text.isprintable() and "<" not in text and "&" not in text:
        return  # nothing below can match
    yield from (rule for rule, pattern in _TEXT_RULES.items() if pattern.search(text))
    if not unicodedata.is_normalized("NFC", text):
        yield "not NFC"


@lru_cache(maxsize=4096)
def _odd_speaker(speaker: str | None) -> bool:
    return bool(speaker and near_miss_tags(speaker))


@dataclass(frozen=True, slots=True)
class Stats:
    """Sizes of one set; `distributions` maps a quantity to mean, min, percentiles 5, 50, 95 and max."""

    examples: int
    unique_dialogues: int
    references: tuple[int, int]
    distributions: Mapping[str, Mapping[str, float]]
    speakers: Mapping[str, int]  # tag: turns, the ten most frequent


def stats(examples: Iterable[Example]) -> Stats:
    """Counts of turns, speakers and words, where a word is what stands between blanks."""
    columns: dict[str, list[int]] = {
        name: [] for name in ("turns", "speakers", "words per dialogue", "words per turn", "words per reference")
    }
    tags: Counter[str] = Counter()
    forms: set[str] = set()
    references: set[int] = set()
    count = 0
    for example in examples:
        count += 1
        words = [len(message.content.split()) for message in example.messages]
        columns["turns"].append(len(words))
        columns["speakers"].append(len({message.speaker or message.role for message in example.messages}))
        columns["words per dialogue"].append(sum(words))
        columns["words per turn"].extend(words)
        columns["words per reference"].extend(len(text.split()) for text in example.references)
        tags.update(message.speaker or message.role for message in example.messages)
        forms.add(normal_form(plain_text(example)))
        references.add(len(example.references))
    distributions = {name: _distribution(values) for name, values in columns.items() if values}
    limits = (min(references, default=0), max(references, default=0))
    return Stats(count, len(forms), limits, distributions, dict(tags.most_common(10)))


def _distribution(values: Sequence[int]) -> dict[str, float]:
    data = np.asarray(values, dtype=np.float64)
    shares = {f"p{p}": float(np.percentile(data, p)) for p in PERCENTILES}
    return {"mean": float(data.mean()), "min": float(data.min()), **shares, "max": float(data.max())}


@dataclass(frozen=True, slots=True)
class Within:
    """Repeats inside one set: `rows - unique` rows are exact copies of an earlier one."""

    name: str
    rows: int
    unique: int
    near: int  # unique dialogues that are a near duplicate of another one in the set
    shown: tuple[tuple[str, str, float], ...]  # (id, id, Jaccard) of some near duplicates


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two sets share: rows of each that occur in the other, exactly, or else nearly."""

    left: str
    right: str
    left_exact: int
    right_exact: int
    left_near: int  # rows without an exact copy on the other side
    right_near: int
    shown: tuple[tuple[str, str, float], ...]

    @property
    def total(self) -> int:
        """Rows of either side that leak."""
        return self.left_exact + self.right_exact + self.left_near + self.right_near


@dataclass(frozen=True, slots=True)
class Leaks:
    """The audit of several sets: each with itself, each pair of them, and which normal forms are where."""

    within: tuple[Within, ...]
    across: tuple[Overlap, ...]
    threshold: float
    leaking: Mapping[tuple[str, str], frozenset[str]] = field(repr=False)
    """(left, right): ids of the rows of `left` that occur in `right`, exactly or nearly."""

    @property
    def found(self) -> bool:
        """Whether any two sets share a dialogue."""
        return any(overlap.total for overlap in self.across)


@dataclass(frozen=True, slots=True)
class _Set:
    name: str
    ids: list[str]
    forms: list[str]
    near: dict[str, set[str]]  # normal form here: near ones anywhere, shared by all sets


def leaks(sets: Mapping[str, Sequence[Example]], *, near: bool = True, threshold: float = THRESHOLD) -> Leaks:
    """Exact and near duplicates within each set and between each two."""
    texts: dict[str, str] = {}
    prepared: list[_Set] = []
    similar: dict[str, set[str]] = {}
    for name, examples in sets.items():
        plain = [plain_text(example) for example in examples]
        forms = [normal_form(text) for text in plain]
        texts.update(zip(forms, plain, strict=True))
        prepared.append(_Set(name, [example.id for example in examples], forms, similar))
    keys, scores = list(texts), dict[tuple[str, str], float]()
    for i, j, score in near_pairs(list(texts.values()), threshold) if near else ():
        similar.setdefault(keys[i], set()).add(keys[j])
        similar.setdefault(keys[j], set()).add(keys[i])
        scores[keys[i], keys[j]] = scores[keys[j], keys[i]] = score
    pairs = [(left, right) for at, left in enumerate(prepared) for right in prepared[at + 1 :]]
    found = [_overlap(left, right, scores) for left, right in pairs]
    leaking = {(a.name, b.name): _leaking_ids(a, b) for left, right in pairs for a, b in ((left, right), (right, left))}
    return Leaks(
        tuple(_within(one, scores) for one in prepared),
        tuple(found),
        threshold,
        {pair: frozenset(ids) for pair, ids in leaking.items()},
    )


def _leaking_ids(one: _Set, other: _Set) -> list[str]:
    theirs = set(other.forms) - {""}
    return [
        row_id
        for row_id, form in zip(one.ids, one.forms, strict=True)
        if form in theirs or not theirs.isdisjoint(one.near.get(form, ()))
    ]


def _within(one: _Set, scores: Mapping[tuple[str, str], float]) -> Within:
    first = dict(zip(reversed(one.forms), reversed(one.ids), strict=True))  # the first row of each form
    pairs = [(a, b) for a in first for b in one.near.get(a, ()) if b in first]
    shown = [(first[a], first[b], scores[a, b]) for a, b in pairs if first[a] < first[b]]
    blank = max(one.forms.count("") - 1, 0)  # blank ones are all different
    return Within(one.name, len(one.ids), len(first) + blank, len({a for a, _ in pairs}), _sample(shown))


def _overlap(left: _Set, right: _Set, scores: Mapping[tuple[str, str], float]) -> Overlap:
    sides = []
    for one, other in ((left, right), (right, left)):
        theirs = set(other.forms) - {""}
        exact = sum(form in theirs for form in one.forms)
        near = sum(form not in theirs and not theirs.isdisjoint(one.near.get(form, ())) for form in one.forms)
        sides.append((exact, near))
    rows, row_of = list(zip(left.ids, left.forms, strict=True)), dict(zip(right.forms, right.ids, strict=True))
    shown = [(row, row_of[form], 1.0) for row, form in rows if form and form in row_of]
    for row, form in rows:
        alike = [other for other in left.near.get(form, ()) if other in row_of]
        shown += [(row, row_of[other], scores[form, other]) for other in alike]
    return Overlap(left.name, right.name, sides[0][0], sides[1][0], sides[0][1], sides[1][1], _sample(shown))


def _sample(pairs: list[tuple[str, str, float]]) -> tuple[tuple[str, str, float], ...]:
    """A few pairs, always the same ones."""
    return tuple(sorted(pairs, key=lambda pair: seed_for(0, "audit", index=f"{pair[0]}|{pair[1]}"))[:MAX_SHOWN])
