"""The audit finds what was planted, and exactly what the README of the shared corpora lists."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialtune.data.audit import check, leaks, stats
from dialtune.data.dialogue import parse_dialogue
from dialtune.data.duplicates import clusters, jaccard, near_pairs, normal_form, plain_text, shingles
from dialtune.data.reading import read_examples
from dialtune.types import Example

VOCABULARY = [f"w{i}x" for i in range(3000)]


def dialogue(draw: random.Random, *, words: int = 100, name: str = "") -> Example:
    """Random words of a few frequent and many rare kinds, ten to a turn."""
    picked = [VOCABULARY[min(int(draw.expovariate(0.002)), 2999)] for _ in range(words)]
    turns = (f"#Person{1 + i % 2}#: {' '.join(picked[at : at + 10])}." for i, at in enumerate(range(0, words, 10)))
    return Example(name, parse_dialogue("\n".join(turns)))


def text_of(example: Example) -> list[str]:
    return " ".join(m.content for m in example.messages).split(" ")


def reworded(example: Example, draw: random.Random) -> Example:
    """Another case, other blanks and punctuation, other turns, other tags."""
    words = [
        draw.choice([str.upper, str.title, str])(word.strip(".")) + draw.choice(["", ",", " !"])
        for word in text_of(example)
    ]
    half = len(words) // 2
    return Example("x", parse_dialogue(f"Anna: {'  '.join(words[:half])} __eou__ #Person2# {' '.join(words[half:])}"))


def edited(example: Example, draw: random.Random) -> Example:
    """5 % of the words are replaced."""
    words = text_of(example)
    for at in draw.sample(range(len(words)), max(1, round(len(words) * 0.05))):
        words[at] = "other"
    return Example("x", parse_dialogue(" ".join(words)))


def test_planted_leaks_are_found_and_clean_dialogues_are_not() -> None:
    """D3: 100 exact, 100 reworded, 100 with 5 % of the words changed, among 5,000 clean ones."""
    draw = random.Random(0)
    train = [dialogue(draw, words=draw.randint(30, 200), name=f"t{i}") for i in range(5000)]
    victims = draw.sample(train, 300)
    test = [dialogue(draw, words=draw.randint(30, 200), name=f"clean{i}") for i in range(500)]
    for i, victim in enumerate(victims):
        kind, make = [("exact", lambda e, _: e), ("reworded", reworded), ("near", edited)][i // 100]
        test.append(Example(f"{kind}{i}", make(victim, draw).messages))
    found = leaks({"train": train, "test": test})
    guilty, innocent = found.leaking["test", "train"], {e.id for e in test if e.id.startswith("clean")}
    hits = {kind: sum(row.startswith(kind) for row in guilty) for kind in ("exact", "reworded", "near")}
    assert (hits["exact"], hits["reworded"]) == (100, 100)
    assert hits["near"] >= 95
    assert len(guilty & innocent) <= 0.01 * len(guilty)
    assert found.leaking["train", "test"] == {e.id for e, hit in zip(victims, range(300), strict=True) if hit < 200} | {
        e.id for i, e in enumerate(victims) if i >= 200 and f"near{i}" in guilty
    }
    assert found.across[0].right_exact == 200
    assert found.across[0].right_near == hits["near"]


@pytest.fixture(scope="module")
def corpora(shared_data: Path) -> dict[str, tuple[Example, ...]]:
    files = sorted([*shared_data.glob("dialogsum/*.jsonl.gz"), *shared_data.glob("dailydialog/*.txt.gz")])
    assert len(files) == 6
    names = [file.name.split(".")[1] if "sum" in file.name else f"{file.name[10:-7]}2" for file in files]
    return {name: read_examples(file).examples for name, file in zip(names, files, strict=True)}


def test_the_overlaps_listed_in_the_readme_are_found_exactly(corpora: dict[str, tuple[Example, ...]]) -> None:
    found = leaks(corpora)
    within = {one.name: (one.rows, one.unique) for one in found.within}
    assert within["train"] == (12_460, 11_312)
    exact = {}
    for one in found.across:
        exact[one.left, one.right], exact[one.right, one.left] = one.left_exact, one.right_exact
    listed = {
        ("dev", "train"): 53, ("test", "train"): 1, ("test", "dev"): 7,
        ("train2", "train"): 6640, ("train2", "test"): 323, ("validation2", "train2"): 123, ("train2", "test2"): 173,
        ("validation2", "test"): 29, ("test2", "test"): 28, ("test", "train2"): 269,
    }  # fmt: skip
    assert {pair: exact[pair] for pair in listed} == listed
    near = next(one for one in found.across if {one.left, one.right} == {"dev", "train"})
    assert near.left_near + near.right_near > 50  # the exact figures are not the whole story


@given(st.lists(st.lists(st.sampled_from("abcdefg"), min_size=0, max_size=12).map(" ".join), max_size=12))
@settings(max_examples=150, deadline=None)
def test_clusters_join_exact_copies_and_every_reported_pair_is_above_the_threshold(texts: list[str]) -> None:
    roots = clusters(texts)
    for i, one in enumerate(texts):
        for j, two in enumerate(texts):
            if normal_form(one) and normal_form(one) == normal_form(two):
                assert roots[i] == roots[j]
    for i, j, score in near_pairs(texts):
        grams = [{tuple(t.split()[k : k + 3]) for k in range(max(len(t.split()) - 2, 1))} for t in (texts[i], texts[j])]
        assert score == pytest.approx(len(grams[0] & grams[1]) / len(grams[0] | grams[1]))
        assert score >= 0.6
        assert roots[i] == roots[j]


def test_jaccard_of_a_case_by_hand() -> None:
    one, two = shingles("a b c d e"), shingles("a b c d f")
    assert jaccard(one, two) == 2 / 4  # abc bcd | cde cdf
    assert jaccard(one, one) == 1.0


def test_minhash_proposes_pairs_as_often_as_the_theory_says() -> None:
    """1 - (1 - s^4)^32 for s near 0.75, over 400 pairs: 0.99999 expected, so none is missed."""
    draw = random.Random(1)
    texts: list[str] = []
    for _ in range(400):
        words = [draw.choice(VOCABULARY) for _ in range(60)]
        other = list(words)
        for at in (5, 25, 45):
            other[at] = "changed"
        texts += [" ".join(words), " ".join(other)]
    assert {(i, j) for i, j, _ in near_pairs(texts)} == {(i, i + 1) for i in range(0, 800, 2)}


def test_a_thousand_near_copies_do_not_cost_a_million_comparisons() -> None:
    base = [f"b{i}" for i in range(16)]
    texts = [" ".join([*base, f"n{i}"]) for i in range(3000)]
    assert set(clusters(texts)) == {0}


def test_dialogues_without_letters_are_equal_to_nothing_and_other_scripts_are_compared() -> None:
    rows = [
        Example(str(i), parse_dialogue(text)) for i, text in enumerate(["...", "!!!", "你好吗", "你好吗 ！", "再见"])
    ]
    found = leaks({"a": rows[:3], "b": rows[3:]})
    assert (found.within[0].unique, found.across[0].left_exact, found.across[0].right_exact) == (3, 1, 1)


def test_the_normal_form_drops_tags_case_blanks_and_punctuation() -> None:
    one = Example("1", parse_dialogue("#Person1#: It's 10:30!\n#Person2#: Thanks, #Person1#."))
    two = Example("2", parse_dialogue("It ' s 10 : 30 ! __eou__ thanks , . __eou__"))
    assert normal_form(plain_text(one)) == normal_form(plain_text(two)) == "its1030thanks"


def test_stats_are_right_for_a_case_by_hand() -> None:
    rows = [
        Example("1", parse_dialogue("Anna: a b c\nBen: d"), ("x y",)),
        Example("2", parse_dialogue("Anna: A B C.\nBen: d"), ("x", "y z")),
    ]
    found = stats(rows)
    assert (found.examples, found.unique_dialogues, found.references) == (2, 1, (1, 2))
    assert found.speakers == {"Anna": 2, "Ben": 2}
    assert found.distributions["words per dialogue"] == dict.fromkeys(("mean", "min", "p5", "p50", "p95", "max"), 4.0)
    assert found.distributions["words per reference"]["mean"] == pytest.approx(5 / 3)


def test_check_counts_what_breaks_a_text_rule(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    texts = [
        "a\\u0000b",
        "a\\u0007",
        "a\\u202eb",
        "a\\u200bb",
        "<b>x</b>",
        "&amp;",
        "e\\u0301",
        "\\ufffd",
        "Person1 said",
        "3 < 5",
        "cafe",
    ]
    path.write_text("\n".join(f'{{"dialogue": "Anna: {text}", "summary": "Fine."}}' for text in [*texts, "cafe"]))
    found, bad = check(path)
    assert found.text == {
        "NUL": 1, "control characters": 1, "bidi controls": 1, "zero-width characters": 1, "HTML tags or entities": 2,
        "replacement characters": 1, "not NFC": 1, "near-miss speaker tags": 1,
    }  # fmt: skip
    assert (found.rows, found.duplicates, found.references, bad.count) == (12, 3, (1, 1), 0)


def test_check_reports_bad_rows_by_kind(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"dialogue": "Anna: a"}\n{\n\n{"dialogue": "Anna:"}\n{"dialogue": "Anna: a"}\n')
    found, bad = check(path)
    assert found.bad == {"blank line": 1, "empty dialogue": 1, "not valid JSON": 1}
    assert [problem.split(":")[1] for problem in found.problems] == ["2", "3", "4"]
    assert (found.rows, found.without_reference, bad.count) == (5, 2, 3)


def test_near_duplicates_do_not_depend_on_the_hash_seed_of_the_process() -> None:
    program = "from dialtune.data.duplicates import shingles; print(shingles('a b c d e f').tolist())"
    runs = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(runs) == 1
