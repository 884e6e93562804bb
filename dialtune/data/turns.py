"""Dialogues to (context, reply) pairs: whose turns are learned, and how much of what was said before, by whole turns.

A turn is everything that one speaker says until another one speaks: neighbouring lines of one speaker are one turn,
joined by a line end, and blank ones are left out. So roles alternate wherever two people talk; with three or more,
several `user` messages may follow each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from dialtune.config.data_schema import TurnsConfig
from dialtune.data.reading import DataSet
from dialtune.errors import ConfigError, DataError
from dialtune.types import Example, Message, Role

EVERYBODY = "both"
# Layouts whose rows are one context and its reply; in the other ones a row is a dialogue with many replies.
PAIRS = frozenset({"prompt_completion", "preference", "alpaca", "prompt"})
_ROLES: frozenset[str] = frozenset({"user", "assistant"})
_OURS = frozenset({"reference_names", "id_column"})  # of meta, about references that a dialogue no longer has
_SHOWN = 8  # speakers named in an error


@dataclass(frozen=True, slots=True)
class Turn:
    """What one speaker says until another one speaks; the speaker of a chat message is its role."""

    speaker: str
    text: str


def reply_examples(dialogues: Iterable[Example], settings: TurnsConfig | None = None) -> list[Example]:
    """Every (context, reply) pair of the dialogues, in their order.

    Each is an Example whose messages are a chat: the system message, if there is one, then the turns before the reply,
    oldest first, `assistant` where the replier speaks and `user` where anybody else does. Its one reference is the
    reply; `meta["dialogue"]` is the id of its dialogue and `meta["turn"]` the reply's place among the turns, from 0;
    the id is `dialogue#turn`. A turn with nothing before it is nobody's reply.

    Args:
        dialogues: tagged or untagged turns (two untagged speakers take turns), or chats with roles, where the assistant
            replies. Summaries and other gold texts of tagged dialogues are left out. Rows that are one context and its
            reply (see PAIRS, or `meta` with `dialogue` and `turn`) stay one pair under their own id.
        settings: the recipe's `data.turns`.
    """
    settings = settings or TurnsConfig()
    return [pair for dialogue in dialogues for pair in _pairs(dialogue, settings)]


def reply_data(data: DataSet, settings: TurnsConfig | None = None) -> DataSet:
    """The data as replies; `dialogues` keeps the rows they come from, and `counts` how many had no reply.

    Raises:
        ConfigError: nobody in the data is the speaker that `settings` names.
        DataError: no dialogue has a reply.
    """
    settings = settings or TurnsConfig()
    pairs = [_pairs(dialogue, settings) for dialogue in data.examples]
    examples = tuple(pair for of_one in pairs for pair in of_one)
    if not examples:
        raise _no_reply(data, settings)
    numbers = [len(example.references) for example in examples]
    counts = {
        "dialogues": len(pairs),
        "replies": len(examples),
        "dialogues without a reply": sum(not of_one for of_one in pairs),
        "without_reference": numbers.count(0),
    }
    return replace(
        data,
        examples=examples,
        dialogues=data.examples,
        counts={**data.counts, **counts},
        references=(min(numbers), max(numbers)),
        turns=settings.model_dump(exclude_defaults=True),
    )


def open_contexts(data: DataSet, settings: TurnsConfig | None = None) -> DataSet:
    """Each dialogue as one context without a reply: what is said next is for the model to say.

    A chat is answered by its assistant; a dialogue by the speaker that `settings` names, else by whoever spoke before
    the last turn. A chat that ends with its assistant's reply is asked for that reply.
    """
    settings = settings or TurnsConfig()
    return replace(data, examples=tuple(_open_context(row, settings) for row in data.examples), references=(0, 0))


def _open_context(example: Example, settings: TurnsConfig) -> Example:
    system, turns = _read(example)
    if _is_chat(example) and turns and turns[-1].speaker == "assistant":
        turns = turns[:-1]
    if not system and settings.system:
        system = (Message("system", settings.system),)
    named = _learned(turns, settings.speaker, _is_chat(example))
    others = [turn.speaker for turn in turns[:-1] if turn.speaker != turns[-1].speaker]
    replier = "assistant" if _is_chat(example) else next(iter(named)) if len(named) == 1 else (others or [""])[-1]
    context = _before(_as_chat(turns, replier), len(turns), settings.window)
    return replace(example, messages=(*system, *context), references=())


def for_task(data: DataSet, task: str, settings: TurnsConfig | None = None) -> DataSet:
    """The data as a task asks for it: replies for `respond`, which no other task wants."""
    return reply_data(data, settings) if task == "respond" else data


def whole_dialogue(example: Example) -> Example:
    """All that was said in a row, the reply of a chat included and instructions left out: what audits compare."""
    _, turns = _read(example)
    return Example(example.id, tuple(Message("user", turn.text, turn.speaker) for turn in turns), (), example.meta)


def _pairs(example: Example, settings: TurnsConfig) -> list[Example]:
    system, turns = _read(example)
    if not system and settings.system:
        system = (Message("system", settings.system),)
    if is_pair(example):
        return _given_pair(example, system, turns, settings)
    learned = _learned(turns, settings.speaker, _is_chat(example))
    places = [
        place
        for place, turn in enumerate(turns)
        if place and turn.speaker in learned and _long_enough(turn.text, settings)
    ]
    seen_by = {speaker: _as_chat(turns, speaker) for speaker in learned}
    meta = {key: value for key, value in example.meta.items() if key not in _OURS}
    meta |= {"layout": "messages", "dialogue": example.id}
    return [
        Example(
            f"{example.id}#{place}",
            (*system, *_before(seen_by[turns[place].speaker], place, settings.window)),
            (turns[place].text,),
            {**meta, "turn": place},
        )
        for place in _spread(places, settings.per_dialogue)
    ]


def is_pair(example: Example) -> bool:
    """Whether a row is one context with its reply, and no dialogue with many."""
    meta = example.meta
    made_here = isinstance(meta.get("dialogue"), str) and isinstance(meta.get("turn"), int)
    return _is_chat(example) and (made_here or meta.get("layout") in PAIRS)


def _is_chat(example: Example) -> bool:
    return all(message.speaker is None for message in example.messages)


def _given_pair(
    example: Example, system: tuple[Message, ...], turns: Sequence[Turn], settings: TurnsConfig
) -> list[Example]:
    """A row that is a pair already, its context cut to the window; one without a reply stays a context."""
    if any(not text.strip() for text in example.references):
        return []
    if example.references and not _long_enough(example.references[0], settings):
        return []
    place = len(turns) - len(example.references[:1])
    if place < 1:
        return []
    own = {"dialogue": example.meta.get("dialogue", example.id), "turn": example.meta.get("turn", place)}
    context = _before(_as_chat(turns, "assistant"), place, settings.window)
    return [replace(example, messages=(*system, *context), meta={**example.meta, **own})]


def _read(example: Example) -> tuple[tuple[Message, ...], list[Turn]]:
    """(the system message in front, if any; the turns): the one place that knows how layouts say who speaks."""
    messages = example.messages
    if not _is_chat(example):
        tagged = any(message.speaker for message in messages)
        said = _tagged(messages) if tagged else _alternating(messages)
        return (), _joined(said) if tagged else said
    head = messages[:1] if messages and messages[0].role == "system" else ()
    said = [Turn(message.role, message.content) for message in messages[len(head) :]]
    said += [Turn("assistant", text) for text in example.references[:1]]
    if is_pair(example):  # as it was given: neighbours of one role may be two people
        return head, [Turn(one.speaker, one.text.strip()) for one in said if one.text.strip()]
    return head, _joined(said)


def _tagged(messages: Sequence[Message]) -> list[Turn]:
    """A line without a tag goes on with the turn above it; in front of all tags it sets the scene and is nobody's."""
    said: list[Turn] = []
    for message in messages:
        said.append(Turn(message.speaker or (said[-1].speaker if said else ""), message.content))
    return said


