"""Dialogues to replies: every reply once, whole turns only, roles as documented, pairs as they were given."""

from __future__ import annotations

import gzip
import json
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.config.data_schema import TurnsConfig
from dialtune.data.dialogue import parse_dialogue
from dialtune.data.layouts import to_row
from dialtune.data.reading import DataSet, read_examples
from dialtune.data.turns import open_contexts, reply_data, reply_examples, whole_dialogue
from dialtune.errors import ConfigError, DataError
from dialtune.types import Example, Message

TALK = "Anna: Is it open?\nBen: Until nine.\nAnna: Thanks!\nBen: Any time."


def talk(text: str = TALK, name: str = "d") -> Example:
    return Example(name, parse_dialogue(text))


def chat(*turns: tuple[str, str], name: str = "c", reply: str | None = None, **meta: Any) -> Example:
    messages = tuple(Message(role, content) for role, content in turns)  # type: ignore[arg-type]
    return Example(name, messages, () if reply is None else (reply,), meta)


def shown(example: Example) -> tuple[list[tuple[str, str]], str]:
    return [(message.role[0], message.content) for message in example.messages], example.references[0]


def settings(**values: Any) -> TurnsConfig:
    return TurnsConfig.model_validate(values)


# whose turns


def test_every_turn_with_something_before_it_is_a_reply_to_it():
    pairs = reply_examples([talk()])
    assert [shown(pair) for pair in pairs] == [
        ([("u", "Is it open?")], "Until nine."),
        ([("a", "Is it open?"), ("u", "Until nine.")], "Thanks!"),
        ([("u", "Is it open?"), ("a", "Until nine."), ("u", "Thanks!")], "Any time."),
    ]
    assert [pair.id for pair in pairs] == ["d#1", "d#2", "d#3"]
    assert [(pair.meta["dialogue"], pair.meta["turn"]) for pair in pairs] == [("d", 1), ("d", 2), ("d", 3)]
    assert all(message.speaker is None for pair in pairs for message in pair.messages)


@pytest.mark.parametrize(
    ("speaker", "places"),
    [("both", [1, 2, 3]), ("first", [2]), ("second", [1, 3]), ("Anna", [2]), ("anna", [2]), ("Ben", [1, 3])],
)
def test_one_speaker_can_be_chosen(speaker, places):
    assert [pair.meta["turn"] for pair in reply_examples([talk()], settings(speaker=speaker))] == places


def test_a_hash_tag_may_be_given_with_or_without_its_hashes():
    person = talk("#Person1#: Hi.\n#Person2#: Hello.\n#Person1#: Bye.")
    for tag in ("#Person2#", "Person2", "person2"):
        assert [pair.references for pair in reply_examples([person], settings(speaker=tag))] == [("Hello.",)]


def test_a_third_speaker_is_a_user_like_the_second():
    three = talk("Anna: Who is in?\nBen: Me.\nCleo: Me too.\nAnna: Good.")
    pairs = reply_examples([three], settings(speaker="Anna"))
    assert [shown(pair) for pair in pairs] == [([("a", "Who is in?"), ("u", "Me."), ("u", "Me too.")], "Good.")]


def test_lines_of_one_speaker_are_one_turn_and_so_is_a_line_without_a_tag():
    text = "Anna: Hi.\nAnna: Are you in?\nBen: Yes.\nBut not for long.\nBen: \nAnna: Ok."
    pairs = reply_examples([talk(text)])
    assert [shown(pair) for pair in pairs] == [
        ([("u", "Hi.\nAre you in?")], "Yes.\nBut not for long."),
        ([("a", "Hi.\nAre you in?"), ("u", "Yes.\nBut not for long.")], "Ok."),
    ]


def test_a_line_in_front_of_all_tags_sets_the_scene_and_is_never_learned():
    pairs = reply_examples([talk("In a shop\nAnna: Is it open?\nBen: Yes.")])
    assert [shown(pair) for pair in pairs] == [
        ([("u", "In a shop")], "Is it open?"),
        ([("u", "In a shop"), ("u", "Is it open?")], "Yes."),
    ]
    first = reply_examples([talk("In a shop\nAnna: Is it open?\nBen: Yes.")], settings(speaker="first"))
    assert [pair.references for pair in first] == [("Is it open?",)]


def test_untagged_turns_alternate():
    pairs = reply_examples([talk("Hi . __eou__ Hello . __eou__ Bye . __eou__")], settings(speaker="first"))
    assert [shown(pair) for pair in pairs] == [([("a", "Hi ."), ("u", "Hello .")], "Bye .")]


