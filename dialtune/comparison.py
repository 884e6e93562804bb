"""Two evaluations to a Comparison: refused when they are not alike, paired, corrected, allowed to say "cannot tell".

`compare` makes it, `describe` says it in words, `check_requirements` holds it against `--require` gates.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dialtune.errors import ConfigError, DataError, GateFailedError
from dialtune.metrics.base import Array, Metric
from dialtune.metrics.table import METRICS
from dialtune.pairing import Drawn, draw, family_of, known_scores, pair_rows, refuse_unlike
from dialtune.results import Comparison, Constraint, Effect, Entry, Evaluation, Method, Side, Verdict, to_json
from dialtune.runs import RunFolder, write_text_atomic
from dialtune.statistics import (
    ALPHA,
    EXACT_UNITS,
    PERMUTATIONS,
    RESAMPLES,
    bootstrap_interval,
    dz,
    holm,
    n_paired,
    shares,
    standard_error,
)

NO_VERDICT_BELOW = 30  # dialogues: intervals of fewer cover too little to be believed (evaluation.md, section 7)
NOTE_BELOW = 100
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
    alpha: float = ALPHA,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    metrics: Mapping[str, Metric] = METRICS,
) -> Comparison:
    """What changed from before to after, score by score, on the same dialogues.

    Args:
        before: the baseline.
        after: the candidate.
        seed: of resampling and randomisation.
        allow_decoding_change: compare although decoding differs, for decoding studies; written into the result.
        scores: the family to test, the fewer the more power; all directional ones, without the `_max` companions of
            scores that are there themselves.
        constraints: score name to floor of after / before, e.g. `{"relevance_dialogue": 0.98}`.
        minimal: score name to the smallest difference that matters, for `n_needed`; otherwise the observed one.
        alpha: of the Holm-adjusted tests.
        resamples: bootstrap draws.
        permutations: random assignments; 2**n if there are n <= 16 dialogues.
        metrics: where directions and formulas come from.

    Raises:
        NotComparableError: signatures, rows, data, template or decoding differ; one line per key.
        ConfigError: `scores`, `constraints` or `minimal` name a score that is not there.
    """
    constraints, minimal = constraints or {}, minimal or {}
    family = family_of(before, after, scores, constraints, metrics)
    known_scores([*minimal], family)
    names = list(dict.fromkeys([*family, *constraints]))
    allowed = refuse_unlike(before, after, names, allow_decoding_change)
    pairs = [pair_rows(before, after, metrics[name]) for name in names]
    draws = dict(zip(names, draw(pairs, seed=seed, resamples=resamples, permutations=permutations), strict=True))
    p = {name: p for name in family if (p := draws[name].p) is not None}
    p_holm = dict(zip(p, holm(list(p.values())), strict=True))
    leaked = max(_leaked(before), _leaked(after))
    rules = {name: Rule(alpha, len(p), leaked, minimal.get(name)) for name in family}
    units = len(pairs[0].columns) if pairs else 0
    trials = 2**units if units <= EXACT_UNITS else permutations
    return Comparison(
        before=_side(before),
        after=_side(after),
        data=after.data,
        decoding=after.decoding,
        method=Method(ci=_CI, resamples=resamples, test=_TEST, permutations=trials, alpha=alpha, seed=seed),
        scores={name: _entry(draws[name], p_holm.get(name), rules[name]) for name in family},
        constraints={name: _constraint(draws[name], floor) for name, floor in constraints.items()},
        allowed=allowed,
    )


def _side(evaluation: Evaluation) -> Side:
    return Side(model=evaluation.model, eval_sha256=hashlib.sha256(to_json(evaluation).encode()).hexdigest())


def _leaked(evaluation: Evaluation) -> int:
    """Evaluation rows that training has seen."""
    return sum((evaluation.data.leakage or {}).get(kind, 0) for kind in ("exact", "near"))


# --- one score ---


@dataclass(frozen=True)
class Rule:
    """What the verdict of one score depends on besides the score."""

    alpha: float
    family: int
    leaked: int
    minimal: float | None


def _entry(drawn: Drawn, p_holm: float | None, rule: Rule) -> Entry:
    metric = drawn.pair.metric
    direction = metric.direction
    assert direction is not None, metric.name
    common = {"direction": direction, "n": drawn.n, "n_dropped": drawn.pair.dropped}
    if drawn.point is None:
        blank = dict.fromkeys(("before", "after", "difference", "relative", "ci", "p", "p_holm", "effect"))
        return Entry(**blank, **common, verdict="no difference shown", note="no pair was scored on both sides")
    old, new = drawn.point
    difference = new - old
    ci = relative_ci = n_needed = None
    if drawn.resampled is not None:
        changes = drawn.resampled[1] - drawn.resampled[0]
        ci = bootstrap_interval(difference, changes, units=drawn.units)
        relative_ci = _relative_interval(drawn)
        n_needed = _n_needed(drawn, rule, difference)
    verdict, note = decide(difference, ci, p_holm, drawn.units, direction, rule)
    return Entry(
        before=old,
        after=new,
        difference=difference,
        relative=difference / abs(old) if old and metric.true_zero else None,
        ci=ci,
        relative_ci=relative_ci,
        p=drawn.p,
        p_holm=p_holm,
        effect=_effect(drawn.pair.differences, direction),
        verdict=verdict,
        n_needed=n_needed if verdict == "no difference shown" else None,
        note=note,
        **common,
    )


def decide(
    difference: float,
    ci: tuple[float, float] | None,
    p_holm: float | None,
    units: int,
    direction: Literal["higher", "lower"],
    rule: Rule,
) -> tuple[Verdict, str | None]:
    """The verdict and what to know about it (evaluation.md, section 7)."""
    if units < NO_VERDICT_BELOW:
        return "no difference shown", f"no verdict below {NO_VERDICT_BELOW} dialogues"
    note = f"fewer than {NOTE_BELOW} dialogues: read the interval with care" if units < NOTE_BELOW else None
    shown = p_holm is not None and p_holm < rule.alpha and ci is not None and (ci[0] > 0 or ci[1] < 0)
    if not shown:
        return "no difference shown", note
    if (difference > 0) != (direction == "higher"):
        return "worse", note
    if rule.leaked:
        return "no difference shown", f"withheld: {rule.leaked} of these rows are also in the training data"
    return "improved", note


def _n_needed(drawn: Drawn, rule: Rule, difference: float) -> int | None:
    """Dialogues that would show the minimal, or else the observed, difference at Holm's strictest level."""
    assert drawn.resampled is not None
    target = rule.minimal or abs(difference)
    sd = standard_error(drawn.resampled[1] - drawn.resampled[0], drawn.units) * math.sqrt(drawn.units)
    if sd == 0 or target == 0:
        return None
    needed = max(NO_VERDICT_BELOW, n_paired(sd, target, alpha=rule.alpha / max(1, rule.family)))
    return needed if needed < 10**9 else None  # a difference of rounding size needs no number


