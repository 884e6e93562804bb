"""Looks up in the packages of other tools what they have; writes results/peers.json and the tables of peers.md.

A cell is a claim with a pattern: `yes` and `part` must find it in the file that is named, `no` must find it nowhere in
the package (or in the folder that is named). Wheels are downloaded without their dependencies and only read, never run.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Result file, its headline's key, what it is.
SPEED = [
    (
        "sft",
        "causal_ratio_same",
        "SmolLM2-135M, 8 rows, the same batches for all, against the faster of Trainer and TRL",
    ),
    ("sft", "causal_ratio_own", "the same, each tool's default batches"),
    ("sft", "causal_ratio_grouped", "the same, peers told to group by length"),
    ("sft", "seq2seq_ratio_same", "T5 of small size, 16 rows, the same batches for all, against Seq2SeqTrainer"),
    ("sft", "seq2seq_ratio_own", "the same, each tool's default batches"),
    ("sft", "seq2seq_ratio_grouped", "the same, peers told to group by length"),
    ("rl", "grpo_vs_trl", "a GRPO step, SmolLM2-135M with LoRA, 2 prompts x 8 completions, against TRL's GRPOTrainer"),
    ("rl", "ppo_seq2seq_vs_trl011", "a PPO step, T5 of small size, 16 prompts, against TRL 0.11.4's PPOTrainer"),
    ("rl", "grpo_seq2seq_vs_trl011", "a GRPO step, the same size, 2 prompts x 8 completions, against the same"),
]
RESULT = Path(__file__).parent / "results" / "peers.json"
PEERS = {
    "TRL": "trl==1.16.0",
    "axolotl": "axolotl==0.19.0",
    "LLaMA-Factory": "llamafactory==0.9.5",
    "ms-swift": "ms-swift==4.6.0",
    "lm-eval": "lm_eval==0.4.13",
}
PAGE = Path(__file__).parent / "peers.md"
MARKS = ("<!-- made by benchmarks/peers.py -->", "<!-- end -->")


@dataclass(frozen=True)
class Cell:
    """`answer` is yes, part or no; `where` ends the path of the files that are read; `note` is for people."""

    answer: str
    pattern: str
    where: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One feature: how dialtune shows it, and a cell for each peer; a peer without a cell is out of its scope."""

    name: str
    shown_by: str
    cells: dict[str, Cell]


def nobody(pattern: str, *but: str) -> dict[str, Cell]:
    """`no` for every peer that is not named."""
    return {peer: Cell("no", pattern) for peer in PEERS if peer not in but}


