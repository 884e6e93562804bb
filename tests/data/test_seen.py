"""Fingerprints of training dialogues: what they find, held against the audit that reads both sides; files, faults."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialtune.data import seen as module
from dialtune.data.audit import leaks
from dialtune.data.dialogue import parse_dialogue
from dialtune.data.reading import read_examples
from dialtune.data.seen import Seen, find_seen, fingerprint_dialogues, read_seen, sketch_jaccard, write_seen
from dialtune.data.turns import reply_examples
from dialtune.errors import DataError
from dialtune.types import Example, Message

WORDS = [f"w{k}" for k in range(400)]


def talk(name: str, *turns: str) -> Example:
    return Example(name, parse_dialogue("\n".join(f"#Person{1 + k % 2}#: {turn}" for k, turn in enumerate(turns))))


def random_talks(n: int, seed: int, words: int = 60) -> list[Example]:
    draw = random.Random(seed)
    return [talk(f"{seed}.{k}", *[" ".join(draw.choices(WORDS, k=words // 4)) for _ in range(4)]) for k in range(n)]


def changed(example: Example, share: float, seed: int) -> Example:
    """The dialogue with a share of its words replaced."""
    draw = random.Random(seed)
    turns = [
        " ".join(draw.choice(WORDS) if draw.random() < share else word for word in message.content.split())
        for message in example.messages
    ]
    return talk(f"{example.id}~", *turns)


def by_both(trained: list[Example], tested: list[Example]) -> tuple[frozenset[str], frozenset[str]]:
    """(what the fingerprints find, what the audit of both texts finds)."""
    found = find_seen(fingerprint_dialogues(trained, "t", "f"), tested)
    return found.ids, leaks({"a": trained, "b": tested}).leaking["b", "a"]


# what is found


def test_a_copy_is_found_whatever_its_tags_case_and_punctuation():
    trained = [talk("t", "It's ten past nine!", "Thanks, bye.")]
    same = Example("copy", (Message("user", "its TEN past nine", ""), Message("user", "thanks bye", "")))
    chat = Example("chat", (Message("system", "Be kind."), Message("user", "It's ten past nine")), ("Thanks - bye!",))
    found = find_seen(fingerprint_dialogues(trained), [same, chat, talk("other", "It's ten past eight!", "Ok.")])
    assert (found.exact, found.near) == ({"copy", "chat"}, set())
    assert (found.trained_exact, found.trained_near) == (1, 0)


def test_near_copies_are_those_that_the_audit_finds():
    trained = random_talks(120, seed=1)
    tested = [changed(one, share, seed=k) for k, one in enumerate(trained) for share in (0.0, 0.03, 0.08, 0.2)]
    tested = [Example(f"{k}", one.messages) for k, one in enumerate(tested)] + random_talks(50, seed=2)
    found, audited = by_both(trained, tested)
    assert found == audited
    assert 200 < len(found) < 400


def test_long_dialogues_are_told_from_a_part_of_their_ngrams():
    trained = random_talks(40, seed=3, words=1200)
    clear = [changed(one, share, seed=k) for k, one in enumerate(trained) for share in (0.01, 0.5)]
    clear = [Example(f"{k}", one.messages) for k, one in enumerate(clear)]
    found, audited = by_both(trained, clear)
    assert found == audited == {f"{k}" for k in range(0, 80, 2)}


def test_replies_are_audited_by_what_was_said_in_all_of_them():
    trained = random_talks(3, seed=4)
    pairs = reply_examples([trained[0]])
    found = find_seen(fingerprint_dialogues(trained), pairs)
    assert pairs[-1].id in found.exact


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from(["a b c", "b c d", "", "e", "!"]), max_size=4), max_size=6))
def test_exact_copies_are_the_audits_for_any_rows(rows):
    examples = [Example(str(k), tuple(Message("user", text, "") for text in turns)) for k, turns in enumerate(rows)]
    half = len(examples) // 2
    found = find_seen(fingerprint_dialogues(examples[:half]), examples[half:])
    audit = leaks({"a": examples[:half], "b": examples[half:]}).across[0]
    assert (len(found.exact), found.trained_exact) == (audit.right_exact, audit.left_exact)
    assert (len(found.near), found.trained_near) == (audit.right_near, audit.left_near)


def test_nothing_leaks_into_nothing():
    empty = fingerprint_dialogues([])
    assert find_seen(empty, random_talks(2, seed=5)).ids == frozenset()
    assert find_seen(fingerprint_dialogues(random_talks(2, seed=5)), []).ids == frozenset()


def test_dialogsum_test_holds_269_dialogues_of_dailydialog_train(shared_data: Path):
    """Numbers of ../shared/data/README.md and of `dialtune data leaks`, which read both sides."""
    trained = read_examples(shared_data / "dailydialog" / "dialogues_train.txt.gz")
    tested = read_examples(shared_data / "dialogsum" / "dialogsum.test.jsonl.gz")
    seen = fingerprint_dialogues(trained.examples, trained.name, trained.fingerprint)
    found = find_seen(seen, tested.examples)
    assert (len(found.exact), found.trained_exact) == (269, 323)
    assert found.ids == leaks({"a": trained.examples, "b": tested.examples}).leaking["b", "a"]


# the sketch


@given(st.sets(st.integers(0, 300), max_size=60), st.sets(st.integers(0, 300), max_size=60))
def test_sets_smaller_than_the_sketch_are_compared_in_full(one, two):
    arrays = [np.array(sorted(items), dtype=np.uint64) for items in (one, two)]
    expected = len(one & two) / max(len(one | two), 1)
    assert sketch_jaccard(*arrays, size=64) == pytest.approx(expected)


def test_the_sketch_of_large_sets_estimates_their_jaccard_without_bias():
    draw = np.random.default_rng(0)
    errors = []
    for _ in range(300):
        whole = draw.choice(2**32, size=1500, replace=False).astype(np.uint64)
        one, two = np.sort(whole[:1200]), np.sort(whole[300:])  # 900 of 1,500 are shared: 0.6
        errors.append(sketch_jaccard(one[:128], two[:128], size=128) - 0.6)
    assert abs(np.mean(errors)) < 0.01  # standard error of the mean 0.0025
    assert np.std(errors) == pytest.approx((0.6 * 0.4 / 128) ** 0.5, rel=0.25)


def test_a_large_corpus_keeps_fewer_hashes_of_each_dialogue(monkeypatch):
    monkeypatch.setattr(module, "MAX_HASHES", 200)
    few = fingerprint_dialogues(random_talks(10, seed=6, words=400))
    assert few.size == 20
    assert {len(sketch) for sketch in few.sketches} == {20}
    assert fingerprint_dialogues(random_talks(100, seed=6)).size == module.FEWEST
    assert len(find_seen(few, random_talks(10, seed=6, words=400)).exact) == 10


# files


def test_a_file_reads_back_as_it_was_written_and_holds_no_words(tmp_path: Path):
    talks = [talk("a", "Confidential rendezvous", "Understood"), talk("b", ""), *random_talks(3, seed=7)]
    seen = fingerprint_dialogues(talks, "train.jsonl", "f1")
    path = tmp_path / "trained_on.safetensors"
    write_seen(path, seen)
    again = read_seen(path)
    assert (again.size, again.sources, again.names) == (seen.size, seen.sources, "train.jsonl")
    assert np.array_equal(again.forms, seen.forms)
    assert all(np.array_equal(*pair) for pair in zip(again.sketches, seen.sketches, strict=True))
    assert seen.forms[1] == 0
    raw = path.read_bytes().lower()
    assert b"train.jsonl" in raw
    assert not [word for word in (b"confidential", b"rendezvous", b"understood") if word in raw]
    assert [file.name for file in tmp_path.iterdir()] == ["trained_on.safetensors"]
    write_seen(path, fingerprint_dialogues([]))
    assert read_seen(path).sketches == ()


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_that_is_none_is_one_line_with_a_way_out(tmp_path: Path, content: bytes):
    path = tmp_path / "trained_on.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_seen(path)
    assert str(caught.value).startswith(f"{path}: cannot be read as the fingerprints of training data: ")
    assert str(caught.value).endswith("delete it, and give the training rows themselves: --train FILE")
    assert "\n" not in str(caught.value)


def test_two_trainings_add_up_and_the_same_one_counts_once():
    one = fingerprint_dialogues(random_talks(3, seed=8), "a", "f1")
    two = fingerprint_dialogues(random_talks(2, seed=9), "b", "f2")
    both = one + two
    assert (len(both.forms), len(both.sketches), both.names) == (5, 5, "a, b")
    assert len((both + two).forms) == 5
    assert len((one + one).forms) == 3
    assert find_seen(both, random_talks(2, seed=9)).trained_exact == 2


def test_of_two_sketches_the_smaller_size_holds():
    long = random_talks(2, seed=10, words=800)
    one = fingerprint_dialogues(long, "a", "f1")
    two = Seen(one.forms, tuple(sketch[:16] for sketch in one.sketches), 16, ({"name": "b", "fingerprint": "f2"},))
    assert {len(sketch) for sketch in (one + two).sketches} == {16}
    near = [Example(f"n{k}", changed(example, 0.01, k).messages) for k, example in enumerate(long)]
    assert len(find_seen(one + two, near).near) == 2
