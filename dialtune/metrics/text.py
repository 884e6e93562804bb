"""Scores that read only words and tags: length, copying, novelty, speaker tags, who did what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import ClassVar

import numpy as np

from dialtune.metrics.base import Array, Direction, Metric, chosen_references, prepare, reference_settings, signature
from dialtune.metrics.rouge import TYPES, f_scores
from dialtune.types import Example

COPY_RUN = 4  # words in a row that count as copied
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_HASH_TAG = re.compile(r"#([A-Za-z]+)(\d*)#")


def words(text: str) -> list[str]:
    """Lower-case words: letters and digits, an apostrophe inside stays.

    >>> words("#Person1# doesn't pay £20.")
    ['person1', "doesn't", 'pay', '20']
    """
    return _WORD.findall(prepare(text).lower())


def ngrams(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n tokens."""
    return zip(*(tokens[start:] for start in range(n)), strict=False)


def speakers(example: Example) -> tuple[str, ...]:
    """The dialogue's speaker tags as written, in order of appearance, without untagged turns."""
    return tuple(dict.fromkeys(message.speaker for message in example.messages if message.speaker))


def _column(values: Sequence[float]) -> Array:
    return np.asarray(values, dtype=np.float64).reshape(-1, 1)


@dataclass(frozen=True)
class LengthRatio(Metric):
    """Words of the completion over the mean words of its references; 0 for an empty completion."""

    reference: str = "first"
    name: ClassVar[str] = "length_ratio"
    direction: ClassVar[Direction] = None

    def with_reference(self, reference: str) -> LengthRatio:
        return replace(self, reference="mean" if reference in ("max", "best_rouge1") else reference)

    def signature(self, references: tuple[int, int]) -> str:
        return signature(self.name, **reference_settings(self.reference, references), unit="word", empty="zero")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        out = []
        for text, example in zip(completions, examples, strict=True):
            lengths = [len(words(target)) for target in chosen_references(example, self.reference)]
            out.append(len(words(text)) / (sum(lengths) / len(lengths)) if sum(lengths) else np.nan)
        return _column(out)


@dataclass(frozen=True)
class CopyRate(Metric):
    """Share of the completion's words inside a run of four or more words that one turn also has.

    Not scored: a completion without a word.
    """

    name: ClassVar[str] = "copy_rate"
    needs: ClassVar[str] = "a completion with a word"
    direction: ClassVar[Direction] = None

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature(self.name, run=COPY_RUN, within="turn", unit="word", empty="excluded")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        out = []
        for text, example in zip(completions, examples, strict=True):
            known = {gram for message in example.messages for gram in ngrams(words(message.content), COPY_RUN)}
            tokens = words(text)
            copied = {
                place + step
                for place, gram in enumerate(ngrams(tokens, COPY_RUN))
                if gram in known
                for step in range(COPY_RUN)
            }
            out.append(len(copied) / len(tokens) if tokens else np.nan)
        return _column(out)


@dataclass(frozen=True)
class NovelNgrams(Metric):
    """Share of the completion's word n-grams that no turn has, its speaker's tag counted as part of the turn.

    Not scored: a completion of fewer than n words.
    """

    n: int
    direction: ClassVar[Direction] = None

    @property
    def name(self) -> str:
        return f"novel_{self.n}grams"

    @property
    def needs(self) -> str:
        return f"a completion of {self.n} words"

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature(self.name, within="turn", count="token", unit="word", empty="excluded")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        out = []
        for text, example in zip(completions, examples, strict=True):
            turns = (words(f"{message.speaker or ''} {message.content}") for message in example.messages)
            known = {gram for turn in turns for gram in ngrams(turn, self.n)}
            grams = list(ngrams(words(text), self.n))
            out.append(sum(gram not in known for gram in grams) / len(grams) if grams else np.nan)
        return _column(out)


@dataclass(frozen=True)
class TagIntegrity(Metric):
    """Share of completions whose speaker tags are all legal tags of speakers that exist.

    Faults are near-misses (`#Person 1#`, `Person1`, `##Person1#`) and tags nobody in the dialogue has. An empty
    completion counts as 0, else silence would win. Not scored: a dialogue without speakers.
    """

    name: ClassVar[str] = "tag_integrity"
    needs: ClassVar[str] = "a tagged speaker"
    direction: ClassVar[Direction] = "higher"

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature(self.name, form="as-written", empty="zero")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        out = []
        for text, example in zip(completions, examples, strict=True):
            known = speakers(example)
            legal = bool(words(text)) and not tag_faults(text, known)
            out.append(float(legal) if known else np.nan)
        return _column(out)


