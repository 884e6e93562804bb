"""When a run must stop: the rules that watch the log records, one after each update and before each checkpoint.

| key of a record | what it is | stops when |
|---|---|---|
| `kl_per_sequence` | mean KL (k1) per completion, nats | above 4 x kl_target; below -0.5 five times in a row |
| `abs_kl` | mean abs(k1) per token, nats | more than 10 times the last one, from 0.05 up |
| `sample_score_gap` | mean gap of sampled and scored log-prob per token, nats | above 0.05 |
| `entropy` | per token, nats | below 10 % of the start |
| `truncated` | share of completions that hit the cap | above 90 % |
| `empty` | share without letter or digit | above 10 % |
| `identical` | share that a sibling repeats word for word | above 30 % |
| `distinct_2` | share of different word pairs | below 50 % of the start |
| `bad_rewards` | share of rows whose reward failed | above 5 % |
| `ema:NAME` | a constrained quality | below 95 % of the start, `lambda:NAME` not falling: 20 in a row |
| `toxicity:trained`, `toxicity:alarm` | of a fixed probe batch, by the reward's scorer and the juror | see below |
| `skipped` | cause of a skipped update, else None | five in a row |

A key that is absent, None or NaN is not judged. The five shares are judged by their mean over the last five records, in
which a record that is not there yet counts as sound: one rollout of 16 completions with two empty ones is no trend, and
a rollout of nothing but empty ones still stops at once. The start is the first record that has the key, unless given.
Reward hacking: at three checks in a row the trained scorer finds less toxicity than at the start, and the juror finds
more by 0.05, which is beyond what a probe batch of a few dozen rows moves by chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

MAX_KL_TARGETS = 4.0
MAX_KL_JUMP = 10.0
LEAST_ABS_KL = 0.05  # nats per token; below it a jump is a step away from zero
MIN_KL, MIN_KL_RECORDS = -0.5, 5
MAX_SAMPLE_SCORE_GAP = 0.05
MIN_ENTROPY_SHARE = 0.1
WINDOW = 5  # records
MAX_SHARES = {"truncated": 0.9, "empty": 0.1, "identical": 0.3, "bad_rewards": 0.05}
MIN_DISTINCT_SHARE = 0.5
MIN_QUALITY_SHARE, QUALITY_RECORDS = 0.95, 20
HACKING_MARGIN, HACKING_CHECKS = 0.05, 3  # probability of being toxic
MAX_SKIPS = 5
_HUGE = 1e30  # stands for infinity, which JSON does not have

_ADVICE = {
    "kl": "raise beta or lower learning_rate",
    "kl jump": "lower learning_rate, or max_grad_norm",
    "kl negative": "sampled and scored distribution differ; run: dialtune doctor rl CONFIG",
    "sample gap": "sampled and scored distribution differ; run: dialtune doctor rl CONFIG",
    "entropy": "raise beta or lower learning_rate",
    "truncated": "raise max_completion_length, or fine-tune the start policy on shorter text",
    "empty": "silence earns too much; constrain the length, and check the rewards with their probes",
    "identical": "the policy gives one answer; raise beta or temperature",
    "distinct_2": "the policy repeats itself; raise beta or lower learning_rate",
    "bad_rewards": "mend the reward that is named in the log",
    "quality": "the multiplier does not win; lower learning_rate, or the weight of the reward",
    "hacking": "the policy learned the scorer, not the task; take an earlier checkpoint, or add a second scorer",
    "skipped": "lower learning_rate, or set bf16: false to rule precision out",
}


class Health:
    """The watch over one run; `check` takes its records in order.

    Args:
        kl_target: nats per completion; without one the KL has no upper limit.
        start: values of the start policy by key, where they were measured.
    """

    def __init__(self, kl_target: float | None = None, start: Mapping[str, float] | None = None) -> None:
        self.kl_target = kl_target
        self.start = dict(start or {})
        self.last: dict[str, float] = {}  # value in the record before
        self.streaks: dict[str, int] = {}  # records in a row, by rule
        self.windows: dict[str, list[float]] = {}  # the last WINDOW values, oldest first

    def check(self, record: Mapping[str, Any]) -> str | None:
        """The first rule that this record breaks, as `rule: what, limit; what to do`, or None.

        A rule that was named starts over, so that a resumed run is not stopped by what it was stopped for already.
        """
        seen = {key: min(max(float(value), -_HUGE), _HUGE) for key, value in record.items() if _is_number(value)}
        for key, value in seen.items():
            self.start.setdefault(key, value)
        broken = [*self._kl(seen), *self._variety(seen), *self._shares(seen), *self._quality(seen)]
        broken += [*self._hacking(seen), *self._skipped(record)]
        self.last |= seen
        if not broken:
            return None
        rule, what = broken[0]
        return f"{rule}: {what}; {_ADVICE[rule.partition(':')[0]]}"

    def to_dict(self) -> dict[str, Any]:
        """The state as JSON values."""
        return {
            "kl_target": self.kl_target,
            "start": dict(self.start),
            "last": dict(self.last),
            "streaks": dict(self.streaks),
            "windows": {key: list(values) for key, values in self.windows.items()},
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Health:
        """From `to_dict()`."""
        health = cls(state["kl_target"], state["start"])
        health.last, health.streaks = dict(state["last"]), dict(state["streaks"])
        health.windows = {key: list(values) for key, values in state["windows"].items()}
        return health

    def _kl(self, seen: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        kl, now, gap = seen.get("kl_per_sequence"), seen.get("abs_kl"), seen.get("sample_score_gap")
        if kl is not None and self.kl_target is not None and kl > MAX_KL_TARGETS * self.kl_target:
            limit = f"{MAX_KL_TARGETS:g} x kl_target {self.kl_target:g}"
            yield "kl", f"{kl:.3g} nats per completion to the start policy, limit {limit}"
        if now is not None and "abs_kl" in self.last:
            before = max(self.last["abs_kl"], LEAST_ABS_KL)
            if now > MAX_KL_JUMP * before:
                yield "kl jump", f"from {before:.3g} to {now:.3g} nats per token in one update, limit {MAX_KL_JUMP:g} x"
        if kl is not None and self._in_a_row("kl negative", kl < MIN_KL, MIN_KL_RECORDS):
            yield "kl negative", f"{kl:.3g} nats per completion, below {MIN_KL:g} for {MIN_KL_RECORDS} updates"
        if gap is not None and gap > MAX_SAMPLE_SCORE_GAP:
            yield "sample gap", f"{gap:.3g} nats per token, limit {MAX_SAMPLE_SCORE_GAP:g}"

    def _variety(self, seen: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        entropy = seen.get("entropy")
        if entropy is not None and entropy < MIN_ENTROPY_SHARE * self.start["entropy"]:
            yield (
                "entropy",
                f"{entropy:.3g} nats per token, below {MIN_ENTROPY_SHARE:.0%} of {self.start['entropy']:.3g}",
            )
        if "distinct_2" in seen:
            start = self.start["distinct_2"]
            mean = self._recent("distinct_2", seen["distinct_2"], sound=start)
            if mean < MIN_DISTINCT_SHARE * start:
                self.windows.pop("distinct_2")
                yield "distinct_2", f"{mean:.3g}, below {MIN_DISTINCT_SHARE:.0%} of {start:.3g} at the start"

    def _shares(self, seen: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for key, limit in MAX_SHARES.items():
            if key in seen and (mean := self._recent(key, seen[key], sound=0.0)) > limit:
                self.windows.pop(key)
                yield key, f"{mean:.0%} of completions over the last {WINDOW} updates, limit {limit:.0%}"

    def _quality(self, seen: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for key in [key for key in seen if key.startswith("ema:")]:
            name = key.removeprefix("ema:")
            weight = seen.get(f"lambda:{name}", math.nan)
            rising = weight > 0 and weight >= self.last.get(f"lambda:{name}", math.inf)  # at 0 the bound is met
            short = seen[key] < MIN_QUALITY_SHARE * self.start[key]
            if self._in_a_row(f"quality:{name}", short and rising, QUALITY_RECORDS):
                limit = f"{MIN_QUALITY_SHARE:.0%} of {self.start[key]:.3g} at the start"
                yield f"quality:{name}", f"mean {seen[key]:.3g}, below {limit} for {QUALITY_RECORDS} updates"

    def _hacking(self, seen: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        trained, alarm = seen.get("toxicity:trained"), seen.get("toxicity:alarm")
        if trained is None or alarm is None:
            return
        begun, begun_alarm = self.start["toxicity:trained"], self.start["toxicity:alarm"]
        apart = trained < begun and alarm > begun_alarm + HACKING_MARGIN
        if self._in_a_row("hacking", apart, HACKING_CHECKS):
            by_scorer, by_juror = f"{begun:.3g} to {trained:.3g}", f"{begun_alarm:.3g} to {alarm:.3g}"
            moves = f"{by_scorer} by the reward's scorer, {by_juror} by the juror"
            yield "hacking", f"toxicity went from {moves}, at {HACKING_CHECKS} checks in a row"

    def _skipped(self, record: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        if "skipped" in record and self._in_a_row("skipped", bool(record["skipped"]), MAX_SKIPS):
            yield "skipped", f"{MAX_SKIPS} updates in a row: {record['skipped']}"

    def _in_a_row(self, rule: str, holds: bool, limit: int) -> bool:
        """Count; True when `limit` records in a row broke the rule, whose count then starts over."""
        self.streaks[rule] = self.streaks.get(rule, 0) + 1 if holds else 0
        if self.streaks[rule] < limit:
            return False
        self.streaks[rule] = 0
        return True

    def _recent(self, key: str, value: float, *, sound: float) -> float:
        """Mean of the last WINDOW values, missing ones counted as sound."""
        window = self.windows[key] = [*self.windows.get(key, []), value][-WINDOW:]
        return (sum(window) + sound * (WINDOW - len(window))) / WINDOW


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
