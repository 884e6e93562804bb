"""The labs, each a straight line: evaluate, train, evaluate, compare. What `dialtune demo` runs, offline."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dialtune.comparison import compare, describe, write_comparison
from dialtune.config.data_schema import TurnsConfig
from dialtune.config.reward_schema import RewardConfig
from dialtune.config.rl_schema import RLConfig
from dialtune.config.schema import RunConfig
from dialtune.config.writing import usual_template
from dialtune.data.audit import leaks
from dialtune.data.layouts import to_row
from dialtune.data.reading import DataSet, read_examples
from dialtune.data.splits import split_examples
from dialtune.data.turns import reply_data
from dialtune.errors import ConfigError, DataError
from dialtune.evaluation import write_evaluation, write_examples
from dialtune.generation import Progress
from dialtune.model_evaluation import evaluate_model, task_for
from dialtune.models.base import Sampling
from dialtune.models.loading import load_model
from dialtune.results import Comparison, Evaluation
from dialtune.rewards.score import alarm_scorers
from dialtune.runs import remove, write_text_atomic
from dialtune.tasks import Task
from dialtune.trainers.reward_run import run_reward
from dialtune.trainers.rl_run import run_rl
from dialtune.trainers.sft import OnEvent, ignore_events
from dialtune.trainers.sft_run import run_sft
from dialtune.types import Example
from dialtune.verdicts import NO_VERDICT_BELOW

Say = Callable[[str], None]
SHOWS = 50  # rows of one's own that are enough for a first answer: 30 to judge, 20 to learn from


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
            "data": {"train": "packaged:train", "validation": "packaged:validation", "max_validation_rows": 20},
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
        return _judge(model, test, folder / side, leakage, progress, task_for("summarize", model))

    before = judge(recipe.model, "before")
    say("summarize: training")
    after = judge(str(run_sft(recipe, on_event=on_event)), "after")
    return _conclude(folder, before, after, say)


def respond(folder: Path, say: Say, on_event: OnEvent, progress: Progress | None) -> Comparison:
    """Lab 2: the packaged chat model before and after learning from people's chats, judged on replies to strangers.

    One judge is a reward learned from which reply was given where; it trains nothing.
    """
    recipe = respond_recipe(folder, _written(_short_chats(), folder / "data"))
    say("respond: a judge learns which reply fits where")
    judge_of = run_reward(respond_judge_recipe(folder), on_event=on_event)
    turns = TurnsConfig(system=_CHAT, window=4, per_dialogue=3)
    test = reply_data(read_examples("chitchat:test", limit=130), turns)
    leakage = _leakage(read_examples(recipe.data.train), replace(test, examples=test.dialogues))

    def judge(model: str, side: str) -> Evaluation:
        say(f"respond: {side} training, {model} answers {len(test.examples)} times")
        task, metrics = task_for("respond", model)[0], (*_RESPOND_METRICS, f"reward:{judge_of}")
        return _judge(model, test, folder / side, leakage, progress, (task, None), metrics, max_new_tokens=24)

    before = judge(recipe.model, "before")
    say("respond: training")
    after = judge(str(run_sft(recipe, on_event=on_event)), "after")
    return _conclude(folder, before, after, say)


_CHAT = "You chat with another student. Answer what was said last in a friendly way and keep it short."
# Few, since each makes the others harder to show, and without likelihoods in wrong contexts, which cost most.
_RESPOND_METRICS = ("bleu", "rougeL", "relevance_reference", "generic_rate", "echo_rate", "repetition_rate")


def _short_chats() -> dict[str, list[Example]]:
    """Some packaged chats of 16 turns at most, so that one forward pass holds all replies of a speaker."""
    short = {
        split: [chat for chat in read_examples(f"chitchat:{split}").examples if len(chat.messages) <= 16]
        for split in ("train", "validation")
    }
    return {"train": short["train"][:90], "validation": short["validation"][:8]}


def respond_recipe(folder: Path, files: Mapping[str, str]) -> RunConfig:
    """Lab 2's settings: both sides of some short chats."""
    values = summarize_recipe(folder).model_dump(exclude_unset=True)
    values |= {"task": "respond", "data": {**files, "turns": {"system": _CHAT}}, "max_prompt_length": 512}
    return RunConfig.model_validate(values | {"learning_rate": 5e-4, "eval_steps": 12})