def test_a_chat_is_learned_from_its_assistant_and_keeps_its_system_message():
    turns = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    pairs = reply_examples([chat(*turns, reply="See you")], settings(system="Not this."))
    assert [shown(pair) for pair in pairs] == [
        ([("s", "Be brief."), ("u", "Hi")], "Hello"),
        ([("s", "Be brief."), ("u", "Hi"), ("a", "Hello"), ("u", "Bye")], "See you"),
    ]


def test_the_users_side_of_a_chat_can_be_learned_by_name():
    turns = (("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    pairs = reply_examples([chat(*turns)], settings(speaker="user"))
    assert [shown(pair) for pair in pairs] == [([("a", "Hi"), ("u", "Hello")], "Bye")]


def test_an_assistant_that_speaks_first_answers_nobody():
    assert reply_examples([chat(("system", "s"), ("assistant", "Welcome!"), ("user", "Hi"))]) == []


# window, system, share


def test_the_window_counts_whole_turns_and_the_system_message_is_none():
    pairs = reply_examples([talk()], settings(window=1, system="You sell tea."))
    assert [shown(pair) for pair in pairs] == [
        ([("s", "You sell tea."), ("u", "Is it open?")], "Until nine."),
        ([("s", "You sell tea."), ("u", "Until nine.")], "Thanks!"),
        ([("s", "You sell tea."), ("u", "Thanks!")], "Any time."),
    ]


def test_replies_of_a_long_dialogue_are_spread_over_it():
    long = talk("\n".join(f"{'AB'[i % 2]}: {i}" for i in range(101)))
    assert [pair.meta["turn"] for pair in reply_examples([long], settings(per_dialogue=4))] == [13, 38, 63, 88]
    assert len(reply_examples([long], settings(per_dialogue=1000))) == 100


def test_short_replies_are_context_and_none_to_learn(tmp_path):
    assert [shown(pair) for pair in reply_examples([talk()], settings(min_words=2))] == [
        ([("u", "Is it open?")], "Until nine."),
        ([("u", "Is it open?"), ("a", "Until nine."), ("u", "Thanks!")], "Any time."),
    ]
    rows = [{"prompt": "Open?", "completion": text} for text in ("Yes.", "Until nine.")]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [pair.references for pair in reply_examples(read_examples(path).examples, settings(min_words=2))] == [
        ("Until nine.",)
    ]
    with pytest.raises(DataError) as caught:
        reply_data(DataSet("talks.jsonl", "", "dialogue", (talk(),)), settings(min_words=9))
    assert str(caught.value) == (
        "data.turns.min_words: got 9, and no reply in talks.jsonl has as many words; set fewer, or null"
    )


# pairs as they were given


def test_a_prompt_with_its_completion_stays_one_pair_under_its_own_id(tmp_path):
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [
        {"id": "p1", "prompt": "Is it open?", "completion": "Until nine."},
        {"id": "p2", "prompt": [*prompt, {"role": "user", "content": "Bye"}], "completion": "See you"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = reply_examples(read_examples(path).examples, settings(window=2))
    assert [(pair.id, *shown(pair)) for pair in pairs] == [
        ("p1", [("u", "Is it open?")], "Until nine."),
        ("p2", [("a", "Hello"), ("u", "Bye")], "See you"),
    ]
    assert [(pair.meta["dialogue"], pair.meta["turn"]) for pair in pairs] == [("p1", 1), ("p2", 3)]


def test_a_prompt_without_a_completion_is_a_context_without_a_reference(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Hi there"}\n')
    data = reply_data(read_examples(path))
    assert (data.references, data.counts["without_reference"]) == ((0, 0), 1)
    assert data.examples[0].messages == (Message("user", "Hi there"),)


def test_a_messages_file_gives_every_assistant_turn_and_sharegpt_too(tmp_path):
    said = [("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4")]
    messages = {"messages": [{"role": role, "content": text} for role, text in said]}
    names = {"user": "human", "assistant": "gpt"}
    sharegpt = {"conversations": [{"from": names[role], "value": text} for role, text in said]}
    for row in (messages, sharegpt):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(row) + "\n")
        pairs = reply_examples(read_examples(path).examples)
        assert [pair.references for pair in pairs] == [("2",), ("4",)]


def test_a_summary_is_no_reply(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"id": "r", "dialogue": TALK, "summary": "They talk."}) + "\n")
    pairs = reply_examples(read_examples(path).examples)
    assert [pair.references for pair in pairs] == [("Until nine.",), ("Thanks!",), ("Any time.",)]
    assert all("reference_names" not in pair.meta for pair in pairs)


def test_replies_written_to_a_file_read_back_as_the_same_replies(tmp_path):
    pairs = reply_examples([talk()], settings(window=2, system="You sell tea."))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(to_row(pair)) + "\n" for pair in pairs))
    again = reply_examples(read_examples(path).examples)
    assert again == pairs
    assert [pair.meta["dialogue"] for pair in again] == ["d"] * 3


