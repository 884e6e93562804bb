"""Toxicity scores by a scorer that the test knows by heart, empty rate, and facts that must survive."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dialtune.config.schema import MetricName, TaskName
from dialtune.errors import ConfigError, MissingExtraError, ModelError, ModelNotFoundError
from dialtune.metrics import toxicity
from dialtune.metrics.table import METRICS, find_metric, look_up
from dialtune.metrics.toxicity import KINDS, EmptyRate, MentionKept, Toxicity, fact_words
from dialtune.scorers.table import JURY, PACKAGED_SCORERS
from dialtune.tasks import TASKS
from dialtune.types import Example, Message


class ByNumber:
    """The log-odds that stand in the text; -10 for anything else."""

    name = "by-number"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        self.asked += texts
        return np.array([float(text) if text.lstrip("-").replace(".", "").isdecimal() else -10.0 for text in texts])

    def settings(self) -> dict[str, str]:
        return {"scorer": "by-number-1", "sha": "1f2e3d4c", "label": "toxic text", "link": "sigmoid", "max": "256"}


@pytest.fixture
def scorer(monkeypatch: pytest.MonkeyPatch) -> Iterator[ByNumber]:
    found = ByNumber()
    monkeypatch.setattr(toxicity, "find_scorer", lambda name: found)
    toxicity.open_scorer.cache_clear()
    yield found
    toxicity.open_scorer.cache_clear()


def rows(n: int) -> list[Example]:
    return [Example(str(k), (Message("user", "You fool!", "A"),)) for k in range(n)]


def column(kind: toxicity.Kind, texts: Sequence[str]) -> list[float]:
    return [float(x) for x in Toxicity(kind, "x").segments(texts, rows(len(texts)))[:, 0]]


TEXTS = ("0", "-2", "3", "-0.001", "0.001")
CHANCES = [1 / (1 + math.exp(-float(text))) for text in TEXTS]


def test_the_mean_is_of_probabilities_and_the_rate_of_those_from_one_half(scorer: ByNumber) -> None:
    assert column("toxicity_mean", TEXTS) == pytest.approx(CHANCES)
    assert column("toxicity_rate", TEXTS) == [1, 0, 1, 0, 1]  # exactly one half is toxic
    mean, rate = Toxicity("toxicity_mean", "x"), Toxicity("toxicity_rate", "x")
    assert mean.aggregate(mean.segments(TEXTS, rows(5))) == pytest.approx(sum(CHANCES) / 5)
    assert rate.aggregate(rate.segments(TEXTS, rows(5))) == pytest.approx(0.6)


def test_the_95th_percentile_is_the_smallest_value_that_95_of_100_do_not_exceed(scorer: ByNumber) -> None:
    """Of 20 rows the 19th smallest; of 21 the 20th, since 19 of 21 are 90.5 %."""
    metric = Toxicity("toxicity_p95", "x")
    for n, place in ((20, 19), (21, 20), (100, 95), (1, 1)):
        texts = [str(k / 10) for k in range(1, n + 1)]
        assert metric.aggregate(metric.segments(texts, rows(n))) == pytest.approx(1 / (1 + math.exp(-place / 10)))


def test_percentiles_of_draws_are_numpys(scorer: ByNumber) -> None:
    metric = Toxicity("toxicity_p95", "x")
    stats = np.append(np.random.default_rng(0).random(30), np.nan)[:, None]
    index = np.random.default_rng(1).integers(31, size=(50, 31))
    got = metric.aggregate(stats, index)
    assert isinstance(got, np.ndarray)
    for draw, found in zip(index, got, strict=True):
        values = stats[draw, 0]
        ordered = np.sort(values[~np.isnan(values)])
        assert found == ordered[math.ceil(95 * len(ordered) / 100) - 1]


def test_empty_completions_are_left_out_and_never_reach_the_scorer(scorer: ByNumber) -> None:
    texts = ["2", "", " .!? ", "-2"]
    for kind in KINDS:
        values = column(kind, texts)
        assert [math.isnan(value) for value in values] == [False, True, True, False]
    assert {"", " .!? ", ".!?"}.isdisjoint(scorer.asked[1:])  # the first text asks whether the scorer is there
    assert all(math.isnan(value) for value in column("toxicity_mean", ["", "..."]))
    assert math.isnan(Toxicity("toxicity_mean", "x").aggregate(np.full((2, 1), np.nan)))
    assert math.isnan(Toxicity("toxicity_p95", "x").aggregate(np.full((2, 1), np.nan)))
    assert Toxicity("toxicity_mean", "x").segments([], []).shape == (0, 1)


def test_the_scorer_sees_the_stripped_completion_and_nothing_of_the_dialogue(scorer: ByNumber) -> None:
    column("toxicity_mean", ["  7\n", "Cafe\u0301"])
    assert scorer.asked == ["", "7", "Café"]


def test_the_signature_is_the_protocols(scorer: ByNumber) -> None:
    """Blanks in a label would break the form."""
    assert Toxicity("toxicity_mean", "x").signature((1, 1)) == (
        "toxicity_mean|scorer:by-number-1|sha:1f2e3d4c|label:toxic-text|link:sigmoid|text:completion|max:256"
        "|agg:mean|empty:excluded|dialtune:1"
    )
    assert "|agg:share-from-0.5|" in Toxicity("toxicity_rate", "x").signature((1, 1))
    assert "|agg:p95|" in Toxicity("toxicity_p95", "x").signature((1, 3))


@pytest.mark.parametrize("error", [MissingExtraError("the package is\n  not installed"), ModelNotFoundError("no such")])
def test_a_scorer_that_is_not_there_scores_nothing_and_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(name: str) -> ByNumber:
        raise error

    monkeypatch.setattr(toxicity, "find_scorer", refuse)
    toxicity.open_scorer.cache_clear()
    metric = Toxicity("toxicity_mean", "absent")
    assert metric.unavailable() == " ".join(str(error).split())
    assert np.isnan(metric.segments(["you fool", ""], rows(2))).all()
    assert metric.signature((1, 1)) == (
        "toxicity_mean|scorer:absent|sha:unknown|text:completion|agg:mean|empty:excluded|dialtune:1"
    )
    toxicity.open_scorer.cache_clear()


def test_the_reason_names_no_folder_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ByNumber:
        raise ModelNotFoundError(f"{Path(toxicity.__file__).resolve().parents[1] / 'assets' / 'x'}: no such folder")

    monkeypatch.setattr(toxicity, "find_scorer", refuse)
    toxicity.open_scorer.cache_clear()
    assert Toxicity("toxicity_mean", "absent").unavailable() == f"{Path('assets') / 'x'}: no such folder"
    toxicity.open_scorer.cache_clear()


def test_a_scorer_that_is_broken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> ByNumber:
        raise ModelError("weights without a head")

    monkeypatch.setattr(toxicity, "find_scorer", refuse)
    toxicity.open_scorer.cache_clear()
    with pytest.raises(ModelError, match="weights without a head"):
        Toxicity("toxicity_mean", "broken").unavailable()
    toxicity.open_scorer.cache_clear()


def test_a_scorer_that_is_there_is_not_unavailable(scorer: ByNumber) -> None:
    assert Toxicity("toxicity_mean", "x").unavailable() is None


# --- names ---


def test_packaged_scorers_have_rows_and_others_are_found_by_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [name for name in METRICS if name.startswith("toxicity_mean:")] == [
        f"toxicity_mean:{scorer}" for scorer in PACKAGED_SCORERS
    ]
    assert find_metric("toxicity_rate:facebook/roberta#hate") == Toxicity("toxicity_rate", "facebook/roberta#hate")
    assert find_metric("toxicity_mean:toxicity") is METRICS["toxicity_mean:minilm"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    assert look_up("toxicity_p95:mine") == Toxicity("toxicity_p95", "mine")
    assert look_up("rouge1") is METRICS["rouge1"]


@pytest.mark.parametrize("name", ["toxicity_mean", "toxicity_mean:", "toxicity_max:org/name", "toxicity_mean:minlm"])
def test_what_is_no_metric_is_refused_with_the_closest_name(name: str) -> None:
    assert look_up(name) is None
    with pytest.raises(ConfigError, match=rf"metric '{name}': unknown; did you mean 'toxicity_m"):
        find_metric(name)


@given(st.text(max_size=30))
def test_looking_up_any_text_finds_a_metric_or_nothing(name: str) -> None:
    found = look_up(name)
    assert found is None or found.name == name


def test_the_task_judges_by_reward_and_jury_and_its_names_exist() -> None:
    names = TASKS["detoxify"].metrics
    assert all(name in METRICS for name in names)
    assert {f"toxicity_{kind}:{scorer}" for kind in ("mean", "rate") for scorer in ("minilm", *JURY)} <= set(names)
    assert set(get_args(TaskName)) == set(TASKS)
    assert set(get_args(MetricName)) == set(METRICS)


def test_importing_the_table_opens_no_scorer_and_no_torch() -> None:
    code = "import sys, dialtune.metrics.table; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "sklearn", "profanity_check", "joblib"} & set(done.stdout.split())


# --- empty, kept ---


def test_empty_means_no_letter_and_no_digit() -> None:
    metric = EmptyRate()
    stats = metric.segments(["", "...", "a", "7", "好"], rows(5))
    assert stats[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert metric.aggregate(stats) == pytest.approx(0.4)
    assert metric.direction == "lower"
    assert metric.segments([], []).shape == (0, 1)


def control(mention: str, **meta: str) -> Example:
    turns = (Message("user", "Hello.", "#Person1#"), Message("user", "Hello.", "Mrs. Abara"))
    return Example("1", turns, meta={"mention": mention, **meta})


def kept(text: str, example: Example) -> float:
    return float(MentionKept().segments([text], [example])[0, 0])


def test_the_words_of_a_fact_are_those_that_carry_it() -> None:
    example = control("#Person1# mentions that Mrs. Abara's wife is Muslim, like the wife of #Person2#.")
    assert fact_words(example) == (("wife", "muslim"), 2 / 3)
    assert fact_words(control("Mrs. Abara says it was him.")) == ((), 2 / 3)
    assert fact_words(Example("1", ())) == ((), 1.0)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("#Person1# is a Muslim and so is his wife.", 1.0),  # both of two
        ("#Person1#'s wives are Muslims.", 0.0),  # wives is not wife: one of two
        ("#Person1# books a table.", 0.0),
        ("", 0.0),
    ],
)
def test_two_words_must_both_be_there(text: str, want: float) -> None:
    assert kept(text, control("#Person1# and his wife are Muslim.")) == want


def test_of_three_words_two_are_enough() -> None:
    example = control("#Person1# is deaf and reads lips.")  # deaf, reads, lips
    assert kept("#Person1# is deaf, so he watches lips.", example) == 1
    assert kept("#Person1# is deaf.", example) == 0


def test_a_key_word_decides_alone_where_there_is_one() -> None:
    example = control("#Person1#'s parents are immigrants from Nigeria.", mention_key="nigeria")
    assert kept("The Nigerian parents of #Person1# come.", example) == 1  # three letters more
    assert kept("The parents are immigrants.", example) == 0
    assert kept("NIGERIA!", example) == 1


def test_endings_of_up_to_three_letters_do_not_matter_and_longer_ones_do() -> None:
    assert kept("blackest", control("x", mention_key="black")) == 1
    assert kept("blackmail", control("x", mention_key="black")) == 0
    assert kept("gay", control("x", mention_key="gays")) == 1
    assert kept("it", control("x", mention_key="its own")) == 0  # two letters begin too many words


def test_rows_without_a_fact_are_not_scored_and_not_missing() -> None:
    metric = MentionKept()
    stats = metric.segments(["Muslim", "anything"], [control("#Person1# is Muslim."), rows(1)[0]])
    assert metric.aggregate(stats) == 1
    assert math.isnan(stats[1, 0])
    assert metric.every_row is False
    assert metric.signature((1, 1)) == "mention_kept|by:key-or-two-thirds|ending:3|unit:word|empty:zero|dialtune:1"


@given(st.text(), st.text(), st.text())
def test_any_text_keeps_a_fact_or_not(text: str, mention: str, key: str) -> None:
    value = kept(text, control(mention, mention_key=key))
    assert value in (0, 1) or math.isnan(value)
    if fact_words(control(mention))[0]:
        assert kept(mention, control(mention)) == 1
