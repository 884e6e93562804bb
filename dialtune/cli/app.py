"""The root command; the only place that turns an error into a line and an exit code. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from dialtune.cli import data, evaluate, reward, rl, run, setup
from dialtune.errors import DialtuneError

# What users of trl, axolotl, lm-eval and LLaMA-Factory type first.
ELSEWHERE = {
    "train": "sft",
    "finetune": "sft",
    "fit": "sft",
    "grpo": "rl",
    "rloo": "rl",
    "ppo": "rl",
    "rm": "reward",
    "eval": "evaluate",
    "test": "evaluate",
    "predict": "generate",
    "chat": "generate",
    "env": "doctor",
    "info": "doctor",
    "validate": "sft RECIPE --dry-run",
    "check": "data check",
    "diff": "compare",
    "new": "init",
}
MAX_LINES = 50  # of one error: the rest is counted, the last line is kept


class _Verbs(TyperGroup):
    """Answers the verbs of other tools with ours; help lists commands in the order of a first run."""

    ORDER = (
        "demo",
        "init",
        "sft",
        "reward",
        "rl",
        "generate",
        "score",
        "evaluate",
        "compare",
        "report",
        "data",
        "config",
        "doctor",
    )

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: self.ORDER.index(name) if name in self.ORDER else len(self.ORDER))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        verb = args[0]
        if verb in self.commands or verb.startswith("-"):
            return super().resolve_command(ctx, args)
        if verb in ELSEWHERE:
            raise typer.BadParameter(f"there is no verb {verb!r}; it is: dialtune {ELSEWHERE[verb]}")
        import difflib

        near = difflib.get_close_matches(verb, self.commands, n=1)
        hint = f"did you mean: dialtune {near[0]}" if near else f"verbs: {', '.join(self.list_commands(ctx))}"
        raise typer.BadParameter(f"there is no verb {verb!r}; {hint}")


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"dialtune {version('dialtune')}")
        raise typer.Exit


@app.callback(epilog="Start with: dialtune demo. A recipe: dialtune init. Exit codes: docs/errors.md.")
def root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Fine-tune a language model for conversation and prove that it got better."""


app.add_typer(run.app)
app.add_typer(reward.app)
app.add_typer(rl.app)
app.add_typer(evaluate.app)
app.add_typer(data.app, name="data")
app.add_typer(setup.app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run_command(sys.argv[1:] if arguments is None else list(arguments)))


def run_command(arguments: Sequence[str]) -> int:
    """The exit code of one command line; errors are already printed."""
    try:
        result = typer.main.get_command(app).main(list(arguments), prog_name="dialtune", standalone_mode=False)
        sys.stdout.flush()  # a reader that left (`| head`) shows up here, not at interpreter exit
    except DialtuneError as error:
        return _tell(error, error.exit_code)
    except KeyboardInterrupt:
        return _tell("stopped by Ctrl-C", 130)
    except typer.Abort:
        return _tell("stopped", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error)
    return result if isinstance(result, int) else 0


def _unexpected(error: Exception) -> int:
    usage = getattr(error, "format_message", None)  # click's own errors, wherever typer keeps click
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help page
        typer.echo(str(error))
        return 0
    if usage is not None:
        return _tell(_usage_line(error, usage()), 2)
    if os.environ.get("DIALTUNE_DEBUG"):
        raise error
    reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return _tell(f"unexpected {reason}\n  This is a bug in dialtune. For the traceback: DIALTUNE_DEBUG=1 dialtune …", 1)


def _usage_line(error: Any, message: str) -> str:
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "dialtune"
    return f"{message.removeprefix('Invalid value: ')}\n  Help: {where} --help"


def _tell(error: Exception | str, code: int) -> int:
    """Print an error: one message behind our name, or a list of problems as `file:line: …` that editors can follow."""
    lines = str(error).splitlines() or ["failed"]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 2], f"… and {len(lines) - MAX_LINES + 1} more", lines[-1]]
    is_list = len(getattr(error, "problems", ())) > 1
    typer.echo("\n".join(lines) if is_list else "dialtune: " + "\n".join(lines), err=True)
    return code
