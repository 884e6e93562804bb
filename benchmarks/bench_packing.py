"""Speed of learning replies in context: one forward pass per dialogue against one per reply, on real DailyDialog.

Both ways make the same updates: the same dialogues, the same learned tokens, the same loss and gradient; only the
forward passes differ. They run in processes of their own, in alternating rounds, so that a busy machine hits both.
Tokens per second are learned tokens, so that the ratio is that of the times. Beside it stands the ratio of all tokens
that the passes read, prompts included: what the model's layers alone could gain; the head works on learned tokens only,
as much in both ways. Equality is checked in fp32 on a small batch, over the gradients of all weights.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

from record import print_table, shared_data, write_result

WAYS = ("dialogue", "reply")
CAP = 128  # tokens of a reply: 99 in 100 are shorter
POOL, BLOCK = 400, 8  # dialogues


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(equality(options) if options.worker == "equality" else work(options)))
        return
    gaps = call(options, "equality")
    print("fp32:", {name: f"{value:.3g}" for name, value in gaps.items()}, flush=True)
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for turn in range(options.rounds):
        for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
            found[way].append(call(options, way))
            print(f"{way}: {speed(found[way][-1]):.1f} learned tokens/s", flush=True)
    ratios = [speed(a) / speed(b) for a, b in zip(found["dialogue"], found["reply"], strict=True)]
    first = {way: results[0] for way, results in found.items()}
    assert first["dialogue"]["learned"] == first["reply"]["learned"]
    ideal = first["reply"]["tokens"] / first["dialogue"]["tokens"]
    rows = [
        {
            "a pass per": way, "rows": first[way]["rows"], "tokens read": first[way]["tokens"],
            "learned": first[way]["learned"], "padding": round(first[way]["padding"], 3),
            "seconds": round(median(sum(result["seconds"]) for result in results), 2),
            "learned tokens/s": round(median(speed(result) for result in results), 1),
        }
        for way, results in found.items()
    ]  # fmt: skip
    print_table(rows)
    print(f"ratio {median(ratios):.2f} (rounds {', '.join(f'{ratio:.2f}' for ratio in ratios)}); by tokens {ideal:.2f}")
    headline = {"tokens_per_s_ratio": median(ratios), "lowest_ratio": min(ratios), "ideal_ratio": ideal, **gaps}
    write_result("packing", rows, headline, rounds=options.rounds, updates=options.steps, speaker=options.speaker)


def speed(result: dict[str, Any]) -> float:
    """Learned tokens per second."""
    return float(result["learned"] / sum(result["seconds"]))


def call(options: argparse.Namespace, worker: str) -> Any:
    """One worker in a process of its own."""
    command = [sys.executable, __file__, "--worker", worker]
    for name in ("steps", "dialogues", "batch", "reply_batch", "speaker", "shared"):
        value = getattr(options, name)
        command += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{worker} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(options: argparse.Namespace) -> dict[str, Any]:
    """A few updates of one way; seconds of each but the first, which warms up, and what the passes read."""
    import torch

    from dialtune.config.schema import RunConfig
    from dialtune.trainers.update import Updater

    model = open_model(lora=True)
    batches = [micro_batches(rows, options) for rows in updates(model, options)]
    config = RunConfig(
        model="benchmark", data={"train": "benchmark"}, learning_rate=2e-4, lr_scheduler_type="constant",
        bf16=True, seed=0,
    ).resolve()  # fmt: skip
    updater = Updater(model.module, config, total_steps=len(batches), device=model.device)
    model.module.train()
    seconds = []
    for number, batch in enumerate(batches):
        rows = [row for micro in batch for row in micro]
        places = {id(row): place for place, row in enumerate(rows)}
        numbers = [[places[id(row)] for row in micro] for micro in batch]
        began = time.perf_counter()
        updater.step(
            numbers,
            lambda chosen, rows=rows: loss_sum(model, [rows[i] for i in chosen]),
            sum(row.n_learned for row in rows),
            number=number,
        )
        seconds.append(time.perf_counter() - began)
    timed = [micro for batch in batches[1:] for micro in batch]
    cells = sum(len(micro) * max(row.length for row in micro) for micro in timed)
    tokens = sum(row.length for micro in timed for row in micro)
    return {
        "seconds": seconds[1:], "tokens": tokens, "padding": 1 - tokens / cells, "rows": sum(map(len, timed)),
        "learned": sum(row.n_learned for micro in timed for row in micro), "threads": torch.get_num_threads(),
    }  # fmt: skip


def equality(options: argparse.Namespace) -> dict[str, float]:
    """fp32, all weights: the relative gap of the mean loss, and of the gradient's norm over all weights."""
    import torch

    model = open_model(lora=False)
    options.steps = 0
    found = []
    for way in WAYS:
        options.worker = way
        (rows,) = updates(model, options)
        n_tokens = sum(row.n_learned for row in rows)
        model.module.zero_grad()
        losses = []
        for micro in micro_batches(rows, options):
            loss = loss_sum(model, micro) / n_tokens
            loss.backward()
            losses.append(float(loss.detach()))
        found.append((sum(losses), [p.grad.clone() for p in model.module.parameters() if p.grad is not None]))
    (loss, gradients), (wanted, wanted_gradients) = found
    pairs = list(zip(gradients, wanted_gradients, strict=True))
    gap = torch.stack([(a - b).square().sum() for a, b in pairs]).sum().sqrt()
    norm = torch.stack([b.square().sum() for _, b in pairs]).sum().sqrt()
    return {"loss_gap_fp32": abs(loss - wanted) / wanted, "gradient_gap_fp32": float(gap / norm)}


