"""The values that travel between stages before any tensor exists: frozen, plain, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    `speaker` is None for a chat message, which is sent to a model as it is. Otherwise the message is a turn of a text
    that is talked *about* (a dialogue to summarize): the speaker's tag as written, `#Person1#` or `Anna`, or the
    empty string for an untagged turn.
    """

    role: Role
    content: str
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """One row of data: its dialogue, its gold texts, and whatever else the row said.

    `references` may be empty (nothing to learn from or to compare with); the first one is what SFT trains on.
    """

    id: str
    messages: tuple[Message, ...]
    references: tuple[str, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is given for one example, as chat messages; `dropped_turns` were cut to fit the token budget."""

    example_id: str
    messages: tuple[Message, ...]
    template: str
    dropped_turns: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """What a model wrote for one prompt: the decoded text, the sampled ids (stop token included), how it ended."""

    example_id: str
    text: str
    token_ids: tuple[int, ...]
    finish: FinishReason


@dataclass(frozen=True, slots=True)
class Score:
    """A number for people: `value` is None exactly when n is 0, and then `reason` says why.

    `ci` is the 95 % interval (low, high); `signature` says tool, version and settings.
    """

    name: str
    value: float | None
    ci: tuple[float, float] | None
    n: int
    signature: str
    reason: str | None = None
