"""What `dialtune sft` does once the recipe is known to be good: show, train one run, or train a grid of them."""

from __future__ import annotations

import typer

from dialtune.cli.progress import training
from dialtune.config.grid import Grid
from dialtune.config.schema import RunConfig


def print_preview(loaded: RunConfig | Grid) -> None:
    """Print what would be trained on."""
    if isinstance(loaded, Grid):
        from dialtune.trainers.grid_run import preview_grid

        typer.echo("\n".join(preview_grid(loaded)))
        return
    from dialtune.trainers.sft_run import preview_sft

    typer.echo("\n".join(preview_sft(loaded)))


def train(loaded: RunConfig | Grid, resume: str | None, force: bool) -> None:
    """Train; print the result, and for a grid the table before it."""
    if isinstance(loaded, Grid):
        _train_grid(loaded, resume, force)
        return
    from dialtune.trainers.sft_run import run_sft

    with training(loaded.logging_steps) as show:
        result = run_sft(loaded, resume=resume, force=force, on_event=show)
    typer.echo(f"{result}: done. Next: dialtune evaluate --model {result} --data FILE --out FOLDER")


def _train_grid(grid: Grid, resume: str | None, force: bool) -> None:
    from dialtune.trainers.grid_run import describe_grid, run_grid

    with training(grid.runs[0].config.logging_steps) as show:
        record = run_grid(grid, resume=resume, force=force, on_event=show)
    typer.echo("\n".join(describe_grid(grid, record)))
    typer.echo(f"Next: dialtune report {grid.output_dir}")
