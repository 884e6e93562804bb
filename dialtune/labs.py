"""The labs, each a straight line: evaluate, train, evaluate, compare. What `dialtune demo` runs, offline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from dialtune.comparison import compare, describe, write_comparison
from dialtune.config.rl_schema import RLConfig
from dialtune.config.schema import RunConfig
from dialtune.data.audit import leaks
from dialtune.data.reading import DataSet, read_examples
from dialtune.errors import ConfigError
from dialtune.evaluation import write_evaluation, write_examples
from dialtune.generation import Progress
from dialtune.model_evaluation import evaluate_model, task_for
from dialtune.models.base import Sampling
from dialtune.models.loading import load_model
from dialtune.results import Comparison, Evaluation
from dialtune.runs import remove
from dialtune.trainers.rl_run import run_rl
from dialtune.trainers.sft import OnEvent, ignore_events
from dialtune.trainers.sft_run import run_sft

Say = Callable[[str], None]


def quiet(_text: str) -> None:
    """Says nothing."""


def run_demo(
    jobs: Sequence[str] | None = None,
    out: Path = Path("runs/demo"),
    *,
    say: Say = quiet,
    on_event: OnEvent = ignore_events,
    progress: Progress | None = None,
) -> dict[str, Comparison]:
    """Run the labs on the packaged model and dialogues; `report.build.build_report(out)` then shows all of them.

    Args:
        jobs: names from JOBS; None is all.
        out: gets one folder per job; a job's folder from an earlier demo is replaced.
        say: told each stage in a line.
        on_event: told about training.
        progress: told about generation.
    Returns:
        the verdicts by job.
    Raises:
        ConfigError: no such job.
    """
    chosen = list(jobs) if jobs else list(JOBS)
    unknown = [name for name in chosen if name not in JOBS]
    if unknown:
        raise ConfigError(f"demo --job: got {', '.join(unknown)}; there are: {', '.join(JOBS)}")
    verdicts = {}
    for name in chosen:
        folder = out / name
        if folder.exists():
            remove(folder)
        verdicts[name] = JOBS[name](folder, say, on_event, progress)
    return verdicts


def summarize_recipe(folder: Path) -> RunConfig:
    """Lab 1's settings: small enough for two cores and seven minutes, and enough to show."""
    return RunConfig.model_validate(
        {
            "task": "summarize",
            "model": "smollm2-135m",
            "data": {"train": "packaged:train", "validation": "packaged:validation"},
            "output_dir": str(folder / "train"),
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "eval_steps": 10,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "cosine",
            "warmup_ratio": 0.1,
            "lora": {"r": 16, "dropout": 0.0},
        }
    )


def summarize(folder: Path, say: Say, on_event: OnEvent, progress: Progress | None) -> Comparison:
    """Lab 1: the packaged chat model before and after fine-tuning on 160 dialogues, judged on 60 it never saw."""
    recipe = summarize_recipe(folder)
    test = read_examples("packaged:test")
    leakage = _leakage(read_examples(recipe.data.train), test)

    def judge(model: str, side: str) -> Evaluation:
        say(f"summarize: {side} training, {model} writes {len(test.examples)} summaries")
        return _judge(model, test, folder / side, leakage, progress, "summarize")

    before = judge(recipe.model, "before")
    say("summarize: training")
    after = judge(str(run_sft(recipe, on_event=on_event)), "after")
    return _conclude(folder, before, after, say)


def detoxify(folder: Path, say: Say, on_event: OnEvent, progress: Progress | None) -> Comparison:
    """Lab 3: a summarizer that repeats offences, before and after training on civility under a relevance floor."""
    say("detoxify: fine-tuning a start policy on summaries that repeat what was shouted")
    start = run_sft(start_recipe(folder), on_event=on_event)
    test, others = read_examples("packaged:test:heated"), read_examples("packaged:test:calm")
    leakage = _leakage(read_examples("packaged:train"), test)

    def judge(model: str, side: str) -> tuple[Evaluation, Evaluation]:
        say(f"detoxify: {side} training, {len(test.examples)} heated and {len(others.examples)} calm dialogues")
        calm = _judge(model, others, folder / "calm" / side, leakage, progress, "detoxify")
        return _judge(model, test, folder / side, leakage, progress, "detoxify"), calm

    before, calm_before = judge(str(start), "before")
    say("detoxify: training on rewards")
    after, calm_after = judge(str(run_rl(detoxify_recipe(folder, start), on_event=on_event)), "after")
    write_comparison(folder / "calm", compare(calm_before, calm_after))
    return _conclude(folder, before, after, say)


def start_recipe(folder: Path) -> RunConfig:
    """Lab 3's start policy: lab 1's settings on the blunt summaries."""
    values = summarize_recipe(folder).model_dump(exclude_unset=True)
    data = {"train": "packaged:train:blunt", "validation": "packaged:validation:blunt"}
    return RunConfig.model_validate(values | {"data": data, "output_dir": str(folder / "start")})


def detoxify_recipe(folder: Path, start: Path) -> RLConfig:
    """Lab 3's settings: some minutes on two cores."""
    return RLConfig.model_validate(
        {
            "method": "grpo",
            "model": str(start),
            "data": {"train": "packaged:train:heated", "validation": "packaged:validation:heated"},
            "output_dir": str(folder / "train"),
            "lora": {"r": 16, "dropout": 0.0},
            "max_steps": 12,
            "eval_steps": 6,
            "learning_rate": 5e-4,
            "beta": 0.02,
            "rollout_batch_size": 4,
            "num_generations": 8,
            "constraint": {"baseline_prompts": 8, "learning_rate": 0.5, "length": (0.95, 1.3)},
            "max_completion_length": 64,
        }
    )


def _conclude(folder: Path, before: Evaluation, after: Evaluation, say: Say) -> Comparison:
    comparison = compare(before, after)
    write_comparison(folder, comparison)
    for line in describe(comparison):
        say(line)
    return comparison


def _leakage(train: DataSet, test: DataSet) -> dict[str, int]:
    shared = leaks({"train": train.examples, "test": test.examples}).across[0]
    return {"exact": shared.right_exact, "near": shared.right_near}


def _judge(
    name: str, test: DataSet, folder: Path, leakage: dict[str, int], progress: Progress | None, job: str
) -> Evaluation:
    task, budget = task_for(job, name)
    evaluation = evaluate_model(
        load_model(name),
        test,
        task,
        sampling=Sampling(max_new_tokens=64),
        max_prompt_tokens=budget,
        batch_size=32,
        leakage=leakage,
        progress=progress,
    )
    write_evaluation(folder, evaluation)
    write_examples(folder, test)
    return evaluation


JOBS = {"summarize": summarize, "detoxify": detoxify}
