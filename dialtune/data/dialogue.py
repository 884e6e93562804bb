"""Text of a dialogue to turns and back: `#Person1#:` and `Anna:` tags, and DailyDialog's `__eou__`.

Every line is judged on its own, so parsing is the exact inverse of rendering and cleaning can work turn by turn.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from dialtune.types import Message

EOU = "__eou__"

# DialogSum's inline form; the normal form of a dialogue and the cleaning steps must know it too.
PERSON_TAG = re.compile(r"#person\d+#", re.IGNORECASE)

_HASH_LINE = re.compile(r"(#[^\s#:][^#:]{0,38}#)\s*[:：]\s*(.*)", re.DOTALL)
_NAME_LINE = re.compile(r"([^\s:#]+(?: [^\s:#]+){0,3}):(?:\s+(.*)|$)", re.DOTALL)
_NAME_WORD = re.compile(r"[^\W\d_](?:[\w'’-]*[^\W_])?")
_NEAR_MISS = re.compile(r"#+\s*person[\s_-]*\d+\s*#*|\bperson\d+\b#?", re.IGNORECASE)
_NUMBERED_PERSON = re.compile(r"person[\s_-]*\d")
_LEGAL_TAG = re.compile(r"#Person\d+#")
_MAX_NAME = 40  # characters


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TITLES = _words("mr mrs ms miss dr prof st sir madam officer captain judge nurse aunt uncle")
_PARTICLES = _words("de da di del van von der den la le el al bin ibn y and of the & +")
_ROLES = _words("user assistant system bot human agent customer caller speaker")
# Words that open a sentence or a heading with a colon ("Note: bring a pen") and name nobody.
_NOT_NAMES = _words(
    """note notes warning caution ps re fwd fw subject date time place address phone email tel fax from to cc question
    answer example examples result results total subtotal price cost update edit reminder tip hint fact facts summary
    topic title source link url http https first second third fourth finally lastly next then now today tomorrow
    yesterday tonight monday tuesday wednesday thursday friday saturday sunday listen look remember wait see yes no
    yeah yep ok okay well so but or because if when while the an it this that these those here there what who why
    how where which i we they you he she my our your his her their one two three let please sorry thanks hello hi hey
    good great new news important attention spoiler conclusion also plus option options step part rule reason
    ingredients method pros cons"""
)


def parse_dialogue(text: str) -> tuple[Message, ...]:
    r"""The turns of `text`, one per non-blank line or `__eou__` piece, in order, all with role `user`.

    A line without a speaker tag becomes a turn whose speaker is the empty string.

    >>> [(m.speaker, m.content) for m in parse_dialogue("#Person1#: Hi.\nMr. Cole: Note: it is 10:30.")]
    [('#Person1#', 'Hi.'), ('Mr. Cole', 'Note: it is 10:30.')]
    """
    if EOU in text:
        text = text.replace(EOU, "\n")
    if "\r" in text:
        text = text.replace("\r", "\n")
    turns = []
    for line in text.split("\n"):
        if stripped := line.strip():
            speaker, content = split_tag(stripped)
            turns.append(Message("user", content, speaker))
    return tuple(turns)


def split_tag(line: str) -> tuple[str, str]:
    """(speaker, rest) of a stripped line; the speaker is empty and the rest is the line if there is no tag."""
    if line.startswith("#"):
        if (
            line[8:10] == "#:" and line.startswith("#Person") and line[7] not in " #:"
        ):  # the usual case, without a regex
            return line[:9], line[10:].lstrip()
        hashed = _HASH_LINE.match(line)
        if hashed:
            return hashed[1], hashed[2]
    elif ":" in line[: _MAX_NAME + 1]:
        named = _NAME_LINE.match(line)
        if named and _is_name(named[1]):
            return named[1], named[2] or ""
    return "", line


def render_dialogue(messages: Sequence[Message]) -> str:
    r"""The text of `messages`, one turn per line; a chat message (speaker None) is tagged with its role.

    >>> render_dialogue(parse_dialogue("Anna: Hi! \n\n Ben: Hello."))
    'Anna: Hi!\nBen: Hello.'
    """
    return "\n".join(_render_turn(message) for message in messages)


def near_miss_tags(text: str) -> list[str]:
    """Written forms that resemble `#Person1#` without being it, such as `#Person 1#` or `##Person1#`."""
    rest = _LEGAL_TAG.sub("\0", text)  # cheap checks first: data without a fault is the usual case
    if "#\0" not in rest and "\0#" not in rest and not _NUMBERED_PERSON.search(rest.lower()):
        return []
    return [found[0] for found in _NEAR_MISS.finditer(text) if not _LEGAL_TAG.fullmatch(found[0])]


def _render_turn(message: Message) -> str:
    speaker = message.role.capitalize() if message.speaker is None else message.speaker
    return f"{speaker}: {message.content}".rstrip() if speaker else message.content


@lru_cache(maxsize=4096)
def _is_name(tag: str) -> bool:
    words = tag.split(" ")
    if len(tag) > _MAX_NAME or any(word.strip(".").lower() in _NOT_NAMES for word in words):
        return False
    if words[0].lower() in _ROLES:
        return all(word.isdigit() for word in words[1:])
    if words[0][0].islower() or words[-1].lower() in _PARTICLES:
        return False
    return all(_is_name_word(word) for word in words)


def _is_name_word(word: str) -> bool:
    if word in _PARTICLES or word.isdigit():
        return True
    bare = word[:-1] if word.endswith(".") else word
    if bare != word and not (bare.lower() in _TITLES or len(bare) == 1):
        return False
    return bool(_NAME_WORD.fullmatch(bare)) and (bare[0].isupper() or not bare[0].islower())
