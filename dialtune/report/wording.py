"""Numbers and verdicts in plain words; text from data made visible and cut to size. No markup, no files."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from dialtune.grids import GridRecord
from dialtune.results import Comparison, Constraint, Entry, Evaluation, Interval, ScoreEntry, Verdict

# task: (what the model writes, the scores that may stand for the job, best first; `reward:` is any learned one)
_TASKS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "summarize": ("Summaries", ("rougeL", "rougeL_max", "rouge1", "bleu")),
    "respond": ("Replies", ("reward:", "context_auc", "relevance_reference")),
    "detoxify": (
        "Summaries",
        tuple(f"toxicity_mean:{scorer}" for scorer in ("ngrams", "alt-profanity-check", "lexicon", "minilm")),
    ),
}
# task: scores shown beside the headline where there is room for a few only
_BESIDE: Mapping[str, tuple[str, ...]] = {
    "summarize": ("rouge1", "bleu", "chrf"),
    "respond": ("relevance_reference", "relevance_dialogue", "rougeL"),
    "detoxify": ("toxicity_mean:minilm", "relevance_reference", "rougeL"),
}
_METRICS = {"bleu": "BLEU", "chrf": "chrF", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
_METRICS |= {"rougeLsum": "ROUGE-Lsum", "context_auc": "context AUC", "context_mrr": "context MRR"}
_METRICS |= {"context_ll_auc": "context AUC by likelihood", "context_ll_mrr": "context MRR by likelihood"}
_METRICS |= {"distinct_1": "distinct-1", "distinct_2": "distinct-2"}
_METRICS |= {"relevance_reference": "relevance to reference", "relevance_dialogue": "relevance to dialogue"}
_BY_SCORER = {"toxicity_mean": "toxicity", "toxicity_rate": "toxic share", "toxicity_p95": "toxicity p95"}
_SCORERS = {"minilm": "MiniLM", "ngrams": "n-grams", "lexicon": "word list"}
_VERDICTS: Mapping[Verdict, str] = {"improved": "improved", "worse": "worse", "no difference shown": "no difference"}
_TONES: Mapping[Verdict, str] = {"improved": "good", "worse": "bad", "no difference shown": "flat"}
# Controls, bidi marks, invisible and unpaired characters: they reorder, hide or break text without being seen.
# ZWJ and ZWNJ stay, emoji and Persian need them, and so do line ends and tabs.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2064\u2066-\u2069"
    r"\ud800-\udfff\ufeff\ufffe\uffff\U000e0000-\U000e007f]|\r(?!\n)"
)


def visible(text: str) -> str:
    r"""The text with every control, bidi and invisible character spelled out; line ends and tabs stay.

    >>> visible("a\u202eb\x1b[0m")
    'a⟨U+202E⟩b⟨U+001B⟩[0m'
    """
    return _INVISIBLE.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def clip(text: str, limit: int) -> str:
    """The visible text, cut at `limit` characters with the count of what is left out.

    >>> clip("abcdef", 4)
    'abcd… (2 more characters)'
    """
    shown = visible(text[:limit])
    more = max(len(text), len(shown)) - limit
    return shown if more <= 0 else f"{shown[:limit]}… ({more:,} more characters)"


def metric_name(name: str) -> str:
    """The score's name for people.

    >>> metric_name("rougeL_max"), metric_name("toxicity_rate:ngrams")
    ('ROUGE-L (max)', 'toxic share (n-grams)')
    """
    stem, best, _ = name.partition("_max")
    if stem in _METRICS:
        return _METRICS[stem] + (" (max)" if best else "")
    kind, _, scorer = name.partition(":")
    if scorer:
        return f"{_BY_SCORER.get(kind, clip(kind.replace('_', ' '), 30))} ({scorer_name(scorer)})"
    return clip(name.replace("_", " "), 40)


def scorer_name(name: str) -> str:
    """A toxicity scorer's name for people."""
    return _SCORERS.get(name) or clip(name, 40)


