"""A job to what the page prints of it: every number already words, every text already cut to size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dialtune.metrics.table import METRICS
from dialtune.report import plots, provenance, wording
from dialtune.report.reading import Job, Training
from dialtune.results import Entry, EvalRow, Evaluation

_DIALOGUE, _COMPLETION, _REFERENCE = 3000, 1200, 600  # characters shown of a text
_REFERENCES = 5  # shown of a dialogue
_TONES = {"improved": "good", "worse": "bad", "no difference shown": "flat"}


@dataclass(frozen=True, slots=True)
class Plot:
    """An SVG element and the words under it; `narrow` is the same drawn for a phone, if that needs another drawing."""

    svg: Markup
    caption: str
    narrow: Markup | None = None


@dataclass(frozen=True, slots=True)
class ScoreLine:
    """One line of the table of scores, ready to print; `tone` names a colour."""

    name: str
    before: str
    before_ci: str
    after: str
    after_ci: str
    change: str
    change_ci: str
    relative: str
    relative_ci: str
    p: str
    n: str
    verdict: str
    tone: str
    note: str
    signature: str


@dataclass(frozen=True, slots=True)
class Card:
    """One dialogue with its gold texts and what was written before and after."""

    id: str
    score: str
    dialogue: str | None
    references: tuple[str, ...]
    texts: tuple[tuple[str, str, str], ...]  # heading, completion, remark


@dataclass(frozen=True, slots=True)
class Section:
    """Everything that the page prints of one job."""

    anchor: str
    title: str
    sentence: str
    tally: str
    tone: str
    notes: tuple[str, ...]
    lines: tuple[ScoreLine, ...]
    plots: tuple[Plot, ...]
    cards: tuple[tuple[str, tuple[Card, ...]], ...]  # heading, cards
    cards_note: str
    counts: tuple[tuple[str, str, str], ...]  # what, before, after
    facts: tuple[tuple[str, str, str], ...]  # what, before, after
    method: str
    commands: tuple[tuple[str, str], ...]  # where it comes from, command
    environment: tuple[tuple[str, str], ...]  # what, value
    files: tuple[tuple[str, str], ...]  # name, text
    paired: bool


def section(job: Job, place: int, shown: int) -> Section:
    """What the page prints of a job; `place` counts jobs from 1, `shown` dialogues at each end."""
    name = _headline(job)
    row_score = _row_score(job, name)
    entry = job.comparison.scores.get(name) if job.comparison and name else None
    cards, cards_note = _cards(job, row_score, shown)
    return Section(
        anchor=f"job-{place}",
        title=wording.clip(job.name, 60).capitalize(),
        sentence=_sentence(job, name),
        tally=wording.tally_sentence(job.comparison) if job.comparison else "",
        tone=_TONES[entry.verdict] if entry else "flat",
        notes=_notes(job, entry),
        lines=tuple(_lines(job)),
        plots=tuple([*_change_plot(job, row_score, place), *_training_plots(job.training, place)]),
        cards=cards,
        cards_note=cards_note,
        counts=_two_sided(job, lambda side: {key: f"{n:,}" for key, n in wording.counts(side).items()}),
        facts=_two_sided(job, provenance.facts),
        method=provenance.method_sentence(job.comparison.method) if job.comparison else "",
        commands=tuple(provenance.commands(job)),
        environment=tuple(provenance.environment(job.records)),
        files=tuple(provenance.files(job)),
        paired=job.before is not None,
    )


# --- which score ---


def _headline(job: Job) -> str | None:
    names = list(job.comparison.scores) if job.comparison else list(job.after.scores) if job.after else []
    return wording.headline(job.task, names)


def _sentence(job: Job, name: str | None) -> str:
    if job.comparison and name:
        return wording.comparison_sentence(job.task, name, job.comparison.scores[name])
    if job.after:
        return wording.evaluation_sentence(job.task, name, job.after.scores.get(name or ""))
    return wording.training_sentence(job.training.rows if job.training else ())


def _row_score(job: Job, name: str | None) -> str | None:
    """The score that dialogues are sorted by: the headline if it has a value per row, else the first that has."""
    rows = job.after.rows if job.after else ()
    names = [name, *(job.comparison.scores if job.comparison else job.after.scores if job.after else ())]
    return next((n for n in names if n and any(row.scores.get(n) is not None for row in rows)), None)


def _higher_is_better(job: Job, name: str) -> bool:
    if job.comparison and name in job.comparison.scores:
        return job.comparison.scores[name].direction == "higher"
    return METRICS[name].direction != "lower" if name in METRICS else True


def _changes(job: Job, name: str) -> list[tuple[float, EvalRow | None, EvalRow]]:
    """After minus before for every dialogue that both sides scored; the score itself if there is no before."""
    assert job.after is not None
    earlier = {row.id: row for row in job.before.rows} if job.before else {}
    found: list[tuple[float, EvalRow | None, EvalRow]] = []
    for row in job.after.rows:
        old, new = earlier.get(row.id), row.scores.get(name)
        if new is None:
            continue
        if job.before is None:
            found.append((new, None, row))
        elif old is not None and (start := old.scores.get(name)) is not None:
            found.append((new - start, old, row))
    return found


# --- first screen and table ---


def forest_plot(jobs: Sequence[Job]) -> Plot | None:
    """Every compared score of every job in one drawing; None if none has a relative interval."""
    groups: list[tuple[str, list[plots.ForestRow]]] = []
    left_out = []
    for job in jobs:
        entries = job.comparison.scores if job.comparison else {}
        rows = [row for name, entry in entries.items() if (row := _forest_row(name, entry))]
        left_out += [wording.metric_name(name) for name, entry in entries.items() if _forest_row(name, entry) is None]
        if rows:
            groups.append((wording.clip(job.name, 60).capitalize(), rows))
    if not groups:
        return None
    caption = (
        "Change relative to before with its 95 % interval. Filled circle: improved; filled diamond: worse; "
        "hollow circle: no difference shown, after correction for the number of scores."
    )
    if left_out:
        caption += f" Without a relative interval, so in the table only: {', '.join(left_out)}."
    told = [f"{group}: " + "; ".join(f"{row.label} {row.text}" for row in rows) for group, rows in groups]
    title = "Relative change of every score. " + ". ".join(told)
    wide, narrow = (Markup(plots.forest(groups, width=width, title=title)) for width in (720, 340))
    return Plot(wide, caption, narrow)


def _forest_row(name: str, entry: Entry) -> plots.ForestRow | None:
    if entry.relative is None or entry.relative_ci is None:
        return None
    low, high = entry.relative_ci
    change, ci = wording.percent(entry.relative, entry.relative_ci)
    label, text = wording.metric_name(name), f"{change} ({ci})"
    return plots.ForestRow(label, 100 * low, 100 * entry.relative, 100 * high, text, entry.verdict)


def _lines(job: Job) -> list[ScoreLine]:
    """A line per compared score, then the scores that were measured but not compared."""
    compared = job.comparison.scores if job.comparison else {}
    sides = [side for side in (job.before, job.after) if side]
    names = dict.fromkeys([*compared, *(name for side in sides for name in side.scores)])
    return [_line(job, name, compared.get(name)) for name in names]


def _line(job: Job, name: str, entry: Entry | None) -> ScoreLine:
    old, new = (side.scores.get(name) if side else None for side in (job.before, job.after))
    before = entry.before if entry else old.value if old else None
    after = entry.after if entry else new.value if new else None
    places = wording.digits(before, after)
    relative, relative_ci = "", ""
    if entry and entry.relative is not None:
        relative, relative_ci = wording.percent(entry.relative, entry.relative_ci)
    known = new or old
    reasons = [
        entry.note if entry and entry.note != _shared_note(job) else None,
        *(score.reason for score in (old, new) if score),
    ]
    dropped = f"{entry.n_dropped:,} left out: one side not scored" if entry and entry.n_dropped else None
    return ScoreLine(
        name=wording.metric_name(name),
        before=wording.number(before, places),
        before_ci=wording.interval(old.ci if old else None, places),
        after=wording.number(after, places),
        after_ci=wording.interval(new.ci if new else None, places),
        change=wording.number(entry.difference, places, sign=True) if entry else "",
        change_ci=wording.interval(entry.ci if entry else None, places, sign=True),
        relative=relative,
        relative_ci=relative_ci,
        p=wording.p_value(entry.p_holm) if entry else "",
        n=f"{entry.n if entry else known.n if known else 0:,}",
        verdict=wording.verdict_word(entry.verdict) if entry else "not compared" if job.comparison else "",
        tone=_TONES[entry.verdict] if entry else "flat",
        note="; ".join(dict.fromkeys(wording.clip(text, 200) for text in [*reasons, dropped] if text)),
        signature=known.signature if known else "",
    )


def _shared_note(job: Job) -> str | None:
    """The note that every compared score carries: said once, under the sentence."""
    notes = {entry.note for entry in job.comparison.scores.values()} if job.comparison else set()
    return notes.pop() if len(notes) == 1 else None


def _notes(job: Job, entry: Entry | None) -> tuple[str, ...]:
    """What a reader must know before believing the sentence."""
    notes = [entry.note] if entry and entry.note else []
    allowed = job.comparison.allowed if job.comparison else ()
    notes += [f"Compared although this differs, on request: {line}" for line in allowed]
    return tuple(wording.clip(note[0].upper() + note[1:], 300) for note in notes)


# --- plots ---


def _training_plots(training: Training | None, place: int) -> list[Plot]:
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


def _change_plot(job: Job, name: str | None, place: int) -> list[Plot]:
    if name is None or job.before is None:
        return []
    changes = [change for change, _, _ in _changes(job, name)]
    if not changes:
        return []
    higher, label = _higher_is_better(job, name), wording.metric_name(name)
    gained = sum((change > 0) == higher for change in changes if change)
    tied = sum(change == 0 for change in changes)
    shares = f"{gained:,} better, {tied:,} unchanged, {len(changes) - gained - tied:,} worse"
    title = f"Distribution of the change of {label} per dialogue: {shares}"
    svg = plots.histogram(
        changes, higher_is_better=higher, x_label=f"change of {label}", title=title, key=f"change-{place}"
    )
    words = f"Change of {label} per dialogue: {shares} of {wording.dialogues(len(changes))}. Dashed line: the mean."
    return [Plot(Markup(svg), words)]


# --- dialogues ---


def _cards(job: Job, name: str | None, shown: int) -> tuple[tuple[tuple[str, tuple[Card, ...]], ...], str]:
    """(heading, cards) for both ends, and a remark on how they were chosen."""
    if name is None:
        return (), "No score has a value per dialogue."
    label, sign = wording.metric_name(name), 1 if _higher_is_better(job, name) else -1
    ranked = sorted(_changes(job, name), key=lambda found: (-sign * found[0], found[2].id))
    if job.before:
        top = [found for found in ranked if sign * found[0] > 0][:shown]
        bottom = [found for found in reversed(ranked) if sign * found[0] < 0][:shown]
        headings = ("Gained most", "Lost most")
    else:
        half = min(shown, len(ranked) // 2)
        top, bottom = ranked[:half], ranked[::-1][:half]
        headings = ("Best", "Worst")
    ends = zip(headings, (top, bottom), strict=True)
    cards = tuple((heading, tuple(_card(job, name, *found) for found in end)) for heading, end in ends if end)
    note = f"By {label}, out of {wording.dialogues(len(ranked))}: the extremes, not typical ones."
    if not cards:
        note = "Left out to keep the page under 1 MB." if shown == 0 else f"No dialogue's {label} changed."
    elif not job.sources:
        note += " Dialogues and references are not shown: there is no examples.jsonl beside eval.json."
    if job.comparison and not job.before:
        note += " What was written before is not in this folder."
    return cards, note


def _card(job: Job, name: str, change: float, old: EvalRow | None, new: EvalRow) -> Card:
    source = job.sources.get(new.id)
    start, end = old.scores[name] if old else None, new.scores[name]
    places = wording.digits(start, end)
    score = f"{wording.metric_name(name)} {wording.number(end, places)}"
    if old:
        shift = f"{wording.number(start, places)} → {wording.number(end, places)}"
        score = f"{wording.metric_name(name)} {shift} ({wording.number(change, places, sign=True)})"
    sides = [("Before", old), ("After", new)] if old else [("Completion", new)]
    references = source.references if source else ()
    return Card(
        id=wording.clip(new.id, 80),
        score=score,
        dialogue=wording.clip(source.dialogue, _DIALOGUE) if source else None,
        references=tuple(wording.clip(text, _REFERENCE) for text in references[:_REFERENCES]),
        texts=tuple(
            (
                heading,
                wording.clip(row.completion, _COMPLETION),
                "cut by the token limit" if row.finish == "length" else "",
            )
            for heading, row in sides
            if row
        ),
    )


# --- before beside after ---


def _two_sided(job: Job, of: Callable[[Evaluation], Mapping[str, str]]) -> tuple[tuple[str, str, str], ...]:
    """(what, before, after) for each thing that `of` knows about an evaluation; before is empty if there is none."""
    if job.after is None:
        return ()
    after, before = of(job.after), of(job.before) if job.before else {}
    return tuple((key, before.get(key, ""), value) for key, value in after.items())
