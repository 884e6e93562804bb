"""Several replies of one dialogue: every interval and every test resamples dialogues, from rows to compare.json."""

from __future__ import annotations

import json
import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from dialtune.comparison import check_requirements, compare, describe
from dialtune.data.reading import DataSet
from dialtune.errors import GateFailedError
from dialtune.evaluation import evaluate_completions
from dialtune.metrics.base import Array, Metric
from dialtune.metrics.likelihood import ReplyLikelihood, ReplyLogprobs
from dialtune.metrics.reply import EchoRate
from dialtune.pairing import pair_rows
from dialtune.results import Comparison, Evaluation, ModelInfo, to_json
from dialtune.statistics import t_quantile
from dialtune.types import Completion, Example, Message

WORDS = [f"word{k}" for k in range(40)]


def corpus(sizes: list[int]) -> DataSet:
    """Dialogues of so many replies; every context is its own."""
    rows = [
        Example(
            f"d{d}#{t}",
            (Message("user", f"question {d} {t} {WORDS[(d + t) % 40]}"),),
            (f"answer {d} {t}",),
            {"dialogue": f"d{d}", "turn": t},
        )
        for d, size in enumerate(sizes)
        for t in range(1, size + 1)
    ]
    return DataSet("toy", "test", "messages", tuple(rows))


def evaluated(data: DataSet, texts: list[str], metrics: list[str | Metric], **settings: Any) -> Evaluation:
    completions = [Completion(row.id, text, (), "stop") for row, text in zip(data.examples, texts, strict=True)]
    settings.setdefault("resamples", 2000)
    return evaluate_completions(data, completions, metrics, model=ModelInfo(name="m"), task="respond", **settings)


def echoes(data: DataSet, flags: list[bool]) -> list[str]:
    """Texts of which those with a flag echo the last turn."""
    return [
        row.messages[-1].content if flag else "nothing of the kind here"
        for row, flag in zip(data.examples, flags, strict=True)
    ]


def rated(sizes: list[int], seed: int, shift: float = 0.0) -> tuple[DataSet, list[bool]]:
    """Rows of a dialogue that mostly agree: what makes replies worth less than dialogues."""
    rng = np.random.default_rng(seed)
    flags = [
        rng.random() < p for size in sizes for p in [np.clip(rng.beta(0.4, 0.4) + shift, 0, 1)] for _ in range(size)
    ]
    return corpus(sizes), flags


