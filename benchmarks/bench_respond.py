"""Job 2 on DailyDialog: SmolLM2 before and after learning the replies of its training dialogues, on unseen ones.

Dialogues that validation or test holds too are taken out of training first. Judged greedily and paired, resampled by
dialogue, by BLEU, ROUGE, chrF, similarity, what the model makes of the context, and two rewards (`dialtune reward`)
learned from dialogues that nothing else here reads, which train nothing: `contexts`, from which reply follows which
context, and `people`, from that and from people's replies against the untrained model's to the same contexts.
Every stage is a folder; `--work` goes on.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from record import print_table, shared_data, write_result, write_rows

from dialtune.comparison import compare, describe
from dialtune.config.data_schema import TurnsConfig
from dialtune.config.loading import check_reward_text, check_text
from dialtune.data.cleaning import clean_examples
from dialtune.data.layouts import to_row
from dialtune.data.reading import read_examples
from dialtune.data.stress import without_leaks
from dialtune.data.turns import reply_data
from dialtune.evaluation import read_evaluation, write_evaluation
from dialtune.generation import generate
from dialtune.model_evaluation import evaluate_model, prompts_for, task_for
from dialtune.models.base import Sampling
from dialtune.models.loading import load_model
from dialtune.results import Evaluation
from dialtune.runs import read_rows
from dialtune.trainers.reward_run import run_reward
from dialtune.trainers.sft_run import run_sft

SYSTEM = "You are talking with somebody you know. Answer what was said last, in one or two short sentences."
METRICS = (
    *("bleu", "rouge1", "rouge2", "rougeL", "chrf", "relevance_reference", "relevance_dialogue"),
    *("context_auc", "context_mrr", "context_margin", "context_ll_auc", "context_ll_mrr", "perplexity"),
    *("generic_rate", "echo_rate", "repetition_rate", "distinct_1", "distinct_2", "empty_rate", "length_ratio"),
)
SFT = """
learning_rate: 1e-3
lr_scheduler_type: cosine
warmup_ratio: 0.05
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
eval_steps: {eval_steps}
early_stopping_patience: 2
lora: {{r: 16, alpha: 32, dropout: 0.0}}
"""


def main() -> None:
    options = parse()
    folder = Path(options.work or tempfile.mkdtemp(prefix="bench-respond-"))
    files = build_files(folder, options)
    judges = learn_judges(folder, files, options)
    tuned = train(folder / "sft", files, options)
    before = evaluate(folder / "before", options.model, files, judges, options)
    after = evaluate(folder / "after", tuned, files, judges, options)
    report(folder, before, after, options)


def build_files(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Cleaned dialogues of three splits, none of which holds a dialogue of another; the judges have their own."""
    names = ("train", "validation", "test", "judge_train", "judge_validation")
    files = {name: folder / f"{name}.jsonl" for name in names}
    if all(file.is_file() for file in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    source = shared_data(options.shared) / "dailydialog"
    raw = {
        split: read_examples(source / f"dialogues_{split}.txt.gz").examples for split in ("train", "validation", "test")
    }
    found = {split: clean_examples(examples, ("tokenised_spacing",)).examples for split, examples in raw.items()}
    test = found["test"]
    validation, lost_validation = without_leaks(found["validation"], {"test": test})
    train, lost = without_leaks(found["train"], {"validation": validation, "test": test})
    print(f"left out as copies: {lost_validation} of validation, {lost} of train", flush=True)
    kept = {
        "train": train[: options.train_dialogues],
        "validation": validation[: options.validation_dialogues],
        "test": test[: options.test_dialogues],
        "judge_train": train[-options.judge_dialogues :],
        "judge_validation": validation[-options.judge_dialogues // 10 :],
    }
    for split, examples in kept.items():
        write_rows(files[split], [to_row(example) for example in examples])
    return files


def learn_judges(folder: Path, files: dict[str, Path], options: argparse.Namespace) -> list[str]:
    """Folders of the two rewards, `contexts` and `people`."""
    sources = {split: answered(folder, files, split, options) for split in ("train", "validation")}
    judges = {"contexts": "{contexts: 1}", "people": "{preferences: 1, contexts: 1}"}
    for name, signals in judges.items():
        out = folder / name
        if not (out / "CARD.md").is_file():
            # a row is an exchange here, and some short ones are in many dialogues
            data = f"{{train: {sources['train']}, validation: {sources['validation']}, leaks: drop}}"
            text = f"task: respond\noutput_dir: {out}\nseed: 0\nsignals: {signals}\ndata: {data}\n"
            run_reward(check_reward_text(text, "benchmark"), resume="newest", on_event=progress)
    return [str(folder / name) for name in judges]


def answered(folder: Path, files: dict[str, Path], split: str, options: argparse.Namespace) -> Path:
    """Every reply of a judge's dialogues as a row; some have what the untrained model says there as `rejected`."""
    out = folder / f"judge_{split}.answered.jsonl"
    if out.is_file():
        return out
    dialogues = read_examples(files[f"judge_{split}"])
    some = replace(dialogues, examples=dialogues.examples[: options.asked_dialogues])
    asked = reply_data(some, TurnsConfig(system=SYSTEM, per_dialogue=1)).examples
    model, (task, budget) = load_model(options.model), task_for("respond", options.model)
    completions = generate(
        model, prompts_for(model, asked, task, budget or 1024), Sampling(max_new_tokens=40),
        batch_size=options.batch_size, progress=lambda done, total: print(f"{out.stem}: {done}/{total}", flush=True),
    )  # fmt: skip
    said = {completion.example_id: completion.text for completion in completions}
    rows = [
        to_row(example) | ({"rejected": said[example.id]} if example.id in said else {})
        for example in reply_data(dialogues).examples
    ]
    write_rows(out, rows)
    return out


def train(out: Path, files: dict[str, Path], options: argparse.Namespace) -> str:
    text = (
        f"task: respond\nmodel: {options.model}\noutput_dir: {out}\nseed: 0\nnum_train_epochs: {options.epochs}\n"
        f"data:\n  train: {files['train']}\n  validation: {files['validation']}\n"
        f"  turns: {{system: '{SYSTEM}', min_words: {options.min_words}}}\n{SFT.format(eval_steps=options.eval_steps)}"
    )
    return str(run_sft(check_text(text, "benchmark"), resume="newest", on_event=progress))


def evaluate(
    out: Path, model: str, files: dict[str, Path], judges: list[str], options: argparse.Namespace
) -> Evaluation:
    if (out / "eval.json").is_file():
        return read_evaluation(out)
    turns = TurnsConfig(system=SYSTEM, per_dialogue=options.per_dialogue)
    data = reply_data(read_examples(files["test"]), turns)
    print(f"{out.name}: {len(data.examples)} replies", flush=True)
    task, budget = task_for("respond", model)
    metrics = [*METRICS, *(f"reward:{judge}" for judge in judges)]
    evaluation = evaluate_model(
        load_model(model), data, task, sampling=Sampling(max_new_tokens=40), metrics=metrics,
        max_prompt_tokens=budget, batch_size=options.batch_size, leakage={"exact": 0, "near": 0},
        progress=lambda done, total: print(f"{out.name}: {done}/{total}", flush=True),
    )  # fmt: skip
    write_evaluation(out, evaluation)
    return evaluation


def report(folder: Path, before: Evaluation, after: Evaluation, options: argparse.Namespace) -> None:
    comparison = compare(before, after)
    print("\n".join(describe(comparison)))
    rows = []
    for name, score in comparison.scores.items():
        low, high = score.relative_ci or (None, None)
        rows.append(
            {"score": name, "before": score.before, "after": score.after, "relative": score.relative, "low": low,
             "high": high, "ci": score.ci, "p": score.p_holm, "n": score.n, "verdict": score.verdict}
        )  # fmt: skip
    print_table([{key: value for key, value in row.items() if key != "ci"} for row in rows])
    losses = [
        {key: row[key] for key in ("step", "epoch", "loss", "eval_loss") if key in row}
        for row in read_rows(folder / "sft" / "metrics.jsonl")
        if "eval_loss" in row
    ]
    print_table(losses)
    chosen = {"bleu": "bleu", "rougeL": "rougeL", "reward": "reward:people", "reward_contexts": "reward:contexts"}
    headline: dict[str, float] = {}
    for short, name in chosen.items():
        score = comparison.scores[name]
        headline[f"{short}_relative"] = score.relative or 0.0
        headline[f"{short}_relative_ci_low"] = score.relative_ci[0] if score.relative_ci else 0.0
    # By the model's own likelihood; by cosine a model that repeats the context's words is the best of all.
    for short, name in {"context_mrr": "context_ll_mrr", "context_mrr_cosine": "context_mrr"}.items():
        mrr = comparison.scores[name]
        headline[f"{short}_change_ci_low"] = mrr.ci[0] if mrr.ci else 0.0
    write_result(options.name, rows, headline, losses=losses, dialogues=len({r.id.split("#")[0] for r in after.rows}))


def progress(kind: str, facts: Any) -> None:
    if kind == "note":
        print(facts["text"], flush=True)
    elif kind == "step" and (facts["step"] % 10 == 0 or "eval_loss" in facts):
        shown = {key: round(value, 4) for key, value in facts.items() if isinstance(value, float)}
        print(facts["step"], shown, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--train-dialogues", type=int, default=20_000 if gpu else 500)
    parser.add_argument("--judge-dialogues", type=int, default=3000, help="the last training dialogues: the judges'")
    parser.add_argument(
        "--asked-dialogues",
        type=int,
        default=3000 if gpu else 1000,
        help="at most so many are answered by the untrained model",
    )
    parser.add_argument("--validation-dialogues", type=int, default=500 if gpu else 60)
    parser.add_argument("--test-dialogues", type=int, default=500 if gpu else 260)
    parser.add_argument("--per-dialogue", type=int, default=2, help="replies judged of each test dialogue")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--min-words", type=int, default=6, help="shorter replies train nothing; all are judged")
    parser.add_argument("--eval-steps", type=int, default=200 if gpu else 31)
    parser.add_argument("--batch-size", type=int, default=128 if gpu else 32)
    parser.add_argument("--name", default="respond", help="benchmarks/results/NAME.json")
    parser.add_argument("--shared", help="folder of the corpora, if not ../shared/data")
    parser.add_argument("--work", help="folder of an earlier, killed run of this benchmark; go on with it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