# what is said next


@pytest.mark.parametrize(
    ("example", "chosen", "messages"),
    [
        (talk(), {}, "auau"),  # Anna speaks next
        (talk(TALK + "\nAnna: Bye."), {}, "uauau"),
        (talk(), {"speaker": "Ben"}, "uaua"),
        (talk(), {"speaker": "first", "window": 2}, "au"),
        (chat(("user", "Hi")), {"system": "Be kind."}, "su"),
        (chat(("user", "Hi"), reply="Hello"), {}, "u"),
        (chat(("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")), {}, "uau"),
        (chat(("user", "Hi"), reply="Hello", layout="prompt_completion"), {}, "u"),
    ],
)
def test_an_open_context_waits_for_its_next_turn(example, chosen, messages):
    data = open_contexts(DataSet("d", "", "dialogue", (example,)), settings(**chosen))
    (context,) = data.examples
    assert (context.references, data.references) == ((), (0, 0))
    assert "".join(message.role[0] for message in context.messages) == messages


# the data set


def test_the_data_set_counts_dialogues_replies_and_what_had_none(tmp_path):
    path = tmp_path / "talk_train.txt"
    path.write_text("Hi . __eou__ Hello . __eou__\nAlone . __eou__\nOne __eou__ Two __eou__ Three\n")
    read = read_examples(path)
    data = reply_data(read)
    assert data.counts | {"dialogues": 3, "replies": 3, "dialogues without a reply": 1} == data.counts
    assert data.dialogues == read.examples
    assert (data.name, data.split, data.references) == ("talk_train.txt", "train", (1, 1))
    assert data.fingerprint != read.fingerprint


@pytest.mark.parametrize(
    "other",
    [{"window": 1}, {"speaker": "first"}, {"system": "s"}, {"per_dialogue": 1}, {"min_words": 2}],
    ids=lambda s: next(iter(s)),
)
def test_the_fingerprint_tells_other_settings_apart(other):
    read = DataSet("d", "", "dialogue", (talk(), talk(name="e")))
    data = reply_data(read)
    assert data.fingerprint == reply_data(DataSet("d", "", "dialogue", read.examples[::-1])).fingerprint
    assert data.fingerprint != reply_data(read, settings(**other)).fingerprint
    changed = DataSet("d", "", "dialogue", (talk(), talk(TALK + "?", "e")))
    assert data.fingerprint != reply_data(changed).fingerprint


def test_a_speaker_that_nobody_is_names_those_there_are():
    with pytest.raises(ConfigError) as caught:
        reply_data(DataSet("talks.jsonl", "", "dialogue", (talk(),)), settings(speaker="Anne"))
    assert str(caught.value) == (
        "data.turns.speaker: got 'Anne', who says nothing in talks.jsonl; allowed: both, first, second, assistant, or "
        "a speaker there: Anna, Ben"
    )


def test_data_without_any_reply_says_what_is_looked_for():
    with pytest.raises(DataError) as caught:
        reply_data(DataSet("a.txt", "", "dialogue", (talk("Alone."),)))
    assert str(caught.value) == (
        "a.txt: none of 1 rows holds a reply: a turn of anybody with another turn before it; is each row a whole "
        "dialogue? see: dialtune data stats"
    )


def test_no_dialogue_gives_no_reply():
    assert reply_examples([]) == []
    assert reply_examples([Example("x", (Message("user", " ", ""),)), chat(("user", "hi"))]) == []


def test_a_whole_dialogue_is_the_same_however_it_was_written():
    tagged, untagged = talk(), talk("Is it open?\nUntil nine.\nThanks!\nAny time.")
    roles = chat(("system", "s"), ("user", "Is it open?"), ("assistant", "Until nine."), ("user", "Thanks!"),
                 reply="Any time.")  # fmt: skip
    texts = [[turn.content for turn in whole_dialogue(one).messages] for one in (tagged, untagged, roles)]
    assert texts[0] == texts[1] == texts[2] == ["Is it open?", "Until nine.", "Thanks!", "Any time."]


# eou files


