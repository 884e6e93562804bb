"""What a learned reward is trained and judged on: pairs of a better and a worse exchange, and chats with ratings.

An exchange is what was said, by whole turns, and a reply to it. A human reply to its own context is better than
another reply there, than itself in another context, than an echo, and than what raters rejected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dialtune.config.reward_schema import RewardConfig
from dialtune.data.decoding import kind_of
from dialtune.errors import DataError
from dialtune.metrics.base import is_empty
from dialtune.metrics.contexts import dialogue_units, wrong_contexts
from dialtune.rewards.learned import turns_of
from dialtune.seeds import seed_for
from dialtune.types import Example, Message

SHUFFLED = ("reply", "context")  # another reply to the same context; the same reply to another context
CHEAP = ("echo", "repeat")  # the last turn again; the one before it again


class Exchange(NamedTuple):
    """What was said, oldest turn first, and the reply to it."""

    context: tuple[str, ...]
    reply: str


@dataclass(frozen=True, slots=True)
class ReplyPair:
    """Two exchanges of which the first is better; `kind` is one of SHUFFLED, CHEAP or `preference`."""

    better: Exchange
    worse: Exchange
    kind: str
    unit: int  # the dialogue of the better one, as `dialogue_units` counts them


@dataclass(frozen=True, slots=True)
class RatedDialogue:
    """The exchanges of a dialogue that was rated as a whole; `target` is in [0, 1]."""

    exchanges: tuple[Exchange, ...]
    target: float
    unit: int


@dataclass(frozen=True, slots=True)
class Lessons:
    """What some dialogues teach, by signal; a signal without a lesson is absent."""

    pairs: Mapping[str, Sequence[ReplyPair]]  # contexts, preferences
    rated: Sequence[RatedDialogue] = ()

    @property
    def exchanges(self) -> list[Exchange]:
        """Every exchange, once."""
        found = [one for pairs in self.pairs.values() for pair in pairs for one in (pair.better, pair.worse)]
        return list(dict.fromkeys([*found, *(one for dialogue in self.rated for one in dialogue.exchanges)]))

    @property
    def texts(self) -> list[str]:
        """Every turn and reply, once."""
        return list(dict.fromkeys(text for one in self.exchanges for text in (*one.context, one.reply)))

    @property
    def empty(self) -> bool:
        """Whether there is nothing to learn."""
        return not self.rated and not any(self.pairs.values())


def lessons_of(examples: Sequence[Example], config: RewardConfig, *, n: int, seed: int) -> Lessons:
    """What the recipe's signals make of some replies.

    Args:
        examples: usable replies of whole dialogues.
        config: its signals, ratings and window are read.
        n: wrong replies and contexts per reply.
        seed: of what is drawn.
    """
    pairs: dict[str, list[ReplyPair]] = {}
    if "contexts" in config.signals:
        pairs["contexts"] = shuffled_pairs(examples, n, seed=seed, window=config.window)
        if config.cheap_replies:
            pairs["contexts"] += cheap_pairs(examples, window=config.window)
    if "preferences" in config.signals:
        pairs["preferences"] = preference_pairs(examples, window=config.window)
    rated = []
    if "ratings" in config.signals:
        rated = rated_dialogues(examples, config.ratings, config.rating_scale, window=config.window)
    return Lessons(pairs, rated)


def exchange_of(example: Example, window: int) -> Exchange:
    """The last `window` turns of a reply's context, and the reply.

    >>> chat = Example("d#2", (Message("user", "Tea?"), Message("assistant", "Yes. ")), ("Here.",))
    >>> exchange_of(chat, window=1)
    Exchange(context=('Yes.',), reply='Here.')
    """
    return Exchange(turns_of(example, window), example.references[0].strip() if example.references else "")


def usable(examples: Sequence[Example]) -> list[Example]:
    """The examples with something said before and a reply with a letter or digit in it."""
    return [e for e in examples if turns_of(e, 1) and e.references and not is_empty(e.references[0])]


def shuffled_pairs(examples: Sequence[Example], n: int, *, seed: int, window: int) -> list[ReplyPair]:
    """Each reply with its own context against `n` that do not belong together.

    By turns another reply to the same context, and the same reply to another context, half of them each. The other one
    comes from another dialogue, never from a copy of it, says something else, and is among those nearest in words.

    Args:
        examples: `usable` ones with unique ids. Fewer than two dialogues give no pair.
        n: >= 1; fewer where there are fewer other dialogues.
        seed: the same examples get the same pairs.
        window: turns of context.
    """
    assert n >= 1, n
    units = dialogue_units(examples)
    exchanges = [exchange_of(example, window) for example in examples]
    said = [_as_said(example, exchange.reply) for example, exchange in zip(examples, exchanges, strict=True)]
    replies = wrong_contexts(said, (n + 1) // 2, seed=seed_for(seed, "replies"))
    contexts = wrong_contexts(examples, n // 2, seed=seed_for(seed, "contexts")) if n > 1 else [()] * len(examples)
    pairs = []
    for row, own in enumerate(exchanges):
        others = [(exchanges[other], "reply") for other in replies[row]]
        others += [(exchanges[other], "context") for other in contexts[row]]
        for other, kind in others:
            # What was replied to the same words elsewhere is not wrong here.
            if other.context != own.context and _same(other.reply) != _same(own.reply):
                worse = Exchange(own.context, other.reply) if kind == "reply" else Exchange(other.context, own.reply)
                pairs.append(ReplyPair(own, worse, kind, units[row]))
    return pairs


def _as_said(example: Example, reply: str) -> Example:
    """The reply in the place of its context, so that `wrong_contexts` draws among replies."""
    return Example(example.id, (Message("user", reply),), (), example.meta)


def cheap_pairs(examples: Sequence[Example], *, window: int) -> list[ReplyPair]:
    """Each reply against a turn of its context said again; see CHEAP. Equal texts give no pair."""
    units, pairs = dialogue_units(examples), []
    for example, unit in zip(examples, units, strict=True):
        own = exchange_of(example, window)
        seen = {_same(own.reply)}
        for kind, text in zip(CHEAP, reversed(own.context[-2:]), strict=False):  # a first reply has one turn before it
            if _same(text) not in seen:
                seen.add(_same(text))
                pairs.append(ReplyPair(own, Exchange(own.context, text), kind, unit))
    return pairs


def preference_pairs(examples: Sequence[Example], *, window: int) -> list[ReplyPair]:
    """The chosen reply against the rejected one, for rows that have a `rejected`; equal or empty ones give no pair."""
    units, pairs = dialogue_units(examples), []
    for example, unit in zip(examples, units, strict=True):
        own, rejected = exchange_of(example, window), _rejected(example.meta)
        if rejected and _same(rejected) != _same(own.reply):
            pairs.append(ReplyPair(own, Exchange(own.context, rejected), "preference", unit))
    return pairs


def _rejected(meta: Mapping[str, Any]) -> str:
    """The rejected reply as text; it may be given as chat messages, like the chosen one."""
    given = meta.get("rejected", "")
    if isinstance(given, list) and given and isinstance(given[-1], dict):
        given = given[-1].get("content", "")
    return given.strip() if isinstance(given, str) else ""


def rated_dialogues(
    examples: Sequence[Example], names: Sequence[str], scale: tuple[float, float], *, window: int
) -> list[RatedDialogue]:
    """The dialogues that have every one of the ratings; their mean over the scale is the target.

    Args:
        examples: replies whose `meta` has the ratings of their dialogue, or of the row itself.
        names: columns, at least one.
        scale: the lowest and the highest rating there is.
        window: turns of context.
    Raises:
        DataError: a rating that is no finite number on the scale, with the row's id.
    """
    low, high = scale
    assert low < high, scale
    units, found = dialogue_units(examples), dict[int, list[int]]()
    for row, unit in enumerate(units):
        if all(examples[row].meta.get(name) is not None for name in names):
            found.setdefault(unit, []).append(row)
    rated = []
    for unit, rows in found.items():
        values = [_rating(examples[rows[0]], name, scale) for name in names]
        exchanges = tuple(exchange_of(examples[row], window) for row in rows)
        rated.append(RatedDialogue(exchanges, (math.fsum(values) / len(values) - low) / (high - low), unit))
    return rated


def _rating(example: Example, name: str, scale: tuple[float, float]) -> float:
    given = example.meta[name]
    try:
        value = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not scale[0] <= value <= scale[1]:  # NaN is on no scale
        shown = given if isinstance(given, int | float | str) else kind_of(given)
        raise DataError(
            f"{example.id}: rating '{name}' is {shown!r:.40}; a number from {scale[0]:g} to {scale[1]:g} is needed "
            "(rating_scale), or leave it out of ratings"
        )
    return value


def _same(text: str) -> str:
    """A text as it is compared: letters and digits alone, lower case."""
    return "".join(character for character in text.lower() if character.isalnum())
