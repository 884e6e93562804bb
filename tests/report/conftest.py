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
    Comparison,
    DataInfo,
    Decoding,
    Effect,
    Entry,
    EvalRow,
    Evaluation,
    Method,
    ModelInfo,
    ScoreEntry,
    Side,
    to_json,
)  # fmt: skip

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


@pytest.fixture
def made() -> Any:
    """The builders above, for tests that need a variation."""
    builders: tuple[Callable[..., Any], ...] = (
        scores, evaluation, entry, comparison, write_training, write_examples, write_job,
    )  # fmt: skip
    return SimpleNamespace(**{builder.__name__: builder for builder in builders})


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """runs/demo/summarize as the demo leaves it."""
    return write_job(tmp_path / "summarize")
