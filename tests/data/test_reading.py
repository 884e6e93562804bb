"""Files to examples: every format, every fault on its line, every policy."""

from __future__ import annotations

import base64
import gzip
import json
import random
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialtune.data.decoding import MAX_ROW_BYTES
from dialtune.data.layouts import to_row
from dialtune.data.reading import iter_rows, read_examples, scan_examples, split_of
from dialtune.data.rows import scan_rows
from dialtune.errors import ConfigError, DataError, MissingExtraError
from dialtune.types import Message

ROW = {"id": "r1", "dialogue": 'Anna: Hi.\nBen: Yo, "you".', "summary": "They greet."}
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def save(name: str, content: bytes | str) -> Path:
        data = content.encode() if isinstance(content, str) else content
        path = tmp_path / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    return save


def faults(path: Path) -> list[tuple[int, str]]:
    return [(row.line, row.reason) for row in scan_examples(path) if row.reason]


def rows_of(n: int) -> list[dict[str, Any]]:
    texts = ((f"Anna: Hello {i}.\nBen: Bye.", f"They meet, {i}.") for i in range(1, n + 1))
    return [{"id": f"r{i}", "dialogue": one, "summary": two} for i, (one, two) in enumerate(texts, start=1)]


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import io

    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def as_csv(rows: list[dict[str, Any]], delimiter: str) -> str:
    import csv
    import io

    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


WRITERS: dict[str, Callable[[list[dict[str, Any]]], bytes | str]] = {
    "jsonl": lambda rows: "\n".join(json.dumps(row) for row in rows),
    "json": lambda rows: json.dumps(rows, indent=1),
    "csv": lambda rows: as_csv(rows, ","),
    "tsv": lambda rows: as_csv(rows, "\t"),
    "parquet": parquet,
}


@pytest.mark.parametrize("zipped", ["", ".gz"])
@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_same_examples(write: Write, form: str, zipped: str) -> None:
    rows = [{**ROW, "id": "q", "topic": "x"}, *({**row, "topic": "café"} for row in rows_of(600))]
    data = read_examples(write(f"train.{form}{zipped}", WRITERS[form](rows)))
    assert (data.layout, data.split, data.references, len(data.examples)) == ("dialogsum", "train", (1, 1), 601)
    first, last = data.examples[0], data.examples[-1]
    assert first.messages == (Message("user", "Hi.", "Anna"), Message("user", 'Yo, "you".', "Ben"))
    assert (last.id, last.references, last.meta["topic"]) == ("r600", ("They meet, 600.",), "café")


def test_txt_lines_are_dialogues_with_eou(write: Write) -> None:
    data = read_examples(write("dialogues_test.txt", "Hi . __eou__ Yo . __eou__\nBye . __eou__\n"))
    assert [len(e.messages) for e in data.examples] == [2, 1]
    assert (data.layout, data.split, data.counts["without_reference"]) == ("dialogue", "test", 2)
    assert data.examples[1].id == "dialogues_test.txt:2"


