"""A model's README.md: front matter for the Hugging Face hub and text for people, from what a run wrote down.

Facts only: what is not known is left out. No folder of this machine, no clock, no token; the same run, the same card.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dialtune.licences import HUB_NAMES, data_licence, data_set, forbids_commerce, hub_name, model_licence
from dialtune.markdown import code, plain, table
from dialtune.runs import RunFolder, write_text_atomic

CARD = "README.md"
_SETTINGS = (
    "method", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "rollout_batch_size", "num_generations", "learning_rate", "lr_scheduler_type", "warmup_ratio", "weight_decay",
    "beta", "max_prompt_length", "max_completion_length", "bf16", "seed",
)  # fmt: skip
_JOBS = {
    "summarize": "summarize dialogues",
    "respond": "reply in a dialogue",
    "detoxify": "summarize dialogues civilly",
}
_FRONT = re.compile(r"---\r?\n(.*?)\r?\n---\r?\n", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Making:
    """How a model was made. `base` is a hub name, None where that is not known; `start` is what training began from."""

    base: str | None
    start: str
    task: str | None
    template: str | None
    is_adapter: bool
    encoder_decoder: bool
    method: str | None = None  # sft, ppo, rloo, grpo; None: not known
    data: tuple[tuple[str, str, str], ...] = ()  # role, source, how many rows and which
    settings: tuple[tuple[str, str], ...] = ()
    versions: str = ""

    @property
    def title(self) -> str:
        """The name of the start and what it was trained to do."""
        parts = [part for part in (self.base or self.start).split("/") if not part.startswith("checkpoint-")]
        return f"{parts[-1] if parts else 'A model'}, trained to {_JOBS.get(self.task or '', 'converse')}"


@dataclass(frozen=True, slots=True)
class Measured:
    """What an evaluation adds: the model-index' results, metric types, and Markdown."""

    results: tuple[Mapping[str, Any], ...]
    metrics: tuple[str, ...]
    text: str


def making_of(config: Mapping[str, Any], record: Mapping[str, Any], *, template: str | None = None) -> Making:
    """How the model of a run was made.

    Args:
        config: the resolved recipe, as config.yaml holds it.
        record: run.json.
        template: of the prompt, where the recipe leaves it to the task.
    """
    start, info = str(config.get("model", "unknown")), _mapping(record.get("model"))
    data = _mapping(record.get("data"))
    rows = [
        (role, _public(str(facts.get("name", "unknown"))), f"{facts.get('rows', 0):,} rows, sha256 {_short(facts)}")
        for role, facts in data.items()
        if isinstance(facts, Mapping)
    ]
    lora = _mapping(config.get("lora"))
    settings = [(key, config[key]) for key in _SETTINGS if config.get(key) is not None]
    settings += [(f"lora.{key}", lora[key]) for key in ("r", "alpha", "dropout") if key in lora]
    settings += [(f"rewards.{name}", weight) for name, weight in _mapping(config.get("rewards")).items()]
    versions = _mapping(record.get("versions"))
    named = [f"{name} {versions[name]}" for name in ("dialtune", "torch", "transformers") if name in versions]
    return Making(
        base=base_of(start) or hub_name(str(info.get("name", ""))),  # run.json names the model under an adapter
        start=_public(start),
        task=config.get("task"),
        template=config.get("template") or template,
        is_adapter=bool(lora),
        encoder_decoder=info.get("family") == "encoder-decoder",
        method=config.get("method", "sft"),
        data=tuple(rows),
        settings=tuple((key, str(value)) for key, value in settings),
        versions=", ".join(named),
    )


def base_of(name: str) -> str | None:
    """The hub name of the model that everything began with; None if no card and no config says it."""
    folder = Path(name)
    if not folder.is_dir():
        return hub_name(name)
    if checkpoints := RunFolder(folder).checkpoints():
        folder = checkpoints[max(checkpoints)]  # all of a run began with the same
    if front := read_front_matter(folder / CARD).get("base_model"):
        return hub_name(str(front))
    for file, key in (("dialtune.json", "base"), ("adapter_config.json", "base_model_name_or_path")):
        if (said := _json(folder / file).get(key)) and not Path(str(said)).is_dir():
            return hub_name(str(said))
    said = _json(folder / "config.json").get("_name_or_path")
    return hub_name(str(said)) if said and not Path(str(said)).is_dir() else None


def read_front_matter(file: Path) -> dict[str, Any]:
    """The YAML at the head of a card; empty if there is none that can be read."""
    try:
        found = _FRONT.match(file.read_text(encoding="utf-8"))
        front = yaml.safe_load(found[1]) if found else None
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return front if isinstance(front, dict) else {}


def write_card(folder: Path, making: Making, measured: Measured | None = None) -> Path:
    """Write README.md into a model's folder; a checkpoint still verifies, its manifest leaves this file to people."""
    write_text_atomic(folder / CARD, card_text(making, measured))
    return folder / CARD


def write_run_card(run: RunFolder, result: Path) -> None:
    """Write the card of a run's result from its config.yaml and run.json; a full disk costs the card, not the run."""
    with contextlib.suppress(OSError):
        write_card(result, making_of_run(run.config.read_text(encoding="utf-8"), _json(run.record), result))


