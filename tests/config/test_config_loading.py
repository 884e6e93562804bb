"""Recipes from YAML, --set and flags: positions, every problem at once, aliases, round trips."""
# ruff: noqa: E501  # messages are compared whole

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dialtune.config.loading import (
    ALIASES,
    ELSEWHERE,
    check_text,
    explain_topic,
    load_any_config,
    load_config,
    to_yaml,
)
from dialtune.config.reading import as_yaml, read_text
from dialtune.config.schema import RunConfig, walk
from dialtune.errors import ConfigError

MINIMAL = "model: m\ndata: {train: t, validation: v}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> str:
        Path("r.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return "r.yaml"

    return write


def problems(text: str, *overrides: str, **flags: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides, **flags) if overrides or flags else check_text(text, "r.yaml")
    return list(caught.value.problems)


def one(text: str) -> str:
    lines = problems(text)
    assert len(lines) == 2, lines
    return lines[0]


# every problem at once, with its place


def test_three_mistakes_give_three_lines_with_places_and_a_count():
    text = "model: m\ndata:\n  train: t\n  validaton: v\nlearning_rte: 1e-4\nlora:\n  r: 0\n"
    assert problems(text) == [
        "r.yaml:4:3: data.validaton: unknown key; did you mean 'validation'?",
        "r.yaml:5:1: learning_rte: unknown key; did you mean 'learning_rate'?",
        "r.yaml:7:6: lora.r: got 0; allowed integer, at least 1 and at most 1,024; try 16",
        "3 problems, nothing was run. Every key with its range: dialtune config explain",
    ]


def test_one_problem_in_a_section_names_the_section_to_look_up():
    assert problems(MINIMAL + "lora: {dropout: 1}\n") == [
        "r.yaml:3:17: lora.dropout: got 1; allowed number, at least 0 and below 1; try 0.05",
        "1 problem, nothing was run. Every key with its range: dialtune config explain lora",
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bf16: maybe", "3:7: bf16: got 'maybe'; allowed true, false or auto; try auto"),
        ("num_train_epochs: true", "3:19: num_train_epochs: got true; allowed number, above 0; try 3.0"),
        ("learning_rate: .nan", "3:16: learning_rate: got nan; allowed number, above 0 and at most 1; try 5e-05"),
        ("max_steps: 1.5", "3:12: max_steps: got 1.5; allowed integer, at least -1; try -1"),
        ("seed: [1, 2]", "3:7: seed: got [1, 2]; allowed integer, at least 0 and at most 4,294,967,295; try 42 (a list makes a grid, "
            "which only dialtune sft runs)"),
        ("lora: {target_modules: [1]}", "3:24: lora.target_modules: got [1]; allowed text or list of text, not empty; try all-linear"),
        ("generation: 5", "3:13: generation: got 5; allowed section"),
        ("num_beams: 4", "3:1: num_beams: unknown key; did you mean 'generation.num_beams'?"),
        ("max_steps: 0", "3:12: max_steps: got 0; 0 steps train nothing; for the untouched model run: dialtune evaluate"),
        ("lr_scheduler_type: linea", "3:20: lr_scheduler_type: got 'linea'; allowed linear, cosine, constant or constant_with_warmup; try linear"),
        ("micro_batch_size: 4", "3:1: micro_batch_size: unknown key; here it is per_device_train_batch_size"),
        ("xyzzy: 1", "3:1: xyzzy: unknown key"),
        ("model: n", "3:1: model: given twice, first in line 1; keep one"),
        ("base_model: n", "3:13: model: given twice, as 'model' and 'base_model'; keep one"),
        ("seed: !!python/name:os.system x", "3:7: seed: tag !python/name:os.system is not allowed; write a plain value"),
        ("seed: !!int x", "3:7: seed: tag !int is not allowed; write a plain value"),
        ("seed: !!bool 2", "3:7: seed: tag !bool is not allowed; write a plain value"),
        ("<<: {a: 1}", "3:1: <<: not allowed as a key; write plain keys out"),
        ("? [a, b]\n: 1", "3:3: ?: not allowed as a key; write plain keys out"),
        ("data_seed: '" + "x" * 80 + "'", "3:12: data_seed: got '" + "x" * 36 + "…'; allowed integer or null, at least 0 and at most 4,294,967,295"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_with_place_and_way_out(line, problem):
    assert one(MINIMAL + line + "\n") == "r.yaml:" + problem


def test_a_wrong_item_of_a_list_has_its_own_place():
    assert one(MINIMAL + "evaluation:\n  metrics:\n    - rougeL\n    - rogue1\n").startswith(
        "r.yaml:6:7: evaluation.metrics.1: got 'rogue1'; allowed list of rouge1, "
    )


def test_missing_keys_are_named_down_to_the_key_with_an_example():
    assert problems("task: summarize\n")[:2] == [
        "r.yaml:1:1: model: missing; allowed text, not empty; try google/flan-t5-base",
        "r.yaml:1:1: data.train: missing; allowed text, not empty; try packaged:train",
    ]


def test_fp16_for_t5_is_refused_with_the_reason():
    text = "model: google/flan-t5-base\ndata: {train: t}\nfp16: true\n"
    assert one(text) == (
        "r.yaml:3:7: fp16: got true; this family overflows float16 (largest number 65,504) and trains to NaN; use bf16: auto"
    )


def test_the_suggested_keys_and_the_explained_keys_exist():
    keys = {key for key, _ in walk()}
    assert set(ALIASES.values()) <= keys
    assert not set(ELSEWHERE) & keys
    for hint in ELSEWHERE.values():
        for name in re.findall(r"[a-z0-9]+(?:_[a-z0-9]+){2,}", hint):
            assert name in keys, name


# files that are no recipe


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "r.yaml:1:1: empty; a recipe starts with: model: NAME"),
        ("# only a comment\n", "r.yaml:1:1: empty; a recipe starts with: model: NAME"),
        ("- a\n- b\n", "r.yaml:1:1: got a list; expected keys, such as: model: NAME"),
        ("hello", "r.yaml:1:1: got a single value; expected keys, such as: model: NAME"),
        ("model: m\n\tdata: x\n", "r.yaml:2:1: not valid YAML: a tab; YAML indents with spaces"),
        ("a: [1, 2\nb: 3\n", "r.yaml:2:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: not valid YAML: but found another document"),
        ("a: \x00", "r.yaml: not a text file: character U+0000 in it"),
        (b"\xff\xfem\x00", "r.yaml: UTF-16 text; save it as UTF-8"),
        (b"model: m\nx: caf\xe9\n", "r.yaml:2: byte 0xe9 is not UTF-8; save it as UTF-8"),
        (b"#" * 70_000, "r.yaml: more than 65,536 bytes; a recipe is shorter. Is this a data file?"),
        ("[" * 3000, "r.yaml: nested too deeply; a recipe has 8 levels at most"),
        ("a: &a [*a]\n", "r.yaml:1:4: too much in one key; a recipe is 8 levels deep at most"),
    ],
)
def test_a_file_that_cannot_be_read_gives_one_line(recipe, content, message):
    with pytest.raises(ConfigError) as caught:
        load_config(recipe(content))
    assert str(caught.value) == message