def test_a_broken_row_4711_of_10000_is_one_line_with_exit_code_3(write: Write) -> None:
    lines = [json.dumps(row) for row in rows_of(10_000)]
    lines[4710] = lines[4710][:-9]
    path = write("broken.jsonl", "\n".join(lines) + "\n")
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert str(caught.value).startswith(f"{path}:4711: not valid JSON: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


GOOD = json.dumps(ROW)
JSONL_FAULTS = {
    b"\xff\xfe{": "invalid UTF-8: byte 0xff at byte 1 of the line",
    b'{"dialogue": "Anna: caf\xe9", "summary": "x"}': "invalid UTF-8: byte 0xe9 at byte 24 of the line",
    b"": "blank line: expected a row",
    b"[1, 2]": "not an object: expected {...}, got a list",
    b'"text"': "not an object: expected {...}, got text",
    b'{"dialogue": "A: x", "summary": NaN}': "not a finite number: NaN",
    b'{"dialogue": "A: x", "summary": -Infinity}': "not a finite number: -Infinity",
    b'{"dialogue": "A: x", "summary": "y", "n": 1e999}': "not a finite number: 1e999",
    b'{"dialogue": "A: x", "dialogue": "B: y", "summary": "z"}': "duplicate key: 'dialogue'",
    b'{"dialogue": "A: x", "summary": "\\ud800"}': "invalid Unicode: half of a surrogate pair",
    b'{"dialogue": "A: x", "n": ' + b"[" * 65 + b"]" * 65 + b"}": "nested too deeply: 66 levels, at most 64",
    b'{"dialogue": "A: x", "n": ' + b"[" * 99_999 + b"}": "nested too deeply: 100000 levels, at most 64",
    b'{"dialogue": "A: x", "n": ' + b"9" * 5000 + b"}": "not valid JSON: Exceeds the limit",
    b'{"dialogue": "A: x\x00", "summary": "y"}': "not valid JSON: Invalid control character at at column 19",
    b'{"dialogue": "A: x", "summary": 5}': "wrong type: 'summary' should be text, got a number",
    b'{"dialogue": null, "summary": "y"}': "wrong type: 'dialogue' should be text, got null",
    b'{"dialogue": "A: x", "summary": " "}': "empty text: 'summary' is blank",
    b'{"dialogue": "Anna:\\nBen:", "summary": "y"}': "empty dialogue: no turn has text",
    b'{"dialogue": "A: x"}': "other layout: dialogue (dialogue), but the file is dialogsum",
    b'{"text": "A: x"}': "unknown columns: text; known: dialogue, summary[1..n]; ",
    b'{"dialogue": "' + b"A: x\\n" * 2001 + b'", "summary": "y"}': "too many turns: 2,001, at most 2,000",
    b'{"dialogue": "A: ' + b"x" * MAX_ROW_BYTES + b'", "summary": "y"}': "row too long: 1,048,",
}


@pytest.mark.parametrize(("bad", "reason"), JSONL_FAULTS.items(), ids=range(len(JSONL_FAULTS)))
def test_each_fault_of_a_jsonl_row_is_named_on_its_line(write: Write, bad: bytes, reason: str) -> None:
    path = write("f.jsonl", b"\n".join([GOOD.encode(), GOOD.encode(), bad, GOOD.encode()]))
    found = faults(path)
    assert [line for line, _ in found] == [3]
    assert found[0][1].startswith(reason)


@pytest.mark.parametrize("bad", [bad for bad in JSONL_FAULTS if bad], ids=range(len(JSONL_FAULTS) - 1))
def test_the_same_fault_in_a_json_array_does_not_hide_the_rows_behind_it(write: Write, bad: bytes) -> None:
    good = GOOD.encode()
    path = write("f.json", b"[\n" + b",\n".join([good, good, bad, good, good]) + b"\n]\n")
    found = faults(path)
    assert [line for line, _ in found] == [4]
    assert {2, 3, 6} <= {row.line for row in scan_examples(path) if row.example}


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ('[{"a": 1}\n,\n{"a": }]', 3, "not valid JSON: Expecting value at column 7"),
        ('[{"a": 1}\n{"a": 2}]', 2, "not valid JSON: expected ',' or ']' behind a row"),
        ('[{"a": 1},\n{"a": "x', 2, "not valid JSON: Unterminated string"),
        ('[{"a": 1}', 1, "not valid JSON: expected ',' or ']' behind a row"),
        ('[{"a": 1}] x', 1, "not valid JSON: text behind the array"),
        ("7", 1, "not valid JSON: a .json file holds one array of rows"),
        ('[{"a": 1},\n]', 2, "not valid JSON: Expecting value at column 1"),
    ],
)
def test_a_broken_json_array_is_located(write: Write, text: str, line: int, reason: str) -> None:
    bad = [row for row in scan_rows(write("f.json", text)) if row.reason]
    assert (bad[0].line, bad[0].reason[: len(reason)]) == (line, reason)
    assert len(bad) == 1


