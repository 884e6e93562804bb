"""ROUGE by hand, the accelerator against the original, and what a signature must tell apart."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest

from dialtune.metrics import rouge
from dialtune.metrics.rouge import TYPES, Rouge, f_scores, proves_equal
from dialtune.types import Example, Message


@pytest.fixture(autouse=True)
def _fresh_scorer() -> Any:
    """Each test chooses its scorer anew; the last one chosen must not leak into other files."""
    rouge._scorer.cache_clear()
    f_scores.cache_clear()
    yield
    rouge._scorer.cache_clear()
    f_scores.cache_clear()


def example(*references: str) -> Example:
    return Example("1", (Message("user", "hi", "#Person1#"),), references)


def value(metric: Rouge, text: str, *references: str) -> float:
    score = metric.aggregate(metric.segments([text], [example(*references)]))
    assert isinstance(score, float)
    return score


# Target, prediction and F1 of rouge1, rouge2, rougeL, rougeLsum as fractions, worked out from the definitions.
BY_HAND = [
    ("testing one two", "testing", (1 / 2, 0, 1 / 2, 1 / 2)),  # P 1, R 1/3
    ("testing one two", "testing one", (4 / 5, 2 / 3, 4 / 5, 4 / 5)),
    ("testing one two", "testing two", (4 / 5, 0, 4 / 5, 4 / 5)),
    # Lin 2004, section 3.2: union LCS w1 w2 w3 w5, R 4/5, P 4/10; one bigram, P 1/9, R 1/4
    ("w1 w2 w3 w4 w5", "w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", (8 / 15, 2 / 13, 8 / 15, 8 / 15)),
    # Two lines out of order: as one text only one of them is in sequence
    ("a b\nc d", "c d\na b", (1, 2 / 3, 1 / 2, 1)),
    ("a b a", "a a a", (2 / 3, 0, 2 / 3, 2 / 3)),  # matches are clipped at two
    ("He walks.", "walking", (2 / 3, 0, 2 / 3, 2 / 3)),  # the stem is one
    ("£20 — ok?", "20, OK!", (1, 1, 1, 1)),
    ("words", "", (0, 0, 0, 0)),
    ("words", "?!", (0, 0, 0, 0)),
    ("", "words", (0, 0, 0, 0)),
]


@pytest.mark.parametrize(("target", "text", "wanted"), BY_HAND)
@pytest.mark.parametrize("accelerated", [True, False])
def test_fractions_by_hand(
    target: str, text: str, wanted: tuple[float, ...], accelerated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not accelerated:
        monkeypatch.setitem(sys.modules, "rouge_score_rs", None)
    for kind, want in zip(TYPES, wanted, strict=True):
        assert value(Rouge(kind, split="none"), text, target) == pytest.approx(100 * want), kind  # type: ignore[arg-type]


def test_the_accelerator_gives_the_same_bits_as_rouge_score() -> None:
    fast = pytest.importorskip("rouge_score_rs").RougeScorer
    from rouge_score.rouge_scorer import RougeScorer

    words = "the cats running ran agreed happily re-read don't #Person1# Person2 £20 3.5 Zoë naïve café . !".split()  # noqa: SIM905
    words += ["\u2028", "\ud83d"]  # a line separator that is none, a lone surrogate
    draw = random.Random(0)
    lines = [" ".join(draw.choices(words, k=draw.randrange(9))) for _ in range(600)]
    texts = ["\n".join(lines[k : k + draw.randrange(1, 4)]) for k in range(240)]
    for stemmer in (True, False):
        ours, theirs = (kind(list(TYPES), use_stemmer=stemmer) for kind in (fast, RougeScorer))
        for target, text in zip(texts[:120], texts[120:], strict=True):
            one, other = ours.score(target, text), theirs.score(target, text)
            assert [one[kind].fmeasure for kind in TYPES] == [other[kind].fmeasure for kind in TYPES], (target, text)


def test_both_scorers_pass_the_probes() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    assert proves_equal(RougeScorer)
    assert proves_equal(pytest.importorskip("rouge_score_rs").RougeScorer)


def test_a_wrong_accelerator_is_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = pytest.importorskip("rouge_score_rs")

    class Unstemmed(fast.RougeScorer):  # type: ignore[misc, name-defined]
        def __init__(self, types: list[str], use_stemmer: bool) -> None:
            super().__init__(types, use_stemmer=False)

    monkeypatch.setattr(fast, "RougeScorer", Unstemmed)
    assert not proves_equal(Unstemmed)
    assert type(rouge._scorer(True)).__module__ == "rouge_score.rouge_scorer"


def test_each_type_takes_its_own_best_reference_under_max() -> None:
    # First: all three words, two in order. Second: all three in order, one word more: P 1, R 3/4.
    references = ("c a b", "a b x c")
    assert value(Rouge("rouge1", reference="max"), "a b c", *references) == pytest.approx(100)
    assert value(Rouge("rougeL", reference="max"), "a b c", *references) == pytest.approx(100 * 6 / 7)
    assert value(Rouge("rougeL", reference="best_rouge1"), "a b c", *references) == pytest.approx(100 * 2 / 3)
    assert value(Rouge("rougeL", reference="mean"), "a b c", *references) == pytest.approx(100 * (2 / 3 + 6 / 7) / 2)
    assert value(Rouge("rougeL", reference="summary2"), "a b c", *references) == pytest.approx(100 * 6 / 7)
    assert value(Rouge("rougeL"), "a b c", *references) == pytest.approx(100 * 2 / 3)


def test_sentences_end_lines_for_lsum_alone() -> None:
    target, text = "One two. Three four!", "Three four? One two."
    assert value(Rouge("rougeLsum"), text, target) == pytest.approx(100)
    assert value(Rouge("rougeLsum", split="none"), text, target) == pytest.approx(50)
    assert value(Rouge("rougeL"), text, target) == pytest.approx(50)


def test_a_row_without_references_is_not_scored() -> None:
    stats = Rouge("rouge1").segments(["a", "b"], [example(), example("b")])
    assert np.isnan(stats[0, 0])
    assert stats[1, 0] == 100
    assert Rouge("rouge1").aggregate(stats) == 100


def test_unlike_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        Rouge("rouge1").segments(["a"], [example("a"), example("b")])


def test_the_signature_is_the_one_of_the_protocol() -> None:
    assert Rouge("rouge1", reference="mean").signature((3, 3)) == (
        "rouge1|refs:3|agg:mean|f:f1|stem:porter|split:none|case:lower|empty:zero|tool:rouge-score-0.1.2|dialtune:1"
    )


def test_signatures_differ_when_any_setting_does() -> None:
    made = [
        Rouge("rougeLsum"),
        Rouge("rougeLsum", stemmer=False),
        Rouge("rougeLsum", split="none"),
        Rouge("rougeLsum", reference="summary2"),
        Rouge("rougeLsum", reference="mean"),
        Rouge("rougeLsum", reference="max"),
        Rouge("rougeLsum", reference="best_rouge1"),
        Rouge("rougeL"),
    ]
    assert len({metric.signature((3, 3)) for metric in made}) == len(made)
    assert Rouge("rouge1", reference="mean").signature((1, 3)) != Rouge("rouge1", reference="mean").signature((3, 3))


def test_max_has_a_name_of_its_own() -> None:
    assert Rouge("rouge2").with_reference("max").name == "rouge2_max"
    assert Rouge("rouge2", reference="max").with_reference("mean").name == "rouge2_max"
    assert Rouge("rouge2").with_reference("mean").name == "rouge2"
