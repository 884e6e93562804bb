"""RL speed: one step (rollout, rewards, scoring under the start policy, update) against TRL, on the same 2 threads.

Three pairs. `grpo`: SmolLM2-135M with LoRA r=16 on all linear layers, 2 prompts x 8 completions, against TRL's
GRPOTrainer. `ppo_seq2seq` and `grpo_seq2seq`: a T5 of the published small size with random weights, 16 prompts x 1 and
2 x 8, against TRL 0.11.4's PPOTrainer (16 x 1), the last release that trained encoder-decoders, which needs an older
transformers and so a virtual environment of its own. Prompts have about 224 tokens, the same ids for both tools;
completions have at most 40 tokens: an untrained T5 fills them, SmolLM2 may stop before, and real tokens are counted
beside the seconds. Policy passes per rollout are equal on both sides (`--epochs` for PPO, one for GRPO against GRPO).

Every contender runs in processes of its own, in alternating rounds, after a warm-up step. A peer first runs one timed
step in each of its precisions and goes on with the fastest. The phase table puts dialtune's seconds beside what the
matrix products and the bytes read would cost at this machine's own measured speed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from record import print_table, shared_data, write_result

HERE = Path(__file__).parent
OLD_TRL = HERE.parent / ".venv-trl011" / "bin" / "python"
PROMPT, CAP, BETA, RATE = 224, 40, 0.05, 1e-4
PHASES = ("generate", "reward", "ref", "old", "update")
# Peers try several, and the fastest counts. GRPOTrainer: bf16 weights under fp32 adapters, or all in bf16; fp32
# weights under autocast took 199 s a step, five times as long, as it generates without autocast. PPOTrainer trains all
# weights, and bf16 would round most updates away, so they stay fp32.
PRECISIONS = {"trl": ("weights", "all-bf16"), "trl011": ("fp32", "autocast")}


@dataclass(frozen=True)
class Job:
    """One pair: what dialtune runs, and the peer's step that it is compared with."""

    family: str
    method: str
    prompts: int
    group: int
    peer: str


