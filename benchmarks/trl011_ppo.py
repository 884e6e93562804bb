"""One contender of bench_rl.py: steps of TRL 0.11.4's PPOTrainer on a T5. Runs in .venv-trl011, without dialtune."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from trl import AutoModelForSeq2SeqLMWithValueHead, PPOConfig, PPOTrainer

CAP, BETA, RATE = 40, 0.05, 1e-4  # as in bench_rl.py


def main() -> None:
    options = parse()
    torch.set_num_threads(2)
    torch.manual_seed(0)
    folder = Path(options.work)
    ids = json.loads((folder / "seq2seq.json").read_text(encoding="utf-8"))["ids"]
    queries = [torch.tensor(row) for row in ids]
    # By its file: this transformers cannot open a tokenizer folder that a newer one wrote.
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "t5" / "tokenizer.json"), pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(str(folder / "t5"))
    config = PPOConfig(
        batch_size=len(queries), mini_batch_size=len(queries), ppo_epochs=options.epochs, learning_rate=RATE,
        init_kl_coef=BETA, adap_kl_ctrl=False, seed=0,
        accelerator_kwargs={"cpu": True, "mixed_precision": "bf16" if options.precision == "autocast" else "no"},
    )  # fmt: skip
    trainer = PPOTrainer(config, model, None, tokenizer)  # the reference is a frozen copy
    print(json.dumps({"steps": [step(trainer, tokenizer, queries) for _ in range(options.steps + 1)]}))


def step(trainer: Any, tokenizer: Any, queries: list[Any]) -> dict[str, Any]:
    """Generate, score, update: seconds, mean real tokens of a completion, seconds by phase."""
    began = time.perf_counter()
    responses = trainer.generate(
        queries, batch_size=len(queries), max_new_tokens=CAP, do_sample=True, top_k=0, top_p=1.0, temperature=1.0,
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    generated = time.perf_counter()
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    rewards = [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in texts]
    scored = time.perf_counter()
    stats = trainer.step(queries, responses, [torch.tensor(value) for value in rewards])
    ended = time.perf_counter()
    phases = {
        "generate": generated - began,
        "reward": scored - generated,
        "old and ref": float(stats["time/ppo/forward_pass"]),
        "update": ended - scored - float(stats["time/ppo/forward_pass"]),
    }
    lengths = [len(response) - 1 for response in responses]  # without the start token
    return {"seconds": ended - began, "tokens": sum(lengths) / len(lengths), "phases": phases}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--precision", choices=("fp32", "autocast"), required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
