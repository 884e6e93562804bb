"""`demo`, `sft`, `generate`, `score`, `compare`, `report`: parse, one public call, print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dialtune.cli.progress import counting, say, showing

if TYPE_CHECKING:
    from dialtune.config.data_schema import TurnsConfig
    from dialtune.data.leakage import Policy
    from dialtune.data.reading import DataSet
    from dialtune.models.base import LanguageModel, Sampling
    from dialtune.types import Completion, Prompt

app = typer.Typer()

NEWEST = "newest"  # --resume without a path


class Resumable(TyperCommand):
    """Lets `--resume` stand alone (newest verified checkpoint) or before a checkpoint's folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--resume" in args:
            after = args.index("--resume") + 1
            if after == len(args) or not Path(args[after]).is_dir():
                args = [*args[:after], NEWEST, *args[after:]]
        return super().parse_args(ctx, args)


def recipe_key(name: str, text: str) -> Any:
    """A recipe key as a flag in both spellings."""
    spellings = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
    return typer.Option(*spellings, help=text, show_default=False)


Model = Annotated[str | None, recipe_key("model", "Hub name, folder, run folder's checkpoint, or packaged name.")]
Data = Annotated[str | None, recipe_key("data", "File, packaged:SPLIT, chitchat:SPLIT, hub:org/name:SPLIT.")]
Layout = Annotated[str, typer.Option(help="How rows are written; auto detects it.")]
Split = Annotated[str | None, typer.Option(help="Only rows of this split.", show_default=False)]
Limit = Annotated[int | None, typer.Option(min=1, help="At most so many dialogues.", show_default=False)]
Task = Annotated[str, typer.Option(help="What the model is asked to do.")]
Template = Annotated[
    str | None, typer.Option(help="Prompt template, if not the one it was trained with.", show_default=False)
]
Seed = Annotated[int, typer.Option(min=0, help="Of everything random.")]
BatchSize = Annotated[int, typer.Option("--batch-size", "--batch_size", min=1, help="Prompts at a time.")]
Tokens = Annotated[
    int | None, typer.Option("--max-new-tokens", "--max_new_tokens", min=1, help="The task's cap if left out.")
]
Beams = Annotated[int, typer.Option("--num-beams", "--num_beams", min=1, help="Beam search with so many beams.")]
Temperature = Annotated[float, typer.Option(min=0, help="0 is greedy; 1 draws from the model's own distribution.")]
TopP = Annotated[float, typer.Option("--top-p", "--top_p", max=1, help="Draw from this total probability.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")]
Turns = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="For respond, a key of data.turns: speaker=second.")
]
Clean = Annotated[list[str] | None, typer.Option(help="A cleaning step, as in data.clean; repeatable.")]
DropLeaks = Annotated[
    bool | None,
    typer.Option(
        "--drop-leaks/--allow-leaks",
        help="Dialogues both trained on and tested: leave out, or go on and record. For respond they stop the run.",
        show_default=False,
    ),
]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any recipe key; repeatable.")]
Recipe = Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A YAML file or a packaged name.")]
Config = Annotated[str | None, typer.Option("--config", "-c", help="The same as RECIPE.")]
Resume = Annotated[
    str | None, typer.Option("--resume", metavar="[CHECKPOINT]", help="Go on from the newest, or from this one.")
]
Force = Annotated[bool, typer.Option("--force", help="Resume although recipe or data changed.")]


def one_recipe(recipe: str | None, config: str | None) -> str | None:
    """The recipe, which has two spellings."""
    if recipe and config:
        raise typer.BadParameter("RECIPE and --config are the same thing; give one")
    return recipe or config


@app.command()
def demo(
    job: Annotated[list[str] | None, typer.Option(help="One job; repeatable. All if left out.")] = None,
    data: Annotated[
        str | None, recipe_key("data", "Dialogues of your own instead, with summaries; split first.")
    ] = None,
    model: Annotated[str | None, recipe_key("model", "With --data: another model than the packaged one.")] = None,
    out: Annotated[Path, typer.Option(help="Where runs and report go.")] = Path("runs/demo"),
) -> None:
    """Watch a model get better, offline: evaluate, train, evaluate, compare, report."""
    from dialtune.labs import own_rows, run_demo
    from dialtune.report.build import build_cards, build_report

    if data and job:
        raise typer.BadParameter("--data is a job of its own; leave --job out")
    if model and not data:
        raise typer.BadParameter("--model goes with --data; the jobs train the packaged model")
    with showing(10) as (show, progress):
        if data:
            own_rows(data, out, model=model or "smollm2-135m", say=say, on_event=show, progress=progress)
        else:
            run_demo(job or None, out, say=say, on_event=show, progress=progress)
    build_cards(out, trained_only=True)
    typer.echo(f"report: {build_report(out)}")


