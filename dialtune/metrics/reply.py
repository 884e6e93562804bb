"""What replies do when they answer nothing: say what fits anywhere, echo the last turn, repeat themselves, say little.

Words are those of `text.words`. An empty completion counts as the worst in every rate, else silence would win.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from dialtune.data.duplicates import normal_form
from dialtune.metrics.base import Array, Direction, Metric, is_empty, prepare, signature
from dialtune.metrics.contexts import context_turns
from dialtune.metrics.text import ngrams, words
from dialtune.rarefaction import ngram_counts
from dialtune.types import Example

GENERIC = 100  # replies of the training data that count as generic, the most frequent ones
GENERIC_CONTEXTS = 3  # different contexts to which one text must have been the reply
ECHO_NGRAM, ECHO_SHARE = 3, 0.6
REPEAT_NGRAM = 4
BUDGET = 200  # n-grams; about 20 human replies have as many, so that half of a small evaluation has them too


def frequent_replies(examples: Sequence[Example], n: int = GENERIC) -> tuple[str, ...]:
    """The `n` most frequent first references, in normal form, of those given to at least three rows; ties by text.

    >>> rows = [Example(str(k), (), (text,)) for k, text in enumerate(["Yes!", "yes", "Yes .", "No.", "no", "Why?"])]
    >>> frequent_replies(rows)
    ('yes',)
    """
    counts = Counter(_normal(example.references[0]) for example in examples if example.references)
    often = [(-count, text) for text, count in counts.items() if text and count >= GENERIC_CONTEXTS]
    return tuple(text for _, text in sorted(often)[:n])


def _normal(text: str) -> str:
    return normal_form(prepare(text).lower())


@dataclass(frozen=True)
class GenericRate(Metric):
    """Share of completions that would fit anywhere: in normal form one of `replies`, the frequent ones of the training.

    Without training rows: one that was given to three or more different contexts of this evaluation.
    """

    replies: tuple[str, ...] = ()
    name: ClassVar[str] = "generic_rate"
    needs: ClassVar[str] = "a completion"
    direction: ClassVar[Direction] = "lower"

    def with_rows(self, examples: Sequence[Example], train: Sequence[Example] | None = None) -> GenericRate:
        del examples
        return replace(self, replies=frequent_replies(train)) if train else self

    def signature(self, references: tuple[int, int]) -> str:
        del references
        if self.replies:
            sha = hashlib.sha256("\n".join(self.replies).encode()).hexdigest()[:8]
            source = {"list": f"train-{len(self.replies)}", "sha": sha}
        else:
            source = {"list": "none", "contexts": str(GENERIC_CONTEXTS)}
        return signature(self.name, **source, form="letters-digits", empty="one")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        said = [_normal(text) for text in completions]
        known = set(self.replies) or _widely_used(said, examples)
        return _rate([text in known for text in said], completions)


def _widely_used(said: Sequence[str], examples: Sequence[Example]) -> set[str]:
    contexts: dict[str, set[str]] = defaultdict(set)
    for text, example in zip(said, examples, strict=True):
        contexts[text].add(_normal(" ".join(message.content for message in context_turns(example))))
    return {text for text, found in contexts.items() if len(found) >= GENERIC_CONTEXTS}


@dataclass(frozen=True)
class EchoRate(Metric):
    """Share of completions of whose word 3-grams at least 60 % occur in the last turn before them.

    A completion of one or two words is no echo. Not scored: a row without a turn to answer.
    """

    name: ClassVar[str] = "echo_rate"
    needs: ClassVar[str] = "a turn to answer"
    direction: ClassVar[Direction] = "lower"

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature(self.name, run=ECHO_NGRAM, share=ECHO_SHARE, within="last-turn", unit="word", empty="one")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        turns = [context_turns(example)[-1:] for example in examples]
        echoes = [
            _is_echo(text, turn[0].content) if turn else False for text, turn in zip(completions, turns, strict=True)
        ]
        out = _rate(echoes, completions)
        out[[row for row, turn in enumerate(turns) if not turn]] = np.nan
        return out


def _is_echo(text: str, turn: str) -> bool:
    return echoed_share(text, turn) >= ECHO_SHARE


def echoed_share(text: str, turn: str) -> float:
    """Share of a text's word 3-grams that a turn has too; 0 for one or two words, which are no echo.

    >>> echoed_share("Yes, do you want to go?", "Do you want to go home?")
    0.75
    """
    runs, known = list(ngrams(words(text), ECHO_NGRAM)), set(ngrams(words(turn), ECHO_NGRAM))
    return sum(run in known for run in runs) / len(runs) if runs else 0.0


@dataclass(frozen=True)
class RepetitionRate(Metric):
    """Share of completions that say a run of four words twice."""

    name: ClassVar[str] = "repetition_rate"
    needs: ClassVar[str] = "a completion"
    direction: ClassVar[Direction] = "lower"

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature(self.name, run=REPEAT_NGRAM, times=2, unit="word", empty="one")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        assert len(completions) == len(examples), (len(completions), len(examples))
        return _rate([repeated_share(text) > 0 for text in completions], completions)


def repeated_share(text: str, n: int = REPEAT_NGRAM) -> float:
    """Share of a text's word n-grams that it has said before: seq-rep-n of Welleck et al. 2019, arXiv 1908.04319.

    1 - distinct / all; 0 for fewer than n words, which repeat nothing.

    >>> repeated_share("no no no no no")
    0.5
    """
    runs = list(ngrams(words(text), n))
    return (len(runs) - len(set(runs))) / len(runs) if runs else 0.0


def _rate(flags: Sequence[bool], completions: Sequence[str]) -> Array:
    """(N,1) of 0 and 1; 1 for an empty completion."""
    found = [float(flag or is_empty(text)) for flag, text in zip(flags, completions, strict=True)]
    return np.array(found, dtype=np.float64).reshape(-1, 1)


@dataclass(frozen=True)
class Distinct(Metric):
    """Distinct words, or pairs of words, in a fixed budget of 200 of all completions together (arXiv 1510.03055).

    The expected share among 200 drawn from all (`rarefaction`), so that how many rows there are makes no difference.
    Statistics of a row: how many n-grams it says, then an id of 32 bits for each. Not scored: fewer than 200 in all.
    """

    n: Literal[1, 2]
    needs: ClassVar[str] = "a completion"
    direction: ClassVar[Direction] = "higher"
    row_wise: ClassVar[bool] = False
    budget: ClassVar[int | None] = BUDGET

    @property
    def name(self) -> str:
        return f"distinct_{self.n}"

    def signature(self, references: tuple[int, int]) -> str:
        del references
        return signature(self.name, agg="corpus", budget=BUDGET, draw="expected", unit="word", case="lower")

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        assert len(completions) == len(examples), (len(completions), len(examples))
        ids = [[zlib.crc32(" ".join(gram).encode()) for gram in ngrams(words(text), self.n)] for text in completions]
        out = np.full((len(ids), 1 + max(map(len, ids), default=0)), np.nan)
        for row, found in zip(out, ids, strict=True):
            row[: len(found) + 1] = [len(found), *found]
        return out

    def aggregate(self, stats: Array, index: NDArray[np.intp] | None = None) -> float | Array:
        rows = ngram_ids(stats)
        draws = [np.arange(len(rows))] if index is None else list(index)
        found = np.array([_distinct([rows[place] for place in draw]) for draw in draws])
        return float(found[0]) if index is None else found


def _distinct(rows: Sequence[NDArray[np.int64]]) -> float:
    return float(ngram_counts([rows], np.zeros(len(rows), dtype=np.intp)).distinct(BUDGET)[0])


def ngram_ids(stats: Array) -> list[NDArray[np.int64]]:
    """The ids behind the count in each row of a budgeted metric's statistics (N,1+width)."""
    return [row[1 : int(row[0]) + 1].astype(np.int64) for row in stats]
