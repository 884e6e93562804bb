"""The network of a learned reward, the encoder and its head, and the losses of pairs and ratings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dialtune.config.reward_schema import RewardConfig
from dialtune.models.embedder import TextEncoder, open_encoder
from dialtune.models.reply_head import new_head, reply_logits, turn_index, turn_vectors, unit_means
from dialtune.seeds import seed_for
from dialtune.trainers.contrast import Exchange, Lessons
from dialtune.trainers.scorer import inject_update, trained_update
from dialtune.trainers.sft import OnEvent, ignore_events
from dialtune.trainers.update import compute_dtype

CPU = torch.device("cpu")
_TEXTS = 64  # encoded at a time
_ROWS = 2048  # exchanges that the head sees at a time
_BLOCK = 4096  # texts that are kept together


def bradley_terry(better: Tensor, worse: Tensor) -> Tensor:
    """(N,) -log sigmoid(r_better - r_worse), nats; Stiennon et al. 2020, arXiv 2009.01325, equation 1.

    >>> bradley_terry(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 100.0])).tolist()
    [0.6931471824645996, 100.0]
    """
    assert better.shape == worse.shape, (better.shape, worse.shape)
    return nn.functional.softplus(worse - better)


def rating_loss(raw: Tensor, targets: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    """(N,) cross-entropy of sigmoid(exp(slope) * raw + intercept) and targets in [0, 1], nats.

    A line between values and ratings is learned beside them, rising whatever `slope` is, so that pairs and ratings can
    share one value: what pairs say is its order, what ratings say is where it lies.
    """
    assert raw.shape == targets.shape, (raw.shape, targets.shape)
    logits = slope.exp() * raw + intercept
    return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


class RewardNetwork(nn.Module):
    """The encoder with its update, if it is trained, and the head. A frozen encoder's vectors are computed once."""

    def __init__(self, config: RewardConfig) -> None:
        super().__init__()
        self.config = config
        self.reader: TextEncoder = open_encoder(config.model, max_tokens=config.max_turn_length)
        self.reader.module.requires_grad_(False)
        torch.manual_seed(seed_for(config.seed, "reward"))
        width = self.reader.module.config.hidden_size
        self.head = nn.ParameterDict(new_head(width, config.window, config.head_size))
        self.line = nn.ParameterDict({"slope": torch.zeros(()), "intercept": torch.zeros(())})
        self.line.requires_grad_("ratings" in config.signals)
        self._known: dict[str, int] = {}
        self._table = torch.zeros(0, width, dtype=torch.float16)  # half the memory, and as exact as unit vectors need
        if config.lora is not None:
            inject_update(self.reader, r=config.lora.r, alpha=config.lora.alpha, dropout=config.lora.dropout)
            self.encoder = self.reader.module

    @property
    def frozen(self) -> bool:
        """Whether only the head learns."""
        return self.config.lora is None

    def remember(self, texts: Iterable[str], on_event: OnEvent = ignore_events, *, file: Path | None = None) -> None:
        """Encode texts for good, if the encoder is frozen.

        Args:
            texts: those that are known already are left out.
            on_event: told how far it is, as notes.
            file: where the vectors are kept, block by block, so that a run that was killed need not read again; never
                seen half written, and used only for the same texts, encoder and precision.
        """
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if not self.frozen or not new:
            return
        settings = (self.reader.sha256, self.reader.max_tokens, self.config.bf16)
        key = hashlib.sha256(json.dumps([*settings, *new]).encode()).hexdigest()
        vectors = self._table[:0] if file is None else _read_vectors(file, key, self._table[:0])
        while len(vectors) < len(new):
            with torch.no_grad(), compute_dtype(self.reader.module, self.config, CPU):
                block = self._encode(new[len(vectors) : len(vectors) + _BLOCK]).half()
            vectors = torch.cat([vectors, block])
            if file is not None:
                _write_vectors(file, key, vectors)
            if len(new) > _BLOCK:
                on_event("note", {"text": f"reading turns: {len(vectors):,} of {len(new):,}"})
        self._known |= {text: len(self._known) + row for row, text in enumerate(new)}
        self._table = torch.cat([self._table, vectors])

    def raw(self, exchanges: Sequence[Exchange]) -> Tensor:
        """(N,) head outputs; dropout as the mode says."""
        texts = list(dict.fromkeys(text for one in exchanges for text in (*one.context, one.reply)))
        if self.frozen:
            self.remember(texts)
            vectors, place = self._table, self._known  # of half precision, made whole below
        else:
            vectors, place = self._encode(texts), {text: row for row, text in enumerate(texts)}
        index = turn_index([one.context for one in exchanges], place, self.config.window)
        replies = torch.tensor([place[one.reply] for one in exchanges])
        dropout, head = self.config.head_dropout if self.training else 0.0, dict(self.head.items())
        parts = [
            reply_logits(turn_vectors(vectors, turns).float(), vectors[answers].float(), head, dropout=dropout)
            for turns, answers in zip(torch.split(index, _ROWS), torch.split(replies, _ROWS), strict=True)
        ]
        return torch.cat(parts)

    def losses(self, lessons: Lessons) -> tuple[dict[str, Tensor], float | None]:
        """(mean loss of each signal that has a lesson in nats, share of `contexts` pairs in the right order)."""
        exchanges = lessons.exchanges
        place = {exchange: row for row, exchange in enumerate(exchanges)}
        raw = self.raw(exchanges).float() if exchanges else torch.zeros(0)
        found, accuracy = dict[str, Tensor](), None
        for name, pairs in lessons.pairs.items():
            if pairs:
                better = raw[torch.tensor([place[pair.better] for pair in pairs])]
                worse = raw[torch.tensor([place[pair.worse] for pair in pairs])]
                found[name] = bradley_terry(better, worse).mean()
                accuracy = float((better > worse).float().mean()) if name == "contexts" else accuracy
        if lessons.rated:
            means = torch.stack([raw[[place[one] for one in dialogue.exchanges]].mean() for dialogue in lessons.rated])
            targets = torch.tensor([dialogue.target for dialogue in lessons.rated])
            found["ratings"] = rating_loss(means, targets, self.line["slope"], self.line["intercept"]).mean()
        return found, accuracy

    def _encode(self, texts: Sequence[str]) -> Tensor:
        """(M,D) unit vectors, in the order given."""
        rows = self.reader.ids(texts)
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        parts = []
        for start in range(0, len(order), _TEXTS):
            states, mask = self.reader.states([rows[row] for row in order[start : start + _TEXTS]])
            parts.append(unit_means(states, mask))
        return torch.cat(parts)[torch.tensor(order).argsort()]

    def tensors(self) -> dict[str, Tensor]:
        """A copy of what is trained, as it is saved: the update in fp16, the head in fp32."""
        found = {f"head.{name}": value.detach().clone() for name, value in self.head.items()}
        found |= {f"line.{name}": value.detach().clone() for name, value in self.line.items()}
        return found | ({} if self.frozen else trained_update(self.reader.module))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()` of what is trained, bit for bit."""
        with torch.no_grad():
            for name, parameter in self.trained():
                parameter.copy_(tensors[name])

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Name and value of everything that learns."""
        return [(name, parameter) for name, parameter in self.named_parameters() if parameter.requires_grad]


def _read_vectors(file: Path, key: str, nothing: Tensor) -> Tensor:
    """The vectors in a file that was written for this key, all or the first ones; `nothing` if there are none."""
    try:
        with safe_open(file, framework="pt") as found:
            if (found.metadata() or {}).get("key") != key:
                return nothing
            vectors: Tensor = found.get_tensor("vectors")
    except (OSError, SafetensorError):
        return nothing
    return vectors


def _write_vectors(file: Path, key: str, vectors: Tensor) -> None:
    temporary = file.with_name(f".tmp-{file.name}-{os.getpid()}")
    try:
        save_file({"vectors": vectors}, temporary, metadata={"key": key})
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
