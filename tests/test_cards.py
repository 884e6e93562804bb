"""A model's card: loads with the hub's own reader, tells facts only, and never a folder of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model

from dialtune.cards import CARD, Making, Measured, base_of, card_text, making_of, read_front_matter, write_card
from dialtune.licences import data_licence, forbids_commerce, hub_name, model_licence
from dialtune.markdown import code, plain, table
from dialtune.models.loading import save_model
from dialtune.models.packaged import PACKAGED

CONFIG = {
    "model": "smollm2-135m", "task": "summarize", "template": None, "learning_rate": 1e-3, "num_train_epochs": 1.0,
    "lora": {"r": 16, "alpha": 32, "dropout": 0.0}, "seed": 42, "output_dir": "/home/me/x",
}  # fmt: skip
RECORD = {
    "command": "dialtune sft --set hub_token=secret /home/me/recipe.yaml",
    "versions": {"dialtune": "0.1.0", "torch": "2.13"},
    "model": {"name": "smollm2-135m", "family": "decoder-only"},
    "data": {"train": {"name": "packaged:train", "rows": 160, "fingerprint": "ab" * 32}, "validation": None},
}  # fmt: skip


def loaded(text: str) -> Any:
    """As huggingface_hub reads it, which refuses a malformed model-index."""
    from huggingface_hub import ModelCard

    return ModelCard(text)


def test_the_card_of_a_run_says_base_library_licence_data_and_recipe(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    write_card(tmp_path, making_of(CONFIG, RECORD, template="summarize"))
    card = ModelCard.load(tmp_path / CARD)
    assert card.data.to_dict() == {
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "base_model_relation": "adapter", "library_name": "peft",
        "pipeline_tag": "text-generation", "license": "apache-2.0", "language": ["en"],
        "tags": ["dialtune", "summarize", "sft", "lora", "dialogue"],
    }  # fmt: skip
    for wanted in (
        "# SmolLM2-135M-Instruct, trained to summarize dialogues",
        "A LoRA adapter of `HuggingFaceTB/SmolLM2-135M-Instruct` (the quantized copy that comes as the package "
        "`smollm2-135m`), fine-tuned on gold texts to summarize dialogues.",
        "| train | `packaged:train` | 160 rows, sha256 abababababab |",
        "`learning_rate` 0.001", "`lora.r` 16", "dialtune 0.1.0, torch 2.13", "with the prompt template `summarize`",
        "AutoPeftModelForCausalLM", "- data `packaged:train`: apache-2.0", "Not yet: this card was written when",
    ):  # fmt: skip
        assert wanted in card.text, wanted
    assert "secret" not in card.content
    assert "/home/me" not in card.content


def test_full_weights_of_an_encoder_decoder_are_a_finetune_for_summarization() -> None:
    config = {"model": "google/flan-t5-base", "task": "detoxify", "method": "grpo", "rewards": {"toxicity": 1.0}}
    record = {
        "model": {"family": "encoder-decoder"},
        "data": {"train": {"name": "hub:knkarthick/dialogsum:train", "rows": 3, "fingerprint": "f"}},
    }
    card = loaded(card_text(making_of(config, record)))
    assert card.data.to_dict() == {
        "base_model": "google/flan-t5-base", "base_model_relation": "finetune", "library_name": "transformers",
        "pipeline_tag": "summarization", "datasets": ["knkarthick/dialogsum"],
        "tags": ["dialtune", "detoxify", "grpo", "dialogue"],
    }  # fmt: skip
    assert "license" not in card.data.to_dict()  # the data forbids commerce
    assert "- data `hub:knkarthick/dialogsum:train`: cc-by-nc-sa-4.0" in card.text
    assert "state one" in card.text
    assert "trained on rewards (grpo) to summarize dialogues civilly" in card.text
    assert "AutoModelForSeq2SeqLM" in card.text


def test_what_is_not_known_is_left_out() -> None:
    card = loaded(card_text(making_of({"model": "/srv/models/mine"}, {})))
    assert card.data.to_dict() == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["dialtune", "sft", "dialogue"],
    }  # fmt: skip
    assert "/srv" not in card.content
    assert "All weights of `mine`" in card.text
    assert "not known to dialtune" in card.text
    assert "## Training" not in card.text


def test_measured_scores_become_a_model_index_that_the_hub_library_reads() -> None:
    results = (
        {
            "task": {"type": "summarization", "name": "summarize"},
            "dataset": {"name": "packaged:test", "type": "packaged", "split": "test"},
            "metrics": [{"type": "rouge", "value": 26.19, "name": "ROUGE-L", "args": {"verdict": "improved"}}],
        },
    )
    making = making_of(CONFIG, RECORD)
    card = loaded(card_text(making, Measured(results, ("rouge",), "## Measured\n\nMuch.")))
    (found,) = card.data.eval_results
    assert (found.metric_value, found.metric_name, found.dataset_name) == (26.19, "ROUGE-L", "packaged:test")
    assert found.metric_args == {"verdict": "improved"}
    assert card.data.model_name == making.title
    assert "Not yet" not in card.text


# --- what everything began with ---


def test_the_base_is_found_through_a_chain_of_saved_models(tmp_path: Path) -> None:
    for name in ("carded", "noted", "adapter", "bare", "full"):
        (tmp_path / name).mkdir()
    write_card(tmp_path / "carded", making_of(CONFIG, RECORD))
    (tmp_path / "noted" / "dialtune.json").write_text('{"base": "smollm2-135m"}')
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "facebook/bart-base"}')
    (tmp_path / "full" / "config.json").write_text('{"_name_or_path": "google/flan-t5-small"}')
    (tmp_path / "bare" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    (tmp_path / "run" / "checkpoint-2").mkdir(parents=True)
    write_card(tmp_path / "run" / "checkpoint-2", making_of(CONFIG, RECORD))
    assert base_of(str(tmp_path / "run")) == "HuggingFaceTB/SmolLM2-135M-Instruct"
    found = [base_of(str(tmp_path / name)) for name in ("carded", "noted", "adapter", "full", "bare")]
    smol = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert found == [smol, smol, "facebook/bart-base", "google/flan-t5-small", None]


@pytest.mark.parametrize("text", ["", "no front", "---\nx: [\n---\n", "---\n- a\n---\n", "---\nx: 1\n"])
def test_a_card_without_readable_front_matter_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / CARD).write_text(text)
    assert read_front_matter(tmp_path / CARD) == {}
    assert read_front_matter(tmp_path / "gone") == {}


def test_a_saved_model_has_our_card_and_not_the_one_with_a_folder_in_it(tmp_path: Path) -> None:
    from dialtune.models.lora import attach_lora

    model = attach_lora(make_model("llama"), r=2, alpha=4, dropout=0.0, target_modules="all-linear", seed=0)
    save_model(model, tmp_path, {"task": "summarize", "template": "plain"})
    card = loaded((tmp_path / CARD).read_text(encoding="utf-8"))
    assert card.data.library_name == "peft"
    assert "More Information Needed" not in card.content
    (tmp_path / CARD).write_text("mine")
    save_model(model, tmp_path)
    assert (tmp_path / CARD).read_text() == "mine"


# --- names, licences, text ---


def test_packaged_models_have_a_name_on_the_hub_and_a_licence() -> None:
    for name, known in PACKAGED.items():
        assert (hub_name(name) or "").endswith("/" + known.title)
        assert model_licence(hub_name(name))


def test_licences_are_known_by_name_or_not_at_all() -> None:
    assert [model_licence(name) for name in ("facebook/bart-large", "facebook/bart-large-cnn", "x/y", None)] == [
        "apache-2.0", "mit", None, None,
    ]  # fmt: skip
    assert data_licence("my.jsonl") is None
    assert forbids_commerce(data_licence("hub:knkarthick/dialogsum")) is True
    assert forbids_commerce(None) is False
    assert [hub_name(name) for name in ("a/b/c", "./a", "runs/x", "/a", "a b/c")] == [None] * 5


@given(st.text(max_size=60))
def test_any_text_of_data_is_shown_and_never_acts(text: str) -> None:
    assert "\n" not in plain(text)
    assert "\n" not in code(text)
    assert code(text).count("`") in (0, 2)
    assert table(["a"], [[plain(text)]]).count("\n") == 2


def test_text_of_data_is_no_markup_and_calls_nobody() -> None:
    assert plain("# [x](http://y) <img> @someone *b* a|b") == (
        "\\# \\[x\\](http://y) \\<img\\> @<!-- -->someone \\*b\\* a\\|b"
    )
    assert code("`@x` | y") == "`'@x' ¦ y`"
    assert table(["a", "b"], []) == ""


_WORD = st.text(max_size=9)
_MAKINGS = st.builds(
    Making,
    base=st.none() | st.just("a/b"),
    start=_WORD,
    task=st.none() | _WORD,
    template=st.none() | _WORD,
    is_adapter=st.booleans(),
    encoder_decoder=st.booleans(),
    method=st.none() | _WORD,
    data=st.lists(st.tuples(_WORD, _WORD, _WORD), max_size=3).map(tuple),
    settings=st.lists(st.tuples(_WORD, _WORD), max_size=3).map(tuple),
)


@given(_MAKINGS)
def test_any_facts_make_a_card_whose_front_matter_can_be_read(making: Making) -> None:
    text = card_text(making)
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert front["library_name"] == ("peft" if making.is_adapter else "transformers")
