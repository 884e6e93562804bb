"""Which rows teach a reward what, and which judge it; a signal that the data say nothing about is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dialtune.config.reward_schema import RewardConfig
from dialtune.data.reading import DataSet
from dialtune.errors import DataError
from dialtune.metrics.contexts import dialogue_units
from dialtune.seeds import seed_for
from dialtune.trainers.contrast import CHEAP, Lessons, ReplyPair, lessons_of, usable
from dialtune.types import Example

HELD_OUT = 2  # wrong replies and contexts that a held-out reply is held against


def check_signals(train: DataSet, config: RewardConfig) -> None:
    """Refuse a signal that the training rows say nothing about."""
    examples = usable(train.examples)
    if not examples:
        raise DataError(f"{train.name}: no reply with something said before it; see: dialtune data stats")
    only = config.model_copy(update={"signals": {name: 1.0 for name in config.signals if name != "contexts"}})
    lessons = lessons_of(examples, only, n=1, seed=0)
    if "preferences" in config.signals and not lessons.pairs["preferences"]:
        raise DataError(
            f"signals.preferences: none of {len(examples):,} rows of {train.name} has a chosen and a rejected reply "
            f"that differ (its layout is {train.layout}); rows need prompt, chosen and rejected"
        )
    if "ratings" in config.signals:
        names = ", ".join(config.ratings)
        if not lessons.rated:
            raise DataError(f"signals.ratings: no dialogue of {train.name} has {names}; name its columns in ratings")
        if len({dialogue.target for dialogue in lessons.rated}) == 1:
            raise DataError(
                f"signals.ratings: all {len(lessons.rated):,} rated dialogues of {train.name} have one mean of "
                f"{names}; ratings that never differ teach nothing"
            )


def teaching_dialogues(data: DataSet, config: RewardConfig) -> tuple[tuple[Example, ...], ...]:
    """The usable replies of each dialogue that one of the signals can learn from."""
    return tuple(rows for rows in by_dialogue(usable(data.examples)) if _teaches(rows, config))


def by_dialogue(examples: Sequence[Example]) -> tuple[tuple[Example, ...], ...]:
    """The examples of each dialogue, in the order of first appearance."""
    found: dict[int, list[Example]] = {}
    for example, unit in zip(examples, dialogue_units(examples), strict=True):
        found.setdefault(unit, []).append(example)
    return tuple(map(tuple, found.values()))


def _teaches(examples: Sequence[Example], config: RewardConfig) -> bool:
    """Whether a dialogue is worth a place in a batch: any is for contexts, else one with a pair or a rating."""
    return "contexts" in config.signals or not lessons_of(examples, config, n=1, seed=0).empty


def held_out(validation: DataSet, report: DataSet | None, config: RewardConfig) -> tuple[Lessons, Lessons]:
    """(what chooses and calibrates, what is reported on): data.validation and data.test, or halves of the first."""
    first = teaching_dialogues(validation, config)
    if report is not None:
        second = teaching_dialogues(report, config)
    else:
        drawn = sorted(first, key=lambda rows: seed_for(config.seed, "held out", 0, rows[0].id))
        first, second = tuple(drawn[::2]), tuple(drawn[1::2])
    for data, rows in ((validation, first), (report or validation, second)):
        if len(rows) < 2:
            raise DataError(
                f"{data.name}: {len(rows)} held-out dialogues {'' if report else 'in this half '}to judge by; at least "
                "2 are needed, and hundreds for a narrow interval"
            )
    return _judging(first, config), _judging(second, config)


def _judging(dialogues: Sequence[Sequence[Example]], config: RewardConfig) -> Lessons:
    """Fixed lessons of held-out dialogues, at most `max_evaluation_pairs` of a kind."""
    examples = [example for rows in dialogues for example in rows]
    lessons = lessons_of(examples, config, n=HELD_OUT, seed=config.seed)
    most, pairs = config.max_evaluation_pairs, dict[str, list[ReplyPair]]()
    for name, found in lessons.pairs.items():
        shuffled, cheap = ([p for p in found if (p.kind in CHEAP) is wanted] for wanted in (False, True))
        pairs[name] = _some(shuffled, most, config.seed) + _some(cheap, most // 2, config.seed)
    return Lessons(pairs, lessons.rated)


def _some(pairs: list[ReplyPair], most: int, seed: int) -> list[ReplyPair]:
    """At most so many, drawn once, in their order."""
    if len(pairs) <= most:
        return pairs
    rows = np.random.default_rng(seed_for(seed, "some")).permutation(len(pairs))[:most]
    return [pairs[row] for row in sorted(rows)]