def open_model(*, lora: bool) -> Any:
    """SmolLM2-135M without dropout, on two threads."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    import torch

    from dialtune.models.loading import load_model
    from dialtune.models.lora import attach_lora

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = load_model("smollm2-135m", dtype="bfloat16" if lora else "float32")
    if not lora:
        return model
    return attach_lora(model, r=16, alpha=32, dropout=0.0, target_modules="all-linear", seed=0)


def updates(model: Any, options: argparse.Namespace) -> list[list[Any]]:
    """For each update, the warm-up first, the rows of its dialogues: joined or a reply each; the same in both ways."""
    from dialtune.config.data_schema import TurnsConfig
    from dialtune.data.cleaning import clean_examples
    from dialtune.data.reading import read_examples
    from dialtune.data.turns import reply_examples
    from dialtune.prompts import build_prompts
    from dialtune.tasks import find_task
    from dialtune.trainers.batching import tokenize_rows
    from dialtune.trainers.packing import join_replies

    data = read_examples(shared_data(options.shared) / "dailydialog" / "dialogues_train.txt.gz")
    settings = TurnsConfig(speaker=options.speaker)
    found = []
    for dialogues in drawn(data.examples, options):
        examples = reply_examples(clean_examples(dialogues, ("tokenised_spacing",)).examples, settings)
        prompts = build_prompts(examples, find_task("respond"))
        rows = tokenize_rows(model, prompts, [example.references[0] for example in examples], max_response=CAP)
        found.append(join_replies(model, examples, prompts, rows) if options.worker == "dialogue" else rows)
    return found


def drawn(dialogues: Sequence[Any], options: argparse.Namespace) -> list[list[Any]]:
    """The dialogues of the warm-up and of each update: blocks of like length, evenly from short to long.

    The trainer sorts rows in pools of 50 batches, so that they meet others of their length. A few dozen dialogues drawn
    one by one would be padded far more than in training.
    """
    length = lambda dialogue: sum(len(turn.content) for turn in dialogue.messages)  # noqa: E731
    pool = sorted(random.Random(0).sample(dialogues, POOL), key=length)
    blocks = [pool[at : at + BLOCK] for at in range(0, POOL, BLOCK)]
    n_blocks = max(1, options.dialogues // BLOCK)
    chosen = [
        [blocks[int((part + (update + 0.5) / options.steps) * len(blocks) / n_blocks)] for part in range(n_blocks)]
        for update in range(options.steps)
    ]
    return [pool[:2], *([one for block in taken for one in block] for taken in chosen)]


def micro_batches(rows: Sequence[Any], options: argparse.Namespace) -> list[list[Any]]:
    """Rows of like length together, as the trainer groups them."""
    size = options.batch if options.worker == "dialogue" else options.reply_batch or options.batch
    ordered = sorted(rows, key=lambda row: -row.length)
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


def loss_sum(model: Any, rows: Sequence[Any]) -> Any:
    from dialtune.trainers.batching import learned_logprobs

    return -learned_logprobs(model, rows).sum()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2, help="timed updates per process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dialogues", type=int, default=48, help="dialogues per update, in both ways")
    parser.add_argument("--batch", type=int, default=8, help="rows per forward pass")
    parser.add_argument("--reply-batch", type=int, help="rows per forward pass of a reply each, if not the same")
    parser.add_argument("--speaker", default="both", help="whose turns are learned: both, first, second")
    parser.add_argument("--shared", help="folder of the corpora, if not ../shared/data")
    parser.add_argument("--worker", choices=(*WAYS, "equality"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
