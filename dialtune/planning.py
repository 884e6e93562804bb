"""How many dialogues a claim needs, from what a pilot says about variance.

A pilot is a comparison, two evaluations of the same rows, or one evaluation and an assumed correlation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dialtune.comparison import compare
from dialtune.errors import ConfigError
from dialtune.metrics.table import look_up
from dialtune.pairing import known_scores
from dialtune.results import Comparison, Entry, Evaluation
from dialtune.statistics import ALPHA, n_mcnemar, n_paired, sd_of_difference, smallest_visible, t_quantile
from dialtune.verdicts import NO_VERDICT_BELOW

POWER = 0.8
RHO = 0.5  # correlation of the two sides' scores on a dialogue, where one side alone is known
_CLAIM = re.compile(r"\s*(?P<name>[A-Za-z_][\w:./#-]*?)\s*(?P<size>[+-]\s*\d+(?:\.\d+)?)\s*(?P<unit>%?)\s*")
_FORM = "write NAME -20% (relative) or NAME +2 (in the score's own unit), sign included"


@dataclass(frozen=True, slots=True)
class Claim:
    """A change to be shown; `change` is a fraction if relative."""

    text: str
    name: str
    change: float
    relative: bool


@dataclass(frozen=True, slots=True)
class Spread:
    """What a pilot says about one score: its value, and how differences per dialogue vary.

    A rate (0 or 1 per dialogue) also has the share of dialogues that differ between the sides, or else a correlation.
    """

    value: float
    n: int
    sd: float
    rate: bool
    source: str
    discordant: float | None = None
    rho: float = RHO


@dataclass(frozen=True, slots=True)
class Plan:
    """The dialogues that show one score's change, alone and as one of `family` scores under Holm's first step."""

    name: str
    claim: Claim
    before: float
    after: float
    n: int
    n_family: int
    family: int
    n_pilot: int
    visible: float  # smallest difference that the pilot's own size shows, in the score's unit
    source: str
    power: float


def parse_claim(text: str) -> Claim:
    """The claim in words such as `toxicity -20%` or `rougeL +2`.

    Raises:
        ConfigError: it cannot be read, or claims no change.

    >>> parse_claim("toxicity -20%").change
    -0.2
    """
    found = _CLAIM.fullmatch(text)
    size = float(found["size"].replace(" ", "")) if found else 0.0
    if found is None or size == 0:
        raise ConfigError(f"--plan '{text}': {'no change to show' if found else 'not a claim'}; {_FORM}")
    relative = bool(found["unit"])
    return Claim(text.strip(), found["name"], size / 100 if relative else size, relative)


def plan(
    claim: Claim,
    pilot: Comparison | Evaluation | tuple[Evaluation, Evaluation],
    *,
    rho: float = RHO,
    alpha: float = ALPHA,
    power: float = POWER,
) -> tuple[Plan, ...]:
    """One Plan for each score of the pilot that the claim names: `toxicity` names `toxicity_mean:…` and all its kin.

    Args:
        claim: what is to be shown.
        pilot: what variance is taken from; of two evaluations the first is before.
        rho: correlation of before and after over dialogues, -1 to 1; used with one evaluation only.
        alpha: two-sided.
        power: chance to show the change if it is true, between 0 and 1.

    Raises:
        ConfigError: the pilot has no such score, or the change is not possible.
        NotComparableError: the two evaluations are not alike.
    """
    if isinstance(pilot, tuple):
        pilot = compare(*pilot, permutations=1000)  # only variances are read
    spreads = _of_comparison(pilot) if isinstance(pilot, Comparison) else _of_evaluation(pilot, rho)
    names = _named(claim.name, spreads)
    return tuple(_plan(claim, name, spreads[name], len(spreads), alpha, power) for name in names)


def _named(asked: str, spreads: Mapping[str, Spread]) -> list[str]:
    kin = [name for name in spreads if name.startswith((f"{asked}_", f"{asked}:"))]
    if asked in spreads or not kin:
        known_scores([asked], list(spreads))
        return [asked]
    return kin


def _of_comparison(comparison: Comparison) -> dict[str, Spread]:
    return {name: spread for name, entry in comparison.scores.items() if (spread := _of_entry(entry))}


def _of_entry(entry: Entry) -> Spread | None:
    """From the paired differences: their sd by dz, or by the interval for a score of the whole corpus."""
    if entry.before is None or entry.difference is None or entry.ci is None:
        return None
    n = entry.dialogues
    if entry.effect is not None and entry.effect.dz and n == entry.n:
        sd = abs(entry.difference / entry.effect.dz)
    else:  # a corpus score, or several pairs of a dialogue, which is what counts
        sd = _sd_from(entry.ci, n)
    differing = _differing(entry)
    source = f"sd {sd:.3g} of {n:,} paired differences"
    if differing is not None:
        source = f"{differing:.1%} of {n:,} dialogues that differ between the sides"
    return Spread(entry.before, n, sd, differing is not None, source, differing)


def _differing(entry: Entry) -> float | None:
    """The share of dialogues that differ, if all differences are -1, 0 or 1; None for any other score.

    Then the mean is the difference of the two shares, and mean and shares give the sd: m2 = u + w, var = m2 - mean^2.
    """
    effect = entry.effect
    if effect is None or effect.dz is None or entry.difference is None or entry.n < 2 or entry.dialogues != entry.n:
        return None
    both, mean = effect.better + effect.worse, entry.difference
    sd = math.sqrt(max(0.0, both - mean**2) * entry.n / (entry.n - 1))
    is_rate = math.isclose(abs(effect.better - effect.worse), abs(mean), abs_tol=1e-9)
    is_rate = is_rate and math.isclose(effect.dz * sd, mean, rel_tol=1e-6, abs_tol=1e-9)
    return both if is_rate else None


def _of_evaluation(evaluation: Evaluation, rho: float) -> dict[str, Spread]:
    """From one side: the other one is taken to vary as much, and the two to correlate by `rho`."""
    if not -1 <= rho < 1:
        raise ConfigError(f"--rho: got {rho:g}; a correlation of two runs is from -1 to below 1, and 0.5 a usual one")
    found = {}
    for name, score in evaluation.scores.items():
        metric = look_up(name)
        if score.value is None or score.ci is None or metric is None or metric.direction is None:
            continue
        rows = [row for row in evaluation.rows if row.scores.get(name) is not None]
        values = [row.scores[name] or 0.0 for row in rows]
        n = len({row.unit or row.id for row in rows}) or score.n
        alone = metric.row_wise and metric.percent is None and n == score.n  # each row a dialogue with a value
        sd = float(np.std(values, ddof=1)) if alone else _sd_from(score.ci, n)
        source = f"sd {sd:.3g} of {n:,} dialogues, assumed on both sides with correlation {rho:g}"
        rate = alone and set(values) <= {0.0, 1.0}
        found[name] = Spread(score.value, n, sd_of_difference(sd, sd, rho), rate, source, rho=rho)
    return found


def _sd_from(ci: tuple[float, float], n: int) -> float:
    """The sd per dialogue that an interval of a mean over n of them implies."""
    return (ci[1] - ci[0]) / 2 / t_quantile(0.95, max(1, n - 1)) * math.sqrt(n)


def _plan(claim: Claim, name: str, spread: Spread, family: int, alpha: float, power: float) -> Plan:
    delta = _delta(claim, name, spread)
    level = alpha / family

    def needed(alpha: float) -> int:
        if spread.rate:
            return n_mcnemar(*_shares(spread, delta), alpha=alpha, power=power)
        return n_paired(spread.sd, delta, alpha=alpha, power=power)

    return Plan(
        name=name,
        claim=claim,
        before=spread.value,
        after=spread.value + delta,
        n=needed(alpha),
        n_family=needed(level),
        family=family,
        n_pilot=spread.n,
        visible=smallest_visible(spread.sd, spread.n, alpha=alpha, power=power),
        source=spread.source,
        power=power,
    )


def _delta(claim: Claim, name: str, spread: Spread) -> float:
    """The change in the score's own unit, refused where it cannot be."""
    metric = look_up(name)
    has_zero = metric is None or metric.true_zero
    if claim.relative and (not has_zero or spread.value == 0):
        why = "is 0 in the pilot" if has_zero else "has no true zero"
        raise ConfigError(f"--plan '{claim.text}': {name} {why}, so a share of it means nothing; claim {name} +0.01")
    delta = claim.change * abs(spread.value) if claim.relative else claim.change
    after = spread.value + delta
    if (has_zero and after < -1e-12) or (spread.rate and after > 1 + 1e-12):
        raise ConfigError(
            f"--plan '{claim.text}': {name} is {spread.value:.4g} in the pilot, so it would become {after:.4g}, "
            f"outside its scale; claim less"
        )
    return delta


