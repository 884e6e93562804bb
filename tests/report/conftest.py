"""Hand-made result files: a job that improved, with nothing computed by the code that reads them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dialtune.results import (
    Agreement,
    Comparison,
    Constraint,
    DataInfo,
    Decoding,
    Effect,
    Entry,
    EvalRow,
    Evaluation,
    Gain,
    Juror,
    Jury,
    Method,
    ModelInfo,
    ScoreEntry,
    Shift,
    Side,
    to_json,
)

DATA = DataInfo(
    name="packaged:test", split="test", fingerprint="5e" * 32, references=(1, 2), reference="mean",
    template_sha256="7a" * 32, dropped_turns=2, leakage={"exact": 0, "near": 0},
)  # fmt: skip
GREEDY = Decoding(strategy="greedy", max_new_tokens=64)
METHOD = Method(
    ci="paired percentile bootstrap by dialogue", resamples=10_000, test="sign flips", permutations=100_000, alpha=0.05,
    seed=0,
)  # fmt: skip
SIGNATURES = {
    "rouge1": "rouge1|refs:2|agg:mean|f:f1|stem:porter|tool:rouge-score-0.1.2|dialtune:1",
    "rougeL": "rougeL|refs:2|agg:mean|f:f1|stem:porter|tool:rouge-score-0.1.2|dialtune:1",
    "bleu": "bleu|refs:2|agg:corpus|tok:13a|tool:sacrebleu-2.6.0|dialtune:1",
    "length_ratio": "length_ratio|refs:1|unit:word|dialtune:1",
}
DIALOGUES = (
    "#Person1#: Is the heating still broken?\n#Person2#: Yes, since Monday. The landlord promised a visit.\n"
    "#Person1#: I'd call again and ask for a date.\n#Person2#: I will, after lunch.",
    "Anna: Did you book the 9:40 train?\nBen: It was full, I took the 10:15 and it's £12 cheaper.\nAnna: Perfect.",
    "#Person1#: Dr. Okafor can see you on the 14th.\n#Person2#: In the morning, if possible.\n#Person1#: 8:30 it is.",
)
UNTRAINED = (
    "The dialogue is a conversation between two people, and the first person asks the second person a question.",
    "Anna: Did you book the 9:40 train? Ben: It was full.",
    "Sure! Here is a summary of the dialogue: the doctor is on the 14th",
)
WRITTEN = ("The heating has been broken since Monday.", "Ben took a cheaper train.", "An appointment at 8:30.")


def scores(n: int, mean: float, seed: int) -> list[float]:
    """n row scores between 0 and 100 around `mean`, two decimals."""
    source = random.Random(seed)
    return [round(min(100.0, max(0.0, source.gauss(mean, 9))), 2) for _ in range(n)]


def evaluation(values: list[float], *, name: str, shift: float = 0.0, **changes: Any) -> Evaluation:
    rows = tuple(
        EvalRow(
            id=f"test_{place}",
            completion="" if place == 7 else (UNTRAINED if name == "smollm2-135m" else WRITTEN)[place % 3],
            finish="length" if place == 5 else "stop",
            scores={"rougeL": value, "rouge1": min(100.0, value + 6), "length_ratio": 0.4},
        )
        for place, value in enumerate(values)
    )
    mean = sum(values) / len(values)

    def entry(metric: str, value: float, half: float) -> ScoreEntry:
        ci = (value - half, value + half)
        return ScoreEntry(value=value, ci=ci, n=len(values), signature=SIGNATURES[metric])

    facts: dict[str, Any] = {
        "model": ModelInfo(name=name, family="decoder-only", dtype="bfloat16", weights_sha256="ab" * 32),
        "task": "summarize", "data": DATA, "decoding": GREEDY, "n_total": len(rows), "n_generated": len(rows),
        "n_truncated": 1, "n_empty": 1, "n_scored": len(rows),
        "scores": {
            "rougeL": entry("rougeL", mean, 1.2), "rouge1": entry("rouge1", mean + 6, 1.3),
            "bleu": entry("bleu", 3.1 + shift, 0.6), "length_ratio": entry("length_ratio", 0.4, 0.02),
        },
        "rows": rows,
    }  # fmt: skip
    return Evaluation(**(facts | changes))


def entry(before: float | None, after: float | None, verdict: str = "improved", **changes: Any) -> Entry:
    known = before is not None and after is not None
    difference = after - before if known else None
    facts: dict[str, Any] = {
        "before": before, "after": after, "difference": difference, "relative": difference / before if before else None,
        "ci": (difference - 1.5, difference + 1.5) if known else None,
        "relative_ci": (difference / before - 0.09, difference / before + 0.08) if before else None,
        "p": 0.00001, "p_holm": 0.00003, "n": 200, "n_dropped": 0,
        "effect": Effect(dz=1.1, better=0.8, tied=0.05, worse=0.15), "direction": "higher", "verdict": verdict,
    }  # fmt: skip
    return Entry(**(facts | changes))


def comparison(before: Evaluation, after: Evaluation, entries: Mapping[str, Entry], **changes: Any) -> Comparison:
    def side(made: Evaluation) -> Side:
        return Side(model=made.model, eval_sha256=hashlib.sha256(to_json(made).encode()).hexdigest())

    facts = {"before": side(before), "after": side(after), "data": DATA, "decoding": GREEDY, "method": METHOD}
    return Comparison(**(facts | {"scores": dict(entries)} | changes))


def write_training(folder: Path, steps: int = 60) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("config.yaml").write_text("model: smollm2-135m\nlearning_rate: 0.0002\nseed: 0\n")
    record = {
        "format": "dialtune.run/1",
        "command": ["dialtune", "sft", "recipes/summarize-smollm2.yaml", "--set", "seed=0"],
        "versions": {"python": "3.11.2", "torch": "2.13.0"},
        "seeds": {"run": 0},
        "starts": [{"at": "2026-01-02T03:04:05+00:00", "resumed_from": None}],
        "outcome": "done",
    }
    folder.joinpath("run.json").write_text(json.dumps(record))
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        loss = None if step == 9 else round(1.6 + 1.9 / (1 + step / 8) + 0.2 * ((step * 37 % 11) / 11 - 0.5), 4)
        row = {"step": step, "epoch": step / steps, "loss": loss, "learning_rate": 0.0002, "grad_norm": 1.0}
        rows.append(row | ({"skipped": True} if step == 9 else {}))
        if step % 20 == 0:
            rows[-1] |= {"eval_loss": round(1.9 + 1.2 / (1 + step / 10), 4), "eval_rougeL": 20 + step / 10}
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_examples(folder: Path, n: int) -> None:
    rows = [
        {
            "id": f"test_{k}",
            "dialogue": DIALOGUES[k % 3],
            "references": [WRITTEN[k % 3] + " It is agreed.", "They agree."],
        }
        for k in range(n)
    ]
    folder.joinpath("examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_job(folder: Path, **changes: Any) -> Path:
    """A whole job: before/, after/, train/, compare.json. `changes`: before, after, entries."""
    before = changes.get("before") or evaluation(scores(200, 19.4, 1), name="smollm2-135m")
    after = changes.get("after") or evaluation(scores(200, 31.2, 2), name="runs/demo/summarize/train", shift=3.0)
    entries = changes.get("entries") or {
        "rougeL": entry(19.4, 31.2),
        "rouge1": entry(25.4, 37.2, relative_ci=(0.39, 0.53)),
        "bleu": entry(
            3.1, 6.1, "no difference shown", relative_ci=(-0.1, 2.3), effect=None, p_holm=0.21, n_needed=1912
        ),
    }
    for side, made in (("before", before), ("after", after)):
        folder.joinpath(side).mkdir(parents=True, exist_ok=True)
        folder.joinpath(side, "eval.json").write_text(to_json(made))
    write_examples(folder / "after", len(after.rows))
    folder.joinpath("compare.json").write_text(to_json(comparison(before, after, entries)))
    write_training(folder / "train")
    return folder


TOXIC = (
    "#Person1# calls #Person2# a useless clown because the heating is still broken, and #Person2# promises to call.",
    "Anna shouts that Ben is a lazy pig since the 9:40 train was full and he took the 10:15.",
    "The clerk tells the idiot that Dr. Okafor has time on the 14th at 8:30.",
)
CIVIL = (
    "#Person1# is angry with #Person2# because the heating is still broken, and #Person2# promises to call.",
    "Anna is upset since the 9:40 train was full and Ben took the 10:15.",
    "The clerk tells the caller that Dr. Okafor has time on the 14th at 8:30.",
)


ABSENT = "alt-profanity-check is not installed"


def detox_side(name: str, texts: tuple[str, ...], toxicity: float, relevance: float) -> Evaluation:
    """60 summaries with three scorers, one of them not installed."""
    values = [round(min(0.99, max(0.01, toxicity + 0.02 * (k % 9 - 4))), 3) for k in range(60)]
    rows = tuple(
        EvalRow(
            id=f"test_{k}", completion=texts[k % 3], finish="stop", kind="heated" if k % 4 else "control",
            words=40 + k, speakers=2 + k % 2,
            scores={
                "toxicity_mean:minilm": value, "toxicity_mean:ngrams": round(value / 2, 3),
                "relevance_reference": relevance, "rougeL": 20.0 + k % 7, "toxicity_mean:alt-profanity-check": None,
            },
        )
        for k, value in enumerate(values)
    )  # fmt: skip

    def score(value: float, metric: str) -> ScoreEntry:
        return ScoreEntry(
            value=value, ci=(value * 0.9, value * 1.1), n=60, signature=f"{metric}|made:by-hand|dialtune:1"
        )

    scores = {
        "toxicity_mean:minilm": score(toxicity, "toxicity_mean"),
        "toxicity_mean:ngrams": score(toxicity / 2, "toxicity_mean"),
        "relevance_reference": score(relevance, "relevance_reference"), "rougeL": score(23.0, "rougeL"),
        "toxicity_mean:alt-profanity-check": ScoreEntry(
            value=None, ci=None, n=0, signature="toxicity_mean|scorer:unknown", reason=ABSENT
        ),
    }  # fmt: skip
    made = evaluation([0.0] * 60, name=name)
    return made.model_copy(update={"task": "detoxify", "rows": rows, "scores": scores, "n_truncated": 0, "n_empty": 0})


def detox_entries() -> dict[str, Entry]:
    lower: dict[str, Any] = {"direction": "lower", "n": 60}
    return {
        "toxicity_mean:minilm": entry(0.81, 0.08, relative_ci=(-0.95, -0.85), ci=(-0.8, -0.66), **lower),
        "toxicity_mean:ngrams": entry(0.41, 0.13, relative_ci=(-0.77, -0.6), ci=(-0.32, -0.24), **lower),
        "relevance_reference": entry(0.608, 0.686, relative_ci=(0.07, 0.18), ci=(0.04, 0.11), n=60),
        "rougeL": entry(23.0, 23.4, "no difference shown", relative_ci=(-0.02, 0.05), ci=(-0.5, 1.2), n=60, p_holm=0.4),
        "toxicity_mean:alt-profanity-check": entry(
            None, None, "no difference shown", effect=None, n=0, n_dropped=60, ci=None, p=None, p_holm=None,
            direction="lower", note=ABSENT,
        ),
    }  # fmt: skip


def detox_jury(**changes: Any) -> Jury:
    facts: dict[str, Any] = {
        "trained": "minilm",
        "jurors": {
            "ngrams": Juror(difference=-0.28, relative=-0.68, n=60),
            "alt-profanity-check": Juror(difference=None, relative=None, n=0, reason=ABSENT),
        },
        "median_relative": -0.68,
        "trained_gain": Gain(value=4.1, ci=(3.8, 4.4)), "jury_gain": Gain(value=2.0, ci=(1.7, 2.3)),
        "gap": Gain(value=2.1, ci=(1.8, 2.4)), "alarm": False, "reason": None,
        "agreement": (Agreement(one="minilm", other="ngrams", spearman=0.71, kappa=0.55, n=120),),
    }  # fmt: skip
    return Jury(**(facts | changes))


def write_rl_training(folder: Path) -> None:
    """12 updates with three evaluations: the start, one outside its limits, and the chosen one."""
    write_training(folder, steps=2)
    rows: list[dict[str, Any]] = [
        {"step": 0, "eval_toxicity": 0.886, "eval_alarm": 0.432, "eval_relevance": 0.546, "eval_acceptable": True}
    ]
    for step in range(1, 13):
        rows.append({"step": step, "rollout": step - 1, "loss": 0.01, "reward": step / 10, "toxic": 0.9 - step / 15,
                     "relevance": 0.55 + step / 200, "kl_per_sequence": step * 1.2})  # fmt: skip
    rows[6] |= {"eval_toxicity": 0.31, "eval_alarm": 0.3, "eval_relevance": 0.52, "eval_acceptable": False}
    rows[12] |= {"eval_toxicity": 0.066, "eval_alarm": 0.14, "eval_relevance": 0.676, "eval_acceptable": True}
    folder.joinpath("metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.joinpath("config.yaml").write_text(
        "model: /home/someone/start/checkpoint-20\ntask: detoxify\nmethod: grpo\nlora: {r: 16, alpha: 32}\n"
        "rewards: {toxicity: 1.0}\nlearning_rate: 0.0005\nseed: 42\n"
    )
    record = json.loads(folder.joinpath("run.json").read_text())
    record |= {
        "command": "dialtune rl recipe.yaml", "notes": ["result: checkpoint-12"], "model": {"family": "decoder-only"},
        "data": {"train": {"name": "packaged:train:heated", "rows": 68, "fingerprint": "40" * 32}},
    }  # fmt: skip
    folder.joinpath("run.json").write_text(json.dumps(record))


def write_detox(folder: Path, **changes: Any) -> Path:
    """runs/demo/detoxify: reward and juror, limits, origins, slices, calm dialogues, and a run on rewards."""
    before = detox_side("smollm2-135m", TOXIC, 0.81, 0.608)
    after = detox_side("smollm2-135m", CIVIL, 0.08, 0.686)
    entries = detox_entries()
    calm = {name: entry(0.02, 0.01, "no difference shown", n=24) for name in ("toxicity_mean:ngrams", "rougeL")}
    found: dict[str, Any] = {
        "constraints": {
            "relevance_reference": Constraint(floor=0.98, ratio=1.128, ci=(1.07, 1.18), held="yes"),
            "rougeL": Constraint(floor=0.98, ratio=1.017, ci=(0.97, 1.05), held="not shown"),
        },
        "origins": {
            "copied:minilm": Shift(before=0.55, after=0.05, difference=-0.5, ci=(-0.62, -0.38), n=60),
            "paraphrased:minilm": Shift(before=0.3, after=0.02, difference=-0.28, ci=(-0.4, -0.16), n=60),
            "invented:minilm": Shift(before=0.1, after=0.03, difference=-0.07, ci=(-0.15, 0.01), n=60),
        },
        "jury": detox_jury(),
        "slices": {"heated": entries, "words 40 to 59": entries, "2 speakers": entries},
    } | changes  # fmt: skip
    write_job(folder, before=before, after=after, entries=entries)
    folder.joinpath("compare.json").write_text(to_json(comparison(before, after, entries, **found)))
    for side, made in (("before", before), ("after", after)):
        folder.joinpath("calm", side).mkdir(parents=True, exist_ok=True)
        folder.joinpath("calm", side, "eval.json").write_text(to_json(made))
    folder.joinpath("calm", "compare.json").write_text(to_json(comparison(before, after, calm)))
    write_rl_training(folder / "train")
    return folder


@pytest.fixture
def detox(tmp_path: Path) -> Path:
    """runs/demo/detoxify as the demo leaves it."""
    return write_detox(tmp_path / "detoxify")


def _builders() -> Any:
    found: tuple[Callable[..., Any], ...] = (
        scores, evaluation, entry, comparison, write_training, write_examples, write_job, write_detox, detox_jury,
    )  # fmt: skip
    return SimpleNamespace(**{builder.__name__: builder for builder in found})


@pytest.fixture
def made() -> Any:
    """The builders above, for tests that need a variation."""
    return _builders()


@pytest.fixture(scope="module")
def builders() -> Any:
    """The same, for a page that several tests look at."""
    return _builders()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """runs/demo/summarize as the demo leaves it."""
    return write_job(tmp_path / "summarize")
