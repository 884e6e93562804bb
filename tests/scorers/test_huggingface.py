"""Classifiers by folder and hub name: the label by name, log-odds from raw outputs, and what is refused."""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import make_encoder_tokenizer

from dialtune.errors import ConfigError, ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.scorers.base import probabilities
from dialtune.scorers.huggingface import (
    BLANK_LOGIT,
    TOXIC_LABELS,
    ToxicLabels,
    load_classifier,
    resolve_labels,
    toxic_log_odds,
)

# The label maps of two published classifiers, as their config.json has them.
DYNABENCH = {0: "nothate", 1: "hate"}  # facebook/roberta-hate-speech-dynabench-r4-target
TOXIC_BERT = {0: "toxic", 1: "severe_toxic", 2: "obscene", 3: "threat", 4: "insult", 5: "identity_hate"}  # unitary
MULTI = "multi_label_classification"
TEXTS = ["you are a nasty brute", "they agree to meet at the station on monday", "tea", "a vile brute brings cake"]

SaveClassifier = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> SaveClassifier:
    """Kind, label map → a folder with a tiny random classifier, as a user would have it."""

    def saved(kind: str, id2label: Mapping[int, str] | None, problem_type: str | None = None, seed: int = 0) -> Path:
        import transformers

        tokenizer = make_encoder_tokenizer()
        labels = {"id2label": dict(id2label)} if id2label is not None else {}
        sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "pad_token_id": 0, **labels}
        if kind == "distilbert":
            sizes |= {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 64}
        else:
            positions = 66 if kind == "roberta" else 64
            sizes |= {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
                      "max_position_embeddings": positions}  # fmt: skip
        if kind == "roberta":
            sizes |= {"pad_token_id": 1, "type_vocab_size": 1}
        prefix = {"distilbert": "DistilBert", "roberta": "Roberta", "bert": "Bert"}[kind]
        config = getattr(transformers, f"{prefix}Config")(problem_type=problem_type, **sizes)
        torch.manual_seed(seed)
        module = getattr(transformers, f"{prefix}ForSequenceClassification")(config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
        folder = tmp_path / f"{kind}-{seed}"
        module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return saved


def raw_outputs(folder: Path, texts: list[str]) -> np.ndarray:
    """(N,L) what transformers gives, one text at a time, without padding."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    module = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [module(**tokenizer(text, return_tensors="pt")).logits[0].double().numpy() for text in texts]
    return np.stack(rows)


# Which output means toxic


def test_two_labels_are_a_softmax_and_hate_is_found_wherever_it_stands() -> None:
    assert resolve_labels("m", DYNABENCH) == ToxicLabels(("hate",), (1,), "softmax")
    assert resolve_labels("m", {0: "hate", 1: "nothate"}) == ToxicLabels(("hate",), (0,), "softmax")


def test_six_toxic_labels_are_independent_and_all_count() -> None:
    assert resolve_labels("m", TOXIC_BERT, problem_type=MULTI) == ToxicLabels(
        tuple(TOXIC_BERT.values()), (0, 1, 2, 3, 4, 5), "sigmoid"
    )
    assert resolve_labels("m", TOXIC_BERT).link == "sigmoid"  # a softmax over these could call nothing clean


@pytest.mark.parametrize(
    ("id2label", "names", "link"),
    [
        ({0: "Toxic", 1: "Neutral"}, ("Toxic",), "softmax"),
        ({0: "neutral", 1: "NON_TOXIC", 2: "HATE-SPEECH"}, ("HATE-SPEECH",), "softmax"),
        ({0: "hate speech", 1: "offensive language", 2: "neither"}, ("hate speech", "offensive language"), "softmax"),
        ({0: "toxicity"}, ("toxicity",), "sigmoid"),
        ({0: "not-offensive", 1: "offensive"}, ("offensive",), "softmax"),
    ],
)
def test_labels_are_found_by_their_whole_name_in_any_spelling(
    id2label: dict[int, str], names: tuple[str, ...], link: str
) -> None:
    found = resolve_labels("m", id2label)
    assert (found.names, found.link) == (names, link)


@pytest.mark.parametrize("clean", ["nothate", "not_hate", "non-toxic", "no insult", "nontoxic", "clean", "untoxic"])
def test_a_name_that_only_contains_a_toxic_one_is_another_name(clean: str) -> None:
    with pytest.raises(ConfigError, match="no label's name says toxic; it offers: " + clean):
        resolve_labels("m", {0: clean, 1: "other"})


@given(st.permutations([*sorted(TOXIC_BERT.values())[:3], "clean", "neutral"]))
def test_the_order_of_labels_never_matters(order: list[str]) -> None:
    found = resolve_labels("m", dict(enumerate(order)))
    assert sorted(found.names) == sorted(TOXIC_BERT.values())[:3]
    assert [order[place] for place in found.places] == list(found.names)


@pytest.mark.parametrize("id2label", [{0: "LABEL_0", 1: "LABEL_1"}, {0: "0", 1: "1"}])
def test_labels_without_names_are_refused_until_the_user_names_one(id2label: dict[int, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_labels("some/model", id2label)
    assert str(caught.value) == (
        f"some/model: its labels have no names; it offers: {', '.join(id2label.values())}\n"
        "  Read its model card, then name the toxic label behind a #: some/model#LABEL"
    )
    assert resolve_labels("some/model", id2label, label=id2label[1]).places == (1,)


def test_a_label_that_is_not_there_lists_those_that_are() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_labels("m", DYNABENCH, label="toxic")
    assert str(caught.value) == "m: no label 'toxic'; this classifier offers: nothate, hate"


def test_a_named_label_stands_alone_and_its_case_does_not_matter() -> None:
    assert resolve_labels("m", TOXIC_BERT, problem_type=MULTI, label="Insult").places == (4,)


def test_a_regression_model_is_refused() -> None:
    with pytest.raises(ModelError, match="a regression model"):
        resolve_labels("m", {0: "toxic"}, problem_type="regression")


def test_the_known_names_are_in_the_form_that_names_are_brought_to() -> None:
    assert [name for name in TOXIC_LABELS if not re.fullmatch(r"[a-z]+(_[a-z]+)*", name)] == []


# Log-odds


def test_softmax_log_odds_are_the_difference_of_two_outputs() -> None:
    found = toxic_log_odds(torch.tensor([[2.0, -1.0]]).double(), ToxicLabels(("hate",), (1,), "softmax"))
    assert found.tolist() == [-3.0]  # log(e^-1 / e^2)


def test_toxic_classes_of_a_softmax_are_summed() -> None:
    # p = (1 + 2) / (1 + 2 + 6): odds 3 to 6
    outputs = torch.tensor([[1.0, 6.0, 2.0]]).double().log()
    found = toxic_log_odds(outputs, ToxicLabels(("hate", "offensive"), (0, 2), "softmax"))
    assert found.item() == pytest.approx(math.log(3 / 6), abs=1e-12)


def test_the_worst_independent_label_counts() -> None:
    found = toxic_log_odds(torch.tensor([[-4.0, 1.5, 9.0]]), ToxicLabels(("toxic", "insult"), (0, 1), "sigmoid"))
    assert found.tolist() == [1.5]


def test_huge_outputs_stay_finite_and_in_order() -> None:
    outputs = torch.tensor([[0.0, 40.0], [0.0, 400.0], [400.0, 0.0], [5000.0, -5000.0]]).double()
    found = toxic_log_odds(outputs, ToxicLabels(("hate",), (1,), "softmax"))
    assert found.tolist() == [40.0, 400.0, -400.0, -10000.0]


# Opened from a folder


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "bert"])
def test_a_two_label_classifier_gives_log_p_minus_log_one_minus_p(save: SaveClassifier, kind: str) -> None:
    folder = save(kind, DYNABENCH)
    scorer = load_classifier(str(folder))
    z = raw_outputs(folder, TEXTS)
    p = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))[:, 1]
    # Padded batches differ from single rows by fp32 rounding.
    np.testing.assert_allclose(scorer.logits(TEXTS), np.log(p / (1 - p)), atol=2e-6)
    np.testing.assert_allclose(probabilities(scorer, TEXTS), p, atol=1e-6)
    assert np.ptp(p) > 0.01


def test_a_six_label_classifier_gives_its_worst_sigmoid(save: SaveClassifier) -> None:
    folder = save("bert", TOXIC_BERT, MULTI)
    scorer = load_classifier(str(folder))
    worst = (1 / (1 + np.exp(-raw_outputs(folder, TEXTS)))).max(axis=1)
    np.testing.assert_allclose(probabilities(scorer, TEXTS), worst, atol=1e-6)
    assert scorer.settings()["label"] == "toxic+severe_toxic+obscene+threat+insult+identity_hate"
    assert scorer.settings()["link"] == "sigmoid"


def test_swapped_label_names_swap_the_sign(save: SaveClassifier) -> None:
    folder = save("distilbert", {0: "nothate", 1: "hate"})
    first = load_classifier(str(folder)).logits(TEXTS)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "hate", "1": "nothate"}, "label2id": {"hate": 0, "nothate": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    load_classifier.cache_clear()
    np.testing.assert_allclose(load_classifier(str(folder)).logits(TEXTS), -first, atol=1e-12)


def test_batches_and_order_change_nothing(save: SaveClassifier) -> None:
    folder = str(save("roberta", DYNABENCH))
    many = [f"{text} {n}" for n in range(20) for text in TEXTS]
    together = load_classifier(folder).logits(many)
    load_classifier.cache_clear()
    alone = [load_classifier(folder).logits([text])[0] for text in reversed(many)][::-1]
    assert together.tolist() == alone  # bit by bit: a resumed run must earn what the unbroken one did


def test_a_text_is_scored_once(save: SaveClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = load_classifier(str(save("bert", DYNABENCH)))
    first = scorer.logits(TEXTS)
    monkeypatch.setattr(scorer, "module", None)
    assert scorer.logits([*TEXTS, *TEXTS]).tolist() == [*first, *first]


def test_nothing_and_blanks_and_any_unicode_get_finite_values(save: SaveClassifier) -> None:
    scorer = load_classifier(str(save("bert", DYNABENCH)))
    assert scorer.logits([]).shape == (0,)
    assert scorer.logits(["", " \n\t"]).tolist() == [BLANK_LOGIT, BLANK_LOGIT]
    assert np.isfinite(scorer.logits(["ß漢字🙂", "\x00", "a" * 5000, "?!"])).all()


def test_long_texts_are_cut_and_counted(save: SaveClassifier) -> None:
    scorer = load_classifier(str(save("roberta", DYNABENCH)))
    assert scorer.max_tokens == 64  # 66 positions, of which RoBERTa uses those behind its pad id
    long = " ".join(["cake"] * 200)
    assert scorer.logits([long, f"{long} brute", "tea"])[0] == scorer.logits([f"{long} brute"])[0]
    assert scorer.n_truncated == 2


def test_settings_identify_weights_and_label(save: SaveClassifier) -> None:
    one = load_classifier(str(save("bert", DYNABENCH)))
    other = load_classifier(str(save("bert", DYNABENCH, seed=1)))
    assert list(one.settings()) == ["scorer", "sha", "label", "link", "max"]
    assert one.settings()["sha"] != other.settings()["sha"]
    assert {one.settings()[key] for key in ("label", "link", "max")} == {"hate", "softmax", "64"}


def test_an_unnamed_head_opens_once_its_label_is_named(save: SaveClassifier) -> None:
    folder = str(save("distilbert", None))
    with pytest.raises(ConfigError, match="its labels have no names; it offers: LABEL_0, LABEL_1"):
        load_classifier(folder)
    assert load_classifier(folder, label="LABEL_1").settings()["label"] == "LABEL_1"


# What is refused


def test_a_model_without_a_classifier_is_refused_not_filled_with_random_weights(save: SaveClassifier) -> None:
    from safetensors.torch import load_file, save_file

    folder = save("bert", DYNABENCH)
    kept = {key: value for key, value in load_file(folder / "model.safetensors").items() if "classifier" not in key}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"no trained classifier: 2 tensors .* would be random: classifier\.bias"):
        load_classifier(str(folder))


def test_a_head_of_another_size_is_refused(save: SaveClassifier) -> None:
    folder = save("bert", DYNABENCH)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "clean", "1": "toxic", "2": "threat"}
    config["label2id"] = {name: int(place) for place, name in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"no trained classifier: 2 tensors .* classifier\.bias"):
        load_classifier(str(folder))


def test_pickles_and_remote_code_are_refused(save: SaveClassifier) -> None:
    folder = save("bert", DYNABENCH)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(UnsafeModelError, match=r"pytorch_model\.bin"):
        load_classifier(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such folder; a classifier is a folder or a hub name"),
        ("/nowhere/at/all", "no such folder"),
        ("nobody/no-such-classifier", "neither a folder nor in the hub cache"),
    ],
)
def test_a_name_that_leads_nowhere_says_so_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        load_classifier(name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_classifier(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(ModelError, match="names no model that transformers knows"):
        load_classifier(str(tmp_path))


def test_damaged_weights_are_an_error_and_never_a_score(save: SaveClassifier) -> None:
    scorer = load_classifier(str(save("bert", DYNABENCH)))
    with torch.no_grad():
        scorer.module.classifier.bias.fill_(math.nan)
    with pytest.raises(ModelError, match="gives nan for a text"):
        scorer.logits(["tea"])
