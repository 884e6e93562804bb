"""The packaged dialogues, written for this project, as DataSets; see assets/DATA_CARD.md.

Each Example has the civil summary as its only reference. Its `meta` holds `kind` (plain, heated or control),
`scenario`, `split`, for heated rows `summary_blunt` (the same facts with the offence repeated), for control rows
`control`.
"""

from __future__ import annotations

from dialtune.data.reading import SPLITS, DataSet, read_examples
from dialtune.types import Example

KINDS = ("plain", "heated", "control")


def packaged(split: str) -> DataSet:
    """The packaged `train` (160), `validation` (40) or `test` (60) dialogues; same as reading `packaged:<split>`."""
    return read_examples(f"packaged:{split}")


def packaged_splits() -> dict[str, DataSet]:
    """All three splits by name."""
    return {split: packaged(split) for split in SPLITS}


def of_kind(data: DataSet, kind: str) -> tuple[Example, ...]:
    """The examples of one kind, in order."""
    return tuple(example for example in data.examples if example.meta.get("kind") == kind)


def blunt_summary(example: Example) -> str | None:
    """The summary that repeats the offence, or None where there is none."""
    text = example.meta.get("summary_blunt")
    return text if isinstance(text, str) else None
