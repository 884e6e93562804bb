"""One set of outputs, many scores: every row of the oracle tables within 0.005."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dialtune.data.reading import read_examples
from dialtune.metrics.base import Metric
from dialtune.metrics.bleu import Bleu, Chrf
from dialtune.metrics.rouge import TYPES, Rouge
from dialtune.metrics.text import swap_speakers
from dialtune.types import Example

ORACLES = Path(__file__).resolve().parents[1] / "oracles"
ROUGE: list[dict[str, Any]] = json.loads((ORACLES / "rouge" / "dialogsum_bart.json").read_text())["rows"]
BLEU: dict[str, list[dict[str, Any]]] = json.loads((ORACLES / "bleu" / "dialogsum_bart.json").read_text())


@pytest.fixture(scope="module")
def examples(shared_data: Path) -> tuple[Example, ...]:
    return read_examples(shared_data / "dialogsum" / "dialogsum.test.jsonl.gz").examples


@pytest.fixture(scope="module")
def outputs(shared_data: Path, examples: tuple[Example, ...]) -> dict[str, list[str]]:
    raw = (shared_data / "dialogsum" / "bart_large_baseline_outputs.txt").read_text(encoding="utf-8").split("\n")
    fixed = [re.sub("^##", "#", text) for text in raw]
    assert sum(one != other for one, other in zip(raw, fixed, strict=True)) == 302
    return {
        "raw": raw,
        "fixed": fixed,
        "spaced": [re.sub(r"#Person(\d)#", r"#Person \1#", text) for text in fixed],
        "swapped": [swap_speakers(text, "#Person1#", "#Person2#") for text in fixed],
        "summary2": [example.references[1] for example in examples],
    }


def aggregate(metric: Metric, texts: list[str], examples: tuple[Example, ...]) -> float:
    score = metric.aggregate(metric.segments(texts, examples))
    assert isinstance(score, float)
    return score


@pytest.mark.parametrize("want", ROUGE, ids=lambda row: row["row"])
def test_rouge_rows(want: dict[str, Any], outputs: dict[str, list[str]], examples: tuple[Example, ...]) -> None:
    settings = {key: want[key] for key in ("reference", "stemmer") if key in want}
    texts = outputs[want.get("outputs", "fixed")]
    for kind, score in zip(TYPES, want["scores"], strict=False):
        metric = Rouge(kind, split=want.get("split", "none"), **settings)  # type: ignore[arg-type]
        assert aggregate(metric, texts, examples) == pytest.approx(score, abs=0.005), metric


@pytest.mark.parametrize("want", BLEU["bleu"], ids=lambda row: row["row"])
def test_bleu_rows(want: dict[str, Any], outputs: dict[str, list[str]], examples: tuple[Example, ...]) -> None:
    metric = Bleu(**{key: want[key] for key in ("reference", "lowercase", "tokenize") if key in want})
    texts = outputs[want.get("outputs", "fixed")]
    assert aggregate(metric, texts, examples) == pytest.approx(want["score"], abs=0.005)


@pytest.mark.parametrize("want", BLEU["chrf"], ids=lambda row: row["row"])
def test_chrf_rows(want: dict[str, Any], outputs: dict[str, list[str]], examples: tuple[Example, ...]) -> None:
    metric = Chrf(reference=want.get("reference", "first"))
    texts = outputs[want.get("outputs", "fixed")]
    assert aggregate(metric, texts, examples) == pytest.approx(want["score"], abs=0.005)


def test_rouge_does_not_notice_the_doubled_hash(outputs: dict[str, list[str]], examples: tuple[Example, ...]) -> None:
    metric = Rouge("rouge2")
    assert aggregate(metric, outputs["raw"], examples) == aggregate(metric, outputs["fixed"], examples)


def test_blank_outputs_lower_the_mean(outputs: dict[str, list[str]], examples: tuple[Example, ...]) -> None:
    """Blanking 5 % of the outputs must cost 5 % or so of the score, not raise it."""
    texts = ["" if place % 20 == 0 else text for place, text in enumerate(outputs["fixed"])]
    assert aggregate(Rouge("rouge1"), texts, examples) == pytest.approx(45.91 * 0.95, abs=0.4)
