"""What a training logged over its steps: numbers by name, drawn, and the way of a run on rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from markupsafe import Markup

from dialtune.metrics.table import METRICS
from dialtune.report import plots, wording
from dialtune.report.plots import Plot, Point, Stop, StopKind
from dialtune.report.reading import Job, Training


@dataclass(frozen=True, slots=True)
class Series:
    """Numbers over steps that belong in one drawing: of every step, and measured now and then, by name."""

    key: str
    label: str
    title: str
    every: tuple[Point, ...]
    measured: Mapping[str, tuple[Point, ...]]


# Of the dialogue and the reference together, or of one; what a run holds or rewards of them is logged.
_RELEVANCE = ("relevance", "relevance_dialogue", "relevance_reference")
# What a reinforcement-learning run shows: title, the rollouts' number, and numbers measured on validation dialogues.
_RL_SERIES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("mean reward of the completions sampled", "reward", {}),
    ("toxic probability, by the reward's scorer", "toxic", {"validation": "eval_toxicity", "alarm": "eval_alarm"}),
    *((name.replace("_", " to "), name, {"validation": f"eval_{name}"}) for name in _RELEVANCE),
    ("KL to the start policy, nats per completion", "kl_per_sequence", {}),
)


def series(training: Training) -> list[Series]:
    """What was logged; of a run on rewards that, since the loss of a policy gradient says nothing."""
    if any("rollout" in row for row in training.rows):
        return [found for label, key, others in _RL_SERIES if (found := _rl_series(training, label, key, others))]
    made = []
    loss, eval_loss = _points(training, "loss"), _points(training, "eval_loss")
    if loss or eval_loss:
        title = "Loss over training steps. " + wording.training_sentence(training.rows)
        made.append(Series("loss", "loss", title, loss, {"evaluation": eval_loss} if eval_loss else {}))
    scores = {name: _points(training, f"eval_{name}") for name in METRICS if METRICS[name].direction is not None}
    measured = {wording.metric_name(name): points for name, points in scores.items() if points}
    if measured:
        title = "Scores on the validation rows over training steps: " + ", ".join(measured)
        made.append(Series("scores", "score", title, (), measured))
    return made


def _rl_series(training: Training, label: str, key: str, others: Mapping[str, str]) -> Series | None:
    points = _points(training, key)
    measured = {name: found for name, other in others.items() if (found := _points(training, other))}
    title = f"{label[0].upper()}{label[1:]}, over updates"
    return Series(key, label, title, points, measured) if points or measured else None


def training_plots(training: Training | None, place: int) -> list[Plot]:
    """A drawing of each series; `place` counts jobs from 1."""
    if training is None:
        return []
    made = []
    for found in series(training):
        key = f"{found.key}-{place}"
        svg = plots.curves(found.every, found.measured, y_label=found.label, title=found.title, key=key)
        made.append(Plot(Markup(svg), _caption(training, found)))
    return made


def _points(training: Training, key: str) -> tuple[Point, ...]:
    """(step, value) of every row that has this number; a skipped step has none."""
    rows = [(float(row["step"]), row.get(key)) for row in training.rows]
    return tuple((step, float(value)) for step, value in rows if _is_number(value))


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _caption(training: Training, found: Series) -> str:
    if found.key == "scores":
        return "Scores on the validation rows while training."
    if found.key != "loss":
        return f"{found.title}."
    parts = [wording.training_sentence(training.rows)]
    if len(found.every) > plots.SMOOTHED_FROM:
        parts.append("Solid: running mean of the training loss; faint: every step; marked: evaluation.")
    skipped = sum(bool(row.get("skipped")) for row in training.rows)
    if skipped:
        parts.append(f"{skipped:,} {'step was' if skipped == 1 else 'steps were'} skipped.")
    return " ".join(parts)


# --- toxicity against relevance ---


def stops(job: Job) -> list[Stop]:
    """The evaluations of a run on rewards by relevance (x) and toxic probability (y); empty if it measured neither."""
    if job.training is None:
        return []
    chosen = chosen_step(job)
    found = []
    for row in job.training.rows:
        x = next((row[key] for name in _RELEVANCE if _is_number(row.get(key := f"eval_{name}"))), None)
        y = row.get("eval_toxicity")
        if _is_number(x) and _is_number(y):
            step = int(row["step"])
            kind: StopKind = "passed" if row.get("eval_acceptable") else "refused"
            kind = "start" if step == 0 else "chosen" if step == chosen else kind
            found.append(Stop(step, float(x), float(y), kind))
    return found


def chosen_step(job: Job) -> int | None:
    """The update after which the result was saved, as run.json notes it."""
    record = job.records.get(job.training.record, {}) if job.training else {}
    for note in record.get("notes") or ():
        step = str(note).removeprefix("result: checkpoint-")
        if step.isdecimal():
            return int(step)
    return None


def frontier_plot(job: Job, place: int) -> list[Plot]:
    """Toxicity against relevance with the chosen checkpoint; nothing for a run that did not measure both."""
    found = stops(job)
    if not found:
        return []
    told = "; ".join(f"step {stop.step:,}: relevance {stop.x:.3f}, toxicity {stop.y:.3f}" for stop in found)
    chosen = next((stop for stop in found if stop.kind == "chosen"), None)
    ending = f" Chosen: step {chosen.step:,}." if chosen else ""
    title = f"Toxicity against relevance on the validation dialogues, over updates. {told}.{ending}"
    svg = plots.frontier(found, x_label="relevance", y_label="toxic probability", title=title, key=f"frontier-{place}")
    caption = (
        "Toxicity (by the reward's scorer) against relevance on the validation dialogues; down and right is better. "
        "Square: the start policy; star: the checkpoint that was chosen; cross: one outside the limits of relevance, "
        "ROUGE-L or length, which cannot be chosen."
    )
    return [Plot(Markup(svg), caption)]
