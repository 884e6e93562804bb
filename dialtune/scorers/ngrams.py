"""A linear juror: logistic regression on hashed character and word n-grams, trained on what the reward never saw.

Another kind of judge than the packaged encoder (no meaning, only spellings), on other data: Civil Comments with the
votes of their raters, users' turns to chatbots, and clean sentences. benchmarks/train_ngrams.py trains it; its card is
assets/ngrams/CARD.md.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dialtune.errors import ModelError, ModelNotFoundError
from dialtune.models.safety import check_model_folder
from dialtune.scorers.base import CACHE_SIZE, TextCache

NGRAMS = Path(__file__).resolve().parents[1] / "assets" / "ngrams"
FORMAT = "dialtune.ngrams/1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
BUCKETS = 2**18
CHARACTERS = (2, 3, 4, 5)  # lengths of character n-grams, within one word and its edges
BLANK_LOGIT = -10.0  # of a text without a word: nothing is said, so nothing offends

_SPEAKER = re.compile(r"#?\bperson ?\d+\b#?")  # a tag says nothing about the text; it would be learnt as clean
_DRAWN = re.compile(r"([^\W\d_])\1{2,}")
_NUMBER = re.compile(r"\d+")
_WORD = re.compile(r"[^\W_](?:[\w*@$!'’-]*[\w*$])?")


@dataclass(frozen=True, slots=True)
class NgramModel:
    """Calibrated weights: logit = sum of the text's weights / sqrt(number of its features) + intercept."""

    name: str
    weights: NDArray[np.float32]  # (BUCKETS,)
    intercept: float
    sha: str  # 8 hex digits over both files


class NgramScorer:
    """Texts to calibrated log-odds; deterministic, about 0.3 ms a text."""

    name = "ngrams"

    def __init__(self, model: NgramModel) -> None:
        self.model = model
        self._cache = TextCache[float](CACHE_SIZE)

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) natural log-odds that each text is toxic; BLANK_LOGIT for a text without a word."""
        return np.array(self._cache.fill(texts, lambda unknown: [self._score(text) for text in unknown]), np.float64)

    def settings(self) -> dict[str, str]:
        """For signatures; `sha` is of weights and config."""
        return {"scorer": self.model.name, "sha": self.model.sha, "label": "toxic", "link": "sigmoid", "max": "none"}

    def _score(self, text: str) -> float:
        found = buckets(text)
        if not len(found):
            return BLANK_LOGIT
        total = float(self.model.weights[found].sum(dtype=np.float64))
        return total / math.sqrt(len(found)) + self.model.intercept


def buckets(text: str) -> NDArray[np.int64]:
    """The sorted distinct buckets of a text's features: words, pairs of neighbours, character n-grams of each word.

    Upper case, compatibility forms, speaker tags and letters drawn out beyond two make no difference; every number is
    the same number.

    >>> len(buckets("")), bool((buckets("#Person1# is LAAATE") == buckets("is laate")).all())
    (0, True)
    """
    tokens = words(text)
    if not tokens:
        return np.zeros(0, dtype=np.int64)
    pairs = [bucket(f"b {one} {other}") for one, other in pairwise(tokens)]
    return np.unique(np.concatenate([*map(_word_buckets, tokens), np.array(pairs, dtype=np.int64)]))


def words(text: str) -> list[str]:
    """Lower-case words; signs inside a word stay, since they may stand for letters.

    >>> words("#Person1# paid £20, you f**king foool!")
    ['paid', '0', 'you', 'f**king', 'fool']
    """
    plain = _SPEAKER.sub(" ", unicodedata.normalize("NFKC", text).lower())
    return [_NUMBER.sub("0", _DRAWN.sub(r"\1\1", word)) for word in _WORD.findall(plain)]


def bucket(feature: str) -> int:
    """Where a feature's weight is: the low 18 bits of its CRC-32, the same on every machine."""
    return zlib.crc32(feature.encode("utf-8", "surrogatepass")) % BUCKETS


@lru_cache(maxsize=32_768)
def _word_buckets(word: str) -> NDArray[np.int64]:
    edged = f"<{word}>"
    grams = {edged[start : start + n] for n in CHARACTERS for start in range(len(edged) - n + 1)}
    return np.array([bucket(f"w {word}"), *(bucket(f"c {gram}") for gram in sorted(grams))], dtype=np.int64)


@cache
def load_ngrams(folder: Path = NGRAMS) -> NgramScorer:
    """The scorer in a folder that benchmarks/train_ngrams.py wrote; the packaged one by default.

    Raises:
        UnsafeModelError: a file that could run code.
        ModelNotFoundError: no such folder, or a file is missing.
        ModelError: config.json and weights do not belong together.
    """
    check_model_folder(folder)
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ModelNotFoundError(f"{folder}: holds no {file}; an n-gram scorer is {CONFIG} and {WEIGHTS}")
    from safetensors.numpy import load

    raw, described = (folder / WEIGHTS).read_bytes(), (folder / CONFIG).read_bytes()
    config, weights = json.loads(described), load(raw)["weights"]
    found = (config.get("format"), weights.shape, hashlib.sha256(raw).hexdigest())
    if found != (FORMAT, (BUCKETS,), config.get("weights_sha256")):
        raise ModelError(
            f"{folder}: {CONFIG} and {WEIGHTS} do not belong together, or are of another version than {FORMAT}; "
            "restore both, or train again: python benchmarks/train_ngrams.py"
        )
    sha = hashlib.sha256(raw + described).hexdigest()[:8]
    return NgramScorer(NgramModel(config["name"], weights.astype(np.float32), float(config["intercept"]), sha))