@pytest.mark.parametrize("block", [1, 2, 7, 64])
def test_a_json_array_is_read_alike_in_blocks_of_any_size(
    write: Write, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    rows = [{"a": f'é"\\ [{{ {i}', "b": [i, {"c": -1.5e-3}], "d": None, "e": True} for i in range(30)]
    path = write("f.json", json.dumps(rows, ensure_ascii=False, indent=2))
    monkeypatch.setattr("dialtune.data.decoding.BLOCK", block)
    assert [row for _, row in iter_rows(path)] == rows


def test_json_lines_may_be_called_json(write: Write) -> None:
    assert len(read_examples(write("f.json", "\n".join(json.dumps(row) for row in rows_of(3)))).examples) == 3


def test_csv_faults_are_located_and_the_rows_behind_them_are_read(write: Write) -> None:
    rows = [
        "1,Anna: hi,x",
        '2,"Anna: open,x',
        "3,Anna: hi,x",
        "4,Anna: hi",
        "",
        '5,"Anna: hi\n\nBen: yo",x',
        '6,A: "q",x',
    ]
    path = write("f.csv", "\n".join(["id,dialogue,summary", *rows, ""]))
    assert [line for line, _ in faults(path)] == [3, 5, 6]
    assert faults(path)[0][1].startswith("not valid csv: ")
    assert faults(path)[1][1] == "wrong number of columns: expected 3, got 2"
    assert [row.example.id for row in scan_examples(path) if row.example] == ["1", "3", "5", "6"]


def test_a_line_that_is_no_utf8_inside_a_csv_is_located(write: Write) -> None:
    path = write("f.csv", b'id,dialogue,summary\n1,"Anna: hi\nBen: \xff",x\n2,Anna: hi,x\n')
    assert faults(path)[0] == (3, "invalid UTF-8: byte 0xff at byte 6 of the line")
    assert [row.example.id for row in scan_examples(path) if row.example] == ["2"]


def test_a_second_column_of_the_same_name_gets_a_number(write: Write) -> None:
    path = write("f.csv", "a,b,a,a\n1,2,3,4\n")
    assert next(iter_rows(path)) == (2, {"a": "1", "b": "2", "a.1": "3", "a.2": "4"})


def test_a_byte_order_mark_is_stripped_and_blank_lines_at_the_end_are_fine(write: Write) -> None:
    assert len(read_examples(write("f.jsonl", b"\xef\xbb\xbf" + GOOD.encode() + b"\n\n \n")).examples) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_named_with_the_way_out(write: Write, encoding: str) -> None:
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    with pytest.raises(DataError, match=rf"f\.jsonl:1: not UTF-8: the file is {name}(LE)?; convert it: iconv -f"):
        read_examples(write("f.jsonl", GOOD.encode(encoding)))


@pytest.mark.parametrize("name", ["a.pkl", "a.pt", "a.bin", "a.npy", "a.pkl.gz"])
def test_formats_that_can_run_code_are_refused_by_name(write: Write, name: str) -> None:
    with pytest.raises(DataError, match=r"refused: opening a \.\w+ file can run code; export its rows to one of"):
        read_examples(write(name, b"x"))


def test_missing_files_and_unknown_formats_say_what_to_do(write: Write, tmp_path: Path) -> None:
    write("train.jsonl", GOOD)
    with pytest.raises(ConfigError, match=r"trian\.jsonl: no such file; did you mean '.*train\.jsonl'\?"):
        read_examples(tmp_path / "trian.jsonl")
    with pytest.raises(ConfigError, match="is a folder; name a file in it"):
        read_examples(tmp_path)
    with pytest.raises(ConfigError, match=r"format '\.doc' is not read; known, each also with \.gz: \.jsonl"):
        read_examples(write("a.doc", b"x"))


@pytest.mark.parametrize("cut", [5, 40, -4])
def test_a_damaged_gzip_is_one_clear_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "f.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(json.dumps(r) for r in rows_of(50)).encode())[:cut])
    with pytest.raises(DataError, match=r"f\.jsonl\.gz:\d+: damaged gzip: "):
        read_examples(path)
    path.write_bytes(GOOD.encode())
    with pytest.raises(DataError, match=r"f\.jsonl\.gz:1: damaged gzip: Not a gzipped file"):
        read_examples(path)


def test_an_empty_file_is_an_error(write: Write) -> None:
    with pytest.raises(DataError, match=r"f\.jsonl: no rows"):
        read_examples(write("f.jsonl", b""))


def test_parquet_without_pyarrow_says_what_to_install(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("f.parquet", b"PAR1")
    with pytest.raises(DataError, match=r"f\.parquet: not a readable parquet file: "):
        read_examples(path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        MissingExtraError, match=r"needs pyarrow, which is not installed: pip install 'dialtune\[hub\]'"
    ):
        read_examples(path)


# policies ------------------------------------------------------------------------------------------------------------


def mixed(write: Write, n: int, bad: int) -> Path:
    lines = [json.dumps(row).encode() for row in rows_of(n)]
    for index in range(bad):
        lines[index * 2] = b'{"id": "\xff' if index % 2 else b"{"
    return write("mixed.jsonl", b"\n".join(lines))


def test_all_bad_rows_come_at_once_but_only_twenty_are_shown(write: Write) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(mixed(write, 100, 30))
    lines = str(caught.value).splitlines()
    assert len(lines) == 21
    assert lines[-1].endswith("30 bad rows; the first 20 are shown")


def test_reading_stops_when_a_file_is_hopeless(write: Write) -> None:
    with pytest.raises(DataError, match="1,000 bad rows or more; reading stopped there; the first 20 are shown"):
        read_examples(write("f.jsonl", b"{\n" * 5000))


def test_skip_drops_bad_rows_and_counts_them_by_reason(write: Write) -> None:
    data = read_examples(mixed(write, 400, 3), on_bad_rows="skip")
    assert len(data.examples) == 397
    dropped = {"dropped: invalid UTF-8": 1, "dropped: not valid JSON": 2}
    assert data.counts == {"rows": 400, "examples": 397, "without_reference": 0, "regrouped": 0, **dropped}
    assert len(data.problems) == 3


def test_too_many_bad_rows_fail_under_skip_too(write: Write) -> None:
    with pytest.raises(DataError, match=r"10 of 100 rows are bad \(10\.0%\), more than max_bad_fraction 0\.01"):
        read_examples(mixed(write, 100, 10), on_bad_rows="skip")
    assert len(read_examples(mixed(write, 100, 10), on_bad_rows="skip", max_bad_fraction=0.1).examples) == 90


def test_quarantine_keeps_the_raw_bytes_and_the_reason(write: Write, tmp_path: Path) -> None:
    path, kept = mixed(write, 400, 2), tmp_path / "kept.jsonl"
    read_examples(path, on_bad_rows="quarantine", quarantine=kept)
    one, two = (json.loads(line) for line in kept.read_text().splitlines())
    assert (one["line"], one["raw"]) == (1, "{\n")
    assert (two["line"], base64.b64decode(two["raw_base64"])) == (3, b'{"id": "\xff\n')
    assert two["reason"].startswith("invalid UTF-8")


def test_wrong_arguments_are_named(write: Write) -> None:
    path = write("f.jsonl", GOOD)
    with pytest.raises(ConfigError, match="on_bad_rows: got 'ignore'; known: fail, skip, quarantine"):
        read_examples(path, on_bad_rows="ignore")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_bad_fraction: got 2; allowed: 0 to 1"):
        read_examples(path, max_bad_fraction=2)
    with pytest.raises(ConfigError, match="layout: got 'dialogs'; known: auto, dialogsum"):
        read_examples(path, layout="dialogs")


# layouts -------------------------------------------------------------------------------------------------------------

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
]
SHARED = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
THREE = {"summary2": "b", "summary10": "c", "summary1": "a"}
LAYOUT_ROWS: list[tuple[str, dict[str, Any], tuple[Message, ...], tuple[str, ...]]] = [
    ("dialogsum", {"dialogue": "Anna: Hi", **THREE}, (Message("user", "Hi", "Anna"),), ("a", "b", "c")),
    ("messages", {"messages": CHAT}, (Message("system", "Be kind."), Message("user", "Hi")), ("Yo",)),
    ("messages", {"messages": CHAT[:2]}, (Message("system", "Be kind."), Message("user", "Hi")), ()),
    ("sharegpt", {"conversations": SHARED}, (Message("user", "Hi"),), ("Yo",)),
    ("prompt_completion", {"prompt": "Hi", "completion": "Yo"}, (Message("user", "Hi"),), ("Yo",)),
    ("prompt_completion", {"prompt": CHAT[1:2], "completion": CHAT[2:]}, (Message("user", "Hi"),), ("Yo",)),
    ("preference", {"prompt": "Hi", "chosen": "Yo", "rejected": "No"}, (Message("user", "Hi"),), ("Yo",)),
    ("alpaca", {"instruction": "Add.", "input": "1+1", "output": "2"}, (Message("user", "Add.\n\n1+1"),), ("2",)),
    ("alpaca", {"instruction": "Add.", "output": "2"}, (Message("user", "Add."),), ("2",)),
    ("document", {"document": "Anna: x\ny", "summary": "z"}, (Message("user", "Anna: x\ny", ""),), ("z",)),
    ("article", {"article": "x", "highlights": "z"}, (Message("user", "x", ""),), ("z",)),
    ("prompt", {"prompt": "Hi"}, (Message("user", "Hi"),), ()),
    ("dialogue", {"dialogue": "Anna: Hi"}, (Message("user", "Hi", "Anna"),), ()),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "row", "messages", "references"), LAYOUT_ROWS)
