"""Two evaluations to a Comparison: refused when they are not alike, paired, corrected, allowed to say "cannot tell".

`compare` makes it, `describe` says it in words, `check_requirements` holds it against `--require` gates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dialtune.errors import ConfigError, DataError, GateFailedError
from dialtune.jury import TRAINED, jury_lines, jury_of
from dialtune.metrics.base import Metric, is_empty
from dialtune.metrics.origin import PREFIX as ORIGIN_PREFIX
from dialtune.metrics.table import look_up
from dialtune.pairing import Drawn, draw, family_of, known_scores, pair_rows, refuse_unlike
from dialtune.results import Comparison, Constraint, Entry, Evaluation, Method, Shift, Side, to_json
from dialtune.runs import RunFolder, write_text_atomic
from dialtune.slices import slices_of
from dialtune.statistics import ALPHA, EXACT_UNITS, PERMUTATIONS, RESAMPLES, bootstrap_interval, holm
from dialtune.verdicts import NO_VERDICT_BELOW, Rule, constraint_of, entry_of, second_verdict

FLOOR = 0.98  # of before: what detoxification must keep of each of FLOORED, if nothing else is asked for
FLOORED = ("relevance_reference", "relevance_dialogue", "rougeL")
_CI = "paired percentile bootstrap by dialogue; below 200 the wider of it and a t interval"
_TEST = "two-sided randomisation: the two outputs of a dialogue swap sides; every assignment if 16 or fewer"


def compare(  # noqa: PLR0913  # every setting of the test is the caller's to state
    before: Evaluation,
    after: Evaluation,
    *,
    seed: int = 0,
    allow_decoding_change: bool = False,
    scores: Sequence[str] | None = None,
    constraints: Mapping[str, float] | None = None,
    minimal: Mapping[str, float] | None = None,
    trained: str | None = TRAINED,
    seen: Collection[str] = (),
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    metrics: Mapping[str, Metric] | None = None,
) -> Comparison:
    """What changed from before to after, score by score, on the same dialogues.

    Args:
        before: the baseline.
        after: the candidate.
        seed: of resampling and randomisation.
        allow_decoding_change: compare although decoding differs, for decoding studies; written into the result.
        scores: the family to test, the fewer the more power; all directional ones, without the `_max` companions of
            scores that are there themselves.
        constraints: score name to floor of after / before, e.g. `{"relevance_dialogue": 0.98}`. None: for the task
            `detoxify` 0.98 for relevance and ROUGE-L where both sides have them, otherwise none.
        minimal: score name to the smallest difference that matters, for `n_needed`; otherwise the observed one.
        trained: the scorer that was the reward; its gain is held against those of the jury, all other scorers. None if
            there was none.
        seen: scorers that watched the training without being paid for; jurors that are marked.
        alpha: of the Holm-adjusted tests.
        resamples: bootstrap draws.
        permutations: random assignments; 2**n if there are n <= 16 dialogues.
        metrics: where directions and formulas come from; None: `metrics.table.look_up`.

    Raises:
        NotComparableError: signatures, rows, data, template or decoding differ; one line per key.
        ConfigError: `scores`, `constraints` or `minimal` name a score that is not there.
    """
    if metrics is None:
        metrics = {name: found for name in (*before.scores, *after.scores) if (found := look_up(name))}
    minimal, floors = minimal or {}, _floors(before, after) if constraints is None else constraints
    family = family_of(before, after, scores, floors, metrics)
    known_scores([*minimal], family)
    names = list(dict.fromkeys([*family, *floors, *_told_apart(before, after)]))
    allowed = refuse_unlike(before, after, names, allow_decoding_change)
    trial = _Trial(alpha, seed, resamples, permutations, max(_leaked(before), _leaked(after)), minimal)
    draws = trial.draw(before, after, [metrics[name] for name in names])
    entries = _entries(before, after, {name: draws[name] for name in family}, trial)
    units = len(next(iter(draws.values())).pair.columns) if draws else 0
    trials = 2**units if units <= EXACT_UNITS else permutations
    return Comparison(
        before=_side(before),
        after=_side(after),
        data=after.data,
        decoding=after.decoding,
        method=Method(ci=_CI, resamples=resamples, test=_TEST, permutations=trials, alpha=alpha, seed=seed),
        scores=entries,
        constraints={name: _constraint(draws[name], floor, constraints) for name, floor in floors.items()},
        slices=_slices(before, after, [metrics[name] for name in family], trial),
        origins=_origins(draws),
        jury=jury_of(entries, draws, trained, seen=seen, seed=seed, resamples=resamples),
        allowed=allowed,
    )


def _side(evaluation: Evaluation) -> Side:
    return Side(model=evaluation.model, eval_sha256=hashlib.sha256(to_json(evaluation).encode()).hexdigest())


def _leaked(evaluation: Evaluation) -> int:
    """Evaluation rows that training has seen."""
    return sum((evaluation.data.leakage or {}).get(kind, 0) for kind in ("exact", "near"))


def _floors(before: Evaluation, after: Evaluation) -> dict[str, float]:
    """What the task asks to be kept, as far as both sides measured it."""
    if after.task != "detoxify":
        return {}
    return {name: FLOOR for name in FLOORED if name in before.scores and name in after.scores}


def _constraint(drawn: Drawn, floor: float, asked: Mapping[str, float] | None) -> Constraint:
    found = constraint_of(drawn, floor)
    if found.ratio is None and asked is not None:
        raise ConfigError(f"constraint '{drawn.pair.metric.name}': {found.note}")
    return found


def _told_apart(before: Evaluation, after: Evaluation) -> list[str]:
    """The shares of toxic sentences by origin that both sides have."""
    return [name for name in after.scores if name.startswith(ORIGIN_PREFIX) and name in before.scores]


def _origins(draws: Mapping[str, Drawn]) -> dict[str, Shift]:
    """Where toxic sentences came from before and after, by the same draws as everything else."""
    found = {}
    for name, drawn in draws.items():
        if not name.startswith(ORIGIN_PREFIX) or drawn.point is None:
            continue
        (old, new), ci = drawn.point, None
        if drawn.resampled is not None:
            ci = bootstrap_interval(new - old, drawn.resampled[1] - drawn.resampled[0], units=drawn.units)
        found[name.removeprefix(ORIGIN_PREFIX)] = Shift(before=old, after=new, difference=new - old, ci=ci, n=drawn.n)
    return found


# --- all scores of a set of rows ---


@dataclass(frozen=True)
class _Trial:
    """Settings that all scores of a comparison share."""

    alpha: float
    seed: int
    resamples: int
    permutations: int
    leaked: int
    minimal: Mapping[str, float]

    def draw(
        self, before: Evaluation, after: Evaluation, metrics: Sequence[Metric], *, count_empty: bool = False
    ) -> dict[str, Drawn]:
        """Each score paired, resampled and swapped, all in the same way."""
        pairs = [pair_rows(before, after, metric, count_empty=count_empty) for metric in metrics]
        drawn = draw(pairs, seed=self.seed, resamples=self.resamples, permutations=self.permutations)
        return {metric.name: one for metric, one in zip(metrics, drawn, strict=True)}


def _entries(before: Evaluation, after: Evaluation, draws: Mapping[str, Drawn], trial: _Trial) -> dict[str, Entry]:
    """What is said about each score; all of them are one family of tests."""
    p_holm = _holm(draws)
    empty = sum(is_empty(row.completion) for row in after.rows) / max(1, len(after.rows))
    second = _second(before, after, draws, trial)
    p_second = _holm({**draws, **second})
    entries = {}
    for name, drawn in draws.items():
        left_out = empty if drawn.pair.metric.empty_as is not None else 0.0
        warning = after.scores[name].note or before.scores[name].note
        rule = Rule(trial.alpha, len(p_holm), trial.leaked, trial.minimal.get(name), left_out, warning)
        absent = after.scores[name].reason or before.scores[name].reason
        silence = second_verdict(second[name], p_second[name], rule) if name in second else None
        entries[name] = entry_of(drawn, p_holm.get(name), rule, absent, silence)
    return entries


def _holm(draws: Mapping[str, Drawn]) -> dict[str, float]:
    p = {name: drawn.p for name, drawn in draws.items() if drawn.p is not None}
    return dict(zip(p, holm(list(p.values())), strict=True))


def _second(before: Evaluation, after: Evaluation, draws: Mapping[str, Drawn], trial: _Trial) -> dict[str, Drawn]:
    """Scores that leave out empty completions, with these counted, where there are any and the scorer was there."""
    sides = [[is_empty(row.completion) for row in side.rows] for side in (before, after)]
    if not any(map(any, sides)):
        return {}
    chosen = [
        drawn.pair.metric
        for name, drawn in draws.items()
        if drawn.pair.metric.empty_as is not None
        and all(side.scores[name].n or all(blank) for side, blank in zip((before, after), sides, strict=True))
    ]
    return trial.draw(before, after, chosen, count_empty=True)


def _slices(
    before: Evaluation, after: Evaluation, metrics: Sequence[Metric], trial: _Trial
) -> dict[str, dict[str, Entry]]:
    """The same scores on the rows of each slice; what none of them has is left out. Each is a family of its own."""
    found = {}
    for name, ids in slices_of(after.rows).items():
        old, new = _only(before, ids), _only(after, ids)
        draws = {score: drawn for score, drawn in trial.draw(old, new, metrics).items() if drawn.n}
        if draws:
            found[name] = _entries(old, new, draws, trial)
    return found


def _only(evaluation: Evaluation, ids: Collection[str]) -> Evaluation:
    return evaluation.model_copy(update={"rows": tuple(row for row in evaluation.rows if row.id in ids)})


# --- in words ---


def describe(comparison: Comparison) -> tuple[str, ...]:
    """One line per score and constraint; p is Holm-adjusted over the scores of the comparison."""
    lines = []
    for name, entry in comparison.scores.items():
        lines.append(f"{name} {_line(entry)}")
        if silence := entry.empty_as_toxic:
            lines.append(f"{name} with empty completions as toxic: {silence.difference:+.3f}, {silence.verdict}")
    for name, c in comparison.constraints.items():
        if c.ratio is None or c.ci is None:
            lines.append(f"{name} kept: {c.held} ({c.note}), floor {c.floor:.1%}")
            continue
        low, high = c.ci
        lines.append(f"{name} kept {c.ratio:.1%} [{low:.1%}, {high:.1%}] of before, floor {c.floor:.1%}: {c.held}")
    lines += [_origin_line(name, shift) for name, shift in comparison.origins.items()]
    lines += jury_lines(comparison.jury)
    if comparison.slices:
        sizes = {name: max(entry.n for entry in entries.values()) for name, entries in comparison.slices.items()}
        shown = ", ".join(f"{name}: {n:,}" for name, n in sizes.items())
        lines.append(f"by slice, exploratory, in compare.json; dialogues in each: {shown}")
    return (*lines, *(f"allowed on request: {line}" for line in comparison.allowed))


def _origin_line(name: str, shift: Shift) -> str:
    origin, _, scorer = name.partition(":")
    ci = f" [{shift.ci[0]:+.1%}, {shift.ci[1]:+.1%}]" if shift.ci else ""
    line = f"toxic and {origin} ({scorer}): {shift.before:.1%} -> {shift.after:.1%} of {shift.n:,} dialogues"
    return f"{line}, {shift.difference:+.1%}{ci}"


def _line(entry: Entry) -> str:
    if entry.before is None or entry.after is None or entry.difference is None:
        return f"not scored ({entry.note})"
    places = 2 if max(abs(entry.before), abs(entry.after)) > 1 else 3
    parts = [f"{entry.before:.{places}f} -> {entry.after:.{places}f}", f"{entry.difference:+.{places}f}"]
    if entry.ci:
        parts[-1] += f" [{entry.ci[0]:+.{places}f}, {entry.ci[1]:+.{places}f}]"
    if entry.relative is not None:
        parts.append(_percent(entry.relative, entry.relative_ci))
    if entry.p_holm is not None:
        parts.append("p < 0.0001" if entry.p_holm < 0.0001 else f"p {entry.p_holm:.4f}")
    dropped = f" ({entry.n_dropped} not scored)" if entry.n_dropped else ""
    of = f" in {entry.n_dialogues:,} dialogues" if entry.n_dialogues is not None else ""
    line = ", ".join([*parts, f"n {entry.n:,}{of}{dropped}"]) + f": {_verdict_words(entry)}"
    return f"{line} ({entry.note})" if entry.note else line


def _percent(value: float, ci: tuple[float, float] | None) -> str:
    return f"{value:+.1%}" + (f" [{ci[0]:+.1%}, {ci[1]:+.1%}]" if ci else "")


def _verdict_words(entry: Entry) -> str:
    if entry.verdict != "no difference shown":
        return entry.verdict
    if entry.n_needed is None:
        return "no difference shown"
    digits = max(0, len(str(entry.n_needed)) - 2)
    return f"cannot tell, needs about {round(entry.n_needed, -digits):,} dialogues"


# --- gates ---

_GATE = re.compile(
    r"\s*(?P<name>[A-Za-z_][\w:./#-]*?)\s*(?P<op>>=|<=)\s*(?P<sign>[+-])(?P<size>\d+(?:\.\d+)?)\s*(?P<unit>%?)\s*"
)
_GATE_FORM = "write NAME>=+30% (relative), NAME>=+5 (absolute) or NAME<=-40%, sign included"


@dataclass(frozen=True)
class Gate:
    """One `--require`: a change that is demanded.

    `>=+X` and `<=-X` demand a change: the measured point must reach X and the whole 95 % interval must lie on that side
    of 0. `>=-X` and `<=+X` set a limit: the whole interval must keep it. Below 30 dialogues no gate is met.
    """

    text: str
    name: str
    at_least: bool
    bound: float  # a fraction if relative
    relative: bool
    demands_change: bool

    def failure(self, entry: Entry) -> str | None:
        """What was measured instead, or None if the gate is met."""
        point = entry.relative if self.relative else entry.difference
        ci = entry.relative_ci if self.relative else entry.ci
        if point is None or ci is None:
            return f"{self.text}: not measured ({entry.note or 'before is 0, or too few dialogues'})"
        sign = 1 if self.at_least else -1
        low = sign * (ci[0] if self.at_least else ci[1])  # the end of the interval that is worst for the gate
        if self.demands_change:
            met, wanted = (
                sign * point >= sign * self.bound and low > 0,
                "the point must reach it and the interval exclude 0",
            )
        else:
            met, wanted = low >= sign * self.bound, "the whole interval must keep it"
        if met and entry.dialogues >= NO_VERDICT_BELOW:
            return None
        if met:
            wanted = f"gates need {NO_VERDICT_BELOW} dialogues"
        shown = _percent(point, ci) if self.relative else f"{point:+.3f} [{ci[0]:+.3f}, {ci[1]:+.3f}]"
        return f"{self.text}: not met: {shown}, n {entry.n:,}; {wanted}"


def parse_gates(requirements: Sequence[str]) -> list[Gate]:
    """The gates of `--require`.

    Raises:
        ConfigError: one line per gate that cannot be read.
    """
    gates, problems = [], []
    for text in requirements:
        match = _GATE.fullmatch(text)
        if match is None:
            problems.append(f"--require '{text}': not a gate; {_GATE_FORM}")
            continue
        at_least, relative = match["op"] == ">=", bool(match["unit"])
        bound = float(match["sign"] + match["size"]) / (100 if relative else 1)
        demands = (match["sign"] == "+") == at_least
        gates.append(Gate(text.strip(), match["name"], at_least, bound, relative, demands))
    if problems:
        raise ConfigError(problems)
    return gates


def check_requirements(comparison: Comparison, requirements: Sequence[str]) -> None:
    """Return if every gate is met.

    Args:
        comparison: what was measured.
        requirements: `rougeL>=+30%`, `bleu>=+5`, `toxicity_mean<=-40%`; see Gate.

    Raises:
        ConfigError: a gate that cannot be read, or whose score is not in the comparison.
        GateFailedError: one line per gate that is not met, with what was measured.
    """
    gates = parse_gates(requirements)
    known_scores([gate.name for gate in gates], list(comparison.scores))
    failures = [line for gate in gates if (line := gate.failure(comparison.scores[gate.name]))]
    if failures:
        raise GateFailedError("\n".join(failures))


# --- compare.json ---


def write_comparison(path: str | Path, comparison: Comparison) -> Path:
    """Write compare.json atomically; `path` is the file, or a folder that then gets a compare.json."""
    file = Path(path)
    file = file if file.suffix == ".json" else RunFolder(file).comparison
    write_text_atomic(file, to_json(comparison))
    return file


def read_comparison(path: str | Path) -> Comparison:
    """The Comparison in a file, or in a folder's compare.json.

    Raises:
        ConfigError: there is none.
        DataError: it does not follow the schema.
    """
    file = Path(path)
    file = RunFolder(file).comparison if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; make it with: dialtune compare BEFORE AFTER")
    try:
        return Comparison.model_validate_json(file.read_bytes())
    except ValidationError as error:
        places = [f"{file}: {'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()]
        raise DataError(places[:5]) from error