@app.command(cls=Resumable)
def sft(
    recipe: Recipe = None,
    config: Config = None,
    overrides: Overrides = None,
    resume: Resume = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be trained on; train nothing.")] = False,
    force: Force = False,
    drop_leaks: DropLeaks = None,
    model: Model = None,
    data: Annotated[str | None, recipe_key("data", "Rows to learn from.")] = None,
    validation: Annotated[str | None, recipe_key("validation", "Rows that choose the best checkpoint.")] = None,
    output_dir: Annotated[str | None, recipe_key("output_dir", "The run folder.")] = None,
    num_train_epochs: Annotated[float | None, recipe_key("num_train_epochs", "Passes over the data.")] = None,
    max_steps: Annotated[int | None, recipe_key("max_steps", "Optimizer updates.")] = None,
    per_device_train_batch_size: Annotated[
        int | None, recipe_key("per_device_train_batch_size", "Dialogues per forward pass.")
    ] = None,
    gradient_accumulation_steps: Annotated[
        int | None, recipe_key("gradient_accumulation_steps", "Forward passes per update.")
    ] = None,
    learning_rate: Annotated[float | None, recipe_key("learning_rate", "Peak step size.")] = None,
    use_peft: Annotated[bool | None, typer.Option("--use_peft", "--lora", help="LoRA instead of all weights.")] = None,
    seed: Annotated[int | None, recipe_key("seed", "Of everything random.")] = None,
) -> None:
    """Fine-tune on dialogues and their gold texts; every key: dialtune config explain.

    A list where one value is expected, such as learning_rate: [1e-5, 3e-5], makes a grid: a run for every combination,
    and a table.
    """
    from dialtune.cli.sft import print_preview, train
    from dialtune.config.grid import load_runs

    flags = {
        "model": model, "data": data, "data__validation": validation, "output_dir": output_dir, "use_peft": use_peft,
        "num_train_epochs": num_train_epochs, "max_steps": max_steps, "learning_rate": learning_rate, "seed": seed,
        "per_device_train_batch_size": per_device_train_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps, "data__leaks": leaks_policy(drop_leaks),
    }  # fmt: skip
    loaded = load_runs(one_recipe(recipe, config), overrides or (), **flags)
    if dry_run:
        print_preview(loaded)
    else:
        train(loaded, resume, force)


@app.command()
def generate(
    model: Model = None,
    data: Data = None,
    prompt: Annotated[str | None, typer.Option(help="One chat message instead of --data; printed.")] = None,
    out: Annotated[Path | None, typer.Option(help="The jsonl file to write; the terminal if left out.")] = None,
    task: Task = "summarize",
    template: Template = None,
    turns: Turns = None,
    layout: Layout = "auto",
    clean: Clean = None,
    split: Split = None,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Tokens = None,
    num_beams: Beams = 1,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Write a model's completions for dialogues, or for one prompt; for respond, each dialogue's next turn."""
    from dialtune.data.reading import read_examples
    from dialtune.data.turns import open_contexts
    from dialtune.generation import generate as complete
    from dialtune.model_evaluation import prompts_for, task_for

    one_of("--data or --prompt", data, prompt)
    one_of("--model", model)
    rows = cleaned(read_examples(data, layout=layout, split=split, limit=limit), clean) if data else None
    dataset = open_contexts(rows, turns_of(turns or (), model)) if rows and task == "respond" else rows
    chosen, budget = task_for(task, model or "", template)
    sampling = sampling_of(max_new_tokens or chosen.max_new_tokens, num_beams, temperature, top_p)
    opened = open_model(model, device, dtype)
    prompts = prompts_for(opened, dataset.examples, chosen, budget) if dataset else _chat(prompt or "")
    with counting("generating") as progress:
        completions = complete(opened, prompts, sampling, batch_size=batch_size, seed=seed, progress=progress)
    if prompt is not None and out is None:
        typer.echo(completions[0].text)
    else:
        _write_completions(out, prompts, completions)


@app.command()
def score(
    scorer: Annotated[str, typer.Argument(help="toxicity, a classifier (org/name or folder), or a reward: rougeL.")],
    file: Annotated[Path, typer.Argument(help="One text a line, jsonl, or eval.json.")],
    out: Annotated[Path | None, typer.Option(help="The jsonl file to write; the terminal if left out.")] = None,
    data: Annotated[str | None, typer.Option(help="The dialogues, for a reward that reads them.")] = None,
    label: Annotated[str | None, typer.Option(help="A classifier's toxic label, if its name does not say so.")] = None,
) -> None:
    """Score any text with a toxicity scorer (a probability) or a reward; one {"text", "score"} a line."""
    from dialtune.scoring import score_file

    with counting("scoring") as progress:
        scored = score_file(scorer, file, out=out, data=data, label=label, progress=progress)
    for problem in scored.problems:
        say(problem)
    if out is None:
        typer.echo(scored.lines, nl=False)
    else:
        typer.echo(f"written: {out} ({scored.summary})")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="The baseline: an eval.json or its folder.")],
    after: Annotated[Path, typer.Argument(help="The candidate: an eval.json or its folder.")],
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json; AFTER's if left out.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="A gate such as 'rougeL>=+30%'; repeatable.")] = None,
    score: Annotated[list[str] | None, typer.Option(help="Test only these scores; repeatable.")] = None,
    allow_decoding_change: Annotated[
        bool, typer.Option("--allow-decoding-change", help="For decoding studies; written into the result.")
    ] = False,
    trained: Annotated[
        str | None, typer.Option(help="The toxicity scorer that was the reward; AFTER's run says it if left out.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Tell whether AFTER is better than BEFORE: paired differences, intervals, a verdict."""
    from dialtune import comparison as c
    from dialtune.errors import ConfigError
    from dialtune.evaluation import read_evaluation
    from dialtune.jury import PREFIX, TRAINED
    from dialtune.rewards.score import alarm_scorers, trained_scorer

    c.parse_gates(require or ())
    candidate = read_evaluation(after)
    judges = [name.removeprefix(PREFIX) for name in candidate.scores if name.startswith(PREFIX)]
    if trained is not None and trained not in judges:
        known = ", ".join(judges) or "none; evaluate with --task detoxify"
        raise ConfigError(f"--trained: got '{trained}'; scorers of toxicity in {after}: {known}")
    result = c.compare(
        read_evaluation(before),
        candidate,
        seed=seed,
        scores=score or None,
        trained=trained or trained_scorer(candidate.model.trained_from) or TRAINED,
        seen=alarm_scorers(candidate.model.trained_from),
        allow_decoding_change=allow_decoding_change,
    )
    for line in c.describe(result):
        typer.echo(line)
    typer.echo(f"written: {c.write_comparison(out or (after if after.is_dir() else after.parent), result)}")
    c.check_requirements(result, require or ())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run, an evaluation, a grid, or a folder of jobs such as runs/demo.")],
    out: Annotated[Path | None, typer.Option(help="The file; report.FORMAT in the folder if left out.")] = None,
    form: Annotated[
        str, typer.Option("--format", help="html; md, for a pull request; json; card, the README.md of the model.")
    ] = "html",
) -> None:
    """Tell of a run in one file: verdicts, curves, dialogues, jury, what was not scored, what was run."""
    from dialtune.report.build import build_cards, build_report

    if form == "card":
        written = build_cards(run, out)
    elif form in ("html", "md", "json"):
        written = [build_report(run, out, kind=form)]  # type: ignore[arg-type]
    else:
        raise typer.BadParameter(f"--format: got {form!r}; there are: html, md, json, card")
    for file in written:
        typer.echo(f"written: {file}")