def test_a_line_without_the_mark_is_an_error_on_its_line(tmp_path):
    path = tmp_path / "d.txt.gz"
    path.write_bytes(gzip.compress(b"Hi . __eou__ Yo . __eou__\nNo mark here .\n\nBye . __eou__\n"))
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value).splitlines() == [
        f"{path}:2: no __eou__: a line of a text file is one dialogue, each turn of which ends in __eou__",
        f"{path}:3: blank line: expected a row",
    ]


def test_dailydialog_is_read_with_its_known_counts(shared_data: Path):
    data = reply_data(read_examples(shared_data / "dailydialog" / "dialogues_test.txt.gz"))
    # Counted without us: zcat … | awk -F__eou__ '{n += NF - 2} END {print NR, n}'
    assert (data.counts["dialogues"], data.counts["replies"], data.counts["dialogues without a reply"]) == (
        1000,
        6740,
        0,
    )


# properties

_TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=12)
_TURN = st.tuples(st.sampled_from(["Anna", "Ben", "Cleo"]), _TEXT)
_SETTINGS = st.builds(
    lambda speaker, window, system: settings(speaker=speaker, window=window, system=system),
    st.sampled_from(["both", "first", "second", "Anna"]), st.none() | st.integers(1, 5), st.none() | st.just("Sys"),
)  # fmt: skip


def _messages(turns: list[tuple[str, str]]) -> tuple[Message, ...]:
    return tuple(Message("user", text, tag) for tag, text in turns)


def _by_hand(turns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbouring lines of one speaker joined, written another way than the code does it."""
    return [(tag, "\n".join(text for _, text in group)) for tag, group in groupby(turns, key=lambda turn: turn[0])]


@given(st.lists(_TURN, min_size=1, max_size=12), _SETTINGS)
def test_no_turn_is_split_or_changed_and_every_reply_occurs_once(turns, chosen):
    whole = _by_hand(turns)
    pairs = reply_examples([Example("d", _messages(turns))], chosen)
    assert len({pair.id for pair in pairs}) == len(pairs)
    for pair in pairs:
        place = pair.meta["turn"]
        tag, text = whole[place]
        system = [m for m in pair.messages if m.role == "system"]
        context = pair.messages[len(system) :]
        assert [m.content for m in system] == ([chosen.system] if chosen.system else [])
        start = max(0, place - chosen.window) if chosen.window else 0
        assert [m.content for m in context] == [said for _, said in whole[start:place]]
        assert [m.role for m in context] == ["assistant" if who == tag else "user" for who, _ in whole[start:place]]
        assert pair.references == (text,)
        assert context[-1].role == "user"
    tags = list(dict.fromkeys(tag for tag, _ in whole))
    learned = {"both": tags, "first": tags[:1], "second": tags[1:2], "Anna": ["Anna"]}[chosen.speaker]
    assert [pair.meta["turn"] for pair in pairs] == [k for k, (tag, _) in enumerate(whole) if k and tag in learned]


@given(st.lists(_TEXT, min_size=2, max_size=12))
def test_two_speakers_alternate_in_every_context(texts):
    for pair in reply_examples([Example("d", tuple(Message("user", text, "") for text in texts))]):
        roles = [message.role for message in pair.messages]
        assert roles[::-1] == [("user", "assistant")[k % 2] for k in range(len(roles))]


@given(st.lists(_TURN, min_size=2, max_size=12), st.sampled_from(["Anna", "Ben"]))
def test_the_context_of_a_reply_begins_with_the_one_before_and_its_reply(turns, speaker):
    """What one forward per dialogue rests on: with one speaker and no window, each context extends the last."""
    pairs = reply_examples([Example("d", _messages(turns))], settings(speaker=speaker))
    for one, two in pairwise(pairs):
        begun = (*one.messages, Message("assistant", one.references[0]))
        assert two.messages[: len(begun)] == begun


@given(st.lists(_TURN, min_size=1, max_size=8), _SETTINGS)
def test_replies_of_replies_are_themselves(turns, chosen):
    pairs = reply_examples([Example("d", _messages(turns))], chosen)
    again = reply_examples(pairs, settings(window=chosen.window))
    assert again == pairs
    assert [pair.meta for pair in again] == [pair.meta for pair in pairs]


@given(st.text(max_size=200))
def test_any_text_gives_replies_or_none(text):
    example = Example("d", parse_dialogue(text))
    said = [message.content for message in whole_dialogue(example).messages]
    pairs = reply_examples([example])
    assert all(pair.references[0] in said for pair in pairs)
    assert len(pairs) == max(len(said) - 1, 0)
