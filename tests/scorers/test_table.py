"""Scorers by name: packaged ones, the alias, folders and hub names, and what a wrong name is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialtune.errors import ConfigError, DialtuneError, ModelError, ModelNotFoundError
from dialtune.scorers import table
from dialtune.scorers.lexicon import LexiconScorer
from dialtune.scorers.table import ALIASES, JURY, PACKAGED_SCORERS, find_scorer


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What reaches the loader of Hugging Face classifiers."""
    calls: list[tuple[str, str | None]] = []

    def load(name: str, *, label: str | None = None) -> Any:
        calls.append((name, label))
        return object()

    monkeypatch.setattr(table, "load_classifier", load)
    return calls


def test_the_names_are_those_of_the_recipes() -> None:
    assert list(PACKAGED_SCORERS) == ["minilm", "ngrams", "lexicon", "alt-profanity-check"]
    assert ALIASES == {"toxicity": "minilm"}


def test_the_jury_is_packaged_and_never_the_default_reward() -> None:
    assert len(JURY) >= 2
    assert set(JURY) <= set(PACKAGED_SCORERS)
    assert ALIASES["toxicity"] not in JURY


def test_a_packaged_scorer_is_opened_once() -> None:
    assert isinstance(find_scorer("lexicon"), LexiconScorer)
    assert find_scorer("lexicon") is find_scorer("lexicon")


@pytest.mark.parametrize("name", PACKAGED_SCORERS)
def test_every_packaged_scorer_keeps_the_protocol(name: str) -> None:
    try:
        scorer = find_scorer(name)
    except DialtuneError as error:
        pytest.skip(str(error).splitlines()[0])
    assert scorer.name == name
    assert list(scorer.settings()) == ["scorer", "sha", "label", "link", "max"]
    texts = ["You stupid idiot, shut up!", "They agree to meet at ten.", "", "You stupid idiot, shut up!"]
    logits = scorer.logits(texts)
    assert logits.shape == (4,)
    assert logits.dtype == np.float64
    assert np.isfinite(logits).all()
    assert logits[0] == logits[3]
    assert logits[0] > 0 > logits[1]
    assert logits[2] < 0
    assert scorer.logits(texts[1:2])[0] == pytest.approx(logits[1], abs=1e-5)


def test_toxicity_is_the_packaged_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    marker: Any = object()
    monkeypatch.setitem(PACKAGED_SCORERS, "minilm", lambda: marker)
    table._open_packaged.cache_clear()
    try:
        assert find_scorer("toxicity") is marker
        assert find_scorer("minilm") is marker
    finally:
        table._open_packaged.cache_clear()


def test_a_slash_or_a_folder_is_a_hugging_face_classifier(
    asked: list[tuple[str, str | None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    find_scorer("unitary/toxic-bert")
    find_scorer("mine")
    find_scorer(str(tmp_path), label="hate")
    assert asked == [("unitary/toxic-bert", None), ("mine", None), (str(tmp_path), "hate")]


def test_a_label_may_stand_behind_the_name(asked: list[tuple[str, str | None]], tmp_path: Path) -> None:
    find_scorer("some/model#LABEL_1")
    odd = tmp_path / "a#b"
    odd.mkdir()
    find_scorer(str(odd))
    find_scorer(f"{odd}#hate")
    assert asked == [("some/model", "LABEL_1"), (str(odd), None), (str(odd), "hate")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lexcon", "no scorer 'lexcon'; did you mean 'lexicon'?"),
        ("toxicty", "no scorer 'toxicty'; did you mean 'toxicity'?"),
        ("xyz", "no scorer 'xyz'; packaged: minilm, ngrams, lexicon, alt-profanity-check."),
        ("", "no scorer ''; packaged: minilm, ngrams, lexicon, alt-profanity-check."),
    ],
)
def test_an_unknown_name_is_told_what_is_allowed(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find_scorer(name)
    assert str(caught.value) == f"{message} A Hugging Face classifier is a folder or a hub name (org/name)."


def test_a_packaged_scorer_has_no_label_to_choose() -> None:
    with pytest.raises(ConfigError, match="scorer 'lexicon' has one label; got 'hate'"):
        find_scorer("lexicon", label="hate")
    with pytest.raises(ConfigError, match="scorer 'minilm' has one label; got 'hate'"):
        find_scorer("toxicity#hate")


def test_a_folder_or_hub_name_that_leads_nowhere_is_no_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        find_scorer("./no/such/folder")
    with pytest.raises(ModelError):
        find_scorer(str(tmp_path))


def test_naming_scorers_loads_nothing_heavy() -> None:
    code = "import sys, dialtune.scorers.table\nprint(sorted({'torch', 'transformers', 'sklearn'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
