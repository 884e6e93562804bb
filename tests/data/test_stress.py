"""Stress rows: where the turn goes, what the summaries gain, what is left out, and that splits stay apart."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.data.audit import leaks
from dialtune.data.controls import CONTROLS, GROUPS, controls_of
from dialtune.data.corpus import blunt_summary
from dialtune.data.dialogue import parse_dialogue
from dialtune.data.duplicates import normal_form
from dialtune.data.layouts import to_row
from dialtune.data.reading import read_examples
from dialtune.data.stress import (
    ToxicPair,
    build_controls,
    build_stress,
    dialogues_of,
    original_messages,
    paradetox_split,
    read_pairs,
    refuse_overlap,
    without_leaks,
)
from dialtune.data.toxic import addresses, spoken_rank, tidy, why_unusable
from dialtune.errors import ConfigError, DataError
from dialtune.types import Example, Message

SPLITS = ("train", "validation", "test")
PLACES = ["kitchen", "garden", "office", "station", "market", "bridge", "school", "harbor", "museum", "bakery"]
THINGS = ["lamp", "chair", "ticket", "parcel", "jacket", "bottle", "camera", "mirror", "basket", "ladder"]


def talk(number: int, references: int = 1) -> Example:
    """A dialogue of six turns with a question in turn 3 (index 2)."""
    place, thing = PLACES[number % 10], THINGS[number // 10 % 10]
    text = (
        f"#Person1#: Hello, this is call {number} about the {thing}.\n"
        f"#Person2#: You left the {thing} at the {place}, number {number}.\n"
        f"#Person1#: When can I fetch my {thing} from the {place}?\n"
        f"#Person2#: After {number} o'clock, the {place} is open.\n"
        f"#Person1#: Fine, I will be at the {place} then.\n"
        f"#Person2#: Goodbye until {number}."
    )
    summaries = tuple(f"#Person1# will fetch {thing} {number} from the {place}, {k}." for k in range(references))
    return Example(f"t{number}", parse_dialogue(text), summaries, {"layout": "dialogsum", "topic": place})


def pair(number: int) -> ToxicPair:
    place, thing = PLACES[number % 10], THINGS[number // 10 % 10]
    return ToxicPair(
        f"you are a stupid {thing} in the {place} {number} .", f"you are in the {place} {number}", "Mine", "CC0 1.0"
    )


TALKS = tuple(talk(number) for number in range(60))
PAIRS = tuple(pair(number) for number in range(200))


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# --- which split a sentence belongs to


@pytest.mark.parametrize(
    ("sentence", "bucket"),  # printf '%s' SENTENCE | sha256sum, then mod 10 with bc 1.07
    [
        ("shut up and sit down", 5),
        ("get out of my kitchen !", 2),
        ("that is rubbish .", 3),
        ("leave me alone , you clown", 8),
        ("you fool .", 9),
    ],
)
def test_the_split_of_a_sentence_is_its_sha256_modulo_ten(sentence: str, bucket: int) -> None:
    assert paradetox_split(sentence) == {8: "validation", 9: "test"}.get(bucket, "train")


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40), st.integers(0, 3))
def test_case_and_blanks_do_not_change_the_split(sentence: str, blanks: int) -> None:
    spaced = (" " * blanks).join(["", sentence.replace(" ", " \t "), ""])
    assert paradetox_split(spaced.upper()) == paradetox_split(sentence)
    assert ToxicPair(spaced.upper(), "").id == ToxicPair(sentence, "").id


# --- what may become a turn, and how it is typed


@pytest.mark.parametrize(
    ("toxic", "neutral", "reason"),
    [
        ("you are a fool today", "you are wrong today", ""),
        ("you fool you", "you are wrong", "too short"),
        ("you are a fool today", "you two", "too short"),
        (" ".join(["fool"] * 26), "you are wrong today", "too long"),
        (" ".join(["fool"] * 25), "you are wrong today", ""),
        ("You are a fool !", "you are a fool.", "rewrite changes nothing"),
        ("you are a fool and the", "you are wrong today", "cut off"),
        ('he said " you are a fool', "he said that I am wrong", "cut off"),
        ("you are a fool ( and more", "you are wrong today", "cut off"),
        ("you are such a fool d .", "you are wrong today", "cut off"),
        ("you are @someone a fool", "you are wrong today", "not plain words"),
        ("you are a foooool today", "you are wrong today", "not plain words"),
        ("you are 11 22 33 44 55 66 77", "you are wrong today", "not plain words"),
    ],
)
def test_what_cannot_be_a_turn_is_refused_with_the_reason(toxic: str, neutral: str, reason: str) -> None:
    assert why_unusable(ToxicPair(toxic, neutral)) == reason


@pytest.mark.parametrize(
    ("raw", "typed"),
    [
        ("i 'm not amused , you dolt !", "I'm not amused, you dolt!"),
        ("im late but dont you dare", "I'm late but don't you dare."),
        ("it isn 't over . i m warning you", "It isn't over. I'm warning you."),
        ("who are you ? ? !", "Who are you?"),
        ('he calls it " art " , what rubbish .', "He calls it 'art', what rubbish."),
        (", so what & who cares ...", "So what and who cares."),
        ("( honestly ) a mess", "(Honestly) a mess."),
        ("Dont touch McCoy", "Don't touch McCoy."),
    ],
)
def test_a_sentence_is_typed_like_a_turn_and_keeps_its_words(raw: str, typed: str) -> None:
    assert tidy(raw) == typed


@given(st.text(alphabet="abcdei .,!?'\"()&", max_size=60))
def test_tidying_keeps_every_letter_and_settles_at_once(text: str) -> None:
    typed = tidy(text)
    assert re.sub(r"[^a-z]|and", "", typed.lower()) == re.sub(r"[^a-z]|and", "", text.replace("&", "").lower())
    assert tidy(typed) == typed
    assert "\n" not in typed
    assert '"' not in typed


def test_sentences_that_speak_to_somebody_fit_better_than_those_of_the_web() -> None:
    ranks = [
        spoken_rank(text) for text in ("you clown", "what a mess", "he is a crook", "revert that edit , you clown")
    ]
    assert ranks == [0, 1, 2, 4]
    assert addresses("don 't lie")
    assert not addresses("the young man is late")


# --- the rows


def test_a_row_is_its_dialogue_with_one_more_turn_and_one_more_sentence_in_each_reference() -> None:
    source = [talk(number, references=3) for number in range(8)]
    made = build_stress(source, PAIRS, seed=0)
    assert [twin.id for twin in made.twins] == [example.meta["twin"] for example in made.examples]
    assert sorted(twin.id for twin in made.twins) == sorted(example.id for example in source)
    by_id = {one.id: one for one in PAIRS}
    for example, twin in zip(made.examples, made.twins, strict=True):
        stress = example.meta["stress"]
        used = by_id[stress["toxic"]]
        assert original_messages(example) == twin.messages
        assert example.messages[stress["place"]] == Message("user", tidy(used.toxic), stress["speaker"])
        assert len(example.references) == 3
        for text, old in zip(example.references, twin.references, strict=True):
            assert text.startswith(f"{old} ")
            assert text.endswith(f'"{tidy(used.neutral)}"')
        blunt = blunt_summary(example)
        assert blunt is not None
        assert blunt.replace(tidy(used.toxic), tidy(used.neutral)) == example.references[0] != blunt
        assert example.meta["kind"] == "heated"
        assert example.meta["topic"] == twin.meta["topic"]
        wanted = {"seed": 0, "source": "Mine", "licence": "CC0 1.0", "dialogue": twin.id}
        assert {key: stress[key] for key in wanted} == wanted


def test_the_speaker_of_the_turn_is_named_and_the_mention_varies() -> None:
    made = build_stress(TALKS, PAIRS, seed=0)
    mentions = [
        row.references[0].removeprefix(twin.references[0]) for row, twin in zip(made.examples, made.twins, strict=True)
    ]
    frames = Counter(re.sub(r'".*"|#Person\d#', "…", mention) for mention in mentions)
    assert len(frames) >= 4
    for example, mention in zip(made.examples, mentions, strict=True):
        stress = example.meta["stress"]
        assert re.findall(r"#Person\d#", mention) == [stress["speaker"], stress["listener"]]
        assert {stress["speaker"], stress["listener"]} == {"#Person1#", "#Person2#"}
    assert len({example.meta["stress"]["speaker"] for example in made.examples}) == 2


def test_a_question_in_both_forms_is_asked_and_one_in_one_form_is_said() -> None:
    asked = build_stress(TALKS[:1], [ToxicPair("who invited this moron ?", "who invited this man?")], seed=0)
    assert re.search(r' asks?( #Person\d#)?: "Who invited this man\?"$', asked.examples[0].references[0])
    said = build_stress(TALKS[:1], [ToxicPair("who invited this moron ?", "I did not invite him")], seed=0)
    assert "asks" not in said.examples[0].references[0]


def test_the_turn_is_never_first_last_or_between_a_question_and_its_answer() -> None:
    places = Counter(
        example.meta["stress"]["place"]
        for seed in range(20)
        for example in build_stress(TALKS, PAIRS, seed=seed).examples
    )
    assert set(places) == {2, 4}  # of 1..5, 3 follows the question, 1 the greeting, 5 precedes the farewell
    assert min(places.values()) > 400


TURNS = st.lists(
    st.tuples(st.sampled_from(["A", "B", "C", ""]), st.sampled_from(["Yes.", "Why?", "“Now?” ", "Well", ""])),
    min_size=4,
    max_size=9,
).filter(lambda turns: len({speaker for speaker, _ in turns} - {""}) >= 2)


@given(TURNS, st.integers(-3, 3))
def test_any_dialogue_of_two_speakers_takes_a_turn_inside(turns: list[tuple[str, str]], seed: int) -> None:
    messages = tuple(Message("user", content, speaker) for speaker, content in turns)
    (made,) = build_stress([Example("x", messages, ("They talk",))], PAIRS[:1], seed=seed).examples
    place, speaker = made.meta["stress"]["place"], made.meta["stress"]["speaker"]
    assert 1 <= place < len(messages)
    assert original_messages(made) == messages
    assert speaker in {"A", "B", "C"} - {made.meta["stress"]["listener"]}
    around = {messages[place - 1].speaker, messages[place].speaker} - {""}
    assert not around or speaker in around
    free = [gap for gap in range(1, len(messages)) if "?" not in messages[gap - 1].content]
    assert place in free or not free
    assert made.references[0].startswith("They talk. ")


def test_the_seed_decides_and_the_order_of_the_files_does_not() -> None:
    one = build_stress(TALKS, PAIRS, seed=0)
    two = build_stress(TALKS[::-1], PAIRS[::-1], seed=0)
    other = build_stress(TALKS, PAIRS, seed=1)
    assert one == two
    assert [to_row(example) for example in one.examples] == [to_row(example) for example in two.examples]
    assert [example.references for example in one.examples] != [example.references for example in other.examples]
    assert build_stress(TALKS, PAIRS, seed=0, rows=7).examples == one.examples[:7]


def test_no_dialogue_and_no_sentence_is_used_twice() -> None:
    twice = [*TALKS, *(Example(f"{e.id}b", e.messages, e.references) for e in TALKS)]
    made = build_stress(twice, [*PAIRS, *PAIRS, ToxicPair(PAIRS[0].toxic.rstrip(" ."), "you are here now")], seed=0)
    assert len(made.examples) == 60
    assert len({example.meta["stress"]["toxic"] for example in made.examples}) == 60
    assert made.counts["dialogues left out: repeats another"] == 60
    assert made.counts["toxic sentences left out: repeats another"] == 201


def test_dialogues_that_cannot_take_a_turn_are_left_out_and_counted() -> None:
    short = Example("a", TALKS[0].messages[:3], ("x",))
    silent = Example("b", tuple(Message("user", f"{m.content} b", "") for m in TALKS[1].messages), ("x",))
    alone = Example("c", tuple(Message("user", f"{m.content} c", "Ann") for m in TALKS[1].messages), ("x",))
    bare = Example("d", TALKS[2].messages)
    done = Example("e", TALKS[3].messages, ("x",), {"kind": "control"})
    made = build_stress([short, silent, alone, bare, done, TALKS[4]], PAIRS, seed=0)
    assert [example.id for example in made.examples] == ["t4-heated"]
    left_out = {key: count for key, count in made.counts.items() if key.startswith("dialogues")}
    assert left_out == {
        "dialogues left out: fewer than 4 turns": 1,
        "dialogues left out: fewer than two named speakers": 2,
        "dialogues left out: heated or control already": 1,
        "dialogues left out: no reference": 1,
    }


def test_sentences_in_words_of_these_dialogues_come_first() -> None:
    web = [
        ToxicPair(f"stop vandalizing article {n} , you fool .", f"please stop editing article {n}") for n in range(9)
    ]
    odd = [ToxicPair(f"you are a stupid zyzzyva quux {n} .", f"you are a zyzzyva quux {n}") for n in range(9)]
    good = [ToxicPair(f"you are a stupid fool at the {p} .", f"you will be at the {p}") for p in PLACES]
    made = build_stress(TALKS, [*web, *odd, *good], seed=0)
    ids = [example.meta["stress"]["toxic"] for example in made.examples]
    assert [{one.id for one in group} for group in (good, odd, web)] == [set(ids[:10]), set(ids[10:19]), set(ids[19:])]


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_uses_only_its_own_sentences_and_says_so(split: str) -> None:
    made = build_stress(TALKS, PAIRS, seed=0, split=split)
    by_id = {one.id: one for one in PAIRS}
    assert made.examples
    assert {paradetox_split(by_id[e.meta["stress"]["toxic"]].toxic) for e in made.examples} == {split}
    assert {example.meta["split"] for example in made.examples} == {split}


def test_a_sentence_that_differs_from_a_train_sentence_in_signs_only_is_not_used_for_test() -> None:
    forms = [f"you silly man go home{' !' * k}" for k in range(60)]
    splits = {paradetox_split(form) for form in forms}
    assert splits == set(SPLITS)
    pairs = [ToxicPair(form, "please go home now") for form in sorted(forms, key=paradetox_split)]  # test comes first
    (train,) = build_stress(TALKS, pairs, seed=0, split="train").examples
    assert train.meta["stress"]["toxic"] in {pair.id for pair in pairs if paradetox_split(pair.toxic) == "train"}
    with pytest.raises(ConfigError, match=r"0 of 60 are usable \(left out: another split 60\)"):
        build_stress(TALKS, pairs, seed=0, split="test")


# --- controls


def test_controls_are_sixteen_a_group_each_with_its_fact() -> None:
    assert Counter(control.group for control in CONTROLS) == dict.fromkeys(GROUPS, 16)
    assert len({control.id for control in CONTROLS}) == len({control.turn for control in CONTROLS}) == 64
    for control in CONTROLS:
        assert control.key in control.fact.lower().replace("{who}", "")
        assert control.key == control.key.lower()
        assert control.fact.count("{who}") >= 1
        assert re.search(rf"\b{control.key}\b", control.fact, re.IGNORECASE), control.fact
        assert control.turn == tidy(control.turn)
        assert 4 <= len(control.turn.split()) <= 16


def test_the_splits_divide_the_controls() -> None:
    parts = [controls_of(split) for split in SPLITS]
    assert [len(part) for part in parts] == [32, 16, 16]
    assert set().union(*parts) == set(CONTROLS) == set(controls_of())
    assert all(Counter(c.group for c in part).most_common()[-1][1] * 4 == len(part) for part in parts)


def test_a_control_row_gains_a_harmless_turn_and_its_fact_in_each_reference() -> None:
    source = [talk(number, references=2) for number in range(20)]
    made = build_controls(source, seed=3, split="test")
    assert Counter(example.meta["control"] for example in made.examples) == dict.fromkeys(GROUPS, 5)
    turns = {control.turn for control in controls_of("test")}
    for example, twin in zip(made.examples, made.twins, strict=True):
        stress, mention = example.meta["stress"], example.meta["mention"]
        assert example.messages[stress["place"]].content in turns
        assert example.references == tuple(f"{text} {mention}" for text in twin.references)
        assert stress["speaker"] in mention
        assert example.meta["mention_key"] in mention.lower()
        assert (example.meta["kind"], stress["dialogue"], example.meta["twin"]) == ("control", twin.id, twin.id)
        assert blunt_summary(example) is None


def test_controls_come_from_dialogues_that_no_heated_row_uses() -> None:
    made = build_stress(TALKS, PAIRS, seed=0, benign=0.25)
    assert (len(made.of_kind("heated")), len(made.of_kind("control"))) == (48, 12)
    assert len({example.meta["twin"] for example in made.examples}) == 60
    assert made.of_kind("heated") == build_stress(TALKS, PAIRS, seed=0).examples[:48]


# --- refusals


def test_dialogues_or_sentences_that_run_out_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as few:
        build_stress([*TALKS, Example("s", TALKS[0].messages[:2], ("x",))], PAIRS, seed=0, rows=61)
    assert str(few.value) == (
        "stress: 61 dialogues are needed, 60 of 61 are usable (left out: fewer than 4 turns 1); "
        "ask for fewer rows or bring more dialogues"
    )
    with pytest.raises(ConfigError, match="stress: 30 toxic sentences are needed, 20 of 20 are usable"):
        build_stress(TALKS, PAIRS[:20], seed=0, rows=30)
    with pytest.raises(ConfigError, match="stress: 65 dialogues are needed, 60 of 60 are usable"):
        build_stress(TALKS, PAIRS, seed=0, rows=52, benign=0.25)
    with pytest.raises(ConfigError, match="stress: 61 dialogues are needed"):
        build_controls(TALKS, seed=0, rows=61)
    with pytest.raises(ConfigError, match="stress: 1 dialogues are needed, 0 of 0 are usable"):
        build_stress([], PAIRS, seed=0)


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows: got 0; at least 1"):
        build_stress(TALKS, PAIRS, seed=0, rows=0)
    with pytest.raises(ConfigError, match="benign: got -1; control rows per heated row, 0 or more"):
        build_stress(TALKS, PAIRS, seed=0, benign=-1)
    for build in (
        lambda: build_stress(TALKS, PAIRS, seed=0, split="dev"),
        lambda: build_controls(TALKS, seed=0, split="dev"),
    ):
        with pytest.raises(ConfigError, match="split: got 'dev'; known: train, validation, test"):
            build()


def test_two_sets_that_share_a_dialogue_or_a_sentence_are_refused() -> None:
    one = build_stress(TALKS[:30], PAIRS[:50], seed=0).examples
    two = build_stress(TALKS[30:], PAIRS[50:], seed=0).examples
    refuse_overlap({"a": one, "b": two, "plain": TALKS[:0]})
    with pytest.raises(DataError, match="stress: a and b share 0 dialogues and 30 toxic sentences"):
        refuse_overlap({"a": one, "b": _all_of(50)})
    with pytest.raises(DataError, match="stress: a and plain share 30 dialogues and 0 toxic sentences"):
        refuse_overlap({"a": one, "plain": TALKS})


def _all_of(n: int) -> tuple[Example, ...]:
    """Rows on other dialogues that together use the first n sentences."""
    return build_stress([talk(number) for number in range(100, 100 + n)], PAIRS[:n], seed=0).examples


def test_dialogues_of_another_split_are_left_out_even_if_that_is_a_stress_set() -> None:
    near = Example("near", (*TALKS[7].messages[:-1], Message("user", "Goodbye then.", "#Person2#")), ("x",))
    stressed = build_stress(TALKS[:3], PAIRS, seed=0).examples
    kept, lost = without_leaks(TALKS[:20], {"stress": stressed, "near": [near], "none": []})
    assert lost == {"stress": 3, "near": 1, "none": 0}
    assert [example.id for example in kept] == [e.id for e in TALKS[3:20] if e.id != "t7"]


def test_a_source_gives_a_split_the_dialogues_that_are_its_own(tmp_path: Path) -> None:
    rows = [to_row(example) for example in TALKS]
    named = read_examples(write(tmp_path / "mine.dev.jsonl", rows))
    assert dialogues_of(named, "mine.dev.jsonl", "validation") == named.examples
    with pytest.raises(
        ConfigError, match=r"got 'test', but mine\.dev\.jsonl holds the validation dialogues by its name"
    ):
        dialogues_of(named, "mine.dev.jsonl", "test")
    whole = read_examples(write(tmp_path / "mine.jsonl", rows))
    parts = [dialogues_of(whole, "mine.jsonl", split) for split in SPLITS]
    assert [len(part) for part in parts] == [48, 6, 6]
    assert len({example.id for part in parts for example in part}) == 60
    column = read_examples(write(tmp_path / "c.jsonl", [{**row, "split": SPLITS[i % 3]} for i, row in enumerate(rows)]))
    assert [e.id for e in dialogues_of(column, "c.jsonl", "validation")] == [f"t{n}" for n in range(1, 60, 3)]
    only = read_examples(write(tmp_path / "o.jsonl", [{**row, "split": "train"} for row in rows]))
    with pytest.raises(ConfigError, match=r"no row of o\.jsonl has it in its column 'split'"):
        dialogues_of(only, "o.jsonl", "test")


# --- files


def test_rows_read_back_as_they_were_built(tmp_path: Path) -> None:
    made = build_stress([talk(n, references=1 + n % 3) for n in range(30)], PAIRS, seed=0, benign=0.5, split="train")
    path = write(tmp_path / "stress.jsonl", [to_row(example) for example in made.examples])
    back = read_examples(path)
    assert back.examples == made.examples
    for one, two in zip(back.examples, made.examples, strict=True):
        hidden = {"reference_names", "id_column"}
        assert {k: v for k, v in one.meta.items() if k not in hidden} == dict(two.meta)
        assert blunt_summary(one) == blunt_summary(two)
        assert original_messages(one) == original_messages(two)
    assert back.layout == "dialogsum"


PAIR_ROWS = [
    {"toxic": "you are a fool today", "neutral1": "YOU ARE A FOOL TODAY.", "neutral2": "you are wrong today"},
    {"toxic": "get out , you swine", "neutral1": "please leave the room", "neutral2": ""},
]


@pytest.mark.parametrize("name", ["p.tsv", "p.csv", "p.jsonl", "p.tsv.gz"])
def test_pairs_are_read_from_every_table_and_the_first_usable_rewrite_is_taken(tmp_path: Path, name: str) -> None:
    comma = "," if "csv" in name else "\t"
    lines = [comma.join(PAIR_ROWS[0]), *(comma.join(f'"{cell}"' for cell in row.values()) for row in PAIR_ROWS)]
    text = "\n".join(json.dumps(row) for row in PAIR_ROWS) if "json" in name else "\n".join(lines)
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    found = read_pairs(path)
    assert [(one.toxic, one.neutral) for one in found.pairs] == [
        ("you are a fool today", "you are wrong today"),
        ("get out , you swine", "please leave the room"),
    ]
    assert {(one.source, one.licence) for one in found.pairs} == {(name, "not stated")}
    assert read_pairs(path, licence="MIT").pairs[0].licence == "MIT"


def test_a_toxic_sentence_is_read_once(tmp_path: Path) -> None:
    rows = [
        {"toxic": text, "neutral": "please go now"} for text in ("Go , you fool", "go ,  YOU fool", "go away , fool")
    ]
    found = read_pairs(write(tmp_path / "p.jsonl", rows))
    assert found.counts == {"rows": 3, "pairs": 2, "repeated": 1}


def test_bad_rows_are_named_by_file_and_line(tmp_path: Path) -> None:
    rows = [
        {"toxic": "you are a fool today", "neutral": "you are wrong"},
        {"toxic": " ", "neutral": "you are wrong"},
        {"toxic": "you are a fool today", "neutral": ""},
        {"toxic": 7, "neutral": "you are wrong"},
        {"toxic": "you are a fool today"},
    ]
    path = write(tmp_path / "p.jsonl", rows)
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(DataError) as wrong:
        read_pairs(path)
    lines = str(wrong.value).splitlines()
    assert lines[:4] == [
        f"{path}:2: empty text: 'toxic' is blank",
        f"{path}:3: empty text: 'neutral' is blank",
        f"{path}:4: wrong type: 'toxic' should be text, got a number",
        f"{path}:5: missing column: 'neutral'; the row has: toxic",
    ]
    assert lines[4].startswith(f"{path}:6: not valid JSON")
    found = read_pairs(path, on_bad_rows="skip", max_bad_fraction=0.9)
    assert (len(found.pairs), found.counts["dropped: empty text"]) == (1, 2)
    with pytest.raises(DataError, match=r"more than max_bad_fraction 0\.5"):
        read_pairs(path, on_bad_rows="skip", max_bad_fraction=0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "toxic\tcivil\nyou fool\thello\nyou swine\tbye\n",
            r":2: missing column: 'neutral'; the row has: toxic, civil",
        ),
        (
            "text\tneutral\nyou fool\thello\nyou swine\tbye\n",
            r":2: missing column: 'toxic'; the row has: text, neutral",
        ),
        ("toxic\tneutral\n", ": no rows; expected the columns toxic, neutral"),
        ("", ": no rows; expected the columns toxic, neutral"),
    ],
)
def test_a_file_that_holds_no_pairs_is_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "p.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as wrong:
        read_pairs(path)
    assert len(str(wrong.value).splitlines()) == 1


@given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30)), max_size=6))
def test_any_table_gives_pairs_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.mktemp("any") / "p.jsonl"
    write(path, [{"toxic": one, "neutral": two} for one, two in cells])
    try:
        found = read_pairs(path)
    except DataError:
        assert not cells or any(not one.split() or not two.split() for one, two in cells)
    else:
        assert len(found.pairs) + found.counts["repeated"] == len(cells)
        assert all(one.toxic and one.neutral for one in found.pairs)


# --- the real corpora


def test_dialogsum_and_paradetox_give_disjoint_splits_of_the_sizes_that_the_benchmark_needs(shared_data: Path) -> None:
    pairs = read_pairs(shared_data / "paradetox" / "paradetox.tsv.gz")
    assert pairs.counts == {"rows": 11_927, "pairs": 11_927, "repeated": 0}
    assert {(one.source, one.licence) for one in pairs.pairs} == {("ParaDetox (Logacheva et al., ACL 2022)", "CC0 1.0")}
    shares = Counter(paradetox_split(one.toxic) for one in pairs.pairs)
    assert abs(shares["train"] / 11_927 - 0.8) < 0.015
    assert abs(shares["test"] / 11_927 - 0.1) < 0.015
    files = {"train": "train", "validation": "dev", "test": "test"}
    dialogues = {
        s: read_examples(shared_data / "dialogsum" / f"dialogsum.{f}.jsonl.gz").examples for s, f in files.items()
    }
    kept = dict(dialogues)
    kept["validation"], lost = without_leaks(dialogues["validation"], {"test": dialogues["test"]}, near=False)
    assert lost == {"test": 7}
    kept["train"], lost = without_leaks(
        dialogues["train"], {s: dialogues[s] for s in ("validation", "test")}, near=False
    )
    assert lost["test"] >= 1
    assert lost["validation"] >= 53
    wanted = {"train": 1_500, "validation": 100, "test": 300}
    made = {s: build_stress(kept[s], pairs.pairs, seed=0, rows=n, split=s, benign=0.25) for s, n in wanted.items()}
    refuse_overlap({split: one.examples for split, one in made.items()})
    twins = {split: one.twins for split, one in made.items()}
    assert not leaks(twins, near=False).found
    forms = {split: {normal_form(text) for text in _turns(one.of_kind("heated"))} for split, one in made.items()}
    assert not forms["train"] & forms["validation"]
    assert not forms["train"] & forms["test"]
    assert not forms["validation"] & forms["test"]
    assert all(len(example.references) == 3 for example in made["test"].examples)


def _turns(examples: tuple[Example, ...]) -> list[str]:
    return [example.messages[example.meta["stress"]["place"]].content.lower() for example in examples]


def test_no_control_turn_comes_from_the_corpora(shared_data: Path) -> None:
    ours = {normal_form(control.turn.lower()) for control in CONTROLS}
    for path in sorted(shared_data.glob("dialogsum/*.jsonl.gz")):
        for example in read_examples(path).examples:
            assert ours.isdisjoint(normal_form(message.content.lower()) for message in example.messages)
