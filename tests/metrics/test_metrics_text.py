"""Length, copying, novelty, tags and roles on cases small enough to count by eye."""

from __future__ import annotations

import math

import pytest

from dialtune.metrics.base import Metric
from dialtune.metrics.text import (
    CopyRate,
    LengthRatio,
    NovelNgrams,
    RoleSwapMargin,
    SpeakerCoverage,
    TagIntegrity,
    swap_speakers,
    tag_faults,
)
from dialtune.types import Example, Message

TWO = ("#Person1#", "#Person2#")
EXAMPLE = Example(
    "1",
    (
        Message("user", "Please bring the blue folder to room nine.", "#Person1#"),
        Message("user", "I will do that.", "#Person2#"),
    ),
    ("#Person2# will bring #Person1# the folder.", "#Person1# asks for it."),
)
SILENT = Example("2", (Message("user", "Just a text."),), ("A text.",))


def value(metric: Metric, text: str, example: Example = EXAMPLE) -> float:
    return float(metric.segments([text], [example])[0, 0])


def test_length_ratio_counts_words_against_the_mean_reference() -> None:
    assert value(LengthRatio(), "one two three") == 3 / 6
    assert value(LengthRatio("mean"), "one two three") == 3 / 5
    assert LengthRatio().with_reference("max") == LengthRatio("mean")
    assert value(LengthRatio(), "") == 0
    assert math.isnan(value(LengthRatio(), "one", Example("3", (), ("?!",))))


def test_copied_words_are_those_in_runs_of_four_from_one_turn() -> None:
    assert value(CopyRate(), "He says: bring the blue folder to them.") == 5 / 8
    assert value(CopyRate(), "the blue folder") == 0
    assert value(CopyRate(), "room nine I will") == 0  # crosses from one turn into the next
    assert math.isnan(value(CopyRate(), "..."))


def test_novel_ngrams_are_those_of_no_turn() -> None:
    assert value(NovelNgrams(1), "#Person1# wants the folder") == 1 / 4
    assert value(NovelNgrams(2), "#Person1# wants the blue folder") == 2 / 4
    assert value(NovelNgrams(3), "bring the blue folder") == 0
    assert math.isnan(value(NovelNgrams(2), "folder"))
    assert NovelNgrams(2).name == "novel_2grams"


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ("#Person1# thanks #Person2#.", []),
        ("#Person1#'s bag, and #Person1##Person2# too", []),
        ("#Person 1# waits", ["#Person 1#"]),
        ("Person1 waits", ["Person1"]),
        ("##Person1# waits", ["##Person1#"]),
        ("#Person1## waits", ["#Person1##"]),
        ("#Person1 waits", ["#Person1"]),
        ("Person1# waits", ["Person1#"]),
        ("#person1# waits", ["#person1#"]),
        ("#Person1 # waits", ["#Person1 #"]),
        ("#Person##1# waits", ["#Person##1#"]),
        ("#Person_1# waits", ["#Person_1#"]),
        ("#Person3# waits", ["#Person3#"]),
        ("Room #5, a person, two persons, 3 people", []),
    ],
)
def test_planted_tag_faults_are_found(text: str, faults: list[str]) -> None:
    assert tag_faults(text, TWO) == faults
    assert value(TagIntegrity(), text) == float(not faults)


def test_tags_without_a_number_are_known_by_their_own_name() -> None:
    known = ("#Anna#", "#Agent7#")
    assert tag_faults("#Anna# meets #Agent7#; Anna smiles, hashtags #fun", known) == []
    assert tag_faults("##Anna# meets Agent 7 and #Anna", known) == ["##Anna#", "Agent 7", "#Anna"]


def test_names_written_as_names_are_no_fault_but_foreign_tags_are() -> None:
    assert tag_faults("Anna meets Ben.", ("Anna", "Ben")) == []
    assert tag_faults("#Person1# meets Ben.", ("Anna", "Ben")) == ["#Person1#"]


def test_silence_does_not_win_tag_integrity() -> None:
    assert value(TagIntegrity(), "") == 0
    assert math.isnan(value(TagIntegrity(), "A text.", SILENT))


def test_speaker_coverage_counts_tags_that_stand_by_themselves() -> None:
    assert value(SpeakerCoverage(), "#Person1# thanks somebody.") == 0.5
    assert value(SpeakerCoverage(), "#Person1# thanks #Person2#'s boss.") == 1
    assert value(SpeakerCoverage(), "") == 0
    assert math.isnan(value(SpeakerCoverage(), "A text.", SILENT))
    named = Example("4", (Message("user", "Hi", "Ann"), Message("user", "Hi", "Bo")))
    assert value(SpeakerCoverage(), "Anna and Bob talk.", named) == 0


def test_swapping_twice_changes_nothing() -> None:
    text = "#Person1# tells #Person2# that #Person1#'s bus is late."
    assert swap_speakers(swap_speakers(text, *TWO), *TWO) == text
    assert swap_speakers("Ann and Anna", "Ann", "Bo") == "Bo and Anna"


def test_planted_swap_turns_the_margin_round() -> None:
    right = value(RoleSwapMargin(), "#Person2# will bring #Person1# the folder.")
    wrong = value(RoleSwapMargin(), "#Person1# will bring #Person2# the folder.")
    # 5 bigrams each, three hold a tag: 100 against 2/5
    assert right == pytest.approx(60)
    assert wrong == pytest.approx(-60)
    assert RoleSwapMargin().with_reference("max") == RoleSwapMargin("mean")


def test_a_text_without_tags_has_no_margin() -> None:
    assert math.isnan(value(RoleSwapMargin(), "They talk."))
    assert math.isnan(value(RoleSwapMargin(), "#Person1# talks.", SILENT))


@pytest.mark.parametrize(
    "metric", [LengthRatio(), CopyRate(), NovelNgrams(1), TagIntegrity(), SpeakerCoverage(), RoleSwapMargin()]
)
def test_the_order_of_rows_does_not_matter(metric: Metric) -> None:
    texts = ["#Person1# asks for the blue folder", "Person2 said the text"]
    forward = metric.segments(texts, [EXAMPLE, SILENT])[:, 0].tolist()
    backward = metric.segments(texts[::-1], [SILENT, EXAMPLE])[::-1, 0].tolist()
    assert str(forward) == str(backward)  # as text, since NaN is not equal to itself
