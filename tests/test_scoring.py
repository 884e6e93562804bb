"""Scoring files: every way a text may be written down, every scorer it may meet, every way a file can be wrong."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.data.reading import DataSet
from dialtune.errors import ConfigError, DataError
from dialtune.evaluation import evaluate_completions, write_evaluation
from dialtune.metrics.table import METRICS
from dialtune.results import ModelInfo
from dialtune.scoring import FoundText, matched, read_texts, score_file
from dialtune.types import Completion, Example, Message

DIALOGUES = [
    {"id": f"d{i}", "dialogue": f"#Person1#: I have {i} apples.\n#Person2#: Good.", "summary": f"{i} apples are good."}
    for i in range(4)
]


class Loud:
    """Log-odds by the number of exclamation marks."""

    name = "loud"

    def logits(self, texts):
        return np.array([float(text.count("!")) - 1 if "nan" not in text else math.nan for text in texts])

    def settings(self):
        return {}


@pytest.fixture(autouse=True)
def scorers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str | None]]:
    """Which scorers were asked for; nothing is opened."""
    calls: list[tuple[str, str | None]] = []

    def find(name: str, *, label: str | None = None) -> Loud:
        calls.append((name, label))
        return Loud()

    monkeypatch.setattr("dialtune.scoring.find_scorer", find)
    monkeypatch.chdir(tmp_path)
    return calls


def write(name: str, *rows: dict[str, Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def texts(path: str | Path) -> list[str]:
    return [row.text for row in read_texts(path)]


# reading


def test_any_other_file_is_one_text_a_line_and_an_empty_line_an_empty_text() -> None:
    Path("a.txt").write_bytes("one\r\n\n  two \u2028 still two\nthree".encode())
    assert texts("a.txt") == ["one", "", "  two \u2028 still two", "three"]
    Path("predictions").write_text("x\n")
    assert read_texts("predictions") == [FoundText(None, "x")]


@pytest.mark.parametrize("key", ["text", "completion", "prediction", "summary"])
def test_rows_hold_their_text_under_one_of_four_names(key: str) -> None:
    write("a.jsonl", {"id": 7, key: "x", "dialogue": "A: hi"}, {key: "y"})
    assert read_texts("a.jsonl") == [FoundText("7", "x"), FoundText(None, "y")]


def test_gz_and_csv_and_json_arrays_are_read_too() -> None:
    Path("a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    Path("a.txt.gz").write_bytes(gzip.compress("é\nb\n".encode()))
    Path("a.csv").write_text("id,summary\n1,hello\n2,\n")
    Path("a.json").write_text('[{"text": "x"}, {"text": "y"}]')
    assert texts("a.jsonl.gz") == ["x"]
    assert texts("a.txt.gz") == ["é", "b"]
    assert read_texts("a.csv") == [FoundText("1", "hello"), FoundText("2", "")]
    assert texts("a.json") == ["x", "y"]


def test_an_evaluation_gives_its_completions(tmp_path: Path) -> None:
    examples = tuple(Example(f"d{i}", (Message("user", f"hi {i}", "A"),), ("They greet.",)) for i in range(3))
    data = DataSet("rows.jsonl", "test", "dialogsum", examples, references=(1, 1))
    completions = [Completion(f"d{i}", f"summary {i}", (), "stop") for i in range(3)]
    found = evaluate_completions(
        data, completions, [METRICS["length_ratio"]], model=ModelInfo(name="m"), task="summarize"
    )
    write_evaluation(tmp_path / "run", found)
    wanted = [FoundText(f"d{i}", f"summary {i}") for i in range(3)]
    assert read_texts(tmp_path / "run" / "eval.json") == wanted
    assert read_texts(tmp_path / "run") == wanted


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=20), min_size=1)
)
def test_lines_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.txt"
    path.write_bytes("".join(line + "\n" for line in lines).encode())
    assert texts(path) == [line.removeprefix("\ufeff") if i == 0 else line for i, line in enumerate(lines)]


@given(st.lists(st.text(max_size=20), min_size=1))
def test_rows_come_back_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, found: list[str]) -> None:
    kept = [text.encode("utf-8", "replace").decode() for text in found]
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept))
    assert texts(path) == kept


@given(st.binary(max_size=300), st.sampled_from(["a.txt", "a.jsonl", "a.json", "a.csv", "a.txt.gz", "a.jsonl.gz"]))
def test_any_bytes_give_texts_or_one_of_our_errors(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, name: str
) -> None:
    path = tmp_path_factory.mktemp("bytes") / name
    path.write_bytes(raw)
    said = str(path)
    try:
        assert all(isinstance(text, str) for text in texts(path))
    except DataError as error:
        said = str(error)
    assert str(path) in said


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.txt", b"", r"^a.txt: no text to score: the file is empty$"),
        ("a.jsonl", b"", r"^a.jsonl: no text to score"),
        ("a.txt", b"fine\n\x89PNG\r\n\x1a\n", r"^a.txt:2: invalid UTF-8: byte 0x89 at byte 1 of the line$"),
        ("a.txt", b"fine\nsome\0where\n", r"^a.txt:2: a NUL byte: this is no text file$"),
        ("a.txt", "hi".encode("utf-16"), r"^a.txt:1: not UTF-8: the file is UTF-16LE"),
        ("a.txt", b"x" * (1 << 20) + b"yy\n", r"^a.txt:1: row too long: 1,048,579 bytes, at most 1,048,576$"),
        ("a.txt.gz", b"\x1f\x8b\x08\0broken", r"^a.txt.gz:1: damaged gzip"),
        ("a.txt.gz", b"no gzip", r"^a.txt.gz:1: damaged gzip"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', r"^a.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"text": 3}\n', r"^a.jsonl:1: text: expected text, got a number$"),
        ("a.jsonl", b'{"text": null}\n', r"^a.jsonl:1: text: expected text, got null$"),
        ("a.jsonl", b'{"text": "x", "summary": "y"}\n', r"^a.jsonl:1: two texts: has text and summary; keep the one"),
        ("a.jsonl", b'{"dialogue": "A: x", "topic": "t"}\n',
         r"^a.jsonl:1: no text: needs a column text, completion, prediction or summary; has: dialogue, topic$"),
        ("a.jsonl", b"{}\n", r"has: nothing$"),
        ("a.pkl", b"x", r"^a.pkl: refused: opening a .pkl file can run code"),
        ("a.json", b'{"schema": "dialtune.eval/1", "model": {}}', r"^a.json: model"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_scored_says_where_and_why(name: str, raw: bytes, message: str) -> None:
    Path(name).write_bytes(raw)
    with pytest.raises(DataError, match=message):
        read_texts(name)


def test_a_thousand_bad_rows_are_not_a_thousand_lines() -> None:
    Path("a.jsonl").write_text("{}\n" * 1000)
    with pytest.raises(DataError) as caught:
        read_texts("a.jsonl")
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1] == "a.jsonl: more rows like these; reading stopped there"


def test_a_missing_file_is_named_with_a_near_one() -> None:
    Path("rows.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"^row.txt: no such file; did you mean 'rows.txt'\?$"):
        read_texts("row.txt")
    with pytest.raises(ConfigError, match=r"is a folder; name a file in it$"):
        read_texts(".")


# scoring


def test_a_toxicity_scorer_gives_probabilities_and_writes_a_row_each(scorers: list[tuple[str, str | None]]) -> None:
    Path("a.txt").write_text("hello!\n\nhéllo!!\n")
    done = score_file("toxicity", "a.txt", out="new/scores.jsonl")
    rows = [json.loads(line) for line in Path("new/scores.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["hello!", "", "héllo!!"]
    # sigmoid of 0, -1 and 1
    assert [row["score"] for row in rows] == pytest.approx([0.5, 0.2689414, 0.7310586])
    assert done.summary == "3 texts by toxicity, mean 0.5000"
    assert scorers == [("toxicity", None)]
    assert [path.name for path in Path("new").iterdir()] == ["scores.jsonl"]


def test_a_classifiers_name_and_label_reach_it(scorers: list[tuple[str, str | None]]) -> None:
    Path("a.txt").write_text("x")
    score_file("org/name", "a.txt", label="hate")
    score_file("org/name#hate", "a.txt")
    Path("folder").mkdir()
    score_file("folder", "a.txt")
    assert scorers == [("org/name", "hate"), ("org/name#hate", None), ("folder", None)]


def test_a_value_that_is_not_finite_is_null_and_said() -> None:
    Path("a.txt").write_text("nan\nfine\n")
    done = score_file("toxicity", "a.txt")
    assert done.scores[0] is None
    assert done.problems == ("toxicity gave no finite value for 1 of 2 texts",)
    assert done.summary.endswith(", 1 not scored")
    assert '"score": null' in done.lines


def test_many_texts_are_scored_in_batches_and_progress_is_told() -> None:
    Path("a.txt").write_text("".join(f"{'!' * (i % 3)}\n" for i in range(600)))
    told: list[tuple[int, int]] = []
    done = score_file("toxicity", "a.txt", progress=lambda n, total: told.append((n, total)))
    assert told == [(256, 600), (512, 600), (600, 600)]
    assert done.scores[599] == pytest.approx(1 / (1 + math.exp(-1)))


def test_a_reward_compares_texts_with_their_dialogues() -> None:
    data = write("rows.jsonl", *DIALOGUES)
    write("a.jsonl", {"text": "2 apples are good.", "id": "d2"}, {"text": "Bye.", "id": "d0"})
    done = score_file("rougeL", "a.jsonl", data=data)
    assert done.scores == (1.0, 0.0)
    assert done.summary == "2 texts by rougeL, mean 0.5000"
    Path("a.txt").write_text("\n".join(row["summary"] for row in DIALOGUES))
    assert score_file("rougeL", "a.txt", data=data).scores == (1.0, 1.0, 1.0, 1.0)
    assert score_file("rougeL", data, data=data).scores == (1.0, 1.0, 1.0, 1.0)  # the references themselves


def test_a_reward_that_reads_the_text_alone_needs_no_dialogues() -> None:
    Path("a.txt").write_text("one two three four five\none\n")
    assert score_file("length", "a.txt").scores == (1.0, 0.2)


def test_a_row_to_which_a_reward_does_not_apply_is_null() -> None:
    data = write("rows.jsonl", *({"id": row["id"], "dialogue": row["dialogue"]} for row in DIALOGUES))
    Path("a.txt").write_text("x\n" * 4)
    done = score_file("rougeL", "a.txt", data=data)
    assert (done.scores, done.problems) == ((None,) * 4, ())
    assert done.summary == "4 texts by rougeL, no mean, 4 not scored"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("toxcity",),
            r"^scorer 'toxcity': unknown; did you mean 'toxicity'\? known: toxicity, minilm, .*, copy, "
            r"no_repetition, no_echo, or the",
        ),
        (("xyz",), r"^scorer 'xyz': unknown; known: toxicity"),
        (("rougeL",), r"^rougeL compares texts with references; add: --data FILE \(one row per text of a.txt\)$"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_one_line(arguments: tuple[str], message: str) -> None:
    Path("a.txt").write_text("x\n")
    with pytest.raises(ConfigError, match=message):
        score_file(*arguments, "a.txt")


def test_flags_that_would_do_nothing_are_refused() -> None:
    Path("a.txt").write_text("x\n")
    with pytest.raises(ConfigError, match=r"^--label: got 'hate', but rougeL is no classifier; leave it out$"):
        score_file("rougeL", "a.txt", label="hate", data="a.txt")
    with pytest.raises(ConfigError, match=r"^--data: toxicity reads the text alone; leave it out$"):
        score_file("toxicity", "a.txt", data="a.txt")


def test_no_input_is_overwritten() -> None:
    Path("a.txt").write_text("x\n")
    with pytest.raises(ConfigError, match=r"^--out: got ./a.txt, which is being read; name another file$"):
        score_file("toxicity", "a.txt", out="./a.txt")
    assert Path("a.txt").read_text() == "x\n"


# matching


def test_texts_without_ids_must_be_as_many_as_the_dialogues() -> None:
    rows = [FoundText(None, "x")] * 3
    with pytest.raises(DataError, match=r"^a: 3 texts without ids for 2 dialogues; one each is needed$"):
        matched(Path("a"), rows, [Example("p", ()), Example("q", ())])


def test_several_texts_may_share_a_dialogue_by_its_id() -> None:
    one, two = Example("p", ()), Example("q", ())
    rows = [FoundText("q", "x"), FoundText("p", "y"), FoundText("q", "z")]
    assert matched(Path("a"), rows, [one, two]) == [two, one, two]


def test_strange_and_missing_ids_are_refused() -> None:
    with pytest.raises(DataError, match=r"^a: 1 of 1 texts have an id that the data does not, the first 'z'$"):
        matched(Path("a"), [FoundText("z", "x")], [Example("p", ())])
    with pytest.raises(DataError, match=r"^a: 1 of 2 texts have an id; give one to every text or to none$"):
        matched(Path("a"), [FoundText("p", "x"), FoundText(None, "y")], [Example("p", ()), Example("q", ())])