def _ratios(drawn: Drawn) -> Array | None:
    """Resampled after / before (R,); None if a resampled baseline is 0 or below."""
    if drawn.resampled is None or not drawn.pair.metric.true_zero or drawn.resampled[0].min() <= 0:
        return None
    ratios: Array = drawn.resampled[1] / drawn.resampled[0]
    return ratios


def _relative_interval(drawn: Drawn) -> tuple[float, float] | None:
    """Interval of difference / before from the same draws as the difference's own."""
    ratios = _ratios(drawn)
    if ratios is None or drawn.point is None:
        return None
    return bootstrap_interval(drawn.point[1] / drawn.point[0] - 1, ratios - 1, units=drawn.units)


def _effect(differences: Array | None, direction: Literal["higher", "lower"]) -> Effect | None:
    if differences is None:
        return None  # a corpus score has no difference per dialogue
    better, tied, worse = shares(differences, higher_is_better=direction == "higher")
    return Effect(dz=dz(differences), better=better, tied=tied, worse=worse)


def _constraint(drawn: Drawn, floor: float) -> Constraint:
    """Is after at least `floor` times before? Yes if the whole interval is, no if none of it is."""
    ratios = _ratios(drawn)
    if ratios is None or drawn.point is None:
        name = drawn.pair.metric.name
        raise ConfigError(f"constraint '{name}': no ratio; before must be above 0 on 2 dialogues or more")
    ratio = drawn.point[1] / drawn.point[0]
    low, high = bootstrap_interval(ratio, ratios, units=drawn.units)
    held: Literal["yes", "no", "not shown"] = "yes" if low >= floor else "no" if high < floor else "not shown"
    return Constraint(floor=floor, ratio=ratio, ci=(low, high), held=held)


# --- in words ---


def describe(comparison: Comparison) -> tuple[str, ...]:
    """One line per score and constraint; p is Holm-adjusted over the scores of the comparison."""
    lines = [f"{name} {_line(entry)}" for name, entry in comparison.scores.items()]
    for name, c in comparison.constraints.items():
        low, high = c.ci
        lines.append(f"{name} kept {c.ratio:.1%} [{low:.1%}, {high:.1%}] of before, floor {c.floor:.1%}: {c.held}")
    return (*lines, *(f"allowed on request: {line}" for line in comparison.allowed))


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
    line = ", ".join([*parts, f"n {entry.n:,}{dropped}"]) + f": {_verdict_words(entry)}"
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
    r"\s*(?P<name>[A-Za-z_]\w*)\s*(?P<op>>=|<=)\s*(?P<sign>[+-])(?P<size>\d+(?:\.\d+)?)\s*(?P<unit>%?)\s*"
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
        if met and entry.n >= NO_VERDICT_BELOW:
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