def test_each_layout_is_found_by_its_columns(
    write: Write, layout: str, row: dict[str, Any], messages: tuple[Message, ...], references: tuple[str, ...]
) -> None:
    data = read_examples(write("f.jsonl", json.dumps({**row, "topic": "t"})))
    assert data.layout == layout
    assert (data.examples[0].messages, data.examples[0].references) == (messages, references)
    assert data.examples[0].meta["topic"] == "t"


@pytest.mark.parametrize("row", [row for _, row, _, _ in LAYOUT_ROWS], ids=range(len(LAYOUT_ROWS)))
def test_a_row_written_back_reads_as_the_same_example(write: Write, row: dict[str, Any]) -> None:
    data = read_examples(write("f.jsonl", json.dumps({"id": "q7", **row, "topic": "t"})))
    again = read_examples(write("g.jsonl", json.dumps(to_row(data.examples[0]))))
    assert (again.examples, again.fingerprint) == (data.examples, data.fingerprint)
    assert again.examples[0].meta["topic"] == "t"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("x", "wrong type: 'messages' should be a list of messages, got text"),
        (["x"], "wrong type: 'messages' item 1 should be an object, got text"),
        ([{"role": "robot", "content": "x"}], "unknown role: 'messages' item 1: 'robot'; known: system, user, assist"),
        ([{"role": "user", "content": None}], "wrong type: 'messages' item 1: content should be text, got null"),
        ([{"role": "assistant", "content": "", "tool_calls": [{}]}], "tool calls: 'messages' item 1 has tool_calls"),
        ([{"role": "user", "content": " "}], "empty dialogue: 'messages' has no message with text"),
        ([], "empty dialogue: 'messages' has no message with text"),
        ([*CHAT[:2], {"role": "assistant", "content": ""}], "empty text: the last assistant message is blank"),
        (CHAT * 700, "too many turns: 2,100, at most 2,000"),
    ],
)
def test_chat_faults_are_named(write: Write, messages: object, reason: str) -> None:
    found = faults(write("f.jsonl", json.dumps({"messages": CHAT}) + "\n" + json.dumps({"messages": messages})))
    assert [line for line, _ in found] == [2]
    assert found[0][1].startswith(reason)


