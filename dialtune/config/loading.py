"""YAML with positions, --set and flags → RunConfig, or every problem at once as file:line:col with a way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticUndefined

from dialtune.config.reading import KeyPath, Layer, Place, as_yaml, read_file, read_flags, read_override, read_text
from dialtune.config.reward_schema import RewardConfig
from dialtune.config.rl_schema import RLConfig
from dialtune.config.schema import RunConfig, TrainingConfig, allowed, choices, explain, section_of, walk
from dialtune.errors import ConfigError

_Schema = TypeVar("_Schema", RunConfig, RLConfig, RewardConfig)

RECIPES = Path(__file__).parent.parent / "assets" / "recipes"
_TOPICS: dict[str, type[TrainingConfig]] = {"rl": RLConfig, "reward": RewardConfig}  # of `config explain`

# Spellings of trl, axolotl, LLaMA-Factory and H2O that mean exactly one of our keys.
ALIASES: dict[str, str] = {
    "model_name_or_path": "model",
    "base_model": "model",
    "llm_backbone": "model",
    "dataset_name": "data.train",
    "lora_r": "lora.r",
    "lora_rank": "lora.r",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "lora_target": "lora.target_modules",
}

# Maps whose names are the user's: set as a whole they replace the one before, or a name could never be taken out.
OWN_NAMES: frozenset[KeyPath] = frozenset({("rewards",), ("signals",), ("data", "columns")})

# Keys of other tools that we refuse, with what to write instead.
ELSEWHERE: dict[str, str] = {
    "micro_batch_size": "here it is per_device_train_batch_size",
    "num_epochs": "here it is num_train_epochs",
    "epochs": "here it is num_train_epochs",
    "batch_size": "here it is per_device_train_batch_size",
    "lr": "here it is learning_rate",
    "sequence_len": "here it is max_prompt_length and max_completion_length",
    "max_length": "here it is max_prompt_length and max_completion_length",
    "max_seq_length": "here it is max_prompt_length and max_completion_length",
    "val_set_size": "first run: dialtune data split, then set data.validation",
    "eval_strategy": "eval_steps: 0 evaluates after each epoch, N after every N updates",
    "save_strategy": "save_steps: 0 saves after each epoch, N after every N updates",
    "optim": "the optimizer is AdamW; its keys are learning_rate, weight_decay and adam_…",
    "dtype": "here it is bf16: auto, true or false",
    "torch_dtype": "here it is bf16: auto, true or false",
    "load_in_4bit": "not supported yet; lora trains in little memory too",
    "load_in_8bit": "not supported yet; lora trains in little memory too",
    "resume_from_checkpoint": "use the flag: dialtune sft RECIPE --resume",
}


def load_config(path: str | Path | None, overrides: Sequence[str] = (), **flags: object) -> RunConfig:
    """The resolved recipe of a fine-tuning: file, then `--set` overrides, then flags, each over the one before.

    Args:
        path: a YAML file or the name of a packaged recipe; None if flags say everything.
        overrides: `a.b=value` texts, the value in YAML.
        flags: key=value, None where the flag was not given; `a__b` is `a.b`.

    Raises:
        ConfigError: with every problem of every source, one line each, and a last line that counts them.
    """
    return _validated(read_layers(path, overrides, flags), RunConfig)


def load_rl_config(path: str | Path | None, overrides: Sequence[str] = (), **flags: object) -> RLConfig:
    """The same for reinforcement learning."""
    return _validated(read_layers(path, overrides, flags), RLConfig)


def load_reward_config(path: str | Path | None, overrides: Sequence[str] = (), **flags: object) -> RewardConfig:
    """The same for a learned reward."""
    return _validated(read_layers(path, overrides, flags), RewardConfig)


def load_any_config(path: str | Path, overrides: Sequence[str] = (), **flags: object) -> TrainingConfig:
    """The same for any: a recipe that names a `method` is one of reinforcement learning, `signals` one of a reward."""
    layers = read_layers(path, overrides, flags)
    named = {key[0] for layer in layers for key in layer.values if key}
    if "signals" in named:
        return _validated(layers, RewardConfig)
    return _validated(layers, RLConfig) if "method" in named else _validated(layers, RunConfig)


def read_layers(path: str | Path | None, overrides: Sequence[str], flags: Mapping[str, object]) -> list[Layer]:
    """Every source of a recipe as it is written, the ones that win last."""
    layers = [] if path is None else [read_file(find_recipe(path))]
    layers += [read_override(text, 1 + index) for index, text in enumerate(overrides)]
    return layers + read_flags(flags, 1 + len(overrides))


def check_text(text: str, source: str) -> RunConfig:
    """The resolved recipe in `text`; `source` names it in messages. Raises ConfigError like `load_config`."""
    return _validated([read_text(text, source)], RunConfig)


def check_rl_text(text: str, source: str) -> RLConfig:
    """The same for reinforcement learning."""
    return _validated([read_text(text, source)], RLConfig)


def check_reward_text(text: str, source: str) -> RewardConfig:
    """The same for a learned reward."""
    return _validated([read_text(text, source)], RewardConfig)


def explain_topic(topic: str) -> list[tuple[str, str, str, str]]:
    """(key, allowed, default, doc line) of a key, of a section or of all; raises ConfigError with the closest name.

    `rl` is every key of reinforcement learning, `reward` every key of a learned reward; a key that only they have is
    found by its own name as well.
    """
    if topic in _TOPICS:
        return explain("", _TOPICS[topic])
    name = ALIASES.get(topic, topic)
    schemas: list[type[TrainingConfig]] = [RunConfig, *_TOPICS.values()]
    rows = next((found for schema in schemas if (found := explain(name, schema))), [])
    if not rows:
        near = _close(topic, [*_TOPICS, *(key for schema in schemas for key, *_ in explain("", schema))])
        raise ConfigError(f"config explain: no key {topic!r}" + (f"; did you mean {near!r}?" if near else ""))
    return rows


def _validated(layers: list[Layer], schema: type[_Schema]) -> _Schema:
    merged = merge_layers(layers)
    config, problems = validate(merged, schema)
    if config is None or problems:
        raise refusal(problems, next((topic for topic, its in _TOPICS.items() if its is schema), ""))
    return config


def merge_layers(layers: Sequence[Layer]) -> Layer:
    """One layer in our spelling: what is said later wins, and the problems of all."""
    problems: list[Problem] = [problem for layer in layers for problem in layer.problems]
    merged = Layer(layers[0].top if layers else Place(0, 0, 0, "command line"))
    for layer in layers:
        _merge(merged, _canonical(layer, problems))
    merged.problems = problems
    return merged


def validate(merged: Layer, schema: type[_Schema]) -> tuple[_Schema | None, list[Problem]]:
    """(the resolved recipe, or None; every problem with it, those of form included)."""
    try:
        return schema.model_validate(_nest(merged.values)).resolve(), merged.problems
    except ValidationError as error:
        reported = {text.partition(":")[0] for _, text in merged.problems}
        found = [p for p in _explain(error.errors(), merged, schema) if p[1].partition(":")[0] not in reported]
        return None, merged.problems + found


def refusal(problems: Sequence[Problem], everything: str = "") -> ConfigError:
    """The error of a recipe with these problems, a line each, and a last line that counts them."""
    return ConfigError([*_lines(problems), _last_line(problems, everything)])


def find_recipe(path: str | Path) -> Path:
    """The file that a path or the name of a packaged recipe means; raises ConfigError with close names."""
    file = Path(path)
    if file.exists():
        return file
    packaged = {recipe.stem: recipe for recipe in sorted(RECIPES.glob("*.yaml"))}
    if str(path) in packaged:
        return packaged[str(path)]
    near = _close(file.stem, packaged) or ", ".join(packaged)
    raise ConfigError(f"{path}: no such file; packaged recipes: {near}; or write one with: dialtune init")


def to_yaml(config: TrainingConfig) -> str:
    """The text of config.yaml: every resolved value, no aliases; loading it gives the same run."""
    return as_yaml(config.resolve().model_dump(mode="json"))


Problem = tuple[Place, str]


def _canonical(layer: Layer, problems: list[Problem]) -> Layer:
    """The layer with every accepted spelling replaced by ours; a key said in two spellings is a problem."""
    result, origin = Layer(layer.top), dict[KeyPath, str]()
    for path, value in layer.values.items():
        for target, translated in _translate(path, value, layer, problems):
            clash = next((p for p in origin if origin[p] != path[0] and _overlap(p, target)), None)
            if clash is not None:
                text = f"{'.'.join(target)}: given twice, as {origin[clash]!r} and {path[0]!r}; keep one"
                problems.append((layer.place(path), text))
                continue
            if translated != {}:
                origin[target] = path[0]
            result.values[target] = translated
            result.keys[target] = layer.keys.get(path, layer.place(path))
    for known in (layer.keys, layer.places):  # sections and list items, under their new names
        target_of = result.keys if known is layer.keys else result.places
        for path, place in known.items():
            target_of.setdefault((*ALIASES.get(path[0], path[0]).split("."), *path[1:]), place)
    return result


def _overlap(one: KeyPath, other: KeyPath) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]


def _translate(path: KeyPath, value: Any, layer: Layer, problems: list[Problem]) -> list[tuple[KeyPath, Any]]:
    """One leaf in our spelling; usually itself."""
    head = path[0]
    if path in (("lora",), ("use_peft",)) and isinstance(value, bool):
        return [(("lora",), {} if value else None)]
    if head == "lora_target" and isinstance(value, str):  # LLaMA-Factory: all, or names with commas
        names = [name.strip() for name in value.split(",")]
        return [(("lora", "target_modules"), "all-linear" if value == "all" else names)]
    if head == "dataset_name":
        return [(("data", "train"), _hub(value, layer.values.get(("dataset_train_split",))))]
    if head == "dataset_train_split":
        return []
    if head == "dataset_test_split":
        return [(("data", "test"), _hub(layer.values.get(("dataset_name",)), value))]
    if head == "datasets" and isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict) and "path" in value[0]:
            return [(("data", "train"), value[0]["path"])]
        problems.append(
            (layer.place(path), "datasets: one entry with a path is read; join files first, or set data.train")
        )
        return []
    if path == ("data",) and isinstance(value, str):
        return [(("data", "train"), value)]
    return [((*ALIASES.get(head, head).split("."), *path[1:]), value)]


def _hub(name: Any, split: Any) -> Any:
    if not isinstance(name, str) or ":" in name or Path(name).exists():
        return name
    return f"hub:{name}:{split}" if split else f"hub:{name}"


def _merge(merged: Layer, layer: Layer) -> None:
    """Put a layer over the ones before, key by key; a key replaces `null`, a map of names of one's own is replaced."""
    for whole in OWN_NAMES & layer.keys.keys():
        for old in [p for p in merged.values if p[: len(whole)] == whole]:
            del merged.values[old]
    for path, value in layer.values.items():
        inside = [p for p in merged.values if _overlap(p, path) and len(p) > len(path)]
        if value == {} and inside:
            continue
        for old in [p for p in merged.values if _overlap(p, path)]:
            del merged.values[old]
        merged.values[path] = value
    merged.keys |= layer.keys
    merged.places = {p: place for p, place in merged.places.items() if p not in layer.keys} | layer.places


