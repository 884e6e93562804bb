"""The packaged dialogues: counts, faithfulness of form, diversity, and nothing borrowed."""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from dialtune.data.audit import leaks
from dialtune.data.corpus import KINDS, blunt_summary, of_kind, packaged, packaged_splits
from dialtune.data.dialogue import near_miss_tags, parse_dialogue, render_dialogue
from dialtune.data.duplicates import near_pairs, plain_text
from dialtune.data.reading import PACKAGED, DataSet, read_examples
from dialtune.errors import ConfigError
from dialtune.types import Example

ASSETS = PACKAGED.parent
ROWS = [json.loads(line) for line in (ASSETS / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()]
WORD = re.compile(r"[a-z0-9']+")
INSULTS = """
idiot moron liar lying pathetic stupid dumb bastard damn crap shut screw hell jerk bitch clown loser useless
worthless fool asshole ass imbecile scum parasite coward weasel creep rat slob oaf cow snob leech vulture brat
swindler crook buffoon bum fibber pipsqueak numskull numbskull goat muppet bully ox blockhead shrew crone
fraud fishwife dingbat slacker deadbeat hyena viper miser pig swine hag slumlord bloodsucker git fossil wretch
ninny nitwit plonker jackass dunce airhead baboon toad turd toerag dolt upstart pest dipstick numpty bozo bag
bonehead fart prick twerp scumbag peacock lout brute clot squirt
"""
HARSH = re.compile(rf"\b({'|'.join(INSULTS.split())})(s|es)?\b", re.IGNORECASE)
FILLERS = "a an the of in on for to at with and or about from by over that is was"
STOP = frozenset(FILLERS.split())


@pytest.fixture(scope="module")
def splits() -> dict[str, DataSet]:
    return packaged_splits()


def words(text: str) -> list[str]:
    return WORD.findall(re.sub(r"#Person\d+#", " ", text).lower().replace("’", "'"))


def sentences(text: str) -> list[tuple[str, ...]]:
    """Sentences of at least six words, tags and names in front removed."""
    turns = [message.content for message in parse_dialogue(text)]
    found = (tuple(words(part)) for turn in turns for part in re.split(r"(?<=[.!?;])\s+|\s[.!?;]\s*", turn))
    return [sentence for sentence in found if len(sentence) >= 6]


def test_the_splits_hold_160_40_and_60_dialogues(splits: dict[str, DataSet]) -> None:
    assert {name: len(data.examples) for name, data in splits.items()} == {"train": 160, "validation": 40, "test": 60}
    assert all(data.references == (1, 1) and data.split == name for name, data in splits.items())


def test_there_are_enough_heated_dialogues_and_controls(splits: dict[str, DataSet]) -> None:
    kinds = {name: Counter(e.meta["kind"] for e in data.examples) for name, data in splits.items()}
    assert all(set(counts) == set(KINDS) for counts in kinds.values())
    assert sum(counts["heated"] for counts in kinds.values()) >= 110
    assert kinds["test"]["heated"] >= 32
    assert sum(counts["control"] for counts in kinds.values()) >= 20


def test_rows_have_exactly_the_fields_of_their_kind() -> None:
    common = {"id", "split", "kind", "scenario", "dialogue", "summary"}
    extra = {"plain": set(), "heated": {"summary_blunt"}, "control": {"control"}}
    assert all(set(row) == common | extra[row["kind"]] for row in ROWS)
    assert {row["control"] for row in ROWS if row["kind"] == "control"} == {"identity", "illness", "quoted"}
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert [row["id"] for row in ROWS] == sorted(row["id"] for row in ROWS)


def test_dialogues_have_4_to_14_turns_2_to_4_speakers_and_round_trip() -> None:
    for row in ROWS:
        turns = parse_dialogue(row["dialogue"])
        assert 4 <= len(turns) <= 14, row["id"]
        assert all(turn.speaker and turn.content for turn in turns), row["id"]
        assert 2 <= len({turn.speaker for turn in turns}) <= 4, row["id"]
        assert render_dialogue(turns) == row["dialogue"], row["id"]
        assert not near_miss_tags(row["dialogue"] + row["summary"]), row["id"]


def test_summaries_are_short_and_name_only_speakers_who_are_there() -> None:
    for row in ROWS:
        speakers = {turn.speaker for turn in parse_dialogue(row["dialogue"])}
        for text in filter(None, (row["summary"], row.get("summary_blunt"))):
            assert 10 <= len(text.split()) <= 60, row["id"]
            assert set(re.findall(r"#Person\d+#", text)) <= speakers, row["id"]
        assert row.get("summary_blunt") != row["summary"], row["id"]


def test_blunt_summaries_repeat_the_offence_and_civil_ones_do_not() -> None:
    heated = [row for row in ROWS if row["kind"] == "heated"]
    assert sum(bool(HARSH.search(row["summary_blunt"])) for row in heated) >= 0.97 * len(heated)
    assert [row["id"] for row in heated if HARSH.search(row["summary"])] == []


def test_the_dialogues_are_diverse() -> None:
    texts = [words(row["dialogue"]) for row in ROWS]
    for n, least in ((1, 0.10), (2, 0.50), (3, 0.80)):
        grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
        assert len(set(grams)) / len(grams) >= least, n
    openings = Counter(" ".join(words(parse_dialogue(row["dialogue"])[0].content)[:3]) for row in ROWS)
    assert openings.most_common(1)[0][1] <= 6
    starts = Counter(tuple(words(row["summary"])[:4]) for row in ROWS)
    assert starts.most_common(1)[0][1] <= 6


def test_no_two_dialogues_share_a_sentence_or_are_nearly_the_same() -> None:
    owners: dict[tuple[str, ...], set[str]] = {}
    for row in ROWS:
        for sentence in sentences(row["dialogue"]):
            owners.setdefault(sentence, set()).add(row["id"])
    assert {" ".join(s): sorted(ids) for s, ids in owners.items() if len(ids) > 1} == {}
    plain = [plain_text(Example(row["id"], parse_dialogue(row["dialogue"]))) for row in ROWS]
    assert list(near_pairs(plain, threshold=0.3)) == []


def test_no_dialogue_and_no_scenario_occurs_in_two_splits(splits: dict[str, DataSet]) -> None:
    assert not leaks({name: data.examples for name, data in splits.items()}).found
    seen = [(row["id"], row["split"], frozenset(words(row["scenario"])) - STOP) for row in ROWS]
    assert all(3 <= len(row["scenario"].split()) <= 9 for row in ROWS)
    alike = [
        (one[0], two[0])
        for at, one in enumerate(seen)
        for two in seen[at + 1 :]
        if one[1] != two[1] and len(one[2] & two[2]) / len(one[2] | two[2]) >= 0.5
    ]
    assert alike == []


def test_no_sentence_of_six_words_comes_from_dialogsum_or_dailydialog(shared_data: Path) -> None:
    ours = {sentence: row["id"] for row in ROWS for text in texts_of(row) for sentence in sentences(text)}
    borrowed: dict[str, str] = {}
    files = sorted([*shared_data.glob("dialogsum/*.jsonl.gz"), *shared_data.glob("dailydialog/*.txt.gz")])
    assert len(files) >= 6
    for file in files:
        for example in read_examples(file).examples:
            for text in (*(m.content for m in example.messages), *example.references):
                borrowed |= {" ".join(s): ours[s] for s in sentences(text) if s in ours}
    assert borrowed == {}


def texts_of(row: dict[str, str]) -> list[str]:
    return [row["dialogue"], row["summary"], row.get("summary_blunt", "")]


def test_the_packaged_name_gives_examples_with_what_the_later_jobs_need(splits: dict[str, DataSet]) -> None:
    data = splits["test"]
    assert packaged("test").fingerprint == read_examples("packaged:test").fingerprint == data.fingerprint
    heated = of_kind(data, "heated")
    assert heated
    assert all(blunt_summary(e) and e.references != (blunt_summary(e),) for e in heated)
    assert all(blunt_summary(e) is None for e in of_kind(data, "plain"))
    assert all(one.id < two.id for one, two in pairwise(data.examples))


def test_an_unknown_packaged_name_is_answered_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"got 'packaged:dev'; known: packaged:train, packaged:validation"):
        read_examples("packaged:dev")


def test_the_data_card_states_the_counts_that_are_there() -> None:
    card = (ASSETS / "DATA_CARD.md").read_text(encoding="utf-8")
    counts = Counter((row["split"], row["kind"]) for row in ROWS)
    for split in ("train", "validation", "test"):
        numbers = [counts[split, kind] for kind in KINDS]
        assert f"| {split} | {' | '.join(map(str, numbers))} | {sum(numbers)} |" in card
