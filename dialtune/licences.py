"""Licences that are known, of models and data sets by name; whatever is not here is unknown, and said to be."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

# The hub's name of what comes as a Python package, and what it differs in.
HUB_NAMES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}

# As their hub pages state them; identifiers are the hub's.
_MODELS = {
    "HuggingFaceTB/SmolLM2-*": "apache-2.0",
    "google/flan-t5-*": "apache-2.0",
    "google-t5/t5-*": "apache-2.0",
    "t5-*": "apache-2.0",
    "facebook/bart-large-cnn": "mit",
    "facebook/bart-base": "apache-2.0",
    "facebook/bart-large": "apache-2.0",
    "openai-community/gpt2*": "mit",
    "sentence-transformers/all-MiniLM-L6-v2": "apache-2.0",
}
_DATA = {
    "packaged": "apache-2.0",
    "chitchat": "mit",
    "knkarthick/dialogsum": "cc-by-nc-sa-4.0",
    "knkarthick/samsum": "cc-by-nc-nd-4.0",
    "Samsung/samsum": "cc-by-nc-nd-4.0",
    "li2017dailydialog/daily_dialog": "cc-by-nc-sa-4.0",
    "google/civil_comments": "cc0-1.0",
}
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def hub_name(name: str) -> str | None:
    """The hub's name of a model: of a packaged one the original's; None for what looks like a folder.

    >>> hub_name("smollm2-135m"), hub_name("google/flan-t5-base"), hub_name("runs/summarize/checkpoint-20")
    ('HuggingFaceTB/SmolLM2-135M-Instruct', 'google/flan-t5-base', None)
    """
    if name in HUB_NAMES:
        return HUB_NAMES[name]
    return name if _HUB_NAME.fullmatch(name) and not name.startswith((".", "runs/")) else None


def model_licence(hub: str | None) -> str | None:
    """The licence of a model by its hub name; None if it is not known here.

    >>> model_licence("google/flan-t5-large"), model_licence("someone/else")
    ('apache-2.0', None)
    """
    return next((licence for known, licence in _MODELS.items() if hub and fnmatchcase(hub, known)), None)


def data_set(source: str) -> str | None:
    """The hub's name of a `hub:org/name:split` source, `packaged` or `chitchat` for those; None for a file.

    >>> data_set("hub:knkarthick/dialogsum:test"), data_set("packaged:train:heated"), data_set("my.jsonl")
    ('knkarthick/dialogsum', 'packaged', None)
    """
    kind, _, rest = source.partition(":")
    if kind in ("packaged", "chitchat"):
        return kind
    return (rest.partition(":")[0] or None) if kind == "hub" else None


def data_licence(source: str) -> str | None:
    """The licence of a data source; None for a file of one's own, or if it is not known here."""
    return _DATA.get(data_set(source) or "")


def forbids_commerce(licence: str | None) -> bool:
    """Whether a licence is a non-commercial one; an unknown one is not counted as such."""
    return licence is not None and "-nc" in licence
