"""Scores of true replies from log-likelihoods by hand; ranks against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialtune.metrics.likelihood import KINDS, TIE, ReplyLikelihood, ReplyLogprobs
from dialtune.metrics.table import METRICS
from dialtune.types import Example

NAN = math.nan
ROWS = [Example(str(k), ()) for k in range(3)]
FOUND = ReplyLogprobs(
    true=np.array([-6.0, -4.0, NAN]),
    last=np.array([-9.0, NAN, NAN]),
    wrong=np.array([[-7.0, -5.0, -6.0], [-8.0, -10.0, NAN], [NAN, NAN, NAN]]),
    n_tokens=np.array([3.0, 2.0, 0.0]),
    tokens="abcd1234",
    max_tokens=256,
)


def scored(kind: str) -> list[float]:
    metric = ReplyLikelihood(kind).by(FOUND)  # type: ignore[arg-type]
    return [float(x) for x in metric.segments(["", "", ""], ROWS)[:, 0]]


def test_margins_are_per_token() -> None:
    # (-6 + 6) / 3 for the mean of -7 -5 -6; (-4 + 9) / 2 for the two there are
    assert scored("context_margin")[:2] == pytest.approx([0, 2.5])
    assert scored("context_margin_last")[0] == pytest.approx(1)
    assert math.isnan(scored("context_margin_last")[1])
    assert all(math.isnan(scored(kind)[2]) for kind in KINDS)


def test_ranks_count_ties_half() -> None:
    # -6 against -7 (worse), -5 (better), -6 (tied): 1.5 of 3 lost, rank 2.5
    assert scored("context_ll_auc")[:2] == pytest.approx([0.5, 1])
    assert scored("context_ll_mrr")[:2] == pytest.approx([1 / 2.5, 1])


def test_perplexity_weighs_tokens_not_replies() -> None:
    metric = ReplyLikelihood("perplexity").by(FOUND)
    stats = metric.segments(["", "", ""], ROWS)
    assert stats[:2].tolist() == [[6, 3], [4, 2]]
    assert metric.aggregate(stats) == pytest.approx(math.exp(10 / 5))
    drawn = metric.aggregate(stats, np.array([[0, 0, 2], [1, 2, 2], [0, 1, 1]]))
    assert drawn == pytest.approx([math.exp(2), math.exp(2), math.exp(14 / 7)])


@given(st.floats(-50, 0), st.lists(st.floats(-50, 0), min_size=1, max_size=9))
def test_the_auc_of_a_row_is_that_of_scikit_learn(true: float, wrong: list[float]) -> None:
    from sklearn.metrics import roc_auc_score

    if any(0 < abs(other - true) < 2 * TIE for other in wrong):
        return  # nearer than rounding: a tie here
    one = ReplyLogprobs(np.array([true]), np.array([NAN]), np.array([wrong]), np.array([4.0]), "x", 256)
    found = ReplyLikelihood("context_ll_auc").by(one).segments([""], ROWS[:1])[0, 0]
    assert found == pytest.approx(roc_auc_score([1, *[0] * len(wrong)], [true, *wrong]))


def test_without_the_model_nothing_is_scored_and_the_reason_is_said() -> None:
    for kind in KINDS:
        metric = METRICS[kind]
        assert metric.unavailable() == "needs the model itself; texts alone have no likelihood"
        assert np.isnan(metric.segments(["a"], ROWS[:1])).all()
        assert ReplyLikelihood(kind).by(FOUND).unavailable() is None


def test_directions_and_scales() -> None:
    assert {kind: METRICS[kind].direction for kind in KINDS} == {
        "perplexity": "lower",
        "context_margin": "higher",
        "context_margin_last": "higher",
        "context_ll_auc": "higher",
        "context_ll_mrr": "higher",
    }
    assert [kind for kind in KINDS if METRICS[kind].log_scale] == ["perplexity"]
    assert [kind for kind in KINDS if not METRICS[kind].true_zero] == ["context_margin", "context_margin_last"]


def test_the_signature_says_how_replies_were_cut_and_what_they_were_held_against() -> None:
    assert ReplyLikelihood("perplexity").by(FOUND).signature((1, 1)) == (
        "perplexity|refs:1|agg:corpus|unit:token|stop:counts|max:256|tokens:abcd1234|dialtune:1"
    )
    assert ReplyLikelihood("context_ll_auc").by(FOUND).signature((1, 1)) == (
        "context_ll_auc|refs:1|agg:mean|against:other-dialogues|k:9|near:length|seed:0|ties:half|unit:token|stop:counts"
        "|max:256|tokens:abcd1234|dialtune:1"
    )
    assert "|against:last-turn|" in ReplyLikelihood("context_margin_last").by(FOUND).signature((1, 1))
    signatures = {ReplyLikelihood(kind).signature((1, 1)) for kind in KINDS}
    assert len(signatures) == len(KINDS)
    assert all("tokens:unknown" in one for one in signatures)
