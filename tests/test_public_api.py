"""The public names: complete, sorted, importable, documented, and loaded on first use only."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import dialtune

SOURCE = Path(dialtune.__file__)


def test_all_is_sorted_and_equals_the_table_and_dir():
    assert dialtune.__all__ == sorted(dialtune.__all__)
    assert sorted([*dialtune.__all__, "__version__"]) == dir(dialtune)
    assert len(dialtune.__all__) > 25


def test_static_tools_see_the_same_names_at_the_same_places():
    guarded = next(node for node in ast.parse(SOURCE.read_text()).body if isinstance(node, ast.If))
    seen = {}
    for node in guarded.body:
        assert isinstance(node, ast.ImportFrom)
        assert [(alias.name, alias.asname) for alias in node.names] == [(node.names[0].name, node.names[0].name)]
        seen[node.names[0].name] = (node.module or "").removeprefix("dialtune.")
    assert seen == dialtune._HOMES


@pytest.mark.parametrize("name", dialtune.__all__)
def test_every_name_exists_where_the_table_says_and_has_a_docstring(name):
    value = getattr(dialtune, name)
    home = f"dialtune.{dialtune._HOMES[name]}"
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__ == home
        assert (inspect.getdoc(value) or "").strip()
    else:
        assert getattr(sys.modules[home], name) is value


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dialtune' has no attribute 'trane'"):
        _ = dialtune.trane


def test_the_version_is_the_installed_one():
    assert dialtune.__version__.split(".")[0].isdigit()


def test_import_dialtune_loads_nothing_but_itself():
    code = "import sys, dialtune; print([name for name in sys.modules if name.startswith('dialtune')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['dialtune']"


def test_reading_one_name_loads_only_what_it_needs():
    code = "import sys, dialtune; dialtune.read_examples, dialtune.compare; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
