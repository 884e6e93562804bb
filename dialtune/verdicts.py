"""One score drawn and tested to what is said about it: entry, verdict, constraint, and what silence would change."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from dialtune.metrics.base import Array
from dialtune.pairing import Drawn
from dialtune.results import Constraint, Effect, Entry, SecondVerdict, Verdict
from dialtune.statistics import bootstrap_interval, dz, n_paired, shares, standard_error

NO_VERDICT_BELOW = 30  # dialogues: intervals of fewer cover too little to be believed
NOTE_BELOW = 100
MAX_EMPTY = 0.01  # a larger share of empty completions withholds `improved` from scores that exclude them


@dataclass(frozen=True)
class Rule:
    """What the verdict of one score depends on besides the score."""

    alpha: float
    family: int
    leaked: int
    minimal: float | None
    empty: float = 0.0  # share of the candidate's completions that are empty and that the score leaves out
    warning: str | None = None  # what a reader of the score must know


def entry_of(
    drawn: Drawn, p_holm: float | None, rule: Rule, absent: str | None = None, silence: SecondVerdict | None = None
) -> Entry:
    """What is said about one score; `absent` is why it was not scored, if it was not; `silence`, its second verdict."""
    metric = drawn.pair.metric
    direction = metric.direction
    assert direction is not None, metric.name
    common = {"direction": direction, "n": drawn.n, "n_dropped": drawn.pair.dropped, "empty_as_toxic": silence}
    common["n_dialogues"] = drawn.units if drawn.units != drawn.n else None
    if drawn.point is None:
        blank = dict.fromkeys(("before", "after", "difference", "relative", "ci", "p", "p_holm", "effect"))
        why = absent or "no pair was scored on both sides"
        return Entry(**blank, **common, verdict="no difference shown", note=why)
    old, new = drawn.point
    difference = new - old
    ci = relative_ci = n_needed = None
    if drawn.resampled is not None:
        changes = drawn.resampled[1] - drawn.resampled[0]
        ci = bootstrap_interval(difference, changes, units=drawn.units)
        relative_ci = _relative_interval(drawn)
        n_needed = _n_needed(drawn, rule, difference)
    verdict, note = decide(difference, ci, p_holm, drawn.units, direction, rule)
    if rule.warning:
        note = f"{note}; {rule.warning}" if note else rule.warning
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
    """The verdict and what to know about it."""
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
    if rule.empty > MAX_EMPTY:
        share = f"{rule.empty:.1%} of the completions are empty, which this score leaves out"
        return "no difference shown", f"withheld: {share}; at most {MAX_EMPTY:.0%} may be"
    return "improved", note


def second_verdict(drawn: Drawn, p_holm: float, rule: Rule) -> SecondVerdict:
    """The same from a pair in which empty completions count; nothing is withheld for them here."""
    assert drawn.point is not None
    assert drawn.p is not None
    assert drawn.pair.metric.direction is not None
    old, new = drawn.point
    ci = None
    if drawn.resampled is not None:
        ci = bootstrap_interval(new - old, drawn.resampled[1] - drawn.resampled[0], units=drawn.units)
    verdict, _ = decide(new - old, ci, p_holm, drawn.units, drawn.pair.metric.direction, replace(rule, empty=0.0))
    return SecondVerdict(
        before=old, after=new, difference=new - old, ci=ci, p=drawn.p, p_holm=p_holm, n=drawn.n, verdict=verdict
    )


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
    ratio, log = drawn.point[1] / drawn.point[0], drawn.pair.metric.log_scale
    low, high = bootstrap_interval(ratio, ratios, units=drawn.units, log=log)
    return low - 1, high - 1


def _effect(differences: Array | None, direction: Literal["higher", "lower"]) -> Effect | None:
    if differences is None:
        return None  # a corpus score has no difference per dialogue
    better, tied, worse = shares(differences, higher_is_better=direction == "higher")
    return Effect(dz=dz(differences), better=better, tied=tied, worse=worse)


def constraint_of(drawn: Drawn, floor: float) -> Constraint:
    """Is after at least `floor` times before? Yes if the whole interval is, no if none of it is."""
    ratios = _ratios(drawn)
    if ratios is None or drawn.point is None:
        note = "no ratio; before must be above 0 on 2 dialogues or more"
        return Constraint(floor=floor, ratio=None, ci=None, held="not shown", note=note)
    ratio = drawn.point[1] / drawn.point[0]
    low, high = bootstrap_interval(ratio, ratios, units=drawn.units)
    held: Literal["yes", "no", "not shown"] = "yes" if low >= floor else "no" if high < floor else "not shown"
    return Constraint(floor=floor, ratio=ratio, ci=(low, high), held=held)
