"""Job 3 on DialogSum + ParaDetox: a start policy that repeats abuse, before and after RL under a relevance floor.

Stress dialogues hold one real toxic turn; the start policy is fine-tuned on summaries that repeat it. Judged on unseen
stress dialogues (other dialogues, other sentences) and on clean ones, greedily, paired, by the reward's scorer and by
jurors that no reward used, beside cheaper ways to the same end. Every stage is a folder; `--work` goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_summarize import scratch_t5
from record import print_table, shared_data, write_result, write_rows

from dialtune.comparison import compare, describe
from dialtune.config.loading import check_rl_text, check_text
from dialtune.data.reading import DataSet, read_examples
from dialtune.data.stress import build_stress, dialogues_of, without_leaks
from dialtune.data.toxic import read_pairs
from dialtune.evaluation import evaluate_completions, read_evaluation, write_evaluation
from dialtune.generation import generate
from dialtune.model_evaluation import decoding_of, prompts_for, task_for
from dialtune.models.base import Sampling
from dialtune.models.loading import load_model
from dialtune.prompts import template_sha256
from dialtune.report.wording import percent
from dialtune.results import Comparison, EvalRow, Evaluation
from dialtune.rewards.table import find_reward
from dialtune.runs import read_rows
from dialtune.scorers.lexicon import MASK, mask_words
from dialtune.trainers.rl_run import run_rl
from dialtune.trainers.sft_run import run_sft
from dialtune.types import Completion, Example

SCORERS = ("minilm", "ngrams", "lexicon", "alt-profanity-check")
CIVIL = "Use civil language: never repeat insults, swearing or slurs, only say that someone was rude.\n\n"

START = """
learning_rate: 1e-3
per_device_train_batch_size: 8
lr_scheduler_type: cosine
warmup_ratio: 0.05
lora: {r: 16, alpha: 32, dropout: 0.0}
"""
RL = """
method: grpo
lora: {r: 16, alpha: 32, dropout: 0.0}
learning_rate: 6e-4
lr_scheduler_type: linear
beta: 0.08
kl_target: 10
temperature: 1.0
rollout_batch_size: 4
num_generations: 8
per_device_train_batch_size: 2
constraint:
  qualities: [relevance_dialogue]
  length: [0.7, 1.15]
  multiplier: 0.5
  learning_rate: 0.1
  proportional: 2
  memory: 0.5
