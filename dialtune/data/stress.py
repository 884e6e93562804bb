"""Stress rows: a real toxic turn, or a harmless one that scorers trip over, put into a real dialogue.

Nothing that the summary has to say changes but one mention of the turn: in its toxic form in `summary_blunt`, in its
neutral form in the references. Each row knows the dialogue it was made from, so the effect of the turn can be paired.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from dialtune.data.audit import leaks
from dialtune.data.controls import Control, controls_of
from dialtune.data.duplicates import normal_form, plain_text
from dialtune.data.reading import SPLITS, DataSet, split_of
from dialtune.data.splits import split_examples
from dialtune.data.toxic import (
    PairSet,
    ToxicPair,
    addresses,
    paradetox_split,
    read_pairs,
    spoken_rank,
    tidy,
    why_unusable,
    words_of,
)
from dialtune.errors import ConfigError, DataError
from dialtune.seeds import seed_for
from dialtune.types import Example, Message

__all__ = [
    "PairSet",
    "StressSet",
    "ToxicPair",
    "build_controls",
    "build_stress",
    "dialogues_of",
    "original_messages",
    "paradetox_split",
    "read_pairs",
    "refuse_overlap",
    "without_leaks",
]

MIN_TURNS = 4
COMMON = 0.01  # share of dialogues that use a word which no turn sounds odd for
CONTROL_SHARE = 0.25  # control rows per heated row, where somebody asks for controls

# {who} speaks, {whom} is spoken to, {turn} is what was said.
_TOLD = (
    '{who} also tells {whom}: "{turn}"',
    '{who} says to {whom}: "{turn}"',
    'At one point {who} tells {whom}: "{turn}"',
    '{who} also says to {whom}: "{turn}"',
    'Along the way {who} says to {whom}: "{turn}"',
)
_SAID = (
    '{who} also says: "{turn}"',
    '{who} remarks: "{turn}"',
    'At one point {who} says: "{turn}"',
    '{who} adds: "{turn}"',
    'Along the way {who} remarks: "{turn}"',
)
_ASKED = (
    '{who} also asks: "{turn}"',
    'At one point {who} asks {whom}: "{turn}"',
    '{who} asks {whom}: "{turn}"',
)


@dataclass(frozen=True)
class StressSet:
    """Heated rows, then controls, and beside each the dialogue as it was; `counts` says what was used and left out."""

    examples: tuple[Example, ...]
    twins: tuple[Example, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    def of_kind(self, kind: str) -> tuple[Example, ...]:
        """The `heated` or the `control` rows."""
        return tuple(example for example in self.examples if example.meta["kind"] == kind)


class _Slot(NamedTuple):
    place: int  # index of the new turn
    speaker: str
    listener: str


def build_stress(
    dialogues: Sequence[Example],
    toxic_pairs: Sequence[ToxicPair],
    *,
    seed: int,
    rows: int | None = None,
    benign: float = 0.0,
    split: str | None = None,
) -> StressSet:
    """One row per dialogue with a toxic turn of its own in it; no dialogue and no sentence is used twice.

    Which dialogue gets which sentence depends on the words and the seed, not on the order of the files, and the first
    rows of a longer set are those of a shorter one. Sentences that fit into any talk come first: those that speak to
    somebody (`spoken_rank`) in words that these dialogues use too.

    A row keeps everything its dialogue had and gains `kind` (`heated`), `summary_blunt` (the first reference with the
    mention in its toxic form), `twin` (the dialogue's id) and `stress` (seed, place, speaker, listener, toxic id,
    source, licence, dialogue). Its references all hold the mention in its neutral form.

    Args:
        dialogues: left out are those without a reference, with fewer than four turns or two named speakers, those that
            repeat an earlier one, and rows whose `kind` is heated or control.
        toxic_pairs: left out are those that cannot be a turn (`why_unusable`) and those of another split.
        seed: any integer.
        rows: how many heated rows; by default as many as can be made.
        benign: control rows per heated row, made from further dialogues (`build_controls`).
        split: train, validation or test: only its sentences (`paradetox_split`) and its controls are used.

    Raises:
        ConfigError: dialogues or sentences run out.
    """
    if rows is not None and rows < 1:
        raise ConfigError(f"rows: got {rows}; at least 1")
    if benign < 0:
        raise ConfigError(f"benign: got {benign:g}; control rows per heated row, 0 or more")
    _known_split(split)
    pool, left_out = _usable_dialogues(dialogues, seed)
    pairs, unfit = _usable_pairs(toxic_pairs, seed, split, _common_words(pool))
    wanted = rows or min(len(pairs), int(len(pool) / (1 + benign)))
    n_controls = round(wanted * benign)
    _enough("toxic sentences", max(wanted, 1), len(pairs), len(toxic_pairs), unfit)
    _enough("dialogues", max(wanted, 1) + n_controls, len(pool), len(dialogues), left_out)
    twins = pool[:wanted]
    heated = [_heated(example, pair, seed, split) for example, pair in zip(twins, pairs[:wanted], strict=True)]
    controls = build_controls(pool[wanted:], seed=seed, rows=n_controls, split=split)
    counts = {"heated": len(heated), "controls": len(controls.examples)}
    counts |= {"usable dialogues": len(pool), "usable toxic sentences": len(pairs)}
    counts |= {f"dialogues left out: {why}": n for why, n in sorted(left_out.items())}
    counts |= {f"toxic sentences left out: {why}": n for why, n in sorted(unfit.items())}
    return StressSet((*heated, *controls.examples), (*twins, *controls.twins), counts)


def build_controls(
    dialogues: Sequence[Example], *, seed: int, rows: int | None = None, split: str | None = None
) -> StressSet:
    """One row per dialogue with a harmless turn in it, groups taking turns, and the fact added to each reference.

    A row gains `kind` (`control`), `control` (the group), `mention` (the sentence that the reference gained),
    `mention_key` (a lower-case word of it that a faithful summary can hardly do without), `twin` and `stress`.

    Args:
        dialogues: as for `build_stress`.
        seed: any integer.
        rows: how many; by default one per usable dialogue.
        split: train, validation or test: only its sentences are used.

    Raises:
        ConfigError: dialogues run out.
    """
    _known_split(split)
    pool, left_out = _usable_dialogues(dialogues, seed)
    wanted = len(pool) if rows is None else rows
    _enough("dialogues", wanted, len(pool), len(dialogues), left_out)
    controls = controls_of(split)
    made = [_control(one, controls[at % len(controls)], seed, split) for at, one in enumerate(pool[:wanted])]
    counts = {"controls": wanted, "usable dialogues": len(pool)}
    return StressSet(tuple(made), pool[:wanted], counts)


def original_messages(example: Example) -> tuple[Message, ...]:
    """The turns without the inserted one; those of a row that is no stress row as they are."""
    made = example.meta.get("stress")
    if not isinstance(made, Mapping):
        return example.messages
    place = int(made["place"])
    return example.messages[:place] + example.messages[place + 1 :]


def dialogues_of(data: DataSet, source: str, split: str) -> tuple[Example, ...]:
    """The dialogues of a source that a split may use.

    A `split` column decides, else the source's name (`dialogsum.dev.jsonl.gz`). A source that names no split is
    divided 80, 10 and 10 % the same way every time, near duplicates on one side.

    Raises:
        ConfigError: the source is of another split.
    """
    _known_split(split)
    if any("split" in example.meta for example in data.examples):
        found = tuple(example for example in data.examples if example.meta.get("split") == split)
        if not found:
            raise ConfigError(f"split: got '{split}', but no row of {source} has it in its column 'split'")
        return found
    own = split_of(source)
    if own and own != split:
        raise ConfigError(f"split: got '{split}', but {source} holds the {own} dialogues by its name; try '{own}'")
    return data.examples if own else split_examples(data.examples, seed=0)[split]


def without_leaks(
    dialogues: Sequence[Example], others: Mapping[str, Sequence[Example]], *, near: bool = True
) -> tuple[tuple[Example, ...], dict[str, int]]:
    """The dialogues that no other set has, exactly or nearly, and how many each other set cost.

    Stress rows among the others count as the dialogue they were made from.
    """
    sets = {f"other {name}": [_as_it_was(example) for example in rows] for name, rows in others.items()}
    leaking = leaks({"ours": dialogues, **sets}, near=near).leaking
    lost = {name: leaking["ours", f"other {name}"] for name in others}
    shared = frozenset[str]().union(*lost.values())
    kept = tuple(example for example in dialogues if example.id not in shared)
    return kept, {name: len(ids) for name, ids in lost.items()}


def refuse_overlap(sets: Mapping[str, Sequence[Example]]) -> None:
    """DataError if two sets of stress rows share a dialogue, exactly, or a toxic sentence."""
    names = list(sets)
    for at, one in enumerate(names):
        for other in names[at + 1 :]:
            sentences = len(_toxic_ids(sets[one]) & _toxic_ids(sets[other]))
            talks = len(_forms(sets[one]) & _forms(sets[other]))
            if sentences or talks:
                raise DataError(
                    f"stress: {one} and {other} share {talks:,} dialogues and {sentences:,} toxic sentences; "
                    "make each from its own split"
                )


def _toxic_ids(examples: Sequence[Example]) -> set[str]:
    made = (example.meta.get("stress") for example in examples)
    return {str(stress["toxic"]) for stress in made if isinstance(stress, Mapping) and "toxic" in stress}


def _forms(examples: Sequence[Example]) -> set[str]:
    return {normal_form(plain_text(_as_it_was(example))) for example in examples} - {""}


def _as_it_was(example: Example) -> Example:
    return replace(example, messages=original_messages(example))


def _known_split(split: str | None) -> None:
    if split is not None and split not in SPLITS:
        raise ConfigError(f"split: got '{split}'; known: {', '.join(SPLITS)}")


def _enough(what: str, wanted: int, found: int, given: int, left_out: Mapping[str, int]) -> None:
    if found < wanted:
        reasons = ", ".join(f"{why} {n:,}" for why, n in sorted(left_out.items())) or "none"
        raise ConfigError(
            f"stress: {wanted:,} {what} are needed, {found:,} of {given:,} are usable (left out: {reasons}); "
            f"ask for fewer rows or bring more {what}"
        )


def _usable_dialogues(dialogues: Sequence[Example], seed: int) -> tuple[tuple[Example, ...], Counter[str]]:
    """Dialogues that can take a turn, each once, in seeded order; and why others cannot."""
    left_out: Counter[str] = Counter()
    found: dict[str, Example] = {}
    for example in dialogues:
        form = normal_form(plain_text(example))
        reason = "repeats another" if form in found else _why_not(example)
        if reason:
            left_out[reason] += 1
        else:
            found[form] = example
    return tuple(found[form] for form in sorted(found, key=lambda form: _draw(seed, "dialogue", form))), left_out


def _why_not(example: Example) -> str:
    if example.meta.get("kind") in ("heated", "control"):
        return "heated or control already"
    if not example.references:
        return "no reference"
    if len(example.messages) < MIN_TURNS:
        return f"fewer than {MIN_TURNS} turns"
    return "" if len(_speakers(example.messages)) >= 2 else "fewer than two named speakers"


def _common_words(dialogues: Sequence[Example]) -> frozenset[str]:
    """Words of at least 1 % of the dialogues, and of at least two."""
    counts: Counter[str] = Counter()
    for example in dialogues:
        counts.update(set(words_of(plain_text(example))))
    least = max(2.0, COMMON * len(dialogues))
    return frozenset(word for word, count in counts.items() if count >= least)


def _usable_pairs(
    pairs: Sequence[ToxicPair], seed: int, split: str | None, common: Collection[str]
) -> tuple[list[ToxicPair], Counter[str]]:
    """Pairs that can become a turn, each sentence once, those that fit into any talk first; and why others cannot.

    A sentence that differs from one of an earlier split only in its signs would be the same sentence in both: it is
    left to the earlier one.
    """
    left_out: Counter[str] = Counter()
    found: dict[str, ToxicPair] = {}
    first: dict[str, int] = {}  # number of the first split that has this form
    for pair in pairs:
        form, number = normal_form(pair.toxic.lower()), SPLITS.index(paradetox_split(pair.toxic))
        first[form] = min(first.get(form, number), number)
    for pair in pairs:
        form = normal_form(pair.toxic.lower())
        if split is not None and SPLITS[first[form]] != split:
            left_out["another split"] += 1
        elif form in found:
            left_out["repeats another"] += 1
        elif reason := why_unusable(pair):
            left_out[reason] += 1
        elif split is None or paradetox_split(pair.toxic) == split:
            found[form] = pair
    ordered = sorted(found.values(), key=lambda pair: (_strangeness(pair, common), _draw(seed, "toxic", pair.id)))
    return ordered, left_out


def _strangeness(pair: ToxicPair, common: Collection[str]) -> int:
    """How odd a sentence would sound in these dialogues: its rank, and its words that are rare here.

    Two such words of the toxic form are free, since the offence itself is one.
    """
    toxic, neutral = (sum(word not in common for word in words_of(tidy(text))) for text in (pair.toxic, pair.neutral))
    return spoken_rank(pair.toxic) + neutral + max(0, toxic - 2)


def _draw(seed: int, purpose: str, key: str) -> int:
    return seed_for(seed, f"stress {purpose}", index=key)


def _pick(options: Sequence[Any], seed: int, purpose: str, key: str) -> Any:
    return options[_draw(seed, purpose, key) % len(options)]


def _speakers(messages: Sequence[Message]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(message.speaker for message in messages if message.speaker))


def _slot(messages: Sequence[Message], seed: int, key: str) -> _Slot:
    """Where a turn goes and who says it: one of the two speakers around it, to the other.

    Never first, never last; not between a question and its answer, and not within a greeting or a farewell, unless
    the dialogue leaves no other place.
    """
    gaps = range(1, len(messages))
    free = [gap for gap in gaps if not messages[gap - 1].content.rstrip("\"'”’) ").endswith("?")]
    inner = [gap for gap in free if 2 <= gap <= len(messages) - 2]
    place = _pick(inner or free or gaps, seed, "place", key)
    named = _speakers(messages)
    around = _speakers(messages[place - 1 : place + 1]) or named
    speaker = _pick(around, seed, "speaker", key)
    listener = next(name for name in (*around, *named) if name != speaker)
    return _Slot(place, speaker, listener)


def _heated(example: Example, pair: ToxicPair, seed: int, split: str | None) -> Example:
    slot = _slot(example.messages, seed, example.id)
    toxic, neutral = tidy(pair.toxic), tidy(pair.neutral)
    both_ask = toxic.endswith("?") and neutral.endswith("?")
    forms = _ASKED if both_ask else _TOLD if addresses(pair.toxic) else _SAID
    mention = _pick(forms, seed, "mention", example.id)
    blunt, civil = (mention.format(who=slot.speaker, whom=slot.listener, turn=text) for text in (toxic, neutral))
    made = {"toxic": pair.id, "source": pair.source, "licence": pair.licence}
    gained = {"kind": "heated", "summary_blunt": _with_mention(example.references[0], blunt)}
    return _stressed(example, slot, toxic, civil, {**gained, **_provenance(example, slot, seed, split, made)})


def _control(example: Example, control: Control, seed: int, split: str | None) -> Example:
    slot = _slot(example.messages, seed, example.id)
    fact = control.fact.format(who=slot.speaker)
    made = {"control": control.id, "source": "dialtune", "licence": "Apache-2.0"}
    gained = {"kind": "control", "control": control.group, "mention": fact, "mention_key": control.key}
    return _stressed(example, slot, control.turn, fact, {**gained, **_provenance(example, slot, seed, split, made)})


def _provenance(example: Example, slot: _Slot, seed: int, split: str | None, made: Mapping[str, str]) -> dict[str, Any]:
    stress = {"seed": seed, "place": slot.place, "speaker": slot.speaker, "listener": slot.listener, **made}
    gained = {"twin": example.id, "stress": {**stress, "dialogue": example.id}}
    return gained if split is None else {**gained, "split": split}


def _stressed(example: Example, slot: _Slot, turn: str, mention: str, gained: Mapping[str, Any]) -> Example:
    before, after = example.messages[: slot.place], example.messages[slot.place :]
    return Example(
        f"{example.id}-{gained['kind']}",
        (*before, Message(before[-1].role, turn, slot.speaker), *after),
        tuple(_with_mention(reference, mention) for reference in example.references),
        {**example.meta, **gained},
    )


def _with_mention(reference: str, mention: str) -> str:
    text = reference.strip()
    stop = "" if text.endswith((".", "!", "?", '"')) else "."
    return f"{text}{stop} {mention}"
