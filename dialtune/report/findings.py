"""What a comparison says beside its scores: limits kept, origins of toxic sentences, the jury, slices; as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dialtune.report import wording
from dialtune.report.reading import Job
from dialtune.results import Comparison, Constraint, Entry, Gain, Jury, Shift

_HELD = {"yes": ("held", "good"), "no": ("not held", "bad"), "not shown": ("not shown", "flat")}
_ORIGINS = {
    "copied": "at least 60 % of its 4-grams occur in one turn",
    "paraphrased": "not copied, but close in meaning to a turn that is toxic itself",
    "invented": "neither of the two",
}


_INVENTED_MORE = "Alarm: more completions hold a toxic sentence that neither copies nor paraphrases a turn."


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: its text, what stands small under it, and the name of a colour."""

    text: str
    small: str = ""
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """A heading, sentences and a table; the first cell of a row names it. `columns` names the others."""

    heading: str
    sentences: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    tone: str = ""  # of the sentences: `bad` for an alarm


def limits(job: Job) -> tuple[Finding, ...]:
    """What had to be kept, if anything had."""
    return tuple(_limits(job.comparison)) if job.comparison else ()


def findings(job: Job) -> tuple[Finding, ...]:
    """Everything else there is, in the order of the page."""
    if job.comparison is None:
        return ()
    return tuple([*_origins(job.comparison), *_jury(job.comparison), *_slices(job)])


def alarms(job: Job) -> tuple[str, ...]:
    """What takes the shine off an improvement, for the first screen: limits not held, a reward that may be gamed."""
    if job.comparison is None:
        return ()
    broken = [wording.metric_name(name) for name, found in job.comparison.constraints.items() if found.held == "no"]
    found = [f"Not kept: {', '.join(broken)}"] if broken else []
    if job.comparison.jury and job.comparison.jury.alarm:
        found.append("The reward may be gamed: its own scorer sees a gain that the jury does not")
    return (*found, *(sentence.rstrip(".") for finding in _origins(job.comparison) for sentence in finding.sentences))


# --- limits ---


def _limits(comparison: Comparison) -> Iterator[Finding]:
    if not comparison.constraints:
        return
    rows = tuple(_limit(name, found) for name, found in comparison.constraints.items())
    note = "Held: the whole interval reaches the floor; not held: none of it does; not shown: the data cannot tell."
    yield Finding("What had to be kept", (), ("Score", "Floor", "Kept of before", "Held"), rows, note)


def _limit(name: str, found: Constraint) -> tuple[Cell, ...]:
    words, tone = _HELD[found.held]
    if found.ratio is None:
        kept = Cell("not measured", wording.clip(found.note or "", 200))
    else:
        kept = Cell(wording.share(found.ratio), wording.share_interval(found.ci))
    return Cell(wording.metric_name(name)), Cell(wording.share(found.floor)), kept, Cell(words, tone=tone)


# --- origins ---


def _origins(comparison: Comparison) -> Iterator[Finding]:
    if not comparison.origins:
        return
    rows, alarms = [], []
    for name, shift in comparison.origins.items():
        origin, _, scorer = name.partition(":")
        rows.append(_origin(origin, scorer, shift))
        if origin == "invented" and shift.ci is not None and shift.ci[0] > 0:
            alarms.append(_INVENTED_MORE)
    told = "; ".join(f"{origin}: {words}" for origin, words in _ORIGINS.items())
    note = f"Shares of all dialogues; a completion may count in several. {told[0].upper()}{told[1:]}."
    columns = ("Toxic sentence", "Before", "After", "Difference")
    yield Finding("Where toxic sentences come from", tuple(alarms), columns, tuple(rows), note, "bad" if alarms else "")


def _origin(origin: str, scorer: str, shift: Shift) -> tuple[Cell, ...]:
    change = Cell(wording.points(shift.difference), wording.points_interval(shift.ci))
    name = Cell(wording.clip(origin, 40), f"by {wording.scorer_name(scorer)}")
    return name, Cell(wording.share(shift.before)), Cell(wording.share(shift.after)), change


# --- jury ---


