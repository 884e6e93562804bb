"""Toxicity scorers by name, and the jury."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from dialtune.errors import ConfigError
from dialtune.scorers.base import ToxicityScorer
from dialtune.scorers.encoder import load_encoder_scorer
from dialtune.scorers.huggingface import load_classifier
from dialtune.scorers.lexicon import load_lexicon
from dialtune.scorers.ngrams import load_ngrams
from dialtune.scorers.profanity_check import load_profanity_check

PACKAGED_SCORERS: dict[str, Callable[[], ToxicityScorer]] = {
    "minilm": load_encoder_scorer,
    "ngrams": load_ngrams,
    "lexicon": load_lexicon,
    "alt-profanity-check": load_profanity_check,
}
ALIASES = {"toxicity": "minilm"}
JURY: tuple[str, ...] = ("ngrams", "lexicon", "alt-profanity-check")  # other kinds, other data; no default reward


def find_scorer(name: str, *, label: str | None = None) -> ToxicityScorer:
    """The scorer of a name, opened once per process.

    Args:
        name: a packaged name, `toxicity` (the packaged scorer `minilm`), a folder, or a hub name with a slash; `#LABEL`
            at its end is the same as `label`.
        label: the toxic label of a Hugging Face classifier, where its name does not say so; null for packaged ones.
    Raises:
        ConfigError: no such name, or a label that is not there.
        MissingExtraError: it needs a package that is not installed.
        ModelError: the files of a classifier are not there or cannot be used.
    """
    if label is None and "#" in name and not Path(name).is_dir():
        name, _, label = name.rpartition("#")
    name = ALIASES.get(name, name)
    if name in PACKAGED_SCORERS:
        if label is not None:
            raise ConfigError(f"scorer {name!r} has one label; got {label!r}; labels are for Hugging Face classifiers")
        return _open_packaged(name)
    if "/" in name or (name and Path(name).is_dir()):
        return load_classifier(name, label=label)
    known = [*PACKAGED_SCORERS, *ALIASES]
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"packaged: {', '.join(PACKAGED_SCORERS)}."
    raise ConfigError(f"no scorer {name!r}; {hint} A Hugging Face classifier is a folder or a hub name (org/name).")


@cache
def _open_packaged(name: str) -> ToxicityScorer:
    return PACKAGED_SCORERS[name]()
