"""alt-profanity-check: log-odds of what the package says, and a clear line where it is absent."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dialtune.errors import MissingExtraError
from dialtune.scorers import profanity_check
from dialtune.scorers.base import probabilities
from dialtune.scorers.profanity_check import load_profanity_check

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("profanity_check") is None, reason="alt-profanity-check is not installed"
)


@pytest.fixture(autouse=True)
def fresh() -> None:
    load_profanity_check.cache_clear()


@needs_package
def test_probabilities_are_those_of_the_package() -> None:
    # Measured with alt-profanity-check 1.9.1 by itself: a lexical scorer's two typical false alarms.
    texts = ["I am a gay man", "suck it up and try again"]
    np.testing.assert_allclose(probabilities(load_profanity_check(), texts), [0.953, 0.998], atol=5e-4)


@needs_package
def test_nothing_and_blanks_get_finite_low_values() -> None:
    scorer = load_profanity_check()
    assert scorer.logits([]).shape == (0,)
    assert (scorer.logits(["", " \n", "?!"]) < 0).all()


@needs_package
def test_settings_name_version_and_model_file() -> None:
    known = load_profanity_check().settings()
    assert list(known) == ["scorer", "sha", "label", "link", "max"]
    assert known["scorer"].startswith("alt-profanity-check-1.")
    assert len(known["sha"]) == 8


@needs_package
def test_the_package_is_not_imported_before_the_first_score() -> None:
    code = (
        "import sys\nfrom dialtune.scorers.profanity_check import load_profanity_check\n"
        "load_profanity_check().settings()\nprint('profanity_check' in sys.modules, 'sklearn' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@needs_package
def test_probabilities_that_round_to_certainty_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = SimpleNamespace(predict_prob=lambda texts: np.array([0.0, 1.0, 0.5, 0.2])[: len(texts)])
    monkeypatch.setattr(profanity_check, "_package", lambda: fake)
    low, high, even, fifth = load_profanity_check().logits(["a", "b", "c", "d"])
    assert low == pytest.approx(-high, rel=1e-6)
    assert high == pytest.approx(math.log(1e9), rel=1e-6)
    assert even == 0.0
    assert fifth == pytest.approx(math.log(0.25))


@needs_package
def test_a_text_is_scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def predict_prob(texts: list[str]) -> Any:
        asked.extend(texts)
        return np.full(len(texts), 0.25)

    monkeypatch.setattr(profanity_check, "_package", lambda: SimpleNamespace(predict_prob=predict_prob))
    scorer = load_profanity_check()
    scorer.logits(["a", "b", "a"])
    scorer.logits(["b", "c"])
    assert asked == ["a", "b", "c"]


def test_without_the_package_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        load_profanity_check()
    assert str(caught.value) == (
        "alt-profanity-check: the package is not installed; run: pip install 'dialtune[toxicity]' "
        "(it unpickles its own model when it is imported)"
    )


@needs_package
def test_the_abandoned_package_of_the_same_module_name_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise profanity_check.PackageNotFoundError(name)

    monkeypatch.setattr(profanity_check, "version", absent)
    with pytest.raises(MissingExtraError):
        load_profanity_check()