def _nest(values: dict[KeyPath, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in values.items():
        section = nested
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return nested


def _explain(errors: Iterable[ErrorDetails], merged: Layer, schema: type[TrainingConfig]) -> list[Problem]:
    """Pydantic's findings in our words, one for each key."""
    problems: dict[KeyPath, Problem] = {}
    for error in errors:
        path, field = _locate(error["loc"], schema)
        if error["type"] == "extra_forbidden" or field is None:
            place, text = merged.keys.get(path, merged.place(path)), _unknown(path, schema)
        elif error["type"] == "missing":
            path, field = _first_required(path, field)
            place, text = merged.place(path[:-1]), f"missing; allowed {allowed(field)}{_attempt(field, None)}"
        elif error["type"] == "value_error":
            place, text = merged.place(path), f"got {_shown(error['input'])}; {error['ctx']['error']}"
        else:
            got = _shown(error["input"])
            place, text = merged.place(path), f"got {got}; allowed {allowed(field)}{_attempt(field, error['input'])}"
            if isinstance(error["input"], list) and "list of" not in allowed(field):
                text += " (a list makes a grid, which only dialtune sft runs)"
        problems[path] = place, f"{'.'.join(path)}: {text}"
    return [problem for path, problem in problems.items() if not any(path[:n] in problems for n in range(1, len(path)))]


def _first_required(path: KeyPath, field: FieldInfo) -> tuple[KeyPath, FieldInfo]:
    """A missing section is reported as its first key that must be there."""
    section = section_of(field)
    required = [(n, f) for n, f in section.model_fields.items() if f.is_required()] if section else []
    return ((*path, required[0][0]), required[0][1]) if required else (path, field)


def _locate(loc: tuple[int | str, ...], schema: type[TrainingConfig]) -> tuple[KeyPath, FieldInfo | None]:
    """The key an error is about; the names that pydantic gives to members of a union are left out."""
    path: KeyPath = ()
    fields: dict[str, FieldInfo] = schema.model_fields
    field: FieldInfo | None = None
    for part in loc:
        if part in fields:
            field = fields[str(part)]
            path = (*path, str(part))
            section = section_of(field)
            fields = section.model_fields if section else {}
        elif fields:
            return (*path, str(part)), None
        elif isinstance(part, int) or path in OWN_NAMES:
            path = (*path, str(part))
    return path, field


def _unknown(path: KeyPath, schema: type[TrainingConfig]) -> str:
    key, parent = path[-1], path[:-1]
    if not parent and key in ELSEWHERE:
        return f"unknown key; {ELSEWHERE[key]}"
    every = [name for name, _ in walk(schema)]
    siblings = [n.rpartition(".")[2] for n in every if n.rpartition(".")[0] == ".".join(parent)]
    elsewhere = [name for name in every if name.rpartition(".")[2] == key]
    near = _close(key, [*siblings, *ALIASES] if not parent else siblings) or (elsewhere[0] if elsewhere else "")
    return f"unknown key; did you mean {near!r}?" if near else "unknown key"


def _attempt(field: FieldInfo, value: object) -> str:
    """What to write instead: the closest name, else an example, else the default."""
    if section_of(field) is not None:
        return ""
    near = _close(str(value).lower(), choices(field))
    default = None if field.default is PydanticUndefined else field.default
    example = near or (field.examples[0] if field.examples else default)
    return "" if example in (None, (), {}) else f"; try {_shown(example).strip(chr(39))}"


def _close(word: str, names: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return found[0] if found else ""


def _shown(value: object) -> str:
    """A value as YAML would show it, at most 40 characters of it."""
    text = {"True": "true", "False": "false", "None": "null"}.get(repr(value), repr(value))
    return text if len(text) <= 40 else text[:37] + "…" + text[-1]


def _lines(problems: Sequence[Problem]) -> list[str]:
    lines = []
    for place, text in sorted(problems, key=lambda problem: problem[0]):
        key, _, rest = text.partition(": ")
        lines.append(f"{place}: {rest}" if str(place).endswith((f" {key}", f"--{key}")) else f"{place}: {text}")
    return lines


def _last_line(problems: Sequence[Problem], everything: str) -> str:
    keys = {text.partition(":")[0].partition(".") for _, text in problems}
    sections = {head for head, dot, _ in keys if dot} | {"" for _, dot, _ in keys if not dot}
    topic = sections.pop() if len(sections) == 1 and "" not in sections else everything
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{count}, nothing was run. Every key with its range: dialtune config explain {topic}".rstrip()
