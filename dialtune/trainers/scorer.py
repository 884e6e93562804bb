"""Fit a scorer on labelled texts: a low-rank update of a text encoder and a linear head; saved as safetensors and JSON.

The result is what `scorers/encoder.py` loads. Ratings work as labels: a target is any number in [0, 1].
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from dialtune.config.schema import DataConfig, RunConfig
from dialtune.errors import DataError
from dialtune.models.embedder import MAX_TOKENS, MINILM, TextEncoder, open_encoder
from dialtune.models.loading import bf16_is_faster
from dialtune.runs import fsync_folder, write_text_atomic
from dialtune.scorers.base import sigmoid
from dialtune.scorers.encoder import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    EncoderScorer,
    EncoderScorerConfig,
    build_scorer,
    head_output,
)
from dialtune.seeds import seed_for
from dialtune.trainers.batching import epoch_batches
from dialtune.trainers.update import Updater, compute_dtype

OnEvent = Callable[[str, Mapping[str, Any]], None]  # (`step` or `validation`), facts
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class FitSettings:
    """How a scorer is trained; the defaults are those of the packaged one unless its config.json says otherwise."""

    base: str = MINILM
    r: int = 16  # rank of each update, >= 1
    alpha: float = 32.0  # updates count alpha / r times
    n_epochs: float = 2.0  # > 0
    batch_size: int = 32
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_ratio: float = 0.06
    head_dropout: float = 0.1
    max_tokens: int = 64  # while training; cost grows with it
    max_tokens_scoring: int = MAX_TOKENS
    n_evaluations: int = 8  # validation passes, evenly over the run; the best one is the result
    seed: int = 0


@dataclass(frozen=True, slots=True)
class FittedScorer:
    """Trained tensors with everything config.json needs."""

    tensors: Mapping[str, Tensor]  # update in fp16, head in fp32
    config: EncoderScorerConfig

    def scorer(self) -> EncoderScorer:
        """It, on a fresh encoder."""
        encoder = open_encoder(self.config.base, max_tokens=self.config.max_tokens)
        return build_scorer(encoder, self.tensors, self.config)


@dataclass(frozen=True, slots=True)
class Labelled:
    """Texts with their targets in [0, 1] and weights of mean 1."""

    texts: list[str]
    targets: NDArray[np.float64]
    weights: NDArray[np.float64]


def ignore_events(_kind: str, _facts: Mapping[str, Any]) -> None:
    """The listener of a training that nobody watches."""


def fit(  # noqa: PLR0913  data, choice and settings are separate things
    texts: Sequence[str],
    targets: Sequence[float],
    validation: tuple[Sequence[str], Sequence[float]],
    *,
    weights: Sequence[float] | None = None,
    settings: FitSettings | None = None,
    name: str = "scorer",
    label: str = "toxic",
    notes: Mapping[str, Any] | None = None,
    on_event: OnEvent = ignore_events,
) -> FittedScorer:
    """Train, keep the state with the lowest validation loss, calibrate that one on the validation texts.

    Args:
        texts: at least one.
        targets: in [0, 1], one per text: a label, or the share of raters who gave it.
        validation: texts and targets that choose the state and calibrate it; both classes must occur.
        weights: >= 0, how much each text counts; only their ratios matter. None: all alike.
        settings: how to train.
        name: of the scorer.
        label: what a high score means.
        notes: JSON values kept in config.json under `training`.
        on_event: told about each update and each validation pass.
    Raises:
        DataError: no texts, lengths that differ, a target or weight out of range, validation of one class.
        NonFiniteError: training diverged.
    """
    settings = settings or FitSettings()
    train = labelled("training", texts, targets, weights)
    chosen = labelled("validation", *validation)
    if not chosen.targets.min() < 0.5 <= chosen.targets.max():
        raise DataError("validation: every target is on one side of 0.5; texts of both classes are needed to calibrate")
    torch.manual_seed(seed_for(settings.seed, "scorer"))
    encoder = open_encoder(settings.base, max_tokens=settings.max_tokens)
    network = _network(encoder, settings, float(np.average(train.targets, weights=train.weights)))
    tensors, history = _train(encoder, network, train, chosen, settings, on_event)
    config = EncoderScorerConfig(
        name=name,
        base=settings.base,
        base_sha256=encoder.sha256,
        label=label,
        max_tokens=settings.max_tokens_scoring,
        scale=settings.alpha / settings.r,
        slope=1.0,
        intercept=0.0,
        weights_sha256="",
        training={**(notes or {}), "settings": asdict(settings), "n_texts": len(train.texts), "validation": history},
    )
    raw = FittedScorer(tensors, config).scorer().raw(chosen.texts)
    slope, intercept = platt(raw, chosen.targets, chosen.weights)
    return FittedScorer(tensors, replace(config, slope=slope, intercept=intercept))


def save_scorer(fitted: FittedScorer, folder: Path) -> None:
    """Write the scorer as `save_folder` does."""
    save_folder(folder, fitted.tensors, {"format": FORMAT, **asdict(fitted.config)})


def save_folder(folder: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write model.safetensors, then config.json with its digest; a reader never takes one for the other's partner.

    Args:
        folder: made if it is not there.
        tensors: by name; equal ones give equal bytes.
        values: of config.json; `weights_sha256` is set here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tmp-{WEIGHTS}-{os.getpid()}"
    data = save({key: tensors[key].contiguous() for key in sorted(tensors)})
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / WEIGHTS)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(folder)
    whole = {**values, "weights_sha256": hashlib.sha256(data).hexdigest()}
    write_text_atomic(folder / CONFIG, json.dumps(whole, indent=2, sort_keys=True, allow_nan=False) + "\n")


def labelled(
    what: str, texts: Sequence[str], targets: Sequence[float], weights: Sequence[float] | None = None
) -> Labelled:
    """Checked arrays, weights scaled to a mean of 1; `what` starts the message of a DataError."""
    given = np.asarray(targets, dtype=np.float64)
    counts = np.ones(len(texts)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(texts) == len(given) == len(counts):
        raise DataError(f"{what}: {len(texts)} texts, {len(given)} targets, {len(counts)} weights; one each is needed")
    if not len(texts):
        raise DataError(f"{what}: no texts; at least one is needed")
    outside = np.flatnonzero(~((given >= 0) & (given <= 1)))
    if len(outside):
        raise DataError(f"{what}: target {given[outside[0]]} of text {outside[0]}; a target is a number from 0 to 1")
    bad = np.flatnonzero(~(np.isfinite(counts) & (counts >= 0)))
    if len(bad) or counts.sum() == 0:
        at = int(bad[0]) if len(bad) else 0
        raise DataError(f"{what}: weight {counts[at]} of text {at}; weights are finite, >= 0 and not all 0")
    return Labelled(list(texts), given, counts / counts.mean())


def platt(raw: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float]:
    """Slope a and intercept b that minimise the weighted cross-entropy of sigmoid(a * raw + b), by Newton's method.

    Targets are drawn in to (n1 + 1)/(n1 + 2) and 1/(n0 + 2), so that perfect separation stays finite: Platt 1999,
    "Probabilistic outputs for support vector machines", section 2.2.

    Args:
        raw: (N,) any unit.
        targets: (N,) in [0, 1], both sides of 0.5 present.
        weights: (N,) >= 0.
    """
    assert raw.shape == targets.shape == weights.shape
    n_one = float((weights * targets).sum())
    n_zero = float((weights * (1 - targets)).sum())
    low, high = 1 / (n_zero + 2), (n_one + 1) / (n_one + 2)
    wanted = low + (high - low) * targets
    design = np.stack([raw, np.ones_like(raw)], axis=1)
    found = np.array([0.0, math.log((n_one + 1) / (n_zero + 1))])
    ridge = 1e-10 * weights.sum() * np.eye(2)
    best = _cross_entropy(design @ found, wanted, weights)
    for _ in range(100):
        chance = sigmoid(design @ found)
        gradient = design.T @ (weights * (chance - wanted))
        curvature = (design * (weights * chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.solve(curvature + ridge, gradient)
        while _cross_entropy(design @ (found - step), wanted, weights) > best and np.abs(step).max() > 1e-12:
            step = step / 2
        found = found - step
        best = _cross_entropy(design @ found, wanted, weights)
        if np.abs(step).max() < 1e-10:
            break
    return float(found[0]), float(found[1])


def _cross_entropy(logits: NDArray[np.float64], targets: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Weighted mean of -t log s(x) - (1 - t) log s(-x), in nats."""
    return float(np.average(np.logaddexp(0.0, logits) - targets * logits, weights=weights))


