"""Writes the pages that are made from the source: config.md, cli.md, errors.md, metrics.md; `--check` only compares."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["COLUMNS"] = "100"  # help pages must not depend on the terminal; read when the command line is imported

import typer

from dialtune import errors
from dialtune.cli.app import app, run_command
from dialtune.config.loading import ALIASES, ELSEWHERE
from dialtune.config.reward_schema import WITHOUT_EFFECT, RewardConfig
from dialtune.config.rl_schema import RLConfig
from dialtune.config.schema import RunConfig, TrainingConfig, allowed, explain, section_of, walk
from dialtune.metrics.table import METRICS

FOLDER = Path(__file__).resolve().parent
NOTE = "<!-- made by docs/generate.py; change the source, then run it again -->"


def config_page() -> str:
    """Every key of a recipe, by section, then the spellings of other tools."""
    parts = [
        "# Recipe keys",
        NOTE,
        "A recipe is YAML; `null` means none. `dialtune init` writes one, `dialtune config show RECIPE` prints it "
        "resolved, and `--set a.b=value` or a flag such as `--learning_rate` goes over it. Unknown keys are errors.",
        "## Top level",
        _table("", str(inspect.getdoc(RunConfig))),
    ]
    for key, field in walk():
        section = section_of(field)
        if section is not None:
            parts += [f"## {key}", f"{inspect.getdoc(section)} ({allowed(field)})", _table(f"{key}.")]
    parts += _own_keys("Reinforcement learning", "rl", RLConfig)
    parts += _own_keys("Learned rewards", "reward", RewardConfig, without_effect=WITHOUT_EFFECT)
    parts += ["## Spellings of other tools that are accepted", "| spelling | key |\n|---|---|"]
    extra = {
        "use_peft": "lora: {} if true",
        "dataset_train_split": "data.train, with dataset_name",
        "dataset_test_split": "data.test, with dataset_name",
        "datasets": "data.train, one entry with a path",
    }
    parts[-1] += "".join(f"\n| `{name}` | `{key}` |" for name, key in sorted((ALIASES | extra).items()))
    parts += ["## Keys of other tools that are refused", "| key | what to do |\n|---|---|"]
    parts[-1] += "".join(f"\n| `{name}` | {hint} |" for name, hint in sorted(ELSEWHERE.items()))
    return "\n\n".join(parts) + "\n"


def _own_keys(
    title: str, command: str, schema: type[TrainingConfig], without_effect: tuple[str, ...] = ()
) -> list[str]:
    """Heading, sentence and table of the keys in which a schema differs from that of fine-tuning."""
    shared = {key for key, _ in walk()}
    own = [row for row in explain("", schema) if row[0] not in shared or row != explain(row[0])[0]]
    lines = [f"| `{key}` | {words} | {default} | {text} |" for key, words, default, text in own]
    apart = [key for key in RunConfig.model_fields if key not in schema.model_fields]
    head = f"{inspect.getdoc(schema)} `dialtune {command} RECIPE` takes the keys above, apart from those of SFT "
    head += f"({', '.join(f'`{key}`' for key in apart)})"
    if without_effect:
        head += f" and those without effect here ({', '.join(f'`{key}`' for key in without_effect)})"
    table = "\n".join(["| key | allowed | default | what it does |", "|---|---|---|---|", *lines])
    return [f"## {title}", f"{head}, and these:", table]


def _table(prefix: str, before: str = "") -> str:
    rows = [before + "\n" if before else "", "| key | allowed | default | what it does |", "|---|---|---|---|"]
    for key, words, default, text in explain(prefix.removesuffix(".")):
        own = key.startswith(prefix) and "." not in key.removeprefix(prefix)
        if own and key != prefix.removesuffix("."):
            rows.append(f"| `{key}` | {words} | {default} | {text} |")
    return "\n".join(row for row in rows if row)


def cli_page() -> str:
    """The help page of every command."""
    parts = ["# Commands", NOTE]
    for path in command_paths(typer.main.get_command(app)):
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            run_command([*path, "--help"])
        parts.append(f"## {' '.join(('dialtune', *path))}\n\n```\n{text.getvalue().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def command_paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to every command and group, the root first."""
    yield path
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from command_paths(command.commands[name], (*path, name))


def errors_page() -> str:
    """The tree of errors and the exit codes."""
    rows = [
        "| code | meaning |", "|---|---|", "| 0 | done |", "| 1 | failure: one of our errors, or a bug |",
        "| 2 | usage, recipe or model cannot be used; nothing was run |", "| 3 | data rejected |",
        "| 4 | a gate was not met |", "| 130, 143 | stopped by Ctrl-C or SIGTERM, after a saved checkpoint |",
    ]  # fmt: skip
    found = []
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.DialtuneError):
            code = "130 or 143" if kind is errors.InterruptedRunError else kind.exit_code
            found.append(f"| `{name}` | {code} | {(inspect.getdoc(kind) or '').splitlines()[0]} |")
    table = "\n".join(["| error | exit code | when |", "|---|---|---|", *found])
    tree = f"```\n{inspect.getdoc(errors)}\n```"
    debug = "A traceback of an unexpected error is shown with `DIALTUNE_DEBUG=1`."
    return "\n\n".join(["# Errors and exit codes", NOTE, "\n".join(rows), debug, table, tree]) + "\n"


def metrics_page() -> str:
    """Every metric: which way is better, and its signature with one reference."""
    rows = ["| metric | better | signature with one reference |", "|---|---|---|"]
    for name, metric in METRICS.items():
        signature = re.sub(r"(tool:[\w-]+?)-[0-9.]+(?=\|)", r"\1-VERSION", metric.signature((1, 1))).replace("|", "\\|")
        if name.endswith(":alt-profanity-check"):  # an optional package: the page is the same without it
            signature = signature.partition("\\|")[0] + "\\|…, from the version that is installed"
        rows.append(f"| `{name}` | {metric.direction or 'descriptive'} | `{signature}` |")
    return "\n\n".join(["# Metrics", NOTE, "\n".join(rows)]) + "\n"


PAGES = {"config.md": config_page, "cli.md": cli_page, "errors.md": errors_page, "metrics.md": metrics_page}


def main() -> int:
    """0 if every page is fresh (or was written), 1 if `--check` found a stale one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    check = parser.parse_args().check
    stale = []
    for name, make in PAGES.items():
        file, text = FOLDER / name, make()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if not check:
                file.write_text(text, encoding="utf-8")
    if stale:
        sys.stdout.write(f"{'stale' if check else 'written'}: {', '.join(stale)}\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
