"""Evaluations: counts, intervals, references, files of predictions, and the real outputs end to end."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from dialtune.data.reading import DataSet, read_examples
from dialtune.errors import ConfigError, DataError
from dialtune.evaluation import (
    evaluate_completions,
    read_evaluation,
    read_predictions,
    resolve_metrics,
    resolve_reference,
    write_evaluation,
)
from dialtune.metrics.base import Array, Direction, Metric
from dialtune.results import Evaluation, ModelInfo, ScoreEntry, to_json
from dialtune.types import Completion, Example, Message

MODEL = ModelInfo(name="test")
EVERYTHING = ("rouge1", "rougeLsum", "bleu", "chrf", "tag_integrity", "role_swap_margin", "length_ratio", "copy_rate")


def example(key: str, text: str = "", *references: str) -> Example:
    return Example(key, (Message("user", text or f"text of {key}", "#Person1#"),), references or (f"{key} is here",))


def data(*examples: Example) -> DataSet:
    return DataSet("toy", "test", "dialogsum", examples)


def written(examples: Sequence[Example], texts: Sequence[str], finish: str = "stop") -> list[Completion]:
    return [
        Completion(e.id, text, (), finish)  # type: ignore[arg-type]
        for e, text in zip(examples, texts, strict=True)
    ]


def evaluate(examples: Sequence[Example], texts: Sequence[str], *names: str, **settings: Any) -> Evaluation:
    settings.setdefault("resamples", 200)
    return evaluate_completions(
        data(*examples),
        written(examples, texts),
        names or EVERYTHING,
        model=MODEL,
        task="summarize",
        **settings,
    )


@pytest.fixture
def four() -> list[Example]:
    return [example(key) for key in ("a", "b", "c", "d")]


def test_empty_text_scores_zero_and_stays_in_the_mean(four: list[Example]) -> None:
    result = evaluate(four, ["a is here", "b is here", "", " ?! "], "rouge1")
    assert result.scores["rouge1"].value == pytest.approx(50)
    assert (result.n_empty, result.n_generated, result.n_scored, result.n_total) == (2, 4, 4, 4)
    assert result.scores["rouge1"].n == 4


def test_truncated_rows_are_counted(four: list[Example]) -> None:
    completions = [*written(four[:3], ["x"] * 3), *written(four[3:], ["y"], finish="length")]
    result = evaluate_completions(data(*four), completions, ["rouge1"], model=MODEL, task="summarize", resamples=50)
    assert result.n_truncated == 1
    assert [row.finish for row in result.rows] == ["stop", "stop", "stop", "length"]


def test_completions_are_found_by_id_not_by_place(four: list[Example]) -> None:
    texts = ["a is here", "b is here", "c is", "d"]
    forward = evaluate(four, texts)
    backward = evaluate_completions(
        data(*four), written(four, texts)[::-1], EVERYTHING, model=MODEL, task="summarize", resamples=200
    )
    assert forward == backward


def test_the_same_evaluation_gives_the_same_bytes(four: list[Example]) -> None:
    texts = ["a is here", "b was", "", "#Person 1# d"]
    assert to_json(evaluate(four, texts)) == to_json(evaluate(four, texts))
    assert evaluate(four, texts, seed=1).scores["rouge1"].ci != evaluate(four, texts).scores["rouge1"].ci


def test_every_score_has_an_interval_around_it_and_a_signature(four: list[Example]) -> None:
    result = evaluate(
        four, ["a is here", "b was here", "#Person1# left", "d"], "rouge1", "bleu", "chrf", "length_ratio"
    )
    for name, score in result.scores.items():
        assert score.value is not None
        assert score.ci is not None
        assert score.ci[0] <= score.value <= score.ci[1]
        assert score.signature.startswith(f"{name}|")


def test_corpus_scores_leave_their_counts_in_the_rows(four: list[Example]) -> None:
    result = evaluate(four, ["a is here", "b", "c", "d"], "bleu", "rouge1")
    # Three words against three, all n-grams up to three match: 3 3 | 3 2 1 0 | 3 2 1 0
    assert result.rows[0].statistics == {"bleu": (3, 3, 3, 2, 1, 0, 3, 2, 1, 0)}
    assert result.rows[0].scores == {"rouge1": 100.0}


def test_what_nobody_could_score_is_null_with_a_reason(four: list[Example]) -> None:
    bare = [Example(e.id, e.messages) for e in four]
    result = evaluate(bare, ["a", "b", "c", "d"], "rouge1", "bleu", "tag_integrity")
    assert result.scores["rouge1"].value is None
    assert result.scores["rouge1"].ci is None
    assert result.scores["rouge1"].reason == "no row has a reference"
    assert result.scores["bleu"].reason == "no row has a reference"
    assert result.scores["tag_integrity"].n == 4
    assert result.n_scored == 0
    assert result.rows[0].scores["rouge1"] is None
    assert result.rows[0].statistics == {}


def test_one_row_has_a_score_but_no_interval() -> None:
    result = evaluate([example("a")], ["a is here"], "rouge1", "bleu")
    assert (result.scores["rouge1"].value, result.scores["rouge1"].ci) == (100.0, None)


def test_rows_that_some_score_cannot_use_lower_n(four: list[Example]) -> None:
    mixed = [*four[:3], Example("d", (Message("user", "plain"),), ("d",))]
    result = evaluate(mixed, ["a", "b", "c", "d"], "rouge1", "tag_integrity")
    assert (result.scores["rouge1"].n, result.scores["tag_integrity"].n, result.n_scored) == (4, 3, 3)


def test_descriptive_scores_do_not_lower_the_headline_count(four: list[Example]) -> None:
    assert evaluate(four, ["a", "b", "c", ""], "rouge1", "copy_rate").n_scored == 4


def test_copies_of_a_dialogue_are_one_unit(four: list[Example]) -> None:
    twins = [*four, *(Example(f"{e.id}2", e.messages, e.references) for e in four)]
    result = evaluate(twins, ["a is here", "b", "c is", "d"] * 2, "rouge1", "bleu")
    assert [row.unit for row in result.rows] == [None] * 4 + ["a", "b", "c", "d"]
    # Doubling every row adds nothing that was not known: the interval stays that of the four.
    single = evaluate(four, ["a is here", "b", "c is", "d"], "rouge1", "bleu")
    for name in ("rouge1", "bleu"):
        assert result.scores[name].ci == pytest.approx(single.scores[name].ci)


def test_rows_without_text_are_nobodys_copies() -> None:
    rows = [Example(str(k), (Message("user", ""),), ("r",)) for k in range(3)]
    assert [row.unit for row in evaluate(rows, ["r"] * 3, "rouge1").rows] == [None] * 3


def test_many_references_bring_the_max_under_its_own_name() -> None:
    rows = [example("a", "", "a b", "c d"), example("b", "", "e f", "g h")]
    result = evaluate(rows, ["a b", "g h"], "rouge1", "bleu")
    assert result.data.reference == "mean"
    assert result.data.references == (2, 2)
    assert result.scores["rouge1"].value == 50
    assert result.scores["rouge1_max"].value == 100
    assert "agg:max" in result.scores["rouge1_max"].signature
    assert set(evaluate(rows, ["a b", "g h"], "rouge1", reference="max").scores) == {"rouge1_max"}
    assert set(evaluate(rows, ["a b", "g h"], "rouge1", reference="summary2").scores) == {"rouge1"}


def test_a_reference_has_one_spelling() -> None:
    named = Example("a", (), ("x", "y"), {"reference_names": ("blunt", "civil")})
    assert resolve_reference("auto", [named]) == "mean"
    assert resolve_reference("auto", [example("a")]) == "first"
    assert resolve_reference("summary1", [named]) == "first"
    assert resolve_reference("blunt", [named]) == "first"
    assert resolve_reference("civil", [named]) == "civil"
    assert resolve_reference("max", [named]) == "max"


def test_an_unknown_reference_lists_those_there_are() -> None:
    named = Example("a", (), ("x", "y"), {"reference_names": ("blunt", "civil")})
    with pytest.raises(ConfigError, match=r"got 'summary9', which no row has; allowed here: blunt, civil, first, mean"):
        resolve_reference("summary9", [named])
    with pytest.raises(ConfigError, match="allowed here: summary1, first, mean, max"):
        resolve_reference("gold", [example("a")])


def test_unknown_metrics_are_named_all_at_once() -> None:
    with pytest.raises(ConfigError, match="'roueg1': unknown; did you mean 'rouge1'") as caught:
        resolve_metrics(["roueg1", "bleu", "zzz"], "first", [example("a")])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[1].startswith("metric 'zzz': unknown; known: rouge1, ")


def test_a_metric_asked_for_twice_is_scored_once() -> None:
    assert [m.name for m in resolve_metrics(["bleu", "bleu", "rouge1"], "first", [example("a")])] == ["bleu", "rouge1"]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "c"], "3 completions for 4 dialogues"),
        (["a", "b", "c", "x"], "completion for id 'x', which the data does not have\nno completion for id 'd'"),
        (["a", "b", "c", "c"], "no completion for id 'd'"),
    ],
)
def test_completions_must_match_one_to_one(four: list[Example], ids: list[str], message: str) -> None:
    completions = [Completion(key, "text", (), "stop") for key in ids]
    with pytest.raises(DataError, match=message):
        evaluate_completions(data(*four), completions, ["rouge1"], model=MODEL, task="summarize")


def test_flattened_references_are_refused_with_the_way_out() -> None:
    rows = [example("a"), example("a"), example("b")]
    with pytest.raises(DataError, match=r"id 'a' on 2 rows; ids must differ\nRows of one dialogue .* regroup"):
        evaluate(rows, ["x"] * 3)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to evaluate"):
        evaluate([], [])


def test_many_problems_are_counted_not_listed(four: list[Example]) -> None:
    many = [example(f"e{k}") for k in range(20)]
    with pytest.raises(DataError, match="and 15 more like these"):
        evaluate_completions(
            data(*many), written([example(f"f{k}") for k in range(20)], ["x"] * 20), ["rouge1"], model=MODEL, task="t"
        )


# --- metrics that may not be there, or are for some rows only ---


@dataclass(frozen=True)
class Judged(Metric):
    """The number that the completion is; what is not a number is not scored."""

    label: str = "judged"
    direction: ClassVar[Direction] = "lower"
    percent: int | None = None
    every_row: bool = True
    absent: str | None = None

    @property
    def name(self) -> str:
        return self.label

    def unavailable(self) -> str | None:
        return self.absent

    def signature(self, references: tuple[int, int]) -> str:
        return f"{self.name}|by:hand"

    def segments(self, completions: Sequence[str], examples: Sequence[Example]) -> Array:
        assert self.absent is None, "nobody asks a scorer that is not there"
        return np.array([[float(text) if text.isdecimal() else np.nan] for text in completions])


def judged(texts: Sequence[str], *metrics: str | Metric) -> Evaluation:
    return evaluate([example(str(k)) for k in range(len(texts))], texts, *metrics)  # type: ignore[arg-type]


def test_a_scorer_that_is_not_there_is_not_scored_with_its_reason() -> None:
    result = judged(["1", "2"], Judged(absent="it is not installed"), "rouge1")
    score = result.scores["judged"]
    assert (score.value, score.ci, score.n, score.reason) == (None, None, 0, "it is not installed")
    assert [row.scores["judged"] for row in result.rows] == [None, None]
    assert (result.n_scored, result.scores["rouge1"].n) == (2, 2)  # it does not make the others unscored


def test_rows_that_a_score_is_not_meant_for_count_as_scored() -> None:
    assert judged(["1", "x"], Judged(every_row=False)).n_scored == 2
    assert judged(["1", "x"], Judged()).n_scored == 1


def test_a_percentile_has_the_interval_of_percentiles() -> None:
    metric = Judged(percent=95)
    result = judged([*(str(k) for k in range(1, 401)), "x"], metric)
    score = result.scores["judged"]
    assert (score.value, score.n) == (380, 400)
    # The place of the percentile among the rows is binomial(400, 0.95): 371 and 388 at 2.5 and 97.5 %.
    assert score.ci == pytest.approx((371, 388), abs=2)
    assert result.rows[0].scores["judged"] == 1
    assert judged(["7"], metric).scores["judged"].ci is None
    assert judged(["x"], metric).scores["judged"].reason == "no row has a reference"


def test_rows_say_how_long_their_dialogue_is_and_how_many_speak() -> None:
    talk = Example("a", (Message("user", "Hi there, Ben.", "#Person1#"), Message("user", "Hi!", "Ben")), ("b",))
    chat = Example("b", (Message("user", "One two three"), Message("assistant", "four", "")), ("b",))
    result = evaluate([talk, chat, Example("c", (), ("b",))], ["a"] * 3, "rouge1")
    assert [(row.words, row.speakers) for row in result.rows] == [(4, 2), (4, None), (0, None)]
    lines = json.loads(to_json(result))["rows"]
    assert [line.get("speakers", "not there") for line in lines] == [2, "not there", "not there"]
    old = result.model_copy(update={"rows": tuple(row.model_copy(update={"words": None}) for row in result.rows)})
    assert '"words"' not in to_json(old)  # files from before have the same bytes, so comparisons still know them


def test_rows_keep_the_kind_that_the_data_says_and_files_without_one_stay_as_they_were(four: list[Example]) -> None:
    rows = [replace(row, meta={"kind": kind}) for row, kind in zip(four, ("heated", "plain", 3, None), strict=True)]
    result = evaluate(rows, ["a"] * 4, "rouge1")
    assert [row.kind for row in result.rows] == ["heated", "plain", None, None]
    lines = json.loads(to_json(result))["rows"]
    assert [line.get("kind", "not there") for line in lines] == ["heated", "plain", "not there", "not there"]
    assert Evaluation.model_validate_json(to_json(result)) == result


def test_toxicity_is_judged_through_the_task(four: list[Example]) -> None:
    """The word list is always there; a scorer by a name that leads nowhere is not scored and says so."""
    result = evaluate(
        four, ["You idiot.", "Hello.", "", "Fine."], "toxicity_rate:lexicon", "toxicity_mean:no/where", "empty_rate"
    )
    assert result.scores["toxicity_rate:lexicon"].value == pytest.approx(1 / 3)
    assert result.scores["toxicity_mean:no/where"].value is None
    assert "no/where" in (result.scores["toxicity_mean:no/where"].reason or "")
    assert result.scores["empty_rate"].value == 0.25
    assert (result.n_empty, result.n_scored) == (1, 3)
    with pytest.raises(
        ConfigError, match="metric 'toxicity_mean:lexicn': unknown; did you mean 'toxicity_mean:lexicon'"
    ):
        evaluate(four, ["a"] * 4, "toxicity_mean:lexicn")


# --- files ---


def test_an_evaluation_survives_its_file(tmp_path: Path, four: list[Example]) -> None:
    result = evaluate(four, ["a is here", 'é\u2028 "x"', "", "#Person1#"])
    file = write_evaluation(tmp_path / "run", result)
    assert file == tmp_path / "run" / "eval.json"
    assert read_evaluation(file) == read_evaluation(file.parent) == result
    assert file.read_text(encoding="utf-8") == to_json(result)
    assert json.loads(file.read_text(encoding="utf-8"))["schema"] == "dialtune.eval/1"
    assert write_evaluation(tmp_path / "other.json", result).name == "other.json"


def test_a_missing_evaluation_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.json: no such file; make it with: dialtune evaluate"):
        read_evaluation(tmp_path)


def test_a_damaged_evaluation_names_the_places(tmp_path: Path, four: list[Example]) -> None:
    document = json.loads(to_json(evaluate(four, ["a"] * 4, "rouge1")))
    document["scores"]["rouge1"]["n"] = -1
    document["surprise"] = 1
    file = tmp_path / "eval.json"
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"eval\.json: scores\.rouge1\.n: .*\n.*eval\.json: surprise: "):
        read_evaluation(file)
    file.write_text("{")
    with pytest.raises(DataError, match=r"eval\.json: document: Invalid JSON"):
        read_evaluation(file)


def test_the_schema_holds_its_promises(four: list[Example]) -> None:
    good = evaluate(four, ["a"] * 4, "rouge1")
    with pytest.raises(ValidationError, match="n_scored <= n_generated"):
        Evaluation(**{**good.model_dump(by_alias=True), "n_scored": 9})
    with pytest.raises(ValidationError, match="null exactly when n is 0"):
        ScoreEntry(value=1.0, ci=None, n=0, signature="s")
    with pytest.raises(ValidationError, match="needs a reason"):
        ScoreEntry(value=None, ci=None, n=0, signature="s")
    with pytest.raises(ValidationError, match="finite"):
        ScoreEntry(value=float("nan"), ci=None, n=1, signature="s")


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_one_prediction_a_line(tmp_path: Path, four: list[Example], ending: str, line_end: str) -> None:
    file = tmp_path / "out.txt"
    file.write_bytes((line_end.join(["one", "", "thr\u2028ee ", '{"a": 1}']) + ending).encode())
    texts = [completion.text for completion in read_predictions(file, four)]
    assert texts == ["one", "", "thr\u2028ee ", '{"a": 1}']


def test_a_trailing_empty_prediction_needs_its_line_end(tmp_path: Path, four: list[Example]) -> None:
    file = tmp_path / "out.txt"
    file.write_text("one\ntwo\nthree\n\n")
    assert [completion.text for completion in read_predictions(file, four)] == ["one", "two", "three", ""]


def test_a_wrong_number_of_predictions_states_both_counts(tmp_path: Path, four: list[Example]) -> None:
    file = tmp_path / "out.txt"
    file.write_text("one\ntwo\nthree\n")
    with pytest.raises(DataError, match=r"out\.txt: 3 predictions, but the data has 4 dialogues"):
        read_predictions(file, four)


def test_jsonl_is_matched_by_id_or_else_by_order(tmp_path: Path, four: list[Example]) -> None:
    file = tmp_path / "out.jsonl.gz"
    rows: list[dict[str, object]] = [
        {"id": key, "completion": f"of {key}", "finish": "length" if key == "c" else "stop"} for key in "dcba"
    ]
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    read = read_predictions(file, four)
    assert [(c.example_id, c.text, c.finish) for c in read][1:3] == [("b", "of b", "stop"), ("c", "of c", "length")]
    plain = tmp_path / "out.jsonl"
    plain.write_text('{"prediction": "1"}\n{"text": "2"}\n\n{"completion": "3"}\n{"text": ""}\n')
    assert [c.text for c in read_predictions(plain, four)] == ["1", "2", "3", ""]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ['{"text": "1"}', "{", '{"text": 3}', "[]"],
            r"jsonl:2: Expecting.*\n.*jsonl:3: needs.*\n.*jsonl:4: got list",
        ),
        (['{"text": "1", "finish": "eos"}'] * 4, r"jsonl:1: finish: got 'eos'; allowed: stop, length"),
        (['{"text": "1", "prediction": "1"}'] * 4, "needs one text under"),
        (['{"text": "1", "id": "a"}'] * 3 + ['{"text": "1"}'], "3 of 4 rows have an id"),
        (['{"text": "1", "id": "a"}'] * 4, "id 'a' occurs more than once"),
        ([f'{{"text": "1", "id": "{key}"}}' for key in "abcx"], "completion for id 'x'"),
    ],
)
def test_bad_rows_are_named_by_line(tmp_path: Path, four: list[Example], rows: list[str], message: str) -> None:
    file = tmp_path / "out.jsonl"
    file.write_text("\n".join(rows))
    with pytest.raises(DataError, match=message):
        read_predictions(file, four)


def test_files_that_are_no_text_are_refused(tmp_path: Path, four: list[Example]) -> None:
    with pytest.raises(ConfigError, match="no such file; --predictions takes"):
        read_predictions(tmp_path / "none.txt", four)
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as UTF-8 text"):
        read_predictions(tmp_path / "bytes.txt", four)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"one\ntwo")[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "cut.txt.gz", four)


# --- the real outputs ---


@pytest.fixture(scope="module")
def real(shared_data: Path) -> tuple[DataSet, list[Completion]]:
    dataset = read_examples(shared_data / "dialogsum" / "dialogsum.test.jsonl.gz")
    return dataset, read_predictions(shared_data / "dialogsum" / "bart_large_baseline_outputs.txt", dataset.examples)


@pytest.mark.parametrize(
    ("reference", "wanted"),
    [
        ("summary1", {"rouge1": 45.91, "rouge2": 21.32, "rougeL": 38.71, "bleu": 20.57, "chrf": 39.91}),
        ("mean", {"rouge1": 45.05, "rouge2": 20.07, "rougeL": 37.88, "bleu": 34.16, "rouge1_max": 53.65}),
        ("max", {"rouge1_max": 53.65, "rouge2_max": 30.07, "rougeL_max": 47.08, "bleu": 34.16}),
    ],
)
def test_the_baseline_outputs_score_as_published(
    real: tuple[DataSet, list[Completion]], reference: str, wanted: dict[str, float]
) -> None:
    result = evaluate_completions(
        *real,
        ["rouge1", "rouge2", "rougeL", "bleu", "chrf"],
        reference=reference,
        model=MODEL,
        task="summarize",
        resamples=1000,
    )
    assert {name: result.scores[name].value for name in wanted} == pytest.approx(wanted, abs=0.005)
    assert (result.n_total, result.n_scored, result.n_empty) == (500, 500, 0)
    if reference == "summary1":
        low, high = result.scores["rouge1"].ci or (0, 0)
        assert (high - low) / 2 == pytest.approx(1.4, abs=0.1)  # points, n = 500


def test_evaluating_loads_no_torch() -> None:
    code = "import sys, dialtune.evaluation, dialtune.comparison; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "nltk", "scipy", "sacrebleu", "rouge_score"} & set(done.stdout.split())