def making_of_run(config: str, record: Mapping[str, Any], result: Path | None = None) -> Making:
    """How the model of a run was made, from the text of config.yaml, run.json and, if it is there, dialtune.json."""
    recipe = _mapping(yaml.safe_load(config))
    notes = _json(result / "dialtune.json") if result else {}
    return making_of(recipe, record, template=notes.get("template"))


def card_text(making: Making, measured: Measured | None = None) -> str:
    """The whole README.md."""
    front = yaml.safe_dump(_front_matter(making, measured), sort_keys=False, allow_unicode=True, width=100)
    parts = [f"# {making.title}", _opening(making), measured.text if measured else _UNMEASURED, _how_to_use(making)]
    parts += [_how_made(making), _licence_words(making), "Written by dialtune from the files of the run."]
    return f"---\n{front}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


_UNMEASURED = (
    "## Measured\n\nNot yet: this card was written when training ended. `dialtune evaluate`, `dialtune compare` and "
    "`dialtune report FOLDER --format card` add scores with intervals and a verdict."
)


def _front_matter(making: Making, measured: Measured | None) -> dict[str, Any]:
    sources = [source for _, source, _ in making.data]
    datasets = [name for name in dict.fromkeys(map(data_set, sources)) if name and "/" in name]
    tags = ["dialtune", making.task, making.method, "lora" if making.is_adapter else None, "dialogue"]
    front = {
        "base_model": making.base,
        "base_model_relation": ("adapter" if making.is_adapter else "finetune") if making.base else None,
        "library_name": "peft" if making.is_adapter else "transformers",
        "pipeline_tag": "summarization" if making.encoder_decoder and making.task != "respond" else "text-generation",
        "license": licence_of(making),
        "language": ["en"] if any(data_set(source) == "packaged" for source in sources) else None,
        "datasets": datasets,
        "tags": list(dict.fromkeys(tag for tag in tags if tag)),
        "metrics": list(measured.metrics) if measured else None,
        "model-index": [{"name": making.title, "results": list(measured.results)}] if measured else None,
    }
    return {key: value for key, value in front.items() if value}


def licence_of(making: Making) -> str | None:
    """The base's licence; None if it is not known, or if data that forbids commerce made the weights."""
    if any(forbids_commerce(data_licence(source)) for _, source, _ in making.data):
        return None
    return model_licence(making.base)


def _opening(making: Making) -> str:
    what, how = "A LoRA adapter" if making.is_adapter else "All weights", f"trained on rewards ({making.method})"
    if making.method in ("sft", None):
        how = "fine-tuned on gold texts" if making.method else "trained"
    start = code(making.base or making.start)
    if making.start in HUB_NAMES:
        start += f" (the quantized copy that comes as the package {code(making.start)})"
    elif making.base and making.start != making.base:
        start += f", by way of {code(making.start)}"
    return f"{what} of {start}, {how} to {_JOBS.get(making.task or '', 'converse')}."


def _how_to_use(making: Making) -> str:
    library, prefix = ("peft", "AutoPeftModelFor") if making.is_adapter else ("transformers", "AutoModelFor")
    name = prefix + ("Seq2SeqLM" if making.encoder_decoder else "CausalLM")
    parts = [
        "## Use",
        f"```python\nfrom transformers import AutoTokenizer\nfrom {library} import {name}\n\n"
        f'tokenizer = AutoTokenizer.from_pretrained(".")\nmodel = {name}.from_pretrained(".")\n```',
        "`dialtune generate --model . --data dialogues.jsonl` asks it as it was trained to be asked"
        + (f", with the prompt template {code(making.template)}." if making.template else "."),
    ]
    if making.is_adapter and making.base in HUB_NAMES.values():
        parts.append(
            "Before publishing, set `base_model_name_or_path` in `adapter_config.json` to the base's name: it holds a "
            "folder of the machine that trained."
        )
    return "\n\n".join(parts)


def _how_made(making: Making) -> str:
    rows = [(plain(role), code(source), plain(facts)) for role, source, facts in making.data]
    parts = ["## Training", table(("data", "source", "rows"), rows)]
    if making.settings:
        parts.append("Recipe: " + ", ".join(f"{code(key)} {plain(value)}" for key, value in making.settings) + ".")
    if making.versions:
        parts.append(
            f"Versions: {plain(making.versions)}. All of the recipe: `config.yaml`; command, seeds: `run.json`."
        )
    return "\n\n".join(part for part in parts if part) if any(parts[1:]) else ""


def _licence_words(making: Making) -> str:
    known = [f"- model {code(making.base or making.start)}: {model_licence(making.base) or 'not known to dialtune'}"]
    for source in dict.fromkeys(source for _, source, _ in making.data):
        own = "not known to dialtune" if data_set(source) else "yours to state"
        known.append(f"- data {code(source)}: {data_licence(source) or own}")
    if any(forbids_commerce(data_licence(source)) for _, source, _ in making.data):
        known.append("- a data set forbids commercial use, so this card names no licence for the weights: state one")
    return "## Licences\n\n" + "\n".join(known)


def _public(name: str) -> str:
    """A name without the folders of this machine."""
    if name in HUB_NAMES or data_set(name) or (hub_name(name) and not Path(name).exists()):
        return name
    path = Path(name)
    return "/".join(path.parts[-2:]) if path.name.startswith("checkpoint-") else path.name


def _short(facts: Mapping[str, Any]) -> str:
    return str(facts.get("fingerprint", "unknown"))[:12]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _json(file: Path) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
