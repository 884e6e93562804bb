"""Fitting a scorer: it learns, keeps its best state, is calibrated as Platt says, and is saved whole or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from tiny_encoder import save_tiny_encoder

from dialtune.errors import DataError, ModelError
from dialtune.models.embedder import open_encoder
from dialtune.scorers.base import probabilities
from dialtune.scorers.encoder import load_encoder_scorer
from dialtune.trainers import scorer as module
from dialtune.trainers.scorer import FitSettings, FittedScorer, fit, labelled, platt, save_scorer

PLAIN = [
    "the train leaves at ten",
    "they meet on monday",
    "cake at noon",
    "tea at the table",
    "the bus and the station",
]
ENDS = ["", " to the table", " at the meeting", " on monday", " and the bus"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_encoder(tmp_path_factory.mktemp("base")))


def texts_and_targets() -> tuple[list[str], list[float]]:
    """50 texts, half of them with the word that makes them toxic."""
    clean = [one + end for one in PLAIN for end in ENDS]
    return [*clean, *(f"brute {text}" for text in clean)], [0.0] * len(clean) + [1.0] * len(clean)


def settings_for(base: str, **changes: Any) -> FitSettings:
    known = FitSettings(
        base=base, r=4, alpha=8, n_epochs=12, batch_size=10, learning_rate=1e-2, n_evaluations=4, max_tokens_scoring=32
    )
    return replace(known, **changes)


@pytest.fixture(scope="module")
def fitted(base: str) -> FittedScorer:
    texts, targets = texts_and_targets()
    return fit(texts, targets, (texts[::3], targets[::3]), settings=settings_for(base), name="brutes", label="rude")


def test_what_was_learnt_holds_for_texts_it_never_saw(fitted: FittedScorer) -> None:
    scorer = fitted.scorer()
    unseen = ["they agree to meet", "cake on monday", "tea"]
    rude = probabilities(scorer, [f"brute {text}" for text in unseen])
    assert rude.mean() > probabilities(scorer, unseen).mean() + 0.2  # the tokenizer's pieces differ between processes
    assert scorer.name == "brutes"
    assert scorer.settings()["label"] == "rude"


def test_the_same_settings_give_the_same_bits(base: str, fitted: FittedScorer) -> None:
    texts, targets = texts_and_targets()
    again = fit(texts, targets, (texts[::3], targets[::3]), settings=settings_for(base), name="brutes", label="rude")
    assert again.config == fitted.config
    assert all(torch.equal(again.tensors[key], fitted.tensors[key]) for key in fitted.tensors)
    other = fit(texts, targets, (texts[::3], targets[::3]), settings=settings_for(base, seed=1))
    assert not torch.equal(other.tensors["head.weight"], fitted.tensors["head.weight"])


def test_only_an_update_of_every_linear_layer_and_the_head_are_kept(base: str, fitted: FittedScorer) -> None:
    encoder = open_encoder(base)
    layers = [name for name, part in encoder.module.named_modules() if isinstance(part, torch.nn.Linear)]
    layers = [name for name in layers if "pooler" not in name]  # its output is not read
    assert len(layers) == 12  # query, key, value, output and two dense layers, twice
    expected = {f"lora.{name}.{part}" for name in layers for part in "AB"} | {"head.weight", "head.bias"}
    assert set(fitted.tensors) == expected
    assert {key: str(value.dtype) for key, value in fitted.tensors.items() if key.startswith("head")} == {
        "head.weight": "torch.float32",
        "head.bias": "torch.float32",
    }
    assert {value.dtype for key, value in fitted.tensors.items() if key.startswith("lora")} == {torch.float16}


def test_a_saved_scorer_scores_as_the_fitted_one(fitted: FittedScorer, tmp_path: Path) -> None:
    save_scorer(fitted, tmp_path / "new" / "scorer")
    folder = tmp_path / "new" / "scorer"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_encoder_scorer(folder)
    texts, _ = texts_and_targets()
    assert np.array_equal(loaded.logits(texts), fitted.scorer().logits(texts))
    known = json.loads((folder / "config.json").read_text())
    assert known["training"]["settings"]["learning_rate"] == 1e-2
    assert known["training"]["n_texts"] == 50
    assert len(known["training"]["validation"]) == 4


def test_saving_that_fails_leaves_the_old_scorer(
    fitted: FittedScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_scorer(fitted, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(*_paths: object) -> None:
        raise OSError("disk full")

    changed = replace(fitted, tensors={**fitted.tensors, "head.bias": torch.ones(1)})
    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_scorer(changed, tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_kill_between_the_two_files_is_noticed(
    fitted: FittedScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_scorer(fitted, tmp_path)

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_text_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        save_scorer(replace(fitted, tensors={**fitted.tensors, "head.bias": torch.ones(1)}), tmp_path)
    monkeypatch.undo()
    assert load_file(tmp_path / "model.safetensors")["head.bias"].tolist() == [1.0]
    with pytest.raises(ModelError, match=r"is not the file that config\.json was written for"):
        load_encoder_scorer(tmp_path)


def test_the_state_with_the_lowest_validation_loss_is_the_result(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, targets = texts_and_targets()
    losses = iter([0.9, 0.2, 0.5, 0.4])
    states: list[dict[str, torch.Tensor]] = []
    keep = module._trained

    def remember(network: Any) -> dict[str, torch.Tensor]:
        states.append(keep(network))
        return states[-1]

    monkeypatch.setattr(module, "_validation_loss", lambda *_: next(losses))
    monkeypatch.setattr(module, "_trained", remember)
    events: list[tuple[str, dict[str, Any]]] = []
    found = fit(
        texts,
        targets,
        (texts, targets),
        settings=settings_for(base, n_epochs=2),
        on_event=lambda kind, facts: events.append((kind, dict(facts))),
    )
    assert [facts["loss"] for kind, facts in events if kind == "validation"] == [0.9, 0.2, 0.5, 0.4]
    assert [facts["step"] for kind, facts in events if kind == "validation"] == [3, 5, 8, 10]
    assert sum(kind == "step" for kind, _ in events) == 10
    assert len(states) == 2
    assert found.tensors is states[1]


def test_a_text_of_no_weight_teaches_nothing(base: str) -> None:
    texts, targets = texts_and_targets()
    lies = [1 - target for target in targets]
    mixed = fit(
        [*texts, *texts],
        [*targets, *lies],
        (texts, targets),
        weights=[2.0] * len(texts) + [0.0] * len(texts),
        settings=settings_for(base),
    )
    chances = probabilities(mixed.scorer(), texts)
    assert (chances[:25] < 0.5).all()
    assert (chances[25:] > 0.5).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [1.0, 0.0]), r"^x: 1 texts, 2 targets, 1 weights; one each is needed$"),
        ((["a"], [1.0], [1.0, 1.0]), r"^x: 1 texts, 1 targets, 2 weights; one each is needed$"),
        (([], []), r"^x: no texts; at least one is needed$"),
        ((["a", "b"], [0.0, 1.5]), r"^x: target 1\.5 of text 1; a target is a number from 0 to 1$"),
        ((["a"], [float("nan")]), r"^x: target nan of text 0; a target is a number from 0 to 1$"),
        ((["a", "b"], [0.0, 1.0], [1.0, -1.0]), r"^x: weight -1\.0 of text 1; weights are finite, >= 0 and not all 0$"),
        ((["a"], [1.0], [0.0]), r"^x: weight 0\.0 of text 0; weights are finite, >= 0 and not all 0$"),
        ((["a"], [1.0], [float("inf")]), r"^x: weight inf of text 0"),
    ],
)
def test_data_that_cannot_be_learnt_from_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labelled("x", *arguments)


def test_validation_needs_both_classes(base: str) -> None:
    with pytest.raises(DataError, match=r"validation: every target is on one side of 0\.5"):
        fit(["a", "b"], [0, 1], (["c", "d"], [0.1, 0.3]), settings=settings_for(base))


def test_weights_have_a_mean_of_one() -> None:
    data = labelled("x", ["a", "b", "c"], [0, 1, 0.5], [1.0, 2.0, 6.0])
    assert data.weights.tolist() == pytest.approx([1 / 3, 2 / 3, 2.0])


def test_calibration_is_the_logistic_regression_on_platts_targets() -> None:
    """Against scikit-learn without penalty, each text given twice with the two parts of its target as weights."""
    draw = np.random.default_rng(0)
    raw = draw.normal(size=400) * 3
    targets = (draw.random(400) < 1 / (1 + np.exp(-(0.7 * raw - 1)))).astype(float)
    weights = draw.random(400) + 0.5
    n_one, n_zero = (weights * targets).sum(), (weights * (1 - targets)).sum()
    wanted = np.where(targets == 1, (n_one + 1) / (n_one + 2), 1 / (n_zero + 2))
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    model.fit(
        np.concatenate([raw, raw])[:, None],
        np.repeat([1, 0], 400),
        sample_weight=np.concatenate([weights * wanted, weights * (1 - wanted)]),
    )
    slope, intercept = platt(raw, targets, weights)
    assert slope == pytest.approx(float(model.coef_[0, 0]), rel=1e-4)  # its solver stops at 1e-5
    assert intercept == pytest.approx(float(model.intercept_[0]), rel=1e-4)


def test_perfect_separation_stays_finite() -> None:
    slope, intercept = platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0, 1.0]), np.ones(4))
    assert 0 < slope < 10
    assert intercept == pytest.approx(0, abs=1e-6)


@given(
    st.lists(st.tuples(st.floats(-50, 50), st.floats(0, 1)), min_size=1, max_size=30),
    st.floats(0.1, 10),
    st.floats(-5, 5),
)
def test_calibration_undoes_any_scale_and_shift(rows: list[tuple[float, float]], scale: float, shift: float) -> None:
    raw, targets = np.array([*(row[0] for row in rows), -3.0, 4.0]), np.array([*(row[1] for row in rows), 0.0, 1.0])
    slope, intercept = platt(raw, targets, np.ones(len(raw)))
    other = platt(scale * raw + shift, targets, np.ones(len(raw)))
    np.testing.assert_allclose(other[0] * (scale * raw + shift) + other[1], slope * raw + intercept, atol=1e-3)
