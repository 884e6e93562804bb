"""Dialogues on both sides: stop with the count and a way out, drop them, or go on and say so."""

from __future__ import annotations

import pytest

from dialtune.data.dialogue import parse_dialogue
from dialtune.data.leakage import audit_evaluation, audit_training, without_rows
from dialtune.data.reading import DataSet
from dialtune.data.seen import fingerprint_dialogues
from dialtune.data.turns import reply_data
from dialtune.errors import DataError
from dialtune.types import Example


def rows(name: str, *numbers: int, prefix: str = "r") -> DataSet:
    """One dialogue a number; two data sets share those whose numbers they share."""
    examples = tuple(
        Example(f"{prefix}{n}", parse_dialogue(f"Anna: Is number {n} open today?\nBen: {n} opens at ten."), ("s",))
        for n in numbers
    )
    return DataSet(name, "", "dialogue", examples, counts={"rows": len(examples)}, references=(1, 1))


TRAIN, TEST = rows("train.jsonl", *range(10)), rows("test.jsonl", 8, 9, 10, 11, prefix="t")


# sft


def test_a_leak_stops_training_with_its_count_and_a_way_out():
    with pytest.raises(DataError) as caught:
        audit_training(TRAIN, {"validation": rows("validation.jsonl", 20), "test": TEST}, "stop")
    assert str(caught.value).splitlines() == [
        "train.jsonl: 2 of 10 training dialogues are also in test.jsonl, 0 more nearly; 2 of its 4 would be scored on "
        "what was learned",
        "  --drop-leaks leaves them out of training, --allow-leaks goes on and records the count; "
        "see: dialtune data leaks FILE FILE",
    ]
    assert len(caught.value.problems) == 1


def test_dropping_takes_the_training_rows_and_counts_them():
    data, found = audit_training(TRAIN, {"test": TEST}, "drop")
    assert [example.id for example in data.examples] == [f"r{n}" for n in range(8)]
    assert (data.counts["dropped: leaks"], data.counts["examples"], data.counts["rows"]) == (2, 8, 10)
    assert found == {"test": {"exact": 2, "near": 0, "trained": 2}}


def test_allowing_keeps_the_rows_and_records_the_count():
    assert audit_training(TRAIN, {"test": TEST}, "allow") == (TRAIN, {"test": {"exact": 2, "near": 0, "trained": 2}})


def test_without_a_leak_nothing_changes_under_any_policy():
    clean = {"exact": 0, "near": 0, "trained": 0}
    for policy in ("stop", "drop", "allow"):
        held_out = {"validation": rows("v", 20, 21), "test": rows("t", 30)}
        assert audit_training(TRAIN, held_out, policy) == (TRAIN, {"validation": clean, "test": clean})
        assert audit_training(TRAIN, {}, policy) == (TRAIN, {})


def test_copies_within_and_between_held_out_sets_are_no_leak_of_training():
    held_out = {"validation": rows("v", 20, 21), "test": rows("t", 20)}
    assert audit_training(rows("train", 1, 2), held_out, "stop")[1]["test"]["exact"] == 0


def test_training_that_is_all_leaks_is_refused():
    with pytest.raises(DataError, match=r"train: all 2 dialogues leak, nothing is left; bring other data"):
        audit_training(rows("train", 10, 11), {"test": TEST}, "drop")


# evaluate


def test_a_leak_stops_evaluation_with_its_count_and_a_way_out():
    trained = {"runs/x": fingerprint_dialogues(TRAIN.examples, TRAIN.name)}
    with pytest.raises(DataError) as caught:
        audit_evaluation(TEST, trained, "stop")
    assert str(caught.value).splitlines() == [
        "test.jsonl: 2 of 4 dialogues are what runs/x was trained on, 0 more nearly (2 and 0 rows of train.jsonl)",
        "  --drop-leaks leaves them out of the evaluation, --allow-leaks goes on and records the count, which "
        "withholds 'improved'",
    ]


def test_dropping_takes_the_test_rows_and_leaves_none_that_leak():
    trained = {
        "runs/x": fingerprint_dialogues(TRAIN.examples),
        "more": fingerprint_dialogues(TEST.examples[3:], "", "2"),
    }
    data, leakage = audit_evaluation(TEST, trained, "drop")
    assert [example.id for example in data.examples] == ["t10"]
    assert leakage == {"exact": 0, "near": 0, "dropped": 3}
    assert audit_evaluation(data, trained, "stop") == (data, {"exact": 0, "near": 0})
    assert [pair.meta["dialogue"] for pair in reply_data(data).examples] == ["t10"]


def test_allowing_scores_every_row_and_records_the_count():
    trained = {"runs/x": fingerprint_dialogues(TRAIN.examples)}
    assert audit_evaluation(TEST, trained, "allow") == (TEST, {"exact": 2, "near": 0})


def test_what_was_not_looked_at_is_not_called_clean():
    assert audit_evaluation(TEST, {}, "stop") == (TEST, None)


def test_taking_no_row_away_changes_nothing():
    assert without_rows(TEST, set()) is TEST