def test_aliases_that_multiply_are_stopped_quickly(recipe):
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 7)
    )
    with pytest.raises(ConfigError, match="too much in one key"):
        load_config(recipe(bomb))


def test_a_missing_file_names_close_packaged_recipes(recipe):
    with pytest.raises(
        ConfigError, match=r"^summarize-flan-t5-bas: no such file; packaged recipes: summarize-flan-t5-base; or"
    ):
        load_config("summarize-flan-t5-bas")
    with pytest.raises(ConfigError, match=r"^[.]: cannot be read: Is a directory; give a YAML file$"):
        load_config(".")


def test_a_byte_order_mark_is_no_part_of_the_first_key(recipe):
    assert load_config(recipe(b"\xef\xbb\xbf" + MINIMAL.encode())).model == "m"


# scalars


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("1e-4", 1e-4), ("5E-5", 5e-5), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("1_000", 1000), ("010", 10),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("'1'", "1"), ("!!str 1", "1"),
        ("yes", "yes"), ("off", "off"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("none", "none"), ("0x1f", "0x1f"),
    ],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2_reads_them(written, read):
    value = read_text(f"a: {written}\n", "t").values[("a",)]
    assert value == read
    assert type(value) is type(read)


# --set and flags


def test_overrides_go_over_the_file_and_flags_over_both(recipe):
    file = recipe(MINIMAL + "seed: 1\nlearning_rate: 1e-3\nlora: {r: 8, alpha: 8}\n")
    config = load_config(file, ["seed=2", "lora.r=4", "learning_rate=2e-3"], learning_rate=3e-3, model=None)
    assert (config.seed, config.lora.r, config.lora.alpha, config.learning_rate, config.model) == (2, 4, 8, 3e-3, "m")