def tag_faults(text: str, known: Sequence[str]) -> list[str]:
    """What looks like a speaker tag in `text` but is none of `known`.

    >>> tag_faults("#Person1# calls #Person 2#, and Person3 waits.", ["#Person1#", "#Person2#"])
    ['#Person 2#', 'Person3']
    """
    return [found for found in (m.group() for m in _tag_like(tuple(known)).finditer(text)) if found not in known]


@lru_cache(maxsize=1024)
def _tag_like(known: tuple[str, ...]) -> re.Pattern[str]:
    """`Person7` with whatever hashes and blanks are in or around it; a speaker's own hash-tag name with a hash.

    A lone # that opens the next tag is left to it, so that two tags without a blank between them are both legal.
    """
    bases = {"Person"} | {m.group(1) for m in map(_HASH_TAG.fullmatch, known) if m and m.group(2)}
    numbered = "|".join(sorted(map(re.escape, bases)))
    plain = {m.group(1) for m in map(_HASH_TAG.fullmatch, known) if m and not m.group(2)}
    named = "".join(rf"|#+ ?{re.escape(base)} ?#*|{re.escape(base)} ?#+" for base in sorted(plain))
    return re.compile(rf"(?:#+ ?)?\b(?:{numbered})[ _#-]*\d+\b(?: ?#+(?!\w)|#)?{named}", re.IGNORECASE)


@dataclass(frozen=True)
class SpeakerCoverage(Metric):
    """Share of the dialogue's speakers whom the completion names by their tag. Not scored: no speakers."""

    name: ClassVar[str] = "speaker_coverage"
    needs: ClassVar[str] = "a tagged speaker"
    direction: ClassVar[Direction] = None

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature(self.name, form="as-written", empty="zero")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        out = []
        for text, example in zip(completions, examples, strict=True):
            known = speakers(example)
            named = [speaker for speaker in known if _names(text, speaker)]
            out.append(len(named) / len(known) if known else np.nan)
        return _column(out)


def _names(text: str, speaker: str) -> bool:
    """True if the tag stands in the text by itself: `Ann` is not named by `Anna`."""
    return re.search(rf"(?<![^\W_]){re.escape(speaker)}(?![^\W_])", text) is not None


@dataclass(frozen=True)
class RoleSwapMargin(Metric):
    """ROUGE-2 F1 x100 of the completion minus that of the completion with the first two speakers swapped.

    ROUGE hardly sees who did what; this is the part that it sees. Near 0 or below: the roles are as likely wrong as
    right. Not scored: a dialogue of fewer than two speakers, a completion that names neither.
    """

    reference: str = "first"
    name: ClassVar[str] = "role_swap_margin"
    needs: ClassVar[str] = "two speakers and a completion that names one of them"
    direction: ClassVar[Direction] = None
    true_zero: ClassVar[bool] = False

    def with_reference(self, reference: str) -> RoleSwapMargin:
        return replace(self, reference="mean" if reference in ("max", "best_rouge1") else reference)

    def signature(self, references: tuple[int, int]) -> str:
        settings = reference_settings(self.reference, references)
        tool = f"rouge-score-{version('rouge-score')}"
        return signature(self.name, **settings, by="rouge2", f="f1", stem="porter", empty="excluded", tool=tool)

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        pairs: list[tuple[str, str]] = []
        spans: list[tuple[int, int] | None] = []  # rows of pairs: as written first, then the same number swapped
        for text, example in zip(completions, examples, strict=True):
            known, targets = speakers(example), chosen_references(example, self.reference)
            swapped = swap_speakers(text, *known[:2]) if len(known) >= 2 else text
            if swapped == text or not targets:
                spans.append(None)
                continue
            spans.append((len(pairs), len(targets)))
            pairs += [(prepare(target), prepare(form)) for form in (text, swapped) for target in targets]
        scores = 100 * f_scores(tuple(pairs), stemmer=True, split="none")[:, TYPES.index("rouge2")]
        return _column([np.nan if span is None else _margin(scores, *span) for span in spans])


def _margin(scores: Array, start: int, k: int) -> float:
    return float(scores[start : start + k].mean() - scores[start + k : start + 2 * k].mean())


def swap_speakers(text: str, one: str, other: str) -> str:
    """The text with both tags exchanged wherever they stand by themselves.

    >>> swap_speakers("#Person1# thanks #Person2#.", "#Person1#", "#Person2#")
    '#Person2# thanks #Person1#.'
    """
    tags = re.compile(rf"(?<![^\W_])(?:{re.escape(one)}|{re.escape(other)})(?![^\W_])")
    return tags.sub(lambda match: other if match.group() == one else one, text)