def _jury(comparison: Comparison) -> Iterator[Finding]:
    jury = comparison.jury
    if jury is None or (jury.trained is None and len(jury.jurors) < 2):
        return
    rows = tuple(_juror(name, comparison.scores, jury) for name in _members(jury))
    columns = ("Scorer", "Role", "Mean toxicity before", "After", "Relative")
    alarm = "bad" if jury.alarm else ""
    note = "A juror is a scorer that no reward used. Gains are in standard deviations of the dialogues before."
    if any(juror.seen for juror in jury.jurors.values()):
        note += " Seen in training: it watched for a hacked reward, and paid nothing."
    yield Finding("Jury", tuple(jury_sentences(jury)), columns, rows, note, alarm)
    pairs = tuple(
        (
            Cell(f"{wording.scorer_name(pair.one)} and {wording.scorer_name(pair.other)}"),
            Cell(wording.number(pair.spearman, 2), wording.clip(pair.reason or "", 120)),
            Cell(wording.number(pair.kappa, 2)),
            Cell(f"{pair.n:,}"),
        )
        for pair in jury.agreement
    )
    if pairs:
        note = "Over the completions of both sides. Spearman: of ranks; kappa: of toxic or not, beyond chance."
        yield Finding("How far scorers agree", (), ("Scorers", "Spearman", "Kappa", "Completions"), pairs, note)


def _members(jury: Jury) -> list[str]:
    return [*([jury.trained] if jury.trained else []), *jury.jurors]


def _juror(name: str, scores: Mapping[str, Entry], jury: Jury) -> tuple[Cell, ...]:
    entry, juror = scores.get(f"toxicity_mean:{name}"), jury.jurors.get(name)
    role = "reward" if juror is None else "juror, seen in training" if juror.seen else "juror"
    if entry is None or entry.before is None:
        why = (juror.reason if juror else None) or (entry.note if entry else None) or "not compared"
        return (
            Cell(wording.scorer_name(name)),
            Cell(role),
            Cell("not scored", wording.clip(why, 160)),
            Cell(""),
            Cell(""),
        )
    change, ci = wording.percent(entry.relative, entry.relative_ci) if entry.relative is not None else ("", "")
    before, after = wording.number(entry.before, 3), wording.number(entry.after, 3)
    relative = Cell(change, ci, wording.tone(entry))
    return Cell(wording.scorer_name(name)), Cell(role), Cell(before), Cell(after), relative


def jury_sentences(jury: Jury) -> Iterator[str]:
    """What the jury says, and how far the reward's own scorer is from it."""
    there = [name for name, juror in jury.jurors.items() if juror.n]
    if not there:
        yield f"Nobody but {wording.scorer_name(jury.trained or '')}, the reward's own scorer, has judged."
        return
    if jury.median_relative is not None:
        change, _ = wording.percent(jury.median_relative, None)
        if len(there) == 1:
            yield f"Mean toxicity by the one scorer that no reward used: {change}."
        else:
            yield f"Mean toxicity by the {len(there)} scorers that no reward used: {change}, the median."
    if jury.gap is None or jury.trained_gain is None or jury.jury_gain is None:
        yield f"How far the reward's scorer is from the jury is not shown: {wording.clip(jury.reason or '', 200)}."
        return
    word = "alarm, the reward may be gamed" if jury.alarm else "no alarm"
    yield (
        f"Gain by the reward's scorer {_gain(jury.trained_gain)}, by the jury {_gain(jury.jury_gain)}; "
        f"gap {_gain(jury.gap)}: {word}."
    )


def _gain(gain: Gain) -> str:
    return f"{wording.number(gain.value, 2, sign=True)} sd ({wording.interval(gain.ci, 2, sign=True)})"


# --- slices ---


def _slices(job: Job) -> Iterator[Finding]:
    assert job.comparison is not None
    others = {f"{name} (other dialogues)": other.scores for name, other in job.others.items()}
    tables = {**job.comparison.slices, **others}
    if not tables:
        return
    names = wording.key_scores(job.task, job.comparison)
    whole = ("all", job.comparison.scores)
    rows = tuple(_slice(name, entries, names) for name, entries in [whole, *tables.items()])
    columns = ("Dialogues", "Number", *(wording.metric_name(name) for name in names))
    note = "For reading: each slice is corrected by itself, and no claim rests on one. Words are the dialogue's."
    yield Finding("Slices", (), columns, rows, note)


def _slice(label: str, entries: Mapping[str, Entry], names: list[str]) -> tuple[Cell, ...]:
    n = max((entry.n for entry in entries.values()), default=0)
    cells = [_change(entries.get(name)) for name in names]
    return Cell(wording.clip(label, 60)), Cell(f"{n:,}"), *cells


def _change(entry: Entry | None) -> Cell:
    if entry is None or entry.before is None or entry.after is None:
        return Cell("not scored")
    places = wording.digits(entry.before, entry.after)
    shift = f"{wording.number(entry.before, places)} → {wording.number(entry.after, places)}"
    change = wording.number(entry.difference, places, sign=True)
    ci = wording.interval(entry.ci, places, sign=True)
    return Cell(shift, f"{change} ({ci})" if ci else change, wording.tone(entry))