def _shares(spread: Spread, delta: float) -> tuple[float, float]:
    """Shares of dialogues that are 1 on one side only, so that their difference is the claimed one.

    Where a pilot was paired, as many dialogues differ as there; else the two sides correlate by `rho` (phi).
    """
    size = abs(delta)
    if spread.discordant is not None:
        both = max(spread.discordant, size)
    else:
        p, q = spread.value, min(1.0, max(0.0, spread.value + delta))
        together = p * q + spread.rho * math.sqrt(p * (1 - p) * q * (1 - q))
        both = max(p + q - 2 * min(together, p, q), size)
    return (both + size) / 2, (both - size) / 2


def describe_plans(plans: tuple[Plan, ...]) -> tuple[str, ...]:
    """What `dialtune evaluate --plan` prints: three lines a score."""
    lines = []
    for found in plans:
        places = 2 if max(abs(found.before), abs(found.after)) > 1 else 4
        asked = f"{100 * found.claim.change:+g}%" if found.claim.relative else f"{found.claim.change:+g}"
        change = f"{found.before:.{places}f} -> {found.after:.{places}f} ({asked})"
        least = f"; no verdict is given below {NO_VERDICT_BELOW}" if found.n < NO_VERDICT_BELOW else ""
        lines.append(f"{found.name} {change}: {found.n:,} dialogues{least}")
        share = f" ({found.visible / abs(found.before):.0%} of it)" if found.before else ""
        lines.append(
            f"  {found.n_family:,} as one of {found.family} scores compared (Holm); "
            f"the pilot's {found.n_pilot:,} show a change of {found.visible:.{places}f}{share}"
        )
        lines.append(f"  power {found.power:g}, two-sided alpha {ALPHA:g}; from {found.source}")
    return tuple(lines)
