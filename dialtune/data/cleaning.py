"""Noise out of the text: named steps that can be switched one by one, each with its count and samples.

A step sees the text of one turn or one reference, never its speaker tag, and `#Person1#` inside a text survives all of
them. Cleaning twice changes nothing more.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from dialtune.data.dialogue import split_tag
from dialtune.errors import ConfigError
from dialtune.types import Example, Message

MAX_SAMPLES = 3  # before and after, per step
_SAMPLE_WIDTH = 80  # characters
_MAX_PASSES = 50  # every step shortens or settles a text; three passes are the most that real text needed

_TAG_NAMES = (
    "a|abbr|address|article|aside|b|big|blockquote|body|br|button|caption|center|cite|code|dd|del|div|dl|dt|em|"
    "figcaption|figure|font|footer|form|h[1-6]|head|header|hr|html|i|iframe|img|input|ins|kbd|label|li|link|main|mark|"
    "meta|nav|ol|option|p|pre|q|s|samp|script|section|select|small|span|strike|strong|style|sub|sup|svg|table|tbody|td|"
    "textarea|tfoot|th|thead|title|tr|tt|u|ul|var|video"
)
_INSIDE = r"(?:(?!#person\d)[^<>])*"  # of a tag, a speaker tag in it excepted
_HTML = re.compile(
    rf"<(script|style)\b{_INSIDE}>(?:(?!#person\d)[^<])*</\1\s*>|<!--(?:(?!#person\d|<!--).)*?-->|"
    rf"</?(?:{_TAG_NAMES})(?:[\s/]{_INSIDE})?>",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_URL = re.compile(r"(?:https?://|ftp://|\bwww\.)(?:(?!#person\d)[^\s<>\"])+(?<![.,;:!?)])", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
# Joiners stay between letters that need them (Persian, Indic, emoji) and go next to ASCII and at the ends.
_ZERO_WIDTH = re.compile(
    r"[\u200b\u2060-\u2064\ufeff\u00ad\u180e]|(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])"
)
_SPECIAL = re.compile(
    r"[\u2500-\u25ff\u2605\u2606\u2756\ufffc\ufffd\ue000-\uf8ff\u2022\u2023\u2043]|([*~=_|^+\-])\1{2,}"
)
_LONG_DASH = re.compile(r"(?<=\w)-{2,}(?=\w)")
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("‘’‚‛", "'") | dict.fromkeys("“”„", '"') | dict.fromkeys("–‐‑", "-") | {"…": "...", "—": " - "}
)
_BLANKS = re.compile(r"[^\S\n]+")
_BREAKS = re.compile(r" ?\n ?(?:\n ?)*")

# Bytes 0x80-0xBF as Windows shows them (five have no sign there and stay control characters).
_HIGH = {bytes([b]).decode("cp1252", "replace"): b for b in range(0x80, 0xC0)}
_HIGH = {char: b for char, b in _HIGH.items() if char != "\ufffd"} | {chr(b): b for b in range(0x80, 0xC0)}
_TAIL = "[" + "".join(re.escape(char) for char in _HIGH) + "]"
_MOJIBAKE = re.compile(f"[ÂÃ]{_TAIL}|â{_TAIL}{{2}}|ð{_TAIL}{{3}}")


def html_tags(text: str) -> str:
    """Tags, comments and scripts become a blank; `<3` and `<file_photo>` stay."""
    return _HTML.sub(" ", text) if "<" in text else text


def html_entities(text: str) -> str:
    """`&amp;` and `&#39;` become characters, doubly escaped ones too; a line end becomes a blank."""
    while "&" in text and (plain := _ENTITY.sub(_unescape, text)) != text:
        text = plain
    return text


def mojibake(text: str) -> str:
    """UTF-8 that was read as Windows-1252 is read again: `donâ€™t` becomes `don’t`, twice spoiled text too."""
    while not text.isascii() and (repaired := _MOJIBAKE.sub(_redecode, text)) != text:
        text = repaired
    return text


def control_characters(text: str) -> str:
    """Control characters and marks of writing direction go; tabs and line ends are left to `whitespace`."""
    return _CONTROL.sub("", text)


def zero_width(text: str) -> str:
    """Invisible characters go: zero-width spaces, byte order marks, soft hyphens, joiners where nothing is joined."""
    return text if text.isascii() else _ZERO_WIDTH.sub("", text)


def urls(text: str) -> str:
    """Web addresses go."""
    return _URL.sub("", text)


def unicode_nfc(text: str) -> str:
    """Unicode normal form C."""
    return unicodedata.normalize("NFC", text)


def special_characters(text: str) -> str:
    """Typographic quotes and dashes become ASCII; frames, bullets, private signs and rules such as `*****` go."""
    ascii_text = text if text.isascii() else text.translate(_TYPOGRAPHY)
    return _SPECIAL.sub(" ", _LONG_DASH.sub(" - ", ascii_text))


_TOKENISED = (
    (re.compile(r"(?<=\w) ?(['’]) ?(?=(?:s|t|m|d|re|ve|ll)\b(?!['’]))", re.IGNORECASE), r"\1"),  # Let ' s, don ' t
    (re.compile(r"(?<=\d) ([:.]) (?=\d)"), r"\1"),  # 10 : 30
    (re.compile(r"(?<=[\w\"'’)%.!?]) +([,;!?%)\]]|\.(?!\w)|\.\.\.)"), r"\1"),  # Say , Jim ,
    (re.compile(r"(?<=[\w)]) (:)(?= |$)"), r"\1"),
    (re.compile(r"([(\[$£€]) (?=\w)"), r"\1"),  # ( To Mary )
    (re.compile(r"(?<=[a-z]{2})([.!?])(?=[A-Z][a-z']|I\b)"), r"\1 "),  # pingpong.Perhaps
)


def tokenised_spacing(text: str) -> str:
    """Blanks in front of punctuation go, as in DailyDialog's `Say , Jim , let ' s go .`; text without any is left."""
    if " " not in text and "." not in text:
        return text
    for pattern, replacement in _TOKENISED:
        text = pattern.sub(replacement, text)
    return text


def whitespace(text: str) -> str:
    """Runs of blanks become one, line ends stay single, both ends are stripped."""
    return _BREAKS.sub("\n", _BLANKS.sub(" ", text)).strip()


def empty_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The turns that still have text."""
    return tuple(message for message in messages if message.content and not message.content.isspace())


TEXT_STEPS: dict[str, Callable[[str], str]] = {
    "html_tags": html_tags,
    "html_entities": html_entities,
    "mojibake": mojibake,
    "control_characters": control_characters,
    "zero_width": zero_width,
    "urls": urls,
    "unicode_nfc": unicode_nfc,
    "special_characters": special_characters,
    "tokenised_spacing": tokenised_spacing,
    "whitespace": whitespace,
}
TURN_STEPS: dict[str, Callable[[Sequence[Message]], tuple[Message, ...]]] = {"empty_turns": empty_turns}
STEPS: tuple[str, ...] = (*TEXT_STEPS, *TURN_STEPS)  # in the order in which they run


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What came out: texts changed per step (for `empty_turns`, turns dropped), and rows dropped per reason."""

    examples: tuple[Example, ...]
    counts: Mapping[str, int]
    samples: Mapping[str, tuple[tuple[str, str], ...]]
    dropped: Mapping[str, int]


@dataclass(slots=True)
class _Tally:
    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, step: str, before: str, after: str) -> None:
        self.counts[step] += 1
        kept = self.samples.setdefault(step, [])
        if len(kept) < MAX_SAMPLES:
            kept.append(_around_change(before, after))


def choose_steps(names: Iterable[str] | None = None, *, without: Iterable[str] = ()) -> tuple[str, ...]:
    """The steps to run, in their order: all of them or those named, minus `without`; ConfigError for unknown names."""
    chosen, left_out = (STEPS if names is None else tuple(names)), tuple(without)
    unknown = [name for name in (*chosen, *left_out) if name not in STEPS]
    if unknown:
        raise ConfigError(f"cleaning step: got '{unknown[0]}'; known: {', '.join(STEPS)}")
    return tuple(step for step in STEPS if step in chosen and step not in left_out)


def clean_text(text: str, steps: Sequence[str] = STEPS) -> str:
    """`text` after the named steps, repeated until nothing changes.

    >>> clean_text("<p>It&#39;s  5 , isn ' t it ?</p>")
    "It's 5, isn't it?"
    """
    return _clean_text(text, steps, _Tally())


def clean_examples(examples: Iterable[Example], steps: Sequence[str] = STEPS) -> Cleaned:
    """Examples with clean turns and references; those left without a turn or a reference they had are dropped."""
    tally, dropped = _Tally(), Counter[str]()
    kept = []
    for example in examples:
        messages = tuple(_clean_turn(message, steps, tally) for message in example.messages)
        if "empty_turns" in steps:
            shorter = empty_turns(messages)
            for lost in (m for m in messages if not m.content or m.content.isspace()):
                tally.add("empty_turns", f"{lost.speaker or lost.role}: {lost.content}", "")
            messages = shorter
        references = tuple(_clean_text(text, steps, tally) for text in example.references)
        if not any(message.content for message in messages):
            dropped["no turn left"] += 1
        elif not all(references):
            dropped["reference is empty"] += 1
        else:
            kept.append(replace(example, messages=messages, references=references))
    counts = {step: tally.counts[step] for step in steps}
    samples = {step: tuple(tally.samples.get(step, ())) for step in steps}
    return Cleaned(tuple(kept), counts, samples, dict(dropped))


def _clean_turn(message: Message, steps: Sequence[str], tally: _Tally) -> Message:
    content = _clean_text(message.content, steps, tally)
    if content == message.content:
        return message
    if message.speaker == "" and "\n" not in message.content:
        speaker, rest = split_tag(content)  # `<p>Anna: hi</p>` hid its tag until now
        if speaker:
            return replace(message, speaker=speaker, content=_clean_text(rest, steps, _Tally()))
    return replace(message, content=content)


def _clean_text(text: str, steps: Sequence[str], tally: _Tally) -> str:
    touched: set[str] = set()
    for _ in range(_MAX_PASSES):
        start = text
        for step in steps:
            if step in TURN_STEPS:
                continue
            after = TEXT_STEPS[step](text)
            if after != text and step not in touched:
                touched.add(step)
                tally.add(step, text, after)
            text = after
        if text == start:
            break
    return text


def _unescape(entity: re.Match[str]) -> str:
    return " " if (plain := html.unescape(entity[0])) in {"\n", "\r", "\r\n"} else plain


def _redecode(found: re.Match[str]) -> str:
    spoiled = found[0]
    try:
        return bytes([ord(spoiled[0]), *(_HIGH[char] for char in spoiled[1:])]).decode("utf-8")
    except UnicodeDecodeError:
        return spoiled


def _around_change(before: str, after: str) -> tuple[str, str]:
    """Both texts cut to 80 characters around the first difference."""
    pairs = zip(before, after, strict=False)
    at = next((i for i, (old, new) in enumerate(pairs) if old != new), min(len(before), len(after)))
    start = max(at - _SAMPLE_WIDTH // 2, 0)
    return before[start : start + _SAMPLE_WIDTH], after[start : start + _SAMPLE_WIDTH]
