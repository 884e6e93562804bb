"""The recipe's schema: frozen, documented, strict, and its derived values."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from dialtune.config.schema import RunConfig, allowed, explain, section_of, walk


def build(**values: object) -> RunConfig:
    return RunConfig.model_validate({"model": "m", "data": {"train": "t", "validation": "v"}, **values})


def test_every_field_says_in_one_line_what_it_is():
    fields = list(walk())
    assert len(fields) > 50
    for key, field in fields:
        text = field.description or ""
        assert len(text) >= 15, key
        assert "\n" not in text, key
        assert text.endswith("."), key


def test_every_default_is_inside_its_own_range():
    for key, field in walk():
        if not field.is_required() and section_of(field) is None:
            *sections, name = key.split(".")
            values: dict[str, object] = {name: field.default}
            for section in reversed(sections):
                needed = {"train": "t", "validation": "v"} if section == "data" else {}
                values = {section: needed | values}
            build(**values)


def test_every_section_is_known_and_has_a_docstring():
    sections = [(key, section_of(field)) for key, field in walk() if section_of(field)]
    assert [key for key, _ in sections] == ["data", "data.turns", "lora", "generation", "evaluation"]
    assert all(section.__doc__ for _, section in sections)


def test_a_recipe_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        build().seed = 1


@pytest.mark.parametrize("key", ["max_steps", "learning_rate", "seed", "model"])
def test_true_is_not_read_as_one(key):
    with pytest.raises(ValidationError, match="a number or text is needed"):
        build(**{key: True})


def test_the_fingerprint_ignores_where_the_run_is_written_and_nothing_else():
    base = build()
    assert build(output_dir="elsewhere").fingerprint == base.fingerprint
    assert build(seed=7, data_seed=1).fingerprint != build(seed=8, data_seed=1).fingerprint
    assert build(data={"train": "t", "validation": "v", "max_train_rows": 3}).fingerprint != base.fingerprint
    assert re.fullmatch("[0-9a-f]{64}", base.fingerprint)


def test_the_fingerprint_is_the_same_before_and_after_resolving():
    config = build(lora={}, data={"train": "t"})
    assert config.fingerprint == config.resolve().fingerprint == config.resolve().resolve().fingerprint


def test_lora_learns_faster_unless_told_otherwise():
    assert build().resolve().learning_rate == 5e-5
    assert build(lora={}).resolve().learning_rate == 2e-4
    assert build(lora={}, learning_rate=5e-5).resolve().learning_rate == 5e-5


def test_the_order_of_rows_follows_the_seed_also_when_it_is_zero():
    assert build(seed=0).resolve().data_seed == 0
    assert build(seed=5, data_seed=0).resolve().data_seed == 0
    assert build(seed=0, data_seed=3).resolve().data_seed == 3


def test_without_validation_rows_the_last_checkpoint_is_the_result():
    assert build().resolve().load_best_model_at_end is True
    assert build(data={"train": "t"}).resolve().load_best_model_at_end is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trust_remote_code": True}, "set model_revision to its 40 hex digits"),
        ({"trust_remote_code": True, "model_revision": "main"}, "set model_revision to its 40 hex digits"),
        ({"max_steps": 0}, "0 steps train nothing"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "warmup_steps is set too"),
        ({"data": {"train": "t"}, "load_best_model_at_end": True}, "needs data.validation"),
        ({"data": {"train": "t"}, "early_stopping_patience": 2}, "needs data.validation"),
        ({"model": "google/flan-t5-base", "fp16": True}, "overflows float16"),
        ({"bf16": True, "fp16": True}, "bf16 is true as well"),
        ({"generation": {"temperature": 0.7}}, "has no effect while do_sample is false"),
        ({"generation": {"do_sample": True, "num_beams": 4}}, "beams and do_sample exclude each other"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_the_reason(values, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        build(**values)


def test_a_pinned_commit_allows_remote_code():
    assert build(model_revision="0" * 40, trust_remote_code=True).trust_remote_code


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("learning_rate", "number, above 0 and at most 1"),
        ("lora.r", "integer, at least 1 and at most 1,024"),
        ("bf16", "true, false or auto"),
        ("on_save_error", "stop or continue"),
        ("data.max_train_rows", "integer or null, at least 1"),
        ("data.columns", "mapping of text to text"),
        ("data.reference", "text, letters, digits and _ only"),
        ("lora", "section or null"),
    ],
)
def test_what_is_allowed_is_said_in_words(key, words):
    assert allowed(dict(walk())[key]) == words


def test_explaining_a_section_gives_it_and_its_keys_only():
    assert [key for key, *_ in explain("lora")] == [
        "lora", "lora.r", "lora.alpha", "lora.dropout", "lora.target_modules",
    ]  # fmt: skip
    assert explain("lora.r")[0][2] == "16"
    assert explain("model")[0][2] == "required"
    assert len(explain()) == len(list(walk()))