def verdict_word(verdict: Verdict) -> str:
    """The verdict for a table cell."""
    return _VERDICTS[verdict]


def tone(entry: Entry | None) -> str:
    """The name of the colour that goes with a verdict."""
    return _TONES[entry.verdict] if entry else "flat"


def digits(*values: float | None) -> int:
    """Decimals for numbers of this size: 19.4, 1.94, 0.194."""
    scale = max((abs(value) for value in values if value is not None), default=0.0)
    return 1 if scale >= 10 else 2 if scale >= 1 else 3


def number(value: float | None, decimals: int, *, sign: bool = False) -> str:
    """The number with a true minus; `sign` puts a plus before a gain.

    >>> number(-0.04, 1, sign=True), number(-3.26, 1), number(3.26, 1, sign=True)
    ('0.0', '−3.3', '+3.3')
    """
    if value is None:
        return "not scored"
    text = f"{abs(value):,.{decimals}f}"
    if not any(character in "123456789" for character in text):
        return text
    return ("−" if value < 0 else "+" if sign else "") + text


def interval(ci: Interval | None, decimals: int, *, sign: bool = False) -> str:
    """`18.2 to 20.6`, or an empty text without an interval."""
    return f"{number(ci[0], decimals, sign=sign)} to {number(ci[1], decimals, sign=sign)}" if ci else ""


def percent(relative: float, ci: Interval | None) -> tuple[str, str]:
    """A relative change (fraction) and its interval in percent: whole numbers from 10 % on, else one decimal."""
    decimals = 0 if max(abs(relative), *map(abs, ci or (0.0, 0.0))) >= 0.1 else 1
    scaled = (100 * ci[0], 100 * ci[1]) if ci else None
    return f"{number(100 * relative, decimals, sign=True)} %", interval(scaled, decimals, sign=True)


def share(value: float) -> str:
    """A share in percent: `98 %`, `112.8 %`."""
    return f"{number(100 * value, 1).removesuffix('.0')} %"


def share_interval(ci: Interval | None) -> str:
    """Its interval, or an empty text without one."""
    return interval((100 * ci[0], 100 * ci[1]) if ci else None, 1)


def points(difference: float) -> str:
    """A difference of shares in percentage points, signed."""
    return f"{number(100 * difference, 1, sign=True)} points"


def points_interval(ci: Interval | None) -> str:
    """Its interval, or an empty text without one."""
    return interval((100 * ci[0], 100 * ci[1]) if ci else None, 1, sign=True)


def p_value(p: float | None) -> str:
    """`0.012`; tiny ones as `< 0.0001`, never 0."""
    if p is None:
        return "not tested"
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def dialogues(n: int) -> str:
    """`1 dialogue`, `1,900 dialogues`."""
    return f"{n:,} dialogue" + ("" if n == 1 else "s")


def rows(task: str, n: int, n_dialogues: int | None = None) -> str:
    """The rows of a task by what they are, with the dialogues that they come from if these are fewer.

    >>> rows("respond", 180, 60), rows("respond", 1), rows("summarize", 60)
    ('180 replies in 60 dialogues', '1 reply', '60 dialogues')
    """
    if task != "respond":
        return dialogues(n)
    words = f"{n:,} {'reply' if n == 1 else 'replies'}"
    return words if n_dialogues is None else f"{words} in {dialogues(n_dialogues)}"


def headline(task: str, names: Sequence[str], trained: str | None = None, rewarded: Collection[str] = ()) -> str | None:
    """The score that stands for the job: the task's own if it is there, else the first; None if there is none.

    What the model was trained on, the scorer `trained` and the scores in `rewarded`, stands for a job only where there
    is no other.

    >>> headline("respond", ["bleu", "reward:judge"])
    'reward:judge'
    >>> headline("respond", ["bleu", "reward:judge"], rewarded=["reward:judge"])
    'bleu'
    """
    preferred = _TASKS.get(task, ("", ()))[1]
    learned_from = {name for name in names if trained and name.startswith("toxicity_") and name.endswith(f":{trained}")}
    met = [name for name in names if name not in learned_from.union(rewarded)]
    ranked = [(group, wanted) for group in (met, names) for wanted in (*preferred, *group)]
    return next((name for group, wanted in ranked for name in group if _is(name, wanted)), None)


