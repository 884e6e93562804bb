"""The table of layouts: which columns make a row what, and how it becomes an Example and a row again."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dialtune.data.decoding import kind_of
from dialtune.data.dialogue import parse_dialogue, render_dialogue
from dialtune.errors import ConfigError, DataError
from dialtune.types import Example, Message, Role

Row = Mapping[str, Any]
Parts = tuple[tuple[Message, ...], tuple[str, ...], tuple[str, ...]]  # messages, references, names of the references

MAX_TURNS = 2_000
ID_COLUMNS = ("id", "fname", "example_id", "dialogue_id")
_NUMBERED = re.compile(r"summary(\d*)")
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
}
_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Layout:
    """One way to write an example as a row; `used` are the columns that do not go into `meta`."""

    name: str
    columns: str  # for people
    matches: Callable[[frozenset[str]], bool]
    convert: Callable[[Row], Parts]
    used: frozenset[str]


def _text(row: Row, column: str, *, blank: bool = False) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        if column not in row:
            raise DataError(f"missing column: '{column}'; the row has: {', '.join(map(str, row))[:200]}")
        raise DataError(f"wrong type: '{column}' should be text, got {kind_of(value)}")
    if not blank and (not value or value.isspace()):
        raise DataError(f"empty text: '{column}' is blank")
    return value


def _summaries(row: Row) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(references, their columns): the first must be there, later ones may be blank or null."""
    names = _summary_columns(tuple(row))
    if not names:
        raise DataError(f"missing column: 'summary' or 'summary1'; the row has: {', '.join(map(str, row))[:200]}")
    if len(names) > 1:
        names = (names[0], *(name for name in names[1:] if row[name] is not None and row[name] != ""))
    return tuple(_text(row, name).strip() for name in names), names


@lru_cache(maxsize=256)
def _summary_columns(columns: tuple[str, ...]) -> tuple[str, ...]:
    found = [(int(match[1] or 0), name) for name in columns if (match := _NUMBERED.fullmatch(name))]
    return tuple(name for _, name in sorted(found))


def _turns(row: Row) -> tuple[Message, ...]:
    turns = parse_dialogue(_text(row, "dialogue"))
    if len(turns) > MAX_TURNS:
        raise DataError(f"too many turns: {len(turns):,}, at most {MAX_TURNS:,}")
    if not any(turn.content for turn in turns):
        raise DataError("empty dialogue: no turn has text")
    return turns


def _dialogsum(row: Row) -> Parts:
    return _turns(row), *_summaries(row)


def _dialogue(row: Row) -> Parts:
    return _turns(row), (), ()


def _document(row: Row) -> Parts:
    return (Message("user", _text(row, "document").strip(), ""),), *_summaries(row)


def _article(row: Row) -> Parts:
    return (Message("user", _text(row, "article").strip(), ""),), (_text(row, "highlights").strip(),), ("highlights",)


def _chat(value: object, column: str, *, sharegpt: bool = False) -> tuple[Message, ...]:
    """Chat messages from a list of {role, content} or {from, value}."""
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    if not isinstance(value, list):
        raise DataError(f"wrong type: '{column}' should be a list of messages, got {kind_of(value)}")
    if len(value) > MAX_TURNS:
        raise DataError(f"too many turns: {len(value):,}, at most {MAX_TURNS:,}")
    roles = _SHAREGPT_ROLES if sharegpt else _ROLES
    messages = []
    for number, item in enumerate(value, start=1):
        if not isinstance(item, dict):
            raise DataError(f"wrong type: '{column}' item {number} should be an object, got {kind_of(item)}")
        role, content = item.get(role_key), item.get(content_key)
        if not isinstance(role, str) or role not in roles:
            raise DataError(f"unknown role: '{column}' item {number}: {str(role)[:40]!r}; known: {', '.join(roles)}")
        if item.get("tool_calls"):
            raise DataError(f"tool calls: '{column}' item {number} has tool_calls, which no template here renders")
        if not isinstance(content, str):
            got = kind_of(content)
            raise DataError(f"wrong type: '{column}' item {number}: {content_key} should be text, got {got}")
        messages.append(Message(roles[role], content.strip()))
    if not any(message.content for message in messages):
        raise DataError(f"empty dialogue: '{column}' has no message with text")
    return tuple(messages)


def _split_reply(messages: tuple[Message, ...]) -> Parts:
    """The last assistant turn becomes the reference; a chat that ends otherwise has none."""
    if len(messages) < 2 or messages[-1].role != "assistant":
        return messages, (), ()
    if not messages[-1].content:
        raise DataError("empty text: the last assistant message is blank")
    return messages[:-1], (messages[-1].content,), ()


def _messages(row: Row) -> Parts:
    return _split_reply(_chat(row.get("messages"), "messages"))


def _sharegpt(row: Row) -> Parts:
    return _split_reply(_chat(row.get("conversations"), "conversations", sharegpt=True))


def _prompt(row: Row, column: str = "prompt") -> tuple[Message, ...]:
    if isinstance(row.get(column), list):
        return _chat(row[column], column)
    return (Message("user", _text(row, column).strip()),)


def _reply(row: Row, column: str) -> str:
    """The text of a completion given as text or as one assistant message."""
    if isinstance(row.get(column), list):
        return _chat(row[column], column)[-1].content
    return _text(row, column).strip()


