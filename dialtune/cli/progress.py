"""What a long command shows while it works: a live bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

OnCount = Callable[[int, int], None]  # done, total
OnEvent = Callable[[str, Mapping[str, Any]], None]  # kind, facts; see trainers/sft.py


def say(text: str) -> None:
    """One line on stderr; stdout stays for results."""
    typer.echo(text, err=True)


@contextmanager
def showing(logging_steps: int, label: str = "generating") -> Iterator[tuple[OnEvent, OnCount]]:
    """Progress of training and of what is counted, on one display: (for trainers, for generation)."""
    if not sys.stderr.isatty():
        yield _Lines(logging_steps), _tenths(label)
        return
    with _bar() as bar:
        yield _training_row(bar), _counting_row(bar, label)


@contextmanager
def counting(label: str) -> Iterator[OnCount]:
    """Progress of something that is counted, such as generation."""
    with showing(1, label) as (_, tell):
        yield tell


@contextmanager
def training(logging_steps: int) -> Iterator[OnEvent]:
    """Loss, tokens/s and time left of a training run; a plain line every `logging_steps` updates without a terminal."""
    with showing(logging_steps) as (show, _):
        yield show


def _training_row(bar: Any) -> OnEvent:
    row: Any = None

    def show(kind: str, facts: Mapping[str, Any]) -> None:
        nonlocal row
        if kind == "start":
            row = bar.add_task("training", total=facts["total_steps"], completed=facts["step"])
        elif kind == "step":
            bar.update(row, completed=facts["step"], description=_numbers(facts))
        if kind == "note" or any(name.startswith("eval_") for name in facts):
            bar.console.print(facts.get("text") or _step_line(facts), markup=False, highlight=False)

    return show


def _counting_row(bar: Any, label: str) -> OnCount:
    row: Any = None

    def tell(done: int, total: int) -> None:
        nonlocal row
        if row is None:
            row = bar.add_task(label, total=total)
        bar.update(row, completed=done)
        if done == total:
            bar.remove_task(row)
            row = None

    return tell


class _Lines:
    """Plain lines for logs: each note and evaluation, and every so many updates."""

    def __init__(self, every: int) -> None:
        self.every, self.total, self.first, self.began = every, 0, 0, time.perf_counter()

    def __call__(self, kind: str, facts: Mapping[str, Any]) -> None:
        if kind == "start":
            self.total, self.first, self.began = facts["total_steps"], facts["step"], time.perf_counter()
        elif kind == "note":
            say(str(facts["text"]))
        elif kind == "evaluation":
            say(_step_line(facts))
        elif kind == "step":
            step = facts["step"]
            evaluated = any(name.startswith("eval_") for name in facts)
            if evaluated or step % self.every == 0 or step in (self.first + 1, self.total):
                left = (time.perf_counter() - self.began) / (step - self.first) * (self.total - step)
                say(f"{_step_line(facts, self.total)}, {_clock(left)} left")


def _step_line(facts: Mapping[str, Any], total: int | None = None) -> str:
    of = f"/{total:,}" if total else ""
    return f"update {facts['step']:,}{of}: {_numbers(facts)}"


def _numbers(facts: Mapping[str, Any]) -> str:
    loss = "" if "loss" not in facts else "skipped" if facts["loss"] is None else f"loss {facts['loss']:.3f}"
    rl = [f"{label} {facts[name]:.3f}" for name, label in RL_NUMBERS.items() if facts.get(name) is not None]
    rl += [
        f"{name.removeprefix('lambda:')} x {value:.2f}" for name, value in facts.items() if name.startswith("lambda:")
    ]
    phases = [f"{name} {facts[f'{name}_s']:.1f} s" for name in ("generate", "update") if f"{name}_s" in facts]
    scores = [f"{name} {_value(value)}" for name, value in facts.items() if name.startswith("eval_")]
    speed = [f"{facts['tokens_per_s']:,.0f} tokens/s"] if "tokens_per_s" in facts else []
    return ", ".join(part for part in [loss, *rl, *scores, *phases, *speed] if part)


# What a reinforcement-learning update shows beside its loss, and under which name.
RL_NUMBERS = {
    "reward": "reward",
    "toxic": "toxic",
    **{name: name for name in ("relevance", "relevance_dialogue", "relevance_reference", "rougeL")},
    "kl_per_sequence": "KL",
    "tokens": "tokens",
}


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "not scored", True: "yes", False: "no"}[value]
    return f"{value:.3f}"


def _clock(seconds: float) -> str:
    """Time in words.

    >>> _clock(75), _clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _tenths(label: str) -> OnCount:
    shown = 0

    def tell(done: int, total: int) -> None:
        nonlocal shown
        if total >= 50 and done * 10 // total > shown:
            shown = done * 10 // total
            say(f"{label} {done:,}/{total:,}")
        if done == total:
            shown = 0

    return tell


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    text = TextColumn("{task.description}", markup=False)
    return Progress(
        BarColumn(), MofNCompleteColumn(), text, TimeRemainingColumn(), console=Console(stderr=True), transient=True
    )