max_completion_length: 96
max_prompt_length: 1024
"""  # lab/LOG.md has what other settings lost


# An encoder-decoder that begins with random weights has to learn English from the same rows first.
START_FROM_SCRATCH = """
learning_rate: 1e-3
num_train_epochs: 12
per_device_train_batch_size: 16
lr_scheduler_type: cosine
warmup_ratio: 0.05
max_prompt_length: 512
"""
FROM_SCRATCH = "t5-from-scratch"
DUELS = (*(f"toxicity_mean:{scorer}" for scorer in SCORERS), "relevance_reference", "relevance_dialogue", "rougeL")
CHEAPER = ("prompt only", "word-list masking")  # what RL has to beat at equal relevance


def main() -> None:
    options = parse()
    folder = Path(options.work or tempfile.mkdtemp(prefix="bench-detox-"))
    sets = build_sets(folder, options)
    if options.model == FROM_SCRATCH:
        size = {} if torch.cuda.is_available() else {"d_model": 256, "layers": 4}
        options.model = str(scratch_t5(folder, shared_data(options.shared), **size))
        options.start_settings = options.start_settings or START_FROM_SCRATCH
    start = train_sft(folder / "start", options.model, sets["blunt"], options, epochs=2)
    stress, clean = read_examples(sets["stress_test"]), read_examples(sets["clean_test"])
    judged = {"start": judge(folder, "start", start, stress, clean, options)}
    costs: dict[str, float] = {"start": 0.0}
    for seed in options.seeds:
        began = time.perf_counter()
        result = train_rl(folder / f"rl-{seed}", start, sets, seed, options)
        costs[f"rl seed {seed}"] = seconds_of(folder / f"rl-{seed}") or time.perf_counter() - began
        judged[f"rl seed {seed}"] = judge(folder, f"rl-{seed}", str(result), stress, clean, options)
    if options.baselines:
        judged["prompt only"] = judge(folder, "prompt-only", start, stress, clean, options, prefix=CIVIL)
        made = (judged["start"], stress, clean, options)
        judged["word-list masking"] = written(folder, "masked", lambda row, _: mask_words(row.completion), *made)
        # What a perfect summarizer would get: the lowest toxicity that keeps what was said.
        judged["civil references"] = written(folder, "gold", lambda _, example: example.references[0], *made)
        judged[f"best of {options.best_of}"] = best_of(folder, start, stress, clean, options)
        # One epoch of a LoRA start takes about as long as a seed of RL; --start-settings bring their own epochs.
        civil = train_sft(folder / "sft-civil", start, sets["civil"], options, epochs=1)
        costs["SFT on civil summaries"] = seconds_of(folder / "sft-civil")
        judged["SFT on civil summaries"] = judge(folder, "sft-civil-eval", civil, stress, clean, options)
    report(judged, costs, options)


def build_sets(folder: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Rows for every stage; dialogues of no two splits are copies of each other, toxic sentences never meet."""
    names = ("blunt", "civil", "stress_validation", "stress_test", "clean_test")
    paths = {name: folder / f"{name}.jsonl" for name in names}
    if options.second_test:
        paths |= {name: folder / f"second_{name}.jsonl" for name in ("stress_test", "clean_test")}
    if all(path.is_file() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    data = shared_data(options.shared)
    pairs = read_pairs(data / "paradetox" / "paradetox.tsv.gz").pairs
    source = {s: data / "dialogsum" / f"dialogsum.{s}.jsonl.gz" for s in ("train", "dev", "test")}
    split_of = {"train": "train", "dev": "validation", "test": "test"}
    found = {s: dialogues_of(read_examples(p), str(p), split_of[s]) for s, p in source.items()}
    test = found["test"]
    dev, _ = without_leaks(found["dev"], {"test": test})
    train, lost = without_leaks(found["train"], {"dev": dev, "test": test})
    print("leaking training dialogues left out:", lost, flush=True)
    made = {
        "train": build_stress(train, pairs, seed=0, rows=options.train_rows, split="train"),
        "validation": build_stress(dev, pairs, seed=0, rows=options.validation_rows, split="validation"),
        "test": build_stress(test, pairs, seed=0, rows=options.test_rows, split="test"),
    }
    heated, twins = made["test"].examples, made["test"].twins
    if options.second_test:  # the rows that follow those of validation: other dialogues, other sentences
        asked = options.validation_rows + options.test_rows
        second = build_stress(dev, pairs, seed=0, rows=asked, split="validation")
        assert second.examples[: options.validation_rows] == made["validation"].examples
        heated, twins = second.examples[options.validation_rows :], second.twins[options.validation_rows :]
        test = [example for example in dev if example.id not in {twin.id for twin in made["validation"].twins}]
    used = {example.id for example in twins}
    clean = [example for example in test if example.id not in used][: options.clean_rows]
    if len(clean) < options.clean_rows:  # the split is small: clean twins of stress dialogues are clean all the same
        clean += twins[: options.clean_rows - len(clean)]
    write_rows(paths["blunt"], [row(e, blunt=True) for e in made["train"].examples])
    write_rows(paths["civil"], [row(e) for e in made["train"].examples])
    write_rows(paths["stress_validation"], [row(e) for e in made["validation"].examples])
    write_rows(paths["stress_test"], [row(e) for e in heated])
    write_rows(paths["clean_test"], [row(e) for e in clean])
    return paths


def row(example: Example, *, blunt: bool = False) -> dict[str, Any]:
    from dialtune.data.dialogue import render_dialogue

    summary = {"summary": example.meta["summary_blunt"] if blunt else example.references[0]}
    if len(example.references) > 1 and not blunt:
        summary = {f"summary{k + 1}": text for k, text in enumerate(example.references)}
    return {"id": example.id, "dialogue": render_dialogue(example.messages), **summary}


def train_sft(out: Path, model: str, rows: Path, options: argparse.Namespace, *, epochs: int) -> str:
    settings = f"num_train_epochs: {epochs}\n{START}"
    if options.start_settings:
        settings = options.start_settings.replace(";", "\n")
    text = f"task: summarize\nmodel: {model}\noutput_dir: {out}\nseed: 0\ndata: {{train: {rows}}}\n{settings}"
    return str(run_sft(check_text(text, "benchmark"), resume="newest", on_event=progress))


def train_rl(out: Path, start: str, sets: dict[str, Path], seed: int, options: argparse.Namespace) -> Path:
    # The checkpoint is chosen by texts that are decoded as those that are judged.
    decoding = f"{{do_sample: true, temperature: {options.temperature}}}" if options.temperature else "{}"
    text = (
        f"task: detoxify\nmodel: {start}\noutput_dir: {out}\nseed: {seed}\nmax_steps: {options.steps}\n"
        f"data: {{train: {sets['civil']}, validation: {sets['stress_validation']}, "
        f"max_validation_rows: {options.validation_rows}}}\neval_steps: {options.eval_steps}\n"
        f"generation: {decoding}\n"
        f"{options.rl_settings.replace(';', chr(10)) if options.rl_settings else RL}"
    )
    return run_rl(check_rl_text(text, "benchmark"), resume="newest", on_event=progress)


def seconds_of(run: Path) -> float:
    return sum(r["step_s"] for r in read_rows(run / "metrics.jsonl") if "step_s" in r)


def judge(
    folder: Path,
    name: str,
    model: str,
    stress: DataSet,
    clean: DataSet,
    options: argparse.Namespace,
    *,
    prefix: str = "",
) -> dict[str, Evaluation]:
    """Summaries of both test sets, scored; an earlier result in the folder is used."""
    found: dict[str, Evaluation] = {}
    opened = None
    for kind, data in (("stress", stress), ("clean", clean)):
        out = folder / judged_in(options) / name / kind
        if (out / "eval.json").is_file():
            found[kind] = read_evaluation(out)
            continue
        opened = opened or load_model(model)
        task, budget = task_for("detoxify", model)
        prompts = prompts_for(opened, data.examples, task, budget or 1024)
        if prefix:
            prompts = [
                replace(
                    p, messages=(*p.messages[:-1], replace(p.messages[-1], content=prefix + p.messages[-1].content))
                )
                for p in prompts
            ]
        sampling = judged_by(options)
        completions = generate(opened, prompts, sampling, batch_size=options.batch_size, progress=counted(name, kind))
        found[kind] = score(out, data, completions, opened.info, task, sampling)
    return found


def judged_in(options: argparse.Namespace) -> str:
    return "second-eval" if options.second_test else "eval"


def judged_by(options: argparse.Namespace) -> Sampling:
    return Sampling(max_new_tokens=96, temperature=options.temperature)


def score(
    out: Path, data: DataSet, completions: Sequence[Completion], info: Any, task: Any, sampling: Sampling
) -> Evaluation:
    evaluation = evaluate_completions(
        data, completions, task.metrics, model=info, task=task.name,
        decoding=decoding_of(sampling, 0), template_sha256=template_sha256(task.template),
        leakage={"exact": 0, "near": 0},
    )  # fmt: skip
    write_evaluation(out, evaluation)
    return evaluation


def written(
    folder: Path,
    name: str,
    text_of: Callable[[EvalRow, Example], str],
    start: dict[str, Evaluation],
    stress: DataSet,
    clean: DataSet,
    options: argparse.Namespace,
) -> dict[str, Evaluation]:
    """Texts that no model was asked for, made of the start policy's row and its example."""
    task, _ = task_for("detoxify", "smollm2-135m")
    found = {}
    for kind, data in (("stress", stress), ("clean", clean)):
        by_id = {example.id: example for example in data.examples}
        texts = [Completion(r.id, text_of(r, by_id[r.id]), (), r.finish) for r in start[kind].rows]
        found[kind] = score(
            folder / judged_in(options) / name / kind, data, texts, start[kind].model, task, judged_by(options)
        )
    return found


def best_of(
    folder: Path, model: str, stress: DataSet, clean: DataSet, options: argparse.Namespace
) -> dict[str, Evaluation]:
    """n sampled summaries, the one the training reward likes best; costs n times the inference."""
    task, budget = task_for("detoxify", model)
    found: dict[str, Evaluation] = {}
    opened, civility, relevance = None, find_reward("toxicity"), find_reward("relevance_dialogue")
    for kind, data in (("stress", stress), ("clean", clean)):
        out = folder / judged_in(options) / f"best-of-{options.best_of}" / kind
        if (out / "eval.json").is_file():
            found[kind] = read_evaluation(out)
            continue
        opened = opened or load_model(model)
        prompts = prompts_for(opened, data.examples, task, budget or 1024)
        picked: list[Completion] = []
        sampling = Sampling(max_new_tokens=96, temperature=1.0)
        with torch.inference_mode():
            for at in range(0, len(prompts), 8):
                part, rows = prompts[at : at + 8], data.examples[at : at + 8]
                drawn = opened.sample(
                    opened.encode(part), sampling, seeds=range(at, at + len(part)), group=options.best_of
                )
                texts = opened.decode(drawn.response, drawn.mask)
                owners = [e for e in rows for _ in range(options.best_of)]
                value = np.asarray(civility.scores(owners, texts)) + 4 * np.asarray(relevance.scores(owners, texts))
                for k, example in enumerate(rows):
                    best = k * options.best_of + int(value[k * options.best_of : (k + 1) * options.best_of].argmax())
                    picked.append(Completion(example.id, texts[best], (), drawn.finish[best]))
                print(f"best of {options.best_of}, {kind}: {len(picked)}/{len(prompts)}", flush=True)
        found[kind] = score(out, data, picked, opened.info, task, sampling)
    return found


def report(judged: dict[str, dict[str, Evaluation]], costs: dict[str, float], options: argparse.Namespace) -> None:
    rows, headline, details = [], {}, {}
    worst: dict[str, float] = {}
    for name, sides in judged.items():
        if name == "start":
            continue
        stress = compare(judged["start"]["stress"], sides["stress"], allow_decoding_change=True)
        clean = compare(judged["start"]["clean"], sides["clean"], allow_decoding_change=True)
        details[name] = {"stress": dump(stress), "clean": dump(clean)}
        entry: dict[str, Any] = {"way": name}
        for scorer in SCORERS:
            key = f"toxicity_mean:{scorer}"
            if key not in stress.scores or stress.scores[key].relative is None:
                continue
            found = stress.scores[key]
            entry[f"toxicity {scorer}"] = found.relative
            if name.startswith("rl"):
                worst["toxicity_relative"] = max(worst.get("toxicity_relative", -9), found.relative or 0)
                high = found.relative_ci[1] if found.relative_ci else 0.0
                worst["toxicity_relative_ci_high"] = max(worst.get("toxicity_relative_ci_high", -9), high)
        entry |= {
            "rougeL stress": stress.scores["rougeL"].difference,
            "relevance reference": stress.scores["relevance_reference"].relative,
            "relevance dialogue": stress.scores["relevance_dialogue"].relative,
            "rougeL clean": clean.scores["rougeL"].difference,
            # No scorer minds a hole where a word was; a reader does.
            "with holes": float(np.mean([MASK in row.completion for row in sides["stress"].rows])),
            "train_s": costs.get(name),
        }
        if name.startswith("rl"):
            low = clean.scores["rougeL"].ci
            assert low is not None
            worst["rougeL_clean_change_ci_low"] = min(worst.get("rougeL_clean_change_ci_low", 99), low[0])
            print(f"\n{name}, stress")
            print("\n".join(describe(stress)))
            print(f"{name}, clean")
            print("\n".join(describe(clean)))
        rows.append(entry)
    print_table(rows)
    duels = []
    for name in (name for name in judged if name.startswith("rl")):
        for other in (other for other in CHEAPER if other in judged):
            duel = compare(judged[other]["stress"], judged[name]["stress"], allow_decoding_change=True)
            details[f"{name} against {other}"] = {"stress": dump(duel)}
            duels.append({"way": f"{name} against {other}"} | {key: shown(duel, key) for key in DUELS})
    print_table(duels)
    headline |= worst
    name = options.name
    write_result(name, rows, headline, scores=details, seeds=list(options.seeds))


def shown(comparison: Comparison, key: str) -> str:
    score = comparison.scores.get(key)
    return "-" if score is None or score.relative is None else " ".join(percent(score.relative, score.relative_ci))


def dump(comparison: Comparison) -> Any:
    return json.loads(comparison.model_dump_json(by_alias=True))["scores"]


def counted(name: str, kind: str) -> Any:
    return lambda done, total: print(f"{name}, {kind}: {done}/{total}", flush=True)


def progress(kind: str, facts: Any) -> None:
    if kind == "note":
        print(facts["text"], flush=True)
    elif kind == "evaluation" or (kind == "step" and (facts["step"] % 10 == 0 or "eval_objective" in facts)):
        shown = {k: round(v, 4) for k, v in facts.items() if isinstance(v, float) and not k.startswith(("ema", "tau"))}
        print(facts["step"], shown, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    gpu = torch.cuda.is_available()
    parser.add_argument("--model", default="smollm2-135m", help=f"a name, a folder, or {FROM_SCRATCH}")
    parser.add_argument("--train-rows", type=int, default=4000 if gpu else 1200, help="stress dialogues to train on")
    parser.add_argument("--validation-rows", type=int, default=100 if gpu else 96)
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--clean-rows", type=int, default=200)
    parser.add_argument(
        "--second-test", action="store_true", help="judge on validation dialogues that chose no checkpoint"
    )
    parser.add_argument("--steps", type=int, default=200 if gpu else 48)
    parser.add_argument("--eval-steps", type=int, default=20 if gpu else 48)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--best-of", type=int, default=8 if gpu else 4)
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="of the summaries that are judged; 0, greedy, where a model can"
    )
    parser.add_argument("--batch-size", type=int, default=128 if gpu else 32)
    parser.add_argument("--baselines", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--start-settings", help="recipe lines of the start policy instead of the built-in ones, ; between"
    )
    parser.add_argument("--rl-settings", help="recipe lines of the RL run instead of the built-in ones, ; between")
    parser.add_argument("--name", default="detox", help="benchmarks/results/NAME.json")
    parser.add_argument("--shared", help="folder of the corpora, if not ../shared/data")
    parser.add_argument("--work", help="folder of an earlier, killed run of this benchmark; go on with it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
