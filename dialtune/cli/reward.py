"""`reward`: train a reward model for replies by a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from dialtune.cli.progress import training
from dialtune.cli.run import Config, Force, Overrides, Recipe, Resumable, Resume, one_recipe, recipe_key

app = typer.Typer()


@app.command(cls=Resumable)
def reward(
    recipe: Recipe = None,
    config: Config = None,
    overrides: Overrides = None,
    resume: Resume = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be learned from; train nothing.")] = False,
    force: Force = False,
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
    loaded = load_reward_config(one_recipe(recipe, config), overrides or (), **flags)
    from dialtune.trainers.reward_run import preview_reward, run_reward  # torch, so only once the recipe is good

    if dry_run:
        typer.echo("\n".join(preview_reward(loaded)))
        return
    with training(loaded.logging_steps) as show:
        result = run_reward(loaded, resume=resume, force=force, on_event=show)
    typer.echo(
        f"{result}: done. Next, in a recipe for rl: rewards: {{{result}: 1.0}}; to judge: --metric reward:{result}"
    )
