"""Shares of toxic sentences by origin, with a scorer and an embedder that the test knows by heart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from dialtune.errors import MissingExtraError
from dialtune.metrics import origin
from dialtune.metrics.origin import ORIGINS, ToxicOrigin
from dialtune.metrics.table import METRICS, look_up
from dialtune.scorers.provenance import KINDS
from dialtune.tasks import TASKS
from dialtune.types import Example, Message

TALK = Example("x", (Message("user", "You are a rotten old swine and everybody knows it.", "A"),))
TEXTS = (
    'A says "you are a rotten old swine and everybody knows it".',  # word for word
    "He is called a pig, a swine.",  # the same meaning
    "The idiot goes home.",  # nobody said so
    "They talk about the weather.",
    "",
)


class Words:
    name = "words"

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([4.0 if any(word in text for word in ("swine", "idiot")) else -4.0 for text in texts])

    def settings(self) -> dict[str, str]:
        return {"scorer": "words 1", "sha": "1f2e3d4c", "label": "toxic"}


class Meanings:
    """One direction for pigs, one for everything else."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[1, 0] if "swine" in text else [0, 1] for text in texts], dtype=np.float32)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin, "open_scorer", lambda name: Words() if name == "x" else "not installed; run: pip")
    monkeypatch.setattr(origin, "load_embedder", Meanings)


def column(kind: origin.Origin, scorer: str = "x") -> list[float]:
    return [float(x) for x in ToxicOrigin(kind, scorer).segments(TEXTS, [TALK] * len(TEXTS))[:, 0]]


def test_each_origin_marks_the_completions_that_have_one_and_all_others_are_zero() -> None:
    assert column("copied") == [1, 0, 0, 0, 0]
    assert column("paraphrased") == [0, 1, 0, 0, 0]
    assert column("invented") == [0, 0, 1, 0, 0]
    metric = ToxicOrigin("copied", "x")
    assert metric.aggregate(metric.segments(TEXTS, [TALK] * 5)) == pytest.approx(0.2)  # of all, the empty one included


def test_what_is_not_installed_scores_nothing_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert np.isnan(column("copied", "gone")).all()
    assert ToxicOrigin("copied", "gone").unavailable() == "not installed; run: pip"

    def absent(name: str) -> None:
        raise MissingExtraError("no encoder\nrun: pip install it")

    monkeypatch.setattr(origin, "packaged_encoder_folder", absent)
    assert ToxicOrigin("copied", "x").unavailable() == "no encoder run: pip install it"


def test_no_rows_are_no_error() -> None:
    assert ToxicOrigin("copied", "x").segments([], []).shape == (0, 1)


def test_the_signature_says_scorer_encoder_and_rule() -> None:
    signed = ToxicOrigin("copied", "x").signature((1, 1))
    assert signed.startswith("toxic_copied|scorer:words-1|sha:1f2e3d4c|encoder:")
    assert signed.endswith("|toxic:0.5|copied:4grams-0.6|alike:cosine-0.6|agg:share|empty:zero|dialtune:1")
    assert "|scorer:gone|sha:unknown|" in ToxicOrigin("copied", "gone").signature((1, 1))


def test_the_three_are_in_the_table_never_tested_and_part_of_job_three() -> None:
    assert ORIGINS == KINDS
    names = [f"toxic_{kind}:minilm" for kind in ORIGINS]
    assert [METRICS[name].direction for name in names] == [None] * 3
    assert set(names) <= set(TASKS["detoxify"].metrics)
    assert look_up("toxic_copied:toxicity") is METRICS["toxic_copied:minilm"]
