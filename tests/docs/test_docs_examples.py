"""No example can rot: commands parse, recipes load, rows are read, names and messages in the text exist."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import doc_pages as pages
import pytest
import typer
import yaml

from dialtune.cli.app import ELSEWHERE as VERBS_ELSEWHERE
from dialtune.cli.app import app
from dialtune.config.loading import ALIASES, RECIPES, find_recipe, load_any_config
from dialtune.config.rl_schema import RewardName, RLConfig
from dialtune.config.schema import RunConfig, TaskName, walk
from dialtune.data.layouts import LAYOUTS
from dialtune.data.reading import read_examples
from dialtune.metrics.table import METRICS
from dialtune.scorers.table import PACKAGED_SCORERS

ROOT, DOCS = pages.ROOT, pages.DOCS
KEYS = {name for name, _ in walk()} | {name for name, _ in walk(RLConfig)}
RL_ONLY = set(RLConfig.model_fields) - set(RunConfig.model_fields)
BASH = [(block.place, words) for block in pages.every("bash") for words in pages.commands(block)]


def command_of(words: list[str]) -> tuple[Any, list[str]]:
    """(the click command that the first words name, the words behind them)."""
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        assert words, "a verb is missing"
        assert words[0] in command.commands, f"no verb {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    return command, words


def test_the_pages_have_examples():
    assert len(BASH) > 80
    assert len(pages.every("yaml")) >= 5
    assert len(pages.every("python")) >= 5
    assert {block.language for file in pages.WRITTEN for block in pages.blocks(file)} <= {
        "bash", "yaml", "python", "json", "",
    }  # fmt: skip


@pytest.mark.parametrize(("place", "words"), BASH, ids=[f"{place} {' '.join(words[:3])}" for place, words in BASH])
def test_a_command_parses(place, words, tmp_path, monkeypatch):
    """dialtune with its real parser: an unknown verb or flag, or a missing argument fails; others by what they name."""
    program, *rest = words
    monkeypatch.chdir(tmp_path)
    if "--resume" in rest[:-1]:
        Path(rest[rest.index("--resume") + 1]).mkdir(parents=True)  # what follows is read as a checkpoint if it is one
    if program in ("dialtune", ".venv/bin/dialtune"):
        command, arguments = command_of(rest)
        assert command.make_context(command.name, list(arguments)).params is not None
        check_names(rest)
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
        assert {word for word in rest if "=" not in word} <= targets
    elif program.endswith(("pip", "pip3")):
        check_pip(rest)
    else:
        assert program in ("git", "cd", ".", "python3"), f"{place}: {program} is no command that is known here"


def check_names(words: list[str]) -> None:
    """Recipes, tasks, metrics, keys and packaged rows that a command names exist."""
    for flag, value in pairwise(words):
        if flag == "--task":
            assert value in get_args(TaskName)
        elif flag in ("--metric", "--score"):
            assert value in METRICS or value.startswith("reward:")
        elif flag == "--set":
            assert value.partition("=")[0] in KEYS
    if words[0] in ("sft", "rl", "reward") and len(words) > 1 and not words[1].startswith("-") and "." not in words[1]:
        assert find_recipe(words[1]).parent == RECIPES
    if words[:2] == ["config", "explain"] and len(words) > 2:
        assert words[2] in ("rl", "reward") or words[2] in KEYS


def check_pip(words: list[str]) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for word in words:
        if extra := re.fullmatch(r"dialtune\[(\w+)\]", word):
            assert re.search(rf"^{extra[1]} = \[", project, re.MULTILINE), f"no extra {extra[1]}"
        if word.endswith(".txt"):
            assert (ROOT / word).is_file()


@pytest.mark.parametrize("block", pages.every("yaml"), ids=lambda block: block.place)
def test_a_recipe_loads(block, tmp_path):
    """A whole recipe as it stands; a piece of one on top of what it leaves out."""
    values = yaml.safe_load(block.text)
    text = block.text
    if not {"model", *(name for name, key in ALIASES.items() if key == "model")} & set(values):
        text += "\nmodel: smollm2-135m\n"
    if "data" not in values and not {"dataset_name", "datasets"} & set(values):
        text += "\ndata: {train: packaged:train}\n"
    if RL_ONLY & set(values) and not {"method", "signals"} & set(values):
        text += "\nmethod: grpo\n"
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert load_any_config(tmp_path / "recipe.yaml").model


def test_every_row_in_the_page_of_data_is_read_as_what_the_table_says(tmp_path):
    rows = [line for block in pages.blocks(DOCS / "data.md", "json") for line in block.text.splitlines()]
    assert len(rows) >= 8
    found = set()
    for number, row in enumerate(rows):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(row + "\n", encoding="utf-8")
        data = read_examples(file)
        found.add(data.layout)
        assert len(data.examples) == 1
        assert data.examples[0].references
    assert found >= set(LAYOUTS) - {"prompt", "dialogue", "article"}  # these need no row to be understood
    table = (DOCS / "data.md").read_text(encoding="utf-8")
    assert [name for name in LAYOUTS if f"`{name}`" not in table] == []


@pytest.mark.parametrize("block", pages.every("python"), ids=lambda block: block.place)
def test_python_imports_what_is_there(block):
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom):
            module = import_module(node.module or "")
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


@pytest.mark.parametrize("file", [*pages.WRITTEN, pages.ROOT / "benchmarks" / "peers.md"], ids=lambda file: file.name)
def test_commands_and_keys_in_the_text_exist(file):
    sections = {name.partition(".")[0] for name in KEYS if "." in name}
    for span in pages.spans(file):
        if span.startswith("dialtune ") and "…" not in span:
            words = span.split()[1:]
            command, rest = command_of(words) if words[0] not in VERBS_ELSEWHERE else (None, [])
            known = {name for parameter in getattr(command, "params", ()) for name in parameter.opts}
            asked = {word.partition("=")[0] for word in rest if word.startswith("--")}
            assert asked <= known | {"--help"}, f"{file.name}: `{span}`"
        elif re.fullmatch(r"[a-z_]+\.[a-z_0-9]+(?:: .*)?", span) and span.partition(".")[0] in sections - {"data"}:
            assert span.partition(":")[0] in KEYS, f"{file.name}: `{span}`"


@cache
def strings() -> tuple[str, ...]:
    """Every text in the source, what is filled in replaced by a zero character."""
    found = []
    for path in (ROOT / "dialtune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def test_every_message_of_the_page_of_troubles_is_one_of_ours():
    pieces = [
        span
        for line in (DOCS / "troubleshooting.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `")
        for span in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(pieces) > 35
    assert [piece for piece in pieces if not any(piece in text for text in strings())] == []


def test_every_function_of_the_equations_is_on_their_page():
    text, seen = (DOCS / "rl.md").read_text(encoding="utf-8"), 0
    for path in sorted((ROOT / "dialtune" / "rl").glob("*.py")):
        if path.stem == "__init__":
            continue
        module = import_module(f"dialtune.rl.{path.stem}")
        for name, value in vars(module).items():
            own = (inspect.isfunction(value) or inspect.isclass(value)) and value.__module__ == module.__name__
            if own and not name.startswith("_"):
                seen += 1
                assert f"`rl.{path.stem}.{name}`" in text, f"rl.{path.stem}.{name} is not in rl.md"
    assert seen > 30
    for dotted in re.findall(r"`rl\.([a-z]+)\.(\w+)`", text):
        assert hasattr(import_module(f"dialtune.rl.{dotted[0]}"), dotted[1]), dotted


def test_every_reward_scorer_and_recipe_is_on_a_page():
    rewards = (DOCS / "rewards.md").read_text(encoding="utf-8")
    assert [name for name in get_args(RewardName) if f"`{name}`" not in rewards] == []
    assert [name for name in PACKAGED_SCORERS if f"`{name}`" not in rewards and name != "minilm"] == []
    text = "".join(path.read_text(encoding="utf-8") for path in pages.WRITTEN)
    recipes = [path.stem for path in RECIPES.glob("*.yaml") if not path.stem.startswith("tiny-")]
    assert len(recipes) >= 8
    assert [name for name in recipes if name not in text] == []


def test_every_key_of_another_tool_in_the_page_of_migrating_is_accepted_or_ours():
    (block, *_) = pages.blocks(DOCS / "migrating.md", "yaml")
    values = yaml.safe_load(block.text)
    extra = {"use_peft", "dataset_train_split"}
    assert set(values) <= set(ALIASES) | KEYS | extra


def test_trl_has_what_the_page_of_migrating_says(tmp_path):
    """Only where TRL is installed (make bench); its version is part of the claim."""
    trl = pytest.importorskip("trl")
    if not trl.__version__.startswith("1.16"):
        pytest.skip(f"the page is about TRL 1.16, here is {trl.__version__}")
    text = (DOCS / "migrating.md").read_text(encoding="utf-8")
    for name in ("SFTTrainer", "GRPOTrainer", "RLOOTrainer", "RewardTrainer"):
        assert name in text
        assert name in trl.__all__ if hasattr(trl, "__all__") else hasattr(trl, name)
    assert "PPOTrainer" not in dir(trl)
    source = (Path(trl.__file__).parent / "trainer" / "grpo_config.py").read_text(encoding="utf-8")
    for name, default in (("beta", "0.0"), ("scale_rewards", '"group"'), ("loss_type", '"dapo"')):
        assert re.search(rf"^    {name}: .*?default={re.escape(default)}", source, re.MULTILINE | re.DOTALL)