def test_an_override_can_set_or_drop_a_whole_section(recipe):
    file = recipe(MINIMAL + "lora: {r: 8, alpha: 8}\n")
    assert load_config(file, ["lora=null"]).lora is None
    whole = load_config(file, ["lora={r: 3}"]).lora
    assert (whole.r, whole.alpha) == (3, 8)
    assert load_config(file, ["use_peft=true"]).lora == load_config(file).lora
    again = load_config(file, ["lora=null", "lora.r=5"]).lora
    assert (again.r, again.alpha) == (5, 32)


def test_a_map_of_names_is_replaced_as_a_whole_and_changed_by_name(recipe):
    file = recipe(MINIMAL + "method: grpo\nrewards: {relevance: 1.0, toxicity: 0.5}\n")
    assert load_any_config(file, ["rewards={copy: 1.0}"]).rewards == {"copy": 1.0}
    assert load_any_config(file, ["rewards.copy=1.0"]).rewards == {"relevance": 1.0, "toxicity": 0.5, "copy": 1.0}
    assert load_any_config(file, ["rewards={copy: 1.0}", "rewards.format=2"]).rewards == {"copy": 1.0, "format": 2.0}
    with pytest.raises(ConfigError, match=r"rewards: got \{\}; allowed"):
        load_any_config(file, ["rewards={}"])
    chats = recipe(MINIMAL.replace("{train: t", "{columns: {dialogue: chat}, train: t"))
    assert load_config(chats, ["data.columns={id: key}"]).data.columns == {"id": "key"}
    assert load_config(chats, ["data.columns={}"]).data.columns == {}
    assert load_config(chats, ["data={train: u}"]).data.columns == {"dialogue": "chat"}


def test_problems_of_overrides_and_flags_name_them():
    lines = problems("", "seed=x", "foo", "save_steps=[", "model=m", "data.train=t", "=3", learning_rate=7.0)
    assert lines == [
        "--set seed: got 'x'; allowed integer, at least 0 and at most 4,294,967,295; try 42",
        "--set foo: got 'foo'; expected key=value, such as: --set learning_rate=1e-4",
        "--set save_steps: got '[', which is not a YAML value; put text in quotes",
        "--set : got '=3'; expected key=value, such as: --set learning_rate=1e-4",
        "--learning_rate: got 7.0; allowed number, above 0 and at most 1; try 5e-05",
        "5 problems, nothing was run. Every key with its range: dialtune config explain",
    ]


def test_flags_alone_are_a_recipe():
    config = load_config(None, (), model="m", data="t", data__validation="v", output_dir=None)
    assert (config.data.train, config.data.validation, config.output_dir) == ("t", "v", "runs/sft")


