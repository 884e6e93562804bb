"""SFT speed: dialtune against transformers' Trainer / Seq2SeqTrainer and TRL's SFTTrainer, on the same 2 threads.

Every contender runs in processes of its own, one after the other, in alternating rounds, so that a busy machine hits
all of them. Three batchings: `same` feeds every contender the very same random batches and is the headline; `own`
leaves each its default (dialtune groups by length, the peers draw at random); `grouped` asks the peers for their
group_by_length. Tokens are real ones: padding does not count. Equality runs the `same` batches in fp32 and compares
losses update by update.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from record import print_table, shared_data, write_result

BATCH = {"causal": 8, "seq2seq": 16}
BATCHINGS = ("same", "own", "grouped")
PEERS = {"causal": ("trainer", "trl"), "seq2seq": ("trainer",)}
RATE = 1e-4


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(work(options)))
        return
    rows, headline, gaps = [], {}, {}
    for family in ("causal", "seq2seq"):
        contenders = ("dialtune", *PEERS[family])
        equal = {name: call(options, name, family, fp32=True)["same"]["losses"] for name in contenders}
        for name in PEERS[family]:
            pairs = zip(equal["dialtune"], equal[name], strict=True)
            gaps[f"{family} {name}"] = max(abs(a - b) for a, b in pairs)
        print("fp32 losses", equal, flush=True)
        found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in contenders} for kind in BATCHINGS}
        for turn in range(options.rounds):
            for name in contenders if turn % 2 == 0 else contenders[::-1]:
                result = call(options, name, family)
                for kind in BATCHINGS:
                    found[kind][name].append(result[kind]["tokens"] / result[kind]["seconds"])
                    print(f"{family} {kind} {name}: {found[kind][name][-1]:.0f} tokens/s", flush=True)
        for kind in BATCHINGS:
            best = max(PEERS[family], key=lambda name: median(found[kind][name]))
            ratios = [a / b for a, b in zip(found[kind]["dialtune"], found[kind][best], strict=True)]
            rows.append(
                {"family": family, "batching": kind}
                | {f"{name} tokens/s": round(median(values), 1) for name, values in found[kind].items()}
                | {"faster peer": best, "ratio": round(median(ratios), 3), "lowest": round(min(ratios), 3)}
            )
            headline[f"{family}_ratio_{kind}"] = median(ratios)
    print_table([{key: row.get(key, "-") for key in rows[0]} for row in rows])
    print("largest loss gap in fp32:", {name: f"{gap:.2e}" for name, gap in gaps.items()})
    headline |= {f"{family}_ratio": headline[f"{family}_ratio_same"] for family in ("causal", "seq2seq")}
    headline["largest_loss_gap_fp32"] = max(gaps.values())
    name = "sft-lora" if options.lora else "sft"
    write_result(name, rows, headline, loss_gaps=gaps, rounds=options.rounds, updates=options.steps)


def call(options: argparse.Namespace, name: str, family: str, *, fp32: bool = False) -> Any:
    """One contender in a process of its own."""
    command = [sys.executable, __file__, "--worker", name, "--family", family, "--steps", str(options.steps)]
    command += [*(["--fp32"] if fp32 else []), *(["--lora"] if options.lora else [])]
    command += ["--shared", options.shared] if options.shared else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(options: argparse.Namespace) -> dict[str, Any]:
    """A few updates under each batching; tokens, seconds and losses without the warm-up update."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = open_model(options)
    rows = token_rows(model, options)
    run = run_dialtune if options.worker == "dialtune" else run_peer
    return {kind: run(model, rows, kind, options) for kind in (("same",) if options.fp32 else BATCHINGS)}


def batch_of(options: argparse.Namespace) -> int:
    return BATCH[options.family] // (2 if options.fp32 else 1)  # fp32 is for equality, not for speed


def open_model(options: argparse.Namespace) -> Any:
    """SmolLM2-135M, or a T5 of the published small size; without dropout, so that losses can be compared."""
    from dialtune.models.causal import CausalLM
    from dialtune.models.loading import load_model
    from dialtune.models.lora import attach_lora

    if options.family == "seq2seq":
        return small_t5(shared_data(options.shared))
    model = load_model("smollm2-135m", dtype="float32")
    if not options.lora:
        return model
    model = attach_lora(model, r=16, alpha=32, dropout=0.0, target_modules="all-linear", seed=0)
    assert isinstance(model, CausalLM)
    return model


def small_t5(shared: Path) -> Any:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    from dialtune.models.seq2seq import Seq2SeqLM
    from dialtune.results import ModelInfo

    config = T5Config(
        vocab_size=32128, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, dropout_rate=0.0,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "t5")
    return Seq2SeqLM(T5ForConditionalGeneration(config), tokenizer, ModelInfo(name="t5-small-size"))


def token_rows(model: Any, options: argparse.Namespace) -> list[Any]:
    """DialogSum rows as ids, the same for every contender, in one random order."""
    import random

    from dialtune.data.reading import read_examples
    from dialtune.prompts import build_prompts
    from dialtune.tasks import find_task
    from dialtune.trainers.batching import tokenize_rows

    data = read_examples(shared_data(options.shared) / "dialogsum" / "dialogsum.train.jsonl.gz", limit=1600)
    examples = [e for e in data.examples if model.count_tokens(e.messages[:1]) < 500]
    prompts = build_prompts(examples, find_task("summarize"), max_prompt_tokens=512, count_tokens=model.count_tokens)
    rows = tokenize_rows(model, prompts, [example.references[0] for example in examples], max_response=128)
    random.Random(0).shuffle(rows)
    return rows[: 64 * batch_of(options)]


