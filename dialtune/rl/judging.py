"""What completions earn under the constraint: rewards in units of the start policy, qualities, multipliers, the log.

One object between the rewards and the loop. It is measured once on the start policy (`calibrate`), asked for every
rollout, told about each (`update`), and its whole state is JSON.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dialtune.config.rl_schema import RLConfig
from dialtune.errors import ConfigError, TrainingError
from dialtune.metrics.base import is_empty
from dialtune.rewards.base import Reward, score_safely
from dialtune.rewards.composite import CompositeReward
from dialtune.rewards.probes import cheap_texts, run_probes
from dialtune.rewards.reply_probes import run_reply_probes
from dialtune.rewards.table import find_reward
from dialtune.rewards.toxicity import Civility
from dialtune.rl.advantages import equal_rewards
from dialtune.rl.constraint import Constraint, length_bounds, prompt_shifts, quality_floor, ratio_interval
from dialtune.rl.doctor import Check
from dialtune.rl.rollouts import Judged, Rollout
from dialtune.scorers.base import ToxicityScorer, probabilities, sigmoid
from dialtune.types import Example, FinishReason

Array = NDArray[np.float64]

MAX_BAD_SHARE = 0.05  # of the rewards of the last BAD_WINDOW completions
BAD_WINDOW = 256
CHEAP_PROMPTS = 16  # on which texts that can be written without reading are tried
TOKENS = "tokens"  # the mean length in the log; `length` is a reward

# Columns of metrics.jsonl that no reward may take; the stop rules read some of them.
COLUMNS = frozenset({
    "step", "rollout", "loss", "learning_rate", "grad_norm", "beta", "skipped", "n_skipped", "kl", "kl_k3", "abs_kl",
    "kl_per_sequence", "entropy", "sample_score_gap", "ratio_mean", "ratio_min", "ratio_max", "clip_fraction",
    "advantage_std", "value_loss", "explained_variance", "reward", "reward_std", "frac_zero_std", "tokens",
    "tokens_p95", "truncated", "distinct_2", "identical", "bad_rewards", "empty", "alarm", "toxic", "problems",
    "tokens_per_s",
})  # fmt: skip


class Judging:
    """Rewards with weights, the qualities that must stay, and a scorer that only watches."""

    def __init__(
        self, rewards: Mapping[str, tuple[Reward, float]], config: RLConfig, *, alarm: ToxicityScorer | None = None
    ) -> None:
        if taken := COLUMNS & set(rewards):
            raise ConfigError(
                f"reward '{min(taken)}': metrics.jsonl has a column of that name; give the reward another (name=...)"
            )
        self.rewards, self.config, self.alarm = dict(rewards), config, alarm
        self.composite = CompositeReward(tuple(self.rewards.values()))
        names = config.constraint.qualities if config.constraint else ()
        self.qualities: dict[str, Reward] = {name: find_reward(name) for name in names}
        self.constraint = Constraint(())
        self.start: dict[str, float] = {}  # means of the start policy, by part
        self.shifts: dict[str, dict[str, float]] = {}  # `prompt_shifts` by quality and example
        self.sample: tuple[list[Example], list[str]] = ([], [])  # dialogues and what the start policy said of them
        self.bad: list[int] = []  # was each of the last completions' reward unusable?

    def calibrate(
        self, examples: Sequence[Example], texts: Sequence[str], lengths: Sequence[int], group: int = 1
    ) -> None:
        """Fix scales and bounds by completions of the start policy, sampled as rollouts are.

        Args:
            examples: (B,) whose row each is.
            texts: (B,) the completions, those of a prompt side by side.
            lengths: (B,) their tokens.
            group: completions of each prompt.
        Raises:
            TrainingError: a quality is too low to be held, or nothing was scored.
        """
        self.composite = CompositeReward(tuple(self.rewards.values()))
        measured = self.composite.measure(examples, texts)
        self.composite = self.composite.calibrated(measured)
        parts = dict(measured.parts) | self._qualities(examples, texts)
        self.start = {name: float(np.nanmean(values)) for name, values in parts.items()} | {
            TOKENS: float(np.mean(lengths))
        }
        self.sample = list(examples[::group][:CHEAP_PROMPTS]), list(texts[::group][:CHEAP_PROMPTS])
        settings = self.config.constraint
        if settings is None:
            return
        multipliers = [
            quality_floor(name, parts[name], delta=settings.delta, value=settings.multiplier) for name in self.qualities
        ]
        if settings.length is not None:
            least, most = length_bounds(np.asarray(lengths, dtype=np.float64), settings.length, value=0.0)
            # A shorter text is a civil one more easily, so this bound weighs from the start; the other waits until it
            # is passed, for an idle weight dilutes the rest of the reward.
            multipliers += [replace(least, value=settings.multiplier), most]
        self.constraint = Constraint(
            tuple(multipliers), settings.learning_rate, settings.max_multiplier, settings.memory, settings.proportional
        )
        held = self._constrained({name: parts[name] for name in self.qualities}, np.asarray(lengths, dtype=np.float64))
        names = [example.id for example in examples[::group]]
        self.shifts = {
            quality: dict(zip(names, prompt_shifts(values.reshape(-1, group)).tolist(), strict=True))
            for quality, values in held.items()
        }

    def __call__(
        self,
        examples: Sequence[Example],
        texts: Sequence[str],
        lengths: torch.Tensor,
        finish: Sequence[FinishReason],
    ) -> Judged:
        """The composite reward of a rollout's completions.

        Raises:
            TrainingError: too many rewards of late could not be used.
        """
        measured = self.composite.measure(examples, texts)
        qualities = self._qualities(examples, texts)
        tokens = lengths.numpy().astype(np.float64)
        cut = np.array([reason == "length" for reason in finish], dtype=np.float64)
        total = self.constraint.combine(
            measured.total,
            1.0,
            self._constrained(qualities, tokens),
            empty=measured.empty,
            penalties=cut if self.config.truncation == "penalise" else None,
        )
        valid = measured.valid & np.isfinite(total)
        self._count_bad(~valid, measured.problems)
        parts = dict(measured.parts) | qualities | {"empty": measured.empty.astype(np.float64)}
        if self.alarm is not None:
            parts["alarm"] = probabilities(self.alarm, texts)
        return Judged(
            rewards=torch.tensor(np.where(valid, total, 0.0), dtype=torch.float32),
            valid=torch.tensor(valid),
            parts={name: torch.tensor(values, dtype=torch.float32) for name, values in parts.items()},
            problems=measured.problems,
        )

    def update(self, rollout: Rollout) -> None:
        """Move the multipliers; once per rollout, after the policy's last step on it.

        Values of a prompt that measured the start policy are counted from what it was there.
        """
        qualities = {name: rollout.parts[name].cpu().numpy().astype(np.float64) for name in self.qualities}
        held = self._constrained(qualities, rollout.lengths.cpu().numpy().astype(np.float64))
        for name, shifts in self.shifts.items():
            held[name] = held[name] - np.repeat([shifts.get(i, 0.0) for i in rollout.example_ids], rollout.group)
        self.constraint = self.constraint.update(held, rollout.group, rollout.valid.cpu().numpy())

    def infeasible(self) -> str | None:
        """Why a constraint cannot be met; None while it may be."""
        return self.constraint.infeasible()

    def measure(self, examples: Sequence[Example], texts: Sequence[str]) -> dict[str, Array]:
        """Raw parts and qualities by name, (N,) each; their weighted sum as `reward`, toxic probabilities as
        `toxic:NAME`.
        """
        measured = self.composite.measure(examples, texts)
        found = dict(measured.parts) | self._qualities(examples, texts) | {"reward": measured.total}
        for name, (reward, _) in self.rewards.items():
            if isinstance(reward, Civility):
                found[f"toxic:{name}"] = sigmoid(-measured.parts[name])
        if self.alarm is not None:
            found["alarm"] = probabilities(self.alarm, texts)
        return found

    def verdict(
        self, before: Mapping[str, Array], after: Mapping[str, Array], unit: Sequence[int] | None = None
    ) -> dict[str, Any]:
        """Validation scores of a checkpoint against the start policy, as `eval_...`; see `trainers.rl.Evaluate`.

        `eval_objective` is what the best checkpoint has least of: the mean toxic probability; or minus the mean reward,
        where no toxicity is rewarded and for replies, of which relevance is asked first. `eval_acceptable`: every
        quality's ratio to the start has its 95 % interval above 1 - delta, and the mean length is inside its bounds. A
        mean of nothing is None.

        Args:
            before: what `measure` says of the start policy, (N,) each.
            after: the same of a checkpoint.
            unit: (N,) integers, the same for rows of one dialogue; None: each row is one.
        """
        settings = self.config.constraint
        own = [name for name, (reward, _) in self.rewards.items() if not isinstance(reward, Civility)]
        row: dict[str, Any] = {f"eval_{name}": _mean(after[name]) for name in own}
        toxic = [after[name] for name in after if name.startswith("toxic:")]
        row["eval_reward"] = _mean(after["reward"])
        row["eval_objective"] = None if row["eval_reward"] is None else -row["eval_reward"]
        if toxic:
            row["eval_toxicity"] = _mean(np.stack(toxic))
        if toxic and self.config.task != "respond":
            row["eval_objective"] = row["eval_toxicity"]
        if toxic and "alarm" in after:
            row |= {"toxicity:trained": row["eval_toxicity"], "toxicity:alarm": _mean(after["alarm"])}
        for name in ("alarm", TOKENS, "empty", *self.qualities):
            if name in after:
                row[f"eval_{name}"] = _mean(after[name])
        acceptable = row["eval_empty"] <= 0.01
        for name in self.qualities:
            both = ~np.isnan(before[name]) & ~np.isnan(after[name])
            units = None if unit is None else np.asarray(unit)[both]
            interval = ratio_interval(before[name][both], after[name][both], unit=units) if both.any() else None
            old, new = _mean(before[name][both]), _mean(after[name][both])
            row[f"eval_{name}_ratio"] = new / old if old and new is not None else None
            row[f"eval_{name}_ratio_low"] = None if interval is None else interval[0]
            assert settings is not None
            acceptable &= interval is not None and interval[0] >= 1 - settings.delta
        if settings is not None and settings.length is not None:
            share = row["eval_tokens"] / max(1e-9, float(before[TOKENS].mean()))
            acceptable &= settings.length[0] <= share <= settings.length[1]
        return row | {"eval_acceptable": bool(acceptable)}

    def record(self, rollout: Rollout) -> dict[str, Any]:
        """What the log says about a rollout's completions."""
        rewards = rollout.rewards[rollout.valid]
        lengths, n = rollout.lengths.float(), len(rollout.texts)
        said = Counter(zip((i for i in rollout.example_ids for _ in range(rollout.group)), rollout.texts, strict=True))
        bigrams = [pair for text in rollout.texts for pair in itertools.pairwise(text.split())]
        flat = equal_rewards(rollout.rewards, rollout.group, rollout.valid) if rollout.group > 1 else None
        found: dict[str, Any] = {
            "reward": float(rewards.mean()) if len(rewards) else None,
            "reward_std": float(rewards.std(correction=0)) if len(rewards) else None,
            "frac_zero_std": None if flat is None else float(flat.float().mean()),
            TOKENS: float(lengths.mean()),
            "tokens_p95": float(lengths.quantile(0.95)),
            "truncated": sum(reason == "length" for reason in rollout.finish) / n,
            "distinct_2": len(set(bigrams)) / len(bigrams) if bigrams else None,
            "identical": sum(count for count in said.values() if count > 1) / n,
            "bad_rewards": float((~rollout.valid).float().mean()),
        }
        parts = {name: part[torch.isfinite(part)] for name, part in rollout.parts.items()}
        found |= {name: float(kept.mean()) if len(kept) else None for name, kept in parts.items()}
        civil = [parts[name] for name, (r, _) in self.rewards.items() if isinstance(r, Civility) and len(parts[name])]
        if civil:
            found["toxic"] = float(torch.stack([torch.sigmoid(-part).mean() for part in civil]).mean())
        if rollout.problems:
            found["problems"] = list(rollout.problems)
        return found | self.constraint.record()

    def checks(self, examples: Sequence[Example] = ()) -> list[Check]:
        """D18 and D21 for every reward: steady, finite, the right way up; D22 and D24 once `calibrate` has passed.

        `examples` are rows of the run, for rewards that read their columns.
        """
        found = []
        for name, (reward, _) in self.rewards.items():
            report = run_probes(reward, examples=examples)
            numbers = report.numbers
            unsteady = [line for line in report.failures if "not deterministic" in line]
            wrong = [line for line in report.failures if line not in unsteady]
            if not report.failures and getattr(reward, "judges", "toxicity") == "reply":
                report = run_reply_probes(reward)
                wrong = list(report.failures)
            wrong += [report.hint] if wrong and report.hint else []
            found += [
                Check("D18", f"reward {name} gives one answer, in any order", "; ".join(unsteady) or None),
                Check("D21", f"reward {name} ranks probes rightly{_marks(numbers)}", "; ".join(wrong) or None),
            ]
        if self.qualities:
            means = ", ".join(f"{name} {self.start[name]:.3f}" for name in self.qualities if name in self.start)
            found.append(Check("D22", f"qualities of the start policy can be held: {means}"))
        if self.sample[0] and not any(check.problem for check in found):
            found.append(Check("D24", "what can be written without reading earns less", advice=self._cheap()))
        return found

    def _cheap(self) -> str | None:
        """The best paid of the texts that no constraint would notice, if it earns more than the start policy does."""
        rows, own = self.sample
        cheap = cheap_texts(rows)
        every = self.composite.measure(rows * len(cheap), [text for texts in cheap.values() for text in texts])
        means = [_mean(total) for total in every.total.reshape(len(cheap), -1)]
        earned = {name: mean for name, mean in zip(cheap, means, strict=True) if mean is not None}
        totals = self.composite.measure(rows, own).total
        middle = float(np.nanmedian(totals)) if not np.isnan(totals).all() else math.inf
        for name in sorted(earned, key=earned.__getitem__, reverse=True):
            if earned[name] > middle and not self._noticed(rows, cheap[name], own):
                return (
                    f"{name} earns {earned[name]:.2f}, the median completion of the start policy {middle:.2f}, and no "
                    "constraint is against it: a policy may learn that. Add relevance to rewards or qualities"
                )
        return None

    def _noticed(self, rows: Sequence[Example], texts: Sequence[str], own: Sequence[str]) -> bool:
        """Whether texts break a constraint; lengths by words, counted in the start policy's tokens a word."""
        words = np.array([len(text.split()) for text in texts], dtype=np.float64)
        tokens = words * self.start[TOKENS] / max(1.0, float(np.mean([len(text.split()) for text in own])))
        held = self._constrained(self._qualities(rows, texts), tokens)
        return any(
            float(np.nanmean(multiplier.slack(held[multiplier.name]))) < 0
            for multiplier in self.constraint.multipliers
            if not np.isnan(held[multiplier.name]).all()
        )

    def describe(self) -> dict[str, Any]:
        """For run.json: what is rewarded, held and watched."""
        return {
            "rewards": {name: weight for name, (_, weight) in self.rewards.items()},
            "qualities": list(self.qualities),
            "alarm": None if self.alarm is None else self.config.alarm_scorer or self.alarm.name,
        }

    def to_dict(self) -> dict[str, Any]:
        """The whole state as JSON values."""
        return {
            "scales": self.composite.state(),
            "constraint": self.constraint.to_dict(),
            "start": self.start,
            "shifts": self.shifts,
            "bad": self.bad,
        }

    def load_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `to_dict()`."""
        self.composite = self.composite.restored(state["scales"])
        self.start, self.bad = dict(state["start"]), list(state["bad"])
        self.shifts = dict(state.get("shifts", {}))  # not measured by older versions
        self.constraint = self._as_configured(Constraint.from_dict(state["constraint"]))

    def _as_configured(self, saved: Constraint) -> Constraint:
        """A saved constraint under the recipe, which a forced resume may have changed on a stop rule's advice."""
        settings = self.config.constraint
        if settings is None:
            return saved
        bounds = {name: (1 - settings.delta) * self.start[name] for name in self.qualities if name in self.start}
        if settings.length is not None:
            bounds |= {
                name: share * self.start[TOKENS]
                for name, share in zip(("length_min", "length_max"), settings.length, strict=True)
            }
        moved = [
            one if math.isclose(one.tau, bounds.get(one.name, one.tau)) else replace(one, tau=bounds[one.name])
            for one in saved.multipliers
        ]
        return Constraint(
            tuple(moved), settings.learning_rate, settings.max_multiplier, settings.memory, settings.proportional
        )

    def _qualities(self, examples: Sequence[Example], texts: Sequence[str]) -> dict[str, Array]:
        """Constrained qualities by name, (N,) in [0,1]; 0 for empty text, NaN where one does not apply."""
        empty = np.array([is_empty(text) for text in texts])
        found = {name: _values(reward, examples, texts) for name, reward in self.qualities.items()}
        return {name: np.where(empty & ~np.isnan(values), 0.0, values) for name, values in found.items()}

    def _constrained(self, qualities: Mapping[str, Array], tokens: Array) -> dict[str, Array]:
        found = dict(qualities)
        if self.config.constraint is not None and self.config.constraint.length is not None:
            found |= {"length_min": tokens, "length_max": tokens}
        return found

    def _count_bad(self, bad: NDArray[np.bool_], problems: Sequence[str]) -> None:
        window = [*self.bad, *(int(flag) for flag in bad)][-BAD_WINDOW:]
        if sum(window) > math.ceil(MAX_BAD_SHARE * len(window)):  # not kept: a resume asks the mended reward again
            why = problems[0] if problems else "no reward applies"
            raise TrainingError(
                f"{sum(window)} of the last {len(window)} completions had no usable reward (limit "
                f"{MAX_BAD_SHARE:.0%}): {why}"
            )
        self.bad = window


def _marks(numbers: Mapping[str, float]) -> str:
    """What is told of the probes of toxicity; misspelt, negated and quoted abuse is not judged."""
    if "obfuscated_recall" not in numbers:
        return ""
    said = (("finds {} of misspelt abuse", "obfuscated_recall"), ("takes {} of negated", "negated_alarms"),
            ("and {} of quoted abuse for toxic", "quoted_alarms"))  # fmt: skip
    return f": AUC {numbers['auc']:.3f}, " + ", ".join(text.format(f"{numbers[key]:.0%}") for text, key in said)


def _values(reward: Reward, examples: Sequence[Example], texts: Sequence[str]) -> Array:
    return score_safely(reward, examples, texts).values


def _mean(values: Array) -> float | None:
    """Of what is a number; None if nothing is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None