def respond_judge_recipe(folder: Path) -> RewardConfig:
    """The judge of lab 2: which reply was given where, in chats of the training split; none of them is judged."""
    data = {"train": "chitchat:train", "validation": "chitchat:validation", "max_train_rows": 450}
    values = {"data": {**data, "turns": {"per_dialogue": 4}}, "output_dir": str(folder / "judge")}
    return RewardConfig.model_validate(values)


def detoxify(folder: Path, say: Say, on_event: OnEvent, progress: Progress | None) -> Comparison:
    """Lab 3: a summarizer that repeats offences, before and after training on civility under a relevance floor."""
    say("detoxify: fine-tuning a start policy on summaries that repeat what was shouted")
    start = run_sft(start_recipe(folder), on_event=on_event)
    test, others = read_examples("packaged:test:heated"), read_examples("packaged:test:calm")
    leakage = _leakage(read_examples("packaged:train"), test)

    def judge(model: str, side: str) -> tuple[Evaluation, Evaluation]:
        say(f"detoxify: {side} training, {len(test.examples)} heated and {len(others.examples)} calm dialogues")
        calm = _judge(model, others, folder / "calm" / side, leakage, progress, task_for("detoxify", model))
        return _judge(model, test, folder / side, leakage, progress, task_for("detoxify", model)), calm

    before, calm_before = judge(str(start), "before")
    say("detoxify: training on rewards")
    after, calm_after = judge(str(run_rl(detoxify_recipe(folder, start), on_event=on_event)), "after")
    write_comparison(folder / "calm", compare(calm_before, calm_after))
    return _conclude(folder, before, after, say)


def start_recipe(folder: Path) -> RunConfig:
    """Lab 3's start policy: lab 1's settings on the blunt summaries."""
    values = summarize_recipe(folder).model_dump(exclude_unset=True)
    sources = {"train": "packaged:train:blunt", "validation": "packaged:validation:blunt"}
    data = {**sources, "max_train_rows": 128, "max_validation_rows": 16}
    return RunConfig.model_validate(values | {"data": data, "output_dir": str(folder / "start")})


def detoxify_recipe(folder: Path, start: Path) -> RLConfig:
    """Lab 3's settings: some minutes on two cores."""
    return RLConfig.model_validate(
        {
            "method": "grpo",
            "model": str(start),
            "data": {
                "train": "packaged:train:heated",
                "validation": "packaged:validation:heated",
                "max_validation_rows": 12,
            },
            "output_dir": str(folder / "train"),
            "lora": {"r": 16, "dropout": 0.0},
            "max_steps": 7,
            "eval_steps": 7,
            "learning_rate": 5e-4,
            "beta": 0.02,
            "rollout_batch_size": 4,
            "num_generations": 8,
            "constraint": {"baseline_prompts": 16, "learning_rate": 0.5, "length": (0.95, 1.3)},
            "max_completion_length": 64,
        }
    )


