"""The packaged chats: turns, masks, counts, no speaker in two splits; by hand, by property and on the real wheel."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.data import chitchat
from dialtune.data.audit import leaks
from dialtune.data.chitchat import SHARES, make_rows, mask_personal, split_speakers
from dialtune.data.reading import read_examples
from dialtune.errors import ConfigError, DataError, MissingExtraError

WHEEL = importlib.util.find_spec(chitchat.PACKAGE) is not None


@pytest.fixture
def wheel() -> None:
    if not WHEEL:
        pytest.skip("the wheel chitchat-dataset is not installed (requirements/offline.txt)")


def chat(*lines: tuple[str, str], **about: Any) -> dict[str, Any]:
    said = [[{"sender": who, "text": text, "timestamp": "2018-05-02T19:38:15Z"}] for who, text in lines]
    return {"messages": said, "start": "2018-05-02T19:38:15Z", **about}


def long_chat(one: str, two: str, **about: Any) -> dict[str, Any]:
    return chat(*[((one, two)[k % 2], f"{one} {two} {k}") for k in range(6)], **about)


# turns, masks, counts


def test_neighbouring_lines_are_one_turn_and_nothing_tells_who_or_when():
    lines = [("ann", "Hi"), ("ann", "  How are\nyou? "), ("bo", "Fine"), ("bo", " "), ("ann", "Good"), ("bo", "x"),
             ("ann", "y"), ("bo", "z")]  # fmt: skip
    found = make_rows({"c1": chat(*lines, prompt="Why?", ratings={"witty": 3, "upbeat": 5, "interesting": 10})})
    (row,) = found.rows["train"]
    assert row == {
        "id": "c1",
        "dialogue": "#Person1#: Hi How are you?\n#Person2#: Fine\n#Person1#: Good\n#Person2#: x\n#Person1#: y\n"
        "#Person2#: z",
        "split": "train",
        "topic": "Why?",
        "witty": 3,
        "interesting": 10,
        "upbeat": 5,
    }
    assert not {"ann", "bo", "2018-05-02T19:38:15Z"} & set(json.dumps(row).replace('"', " ").split())


def test_every_chat_is_counted_once():
    raw = {
        "short": chat(*[(who, "t") for who in "ababa"]),
        "alone": chat(("a", "hello"), ("a", "anyone?")),
        "one blank": chat(("a", "hello"), ("b", "  ")),
        "three": chat(*[(who, "t") for who in "abcabc"]),
        "empty": chat(),
        "good": long_chat("a", "b"),
    }
    found = make_rows(raw)
    assert sum(len(rows) for rows in found.rows.values()) == 1
    assert found.counts == {
        "chats": 6, "lines": 21, "left out: blank lines": 1, "lines masked": 0, "left out: not two speakers": 4,
        "left out: fewer than 6 turns": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to ann.lee+x@mail.example.org.", "write to [email]."),
        ("see https://example.org/a?b=1#c now", "see [link] now"),
        ("go to www.example.com/x", "go to [link]"),
        ("it is Example.com? yes", "it is [link]? yes"),
        ("a.b.example.edu/path is down", "[link] is down"),
        ("@ann.lee and (@bo)", "[name] and ([name])"),
        ("I am party_gurl97 there", "I am [name] there"),
        ("(555) 010-2345", "[phone]"),
        ("555.010.2345 or 5550102345", "[phone] or [phone]"),
        ("call 555-0102!", "call [phone]!"),
        ("+49 170 1234567.", "[phone]."),
    ],
)
def test_what_tells_who_somebody_is_is_masked(text, masked):
    assert mask_personal(text) == masked
    assert mask_personal(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "2014-2016, 1910-1920", "3.141592653589793", "0101101001010", "1000000 times", "99.999999%", "4 8 15 16 23 42",
        "wait.what? ok...fine", "o_o u_u T_T", "5@home? no: 3 @ 4", "e.g. this", "10:30 - 11:45", "800 2200 300",
        "st.george", "version 1.2.3", "$1,000,000",
    ],
)  # fmt: skip
def test_numbers_years_and_faces_are_left_alone(text):
    assert mask_personal(text) == text


@given(st.text(max_size=80))
def test_masking_twice_changes_nothing_more(text):
    once = mask_personal(text)
    assert mask_personal(once) == once


# splits

_NAMES = st.sampled_from([f"s{k}" for k in range(12)])
_MEETINGS = st.dictionaries(
    st.tuples(_NAMES, _NAMES).filter(lambda pair: pair[0] < pair[1]), st.integers(1, 9), max_size=30
)


@given(_MEETINGS)
def test_every_speaker_has_one_split_whatever_the_order(meetings):
    found = split_speakers(meetings)
    assert set(found) == {speaker for pair in meetings for speaker in pair}
    assert set(found.values()) <= {"train", "validation", "test"}
    assert found == split_speakers(dict(reversed(meetings.items())))


def test_groups_that_never_met_lose_no_chat():
    meetings = {(f"a{k}", f"b{k}"): 1 for k in range(100)}
    found = split_speakers(meetings)
    assert all(found[one] == found[two] for one, two in meetings)
    assert Counter(found[one] for one, _ in meetings) == {"train": 87, "test": 8, "validation": 5}


def test_one_large_group_is_cut_where_few_met():
    """Ten cliques of five, each joined to the next by one chat: a held-out part is whole cliques."""
    cliques = [[f"{k}.{i}" for i in range(5)] for k in range(10)]
    meetings = {(a, b): 3 for clique in cliques for a in clique for b in clique if a < b}
    meetings |= {(f"{k}.4", f"{k + 1}.0"): 1 for k in range(9)}
    found = split_speakers(meetings, {"test": 0.09})
    lost = sum(n for (a, b), n in meetings.items() if found[a] != found[b])
    assert all(len({found[speaker] for speaker in clique}) == 1 for clique in cliques)
    assert Counter(found.values()) == {"train": 45, "test": 5}
    assert lost <= 2


def test_nobody_met_gives_no_speakers():
    assert split_speakers({}) == {}
    assert make_rows({}).rows == {"train": (), "validation": (), "test": ()}


# the wheel


def test_the_wheel_is_read_with_its_counts(wheel):
    found = chitchat.load_chats()
    sizes = {name: len(rows) for name, rows in found.rows.items()}
    left_out = {name: n for name, n in found.counts.items() if name.startswith("left out") and "lines" not in name}
    # 7,168 chats, 258,145 lines as the package says; two speakers in 4,017, at least 6 turns in 2,962 of these.
    assert (found.counts["chats"], found.counts["lines"]) == (7168, 258_145)
    assert found.counts["chats"] - left_out["left out: not two speakers"] == 4017
    assert 4017 - left_out["left out: fewer than 6 turns"] == 2962
    assert sum(sizes.values()) + left_out["left out: speakers of two splits"] == 2962
    assert left_out["left out: speakers of two splits"] <= 0.06 * 2962  # a split by hash alone loses a third
    for name, share in SHARES.items():
        assert sizes[name] == pytest.approx(share * 2962, rel=0.05)


def test_no_speaker_is_in_two_splits_of_the_wheel(wheel):
    """From the raw file, without the code under test: the senders of each split's chats."""
    raw = json.loads(chitchat.chitchat_file().read_bytes())
    senders = {
        name: {line["sender"] for row in rows for block in raw[row["id"]]["messages"] for line in block}
        for name, rows in chitchat.load_chats().rows.items()
    }
    assert min(map(len, senders.values())) > 50
    assert not senders["train"] & senders["test"]
    assert not senders["train"] & senders["validation"]
    assert not senders["validation"] & senders["test"]


