"""The shape of the package: one direction, leaves, families in models/ only, and what must never be called."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dialtune"

# Reading order = import order = data order: a module imports only what stands above it.
ORDER = [
    "errors",
    "types",
    "seeds",
    "config/data_schema",
    "config/schema",
    "config/rl_schema",
    "config/reward_schema",
    "config/reading",
    "config/loading",
    "config/grid",
    "config/writing",
    "environment",
    "results",
    "runs",
    "grids",
    "data/decoding",
    "data/json_array",
    "data/dialogue",
    "data/rows",
    "data/duplicates",
    "data/layouts",
    "data/chitchat",
    "data/reading",
    "data/corpus",
    "data/cleaning",
    "data/audit",
    "data/turns",
    "data/seen",
    "data/leakage",
    "data/splits",
    "data/controls",
    "data/toxic",
    "data/stress",
    "prompts",
    "tasks",
    "statistics",
    "rarefaction",
    "markdown",
    "licences",
    "cards",
    "checkpoints",
    "models/base",
    "models/text",
    "models/text_cache",
    "models/decoding",
    "models/seq2seq",
    "models/shared_prefix",
    "models/causal",
    "models/packaged",
    "models/lora",
    "models/safety",
    "models/loading",
    "models/reference",
    "models/value_head",
    "models/embedder",
    "models/reply_head",
    "generation",
    "scorers/base",
    "scorers/lexicon",
    "scorers/ngrams",
    "scorers/encoder",
    "scorers/huggingface",
    "scorers/profanity_check",
    "scorers/table",
    "scorers/agreement",
    "scorers/provenance",
    "metrics/base",
    "metrics/rouge",
    "metrics/bleu",
    "metrics/text",
    "metrics/contexts",
    "metrics/reply",
    "metrics/toxicity",
    "metrics/origin",
    "metrics/relevance",
    "metrics/likelihood",
    "metrics/reward",
    "metrics/table",
    "reply_likelihood",
    "rewards/base",
    "rewards/toxicity",
    "rewards/relevance",
    "rewards/text",
    "rewards/composite",
    "rewards/learned",
    "rewards/table",
    "rewards/score",
    "rewards/probes",
    "rewards/reply_probes",
    "rewards/measures",
    "rl/advantages",
    "rl/losses",
    "rl/constraint",
    "rl/health",
    "rl/rollouts",
    "rl/doctor",
    "rl/judging",
    "trainers/signals",
    "trainers/memory",
    "trainers/batching",
    "trainers/packing",
    "trainers/update",
    "trainers/setup",
    "trainers/sft",
    "trainers/sft_run",
    "trainers/grid_run",
    "trainers/scorer",
    "trainers/contrast",
    "trainers/reward_network",
    "trainers/reward",
    "trainers/reward_data",
    "trainers/reward_report",
    "trainers/reward_run",
    "trainers/method",
    "trainers/group",
    "trainers/ppo",
    "trainers/rl",
    "trainers/rl_run",
    "score_entries",
    "evaluation",
    "scoring",
    "model_evaluation",
    "pairing",
    "jury",
    "verdicts",
    "slices",
    "comparison",
    "planning",
    "diagnosis",
    "labs",
    "report/plots",
    "report/wording",
    "report/diff",
    "report/reading",
    "report/provenance",
    "report/scores",
    "report/dialogues",
    "report/curves",
    "report/findings",
    "report/grid",
    "report/views",
    "report/facts",
    "report/pull_request",
    "report/card",
    "report/build",
    "cli/progress",
    "cli/plan",
    "cli/sft",
    "cli/run",
    "cli/rl",
    "cli/reward",
    "cli/evaluate",
    "cli/data",
    "cli/setup",
    "cli/app",
    "__init__",
]

LEAVES = ("labs", "report", "serving", "cli")  # only cli/ imports them
FAMILY = re.compile(r"seq2seq|causal|is_encoder_decoder", re.IGNORECASE)
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


@cache
def source(name: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))


@cache
def modules() -> tuple[str, ...]:
    """Every module on disk but the empty __init__ files and __main__, in ORDER where it is known."""
    found = {path.relative_to(PACKAGE).with_suffix("").as_posix() for path in PACKAGE.rglob("*.py")}
    found = {name for name in found if name == "__init__" or not name.endswith(("__init__", "__main__"))}
    return tuple(sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name)))


def imports(name: str) -> Iterator[tuple[str, int, bool]]:
    """(module of ours, line, inside a function) for each import in a module; TYPE_CHECKING counts as well."""
    functions = [n for n in ast.walk(source(name)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    inner = {id(child) for function in functions for child in ast.walk(function)}
    for node in ast.walk(source(name)):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: relative import"
            base = node.module or ""
            targets = [f"{base}.{alias.name}" if is_module(f"{base}.{alias.name}") else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target == "dialtune" or target.startswith("dialtune."):
                short = target.removeprefix("dialtune").removeprefix(".").replace(".", "/")
                yield short or "__init__", node.lineno, id(node) in inner


def is_module(dotted: str) -> bool:
    return (ROOT / f"{dotted.replace('.', '/')}.py").is_file()


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """(dotted name as written, node) of every call."""
    for node in ast.walk(source(name)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def third_party(name: str) -> Iterator[tuple[str, int]]:
    for node in ast.walk(source(name)):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield (node.module or "").partition(".")[0], node.lineno


def test_the_walk_over_the_source_sees_the_package():
    assert len(modules()) >= 30
    assert sum(1 for name in modules() for _ in imports(name)) >= 60


def test_order_and_the_disk_name_the_same_modules():
    unknown = [name for name in modules() if name not in ORDER]
    missing = [name for name in ORDER if name not in modules()]
    assert not unknown, f"not in ORDER: {unknown}; give each a line where it belongs"
    assert not missing, f"in ORDER, not on disk: {missing}; remove the line"


def test_the_readme_tree_names_the_modules_in_order():
    readme = ROOT / "README.md"
    if not readme.exists() or "├── dialtune/" not in readme.read_text(encoding="utf-8"):
        pytest.skip("README.md has no package tree yet")
    assert readme_modules(readme.read_text(encoding="utf-8")) == [name for name in ORDER if name != "__init__"]


def readme_modules(text: str) -> list[str]:
    """Modules under `├── dialtune/` of a tree drawn with box characters, four columns a level."""
    found, folder, inside = [], "", False
    for line in text.splitlines():
        match = re.match(r"^((?:│   |    )*)[├└]── ([\w./]+)", line)
        if match is None:
            inside = inside and line.startswith(("│", "├", " "))
            continue
        depth, name = len(match[1]) // 4, match[2]
        if depth == 0:
            inside = name == "dialtune/"
        elif inside and depth == 1:
            folder = name if name.endswith("/") else ""
        if inside and name.endswith(".py") and not name.startswith("__"):
            found.append((folder if depth == 2 else "") + name.removesuffix(".py"))
    return found


def test_the_readme_parser_reads_folders_and_files():
    tree = "├── other/\n│   └── x.py\n├── dialtune/\n│   ├── errors.py  1\n│   ├── data/\n│   │   └── rows.py\n├── z.py"
    assert readme_modules(tree) == ["errors", "data/rows"]


@pytest.mark.parametrize("name", modules())
def test_a_module_imports_only_what_stands_before_it(name):
    assert name in ORDER, f"{name} is not in ORDER"
    for target, line, _ in imports(name):
        assert target in ORDER, f"{name}.py:{line}: imports {target}, which is not in ORDER"
        assert ORDER.index(target) < ORDER.index(name), f"{name}.py:{line}: imports {target}, which comes later"


@pytest.mark.parametrize("name", modules())
def test_only_the_command_line_imports_ours_inside_functions(name):
    hidden = [f"{name}.py:{line}: {target}" for target, line, inner in imports(name) if inner]
    assert not hidden or name.startswith("cli/") or name == "__init__", hidden


@pytest.mark.parametrize("name", modules())
def test_leaves_stay_leaves(name):
    if name.startswith("cli/"):
        return
    for target, line, _ in imports(name):
        leaf = target.partition("/")[0]
        inside = name.partition("/")[0] == leaf
        assert leaf not in LEAVES or inside, f"{name}.py:{line}: imports the leaf {target}"


def test_subpackages_have_empty_init_files():
    files = [path for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert len(files) >= 6
    assert [str(path) for path in files if path.read_text().strip()] == []


@pytest.mark.parametrize("name", [name for name in modules() if not name.startswith("models/")])
def test_only_models_knows_a_family(name):
    found = []
    for node in ast.walk(source(name)):
        names = {
            ast.Name: lambda n: [n.id],
            ast.Attribute: lambda n: [n.attr],
            ast.FunctionDef: lambda n: [n.name],
            ast.ClassDef: lambda n: [n.name],
            ast.arg: lambda n: [n.arg],
            ast.keyword: lambda n: [n.arg or ""],
            ast.alias: lambda n: [n.name, n.asname or ""],
        }.get(type(node), lambda n: [])(node)
        found += [f"{name}.py:{getattr(node, 'lineno', 0)}: {word}" for word in names if FAMILY.search(word)]
    assert not found


@pytest.mark.parametrize("name", modules())
def test_nothing_imports_pickle(name):
    assert [f"{name}.py:{line}: {target}" for target, line in third_party(name) if target in PICKLES] == []


@pytest.mark.parametrize("name", modules())
def test_nothing_calls_what_could_run_foreign_code(name):
    """M2 of the reliability design: torch.load, eval, exec, unsafe yaml, shells, trust_remote_code=True."""
    bad = []
    for called, node in calls(name):
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        forbidden = called in {
            "eval",
            "exec",
            "compile",
            "__import__",
            "os.system",
            "os.popen",
            "yaml.load",
            "yaml.unsafe_load",
        }
        forbidden |= called.endswith(("pickle.load", "pickle.loads", "joblib.load"))
        forbidden |= called.endswith("torch.load") and name != "models/loading"
        forbidden |= keywords.get("shell") == "True" or keywords.get("trust_remote_code") == "True"
        forbidden |= keywords.get("allow_pickle") == "True" or keywords.get("weights_only") == "False"
        if forbidden:
            bad.append(f"{name}.py:{node.lineno}: {ast.unparse(node)[:80]}")
    assert not bad


@pytest.mark.parametrize("name", modules())
def test_only_the_command_line_prints_or_exits(name):
    if name.startswith("cli/"):
        return
    ways = {"print", "exit", "quit", "sys.exit", "os._exit", "typer.echo", "sys.stdout.write", "sys.stderr.write"}
    if name == "trainers/signals":
        ways.discard("os._exit")  # a second signal ends the process at once, without unwinding half a step
    found = [f"{name}.py:{node.lineno}: {called}" for called, node in calls(name) if called in ways]
    assert found == []


@pytest.mark.parametrize("name", modules())
def test_only_update_steps_the_optimizer(name):
    found = [f"{name}.py:{n.lineno}" for called, n in calls(name) if re.search(r"optim\w*\.step$", called)]
    assert found == [] or name == "trainers/update"


@pytest.mark.parametrize("name", modules())
def test_no_clock_and_no_system_randomness_in_values(name):
    """Section 8 of the reliability design: clocks belong to run.json and to fields ending in _s."""
    found = [called for called, _ in calls(name) if called in {"os.urandom", "uuid.uuid4", "random.SystemRandom"}]
    assert found == []


def test_files_functions_and_commands_are_capped():
    long = []
    for name in modules():
        lines = (PACKAGE / f"{name}.py").read_text(encoding="utf-8").count("\n")
        if lines > 400:
            long.append(f"{name}.py: {lines} lines, at most 400")
        for node in ast.walk(source(name)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                length = (node.end_lineno or 0) - body[0].lineno + 1 if body else 0
                cap = 120 if node.name.startswith("train_") else 25 if is_command(node) else 50
                if length > cap:
                    long.append(f"{name}.py:{node.lineno}: {node.name} has {length} lines, at most {cap}")
    assert long == []


def is_command(node: ast.FunctionDef) -> bool:
    return any("app.command" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("name", modules())
def test_every_module_says_in_one_line_what_it_holds(name):
    text = ast.get_docstring(source(name))
    assert text, f"{name}.py has no docstring"
    assert len(text.splitlines()[0]) >= 20


HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "sklearn",
    "scipy",
    "matplotlib",
    "rouge_score",
    "sacrebleu",
    "pyarrow",
)
LIGHT = [
    name
    for name in modules()
    if name.startswith(("config/", "data/", "cli/", "metrics/", "report/"))
    or name in {"__init__", "errors", "types", "seeds", "environment", "results", "runs", "prompts", "tasks",
                "statistics", "evaluation", "pairing", "comparison"}
]  # fmt: skip


def test_importing_these_modules_loads_nothing_heavy():
    """In one fresh interpreter: dialtune, config, data, metrics, evaluation, comparison, report, command line."""
    dotted = ["dialtune" if name == "__init__" else f"dialtune.{name.replace('/', '.')}" for name in LIGHT]
    look = f"loaded = sorted(set({HEAVY!r}) & set(sys.modules))"
    lines = [f"import {module}\n{look}\nassert not loaded, ({module!r}, loaded)" for module in dotted]
    code = "\n".join(["import sys", *lines])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert len(LIGHT) >= 25


def test_the_command_line_itself_loads_neither_numpy_nor_pydantic():
    code = (
        "import sys, dialtune.cli.app\nprint(sorted({'numpy', 'pydantic', 'yaml', 'torch', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