def _network(encoder: TextEncoder, settings: FitSettings, base_rate: float) -> nn.ModuleDict:
    """The encoder with fresh low-rank updates on all its linear layers, and a head that starts at the base rate."""
    inject_update(encoder, r=settings.r, alpha=settings.alpha)
    head = nn.Linear(2 * encoder.module.config.hidden_size, 1)
    nn.init.zeros_(head.weight)
    rate = min(max(base_rate, 1e-3), 1 - 1e-3)
    nn.init.constant_(head.bias, math.log(rate / (1 - rate)))
    return nn.ModuleDict({"encoder": encoder.module, "head": head})


def inject_update(encoder: TextEncoder, *, r: int, alpha: float, dropout: float = 0.0) -> None:
    """Give every linear layer of the encoder a fresh low-rank update, which alone is trained from then on."""
    from peft import LoraConfig, inject_adapter_in_model

    encoder.module.requires_grad_(False)
    layers = [
        name
        for name, part in encoder.module.named_modules()
        if isinstance(part, nn.Linear) and not name.startswith("pooler")  # the pooler's output is not read
    ]
    lora = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=layers)  # type: ignore[arg-type]
    inject_adapter_in_model(lora, encoder.module)


def _train(
    encoder: TextEncoder,
    network: nn.ModuleDict,
    train: Labelled,
    validation: Labelled,
    settings: FitSettings,
    on_event: OnEvent,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The tensors with the lowest validation loss, and every validation pass."""
    rows = encoder.ids(train.texts)
    targets, weights = (torch.tensor(values, dtype=torch.float32) for values in (train.targets, train.weights))
    lengths = [len(row) for row in rows]
    per_epoch = math.ceil(len(rows) / settings.batch_size)
    total = max(1, math.ceil(settings.n_epochs * per_epoch))
    config = _recipe(settings)
    updater = Updater(network, config, total_steps=total, device=CPU)
    head: Any = network["head"]

    def loss_sum(chosen: Sequence[int]) -> Tensor:
        states, mask = encoder.states([rows[row] for row in chosen])
        states = nn.functional.dropout(states, settings.head_dropout)
        raw = head_output(states, mask, {"weight": head.weight, "bias": head.bias})
        picked = torch.tensor(list(chosen))
        losses = nn.functional.binary_cross_entropy_with_logits(raw.float(), targets[picked], reduction="none")
        return (losses * weights[picked]).sum()

    due = {math.ceil(total * k / settings.n_evaluations) for k in range(1, settings.n_evaluations + 1)}
    best: dict[str, Tensor] = {}
    history: list[dict[str, float]] = []
    batches: list[list[int]] = []
    for step in range(total):
        if not batches:
            epoch = step // per_epoch
            batches = epoch_batches(lengths, settings.batch_size, seed=settings.seed, epoch=epoch, group_by_length=True)
        chosen = batches.pop(0)
        network.train()
        result = updater.step([chosen], loss_sum, len(chosen), number=step)
        on_event("step", {"step": step + 1, "total_steps": total, "loss": result.loss})
        if step + 1 in due:
            network.eval()
            with compute_dtype(network, config, CPU):
                loss = _validation_loss(encoder, head, validation)
            if not history or loss < min(entry["loss"] for entry in history):
                best = _trained(network)
            history.append({"step": step + 1, "loss": loss})
            on_event("validation", history[-1])
    return best, history


def _recipe(settings: FitSettings) -> RunConfig:
    """The part of a recipe that the optimizer update reads."""
    return RunConfig(
        model=settings.base,
        data=DataConfig(train="texts"),
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_ratio=settings.warmup_ratio,
        weight_decay=settings.weight_decay,
        seed=settings.seed,
        bf16=bf16_is_faster(CPU),
    )


def _validation_loss(encoder: TextEncoder, head: Any, data: Labelled) -> float:
    """Weighted mean cross-entropy in nats."""
    raw = np.zeros(len(data.texts))
    for chosen, states, mask in encoder.batches(encoder.ids(data.texts)):
        output = head_output(states, mask, {"weight": head.weight, "bias": head.bias})
        raw[chosen] = output.detach().double().numpy()
    return _cross_entropy(raw, data.targets, data.weights)


def _trained(network: nn.ModuleDict) -> dict[str, Tensor]:
    """A copy of what training changes: updates rounded to fp16, the head in fp32."""
    found = {f"head.{part}": value.detach().clone() for part, value in network["head"].named_parameters()}
    return found | trained_update(network["encoder"])


def trained_update(module: nn.Module) -> dict[str, Tensor]:
    """The low-rank updates of `inject_update`, `lora.<module>.A` and `.B`, rounded to fp16."""
    found = {}
    for name, part in module.named_modules():
        if hasattr(part, "lora_A"):
            found[f"lora.{name}.A"] = part.lora_A["default"].weight.detach().half()
            found[f"lora.{name}.B"] = part.lora_B["default"].weight.detach().half()
    return found
