"""Lists in a recipe to a grid: every combination of the values of keys that take one value, each a run of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from dialtune.config.loading import Problem, merge_layers, read_layers, refusal, validate
from dialtune.config.reading import KeyPath, Layer, Place
from dialtune.config.schema import RunConfig, allowed, section_of, walk

MAX_RUNS = 64
Value = bool | int | float | str | None

# They decide what is learned or measured, so that runs which differ in them cannot be ranked by one number.
_FIXED = ("task", "template", "max_prompt_length", "max_completion_length", "metric_for_best_model")
_FIXED_SECTIONS = ("data.", "evaluation.", "generation.")
_FREE = ("data.max_train_rows",)
_LONGEST_NAME = 120  # characters; a file system takes 255


@dataclass(frozen=True, slots=True)
class GridRun:
    """One combination: the folder's name, its values by dotted key, and the whole recipe."""

    name: str
    values: Mapping[str, Value]
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Grid:
    """The runs of a recipe with lists, in the order of the lists, the last one changing fastest."""

    output_dir: str
    axes: Mapping[str, tuple[Value, ...]]
    runs: tuple[GridRun, ...]


def load_runs(path: str | Path | None, overrides: Sequence[str] = (), **flags: object) -> RunConfig | Grid:
    """A recipe for fine-tuning like `load_config`, or a grid if a key that takes one value is given a list.

    Raises:
        ConfigError: with every problem of every source and every combination, each once, as file:line:col.
    """
    merged = merge_layers(read_layers(path, overrides, flags))
    axes = _axes(merged)
    if not axes:
        config, problems = validate(merged, RunConfig)
        if config is None or problems:
            raise refusal(problems)
        return config
    problems = [problem for key, values in axes.items() for problem in _list_problems(merged, key, values)]
    n_runs = math.prod(len(values) for values in axes.values())
    if n_runs > MAX_RUNS:
        counts = " x ".join(f"{len(values)} {'.'.join(key)}" for key, values in axes.items())
        place = merged.place(next(iter(axes)))
        problems.append((place, f"{'.'.join(next(iter(axes)))}: {n_runs} runs ({counts}); at most {MAX_RUNS}"))
    if problems:
        raise refusal([*merged.problems, *problems])
    return _grid(merged, axes)


def _axes(merged: Layer) -> dict[KeyPath, list[Any]]:
    """The keys of one value that are given a list; a list of lists for a key that takes a list is one too."""
    fields = dict(walk(RunConfig))
    found = {}
    for path, values in merged.values.items():
        field = fields.get(".".join(path))
        if field is None or section_of(field) is not None or not isinstance(values, list):
            continue
        if not _takes_a_list(field) or any(isinstance(value, list) for value in values):
            found[path] = values
    return found


def _list_problems(merged: Layer, path: KeyPath, values: Sequence[Any]) -> list[Problem]:
    """What is wrong with the list as one side of a grid; each value is checked with its combination."""
    key = ".".join(path)
    field = dict(walk(RunConfig))[key]
    place = merged.place(path)
    if _takes_a_list(field):
        return [(place, f"{key}: a list of lists; this key takes one list, and a grid cannot vary it; write one list")]
    if not _takes_a_choice(field):
        return [(place, f"{key}: got a list; a grid varies numbers and named choices; write one value")]
    if key in _FIXED or (key.startswith(_FIXED_SECTIONS) and key not in _FREE):
        return [(place, f"{key}: got a list; it decides what runs are compared by, so a grid has one; write one value")]
    if not values:
        return [(place, f"{key}: got []; a grid needs a value; allowed {allowed(field)}")]
    problems, seen = [], list[tuple[bool, Any]]()
    for index, value in enumerate(values):
        at = merged.place((*path, str(index)))
        if isinstance(value, list | dict):
            problems.append((at, f"{key}: got {value}; a grid needs single values; allowed {allowed(field)}"))
        elif (isinstance(value, bool), value) in seen:
            problems.append((at, f"{key}: {_text(value)} is given twice; the run would be the same; keep one"))
        seen.append((isinstance(value, bool), value))
    return problems


def _grid(merged: Layer, axes: Mapping[KeyPath, Sequence[Any]]) -> Grid:
    configs: list[RunConfig] = []
    problems: dict[tuple[Place, str], None] = {}
    for combination in itertools.product(*(range(len(values)) for values in axes.values())):
        config, found = validate(_chosen(merged, axes, combination), RunConfig)
        problems |= dict.fromkeys(found)
        if config is not None:
            configs.append(config)
    if configs and not problems and configs[0].data.validation is None:
        text = "data.validation: missing; a grid chooses its best run by these rows"
        problems[merged.place(("data",)), text] = None
    if problems:
        raise refusal(list(problems))
    keys = [".".join(path) for path in axes]
    output_dir = configs[0].output_dir
    runs = []
    for number, config in enumerate(configs, start=1):
        values = {key: _value_of(config, key) for key in keys}
        name = ",".join(f"{key}={_text(value)}" for key, value in values.items())
        name = name if len(name) <= _LONGEST_NAME else f"run-{number:02d}"
        runs.append(GridRun(name, values, config.model_copy(update={"output_dir": str(Path(output_dir) / name)})))
    given = {key: tuple(dict.fromkeys(run.values[key] for run in runs)) for key in keys}
    return Grid(output_dir, given, tuple(runs))


def _chosen(merged: Layer, axes: Mapping[KeyPath, Sequence[Any]], combination: Sequence[int]) -> Layer:
    """The layer with one value for each axis, which stands where the list has it."""
    values, places = dict(merged.values), dict(merged.places)
    for path, index in zip(axes, combination, strict=True):
        values[path] = axes[path][index]
        places[path] = merged.place((*path, str(index)))
    return replace(merged, values=values, places=places)


def _value_of(config: RunConfig, key: str) -> Value:
    """A value as the resolved recipe has it: 8 for 8.0 where whole numbers are asked for."""
    found: Any = config
    for name in key.split("."):
        found = getattr(found, name)
    return found  # type: ignore[no-any-return]


def _takes_a_list(field: FieldInfo) -> bool:
    return any(get_origin(part) in (tuple, list, dict) for part in (field.annotation, *get_args(field.annotation)))


def _takes_a_choice(field: FieldInfo) -> bool:
    """Whether it takes a number, true or false, or one of a few names; free text names files and models."""
    return str not in (field.annotation, *get_args(field.annotation))


def _text(value: Value) -> str:
    """A value as YAML would have it and a folder's name can: 3e-05, true, null.

    >>> _text(3e-5), _text(0.123456789), _text(True), _text(None), _text("cosine")
    ('3e-05', '0.123456789', 'true', 'null', 'cosine')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