def _is(name: str, wanted: str) -> bool:
    return name.startswith(wanted) if wanted.endswith(":") else name == wanted


def key_scores(task: str, comparison: Comparison) -> list[str]:
    """The headline and up to three scores that belong beside it, those that were compared."""
    scored = _scored(comparison)
    first = compared_headline(task, comparison)
    return list(dict.fromkeys(name for name in (first, *_BESIDE.get(task, ())) if name in scored))


def compared_headline(task: str, comparison: Comparison) -> str | None:
    """The headline among the scores that both sides have, or among all if no score is."""
    trained = comparison.jury.trained if comparison.jury else None
    return headline(task, _scored(comparison) or list(comparison.scores), trained, rewarded(comparison))


def _scored(comparison: Comparison) -> list[str]:
    scores = comparison.scores.items()
    return [name for name, entry in scores if entry.before is not None and entry.after is not None]


def rewarded(comparison: Comparison) -> list[str]:
    """The scores that say themselves that they are no evidence, since the model was trained on them."""
    return [name for name, entry in comparison.scores.items() if "also trained the model" in (entry.note or "")]


def comparison_sentence(task: str, name: str, entry: Entry, constraints: Mapping[str, Constraint] | None = None) -> str:
    """What the job did, e.g. `Summaries improved: ROUGE-L 19.4 → 31.2, +61 % (95 % CI +52 to +69), 200 dialogues.`

    What had to be kept is part of it: nobody should read of less toxicity without reading of relevance.
    """
    subject = _subject(task)
    if entry.before is None or entry.after is None:
        return f"{subject}: {metric_name(name)} not scored{f' ({entry.note})' if entry.note else ''}."
    is_toxicity = name.startswith("toxicity_")
    opening = {
        "improved": f"{subject} {'became less toxic' if is_toxicity else 'improved'}",
        "worse": f"{subject} {'became more toxic' if is_toxicity else 'got worse'}",
        "no difference shown": f"No difference shown for {subject.lower()}",
    }[entry.verdict]
    places = digits(entry.before, entry.after)
    shift = f"{metric_name(name)} {number(entry.before, places)} → {number(entry.after, places)}"
    needed = ""
    if entry.verdict == "no difference shown" and entry.n_needed:
        n_needed = round(entry.n_needed, 2 - len(str(entry.n_needed)))  # two digits are all that it is known to
        needed = f"; to show it would take about {dialogues(n_needed)}"
    counted = rows(task, entry.n, entry.n_dialogues)
    return f"{opening}: {shift}, {_change(entry, places)}, {counted}{needed}{_kept(constraints or {})}."


def _kept(constraints: Mapping[str, Constraint]) -> str:
    """What had to be kept and was, or was not, or what is not known about it; empty if nothing had to be."""
    clauses = []
    for held, words in (("no", "not kept"), ("not shown", "not shown to be kept"), ("yes", "kept")):
        found = {name: limit for name, limit in constraints.items() if limit.held == held}
        if found:
            names = [metric_name(name) for name in found]
            listed = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
            floors = sorted({share(limit.floor) for limit in found.values()})
            clauses.append(f"{listed} {words} (floor {', '.join(floors)})")
    return "; " + "; ".join(clauses) if clauses else ""


def _change(entry: Entry, places: int) -> str:
    """The relative change with its interval where it has one, else the difference with its own."""
    if entry.relative is not None and (entry.relative_ci is not None or entry.ci is None):
        change, ci = percent(entry.relative, entry.relative_ci)
    else:
        change, ci = number(entry.difference, places, sign=True), interval(entry.ci, places, sign=True)
    return f"{change} (95 % CI {ci})" if ci else change


