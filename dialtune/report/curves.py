"""What a training logged over its steps, drawn."""

from __future__ import annotations

from markupsafe import Markup

from dialtune.metrics.table import METRICS
from dialtune.report import plots, wording
from dialtune.report.plots import Plot
from dialtune.report.reading import Training


def training_plots(training: Training | None, place: int) -> list[Plot]:
    if training is None:
        return []
    if any("rollout" in row for row in training.rows):
        return _rl_plots(training, place)
    loss, eval_loss = _points(training, "loss"), _points(training, "eval_loss")
    made = []
    if loss or eval_loss:
        title = "Loss over training steps. " + wording.training_sentence(training.rows)
        measured = {"evaluation": eval_loss} if eval_loss else {}
        svg = plots.curves(loss, measured, y_label="loss", title=title, key=f"loss-{place}")
        made.append(Plot(Markup(svg), _training_caption(training, smoothed=len(loss) > plots.SMOOTHED_FROM)))
    scores = {name: _points(training, f"eval_{name}") for name in METRICS if METRICS[name].direction is not None}
    measured = {wording.metric_name(name): points for name, points in scores.items() if points}
    if measured:
        title = "Scores on the validation rows over training steps: " + ", ".join(measured)
        svg = plots.curves([], measured, y_label="score", title=title, key=f"scores-{place}")
        made.append(Plot(Markup(svg), "Scores on the validation rows while training."))
    return made


# What a reinforcement-learning run shows: title, the rollouts' number, and numbers measured on validation dialogues.
_RL_PLOTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("mean reward of the completions sampled", "reward", {}),
    ("toxic probability, by the reward's scorer", "toxic", {"validation": "eval_toxicity", "alarm": "eval_alarm"}),
    ("relevance", "relevance", {"validation": "eval_relevance"}),
    ("KL to the start policy, nats per completion", "kl_per_sequence", {}),
)


def _rl_plots(training: Training, place: int) -> list[Plot]:
    """Reward, toxicity, relevance and KL: the loss of a policy gradient says nothing."""
    made = []
    for label, key, others in _RL_PLOTS:
        points = _points(training, key)
        measured = {name: found for name, other in others.items() if (found := _points(training, other))}
        if points or measured:
            title = f"{label[0].upper()}{label[1:]}, over updates"
            svg = plots.curves(points, measured, y_label=label, title=title, key=f"{key}-{place}")
            made.append(Plot(Markup(svg), f"{title}."))
    return made


def _points(training: Training, key: str) -> list[plots.Point]:
    """(step, value) of every row that has this number; a skipped step has none."""
    rows = [(float(row["step"]), row.get(key)) for row in training.rows]
    return [(step, float(value)) for step, value in rows if isinstance(value, int | float)]


def _training_caption(training: Training, *, smoothed: bool) -> str:
    parts = [wording.training_sentence(training.rows)]
    if smoothed:
        parts.append("Solid: running mean of the training loss; faint: every step; marked: evaluation.")
    skipped = sum(bool(row.get("skipped")) for row in training.rows)
    if skipped:
        parts.append(f"{skipped:,} {'step was' if skipped == 1 else 'steps were'} skipped.")
    return " ".join(parts)
