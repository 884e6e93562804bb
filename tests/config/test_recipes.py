"""Every recipe in recipes/ loads, is short, names its source, and is the one in the package."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dialtune.config.loading import RECIPES, load_any_config

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))


def test_the_recipes_are_there_and_in_the_package():
    assert len(FILES) >= 8
    assert [path.name for path in FILES] == [path.name for path in sorted(RECIPES.glob("*.yaml"))]
    assert all((RECIPES / path.name).read_bytes() == path.read_bytes() for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_loads_by_path_and_by_name(path):
    assert load_any_config(path) == load_any_config(path.stem)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_is_short_and_says_where_its_numbers_come_from(path):
    text = path.read_text()
    values = yaml.safe_load(text)
    assert len([key for key in values if key not in ("task", "method")]) <= 8  # these two are for the reader
    assert text.startswith("# ")
    assert values["output_dir"] == f"runs/{path.stem}"
    assert any(
        word in text for word in ("cylnlp/dialogsum", "documentation", "card of", "alignment-handbook", "not published")
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_reads_packaged_rows_so_that_it_needs_no_data_from_elsewhere(path):
    config = load_any_config(path)
    view = ":heated" if path.stem.startswith("detoxify") else ""
    source = "chitchat" if path.stem.startswith(("respond", "reward")) else "packaged"
    assert (config.data.train, config.data.validation) == (f"{source}:train{view}", f"{source}:validation{view}")