def _alternating(messages: Sequence[Message]) -> list[Turn]:
    texts = [message.content for message in messages if message.content.strip()]
    return [Turn(f"#Person{1 + place % 2}#", text.strip()) for place, text in enumerate(texts)]


def _joined(said: Iterable[Turn]) -> list[Turn]:
    turns: list[Turn] = []
    for one in said:
        text = one.text.strip()
        if not text:
            continue
        if turns and turns[-1].speaker == one.speaker:
            turns[-1] = Turn(one.speaker, f"{turns[-1].text}\n{text}")
        else:
            turns.append(Turn(one.speaker, text))
    return turns


def _learned(turns: Sequence[Turn], wanted: str, chat: bool) -> frozenset[str]:
    """The speakers whose turns are replies."""
    speakers = list(dict.fromkeys(turn.speaker for turn in turns if turn.speaker and turn.speaker != "system"))
    if wanted == EVERYBODY:
        return frozenset({"assistant"} if chat else speakers)
    if wanted in ("first", "second"):
        place = ("first", "second").index(wanted)
        return frozenset(speakers[place : place + 1])
    return frozenset(speaker for speaker in speakers if _bare(speaker) == _bare(wanted))


def _long_enough(reply: str, settings: TurnsConfig) -> bool:
    return settings.min_words is None or len(reply.split()) >= settings.min_words