SEQ2SEQ = r"AutoModelForSeq2SeqLM|Seq2SeqTrainer\b|is_encoder_decoder"
ROWS = [
    Row(
        "fine-tunes T5, Flan-T5, BART",
        "`dialtune sft summarize-flan-t5-base`",
        {
            "TRL": Cell(
                "no", SEQ2SEQ, "trl/trainer/", "its stable trainers; ORPO and CPO in experimental/ have a path"
            ),
            "axolotl": Cell("no", r"AutoModelForSeq2SeqLM|Seq2SeqTrainer\b"),
            "LLaMA-Factory": Cell(
                "part",
                r"AutoModelForSeq2SeqLM.*\n.*\n?",
                "model/loader.py",
                "opens the class for audio models; its rows are prompt + answer in one sequence",
            ),
            "ms-swift": Cell("no", r"AutoModelForSeq2SeqLM", "", "it has Florence and DiffusionGemma"),
        },
    ),
    Row(
        "reinforcement learning of T5, BART on rewards",
        "`dialtune rl detoxify-flan-t5-base`",
        {
            "TRL": Cell("no", SEQ2SEQ, "trl/trainer/"),
            "axolotl": Cell("no", r"AutoModelForSeq2SeqLM"),
            "LLaMA-Factory": Cell("no", SEQ2SEQ, "train/ppo/"),
            "ms-swift": Cell("no", SEQ2SEQ, "rlhf_trainers/grpo_trainer.py"),
        },
    ),
    Row(
        "PPO with a value head",
        "`dialtune rl RECIPE --method ppo`",
        {
            "TRL": Cell("no", r"class PPOTrainer"),
            "axolotl": Cell("no", r"PPO = |PPOTrainer"),
            "LLaMA-Factory": Cell("yes", r"stage: Literal\[.*\"ppo\"", "hparams/finetuning_args.py"),
            "ms-swift": Cell("yes", r"rlhf_type: Literal\[.*'ppo'", "arguments/rlhf_args.py"),
        },
    ),
    Row(
        "GRPO",
        "`dialtune rl RECIPE --method grpo`",
        {
            "TRL": Cell("yes", r"class GRPOTrainer", "trainer/grpo_trainer.py"),
            "axolotl": Cell("yes", r"GRPO = \"grpo\"", "schemas/enums.py"),
            "LLaMA-Factory": Cell("no", r"GRPO"),
            "ms-swift": Cell("yes", r"rlhf_type: Literal\[.*'grpo'", "arguments/rlhf_args.py"),
        },
    ),
    Row(
        "RLOO",
        "`dialtune rl RECIPE --method rloo`",
        {
            "TRL": Cell("yes", r"class RLOOTrainer", "trainer/rloo_trainer.py"),
            "axolotl": Cell("no", r"RLOO = |class \w*RLOO\w*Trainer"),
            "LLaMA-Factory": Cell("no", r"(?i)rloo"),
            "ms-swift": Cell("yes", r"advantage_estimator == 'rloo'", "arguments/rlhf_args.py"),
        },
    ),
    Row(
        "a second quality held by a multiplier while the reward rises",
        "`dialtune config explain constraint`",
        nobody(r"(?i)lagrang|dual.?ascent", "lm-eval"),
    ),
    Row(
        "a NaN reward is left out, counted and named",
        "`pytest tests/rewards/test_reward_base.py`",
        {
            "TRL": Cell(
                "part",
                r"unscorable_mask = torch\.isnan",
                "trainer/grpo_trainer.py",
                "counts as None, with a warning; an infinite one turns a group's advantages into 0",
            ),
            "ms-swift": Cell(
                "part", r"reward_weights.*nansum", "rlhf_trainers/grpo_trainer.py", "counts as 0 in the sum"
            ),
            "axolotl": Cell("part", r"from trl", "trainers/grpo/trainer.py", "as TRL, whose trainer it extends"),
        },
    ),
    Row(
        "checkpoints renamed into place and verified by hash",
        "`pytest -m slow tests/test_checkpoints.py`",
        {
            "TRL": Cell("no", r"os\.(replace|rename)\(", "trl/trainer/"),
            "axolotl": Cell("no", r"os\.(replace|rename)\(.*checkpoint"),
            "LLaMA-Factory": Cell("no", r"os\.(replace|rename)\(|sha256"),
            "ms-swift": Cell("no", r"os\.(replace|rename)\(.*checkpoint"),
        },
    ),
    Row(
        "ROUGE built in",
        "`dialtune evaluate --metric rougeL`",
        {
            "TRL": Cell("no", r"(?i)\brouge"),
            "axolotl": Cell("no", r"(?i)\brouge"),
            "LLaMA-Factory": Cell("yes", r"from rouge_chinese import", "train/sft/metric.py", "rouge_chinese"),
            "ms-swift": Cell("yes", r"from rouge\.rouge import", "metrics/nlg.py", "the package rouge"),
            "lm-eval": Cell("yes", r"rouge_score|rouge", "tasks/truthfulqa/utils.py", "inside tasks"),
        },
    ),
    Row(
        "BLEU over the corpus",
        "`dialtune evaluate --metric bleu`",
        {
            "TRL": Cell("no", r"(?i)\bbleu"),
            "axolotl": Cell("yes", r"sacrebleu", "utils/schemas/validation.py", "through evaluate"),
            "LLaMA-Factory": Cell("no", r"corpus_bleu|sacrebleu", "", "mean of sentence BLEU over characters"),
            "ms-swift": Cell("no", r"corpus_bleu|sacrebleu", "", "mean of sentence BLEU"),
            "lm-eval": Cell("yes", r"sacrebleu\.corpus_bleu", "api/metrics.py"),
        },
    ),
    Row(
        "an interval or a standard error beside a score",
        "`dialtune evaluate`",
        {
            **nobody(r"(?i)bootstrap_(ci|stderr|interval)|confidence.interval|stderr_for_metric", "lm-eval"),
            "lm-eval": Cell("yes", r"def bootstrap_stderr", "api/metrics.py", "a standard error"),
        },
    ),
    Row(
        "two models compared in pairs, with a verdict",
        "`dialtune compare BEFORE AFTER`",
        nobody(r"(?i)mcnemar|wilcoxon|paired[ _](bootstrap|test|difference)|sign[ _-]?flip"),
    ),
    Row(
        "how many dialogues a claim needs",
        "`dialtune evaluate --plan 'toxicity -20%'`",
        nobody(r"(?i)n_needed|sample[ _]size[ _](calc|plan)|minimum[ _]sample[ _]size"),
    ),
    Row(
        "rows that occur twice",
        "`dialtune data leaks`",
        {
            "TRL": Cell("no", r"(?i)near.?dup|minhash|deduplicat\w+ (rows|dataset)"),
            "axolotl": Cell(
                "part",
                r"Deduplicates datasets and test_datasets with identical entries",
                "schemas/config.py",
                "identical ones",
            ),
            "LLaMA-Factory": Cell("no", r"(?i)dedup|near.?dup|minhash"),
            "ms-swift": Cell("no", r"(?i)near.?dup|minhash|deduplicat\w+ (rows|dataset)"),
            "lm-eval": Cell("part", r"(?i)decontamin", "api/task.py", "n-grams shared with a training corpus"),
        },
    ),
    Row(
        "toxicity by several scorers, and how far they agree",
        "`dialtune evaluate --task detoxify`",
        {
            **nobody(r"(?i)detoxify|toxicity", "lm-eval"),
            "lm-eval": Cell(
                "part", r"perspective|PERSPECTIVE", "realtoxicityprompts/metric.py", "one scorer over the network"
            ),
        },
    ),
    Row("one HTML file that proves it", "`dialtune report runs/demo`", nobody(r"report\.html|html_report")),
    Row(
        "preference pairs (DPO)",
        "no",
        {
            "TRL": Cell("yes", r"class DPOTrainer", "trainer/dpo_trainer.py"),
            "axolotl": Cell("yes", r"DPO = \"dpo\"", "schemas/enums.py"),
            "LLaMA-Factory": Cell("yes", r"stage: Literal\[.*\"dpo\"", "hparams/finetuning_args.py"),
            "ms-swift": Cell("yes", r"rlhf_type: Literal\['dpo'", "arguments/rlhf_args.py"),
        },
    ),
    Row(
        "sampling by an inference engine (vLLM)",
        "no",
        {
            "TRL": Cell("yes", r"use_vllm: bool", "trainer/grpo_config.py"),
            "axolotl": Cell("yes", r"use_vllm", "schemas/trl.py"),
            "LLaMA-Factory": Cell("part", r"vllm", "chat/vllm_engine.py", "for chat"),
            "ms-swift": Cell("yes", r"use_vllm: bool", "swift/"),
            "lm-eval": Cell("yes", r"vllm", "models/vllm_causallms.py"),
        },
    ),
    Row(
        "base weights in 4 bits",
        "no",
        {
            "TRL": Cell("yes", r"load_in_4bit: bool", "trainer/model_config.py"),
            "axolotl": Cell("yes", r"load_in_4bit", "schemas/peft.py"),
            "LLaMA-Factory": Cell("yes", r"quantization_bit", "hparams/model_args.py"),
            "ms-swift": Cell("yes", r"quant_bits", "arguments/base_args/quant_args.py"),
            "lm-eval": Cell("yes", r"load_in_4bit", "models/huggingface.py"),
        },
    ),
    Row(
        "images and sound",
        "no",
        {
            "TRL": Cell("yes", r"pixel_values", "trainer/grpo_trainer.py", "images"),
            "axolotl": Cell("yes", r"pixel_values|is_multimodal", "axolotl/"),
            "LLaMA-Factory": Cell("yes", r"pixel_values", "data/mm_plugin.py"),
            "ms-swift": Cell("yes", r"pixel_values", "template/templates/qwen.py"),
            "lm-eval": Cell("part", r"(?i)multimodal", "models/hf_vlms.py", "images"),
        },
    ),
]


