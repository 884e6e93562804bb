"""YAML text, `--set` and flags, read into leaves that remember where each was written; nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dialtune.errors import ConfigError

MAX_BYTES = 64 * 1024  # a resolved recipe has 5 kB
MAX_DEPTH = 8  # recipes use 3; a cap also ends aliases that contain themselves
MAX_NODES = 5_000  # ... and aliases that multiply

KeyPath = tuple[str, ...]


@dataclass(frozen=True, order=True)
class Place:
    """Where a key or a value was written; sorts in reading order."""

    layer: int
    line: int
    column: int
    source: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass
class Layer:
    """The leaves of one file, `--set` or flag, and what was wrong with its form."""

    top: Place
    values: dict[KeyPath, Any] = field(default_factory=dict)
    keys: dict[KeyPath, Place] = field(default_factory=dict)  # where the key stands, sections included
    places: dict[KeyPath, Place] = field(default_factory=dict)  # where the value stands; list items as "0", "1"
    problems: list[tuple[Place, str]] = field(default_factory=list)

    def place(self, path: KeyPath) -> Place:
        """Where the value of `path` stands, or the nearest section around it."""
        for length in range(len(path), 0, -1):
            found = self.places.get(path[:length]) or self.keys.get(path[:length])
            if found is not None:
                return found
        return self.top


class _Scalars(yaml.SafeLoader):
    """Scalars as YAML 1.2 reads them: 1e-4 is a number; yes, no, 1:30 and dates are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own interface
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Like PyYAML's, with an end: 3,000 brackets would take it a second to fail on."""
        self.depth += 1
        if self.depth > 4 * MAX_DEPTH:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9][0-9_]{0,30}$", list("-+0123456789")),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+.")),
)
for _name, _pattern, _first in _SCALARS:
    _Scalars.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)


def read_file(path: Path, layer: int = 0) -> Layer:
    """The leaves of a YAML file; raises ConfigError with one line where the file cannot be read at all."""
    return read_text(_decode(path), str(path), layer)


def read_text(text: str, source: str, layer: int = 0) -> Layer:
    """The leaves of YAML text; `source` names it in messages."""
    result = Layer(Place(layer, 1, 1, source))
    node = _compose(text, source)
    if node is None:
        raise ConfigError(f"{source}:1:1: empty; a recipe starts with: model: NAME")
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{source}:1:1: got {_kind(node)}; expected keys, such as: model: NAME")
    _Walk(result, source).mapping(node, ())
    return result


def read_override(text: str, layer: int = 0) -> Layer:
    """The leaf of one `--set a.b=c`; the part behind `=` is read as YAML."""
    key, equals, value = text.partition("=")
    source = f"--set {key}"
    result = Layer(Place(layer, 0, 0, source))
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        result.problems.append((result.top, f"got {text!r}; expected key=value, such as: --set learning_rate=1e-4"))
        return result
    try:
        node = _compose(value, source)
    except ConfigError:
        result.problems.append((result.top, f"got {value!r}, which is not a YAML value; put text in quotes"))
        return result
    _Walk(result, source, positions=False).value(node or yaml.ScalarNode(_TAG + "null", ""), path)
    return result


def read_flags(flags: Mapping[str, object], layer: int = 0) -> list[Layer]:
    """One layer for each flag that was given (None: it was not); dots and `__` in names separate sections."""
    layers = []
    for name, value in flags.items():
        if value is None:
            continue
        path = tuple(name.replace("__", ".").split("."))
        place = Place(layer, 0, 0, f"--{path[-1]}")
        layers.append(Layer(place, {path: value}, {path: place}, {path: place}))
    return layers


def _decode(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; give a YAML file") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES:,} bytes; a recipe is shorter. Is this a data file?")
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ConfigError(f"{path}: UTF-16 text; save it as UTF-8")
    try:
        return raw.decode("utf-8")  # a byte order mark is dropped by the YAML reader
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save it as UTF-8") from error


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Scalars)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}:{mark.column + 1}" if mark else source
        problem = error.problem or "cannot be parsed"
        if "'\\t'" in problem:
            problem = "a tab; YAML indents with spaces"
        raise ConfigError(f"{where}: not valid YAML: {problem}") from error
    except yaml.reader.ReaderError as error:
        code = ord(error.character) if isinstance(error.character, str) else error.character  # an int for text
        raise ConfigError(f"{source}: not a text file: character U+{code:04X} in it") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested too deeply; a recipe has {MAX_DEPTH} levels at most") from error
    return node


class _Walk:
    """Puts the leaves of a node into a layer; form faults become problems, so that all show at once."""

    def __init__(self, layer: Layer, source: str, *, positions: bool = True) -> None:
        self.layer, self.source, self.positions, self.seen = layer, source, positions, 0

    def place(self, node: yaml.Node) -> Place:
        if not self.positions:
            return self.layer.top
        return Place(self.layer.top.layer, node.start_mark.line + 1, node.start_mark.column + 1, self.source)

    def problem(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self.layer.problems.append((self.place(node), f"{'.'.join(path)}: {text}"))

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first_seen: dict[str, Place] = {}
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            inner = (*path, name)
            if name in first_seen:
                self.problem(key, inner, f"given twice, first in line {first_seen[name].line}; keep one")
            elif name in ("?", "<<"):
                self.problem(key, inner, "not allowed as a key; write plain keys out")
            else:
                first_seen[name] = self.layer.keys[inner] = self.place(key)
                self.value(value, inner)

    def value(self, node: yaml.Node, path: KeyPath) -> None:
        self.layer.places[path] = self.place(node)
        self.layer.keys.setdefault(path, self.place(node))
        if isinstance(node, yaml.MappingNode) and node.value and len(path) < MAX_DEPTH:
            self.mapping(node, path)
        else:
            self.layer.values[path] = self.plain(node, path)

    def plain(self, node: yaml.Node, path: KeyPath) -> Any:
        self.seen += 1
        if len(path) > MAX_DEPTH or self.seen > MAX_NODES:
            raise ConfigError(f"{self.place(node)}: too much in one key; a recipe is {MAX_DEPTH} levels deep at most")
        self.layer.places[path] = self.place(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*path, str(index))) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            return {str(key.value): self.plain(item, (*path, str(key.value))) for key, item in node.value}
        return self.scalar(node, path)

    def scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        name = node.tag.removeprefix(_TAG)
        try:
            match name:
                case "null":
                    return None
                case "bool":
                    return {"true": True, "false": False}[node.value.lower()]
                case "int":
                    return int(node.value.replace("_", ""))
                case "float":
                    return float(node.value.replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
                case "str":
                    return str(node.value)
        except (ValueError, KeyError):
            pass
        self.problem(node, path, f"tag !{name} is not allowed; write a plain value")
        return None


def _kind(node: yaml.Node) -> str:
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"


def as_yaml(values: Mapping[str, Any]) -> str:
    """YAML text that `read_text` reads back as the same values."""
    return str(yaml.dump(dict(values), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either YAML version would read as something else than text."""

    yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


for _name, _pattern, _first in _SCALARS:
    _Dumper.add_implicit_resolver(_TAG + _name, re.compile(_pattern), _first)