def tally_sentence(comparison: Comparison) -> str:
    """How the other scores went, so that the headline cannot hide them; empty if there are no others."""
    entries = comparison.scores.values()
    if len(entries) < 2:
        return ""
    verdicts = [entry.verdict for entry in entries if entry.before is not None and entry.after is not None]
    kept = [(verdicts.count(verdict), word) for verdict, word in _COUNTED]
    kept.append((len(entries) - len(verdicts), "not scored"))
    told = ", ".join(f"{count} {word}" for count, word in kept if count)
    return f"Of {len(entries)} scores compared, {told}."


_COUNTED: tuple[tuple[Verdict, str], ...] = (
    ("improved", "improved"),
    ("worse", "got worse"),
    ("no difference shown", "without a difference shown"),
)


def evaluation_sentence(task: str, name: str | None, score: ScoreEntry | None) -> str:
    """What one evaluation alone says; it claims no change."""
    subject = _subject(task)
    if name is None or score is None:
        return f"{subject}: nothing was scored."
    if score.value is None:
        return f"{subject}: {metric_name(name)} not scored ({score.reason})."
    places = digits(score.value)
    ci = interval(score.ci, places)
    value = f"{metric_name(name)} {number(score.value, places)}" + (f" (95 % CI {ci})" if ci else "")
    return f"{subject} score {value} on {rows(task, score.n)}; compared with nothing."


def training_sentence(rows: Sequence[Mapping[str, Any]]) -> str:
    """Where the loss began and ended: the evaluation loss if it was measured twice, else the training loss.

    Reinforcement learning has no loss worth watching: toxicity on the validation dialogues, else the mean reward.
    """
    by_rewards = (("eval_toxicity", "toxic probability on validation dialogues"), ("reward", "mean reward"))
    by_loss = (("eval_loss", "evaluation loss"), ("loss", "training loss"))
    for key, words in by_rewards if any("rollout" in row for row in rows) else by_loss:
        values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
        if len(values) > 1:
            steps = max(int(row["step"]) for row in rows)
            return f"Trained for {steps:,} steps: {words} {number(values[0], 3)} → {number(values[-1], 3)}."
    return "Training has not logged two steps yet."


def grid_sentence(record: GridRecord) -> str:
    """Which run of a grid won, by what, and how many runs there were."""
    best = next((row for row in record.rows if row.name == record.best), None)
    if best is None or best.score is None:
        return f"{record.n_finished} of {len(record.rows)} runs finished; none is chosen yet."
    name = "validation loss" if record.metric == "eval_loss" else metric_name(record.metric)
    value = number(best.score, 3 if record.metric == "eval_loss" else digits(best.score))
    extreme = "lowest" if record.direction == "lower" else "highest"
    chosen = clip(", ".join(f"{key} {plain(value)}" for key, value in best.values.items()), 200)
    return f"Of {len(record.rows)} runs, {chosen} has the {extreme} {name}: {value}, after {best.step:,} updates."


def plain(value: object) -> str:
    """A value of a recipe as YAML shows it: 3e-05, true, null."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _subject(task: str) -> str:
    return _TASKS[task][0] if task in _TASKS else f"Texts of the task {clip(task, 40)}"


def counts(evaluation: Evaluation) -> dict[str, int]:
    """What happened to every row, in the words of the report's table."""
    return {
        "asked for": evaluation.n_total,
        "generated": evaluation.n_generated,
        "cut by the token limit": evaluation.n_truncated,
        "empty": evaluation.n_empty,
        "scored by every score": evaluation.n_scored,
        "not scored by every score": evaluation.n_total - evaluation.n_scored,
        "turns dropped from prompts": evaluation.data.dropped_turns,
    }
