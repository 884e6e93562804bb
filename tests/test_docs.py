"""Generated pages are fresh, and every key, command, error, metric and alias is on one of them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer

from dialtune import errors
from dialtune.cli.app import app
from dialtune.config import schema
from dialtune.config.loading import ALIASES
from dialtune.data.cleaning import STEPS
from dialtune.data.layouts import LAYOUTS
from dialtune.metrics.table import METRICS
from dialtune.prompts import TEMPLATES
from dialtune.tasks import TASKS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def test_the_generated_pages_are_fresh():
    done = subprocess.run([sys.executable, DOCS / "generate.py", "--check"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr + "run: python docs/generate.py"


def test_every_key_of_a_recipe_is_documented():
    keys = [key for key, field in schema.walk() if schema.section_of(field) is None]
    assert len(keys) > 50
    assert [key for key in keys if f"| `{key}` |" not in page("config.md")] == []
    assert [name for name in ALIASES if f"| `{name}` |" not in page("config.md")] == []


def test_every_command_and_option_is_documented_with_help():
    seen = 0
    for path, command in commands(typer.main.get_command(app)):
        assert f"## {' '.join(('dialtune', *path))}\n" in page("cli.md")
        assert command.help, f"{path} says nothing"
        for parameter in command.params:
            seen += 1
            assert getattr(parameter, "help", None), f"{' '.join(path)}: {parameter.name} has no help"
    assert seen > 60


def test_no_help_page_is_longer_than_sixty_lines():
    for block in page("cli.md").split("```")[1::2]:
        assert block.count("\n") <= 60, block.splitlines()[1]


def commands(command, path=()):
    yield path, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from commands(inner, (*path, name))


def test_every_error_is_documented_with_its_exit_code():
    kinds = [k for k in vars(errors).values() if inspect.isclass(k) and issubclass(k, errors.DialtuneError)]
    assert len(kinds) >= 12
    for kind in kinds:
        assert f"| `{kind.__name__}` |" in page("errors.md")
        assert kind.__name__ in (errors.__doc__ or "")


def test_every_metric_is_documented():
    assert [name for name in METRICS if f"| `{name}` |" not in page("metrics.md")] == []


@pytest.mark.parametrize(
    ("names", "table"),
    [
        (get_args(schema.TaskName), TASKS),
        (get_args(schema.MetricName), METRICS),
        (get_args(schema.TemplateName), TEMPLATES),
        (get_args(schema.LayoutName), {"auto": None, **LAYOUTS}),
        (get_args(schema.CleaningStep), STEPS),
    ],
    ids=["tasks", "metrics", "templates", "layouts", "cleaning steps"],
)
def test_the_names_a_recipe_may_use_equal_their_tables(names, table):
    assert sorted(names) == sorted(table)


def test_the_best_checkpoint_is_chosen_by_a_score_that_has_a_direction():
    names = [name for name in get_args(schema.BestName) if name != "eval_loss"]
    assert all(METRICS[name].direction == "higher" for name in names)