def test_columns_can_be_named(write: Write) -> None:
    path = write("f.jsonl", json.dumps({"chat": "Anna: Hi", "gist": "z", "summary": "other"}))
    data = read_examples(path, columns={"dialogue": "chat", "summary": "gist"})
    assert data.examples[0].references == ("z",)
    with pytest.raises(DataError, match=r"f\.jsonl:1: missing column: 'talk'; the row has: chat, gist, summary"):
        read_examples(path, columns={"dialogue": "talk"})


def test_a_file_of_unknown_columns_is_one_line(write: Write) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(write("f.jsonl", '{"a": "b"}\n' * 50))
    assert len(str(caught.value).splitlines()) == 1
    assert "f.jsonl:1: unknown columns: a; known: dialogue, summary[1..n]" in str(caught.value)


def test_one_row_without_a_summary_does_not_change_what_the_file_is(write: Write) -> None:
    rows = [{"dialogue": "Anna: Hi"}, *rows_of(5)]
    assert [line for line, _ in faults(write("f.jsonl", "\n".join(json.dumps(r) for r in rows)))] == [1]


def test_the_second_row_with_an_id_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match=r"f\.jsonl:2: duplicate id: 'r1' is also on line 1"):
        read_examples(write("f.jsonl", f"{GOOD}\n{GOOD}"))


