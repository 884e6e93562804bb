"""`evaluate`: rows, their audit against what was trained on, completions or predictions, scores with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dialtune.cli.plan import TwoPilots, print_plan
from dialtune.cli.progress import counting, say
from dialtune.cli.run import (
    BatchSize,
    Beams,
    Clean,
    Data,
    Device,
    DropLeaks,
    DType,
    Layout,
    Limit,
    Model,
    Seed,
    Split,
    Task,
    Template,
    Tokens,
    Turns,
    cleaned,
    leaks_policy,
    one_of,
    open_model,
    sampling_of,
    turns_of,
)

if TYPE_CHECKING:
    from dialtune.data.leakage import Policy
    from dialtune.data.reading import DataSet
    from dialtune.data.seen import Seen
    from dialtune.results import Evaluation
    from dialtune.types import Example

app = typer.Typer()


@app.command(cls=TwoPilots)
def evaluate(
    data: Data = None,
    model: Model = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this file instead of a model: one text a line, or jsonl.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder that gets eval.json.")] = None,
    task: Task = "summarize",
    template: Template = None,
    turns: Turns = None,
    like: Annotated[
        str | None, typer.Option(help="Ask as this trained model was, on rows that it never saw: for its baseline.")
    ] = None,
    reference: Annotated[
        str, typer.Option(help="first, mean, max or a name such as summary1; auto: mean if several.")
    ] = "auto",
    train: Annotated[
        str | None, typer.Option(help="Training rows to look for copies of; copies withhold 'improved'.")
    ] = None,
    drop_leaks: DropLeaks = None,
    metric: Annotated[list[str] | None, typer.Option(help="Instead of the task's own; repeatable.")] = None,
    layout: Layout = "auto",
    clean: Clean = None,
    split: Split = None,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    max_new_tokens: Tokens = None,
    num_beams: Beams = 1,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: DType = "auto",
    plan: Annotated[
        str | None, typer.Option(metavar="CLAIM", help="Evaluate nothing; dialogues to show a claim: 'toxicity -20%'.")
    ] = None,
    pilot: Annotated[
        list[Path] | None,
        typer.Option(metavar="BEFORE [AFTER]", help="Where --plan takes variance from."),
    ] = None,
    rho: Annotated[float, typer.Option(help="Correlation to assume, with one evaluation as --pilot.")] = 0.5,
    power: Annotated[float, typer.Option(help="Chance that --plan's dialogues show a true change.")] = 0.8,
) -> None:
    """Score a model, or a file of predictions, against gold texts; writes eval.json."""
    from dialtune.data.reading import read_examples
    from dialtune.data.turns import for_task

    if plan is not None:
        print_plan(plan, pilot or (), rho, power)
        return
    one_of("--model or --predictions", model, predictions)
    one_of("--data", data)
    one_of("--out", out)
    rows = cleaned(read_examples(data or "", layout=layout, split=split, limit=limit), clean)
    rows, learned = _audited(rows, task, (model, like), train, leaks_policy(drop_leaks))
    dataset = for_task(rows, task, turns_of(turns or (), like or model))
    judged: dict[str, Any] = {"reference": reference, "seed": seed, **learned}
    if predictions is not None:
        evaluation = _score_file(dataset, predictions, task, metric, judged)
    else:
        from dialtune.model_evaluation import evaluate_model, task_for

        chosen, budget = task_for(task, like or model or "", template)
        judged["sampling"] = sampling_of(max_new_tokens or chosen.max_new_tokens, num_beams, 0.0, 1.0)
        judged |= {"metrics": metric, "max_prompt_tokens": budget, "batch_size": batch_size}
        with counting("generating") as progress:
            evaluation = evaluate_model(open_model(model, device, dtype), dataset, chosen, progress=progress, **judged)
    _written(out or Path(), evaluation, dataset)


def _written(out: Path, evaluation: Evaluation, dataset: DataSet) -> None:
    """Write eval.json, and the dialogues that a report shows beside it."""
    from dialtune.evaluation import write_evaluation, write_examples

    file = write_evaluation(out, evaluation)
    write_examples(file.parent, dataset)
    typer.echo(f"{_table(evaluation)}\nwritten: {file}")


def _audited(
    rows: DataSet, task: str, models: Sequence[str | None], train: str | None, policy: Policy | None
) -> tuple[DataSet, dict[str, Any]]:
    """(the rows to score, what evaluations are told about training): for `respond`, a leak stops here by default."""
    from dialtune.data.leakage import audit_evaluation

    trained, learned = _trained_on(task, models, train)
    rows, leakage = audit_evaluation(rows, trained, policy or ("stop" if task == "respond" else "allow"))
    return rows, {"leakage": leakage, "train": learned}


def _trained_on(
    task: str, models: Sequence[str | None], train: str | None
) -> tuple[dict[str, Seen], tuple[Example, ...] | None]:
    """(fingerprints of training dialogues by what they are of, the rows of --train if it names rows)."""
    found: dict[str, Seen] = {}
    for name in dict.fromkeys(filter(None, models) if task == "respond" else ()):
        from dialtune.models.loading import find_trained_on, read_notes

        if (seen := find_trained_on(name)) is not None:
            found[name] = seen
        elif sources := read_notes(name).get("trained_on"):
            names = ", ".join(source["name"] for source in sources)
            say(f"{name}: trained on {names}, but its trained_on.safetensors is gone; --train FILE looks for copies")
    if train is None:
        return found, None
    from dialtune.data.reading import read_examples
    from dialtune.data.seen import fingerprint_dialogues
    from dialtune.data.turns import for_task

    rows = read_examples(train)
    return found | {train: fingerprint_dialogues(rows.examples, rows.name)}, for_task(rows, task).examples


def _score_file(
    dataset: DataSet, path: Path, task: str, metrics: list[str] | None, judged: dict[str, Any]
) -> Evaluation:
    from dialtune.evaluation import evaluate_completions, read_predictions
    from dialtune.results import ModelInfo
    from dialtune.tasks import find_task

    completions = read_predictions(path, dataset.examples)
    info, names = ModelInfo(name=path.name), metrics or find_task(task).metrics
    return evaluate_completions(dataset, completions, names, model=info, task=task, **judged)


def _table(evaluation: Evaluation) -> str:
    """What was counted, then a score with its interval a line; `#` starts the short form of its signature."""
    from hashlib import sha256

    lines, wide = [], max(18, *map(len, evaluation.scores))
    for name, score in evaluation.scores.items():
        if score.value is None:
            lines.append(f"{name:<{wide}} not scored ({score.reason})")
        else:
            places = 2 if abs(score.value) > 1 else 3
            interval = f"[{score.ci[0]:.{places}f}, {score.ci[1]:.{places}f}]" if score.ci else "(no interval)"
            short = sha256(score.signature.encode()).hexdigest()[:8]
            lines.append(f"{name:<{wide}} {score.value:8.{places}f}  {interval:<18} n {score.n:,}  #{short}")
        lines += [f"{name}: {score.note}"] if score.note else []
    e = evaluation
    counts = f"{e.n_scored:,} of {e.n_total:,} rows scored, {e.n_empty:,} empty, {e.n_truncated:,} cut at the cap"
    return "\n".join([f"{e.model.name} on {e.data.name}, reference {e.data.reference}: {counts}", *lines])