def _bare(tag: str) -> str:
    return tag.strip("# :").casefold()


def _spread(places: Sequence[int], most: int | None) -> list[int]:
    """At most so many of the places, each in the middle of an equal share of them.

    >>> _spread([1, 3, 5, 7, 9, 11], 2)
    [3, 9]
    """
    if most is None or len(places) <= most:
        return list(places)
    return [places[(2 * share + 1) * len(places) // (2 * most)] for share in range(most)]


def _as_chat(turns: Sequence[Turn], replier: str) -> tuple[Message, ...]:
    """The whole dialogue as its replier sees it; contexts share these messages, long dialogues have many."""
    return tuple(Message(_role(turn.speaker, replier), turn.text) for turn in turns)


def _before(messages: Sequence[Message], place: int, window: int | None) -> Sequence[Message]:
    return messages[0 if window is None else max(place - window, 0) : place]


def _role(speaker: str, replier: str) -> Role:
    if speaker == replier:
        return "assistant"
    return "system" if speaker == "system" else "user"


def _no_reply(data: DataSet, settings: TurnsConfig) -> ConfigError | DataError:
    """Why there is nothing to learn, and what to change."""
    wanted, least = settings.speaker, settings.min_words
    if least is not None and any(_pairs(row, settings.model_copy(update={"min_words": None})) for row in data.examples):
        return DataError(
            f"data.turns.min_words: got {least}, and no reply in {data.name} has as many words; set fewer, or null"
        )
    tags = Counter(turn.speaker for example in data.examples for turn in _read(example)[1] if turn.speaker)
    known = {"both", "first", "second"} | {_bare(tag) for tag in tags}
    if _bare(wanted) not in known:
        shown = ", ".join(tag for tag, _ in tags.most_common(_SHOWN))
        return ConfigError(
            f"data.turns.speaker: got '{wanted}', who says nothing in {data.name}; allowed: both, first, second, "
            f"assistant, or a speaker there: {shown}"
        )
    return DataError(
        f"{data.name}: none of {len(data.examples):,} rows holds a reply: a turn of {_whose(wanted)} with another turn "
        "before it; is each row a whole dialogue? see: dialtune data stats"
    )


def _whose(wanted: str) -> str:
    return {"both": "anybody", "first": "the first speaker", "second": "the second speaker"}.get(wanted, f"'{wanted}'")
