"""Any Hugging Face sequence classifier as a scorer, its toxic label found by name and never by position.

Importing this module loads no torch; opening a classifier does.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dialtune.errors import ConfigError, ModelError, ModelNotFoundError
from dialtune.models.packaged import quiet_transformers, sha256_of
from dialtune.models.safety import check_model_folder
from dialtune.scorers.base import CACHE_SIZE, TextCache

if TYPE_CHECKING:
    from torch import Tensor

# What published classifiers call text that nobody should get, in lower case with _ between words. Names that only
# contain one of these (`not_hate`, `non_toxic`) are other names.
TOXIC_LABELS = frozenset(
    {
        "abuse", "abusive", "harassment", "harmful", "hate", "hate_speech", "hateful", "hatespeech", "identity_attack",
        "identity_hate", "insult", "insulting", "obscene", "offensive", "offensive_language", "profane", "profanity",
        "severe_toxic", "severe_toxicity", "sexual_explicit", "threat", "toxic", "toxicity", "very_toxic",
    }
)  # fmt: skip
MAX_TOKENS = 512
BLANK_LOGIT = -10.0  # of a text of white space: nothing is said, so nothing offends
_UNNAMED = re.compile(r"label_?\d+|\d+")

Link = Literal["sigmoid", "softmax"]


@dataclass(frozen=True, slots=True)
class ToxicLabels:
    """Which outputs of a classifier mean toxic, and how outputs become a probability."""

    names: tuple[str, ...]  # as in the model's label map
    places: tuple[int, ...]
    link: Link


@dataclass(slots=True)
class HuggingFaceScorer:
    """Log-odds log p - log(1 - p) of the toxic labels, from raw outputs z in fp32.

    softmax: logsumexp(z of toxic labels) - logsumexp(z of the others). sigmoid: the highest z of the toxic labels, so
    the worst one counts.
    """

    name: str
    module: Any
    tokenizer: Any
    labels: ToxicLabels
    sha: str
    max_tokens: int
    n_truncated: int = 0  # distinct texts so far that were longer than `max_tokens` and lost their end
    _cache: TextCache[float] = field(default_factory=lambda: TextCache[float](CACHE_SIZE))

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N,) natural log-odds that each text is toxic; BLANK_LOGIT for a text of white space."""
        return np.array(self._cache.fill(texts, self._score), dtype=np.float64)

    def settings(self) -> dict[str, str]:
        """For signatures; `sha` is of the weights."""
        label = "+".join(self.labels.names)
        return {
            "scorer": self.name,
            "sha": self.sha,
            "label": label,
            "link": self.labels.link,
            "max": str(self.max_tokens),
        }

    def _score(self, texts: Sequence[str]) -> list[float]:
        visible = [text for text in texts if text.strip()]
        found = dict(zip(visible, self._outputs(visible), strict=True))
        return [found.get(text, BLANK_LOGIT) for text in texts]

    def _outputs(self, texts: Sequence[str]) -> list[float]:
        import torch

        lengths = [len(row) for row in self.tokenizer(list(texts), verbose=False)["input_ids"]] if texts else []
        self.n_truncated += sum(length > self.max_tokens for length in lengths)
        found = []
        # One by one: a product's last bits depend on its shape, and a resumed run, whose cache is empty, meets other
        # texts beside a text than the unbroken one did.
        for text in texts:
            batch = self.tokenizer(text, truncation=True, max_length=self.max_tokens, return_tensors="pt")
            with torch.inference_mode():
                outputs = self.module(**batch.to(self.module.device)).logits.double().cpu()
            found.append(float(toxic_log_odds(outputs, self.labels)))
            if not math.isfinite(found[-1]):
                raise ModelError(f"{self.name}: gives {found[-1]} for a text; its weights are damaged")
        return found


def toxic_log_odds(outputs: Tensor, labels: ToxicLabels) -> Tensor:
    """log p - log(1 - p) of toxic without ever forming p, which would round to 1 at 37.

    Args:
        outputs: (N,L) raw classifier outputs, float.
        labels: with softmax, at least one of the L labels is not toxic.
    Returns:
        (N,) of the same dtype.
    """
    import torch

    toxic = outputs[:, list(labels.places)]
    if labels.link == "sigmoid":
        return toxic.amax(dim=1)
    others = outputs[:, [place for place in range(outputs.shape[1]) if place not in labels.places]]
    assert others.shape[1] >= 1, outputs.shape
    return torch.logsumexp(toxic, dim=1) - torch.logsumexp(others, dim=1)


