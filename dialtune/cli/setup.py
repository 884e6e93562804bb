"""`doctor`, `init`, `config show`, `config explain`: the machine, a first recipe, and what a recipe may say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dialtune.cli.run import Model, Overrides

app = typer.Typer()
config_app = typer.Typer(no_args_is_help=True, help="Show a recipe resolved; explain its keys.")
app.add_typer(config_app, name="config")


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(help="A recipe to check as well; or rl, and then the recipe.")] = None,
    rl_recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="After rl: run every check before its first update.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where runs will be written.")] = Path("runs"),
    overrides: Overrides = None,
    model: Model = None,
) -> None:
    """Show the machine: versions, devices, assets, disk, and what to do."""
    if recipe == "rl":
        _examine_rl(rl_recipe, overrides or (), model)
        return
    if recipe is None and (overrides or model):
        raise typer.BadParameter("--set and --model change a recipe; give one: dialtune doctor RECIPE")
    from dialtune.config.loading import load_any_config
    from dialtune.diagnosis import examine

    findings = examine(folder)
    for finding in findings:
        typer.echo(f"{'!' if finding.action else ' '} {finding.topic:<10} {finding.found}")
        if finding.action:
            typer.echo(f"             -> {finding.action}")
    if recipe is not None:
        config = load_any_config(recipe, overrides or (), model=model)
        typer.echo(f"  recipe     {recipe}: valid, fingerprint {config.fingerprint[:12]}")
    open_points = sum(bool(finding.action) for finding in findings)
    typer.echo("all well" if not open_points else f"{open_points} to look at, marked with !")


def _examine_rl(recipe: str | None, overrides: Sequence[str], model: str | None) -> None:
    from dialtune.config.loading import load_rl_config

    if recipe is None:
        raise typer.BadParameter("give a recipe: dialtune doctor rl RECIPE")
    config = load_rl_config(recipe, overrides, model=model)
    from dialtune.trainers.rl_run import check_rl

    checks = check_rl(config)
    for check in checks:
        mark = "!" if check.problem else "?" if check.advice else " "
        typer.echo(f"{mark} {check.name}  {check.problem or check.advice or check.title}")
    failed, advised = sum(bool(check.problem) for check in checks), any(check.advice for check in checks)
    passed = "all well, but for what is marked with ?" if advised else "all well"
    typer.echo(f"{failed} of {len(checks)} checks failed, marked with !" if failed else passed)
    if failed:
        raise typer.Exit(1)


@app.command()
def init(
    task: Annotated[str, typer.Option(help="What the model shall learn: summarize, respond, detoxify.")] = "summarize",
    model: Annotated[str, typer.Option(help="Hub name, folder or packaged name.")] = "smollm2-135m",
    method: Annotated[
        str | None, typer.Option(help="sft, grpo, rloo or ppo; the task's usual one if left out.", show_default=False)
    ] = None,
    train: Annotated[
        str | None, typer.Option(help="Rows to learn from; packaged ones if left out.", show_default=False)
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Rows that choose the best checkpoint.", show_default=False)
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train a small adapter instead of all weights.")] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The recipe to write.")] = Path("recipe.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a short, commented recipe."""
    from dialtune.config.writing import write_recipe
    from dialtune.errors import ConfigError
    from dialtune.runs import write_text_atomic

    if out.exists() and not force:
        raise ConfigError(f"{out}: exists already; choose another name with --out, or --force replaces it")
    text = write_recipe(task, model, method=method, data=(train, validation), lora=lora, file=str(out))
    write_text_atomic(out, text)
    typer.echo(f"{out}: written. {text.splitlines()[0].removeprefix('# ')}")


@config_app.command()
def show(
    recipe: Annotated[str, typer.Argument(help="A recipe, or the name of a packaged one.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any key; repeatable.")
    ] = None,
) -> None:
    """Print the resolved recipe: every value, no aliases; feeding it back gives the same run."""
    from dialtune.config.loading import load_any_config, to_yaml

    config = load_any_config(recipe, overrides or ())
    typer.echo(f"# fingerprint {config.fingerprint}\n{to_yaml(config)}", nl=False)


@config_app.command()
def explain(
    topic: Annotated[str, typer.Argument(help="A key or a section such as lora; all keys if left out.")] = "",
) -> None:
    """Explain keys: what is allowed, the default and the reason for it."""
    from dialtune.config.loading import explain_topic

    for key, allowed, default, text in explain_topic(topic):
        typer.echo(f"{key}: {allowed}; {default if default == 'required' else 'default ' + default}\n    {text}")