def own_rows(
    source: str,
    out: Path,
    *,
    model: str = "smollm2-135m",
    say: Say = quiet,
    on_event: OnEvent = ignore_events,
    progress: Progress | None = None,
) -> Comparison:
    """Lab 1 on rows of one's own: split, evaluate, train an adapter, evaluate, compare; all of it in `out`/own.

    Copies of a dialogue stay on one side. The recipe is train/config.yaml, the splits are in data/.

    Raises:
        DataError: fewer than two rows have a gold text, or rows are bad.
    """
    folder = out / "own"
    rows = [example for example in read_examples(source).examples if example.references]
    if len(rows) < 2:
        raise DataError(f"{source}: {len(rows)} rows with a gold text; 2 can be split, and {SHOWS} are a first answer")
    if folder.exists():
        remove(folder)
    files = _written(split_examples(rows, own_shares(len(rows)), seed=0), folder / "data")
    recipe = own_recipe(model, files, folder)
    test, leakage = read_examples(files["test"]), _leakage(read_examples(files["train"]), read_examples(files["test"]))

    def judge(name: str, side: str) -> Evaluation:
        say(f"{side} training, {name} writes {len(test.examples)} summaries")
        return _judge(name, test, folder / side, leakage, progress, task_for(recipe.task, name, recipe.template))

    before = judge(model, "before")
    say(f"training on {len(read_examples(files['train']).examples)} dialogues")
    after = judge(str(run_sft(recipe, on_event=on_event)), "after")
    return _conclude(folder, before, after, say)


def own_shares(n: int) -> dict[str, float]:
    """How n rows are divided: first a test that can show something, then validation where there is plenty.

    >>> own_shares(50)
    {'train': 0.4, 'test': 0.6}
    >>> own_shares(1000)
    {'train': 0.7, 'validation': 0.1, 'test': 0.2}
    """
    test = min(max(NO_VERDICT_BELOW, n // 5), 200, max(1, n * 3 // 5))
    validation = min(n // 10, 100) if n >= 4 * SHOWS else 0
    counts = {"train": n - test - validation, "validation": validation, "test": test}
    return {name: count / n for name, count in counts.items() if count}


def own_recipe(model: str, files: Mapping[str, str], folder: Path) -> RunConfig:
    """Lab 1's settings for another model and other rows; several epochs where there are few."""
    few = len(read_examples(files["train"]).examples) < 100
    values = summarize_recipe(folder).model_dump(exclude_unset=True)
    values |= {"model": model, "data": {name: files[name] for name in files if name != "test"}, "eval_steps": 0}
    values |= {"template": usual_template(model, "summarize")}
    values |= {"num_train_epochs": 4, "per_device_train_batch_size": 4} if few else {}
    if model != "smollm2-135m":
        del values["learning_rate"]  # measured for that model alone; the default of adapters is for any
    return RunConfig.model_validate(values)


def _written(splits: Mapping[str, Sequence[Example]], folder: Path) -> dict[str, str]:
    for name, examples in splits.items():
        rows = (json.dumps(to_row(example), ensure_ascii=False) + "\n" for example in examples)
        write_text_atomic(folder / f"{name}.jsonl", "".join(rows))
    return {name: str(folder / f"{name}.jsonl") for name in splits}


def _conclude(folder: Path, before: Evaluation, after: Evaluation, say: Say) -> Comparison:
    comparison = compare(before, after, seen=alarm_scorers(after.model.trained_from))
    write_comparison(folder, comparison)
    for line in describe(comparison):
        say(line)
    return comparison


def _leakage(train: DataSet, test: DataSet) -> dict[str, int]:
    shared = leaks({"train": train.examples, "test": test.examples}).across[0]
    return {"exact": shared.right_exact, "near": shared.right_near}


def _judge(  # noqa: PLR0913  what a score depends on is stated by the caller
    name: str,
    test: DataSet,
    folder: Path,
    leakage: dict[str, int],
    progress: Progress | None,
    asked: tuple[Task, int | None],
    metrics: Sequence[str] | None = None,
    max_new_tokens: int = 64,
) -> Evaluation:
    task, budget = asked
    evaluation = evaluate_model(
        load_model(name),
        test,
        task,
        sampling=Sampling(max_new_tokens=max_new_tokens),
        metrics=metrics,
        max_prompt_tokens=budget,
        batch_size=32,
        leakage=leakage,
        progress=progress,
    )
    write_evaluation(folder, evaluation)
    write_examples(folder, test)
    return evaluation


JOBS = {"summarize": summarize, "respond": respond, "detoxify": detoxify}
