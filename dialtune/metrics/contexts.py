"""Which rows come from one dialogue, what a reply is a reply to, and the contexts of others to hold it against.

A reply is a row whose meta names its `dialogue` and its `turn`; its context is what its messages say, without the
system message. Any other row is a dialogue of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dialtune.seeds import seed_for
from dialtune.types import Example, Message

POOL = 4  # others are drawn from so many times their number of dialogues, those nearest in length


def dialogue_of(example: Example) -> str | None:
    """The id of the dialogue that a reply comes from; None for a row that is no reply."""
    dialogue, turn = example.meta.get("dialogue"), example.meta.get("turn")
    return dialogue if isinstance(dialogue, str) and isinstance(turn, int) else None


def context_turns(example: Example) -> tuple[Message, ...]:
    """The turns that a reply answers, oldest first; a system message is an instruction, and nobody's turn."""
    return tuple(message for message in example.messages if message.role != "system")


def last_turn_only(example: Example) -> Example:
    """The same row with its system message and the last turn alone."""
    system = tuple(message for message in example.messages if message.role == "system")
    return Example(example.id, system + context_turns(example)[-1:], example.references, example.meta)


def dialogue_units(examples: Sequence[Example]) -> list[int]:
    """Per row the first row of its unit: what is resampled, swapped and kept together.

    Replies of one dialogue are one unit, and so are copies: dialogues of which all rows say the same. A row without any
    text is nobody's copy.
    """
    rows_of: dict[str, list[int]] = {}
    for row, example in enumerate(examples):
        rows_of.setdefault(_dialogue_key(example, row), []).append(row)
    seen: dict[tuple[str, ...], int] = {}
    unit = [0] * len(examples)
    for key, rows in rows_of.items():
        said = tuple(_row_text(examples[row]) for row in rows)
        first = seen.setdefault(said if any(said) else (key,), rows[0])
        for row in rows:
            unit[row] = first
    return unit


def _dialogue_key(example: Example, row: int) -> str:
    dialogue = dialogue_of(example)
    return f"row {row}" if dialogue is None else f"dialogue {dialogue}"


def _row_text(example: Example) -> str:
    """All that a row says, and for a reply also the reply itself; empty if it says nothing."""
    spoken = [(message.speaker, " ".join(message.content.lower().split())) for message in example.messages]
    if dialogue_of(example) is not None:
        spoken += [(None, " ".join(text.lower().split())) for text in example.references]
    return repr(spoken) if any(content for _, content in spoken) else ""


def wrong_contexts(examples: Sequence[Example], n: int, *, seed: int = 0) -> list[tuple[int, ...]]:
    """For each row up to `n` rows whose contexts are held against its own.

    Each is of another dialogue, and none says the same as the own one. They are drawn from the `POOL` x n dialogues
    whose contexts are nearest in words, so that length does not give the true one away. Those that were drawn least so
    far go first: every context serves about equally often, and can be read once for all rows that it serves. Fewer than
    n only where there are fewer other dialogues; none for a row that answers nothing.

    Args:
        examples: N rows, ids unique.
        n: >= 1.
        seed: of the draws; the same rows get the same contexts.
    """
    assert n >= 1, n
    shelf = _Shelf(examples, seed)
    used: Counter[int] = Counter()
    found: list[tuple[int, ...]] = [()] * len(examples)
    for row in sorted(shelf.rows, key=lambda row: seed_for(seed, "contexts", 0, examples[row].id)):
        pool = shelf.nearest(row, POOL * n)
        lots = np.random.default_rng(seed_for(seed, "context", 0, examples[row].id)).permutation(len(pool))
        drawn = sorted(range(len(pool)), key=lambda at: (used[pool[at]], lots[at]))[:n]
        found[row] = tuple(pool[at] for at in drawn)
        used.update(found[row])
    return found


class _Shelf:
    """The rows that answer something, by the words of their contexts; equal lengths in an order drawn once."""

    def __init__(self, examples: Sequence[Example], seed: int) -> None:
        self.said = [_said(example) for example in examples]
        self.sizes = [len(text.split()) for text in self.said]
        self.units = dialogue_units(examples)
        kept = (row for row in range(len(examples)) if self.said[row])
        self.rows = sorted(kept, key=lambda row: (self.sizes[row], seed_for(seed, "shelf", 0, examples[row].id)))
        self.place = {row: at for at, row in enumerate(self.rows)}

    def nearest(self, row: int, limit: int) -> list[int]:
        """Up to `limit` rows, nearest in size first: one of each other dialogue, none that says the same as `row`."""
        at, size = self.place[row], self.sizes[row]
        low, high = at - 1, at + 1
        pool: list[int] = []
        met = {self.units[row]}
        while len(pool) < limit and (low >= 0 or high < len(self.rows)):
            # The nearer in size; among equals the nearer on the shelf, so that both sides are drawn from.
            down = (size - self.sizes[self.rows[low]], at - low) if low >= 0 else None
            up = (self.sizes[self.rows[high]] - size, high - at) if high < len(self.rows) else None
            if up is None or (down is not None and down < up):
                other, low = self.rows[low], low - 1
            else:
                other, high = self.rows[high], high + 1
            if self.units[other] not in met and self.said[other] != self.said[row]:
                met.add(self.units[other])
                pool.append(other)
        return pool


def _said(example: Example) -> str:
    """What the context says, to tell copies by; empty if it says nothing."""
    return " ".join(" ".join(message.content for message in context_turns(example)).lower().split())
