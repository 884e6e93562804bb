"""A job's model card: how the result was made, with what its evaluation showed, for people and for the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dialtune.cards import Making, Measured, card_text, making_of_run
from dialtune.errors import ConfigError
from dialtune.licences import data_set, hub_name
from dialtune.markdown import plain, table
from dialtune.report import wording
from dialtune.report.curves import chosen_step
from dialtune.report.pull_request import cell_text
from dialtune.report.reading import Job
from dialtune.report.views import Section
from dialtune.results import Entry, Evaluation, ScoreEntry

_TYPES = (("rouge", "rouge"), ("bleu", "bleu"), ("chrf", "chrf"), ("toxicity", "toxicity"))  # the hub's metric names


def card_of(job: Job, section: Section) -> str:
    """The README.md of the model that a job judged or trained.

    Raises:
        ConfigError: neither a training nor an evaluation of a model says what it was made of.
    """
    making = _making(job)
    if making is None:
        raise ConfigError(f"{job.name}: no card: there is no train/ and no eval.json of a model, only a file's texts")
    return card_text(making, _measured(job, section, making) if job.after else None)


def place_of(job: Job) -> Path:
    """The folder that gets the card: the result's checkpoint inside the job's folder, else that folder."""
    step = chosen_step(job)
    if job.training and step is not None:
        result = (job.home / job.training.record).parent / f"checkpoint-{step}"
        if result.is_dir():
            return result
    return job.home


def _making(job: Job) -> Making | None:
    if job.training is not None:
        return making_of_run(job.training.config, job.records.get(job.training.record, {}), place_of(job))
    if job.after is None or job.after.decoding.strategy == "file":
        return None
    model = job.after.model
    hub = hub_name(model.name)
    start = hub or Path(model.name).name
    return Making(hub, start, job.task, None, model.adapter is not None, model.family == "encoder-decoder")


def _measured(job: Job, section: Section, making: Making) -> Measured:
    after = job.after
    assert after is not None
    metrics = [_metric(job, name, score) for name, score in after.scores.items() if score.value is not None]
    found: dict[str, Any] = {
        "task": {
            "type": "text-generation" if making.task == "respond" else "summarization",
            "name": making.task or after.task,
        },
        "dataset": _dataset(after),
        "metrics": metrics,
    }
    return Measured((found,), tuple(dict.fromkeys(metric["type"] for metric in metrics)), _text(section))


def _dataset(evaluation: Evaluation) -> dict[str, Any]:
    """The hub's name as type where it has one; a file goes by its own name."""
    name, known = evaluation.data.name, data_set(evaluation.data.name)
    shown = name if known else Path(name).name
    kind = known or (re.sub(r"[^\w.-]+", "-", Path(name).stem) or "data")
    return {
        "name": shown,
        "type": kind,
        "split": evaluation.data.split,
        "args": {"fingerprint": evaluation.data.fingerprint},
    }


def _metric(job: Job, name: str, score: ScoreEntry) -> dict[str, Any]:
    """One score of the model-index; `args` hold what a number alone does not say."""
    entry = job.comparison.scores.get(name) if job.comparison else None
    args: dict[str, Any] = {"n": score.n, "ci95": _rounded(score.ci), "signature": score.signature}
    kind = next((known for prefix, known in _TYPES if name.startswith(prefix)), name.partition(":")[0])
    args |= _against(entry) if entry else {}
    return {
        "type": kind,
        "value": _rounded(score.value),
        "name": wording.metric_name(name),
        "args": {key: value for key, value in args.items() if value is not None},
    }


def _against(entry: Entry) -> Mapping[str, Any]:
    return {
        "verdict": entry.verdict,
        "before": _rounded(entry.before),
        "difference": _rounded(entry.difference),
        "difference_ci95": _rounded(entry.ci),
        "p_holm": _rounded(entry.p_holm),
    }


def _rounded(value: float | tuple[float, float] | None) -> Any:
    """Six digits: more say nothing, and make a card hard to read."""
    if isinstance(value, tuple):
        return [float(f"{end:.6g}") for end in value]
    return None if value is None else float(f"{value:.6g}")


def _with_interval(value: str, interval: str) -> str:
    return f"{value} ({interval})" if interval else value


def _text(section: Section) -> str:
    compared = [line for line in section.lines if line.p]
    parts = ["## Measured", plain(section.sentence), plain(section.tally), *(plain(note) for note in section.notes)]
    if compared:
        rows = [
            (
                plain(line.name),
                line.before,
                line.after,
                _with_interval(line.change, line.change_ci),
                line.n,
                line.verdict,
            )
            for line in compared
        ]
        parts.append(table(("score", "before", "after", "difference (95 %)", "dialogues", "verdict"), rows))
    else:
        rows3 = [(plain(line.name), _with_interval(line.after, line.after_ci), line.n) for line in section.lines]
        parts.append(table(("score", "value (95 %)", "dialogues"), rows3))
    for finding in (*section.limits, *section.findings):
        cells = [tuple(map(cell_text, row)) for row in finding.rows]
        parts += [f"### {finding.heading}", *map(plain, finding.sentences), table(finding.columns, cells)]
    parts += [
        plain(section.method),
        "\n".join(f"- not scored: {plain(name)}, {plain(why)}" for name, why in section.unscored),
    ]
    return "\n\n".join(part for part in parts if part)
