"""What was run: model, data, decoding, code, machine, and the command lines that make the same files again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from dialtune.licences import data_licence, data_set, hub_name, model_licence
from dialtune.report.reading import Job
from dialtune.report.wording import clip, rows
from dialtune.results import Evaluation, Method
from dialtune.tasks import TASKS

_FILE, _LINE = 12_000, 1000  # characters shown of a file and of a command
_ENVIRONMENT = (
    "versions",
    "commit",
    "seed",
    "seeds",
    "devices",
    "threads",
    "platform",
    "parameters",
    "data",
    "outcome",
)


def facts(evaluation: Evaluation) -> dict[str, str]:
    """What was evaluated, on what and how decoded; every line as eval.json states it."""
    model, data, decoding = evaluation.model, evaluation.data, evaluation.decoding
    low, high = data.references
    settings = decoding.model_dump()
    leakage = ", ".join(f"{n:,} {kind}" for kind, n in data.leakage.items()) if data.leakage is not None else None
    found = {
        "model": model.name,
        "revision": model.revision,
        "family": model.family,
        "adapter": model.adapter or "none",
        "weights sha256": model.weights_sha256,
        "dtype": model.dtype,
        "data": f"{data.name}, split {data.split}, {rows(evaluation.task, evaluation.n_total)}",
        "data fingerprint": data.fingerprint,
        "references per dialogue": f"{low}" if low == high else f"{low} to {high}",
        "reference used": data.reference,
        "also in the training data": leakage or "not looked at",
        "prompt template sha256": data.template_sha256,
        "decoding": settings.pop("strategy") if decoding.strategy == "file" else ", ".join(_settings(settings)),
    }
    return {name: clip(value or "unknown", 300) for name, value in found.items()}


def _settings(settings: Mapping[str, Any]) -> list[str]:
    return [f"{name} {value}" for name, value in settings.items()]


def method_sentence(method: Method) -> str:
    """How intervals, tests and verdicts were made."""
    return clip(
        f"Intervals: 95 %, {method.ci}, {method.resamples:,} resamples. "
        f"Test: {method.test}; {method.permutations:,} assignments. "
        f"Correction: Holm over all scores compared, alpha {method.alpha:g}. Unit: {method.unit}. Seed {method.seed}.",
        800,
    )


def licences(job: Job) -> tuple[tuple[str, str, str], ...]:
    """(what, its name, its licence) of models and data, each once; what is not known is said to be."""
    found: dict[tuple[str, str], str] = {}
    for side in (job.before, job.after):
        if side is None or side.decoding.strategy == "file":
            continue
        hub = hub_name(side.model.name)
        name = f"{side.model.name} ({hub})" if hub and hub != side.model.name else side.model.name
        found["model", name] = model_licence(hub) or "not known to dialtune"
    sources = {"data, evaluated on": job.after.data.name} if job.after else {}
    record = job.records.get(job.training.record, {}) if job.training else {}
    data = record.get("data")
    for role, facts in data.items() if isinstance(data, dict) else ():
        if isinstance(facts, dict) and isinstance(facts.get("name"), str):
            sources[f"data, {role}"] = facts["name"]
    for role, source in sources.items():
        own = "not known to dialtune" if data_set(source) else "whoever gave the file knows"
        found[role, source] = data_licence(source) or own
    return tuple((clip(what, 60), clip(name, 120), licence) for (what, name), licence in found.items())


def commands(job: Job) -> list[tuple[str, str]]:
    """(where it comes from, the command line): what run.json recorded, and what the other files say."""
    found = []
    for name, record in job.records.items():
        command = record.get("command")
        if isinstance(command, list):
            command = shlex.join(map(str, command))
        if isinstance(command, str) and command:
            found.append((name, command))
    if job.training and not any(name == job.training.record for name, _ in found):
        recipe = job.training.record.replace("run.json", "config.yaml")
        found.append((job.training.record, f"dialtune sft {recipe} --output_dir again"))
    sides = {"before": job.before, "after" if job.before else ".": job.after}
    found += [(f"{side}/eval.json", _evaluate(made, side)) for side, made in sides.items() if made and _repeats(made)]
    if job.before and job.comparison:
        found.append(("compare.json", f"dialtune compare before after --seed {job.comparison.method.seed}"))
    return [(name, clip(command, _LINE)) for name, command in found]


def _repeats(evaluation: Evaluation) -> bool:
    """Whether a command line can say how this was decoded."""
    return evaluation.decoding.strategy in ("greedy", "beam", "file")


def _evaluate(evaluation: Evaluation, side: str) -> str:
    decoding = evaluation.decoding
    parts = ["dialtune", "evaluate", "--task", evaluation.task, "--data", evaluation.data.name]
    for key, value in evaluation.data.turns.items():
        parts += ["--turns", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    if evaluation.data.limit is not None:
        parts += ["--limit", str(evaluation.data.limit)]
    parts += ["--reference", evaluation.data.reference, "--out", side, *_metrics(evaluation)]
    if decoding.strategy == "file":
        return shlex.join([*parts, "--predictions", evaluation.model.name])
    parts += ["--model", evaluation.model.name, "--max_new_tokens", str(decoding.max_new_tokens)]
    return shlex.join([*parts, "--num_beams", str(decoding.num_beams), "--seed", str(decoding.seed)])


def _metrics(evaluation: Evaluation) -> list[str]:
    """Flags for the scores, where they are not those that the task brings by itself."""
    own = TASKS[evaluation.task].metrics if evaluation.task in TASKS else ()
    asked = [name for name in evaluation.scores if name not in own and name.removesuffix("_max") not in own]
    missing = set(own) - set(evaluation.scores)
    return [part for name in evaluation.scores for part in ("--metric", name)] if asked or missing else []


def environment(records: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the newest run.json says about code, machine and seeds, one line each."""
    described = [record for record in records.values() if "versions" in record]
    record = described[-1] if described else {}
    return [(key, clip(_plain(record[key]), 600)) for key in _ENVIRONMENT if record.get(key) is not None]


def _plain(value: Any) -> str:
    """A JSON value on one line without its punctuation."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    return ", ".join(map(_plain, value)) if isinstance(value, list) else str(value)


def files(job: Job) -> list[tuple[str, str]]:
    """The recipe and every run.json, to be read as they are."""
    texts = {"config.yaml": job.training.config} if job.training else {}
    texts |= {name: json.dumps(record, indent=2, ensure_ascii=False) for name, record in job.records.items()}
    return [(name, clip(text, _FILE)) for name, text in texts.items()]
