"""What `dialtune evaluate --plan` does: a claim and a pilot to numbers of dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from dialtune.results import Comparison, Evaluation


class TwoPilots(TyperCommand):
    """Lets `--pilot BEFORE AFTER` stand for the option twice; the command has no arguments of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        told = []
        for place, argument in enumerate(args):
            second = place >= 2 and args[place - 2] == "--pilot" and not argument.startswith("-")
            told += ["--pilot", argument] if second else [argument]
        return super().parse_args(ctx, told)


def print_plan(claim: str, pilots: Sequence[Path], rho: float, power: float) -> None:
    """Print the dialogues that each score named by the claim needs."""
    from dialtune.planning import describe_plans, parse_claim, plan

    if not 0 < power < 1:
        raise typer.BadParameter(f"--power: got {power:g}; a chance between 0 and 1, by habit 0.8")
    asked = parse_claim(claim)
    typer.echo("\n".join(describe_plans(plan(asked, _pilot(pilots), rho=rho, power=power))))


def _pilot(paths: Sequence[Path]) -> Comparison | Evaluation | tuple[Evaluation, Evaluation]:
    from dialtune.comparison import read_comparison
    from dialtune.evaluation import read_evaluation
    from dialtune.runs import RunFolder

    if len(paths) == 2:
        return read_evaluation(paths[0]), read_evaluation(paths[1])
    if len(paths) != 1:
        raise typer.BadParameter(
            "--plan takes variance from a pilot: --pilot BEFORE AFTER, or --pilot with a compare.json or one eval.json"
        )
    path = paths[0]
    compared = RunFolder(path).comparison if path.is_dir() else path
    return read_comparison(compared) if compared.name == "compare.json" and compared.exists() else read_evaluation(path)
