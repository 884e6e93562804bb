"""`reward`: train a reward model for replies by a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from dialtune.cli.progress import training
from dialtune.cli.run import Overrides, Resumable, recipe_key

app = typer.Typer()


@app.command(cls=Resumable)
def reward(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A YAML file or a packaged name.")] = None,
    config: Annotated[str | None, typer.Option("--config", "-c", help="The same as RECIPE.")] = None,
    overrides: Overrides = None,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="[CHECKPOINT]", help="Go on from the newest, or from this one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be learned from; train nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Resume although recipe or data changed.")] = False,
    model: Annotated[str | None, recipe_key("model", "The encoder: packaged name, folder or hub name.")] = None,
    data: Annotated[str | None, recipe_key("data", "Dialogues, ratings or preference pairs to learn from.")] = None,
    validation: Annotated[str | None, recipe_key("validation", "Rows that choose, calibrate and report.")] = None,
    output_dir: Annotated[str | None, recipe_key("output_dir", "The folder of the reward.")] = None,
    num_train_epochs: Annotated[float | None, recipe_key("num_train_epochs", "Passes over the data.")] = None,
    max_steps: Annotated[int | None, recipe_key("max_steps", "Optimizer updates.")] = None,
    learning_rate: Annotated[float | None, recipe_key("learning_rate", "Peak step size.")] = None,
    seed: Annotated[int | None, recipe_key("seed", "Of everything random.")] = None,
) -> None:
    """Learn how good a reply is, for `rl` and `evaluate`; every key: dialtune config explain reward."""
    from dialtune.config.loading import load_reward_config

    flags = {
        "model": model, "data": data, "data__validation": validation, "output_dir": output_dir, "seed": seed,
        "num_train_epochs": num_train_epochs, "max_steps": max_steps, "learning_rate": learning_rate,
    }  # fmt: skip
    if recipe and config:
        raise typer.BadParameter("RECIPE and --config are the same thing; give one")
    loaded = load_reward_config(recipe or config, overrides or (), **flags)
    from dialtune.trainers.reward_run import preview_reward, run_reward  # torch, so only once the recipe is good

    if dry_run:
        typer.echo("\n".join(preview_reward(loaded)))
        return
    with training(loaded.logging_steps) as show:
        result = run_reward(loaded, resume=resume, force=force, on_event=show)
    typer.echo(
        f"{result}: done. Next, in a recipe for rl: rewards: {{{result}: 1.0}}; to judge: --metric reward:{result}"
    )
