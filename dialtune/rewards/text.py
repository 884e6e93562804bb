"""Rewards in [0, 1] that read only words and tags: length, form, copying, repeating, echoing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from dialtune.errors import ConfigError
from dialtune.metrics.base import is_empty
from dialtune.metrics.contexts import context_turns
from dialtune.metrics.reply import echoed_share, repeated_share
from dialtune.metrics.text import CopyRate, speakers, tag_faults, words
from dialtune.rewards.base import Array, Judges, where_it_applies
from dialtune.types import Example

REPEAT_RUN = 3  # words in a row that count as said again
_COPY_RATE = CopyRate()


def count_words(text: str) -> int:
    """How many words a text has, as the length metrics count them."""
    return len(words(text))


@dataclass(frozen=True)
class LengthReward:
    """1 inside a band of lengths; outside it falls in a straight line to 0 at no words and at twice the upper end.

    n / low below the band, 2 - n / high above it. With `of="reference"` the ends are multiples of the mean length of
    the row's references, and a row without one has no value. An empty completion is 0.

    Args:
        low, high: the band, 0 < low <= high; in units of `count`, or multiples of the references' length.
        of: what the ends are measured in.
        count: length of a text; words by default, or a tokenizer's count of tokens.
    """

    low: float = 5.0
    high: float = 40.0
    of: Literal["absolute", "reference"] = "absolute"
    count: Callable[[str], int] = count_words
    name: str = "length"
    judges: ClassVar[Judges] = "other"

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < math.inf:
            raise ConfigError(f"reward '{self.name}': got {self.low:g} to {self.high:g}; allowed: 0 < low <= high")
        if self.of not in ("absolute", "reference"):
            raise ConfigError(f"reward '{self.name}': of: got '{self.of}'; known: absolute, reference")

    @property
    def needs(self) -> str:
        """What a row must bring."""
        return "references" if self.of == "reference" else ""

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [0,1], masked where there is no length to compare with."""
        units = np.array([self._unit(example) for example in examples], dtype=np.float64)
        lengths = np.array([0 if is_empty(text) else self.count(text) for text in completions], dtype=np.float64)
        applies = units > 0
        share = lengths / np.where(applies, units, 1.0)
        return where_it_applies(np.clip(np.minimum(share / self.low, 2.0 - share / self.high), 0.0, 1.0), applies)

    def _unit(self, example: Example) -> float:
        if self.of == "absolute":
            return 1.0
        lengths = [self.count(text) for text in example.references]
        return sum(lengths) / len(lengths) if lengths else 0.0


@dataclass(frozen=True)
class FormatReward:
    """Legal speaker tags times the share of word trigrams that are not said again.

    The first factor is 0 if anything looks like a speaker tag and is none of the dialogue's, else 1; a dialogue
    without tagged speakers has none to break. The second is distinct over all trigrams, 1 for fewer than three words.
    An empty completion is 0.
    """

    name: str = "format"
    judges: ClassVar[Judges] = "other"
    needs: ClassVar[str] = "dialogues"

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [0,1]."""
        return np.array([_form(text, example) for text, example in zip(completions, examples, strict=True)])


def _form(text: str, example: Example) -> float:
    known = speakers(example)
    if is_empty(text) or (known and tag_faults(text, known)):
        return 0.0
    return 1.0 - repeated_share(text, REPEAT_RUN)


@dataclass(frozen=True)
class CopyReward:
    """1 while no more than `free` of the words are copied from a turn, then down in a straight line to 0 at all.

    1 - max(0, copy_rate - free) / (1 - free), with the metric `copy_rate`: words in runs of four that one turn also
    has. People copy too: in DialogSum's test split nine summaries of ten stay under 0.36. An empty completion is 0.

    Args:
        free: share of copied words that costs nothing, 0 <= free < 1.
    """

    free: float = 0.3
    name: str = "copy"
    judges: ClassVar[Judges] = "other"
    needs: ClassVar[str] = "dialogues"

    def __post_init__(self) -> None:
        if not 0 <= self.free < 1:
            raise ConfigError(f"reward '{self.name}': free: got {self.free:g}; allowed: 0 up to, not including, 1")

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [0,1]."""
        rates = _COPY_RATE.segments(completions, examples)[:, 0]
        values = 1.0 - np.maximum(0.0, rates - self.free) / (1.0 - self.free)
        return np.where(np.isnan(rates), 0.0, values)  # no word: nothing was copied, and nothing said


@dataclass(frozen=True)
class NoRepetition:
    """The share of word 4-grams that the completion says for the first time: 1 where it repeats nothing.

    1 - seq-rep-4 (Welleck et al. 2019, arXiv 1908.04319). The metric `repetition_rate` counts completions below 1. An
    empty completion is 0.
    """

    name: str = "no_repetition"
    judges: ClassVar[Judges] = "other"
    needs: ClassVar[str] = ""

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [0,1]."""
        assert len(examples) == len(completions), (len(examples), len(completions))
        return np.array([0.0 if is_empty(text) else 1.0 - repeated_share(text) for text in completions])


@dataclass(frozen=True)
class NoEcho:
    """The share of the completion's word 3-grams that the last turn does not have: 1 where nothing is said after it.

    The metric `echo_rate` counts completions below 0.4. An empty completion is 0; a row without a turn to answer has no
    value.
    """

    name: str = "no_echo"
    judges: ClassVar[Judges] = "other"
    needs: ClassVar[str] = "a turn to answer"

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [0,1], masked where there is no turn to answer."""
        turns = [context_turns(example)[-1:] for example in examples]
        values = [
            0.0 if is_empty(text) or not turn else 1.0 - echoed_share(text, turn[0].content)
            for text, turn in zip(completions, turns, strict=True)
        ]
        return where_it_applies(np.array(values), np.array([bool(turn) for turn in turns], dtype=np.bool_))