def test_blank_later_references_are_left_out(write: Write) -> None:
    rows = [{"dialogue": "Anna: Hi", "summary1": "a", "summary2": extra} for extra in ("b", "", None)]
    data = read_examples(write("f.jsonl", "\n".join(json.dumps(row) for row in rows)))
    assert [e.references for e in data.examples] == [("a", "b"), ("a",), ("a",)]
    assert data.references == (1, 2)


def test_the_flattened_test_set_of_the_hub_is_regrouped(write: Write) -> None:
    rows = [{"id": f"test_{i}_{k}", "dialogue": f"Anna: {i}", "summary": f"s{k}"} for i in range(3) for k in (1, 2, 3)]
    data = read_examples(write("f.csv", as_csv(rows, ",")))
    assert [(e.id, e.references) for e in data.examples] == [(f"test_{i}", ("s1", "s2", "s3")) for i in range(3)]
    assert data.counts["regrouped"] == 6
    plain = [{"id": f"train_{i}", "dialogue": "Anna: same", "summary": "s"} for i in range(3)]
    assert read_examples(write("g.csv", as_csv(plain, ","))).counts["regrouped"] == 0


def test_dialogsum_test_has_three_references_in_order(shared_data: Path) -> None:
    file = shared_data / "dialogsum" / "dialogsum.test.jsonl.gz"
    data = read_examples(file)
    _, row = next(iter_rows(file))
    assert data.references == (3, 3)
    assert data.examples[0].references == tuple(row[f"summary{k}"].strip() for k in (1, 2, 3))
    assert data.examples[0].meta["reference_names"] == ("summary1", "summary2", "summary3")
    assert (data.split, data.counts["examples"], data.examples[0].id) == ("test", 500, "test_0")


@pytest.mark.parametrize(
    ("path", "rows"),
    [
        ("paradetox/paradetox.tsv.gz", 11_927),
        ("diasafety/train.json.gz", 9_017),
        ("convabuse/ConvAbuseEMNLPtrain.csv.gz", 2_501),
        ("toxic_spans/comments.csv.gz", 16_100),
    ],
)
def test_real_files_of_other_formats_have_as_many_rows_as_stated(shared_data: Path, path: str, rows: int) -> None:
    found = list(scan_rows(shared_data / path))
    assert len(found) == rows
    assert not any(row.reason for row in found)


# names, limits, fingerprints ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("dialogsum.dev.jsonl.gz", "validation"),
        ("test-00000.parquet", "test"),
        ("val.json", "validation"),
        ("latest.jsonl", ""),
        ("hub:a/b:test", "test"),
        ("packaged:train", "train"),
    ],
)
def test_the_split_is_read_off_the_name(name: str, split: str) -> None:
    assert split_of(name) == split


def test_split_chooses_rows_where_rows_name_theirs(write: Write) -> None:
    rows = [{**row, "split": "train" if i % 2 else "test"} for i, row in enumerate(rows_of(6))]
    path = write("f.jsonl", "\n".join(json.dumps(row) for row in rows))
    assert len(read_examples(path, split="test").examples) == 3
    with pytest.raises(DataError, match="no rows of split 'validation'"):
        read_examples(path, split="validation")


def test_limit_stops_reading_early(write: Write) -> None:
    path = write("f.jsonl", "\n".join([*(json.dumps(row) for row in rows_of(5)), "{"]))
    assert [e.id for e in read_examples(path, limit=3).examples] == ["r1", "r2", "r3"]