def run_dialtune(model: Any, rows: Sequence[Any], kind: str, options: argparse.Namespace) -> dict[str, Any]:
    from dialtune.config.schema import RunConfig
    from dialtune.runs import RunFolder
    from dialtune.trainers import batching, sft

    config = RunConfig(
        model="benchmark", data={"train": "benchmark"}, learning_rate=RATE, lr_scheduler_type="constant",
        per_device_train_batch_size=batch_of(options), max_steps=options.steps + 1, bf16=not options.fp32,
        group_by_length=kind != "same", save_total_limit=1, seed=0,
    )  # fmt: skip
    found: list[Any] = []

    def note(event: str, facts: Any) -> None:
        if event == "step":
            found.append(facts)

    with tempfile.TemporaryDirectory() as folder:
        sft.epoch_batches = batching.epoch_batches if kind != "same" else in_given_order
        sft.save_checkpoint = no_checkpoint
        sft.train_sft(model, rows, config, RunFolder(folder), on_event=note)
    timed = found[1:]
    return {
        "tokens": sum(row["tokens_per_s"] * row["step_s"] for row in timed),
        "seconds": sum(row["step_s"] for row in timed),
        "losses": [row["loss"] for row in found],
    }


def no_checkpoint(*_: Any, **__: Any) -> None:
    """The peers are told not to save either."""


def in_given_order(lengths: Sequence[int], batch_size: int, **_: Any) -> list[list[int]]:
    """Batches cut from the rows as they stand: what a sequential sampler gives the peers."""
    return [list(range(at, min(at + batch_size, len(lengths)))) for at in range(0, len(lengths), batch_size)]


def run_peer(model: Any, rows: Sequence[Any], kind: str, options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback

    clock = Clock()
    callback = type("Callback", (TrainerCallback,), {"on_step_begin": clock.begin, "on_step_end": clock.end})()
    strategy = {"same": "sequential", "own": "random", "grouped": "group_by_length"}[kind]
    settings: dict[str, Any] = {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": batch_of(options), "learning_rate": RATE,
        "max_steps": options.steps + 1, "lr_scheduler_type": "constant", "bf16": not options.fp32, "use_cpu": True,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "weight_decay": 0.0,
        "gradient_checkpointing": False, "train_sampling_strategy": strategy, "seed": 0, "dataloader_num_workers": 0,
        "optim": "adamw_torch_fused", "remove_unused_columns": False,
    }  # fmt: skip
    trainer = PEER[options.worker, options.family](model, rows, settings, callback, Dataset)
    clock.collate(trainer)
    model.module.to(torch.float32)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {"tokens": sum(clock.tokens[1 : options.steps + 1]), "seconds": sum(clock.seconds[1:]), "losses": losses}


class Clock:
    """Times a peer's updates and counts the real tokens of the batches it was given."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self._began = 0.0

    def begin(self, _callback: Any, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def end(self, _callback: Any, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._began)

    def collate(self, trainer: Any) -> None:
        inner = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> Any:
            self.tokens.append(sum(row["n_tokens"] for row in rows))
            return inner([{key: value for key, value in row.items() if key != "n_tokens"} for row in rows])

        trainer.data_collator = counted


def causal_columns(rows: Sequence[Any]) -> dict[str, list[Any]]:
    return {
        "input_ids": [[*row.query, *row.response] for row in rows],
        "labels": [[*([-100] * len(row.query)), *row.response] for row in rows],
        "n_tokens": [row.length for row in rows],
    }


def causal_trainer(model: Any, rows: Sequence[Any], settings: dict[str, Any], callback: Any, dataset: Any) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    collator = DataCollatorForSeq2Seq(model.tokenizer, padding=True)
    return Trainer(
        model=model.module, args=TrainingArguments(**settings), train_dataset=dataset.from_dict(causal_columns(rows)),
        data_collator=collator, callbacks=[callback],
    )  # fmt: skip


def trl_trainer(model: Any, rows: Sequence[Any], settings: dict[str, Any], callback: Any, dataset: Any) -> Any:
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**settings, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    return SFTTrainer(
        model=model.module, args=arguments, train_dataset=dataset.from_dict(causal_columns(rows)),
        processing_class=model.tokenizer, callbacks=[callback],
    )  # fmt: skip


def seq2seq_trainer(model: Any, rows: Sequence[Any], settings: dict[str, Any], callback: Any, dataset: Any) -> Any:
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

    columns = {
        "input_ids": [list(row.query) for row in rows],
        "labels": [list(row.response) for row in rows],
        "n_tokens": [row.length for row in rows],
    }
    return Seq2SeqTrainer(
        model=model.module, args=Seq2SeqTrainingArguments(**settings), train_dataset=dataset.from_dict(columns),
        data_collator=DataCollatorForSeq2Seq(model.tokenizer, padding=True), callbacks=[callback],
    )  # fmt: skip


PEER = {
    ("trainer", "causal"): causal_trainer,
    ("trl", "causal"): trl_trainer,
    ("trainer", "seq2seq"): seq2seq_trainer,
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4, help="timed updates per process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lora", action="store_true", help="LoRA r=16 on all linear layers instead of all weights")
    parser.add_argument("--shared", help="folder of the corpora, if not ../shared/data")
    parser.add_argument("--worker", choices=("dialtune", "trainer", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--family", default="causal", help=argparse.SUPPRESS)
    parser.add_argument("--fp32", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