def read(wheel: Path) -> dict[str, str]:
    """Every Python file of a wheel by its path."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        return {name: archive.read(name).decode("utf-8", "replace") for name in names}


def hits(files: dict[str, str], cell: Cell) -> Iterator[str]:
    """`file:line` of each place where the pattern is found."""
    for name, text in sorted(files.items()):
        if cell.where in name:
            for match in re.finditer(cell.pattern, text):
                yield f"{name}:{text.count(chr(10), 0, match.start()) + 1}"


def look_up(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """(what peers.json holds, claims that are not so)."""
    packages = {}
    for peer, requirement in PEERS.items():
        name = requirement.partition("==")[0].replace("-", "_")
        packages[peer] = read(next(folder.glob(f"{name}-*.whl")))
    rows, wrong = [], []
    for row in ROWS:
        cells: dict[str, dict[str, Any]] = {}
        for peer, cell in row.cells.items():
            found = list(hits(packages[peer], cell))
            read_here = [name for name in packages[peer] if cell.where in name]
            if not read_here or bool(found) != (cell.answer != "no"):
                wrong.append(
                    f"{row.name}: {peer}: {cell.answer}, but {len(found)} hits in {len(read_here)} files {found[:3]}"
                )
            cells[peer] = {"answer": cell.answer, "note": cell.note, "pattern": cell.pattern, "where": cell.where}
            cells[peer] |= {"files_read": len(read_here), "found": found[:2]}
        rows.append({"feature": row.name, "dialtune": row.shown_by, "peers": cells})
    return {"command": "python benchmarks/peers.py", "packages": PEERS, "rows": rows}, wrong


def table(result: dict[str, Any]) -> str:
    """The features as a table, and below it what stands behind each cell that needs a word."""
    lines = [f"| | dialtune | {' | '.join(PEERS)} |", "|---" * (2 + len(PEERS)) + "|"]
    notes = []
    for row in result["rows"]:
        words = []
        for peer in PEERS:
            cell = row["peers"].get(peer, {"answer": "–", "note": ""})
            if cell["note"]:
                notes.append(f"{len(notes) + 1}. {peer}, {row['feature']}: {cell['note']}.")
            words.append(cell["answer"] + (f" [{len(notes)}]" if cell["note"] else ""))
        lines.append(f"| {row['feature']} | {row['dialtune']} | {' | '.join(words)} |")
    return "\n".join([*lines, "", *notes])


def speed(folder: Path) -> str:
    """Ratios to the faster peer, from the result files that are there."""
    lines = ["| what | ratio | file |", "|---|---|---|"]
    for file, key, words in SPEED:
        path = folder / f"{file}.json"
        if path.is_file():
            value = json.loads(path.read_text(encoding="utf-8"))["headline"][key]
            lines.append(f"| {words} | {value:.2f} | `results/{file}.json`, `{key}` |")
    return "\n".join(lines)


def page(text: str, result: dict[str, Any], folder: Path) -> str:
    """The text of peers.md with both tables made anew."""
    for made in (table(result), speed(folder)):
        head, _, rest = text.partition(MARKS[0])
        _, _, tail = rest.partition(MARKS[1])
        text = f"{head}\0\n\n{made}\n\n\1{tail}"
    return text.replace("\0", MARKS[0]).replace("\1", MARKS[1])


def main() -> int:
    """0 if every claim was confirmed and written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, help="a folder with the wheels; downloaded if left out")
    parser.add_argument("--page", action="store_true", help="look nothing up; write peers.md from the result files")
    asked = parser.parse_args()
    given = asked.wheels
    if asked.page:
        result = json.loads(RESULT.read_text(encoding="utf-8"))
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), result, RESULT.parent), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        wheels = given or Path(folder)
        if given is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
            subprocess.run([*command, *PEERS.values()], check=True)
        result, wrong = look_up(wheels)
    for line in wrong:
        print(line)
    if not wrong:
        RESULT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), result, RESULT.parent), encoding="utf-8")
        print(f"{len(ROWS)} features of {len(PEERS)} packages: {RESULT}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