JOBS = {
    "grpo": Job("causal", "grpo", 2, 8, "trl"),
    "ppo_seq2seq": Job("seq2seq", "ppo", 16, 1, "trl011"),
    "grpo_seq2seq": Job("seq2seq", "grpo", 2, 8, "trl011"),
}


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(work(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.work = folder
        prepare_work(Path(folder), shared_data(options.shared))
        measure(options)


def measure(options: argparse.Namespace) -> None:
    """Choose precisions, run the rounds, print and write."""
    jobs = {name: job for name, job in JOBS.items() if options.job in (None, name)}
    chosen, tried = choose_precisions(options, {job.peer for job in jobs.values()})
    contenders = [("dialtune", name) for name in jobs] + [(peer, peer) for peer in chosen]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for turn in range(options.rounds):
        for worker, name in contenders if turn % 2 == 0 else contenders[::-1]:
            result = call(options, worker, job=name, precision=chosen.get(worker, "bf16"))
            found[name].append(result)
            print(f"{name}: {result['step']:.2f} s a step, {result['tokens']:.1f} tokens a completion", flush=True)
    speed = machine_speed()
    rows, phases, headline = [], [], {}
    for name, job in jobs.items():
        ratios = [peer["step"] / own["step"] for own, peer in zip(found[name], found[job.peer], strict=True)]
        rows.append(pair_row(name, job, found, chosen[job.peer], ratios))
        phases += phase_rows(name, job, found[name], speed)
        headline[f"{name}_vs_{job.peer}"] = median(ratios)
    print_table(rows)
    print(f"matrix products {speed['gflops']:.0f} GFLOP/s in bf16, memory read at {speed['gbytes']:.1f} GB/s")
    print_table(phases)
    peers = {
        name: {key: median(r["phases"][key] for r in found[name]) for key in found[name][0]["phases"]}
        for name in chosen
    }
    print("phases of the peers, seconds:", peers)
    more = {"phases": phases, "peer_phases": peers, "machine_speed": speed, "precisions_tried": tried}
    write_result(
        "rl", rows, headline, **more, rounds=options.rounds, steps=options.steps, ppo_epochs=options.epochs,
        peers={"trl": "1.16.0", "trl011": "0.11.4 with transformers 4.46.3"},
    )  # fmt: skip


def choose_precisions(options: argparse.Namespace, peers: set[str]) -> tuple[dict[str, str], dict[str, float]]:
    """Each peer's fastest precision, and the seconds of one step in all of them."""
    tried = {}
    for peer in sorted(peers):
        for precision in PRECISIONS[peer]:
            tried[f"{peer} {precision}"] = call(options, peer, job=peer, precision=precision, steps=1)["step"]
            print(f"{peer} in {precision}: {tried[f'{peer} {precision}']:.2f} s", flush=True)
    return {peer: min(PRECISIONS[peer], key=lambda kind: tried[f"{peer} {kind}"]) for peer in sorted(peers)}, tried


def pair_row(
    name: str, job: Job, found: dict[str, list[dict[str, Any]]], precision: str, ratios: list[float]
) -> dict[str, Any]:
    own, peer = found[name], found[job.peer]
    return {
        "pair": name,
        "prompts x completions": f"{job.prompts} x {job.group}",
        "prompt tokens": round(own[0]["query"] / job.prompts, 1),
        "tokens": round(mean(r["tokens"] for r in own), 1),
        "dialtune s": round(median(r["step"] for r in own), 2),
        "peer": f"{job.peer} {precision}",
        "peer tokens": round(mean(r["tokens"] for r in peer), 1),
        "peer s": round(median(r["step"] for r in peer), 2),
        "ratio": round(median(ratios), 2),
        "lowest": round(min(ratios), 2),
    }


def phase_rows(name: str, job: Job, results: list[dict[str, Any]], speed: dict[str, float]) -> list[dict[str, Any]]:
    """dialtune's phases beside the ideal: products at GEMM speed, or bytes at read speed, whichever takes longer."""
    ideal = ideal_seconds(results[0]["weights"], job, results[0]["query"], speed)
    rows = []
    for phase in (*PHASES, "step"):
        measured = median(r["step"] if phase == "step" else r["phases"].get(phase, 0.0) for r in results)
        best = sum(ideal.values()) if phase == "step" else ideal.get(phase, 0.0)
        rows.append({"pair": name, "phase": phase, "s": round(measured, 3), "ideal s": round(best, 3)})
    query, response = results[0]["query"], job.prompts * job.group * CAP
    repeated = query * job.group + response
    rows.append({"pair": name, "phase": "tokens, repeated / shared", "s": repeated, "ideal s": query + response})
    return rows


def ideal_seconds(weights: dict[str, float], job: Job, query: int, speed: dict[str, float]) -> dict[str, float]:
    """Seconds by phase if nothing but the weights' products and, in decoding, the bytes read took time.

    Two operations per weight and token; a backward pass costs as much again for activations, and once more for the
    gradients of weights where all of them are trained. Attention scores are left out (about 4 % at this length).
    """
    rows = job.prompts * job.group
    flops, read = 1e9 * speed["gflops"], 1e9 * speed["gbytes"]
    prefill = 2 * weights["query"] * query / flops
    forward = prefill + 2 * weights["response"] * rows * CAP / flops
    context = job.group * query * weights["kv_query"] + rows * CAP / 2 * weights["kv_response"]
    bytes_per_token = 2 * (weights["response"] + context)  # bf16
    token = max(bytes_per_token / read, 2 * weights["response"] * rows / flops)
    passes = weights["epochs"]
    ideal = {"generate": prefill + CAP * token, "ref": forward, "update": passes * weights["passes"] * forward}
    return ideal | ({"old": forward} if job.method == "ppo" else {})


def machine_speed() -> dict[str, float]:
    """bf16 GFLOP/s of a large matrix product and GB/s of reading far more than the caches hold: the best of five."""
    import torch

    torch.set_num_threads(2)
    left, right = (torch.randn(2048, 2048, dtype=torch.bfloat16) for _ in range(2))
    large = torch.ones(2**28)
    product = min(seconds(lambda: left @ right) for _ in range(5))
    reading = min(seconds(large.sum) for _ in range(5))
    return {"gflops": 2 * 2048**3 / product / 1e9, "gbytes": large.nbytes / reading / 1e9}


def seconds(action: Callable[[], Any]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def prepare_work(folder: Path, shared: Path) -> None:
    """Into the work folder: a random T5, and per family the rows and prompts nearest to PROMPT tokens."""
    import torch
    from bench_sft import small_t5

    from dialtune.data.reading import read_examples
    from dialtune.models.loading import load_model, save_model
    from dialtune.prompts import build_prompts
    from dialtune.tasks import find_task

    torch.manual_seed(0)
    with gzip.open(shared / "dialogsum" / "dialogsum.train.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [line for line, _ in zip(lines, range(1600), strict=False)]
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    examples = read_examples(str(folder / "rows.jsonl")).examples
    assert len(examples) == len(rows)
    t5 = small_t5(shared)
    (folder / "t5").mkdir()
    save_model(t5, folder / "t5")
    for family, model in (("causal", load_model("smollm2-135m")), ("seq2seq", t5)):
        prompts = build_prompts(
            examples, find_task("summarize"), max_prompt_tokens=None, count_tokens=model.count_tokens
        )
        ids = [model.query_ids(prompt.messages) for prompt in prompts]
        nearest = sorted(range(len(ids)), key=lambda row: (abs(len(ids[row]) - PROMPT), row))[:16]
        (folder / f"{family}.jsonl").write_text("".join(rows[row] for row in nearest), encoding="utf-8")
        asked = [[{"role": m.role, "content": m.content} for m in prompts[row].messages] for row in nearest]
        chosen = {"messages": asked, "ids": [ids[row] for row in nearest]}
        (folder / f"{family}.json").write_text(json.dumps(chosen), encoding="utf-8")


def call(options: argparse.Namespace, worker: str, *, job: str, precision: str, steps: int = 0) -> dict[str, Any]:
    """One contender in a process of its own: mean seconds, phases and tokens of its timed steps."""
    common = ["--steps", str(steps or options.steps), "--epochs", str(options.epochs), "--precision", precision]
    if worker == "trl011":
        if not OLD_TRL.exists():
            sys.exit("TRL 0.11.4 is not installed; run: make setup-bench-trl011")
        command = [str(OLD_TRL), str(HERE / "trl011_ppo.py"), *common, "--work", options.work]
    else:
        command = [sys.executable, __file__, "--worker", worker, "--job", job, *common, "--work", options.work]
    quiet = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | quiet)
    if done.returncode:
        sys.exit(f"{worker} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    timed = result.pop("steps")[1:]  # without the warm-up
    return result | {
        "step": mean(step["seconds"] for step in timed),
        "tokens": mean(step["tokens"] for step in timed),
        "phases": {name: mean(step["phases"].get(name, 0.0) for step in timed) for name in timed[0]["phases"]},
    }


def work(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(2)
    torch.manual_seed(0)
    return {"dialtune": run_dialtune, "trl": run_trl}[options.worker](options)


def vowels(completions: Sequence[Any], **_: Any) -> list[float]:
    """A cheap reward: the share of vowels. TRL gives messages where dialtune gives texts."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(letter in "aeiou" for letter in text) / (1 + len(text)) for text in texts]


def run_dialtune(options: argparse.Namespace) -> dict[str, Any]:
    """Whole rollouts through the training loop, as `dialtune rl` runs it but for calibration, doctor and saving."""
    from dialtune.config.rl_schema import RLConfig
    from dialtune.rewards.base import FunctionReward
    from dialtune.rl.judging import Judging
    from dialtune.runs import RunFolder
    from dialtune.trainers import rl, rl_run

    job, folder = JOBS[options.job], Path(options.work)
    (folder / "train.jsonl").write_text(
        "".join((folder / f"{job.family}.jsonl").open(encoding="utf-8").readlines()[: job.prompts]), encoding="utf-8"
    )
    config = RLConfig(
        model="smollm2-135m" if job.family == "causal" else str(folder / "t5"), task="summarize", method=job.method,
        data={"train": str(folder / "train.jsonl")}, lora={"r": 16} if job.family == "causal" else None, bf16=True,
        rollout_batch_size=job.prompts, num_generations=job.group, per_device_train_batch_size=job.prompts,
        num_iterations=options.epochs if job.method == "ppo" else 1, value_warmup_steps=0, max_steps=10_000,
        max_completion_length=CAP, learning_rate=RATE, beta=BETA, rewards={"length": 1.0}, constraint=None,
        alarm_scorer=None, max_prompt_length=2 * PROMPT,
    )  # fmt: skip
    ready = rl_run.prepare(config.resolve())
    judging = Judging({"vowels": (FunctionReward(vowels, judges="other"), 1.0)}, ready.config)
    expected = json.loads((folder / f"{job.family}.json").read_text(encoding="utf-8"))["ids"][: job.prompts]
    assert [ready.model.query_ids(prompt.messages) for prompt in ready.pool.prompts] == expected
    steps = []
    with tempfile.TemporaryDirectory() as run:
        loop = rl._Loop(ready.model, ready.reference, ready.pool, judging, ready.method, ready.config, RunFolder(run))
        for rollout in range(options.steps + 1):
            first = rollout * config.updates_per_rollout
            records = [loop.update(first + place) for place in range(config.updates_per_rollout)]
            phases = {name: sum(row.get(f"{name}_s", 0.0) for row in records) for name in PHASES}
            took = sum(row["step_s"] for row in records)
            steps.append({"seconds": took, "tokens": records[0]["tokens"], "phases": phases})
    weights = weights_by_side(ready.model) | {"epochs": config.updates_per_rollout}
    return {"steps": steps, "query": sum(map(len, expected)), "weights": weights}


def weights_by_side(model: Any) -> dict[str, float]:
    """Weights of the matrices that query tokens and response tokens pass, and cached numbers per token of each."""
    from torch import nn

    head = model.core.get_output_embeddings().weight
    found: dict[str, float] = defaultdict(float)
    for name, part in model.core.named_modules():
        if not isinstance(part, nn.Linear) or part.weight is head or "lora_" in name:
            continue
        cached = name.removesuffix(".base_layer").rpartition(".")[2] in ("k", "v", "k_proj", "v_proj")
        crosses = "EncDecAttention" in name and cached
        if model.core.config.is_encoder_decoder:
            side = "query" if name.startswith("encoder") or crosses else "response"
            found[side] += part.weight.numel()
            if cached and not name.startswith("encoder"):
                found[f"kv_{side}"] += part.weight.shape[0]
        else:
            found["query"] += part.weight.numel()
            found["response"] += part.weight.numel()
            found["kv_query"] += part.weight.shape[0] * cached
            found["kv_response"] += part.weight.shape[0] * cached
    found["response"] += head.numel()
    found["passes"] = 2 if hasattr(model.module, "peft_config") else 3
    return dict(found)


def run_trl(options: argparse.Namespace) -> dict[str, Any]:
    """GRPOTrainer with all 16 rows in one forward, no gradient checkpointing and the same loss as dialtune's."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from dialtune.models.loading import resolve_folder

    job, source = JOBS["grpo"], resolve_folder("smollm2-135m")
    given = json.loads((Path(options.work) / "causal.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(source)
    prompts = given["messages"][: job.prompts]
    encoded = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert encoded == given["ids"][: job.prompts]
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora, autocast_adapter_dtype=options.precision != "all-bf16")
    steps: list[dict[str, Any]] = []

    def begin(*_: Any, **__: Any) -> None:
        steps.append({"seconds": -time.perf_counter(), "tokens": 0, "phases": defaultdict(float)})

    def end(*_: Any, **__: Any) -> None:
        step = steps[-1]
        step["seconds"] += time.perf_counter()
        step["phases"]["ref"] -= step["phases"]["generate"] + step["phases"]["reward"]
        step["phases"]["update"] = step["seconds"] - sum(step["phases"].values())

    def reward(completions: Sequence[Any], completion_ids: Sequence[Any], **_: Any) -> list[float]:
        steps[-1]["tokens"] = mean(map(len, completion_ids))
        return vowels(completions)

    def clocked(name: str, phase: str) -> None:
        inner = getattr(trainer, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                steps[-1]["phases"][phase] += time.perf_counter() - began

        setattr(trainer, name, outer)

    arguments = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=job.prompts * job.group, num_generations=job.group,
        max_completion_length=CAP, beta=BETA, learning_rate=RATE, max_steps=options.steps + 1, temperature=1.0,
        loss_type="dr_grpo", scale_rewards="none", bf16=options.precision != "all-bf16", use_cpu=True, seed=0,
        gradient_checkpointing=False, lr_scheduler_type="constant", optim="adamw_torch_fused", weight_decay=0.0,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, shuffle_dataset=False,
    )  # fmt: skip
    callback = type("Callback", (TrainerCallback,), {"on_step_begin": begin, "on_step_end": end})()
    trainer = GRPOTrainer(
        model=model, reward_funcs=reward, args=arguments, processing_class=tokenizer, callbacks=[callback],
        train_dataset=Dataset.from_dict({"prompt": prompts * (options.steps + 1)}),
    )  # fmt: skip
    clocked("_generate", "generate")
    clocked("_calculate_rewards", "reward")
    clocked("_generate_and_score_completions", "ref")  # all three; `end` takes the other two out
    trainer.train()
    return {"steps": steps}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2, help="timed steps per process")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=1, help="PPO's passes over a rollout, in both tools")
    parser.add_argument("--job", help=f"one pair alone: {', '.join(JOBS)}")
    parser.add_argument("--shared", help="folder of the corpora, if not ../shared/data")
    parser.add_argument("--worker", choices=("dialtune", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
