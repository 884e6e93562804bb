"""alt-profanity-check as a juror: a linear model on words, made by others from other data. An optional package.

The package unpickles its model (joblib) when it is imported. dialtune therefore imports it only when this scorer is
asked for a score, and never as a reward by default.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import warnings
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dialtune.errors import MissingExtraError
from dialtune.scorers.base import CACHE_SIZE, TextCache

NAME = "alt-profanity-check"
_MODULE = "profanity_check"
_MODEL = ("data", "model.joblib")
_SURE = 1e-9  # its probabilities may round to 0 or 1; log-odds stay within +-20.7


class ProfanityCheckScorer:
    """Log-odds of the package's `predict_prob`."""

    name = NAME

    def __init__(self, folder: Path) -> None:
        self._model = folder.joinpath(*_MODEL)
        self._cache = TextCache[float](CACHE_SIZE)

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) natural log-odds that each text is profane, within +-20.7."""
        return np.array(self._cache.fill(texts, _score), dtype=np.float64)

    def settings(self) -> dict[str, str]:
        """For signatures; `sha` is of the package's model file."""
        sha = hashlib.sha256(self._model.read_bytes()).hexdigest()[:8]
        return {"scorer": f"{NAME}-{version(NAME)}", "sha": sha, "label": "profane", "link": "sigmoid", "max": "none"}


@cache
def load_profanity_check() -> ProfanityCheckScorer:
    """The scorer, without importing the package yet.

    Raises:
        MissingExtraError: it is not installed.
    """
    spec = importlib.util.find_spec(_MODULE)
    folders = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    folder = next((place for place in folders if place.joinpath(*_MODEL).is_file()), None)
    try:
        version(NAME)
    except PackageNotFoundError:  # the abandoned profanity-check has the same module name and another model
        folder = None
    if folder is None:
        raise MissingExtraError(
            f"{NAME}: the package is not installed; run: pip install 'dialtune[toxicity]' "
            "(it unpickles its own model when it is imported)"
        )
    return ProfanityCheckScorer(folder)


def _score(texts: list[str]) -> list[float]:
    found = np.clip(np.asarray(_package().predict_prob(texts), dtype=np.float64), _SURE, 1 - _SURE)
    return [math.log(p) - math.log1p(-p) for p in found.tolist()]


@cache
def _package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # scikit-learn warns that the pickle is of another version; tests hold its scores
        return importlib.import_module(_MODULE)
