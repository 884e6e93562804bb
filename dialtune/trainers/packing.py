"""One forward pass for the replies of a dialogue: rows whose ids continue each other become one row, same loss.

A reply's prompt holds the replies before it. Where its ids begin with a whole earlier row (prompt, reply and stop
token), the model sees the same tokens in the same places, so scoring both in one pass gives both their very losses and
gradients. That is asked of the ids themselves, for every reply: a chat template that rewrites old turns, a tokenizer
that joins across turns, a prompt that lost its oldest turns, all just begin a new row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dialtune.models.base import LanguageModel
from dialtune.trainers.batching import TokenRow
from dialtune.types import Example, Message, Prompt


def join_replies(
    model: LanguageModel,
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    rows: Sequence[TokenRow],
    *,
    max_length: int | None = None,
) -> list[TokenRow]:
    """Rows of one or more replies, in the order of their first replies; each reply is learned in exactly one row.

    The sum of the losses is that of `rows`. With `max_length` replies are joined as well whose prompts begin later in
    the dialogue (a window, a budget): such a reply is given every turn of the row it joins, more than its own prompt
    has, as long as that row stays within so many tokens; the next row begins with its first reply's own prompt.

    Args:
        model: the one whose ids these are; a model of two sequences (encoder, decoder) gets `rows` back.
        examples: `meta["dialogue"]` names the dialogue, `meta["turn"]` counts the reply's place in it; each dialogue's
            replies in order.
        prompts: of the examples.
        rows: of the prompts, a reply each.
        max_length: tokens of a row with replies that are given more turns than their own prompts have; None: there
            are none.
    """
    if not model.one_sequence:
        return list(rows)
    pieces: list[_Piece] = []
    begun: dict[str, list[_Piece]] = {}
    for example, prompt, row in zip(examples, prompts, rows, strict=True):
        mine = begun.setdefault(str(example.meta.get("dialogue", example.id)), [])
        turn = _Turn(int(example.meta.get("turn", 0)), example.references[0].strip(), prompt.messages)
        if any(piece.take(row, turn) for piece in reversed(mine)):
            continue
        if max_length is None or not any(piece.reach(model, row, turn, max_length) for piece in reversed(mine)):
            mine.append(_Piece.begin(row, turn))
            pieces.append(mine[-1])
    return [piece.row() for piece in pieces]


@dataclass(frozen=True, slots=True)
class _Turn:
    """A reply, its place in the dialogue, and the prompt before it."""

    number: int
    reply: str
    messages: tuple[Message, ...]

    def behind(self, other: _Turn) -> tuple[Message, ...] | None:
        """This reply's prompt if it began where the earlier one's does; None if the two do not fit together."""
        context = self.messages[1:] if self.messages[0].role == "system" else self.messages
        between = self.number - other.number - 1  # turns that the other prompt does not have
        if not 0 <= between <= len(context):
            return None
        before = (*other.messages, Message("assistant", other.reply))
        shared, new = context[: len(context) - between], context[len(context) - between :]
        return (*before, *new) if before[len(before) - len(shared) :] == shared else None


@dataclass(slots=True)
class _Piece:
    """A row in the making."""

    example_id: str
    n_query: int
    ids: tuple[int, ...]
    learn: list[bool]  # of the ids behind the query
    cut: int
    last: _Turn

    @classmethod
    def begin(cls, row: TokenRow, turn: _Turn) -> _Piece:
        learn = [True] * len(row.response)
        return cls(row.example_id, len(row.query), row.query + row.response, learn, row.cut, turn)

    def take(self, row: TokenRow, turn: _Turn) -> bool:
        """Join a reply whose prompt begins with all that is here; False if it does not."""
        size = len(self.ids)
        if row.query[:size] != self.ids:
            return False
        self.learn += [False] * (len(row.query) - size) + [True] * len(row.response)
        self.ids, self.cut, self.last = row.query + row.response, self.cut + row.cut, turn
        return True

    def reach(self, model: LanguageModel, row: TokenRow, turn: _Turn, max_length: int) -> bool:
        """Join a reply by giving it every turn that is here; False where that is too long, or not the same text."""
        messages = turn.behind(self.last)
        if messages is None:
            return False
        query = tuple(model.query_ids(messages))
        if len(query) + len(row.response) > max_length:
            return False
        longer = TokenRow(row.example_id, query, row.response, row.cut)
        return self.take(longer, _Turn(turn.number, turn.reply, messages))

    def row(self) -> TokenRow:
        learn = None if all(self.learn) else tuple(self.learn)
        return TokenRow(self.example_id, self.ids[: self.n_query], self.ids[self.n_query :], self.cut, learn)