def resolve_labels(
    name: str, id2label: Mapping[int, str], *, problem_type: str | None = None, label: str | None = None
) -> ToxicLabels:
    """The toxic labels of a label map, by name.

    Outputs are independent (sigmoid) if config.json says multi_label_classification, if there is only one, or if every
    label is a toxic one: a softmax over these could call nothing clean.

    Args:
        name: of the model, for messages.
        id2label: config.json's.
        problem_type: config.json's, null in most.
        label: what the user calls toxic, in any case; None: every label whose name is in TOXIC_LABELS.
    Raises:
        ConfigError: no label of that name, or none whose name says toxic; lists the labels.
        ModelError: a regression model.

    >>> resolve_labels("m", {0: "nothate", 1: "hate"})
    ToxicLabels(names=('hate',), places=(1,), link='softmax')
    """
    if problem_type == "regression":
        raise ModelError(f"{name}: a regression model (problem_type in config.json) gives no probability of a label")
    offers = ", ".join(id2label[place] for place in sorted(id2label))
    wanted = {_normal(label)} if label is not None else TOXIC_LABELS
    places = tuple(place for place in sorted(id2label) if _normal(id2label[place]) in wanted)
    if not places and label is not None:
        raise ConfigError(f"{name}: no label {label!r}; this classifier offers: {offers}")
    if not places:
        unnamed = all(_UNNAMED.fullmatch(_normal(known)) for known in id2label.values())
        why = "its labels have no names" if unnamed else "no label's name says toxic"
        raise ConfigError(
            f"{name}: {why}; it offers: {offers}\n"
            f"  Read its model card, then name the toxic label behind a #: {name}#LABEL"
        )
    names = tuple(id2label[place] for place in places)
    independent = problem_type == "multi_label_classification" or len(id2label) in (1, len(places))
    return ToxicLabels(names, places, "sigmoid" if independent else "softmax")


def _normal(label: str) -> str:
    return re.sub(r"[\s/-]+", "_", label.strip().lower())


@cache
def load_classifier(name: str, *, label: str | None = None) -> HuggingFaceScorer:
    """The scorer of a local folder or hub name, on the CPU in fp32; opened once per process.

    Raises:
        ModelNotFoundError: no such folder or hub name.
        UnsafeModelError: the folder holds what could run code.
        ModelError: not a sequence classifier with its head and tokenizer.
        ConfigError: the toxic label cannot be told by name.
    """
    folder = _folder(name)
    check_model_folder(folder)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder)
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: config.json names no model that transformers knows: {reason}") from error
    labels = resolve_labels(name, config.id2label, problem_type=config.problem_type, label=label)
    module, tokenizer = _open(name, folder)
    digests = [sha256_of(path) for path in sorted(folder.glob("model*.safetensors"))]
    sha = digests[0][:8] if len(digests) == 1 else f"{len(digests)}x{digests[0][:6]}"
    return HuggingFaceScorer(name, module, tokenizer, labels, sha, _longest(module, tokenizer))


def _folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        raise ModelError(f"{name}: the folder holds no config.json; it is not a saved classifier")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ModelNotFoundError(f"{name}: no such folder; a classifier is a folder or a hub name (org/name)")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelNotFoundError(
            f"{name}: neither a folder nor in the hub cache, and the hub gave nothing ({type(error).__name__}); "
            "give a folder with config.json, model.safetensors and a tokenizer, or a packaged scorer"
        ) from error


def _open(name: str, folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            opened: Any = AutoModelForSequenceClassification.from_pretrained(
                folder, dtype="float32", use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: cannot be opened as a sequence classifier: {reason}") from error
    module, loaded = opened
    wrong = sorted(loaded["missing_keys"]) + sorted(str(key[0]) for key in loaded["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"{name}: no trained classifier: {len(wrong)} tensors that config.json asks for are missing or have "
            f"another shape, and would be random: {', '.join(wrong[:3])}"
        )
    return module.eval(), tokenizer


def _longest(module: Any, tokenizer: Any) -> int:
    """Tokens the classifier can read, at most 512; RoBERTa and its kin number positions from behind the pad id."""
    positions = getattr(module.config, "max_position_embeddings", None) or MAX_TOKENS
    tables = [part for path, part in module.named_modules() if path.endswith("position_embeddings")]
    behind = [part.padding_idx + 1 for part in tables if getattr(part, "padding_idx", None) is not None]
    return int(min(MAX_TOKENS, tokenizer.model_max_length, positions - max(behind, default=0)))
