"""`demo`, `sft`, `generate`, `evaluate`, `compare`, `report`: parse, one public call, print."""

from __future__ import annotations

import typer

app = typer.Typer()
