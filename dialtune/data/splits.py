"""Seeded splits that keep a dialogue, its copies and its near duplicates on one side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dialtune.data.duplicates import clusters, normal_form, plain_text
from dialtune.errors import ConfigError
from dialtune.seeds import seed_for
from dialtune.types import Example

DEFAULT_FRACTIONS = {"train": 0.8, "validation": 0.1, "test": 0.1}


def split_examples(
    examples: Sequence[Example],
    fractions: Mapping[str, float] | None = None,
    *,
    seed: int,
    near: bool = True,
) -> dict[str, tuple[Example, ...]]:
    """The examples by split, each in its old order.

    Where a dialogue goes depends on its words and the seed, not on its place in the file. Clusters of duplicates stay
    whole, so a split may miss its share by less than the largest cluster that it refused.

    Args:
        examples: the rows to divide.
        fractions: split name to share, summing to 1; by default 80, 10 and 10 %.
        seed: any integer.
        near: whether near duplicates stay together too.
    """
    shares = dict(fractions or DEFAULT_FRACTIONS)
    if not shares or any(share <= 0 for share in shares.values()) or not math.isclose(sum(shares.values()), 1.0):
        got = ", ".join(f"{name} {share:g}" for name, share in shares.items())
        raise ConfigError(f"fractions: got {got}; allowed: positive shares that sum to 1, e.g. train 0.8, test 0.2")
    if len(examples) < len(shares):
        raise ConfigError(f"split: got {len(examples)} examples for {len(shares)} splits; at least one each is needed")
    texts = [plain_text(example) for example in examples]
    members: dict[int, list[int]] = {}
    for index, root in enumerate(clusters(texts, near=near)):
        members.setdefault(root, []).append(index)
    order = sorted(members.values(), key=lambda rows: min(_draw(seed, texts[row], examples[row]) for row in rows))
    chosen: dict[str, list[int]] = {name: [] for name in shares}
    for rows in order:
        wanting = max(shares, key=lambda name: shares[name] * len(examples) - len(chosen[name]))
        chosen[wanting].extend(rows)
    if empty := [name for name, rows in chosen.items() if not rows]:
        raise ConfigError(
            f"split: {empty[0]} stays empty: the {len(examples)} rows form only {len(members)} clusters of duplicates; "
            "keep exact copies together only (near=False, --exact), or bring more dialogues"
        )
    return {name: tuple(examples[index] for index in sorted(rows)) for name, rows in chosen.items()}


def _draw(seed: int, text: str, example: Example) -> int:
    return seed_for(seed, "split", index=normal_form(text) or example.id)