def _prompt_only(row: Row) -> Parts:
    return _prompt(row), (), ()


def _prompt_completion(row: Row) -> Parts:
    return _prompt(row), (_reply(row, "completion"),), ()


def _preference(row: Row) -> Parts:
    _reply(row, "rejected")  # checked here, kept in meta, trained on once a preference loop exists
    return _prompt(row), (_reply(row, "chosen"),), ()


def _alpaca(row: Row) -> Parts:
    instruction = _text(row, "instruction").strip()
    given = _text(row, "input", blank=True).strip() if row.get("input") is not None else ""
    prompt = f"{instruction}\n\n{given}" if given else instruction
    return (Message("user", prompt),), (_text(row, "output").strip(),), ()


def _has(*columns: str) -> Callable[[frozenset[str]], bool]:
    return lambda found: found.issuperset(columns)


def _has_summary(column: str) -> Callable[[frozenset[str]], bool]:
    return lambda found: column in found and any(_NUMBERED.fullmatch(name) for name in found)


# Order is precedence: the first match wins, so the layout with more columns comes first.
LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("dialogsum", "dialogue, summary[1..n]", _has_summary("dialogue"), _dialogsum, frozenset({"dialogue"})),
        Layout("document", "document, summary[1..n]", _has_summary("document"), _document, frozenset({"document"})),
        Layout(
            "article",
            "article, highlights",
            _has("article", "highlights"),
            _article,
            frozenset({"article", "highlights"}),
        ),
        Layout("messages", "messages", _has("messages"), _messages, frozenset({"messages"})),
        Layout("sharegpt", "conversations", _has("conversations"), _sharegpt, frozenset({"conversations"})),
        Layout(
            "preference",
            "prompt, chosen, rejected",
            _has("prompt", "chosen", "rejected"),
            _preference,
            frozenset({"prompt", "chosen"}),
        ),
        Layout(
            "prompt_completion",
            "prompt, completion",
            _has("prompt", "completion"),
            _prompt_completion,
            frozenset({"prompt", "completion"}),
        ),
        Layout(
            "alpaca",
            "instruction, output[, input]",
            _has("instruction", "output"),
            _alpaca,
            frozenset({"instruction", "input", "output"}),
        ),
        Layout("prompt", "prompt", _has("prompt"), _prompt_only, frozenset({"prompt"})),
        Layout("dialogue", "dialogue", _has("dialogue"), _dialogue, frozenset({"dialogue"})),
    )
}


@lru_cache(maxsize=256)
def detect_layout(columns: Collection[str]) -> Layout | None:
    """The layout of a row with these columns (a tuple or frozenset), or None.

    >>> detect_layout(("fname", "dialogue", "summary1", "summary2")).name
    'dialogsum'
    """
    found = frozenset(columns)
    return next((layout for layout in LAYOUTS.values() if layout.matches(found)), None)


def find_layout(name: str) -> Layout:
    """The layout called `name`; ConfigError names those that exist."""
    if name not in LAYOUTS:
        raise ConfigError(f"layout: got '{name}'; known: auto, {', '.join(LAYOUTS)}")
    return LAYOUTS[name]


def no_layout(columns: Collection[str]) -> str:
    """The reason to give when the columns of a row fit nothing."""
    known = "; ".join(layout.columns for layout in LAYOUTS.values())
    return f"unknown columns: {', '.join(map(str, columns))[:200]}; known: {known}; map them: --column dialogue=text"


def to_example(row: Row, layout: Layout, fallback_id: str) -> Example:
    """The Example of one row; DataError says what is wrong, without a place."""
    messages, references, names = layout.convert(row)
    used = layout.used
    meta: dict[str, Any] = {"layout": layout.name}
    example_id = ""
    for column, value in row.items():
        if not example_id and column in ID_COLUMNS and isinstance(value, (str, int)) and str(value).strip():
            example_id = str(value)
            meta["id_column"] = column
        elif column not in used and column not in names:
            meta[column] = value
    if names:
        meta["reference_names"] = names
    return Example(example_id or fallback_id, messages, references, meta)


def to_row(example: Example) -> dict[str, Any]:
    """A row that reads back as this Example: dialogue and summaries, or messages that end with the reference."""
    hidden = {"layout", "reference_names", "id_column"}
    extra = {key: value for key, value in example.meta.items() if key not in hidden}
    row: dict[str, Any] = {str(example.meta.get("id_column", "id")): example.id}
    names = tuple(example.meta.get("reference_names", ()))
    if example.messages and example.messages[0].speaker is not None:
        source = str(example.meta.get("layout", "dialogsum"))
        column = source if source in {"document", "article"} else "dialogue"
        row[column] = render_dialogue(example.messages)
        if len(names) != len(example.references):
            count = len(example.references)
            names = ("summary",) if count == 1 else tuple(f"summary{i}" for i in range(1, count + 1))
        row |= dict(zip(names, example.references, strict=True))
    else:
        reply = [{"role": "assistant", "content": text} for text in example.references[:1]]
        row["messages"] = [{"role": m.role, "content": m.content} for m in example.messages] + reply
        extra.pop("rejected", None)
    return row | {key: value for key, value in extra.items() if key not in row}
