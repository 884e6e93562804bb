"""`rl`: reinforcement learning by a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from dialtune.cli.progress import training
from dialtune.cli.run import Config, Force, Model, Overrides, Recipe, Resumable, Resume, one_recipe, recipe_key

app = typer.Typer()


@app.command(cls=Resumable)
def rl(
    recipe: Recipe = None,
    config: Config = None,
    overrides: Overrides = None,
    resume: Resume = None,
    force: Force = False,
    model: Model = None,
    data: Annotated[str | None, recipe_key("data", "Dialogues to sample summaries or replies of.")] = None,
    validation: Annotated[str | None, recipe_key("validation", "Dialogues that choose the checkpoint.")] = None,
    output_dir: Annotated[str | None, recipe_key("output_dir", "The run folder.")] = None,
    method: Annotated[str | None, recipe_key("method", "ppo, rloo or grpo.")] = None,
    max_steps: Annotated[int | None, recipe_key("max_steps", "Optimizer updates.")] = None,
    num_generations: Annotated[int | None, recipe_key("num_generations", "Completions per prompt.")] = None,
    learning_rate: Annotated[float | None, recipe_key("learning_rate", "Peak step size.")] = None,
    beta: Annotated[float | None, recipe_key("beta", "Weight of the KL to the start policy.")] = None,
    seed: Annotated[int | None, recipe_key("seed", "Of everything random.")] = None,
) -> None:
    """Train on rewards: less toxic, as relevant; every key: dialtune config explain rl."""
    from dialtune.config.loading import load_rl_config

    flags = {
        "model": model, "data": data, "data__validation": validation, "output_dir": output_dir, "method": method,
        "max_steps": max_steps, "num_generations": num_generations, "learning_rate": learning_rate, "beta": beta,
        "seed": seed,
    }  # fmt: skip
    loaded = load_rl_config(one_recipe(recipe, config), overrides or (), **flags)
    from dialtune.trainers.rl_run import run_rl  # torch, so only once the recipe is known to be good

    with training(loaded.logging_steps) as show:
        result = run_rl(loaded, resume=resume, force=force, on_event=show)
    typer.echo(
        f"{result}: done. Next: dialtune evaluate --task {loaded.task} --model {result} --data FILE --out FOLDER"
    )
