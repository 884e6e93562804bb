"""BLEU and chrF by hand, and their sums against sacrebleu's own corpus scores."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from dialtune.metrics.base import Metric
from dialtune.metrics.bleu import Bleu, Chrf
from dialtune.types import Example, Message

WORDS = ["the", "a", "cat", "mat", "sat", "on", "Anna's", "#Person1#", "pays", "£20,", "late!", "is", "it", "?", "no"]


def example(*references: str) -> Example:
    return Example("1", (Message("user", "hi", ""),), references)


def value(metric: Metric, text: str, *references: str) -> float:
    score = metric.aggregate(metric.segments([text], [example(*references)]))
    assert isinstance(score, float)
    return score


def random_rows(n: int, seed: int = 0, longest: int = 14) -> tuple[list[str], list[tuple[str, ...]]]:
    """Texts that resemble their three references."""
    draw = random.Random(seed)
    texts, references = [], []
    for _ in range(n):
        base = draw.choices(WORDS, k=draw.randrange(4, longest))
        forms = [" ".join(word if draw.random() < 0.7 else draw.choice(WORDS) for word in base) for _ in range(4)]
        texts.append(forms[0])
        references.append(tuple(forms[1:]))
    return texts, references


def test_bleu_by_hand() -> None:
    # 7 of 8 unigrams, 5 of 7 bigrams, 3 of 6 trigrams, 1 of 5 four-grams; 8 words against 8: no brevity penalty.
    text, target = "a b c d X f g h", "a b c d e f g h"
    want = 100 * math.exp((math.log(7 / 8) + math.log(5 / 7) + math.log(3 / 6) + math.log(1 / 5)) / 4)
    assert value(Bleu(), text, target) == pytest.approx(want)


def test_a_short_text_pays_the_brevity_penalty() -> None:
    # All n-grams match; 5 words against 8: exp(1 - 8/5)
    assert value(Bleu(), "a b c d e", "a b c d e f g h") == pytest.approx(100 * math.exp(1 - 8 / 5))


def test_orders_without_a_match_are_smoothed_exponentially() -> None:
    # Four words, matches 2 / 0 / 0 / 0 of 4 / 3 / 2 / 1: 2/4, 1/(2*3), 1/(4*2), 1/(8*1)
    want = 100 * (2 / 4 * 1 / 6 * 1 / 8 * 1 / 8) ** 0.25
    assert value(Bleu(), "a x b y", "b z a w") == pytest.approx(want)


def test_bleu_counts_the_nearest_of_several_references() -> None:
    assert value(Bleu("mean"), "a b c d e", "a b c d e f g h", "v w x y z") == pytest.approx(100)


@pytest.mark.parametrize("text", ["", "a b c", "v w x y z"])
def test_no_four_gram_or_no_common_word_is_zero(text: str) -> None:
    assert value(Bleu(), text, "a b c d e") == 0
    assert BLEU().corpus_score([text], [["a b c d e"]]).score == 0


def test_chrf_by_hand() -> None:
    # "ab" against "abc": order 1 P 2/2 R 2/3, order 2 P 1/1 R 1/2; mean P 1, R 7/12; F2 = 5 P R / (4 P + R)
    assert value(Chrf(), "ab", "abc") == pytest.approx(100 * 5 * (7 / 12) / (4 + 7 / 12))
    assert value(Chrf(), "", "abc") == 0
    assert value(Chrf(), "xyz", "abc") == 0


@pytest.mark.parametrize("metric", [Bleu("mean"), Chrf("mean")], ids=lambda metric: metric.name)
def test_sums_of_any_draw_score_as_sacrebleu_scores_that_corpus(metric: Metric) -> None:
    texts, references = random_rows(30)
    texts[3] = ""
    stats = metric.segments(texts, [example(*targets) for targets in references])
    index = np.random.default_rng(0).integers(30, size=(6, 30))
    scores = metric.aggregate(stats, index)
    tool = BLEU(force=True) if metric.name == "bleu" else CHRF()
    for row, score in zip(index, np.asarray(scores), strict=True):
        streams = [[references[k][stream] for k in row] for stream in range(3)]
        assert score == pytest.approx(tool.corpus_score([texts[k] for k in row], streams).score, rel=1e-12)


@pytest.mark.parametrize("metric", [Bleu("mean"), Chrf("mean")], ids=lambda metric: metric.name)
def test_rows_may_have_different_numbers_of_references(metric: Metric) -> None:
    rows = [example("a b c d e"), example("v w", "a b c d e"), example()]
    stats = metric.segments(["a b c d e", "a b c d e", "a b c d e"], rows)
    assert np.isnan(stats[2]).all()
    assert metric.aggregate(stats) == pytest.approx(100)


def test_no_references_at_all_score_nothing() -> None:
    assert np.isnan(Bleu().segments(["a"], [example()])).all()


def test_the_signatures_embed_the_tools_settings() -> None:
    assert Bleu("mean").signature((3, 3)) == (
        "bleu|refs:3|agg:corpus|case:mixed|eff:no|tok:13a|smooth:exp|empty:zero|tool:sacrebleu-2.6.0|dialtune:1"
    )
    assert "case:mixed|eff:no|tok:13a|smooth:exp" in str(_scored(BLEU()).get_signature())
    assert "case:mixed|eff:yes|nc:6|nw:0|space:no" in str(_scored(CHRF()).get_signature())
    assert "case:mixed|eff:yes|nc:6|nw:0|space:no" in Chrf().signature((1, 1))


def _scored(tool: BLEU | CHRF) -> BLEU | CHRF:
    tool.corpus_score(["a b c d"], [["a b c d"]])
    return tool


def test_signatures_differ_when_any_setting_does() -> None:
    made = [Bleu(), Bleu("mean"), Bleu("summary2"), Bleu(lowercase=True), Bleu(tokenize="none"), Chrf(), Chrf("mean")]
    assert len({metric.signature((3, 3)) for metric in made}) == len(made)