def test_the_fingerprint_ignores_order_and_blanks_and_nothing_else(write: Write) -> None:
    rows = rows_of(4)
    prints = []
    spaced, other = ([{**rows[0], "summary": text}, *rows[1:]] for text in ("They  meet, 1. ", "No."))
    for variant in (rows, rows[::-1], spaced, rows[1:], other):
        prints.append(read_examples(write("f.jsonl", "\n".join(json.dumps(r) for r in variant))).fingerprint)
    assert prints[0] == prints[1] == prints[2]
    assert len({prints[0], prints[3], prints[4]}) == 3


# hub -----------------------------------------------------------------------------------------------------------------


def test_hub_rows_go_through_the_same_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, **options: Any) -> list[dict[str, Any]]:
        calls.append((name, options))
        return rows_of(3)

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    data = read_examples("hub:org/name:validation")
    assert (data.name, data.split, len(data.examples)) == ("hub:org/name:validation", "validation", 3)
    assert calls == [("org/name", {"split": "validation", "streaming": True})]


def test_hub_without_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="needs the datasets package, which is not installed: pip install"):
        read_examples("hub:org/name")


def test_a_hub_dataset_that_cannot_be_opened_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **options: Any) -> None:
        raise ConnectionError("offline\nlong story")

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(ConfigError, match=r"hub:org/name:train: cannot be opened: offline$"):
        read_examples("hub:org/name")


# fuzzing -------------------------------------------------------------------------------------------------------------


def mutate(draw: random.Random, line: bytes) -> bytes:
    kind = draw.randrange(8)
    at = draw.randrange(len(line))
    if kind == 0:
        return line[:at]
    if kind == 1:
        return line[:at] + bytes([draw.randrange(256)]) + line[at + 1 :]
    if kind == 2:
        return line.replace(b'"dialogue"', draw.choice([b'"summary"', b'"d"', b"dialogue"]), 1)
    if kind == 3:
        return line.decode().encode(draw.choice(["utf-16-le", "utf-32", "utf-16"]))
    if kind == 4:
        return (
            line[:at] + draw.choice([b"\\ud800", b"NaN", b"1e999", b"[" * 200, b"9" * 5000, b"\x00", b"}"]) + line[at:]
        )
    if kind == 5:
        return line[:at] + line[at:] * 2
    if kind == 6:
        return b'{"dialogue": "' + b"A: x\\n" * 2500 + b'", "summary": "y"}'
    return bytes(draw.randrange(256) for _ in range(draw.randrange(1, 60)))


@pytest.mark.parametrize("form", ["jsonl", "csv", "json"])
def test_no_mutation_escapes_and_every_fault_is_on_its_line(write: Write, form: str) -> None:
    """D1, small: rows that were not touched are read, whatever stands beside them."""
    draw = random.Random(0)
    lines, touched = [], set()
    for number, row in enumerate(rows_of(1000), start=1):
        line = json.dumps(row).encode()
        if form == "csv":
            line = f"r{number},Anna: Hello {number}.,They meet.".encode()
        if number > 40 and draw.random() < 0.5:
            line = mutate(draw, line).replace(b"\n", b" ").replace(b"\r", b" ")
            touched.add(number)
        lines.append(line)
    assert len(touched) > 400
    if form == "jsonl":
        path, first = write("f.jsonl", b"\n".join(lines)), 1
    elif form == "csv":
        path, first = write("f.csv", b"\n".join([b"id,dialogue,summary", *lines])), 2
    else:
        path, first = write("f.json", b"[\n" + b",\n".join(lines) + b"\n]"), 2
    bad = {row.line - first + 1 for row in scan_examples(path) if row.reason}
    assert bad
    assert bad <= touched | {len(lines) + 1}
    if form == "jsonl":
        read = {row.line for row in scan_examples(path) if row.example}
        assert read >= set(range(1, 1001)) - touched


def test_reading_needs_little_memory_whatever_the_size(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    line = json.dumps({"dialogue": "Anna: " + "hello " * 150, "summary": "They meet."}) + "\n"
    path.write_text(line * 60_000)  # 57 MB
    program = (
        "import resource, sys; from dialtune.data.audit import check\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = peak(); print(check(sys.argv[1])[0].rows, peak() - start)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    rows, grown_kib = map(int, done.stdout.split())
    assert rows == 60_000
    assert grown_kib < 20_000