# spellings of other tools


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_every_accepted_spelling_means_its_key(alias):
    value = {"lora_r": 4, "lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0.5}.get(alias, "x")
    base = "".join(
        line for line in ("model: m\n", "data: {train: t}\n") if not line.startswith(ALIASES[alias].split(".")[0])
    )
    config = check_text(f"{base}{alias}: {value}\n", "r.yaml").model_dump()
    for name in ALIASES[alias].split("."):
        config = config[name]
    assert config == (["x"] if alias == "lora_target" else "hub:x" if alias == "dataset_name" else value) or config == (
        "x",
    )


def test_use_peft_turns_lora_on_and_off():
    assert check_text(MINIMAL + "use_peft: true\n", "r").lora.r == 16
    assert check_text(MINIMAL + "use_peft: true\nlora_r: 4\n", "r").lora.r == 4
    assert check_text(MINIMAL + "use_peft: false\n", "r").lora is None
    assert check_text(MINIMAL + "lora: true\n", "r").lora.r == 16
    assert "given twice" in one(MINIMAL + "use_peft: false\nlora_r: 4\n")


def test_target_modules_in_the_spelling_of_llama_factory():
    assert check_text(MINIMAL + "lora_target: all\n", "r").lora.target_modules == "all-linear"
    assert check_text(MINIMAL + "lora_target: q_proj, v_proj\n", "r").lora.target_modules == ("q_proj", "v_proj")


def test_data_in_the_spelling_of_trl_and_axolotl():
    trl = check_text("model: m\ndataset_name: a/b\ndataset_train_split: train\ndataset_test_split: test\n", "r").data
    assert (trl.train, trl.test) == ("hub:a/b:train", "hub:a/b:test")
    assert check_text("model: m\ndatasets:\n  - {path: x.jsonl, type: alpaca}\n", "r").data.train == "x.jsonl"
    assert check_text("model: m\ndata: x.jsonl\n", "r").data.train == "x.jsonl"
    assert check_text(f"model: m\ndataset_name: {__file__}\n", "r").data.train == __file__
    assert "one entry with a path" in "".join(problems("model: m\ndatasets: [{path: a}, {path: b}]\n"))


# round trips


def test_the_resolved_text_gives_the_same_run():
    config = check_text(MINIMAL + "use_peft: true\nlora_target: q,v\nseed: 0\nevaluation: {metrics: [bleu]}\n", "r")
    again = check_text(to_yaml(config), "config.yaml")
    assert again == config
    assert again.fingerprint == config.fingerprint


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)


@given(
    name=TEXT, rate=st.floats(1e-12, 1), seed=st.integers(0, 2**32 - 1), columns=st.dictionaries(TEXT, TEXT, max_size=3)
)
def test_any_text_and_number_survives_the_round_trip(name, rate, seed, columns):
    config = RunConfig.model_validate(
        {"model": name, "data": {"train": name, "columns": columns}, "learning_rate": rate, "seed": seed}
    ).resolve()
    text = to_yaml(config)
    if any("." in key or key in ("<<", "?", "=") for key in columns):
        return
    assert check_text(text, "r").fingerprint == config.fingerprint
    assert yaml.safe_load(text) is not None


@given(TEXT)
def test_text_is_quoted_so_that_older_yaml_readers_agree(text):
    assert yaml.safe_load(as_yaml({"a": text})) == {"a": text}


@given(st.text(max_size=200))
def test_no_text_at_all_gets_past_the_loader_as_a_crash(text):
    with contextlib.suppress(ConfigError):
        check_text(text, "r.yaml")


# explain


def test_explain_answers_aliases_and_suggests():
    assert explain_topic("lora_rank")[0][0] == "lora.r"
    with pytest.raises(ConfigError, match=r"^config explain: no key 'lor'; did you mean 'lora'[?]$"):
        explain_topic("lor")


# weight


def test_loading_a_recipe_needs_neither_torch_nor_numpy(tmp_path):
    (tmp_path / "r.yaml").write_text("model: m\ndata: t\nsed: 1\n")
    code = (
        "import sys\nfrom dialtune.config.loading import load_config\nfrom dialtune.errors import ConfigError\n"
        "try: load_config('r.yaml')\nexcept ConfigError as e: print(e)\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("r.yaml:3:1: sed: unknown key; did you mean 'seed'?")