def test_the_interval_is_that_of_a_cluster_bootstrap_by_hand() -> None:
    """300 dialogues of 1 to 6 replies: mean of the drawn dialogues' replies, percentiles of 4,000 draws."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 7, 300).tolist()
    data, flags = rated(sizes, seed=0)
    found = evaluated(data, echoes(data, flags), ["echo_rate"], resamples=4000).scores["echo_rate"]
    groups = np.split(np.array(flags, dtype=float), np.cumsum(sizes)[:-1])
    draws = [np.concatenate([groups[k] for k in rng.integers(300, size=300)]).mean() for _ in range(4000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    assert found.value == pytest.approx(np.mean(flags))
    assert found.n == sum(sizes)
    assert found.ci == pytest.approx((low, high), abs=0.004)
    by_reply = 1.96 * np.std(flags) / math.sqrt(len(flags))
    assert high - low > 1.5 * 2 * by_reply  # replies of a dialogue agree, so their number says too much


def test_every_draw_of_three_dialogues_is_a_draw_of_the_evaluation() -> None:
    """Small enough to write all 27 down: the standard error over them, with t of two degrees of freedom."""
    sizes = [1, 2, 4]
    data = corpus(sizes)
    flags = [True, True, False, False, False, False, True]
    groups = np.split(np.array(flags, dtype=float), np.cumsum(sizes)[:-1])
    draws = [np.concatenate([groups[k] for k in chosen]).mean() for chosen in product(range(3), repeat=3)]
    half = t_quantile(0.95, 2) * np.std(draws) * math.sqrt(3 / 2)
    found = evaluated(data, echoes(data, flags), ["echo_rate"], resamples=60_000).scores["echo_rate"]
    assert found.ci is not None
    assert (found.ci[1] - found.ci[0]) / 2 == pytest.approx(half, rel=0.01)


def test_replies_of_one_dialogue_have_a_value_and_no_interval() -> None:
    data = corpus([5])
    found = evaluated(data, echoes(data, [True, False, True, True, False]), ["echo_rate", "bleu", "distinct_1"])
    assert found.scores["echo_rate"].value == pytest.approx(0.6)
    assert found.scores["echo_rate"].ci is None
    assert found.scores["bleu"].ci is None
    assert found.scores["distinct_1"].reason == "fewer than 200 n-grams in all completions together"
    both = compare(found, found, resamples=50, permutations=50)
    assert both.scores["echo_rate"].n_dialogues == 1
    assert both.scores["echo_rate"].verdict == "no difference shown"


def test_rows_carry_their_unit_and_a_row_alone_carries_none() -> None:
    data = corpus([1, 3])
    found = evaluated(data, ["x"] * 4, ["echo_rate"])
    assert [row.unit for row in found.rows] == [None, None, "d1#1", "d1#1"]
    assert Evaluation.model_validate_json(to_json(found)) == found


def compared(sizes: list[int], names: list[str | Metric], seed: int = 1, **settings: Any) -> Comparison:
    data, flags = rated(sizes, seed=seed)
    _, fewer = rated(sizes, seed=seed, shift=-0.6)
    sides = [evaluated(data, echoes(data, side), names) for side in (flags, fewer)]
    return compare(*sides, resamples=2000, permutations=5000, **settings)


def test_a_test_swaps_whole_dialogues_by_hand() -> None:
    """Six dialogues, all 64 assignments: the share whose difference is at least the observed one."""
    sizes = [3, 1, 2, 4, 2, 1]
    data = corpus(sizes)
    old = [True, True, False, True, True, False, True, False, True, True, True, False, True]
    new = [False, False, False, True, False, False, True, False, False, True, False, False, True]
    sides = [evaluated(data, echoes(data, flags), ["echo_rate"]) for flags in (old, new)]
    found = compare(*sides, resamples=200).scores["echo_rate"]
    change = np.add.reduceat(np.subtract(new, old, dtype=float), np.cumsum([0, *sizes[:-1]]))
    null = [abs(sum(sign * d for sign, d in zip(signs, change, strict=True))) for signs in product((1, -1), repeat=6)]
    assert found.p == pytest.approx(np.mean([one >= abs(change.sum()) - 1e-9 for one in null]))
    assert (found.n, found.n_dialogues) == (13, 6)
    assert found.effect is not None
    by_dialogue = change / np.array(sizes)
    assert found.effect.dz == pytest.approx(by_dialogue.mean() / by_dialogue.std(ddof=1))
    assert found.effect.tied == pytest.approx(np.mean(by_dialogue == 0))


def test_the_verdict_asks_for_thirty_dialogues_not_thirty_replies() -> None:
    few = compared([3] * 20, ["echo_rate"])
    assert few.scores["echo_rate"].n == 60
    assert few.scores["echo_rate"].verdict == "no difference shown"
    assert few.scores["echo_rate"].note == "no verdict below 30 dialogues"
    with pytest.raises(GateFailedError, match="gates need 30 dialogues"):
        check_requirements(few, ["echo_rate<=-10%"])
    many = compared([3] * 60, ["echo_rate"])
    assert many.scores["echo_rate"].verdict == "improved"
    check_requirements(many, ["echo_rate<=-10%"])
    assert "n 180 in 60 dialogues: improved" in describe(many)[0]


def test_files_say_dialogues_only_where_they_are_not_the_rows() -> None:
    several, alone = compared([3] * 40, ["echo_rate"]), compared([1] * 40, ["echo_rate"])
    assert json.loads(to_json(several))["scores"]["echo_rate"]["n_dialogues"] == 40
    assert "n_dialogues" not in json.loads(to_json(alone))["scores"]["echo_rate"]
    assert alone.scores["echo_rate"].dialogues == alone.scores["echo_rate"].n == 40
    for record in (several, alone):
        assert Comparison.model_validate_json(to_json(record)) == record


def test_files_of_before_are_read() -> None:
    """eval.json and compare.json without any of the fields that replies brought."""
    row = {"id": "a", "completion": "x", "finish": "stop", "scores": {"rouge1": 1.0}, "statistics": {"bleu": [1, 1]}}
    text = to_json(evaluated(corpus([1, 1]), ["x", "y"], ["echo_rate"]))
    document = json.loads(text)
    document["rows"] = [row]
    read = Evaluation.model_validate(document)
    assert read.rows[0].unit is None
    assert read.rows[0].statistics == {"bleu": (1, 1)}
    assert '"note"' not in text


# --- corpus scores that are no sums of counts ---


def chatter(seed: int, kinds: int, sizes: list[int]) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(f"w{k}" for k in rng.integers(0, kinds, 9)) for _ in range(sum(sizes))]


def test_distinct_is_compared_from_the_rows_statistics_alone() -> None:
    sizes = [2] * 45
    data = corpus(sizes)
    narrow, wide = chatter(0, 40, sizes), chatter(1, 400, sizes)
    sides = [evaluated(data, texts, ["distinct_1", "distinct_2"]) for texts in (narrow, wide)]
    blind = [
        side.model_copy(update={"rows": tuple(row.model_copy(update={"completion": "?"}) for row in side.rows)})
        for side in sides
    ]
    found = compare(*blind, resamples=1000, permutations=1000)
    entry = found.scores["distinct_1"]
    assert entry.verdict == "improved"
    # 810 words: 40 kinds all come up in 200 draws but for one in 150, 400 kinds are drawn about 157 times.
    assert entry.before == pytest.approx(0.2 * (1 - (39 / 40) ** 200), abs=0.01)
    assert entry.after == pytest.approx(2 * (1 - (399 / 400) ** 200), abs=0.03)
    assert entry.p == pytest.approx(1 / 1001)
    assert entry.ci is not None
    assert entry.ci[0] < entry.difference < entry.ci[1]  # type: ignore[operator]
    assert entry.n_dialogues == 45
    assert entry.effect is None
    assert sides[0].scores["distinct_1"].value == pytest.approx(entry.before)
    back = compare(*blind[::-1], resamples=1000, permutations=1000).scores["distinct_1"]
    assert back.verdict == "worse"
    assert back.p == entry.p


def test_distinct_of_a_model_with_itself_shows_nothing() -> None:
    sizes = [2] * 40
    sides = [evaluated(corpus(sizes), chatter(seed, 200, sizes), ["distinct_1"]) for seed in (0, 1)]
    entry = compare(*sides, resamples=1000, permutations=1000).scores["distinct_1"]
    assert entry.verdict == "no difference shown"
    assert entry.p is not None
    assert entry.p > 0.05


def test_silence_adds_nothing_to_distinct_and_takes_no_pair_away() -> None:
    sizes = [2] * 40
    data = corpus(sizes)
    spoken = chatter(0, 100, sizes)
    half = ["" if k % 2 else text for k, text in enumerate(spoken)]
    sides = [evaluated(data, texts, ["distinct_2"]) for texts in (spoken, half)]
    entry = compare(*sides, resamples=200, permutations=200).scores["distinct_2"]
    assert (entry.n, entry.n_dropped) == (80, 0)
    assert entry.after == pytest.approx(entry.before, abs=0.02)


def test_too_little_text_on_one_side_is_said() -> None:
    sizes = [1] * 40
    data = corpus(sizes)
    sides = [evaluated(data, texts, ["distinct_1"]) for texts in (chatter(0, 100, sizes), ["one"] * 40)]
    entry = compare(*sides, resamples=50, permutations=50).scores["distinct_1"]
    assert entry.before is None
    assert entry.note == "fewer than 200 n-grams in all completions together"


def losses(seed: int, mean: float, n: int) -> ReplyLogprobs:
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, 20, n).astype(float)
    true = -tokens * rng.gamma(4, mean / 4, n)
    return ReplyLogprobs(true, true - 1, true[:, None] - rng.random((n, 9)), tokens, "t", 256)


def side(data: DataSet, found: ReplyLogprobs) -> Evaluation:
    names: list[str | Metric] = [ReplyLikelihood("perplexity").by(found), ReplyLikelihood("context_margin").by(found)]
    return evaluated(data, ["x"] * len(data.examples), names)


def test_perplexity_has_an_interval_of_ratios_by_hand() -> None:
    sizes = [3] * 50
    data = corpus(sizes)
    found = losses(0, 3.0, 150)
    score = side(data, found).scores["perplexity"]
    nll, tokens = (x.reshape(50, 3).sum(axis=1) for x in (-found.true, found.n_tokens))
    rng = np.random.default_rng(9)
    drawn = rng.integers(50, size=(20_000, 50))
    logs = nll[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    point = nll.sum() / tokens.sum()
    half = t_quantile(0.95, 49) * logs.std() * math.sqrt(50 / 49)
    assert score.value == pytest.approx(math.exp(point))
    assert score.ci == pytest.approx((math.exp(point - half), math.exp(point + half)), rel=0.01)
    assert score.ci is not None
    assert score.value / score.ci[0] == pytest.approx(score.ci[1] / score.value)


def test_perplexity_is_compared_by_token_and_by_dialogue() -> None:
    sizes = [3] * 50
    data = corpus(sizes)
    old, better = losses(0, 3.0, 150), losses(0, 2.5, 150)
    entry = compare(side(data, old), side(data, better), resamples=1000, permutations=1000).scores["perplexity"]
    assert entry.verdict == "improved"
    assert entry.direction == "lower"
    assert entry.before == pytest.approx(math.exp(-old.true.sum() / old.n_tokens.sum()))
    assert entry.after == pytest.approx(math.exp(-better.true.sum() / better.n_tokens.sum()))
    assert entry.relative is not None
    assert entry.relative_ci is not None
    assert entry.relative_ci[0] < entry.relative < entry.relative_ci[1] < 0


def test_other_tokens_are_not_compared() -> None:
    data = corpus([1] * 40)
    one, other = losses(0, 3.0, 40), losses(0, 2.5, 40)
    other = ReplyLogprobs(other.true, other.last, other.wrong, other.n_tokens, "another", 256)
    with pytest.raises(Exception, match="perplexity tokens: t against another"):
        compare(side(data, one), side(data, other))


def test_a_side_without_likelihoods_leaves_the_other_scores_as_they_are() -> None:
    data = corpus([1] * 40)
    texts = echoes(data, [k % 3 == 0 for k in range(40)])
    silent = evaluated(data, texts, ["perplexity", "echo_rate", "bleu"])
    names: list[str | Metric] = [ReplyLikelihood("perplexity").by(losses(0, 3.0, 40)), "echo_rate", "bleu"]
    asked = evaluated(data, ["x y z"] * 40, names)
    found = compare(silent, asked, resamples=300, permutations=300).scores
    assert found["perplexity"].before is None
    assert found["perplexity"].note == "needs the model itself; texts alone have no likelihood"
    alone = [evaluated(data, t, ["echo_rate", "bleu"]) for t in (texts, ["x y z"] * 40)]
    assert {k: v.p for k, v in compare(*alone, resamples=300, permutations=300).scores.items()} == {
        k: found[k].p for k in ("echo_rate", "bleu")
    }


def test_pairs_of_a_row_wise_score_are_averaged_by_dialogue() -> None:
    data = corpus([2, 1])
    sides = [evaluated(data, echoes(data, flags), ["echo_rate"]) for flags in ([False] * 3, [True, False, True])]
    differences: Array | None = pair_rows(*sides, EchoRate()).differences
    assert differences is not None
    assert sorted(differences) == [0.5, 1]
