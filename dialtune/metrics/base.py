"""What a metric is: per-row statistics, how sums of them become a score, and the signature that says how."""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dialtune.statistics import percentile
from dialtune.types import Example

Array = NDArray[np.float64]
Direction = Literal["higher", "lower"] | None

PROTOCOL = 1  # raised when the same settings begin to mean another number
EVERY = ("mean", "max", "best_rouge1")  # reference choices that look at every reference of a row


class Metric(ABC):
    """One score: `segments` reads texts once, everything after works on the sums of what it returned.

    A row-wise metric stores one column, the row's value, and its score is the mean. A corpus metric (BLEU, chrF) stores
    counts and `combine` is its formula. A row of NaN was not scored and takes no part.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """What tables, recipes and result files call it."""

    @property
    @abstractmethod
    def direction(self) -> Direction:
        """Which way is better; None: descriptive, never compared."""

    @property
    def needs(self) -> str:
        """What a row must have to be scored, as the words after "no row has"."""
        return "a reference"

    @property
    def row_wise(self) -> bool:
        """False: only sums of many rows have a score."""
        return True

    @property
    def true_zero(self) -> bool:
        """False: a relative change means nothing."""
        return True

    @property
    def percent(self) -> int | None:
        """The percentile of the rows' values that is the score; None: `combine` makes the score from sums."""
        return None

    @property
    def budget(self) -> int | None:
        """N-grams in which distinct ones are counted; a row's statistics are then their number and their ids.

        None: they are counts or values, and sums of them make the score.
        """
        return None

    @property
    def log_scale(self) -> bool:
        """True: a positive score of which ratios count; its intervals are made of logarithms."""
        return False

    @property
    def note(self) -> str | None:
        """What a reader of the score must know, in a line; None: nothing."""
        return None

    @property
    def every_row(self) -> bool:
        """False: made for some rows of a data set, so the others do not count as not scored."""
        return True

    @property
    def empty_as(self) -> float | None:
        """What an excluded empty completion counts as in the second verdict; None: empty text is scored like any."""
        return None

    def unavailable(self) -> str | None:
        """Why this metric can score nothing here, in a line, such as a scorer that is not installed; None if it can."""
        return None

    @abstractmethod
    def signature(self, references: tuple[int, int]) -> str:
        """`name|key:value|...`; `references` are the fewest and the most on a row."""

    @abstractmethod
    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        """Statistics per row, (N,K) float64; NaN where a row cannot be scored."""

    def with_reference(self, reference: str) -> Metric:
        """The same metric judged by another choice of references; itself if it reads none."""
        del reference
        return self

    def with_rows(self, examples: Sequence[Example], train: Sequence[Example] | None = None) -> Metric:
        """The same metric set up for these rows, and for what the model was trained on; itself if neither matters."""
        del examples, train
        return self

    def combine(self, sums: Array, n: Array) -> Array:
        """Scores (...) from summed statistics (...,K) over n rows (...); here the mean."""
        return sums[..., 0] / n

    def aggregate(self, stats: Array, index: NDArray[np.intp] | None = None) -> float | Array:
        """The score of all rows, or with `index` (R,N) one score per draw of rows: (R,). NaN rows are left out.

        NaN where no row was scored.
        """
        kept = ~np.isnan(stats[:, 0])
        if self.percent is not None:
            draws = stats[None, :, 0] if index is None else stats[index, 0]
            found = np.array([percentile(row, self.percent) if len(row) else np.nan for row in map(_scored, draws)])
            return float(found[0]) if index is None else found
        if not kept.any():
            return np.nan if index is None else np.full(len(index), np.nan)
        if index is None:
            return float(self.combine(stats[kept].sum(axis=0), np.asarray(kept.sum(), dtype=np.float64)))
        clean = np.where(kept[:, None], stats, 0.0)
        return self.combine(clean[index].sum(axis=1), kept[index].sum(axis=1).astype(np.float64))


def _scored(values: Array) -> Array:
    return values[~np.isnan(values)]


def signature(name: str, **settings: Any) -> str:
    """The signature's text; settings keep their order, the protocol's version comes last.

    >>> signature("length_ratio", refs=1, unit="word")
    'length_ratio|refs:1|unit:word|dialtune:1'
    """
    return "|".join((name, *(f"{key}:{value}" for key, value in settings.items()), f"dialtune:{PROTOCOL}"))


def reference_settings(reference: str, references: tuple[int, int]) -> dict[str, str]:
    """The `refs` and `agg` settings: how many references are used and how they become one number."""
    low, high = references
    count = "1" if reference not in EVERY else str(high) if low == high else f"{low}-{high}"
    return {"refs": count, "agg": reference.replace("_", "-")}


def prepare(text: str) -> str:
    """The text as every metric sees it: NFC, stripped, nothing else."""
    return unicodedata.normalize("NFC", text.strip())


def is_empty(text: str) -> bool:
    """True if no letter and no digit is in the text."""
    return not any(character.isalnum() for character in text)


def chosen_references(example: Example, reference: str) -> tuple[str, ...]:
    """The references of a row that this choice looks at; empty if the row has none of them.

    `first`; a name from the row's `reference_names` or, by its number, `summary2`; otherwise one of `EVERY`.
    """
    texts = example.references
    if reference in EVERY:
        return texts
    if reference == "first":
        return texts[:1]
    names = tuple(example.meta.get("reference_names", ()))
    if reference in names:
        place = names.index(reference)
    elif reference.startswith("summary") and reference[7:].isdecimal():
        place = int(reference[7:]) - 1
    else:
        return ()
    return texts[place : place + 1] if place >= 0 else ()
