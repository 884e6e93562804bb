"""Dialogues on both sides of a training and its test: counted, and then the run stops, drops them, or says so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Literal

from dialtune.data.audit import leaks
from dialtune.data.reading import DataSet
from dialtune.data.seen import Seen, find_seen
from dialtune.data.turns import whole_dialogue
from dialtune.errors import DataError

Policy = Literal["stop", "drop", "allow"]

_WAYS_OUT = "--drop-leaks leaves them out{where}, --allow-leaks goes on and records the count"


def audit_training(
    train: DataSet, held_out: Mapping[str, DataSet], policy: Policy
) -> tuple[DataSet, dict[str, dict[str, int]]]:
    """(the rows to train on, what was found): training dialogues that a held-out set holds too, exactly or nearly.

    Args:
        train: rows as read, before replies are made of them.
        held_out: `validation` and `test`, as far as there are any.
        policy: what to do about such rows.
    Returns:
        Found, by held-out set: `exact` and `near`, its own rows that are also trained on; `trained`, the training rows
        that are copies of them; under policy `drop` those are gone.
    Raises:
        DataError: policy `stop` and there are such dialogues; or policy `drop` and nothing is left.
    """
    sets = {"train": train, **held_out}
    found = leaks({name: [whole_dialogue(row) for row in data.examples] for name, data in sets.items()})
    counts, lost, problems = dict[str, dict[str, int]](), set[str](), []
    for overlap in found.across[: len(held_out)]:  # the training set is in the first pairs
        data, leaking = held_out[overlap.right], found.leaking["train", overlap.right]
        n = overlap.right_exact + overlap.right_near
        counts[overlap.right] = {"exact": overlap.right_exact, "near": overlap.right_near, "trained": len(leaking)}
        lost |= leaking
        if leaking:
            problems.append(
                f"{train.name}: {overlap.left_exact:,} of {len(train.examples):,} training dialogues are also in "
                f"{data.name}, {overlap.left_near:,} more nearly; {n:,} of its {len(data.examples):,} would be scored "
                "on what was learned"
            )
    if problems and policy == "stop":
        way_out = f"  {_WAYS_OUT.format(where=' of training')}; see: dialtune data leaks FILE FILE"
        raise DataError("\n".join([*problems, way_out]))
    return (without_rows(train, lost) if policy == "drop" else train), counts


def audit_evaluation(
    data: DataSet, trained: Mapping[str, Seen], policy: Policy
) -> tuple[DataSet, dict[str, int] | None]:
    """(the rows to score, what eval.json records): dialogues of `data` that a model was trained on.

    Args:
        data: rows as read, before replies are made of them.
        trained: what was trained on, by the name of the model or file that says so; empty: not known.
        policy: what to do about such rows.
    Returns:
        Recorded are `exact` and `near`, rows to score that were trained on, and `dropped`; None where `trained` is
        empty.
    Raises:
        DataError: policy `stop` and there are such dialogues; or policy `drop` and nothing is left.
    """
    if not trained:
        return data, None
    seen = reduce(add, trained.values())
    overlap = find_seen(seen, data.examples)
    n_exact, n_near = len(overlap.exact), len(overlap.near)
    if not overlap.ids or policy == "allow":
        return data, {"exact": n_exact, "near": n_near}
    if policy == "drop":
        return without_rows(data, overlap.ids), {"exact": 0, "near": 0, "dropped": len(overlap.ids)}
    raise DataError(
        f"{data.name}: {n_exact:,} of {len(data.examples):,} dialogues are what {', '.join(trained)} was trained on, "
        f"{n_near:,} more nearly ({overlap.trained_exact:,} and {overlap.trained_near:,} rows of {seen.names})\n"
        f"  {_WAYS_OUT.format(where=' of the evaluation')}, which withholds 'improved'"
    )


def without_rows(data: DataSet, ids: Collection[str]) -> DataSet:
    """The data without these rows, counted under `dropped: leaks`; DataError if none is left."""
    if not ids:
        return data
    kept = tuple(example for example in data.examples if example.id not in ids)
    if not kept:
        raise DataError(f"{data.name}: all {len(data.examples):,} dialogues leak, nothing is left; bring other data")
    numbers = [len(example.references) for example in kept]
    counts = {**data.counts, "examples": len(kept), "without_reference": numbers.count(0)}
    counts["dropped: leaks"] = len(data.examples) - len(kept)
    return replace(data, examples=kept, counts=counts, references=(min(numbers), max(numbers)))
