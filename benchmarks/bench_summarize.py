"""Job 1 on DialogSum: SmolLM2-135M before and after fine-tuning, three references, leak-audited, paired intervals.

On a CPU: 2,000 training and 200 test dialogues. With a GPU: everything, and a T5-small-size encoder-decoder trained
from scratch on the same rows with the same code.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from record import print_table, shared_data, write_result

from dialtune.comparison import compare, describe
from dialtune.config.loading import check_text
from dialtune.data.audit import leaks
from dialtune.data.reading import DataSet, read_examples
from dialtune.model_evaluation import evaluate_model, task_for
from dialtune.models.base import Sampling
from dialtune.models.loading import load_model
from dialtune.results import Comparison, Evaluation
from dialtune.runs import read_rows
from dialtune.trainers.sft_run import run_sft

HEADLINE = ("rouge1", "rouge2", "rougeL", "bleu")


def main() -> None:
    options = parse()
    data = shared_data(options.shared) / "dialogsum"
    folder = Path(options.work or tempfile.mkdtemp(prefix="bench-summarize-"))
    train, dropped = audited(data, folder, options.train_rows)
    test = read_examples(data / "dialogsum.test.jsonl.gz", limit=options.test_rows)
    rows, comparisons = [], {}
    jobs = {"smollm2-135m": ("smollm2-135m", options.recipe or (SMOLLM2_GPU if options.gpu else SMOLLM2))}
    if options.scratch:
        jobs["t5-small-size, from scratch"] = (str(scratch_t5(folder, shared_data(options.shared))), T5_SCRATCH)
    for title, (model, recipe) in jobs.items():
        row, comparisons[title] = run(title, model, recipe, folder, train, test, options)
        rows.append(row)
    print_table(rows)
    first = comparisons["smollm2-135m"]
    headline: dict[str, float] = {}
    for name in HEADLINE:
        entry = first.scores[name]
        assert entry.relative is not None
        assert entry.relative_ci is not None
        headline |= {f"{name.lower() if name == 'bleu' else name}_relative": entry.relative}
        headline |= {f"{name}_relative_ci_low": entry.relative_ci[0]}
    details = {title: json.loads(c.model_dump_json(by_alias=True))["scores"] for title, c in comparisons.items()}
    write_result("summarize" if not options.smoke else "summarize-smoke", rows, headline, leaks=dropped, scores=details)


SMOLLM2 = """
learning_rate: 1e-3
num_train_epochs: 1
per_device_train_batch_size: 8
lr_scheduler_type: cosine
warmup_ratio: 0.05
lora: {r: 16, alpha: 32, dropout: 0.0}
"""
SMOLLM2_GPU = """
learning_rate: 3e-4
num_train_epochs: 3
per_device_train_batch_size: 32
lr_scheduler_type: cosine
warmup_ratio: 0.05
weight_decay: 0.01
"""
T5_SCRATCH = """
learning_rate: 5e-4
num_train_epochs: 20
per_device_train_batch_size: 32
lr_scheduler_type: cosine
warmup_ratio: 0.05
weight_decay: 0.05
max_prompt_length: 512
"""


def run(
    title: str, model: str, recipe: str, folder: Path, train: Path, test: DataSet, options: argparse.Namespace
) -> tuple[dict[str, Any], Comparison]:
    """One model: evaluate, train, evaluate, compare."""
    out = folder / title.split(",")[0].replace(" ", "-")
    validation = shared_data(options.shared) / "dialogsum" / "dialogsum.dev.jsonl.gz"
    text = (
        f"task: summarize\nmodel: {model}\noutput_dir: {out}\nseed: {options.seed}\n"
        f"data: {{train: {train}, validation: {validation}, max_validation_rows: {options.validation_rows}}}\n"
        f"eval_steps: 0\nper_device_eval_batch_size: {64 if options.gpu else 8}\n{recipe}"
    )
    began = time.perf_counter()
    before = judge(model, test, options)
    middle = time.perf_counter()
    result = run_sft(check_text(text, "benchmark"), resume="newest", on_event=progress)
    trained = time.perf_counter()
    after = judge(str(result), test, options)
    comparison = compare(before, after)
    print(f"\n{title}")
    for line in describe(comparison):
        print(line)
    losses = [row["eval_loss"] for row in read_rows(out / "metrics.jsonl") if "eval_loss" in row]
    speeds = sorted(row["tokens_per_s"] for row in read_rows(out / "metrics.jsonl"))
    row: dict[str, Any] = {"model": title, "n": after.n_scored}
    for name in HEADLINE:
        entry = comparison.scores[name]
        row |= {f"{name} before": entry.before, f"{name} after": entry.after, f"{name} relative": entry.relative}
    row |= {
        "train_s": sum(row["step_s"] for row in read_rows(out / "metrics.jsonl")),
        "evaluate_s": (middle - began) + (time.perf_counter() - trained),
        "tokens_per_s": speeds[len(speeds) // 2],
        "eval_loss by epoch": [round(value, 4) for value in losses],
    }
    for before_row, after_row in list(zip(before.rows, after.rows, strict=True))[:3]:
        for side, text in (("before", before_row.completion), ("after ", after_row.completion)):
            print(f"  {before_row.id} {side}: {text[:200]!r}")
    return row, comparison


def judge(model: str, test: DataSet, options: argparse.Namespace) -> Evaluation:
    task, budget = task_for("summarize", model)
    batch_size = 128 if options.gpu else 32

    def show(done: int, total: int) -> None:
        print(f"  {done}/{total}", flush=True)

    return evaluate_model(
        load_model(model), test, task, sampling=Sampling(max_new_tokens=96), max_prompt_tokens=budget or 1024,
        batch_size=batch_size, leakage={"exact": 0, "near": 0}, progress=show,
    )  # fmt: skip


def audited(data: Path, folder: Path, limit: int | None) -> tuple[Path, dict[str, int]]:
    """Training rows without copies of themselves and without any dialogue of dev or test, exact or near."""
    sets = {name: read_examples(data / f"dialogsum.{name}.jsonl.gz").examples for name in ("train", "dev", "test")}
    found = leaks(sets)
    bad = found.leaking["train", "dev"] | found.leaking["train", "test"]
    lines, seen = [], set()
    for example in sets["train"]:
        dialogue = "\n".join(f"{m.speaker}: {m.content}" for m in example.messages)
        if example.id in bad or dialogue in seen:
            continue
        seen.add(dialogue)
        lines.append(json.dumps({"id": example.id, "dialogue": dialogue, "summary": example.references[0]}))
    kept = lines[:limit]
    path = folder / "train.jsonl"
    path.write_text("\n".join(kept) + "\n", encoding="utf-8")
    facts = {
        "train rows": len(sets["train"]),
        "leaking into dev or test": len(bad),
        "kept": len(lines),
        "used": len(kept),
    }
    print(facts)
    return path, facts


def scratch_t5(folder: Path, shared: Path, *, d_model: int = 512, layers: int = 6) -> Path:
    """A T5 with random weights and the real vocabulary; of the published small size unless told otherwise."""
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=32128, d_model=d_model, d_kv=64, d_ff=2 * d_model, num_layers=layers, num_heads=d_model // 64,
        dropout_rate=0.1, feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    target = folder / "t5-scratch"
    T5ForConditionalGeneration(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(shared / "tokenizers" / "t5").save_pretrained(target)
    return target


def progress(kind: str, facts: Any) -> None:
    if kind == "note":
        print(facts["text"], flush=True)
    elif kind == "step" and (facts["step"] % 25 == 0 or "eval_loss" in facts):
        evaluated = f", eval_loss {facts['eval_loss']:.3f}" if "eval_loss" in facts else ""
        print(
            f"  {facts['step']}: loss {facts['loss']:.3f}, {facts['tokens_per_s']:,.0f} tokens/s{evaluated}", flush=True
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--train-rows", type=int, default=None if gpu else 2000)
    parser.add_argument("--test-rows", type=int, default=None if gpu else 200)
    parser.add_argument("--validation-rows", type=int, default=500 if gpu else 100)
    parser.add_argument("--shared", help="folder of the corpora, if not ../shared/data")
    parser.add_argument("--recipe", help="YAML lines instead of the built-in settings for SmolLM2")
    parser.add_argument("--scratch", action=argparse.BooleanOptionalAction, default=gpu)
    parser.add_argument("--smoke", action="store_true", help="write to summarize-smoke.json")
    parser.add_argument("--work", help="folder of an earlier, killed run of this benchmark; go on with its training")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.gpu = gpu
    return options


if __name__ == "__main__":
    main()