# --- what the commands share ---


def one_of(names: str, *values: object) -> None:
    """Return if exactly one of these options was given."""
    given = sum(value is not None for value in values)
    if given != 1:
        raise typer.BadParameter(f"{names} is needed" if given == 0 else f"give {names}, not both")


def sampling_of(max_new_tokens: int, num_beams: int, temperature: float, top_p: float) -> Sampling:
    """How to decode, as the options say."""
    from dialtune.models.base import Sampling

    return Sampling(max_new_tokens=max_new_tokens, num_beams=num_beams, temperature=temperature, top_p=top_p)


def open_model(name: str | None, device: str, dtype: str) -> LanguageModel:
    """The model of --model, opened as the options say."""
    from dialtune.models.loading import load_model

    model: LanguageModel = load_model(name or "", device=device, dtype=dtype)  # type: ignore[arg-type]
    return model


def _chat(text: str) -> list[Prompt]:
    from dialtune.types import Message, Prompt

    return [Prompt("prompt", (Message("user", text),), "chat")]


def _write_completions(out: Path | None, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> None:
    import json

    from dialtune.runs import write_text_atomic

    rows = [
        {"id": c.example_id, "completion": c.text, "finish": c.finish, "dropped_turns": p.dropped_turns}
        for p, c in zip(prompts, completions, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text_atomic(out, text)
        cut = sum(c.finish == "length" for c in completions)
        typer.echo(f"written: {out} ({len(rows):,} completions, {cut:,} cut at the cap)")


def leaks_policy(drop: bool | None) -> Policy | None:
    """What --drop-leaks and --allow-leaks mean; None where neither was given."""
    return None if drop is None else "drop" if drop else "allow"


def cleaned(data: DataSet, steps: Sequence[str] | None) -> DataSet:
    """The rows after the cleaning steps of --clean."""
    if not steps:
        return data
    from dataclasses import replace

    from dialtune.data.cleaning import choose_steps, clean_examples

    return replace(data, examples=clean_examples(data.examples, choose_steps(steps)).examples)


def turns_of(given: Sequence[str], model: str | None) -> TurnsConfig:
    """How dialogues become replies: as the model was trained, and over that what --turns says."""
    from dialtune.config.data_schema import TurnsConfig
    from dialtune.config.loading import load_config

    noted: dict[str, Any] = {}
    if model is not None:
        from dialtune.models.loading import read_notes

        noted = read_notes(model).get("turns") or {}
    asked = load_config(None, [f"data.turns.{text}" for text in given], model="any", data="any").data.turns
    return TurnsConfig.model_validate(noted | {key: getattr(asked, key) for key in asked.model_fields_set})