def test_the_splits_are_sources_with_ratings_and_no_leaks(wheel):
    sets = {name: read_examples(f"chitchat:{name}") for name in ("validation", "test")}
    data = sets["test"]
    assert (data.name, data.split, data.layout) == ("chitchat:test", "test", "dialogue")
    assert data.counts["chats"] == 7168
    assert all(len(example.messages) >= 6 for example in data.examples)
    assert {message.speaker for example in data.examples for message in example.messages} == {"#Person1#", "#Person2#"}
    assert all(a.speaker != b.speaker for e in data.examples for a, b in pairwise(e.messages))
    rated = [example.meta for example in data.examples if "witty" in example.meta]
    assert len(rated) > 100
    assert all(1 <= meta[name] <= 10 for meta in rated for name in chitchat.RATINGS)
    assert not leaks({name: found.examples for name, found in sets.items()}).found


def test_all_splits_together_are_one_source_that_can_be_divided_again(wheel):
    everything = read_examples("chitchat")
    assert (everything.name, everything.split) == ("chitchat", "")
    part = read_examples("chitchat", split="validation")
    assert part.examples == read_examples("chitchat:validation").examples
    assert len(everything.examples) == sum(map(len, chitchat.load_chats().rows.values()))


def test_an_unknown_split_names_those_there_are():
    with pytest.raises(ConfigError) as caught:
        read_examples("chitchat:dev")
    assert str(caught.value) == (
        "data: got 'chitchat:dev'; known: chitchat, chitchat:train, chitchat:validation, chitchat:test"
    )


def test_without_the_wheel_the_message_says_what_to_install(monkeypatch):
    chitchat.load_chats.cache_clear()
    monkeypatch.setattr(chitchat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        read_examples("chitchat:train")
    assert str(caught.value) == (
        "chitchat: the packaged chats are not installed; run: pip install --no-deps chitchat-dataset==0.9.0"
    )


def test_another_file_under_that_name_is_refused(monkeypatch, tmp_path: Path):
    (tmp_path / chitchat.FILE).write_text("{}")

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(chitchat.importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(DataError, match=r"dataset\.json has sha256 44136fa355b3…, expected d2a5d0bf6acf…; it is not"):
        chitchat.chitchat_file()


def test_the_wheel_is_not_imported(wheel):
    code = "import sys\nfrom dialtune.data.chitchat import chitchat_file\nchitchat_file()\n"
    code += "assert 'chitchat_dataset' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
