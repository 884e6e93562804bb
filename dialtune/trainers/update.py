"""One optimizer update: accumulate, guard against what is not finite, clip, step, halve on out-of-memory.

The only place that calls `optimizer.step`. Nothing here draws from a global generator: dropout is seeded per update
and micro-batch, so a replayed update is the same update.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dialtune.config.schema import TrainingConfig
from dialtune.errors import NonFiniteError, TrainingError
from dialtune.seeds import seed_for
from dialtune.trainers.memory import keep_freed_memory, settle

MAX_SKIPS_IN_A_ROW = 5
MAX_SKIP_SHARE = 0.05  # of the last SKIP_WINDOW updates, once that many were made
SKIP_WINDOW = 200

LossSum = Callable[[Sequence[int]], Tensor]  # row numbers of a micro-batch -> summed loss, a scalar with gradient


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one update did; `skipped` names the cause if the weights were left as they were."""

    loss: float | None  # mean per target token, nats; None if not finite
    grad_norm: float | None  # before clipping
    learning_rate: float | None  # None if not finite
    skipped: str | None


class Updater:
    """AdamW, its schedule and its guards over the trainable parameters of one module."""

    def __init__(self, module: nn.Module, config: TrainingConfig, *, total_steps: int, device: torch.device) -> None:
        if device.type == "cpu":
            keep_freed_memory()
        self.module, self.config, self.total_steps = module, config, total_steps
        self.accelerator = Accelerator(cpu=device.type == "cpu")
        optimizer = torch.optim.AdamW(
            decay_groups(module, config.weight_decay),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            eps=config.adam_epsilon,
            fused=True,
        )
        self.optimizer = optimizer
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.fp16)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.device = device
        self.updates = 0  # made, skipped ones not counted: what the schedule goes by
        self.recent: deque[bool] = deque(maxlen=SKIP_WINDOW)  # was it skipped?
        self.n_skipped = 0
        self._resident = 0  # bytes, for `settle`

    def step(
        self, micro_batches: Sequence[Sequence[int]], loss_sum: LossSum, n_tokens: float, *, number: int
    ) -> UpdateResult:
        """Make update `number` (counted from 0, skipped ones included) from these micro-batches of rows.

        Args:
            micro_batches: rows of each forward pass; their gradients add up.
            loss_sum: the summed loss of some rows.
            n_tokens: what the sum over all rows is divided by, so that accumulation does not change the gradient.
            number: seeds dropout.
        Raises:
            NonFiniteError: too many skips; names the first bad tensor.
            TrainingError: one row alone does not fit in memory.
        """
        rate = self.config.learning_rate * schedule(self.config, self.updates, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = self._accumulate(micro_batches, loss_sum, n_tokens, number)
        cause = None if math.isfinite(total) else "loss"
        norm = math.nan
        if cause is None:
            self.scaler.unscale_(self.optimizer)
            norm = self._norm()
            cause = "gradient" if not math.isfinite(norm) else "learning rate" if not math.isfinite(rate) else None
        if cause is None:
            if self.config.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.max_grad_norm, torch.tensor(norm))
            self.scaler.step(self.optimizer)
            self.updates += 1
        culprit = None if cause is None else self._first_bad(cause)
        if self.config.fp16 and cause != "loss":
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cpu":
            self._resident = settle(self._resident)
        self._count(culprit, excused=self.config.fp16 and cause == "gradient" and self.scaler.get_scale() >= 1)
        return UpdateResult(_finite(total), _finite(norm), _finite(rate), culprit)

    @property
    def trained_bytes(self) -> int:
        """Bytes of the trained parameters: what a checkpoint's weights take at least."""
        return sum(parameter.nbytes for parameter in self.parameters)

    def state(self) -> dict[str, Any]:
        """Everything the next update needs, for `checkpoints.flatten_state`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
            "recent": [int(flag) for flag in self.recent],
            "n_skipped": self.n_skipped,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.updates, self.n_skipped = state["updates"], state["n_skipped"]
        self.recent = deque((bool(flag) for flag in state["recent"]), maxlen=SKIP_WINDOW)

    def _accumulate(
        self, micro_batches: Sequence[Sequence[int]], loss_sum: LossSum, n_tokens: float, number: int
    ) -> float:
        """Backward through every micro-batch; the mean loss. A lack of memory halves them all and starts over."""
        parts = [list(rows) for rows in micro_batches]
        while True:
            try:
                return self._backward(parts, loss_sum, n_tokens, number)
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                self.optimizer.zero_grad(set_to_none=True)
                if all(len(rows) < 2 for rows in parts):
                    raise TrainingError(
                        f"update {number}: out of memory with a single row per forward pass; "
                        "lower max_prompt_length, set gradient_checkpointing: true, or train an adapter (lora: {r: 16})"
                    ) from error
                parts = [half for rows in parts for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]) if half]
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

    def _backward(self, parts: Sequence[Sequence[int]], loss_sum: LossSum, n_tokens: float, number: int) -> float:
        total = torch.zeros((), device=self.device)
        for micro, rows in enumerate(parts):
            torch.manual_seed(seed_for(self.config.seed, "dropout", number, micro))
            with compute_dtype(self.module, self.config, self.device):
                loss = loss_sum(rows) / n_tokens
            total += loss.detach()
            if self.device.type == "cpu" and not math.isfinite(loss.item()):
                return math.nan  # on a GPU this would wait for every forward; there the gradient's norm tells
            self.accelerator.backward(self.scaler.scale(loss))
        return float(total)

    def _norm(self) -> float:
        """L2 norm of all gradients; measured before anything is scaled, so that a bad one can still be found."""
        return float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))

    def _first_bad(self, cause: str) -> str:
        """The cause, with the first tensor that is not finite; looked for only after a hit."""
        for name, parameter in self.module.named_parameters():
            for what, tensor in (("weight", parameter), ("gradient", parameter.grad)):
                if tensor is not None and not bool(torch.isfinite(tensor).all()):
                    return f"{cause} is not finite: {what} of {name}"
        return f"{cause} is not finite"

    def _count(self, culprit: str | None, *, excused: bool) -> None:
        """Note a skip; too many stop the run. Excused are those of fp16's scaler, by design, until its scale fits."""
        self.recent.append(culprit is not None and not excused)
        self.n_skipped += culprit is not None
        if not self.recent[-1]:
            return
        in_a_row = list(self.recent)[-MAX_SKIPS_IN_A_ROW:]
        share = sum(self.recent) / SKIP_WINDOW
        if (len(in_a_row) == MAX_SKIPS_IN_A_ROW and all(in_a_row)) or share > MAX_SKIP_SHARE:
            raise NonFiniteError(
                f"training stopped: {culprit}; {sum(self.recent)} of the last {len(self.recent)} updates were skipped "
                f"(limits: {MAX_SKIPS_IN_A_ROW} in a row, {MAX_SKIP_SHARE:.0%} of {SKIP_WINDOW}). "
                "The weights are those before the first skip. "
                "Lower learning_rate, or set bf16: false to rule precision out"
            )


@contextmanager
def compute_dtype(module: nn.Module, config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Autocast to the recipe's dtype: bf16 or fp16 products, fp32 master weights; nothing in fp32.

    Adapters otherwise copy their input to fp32 first, which autocast then casts back: a fifth of a step.
    """
    dtype = torch.bfloat16 if config.bf16 is True else torch.float16 if config.fp16 else None
    adapters = [part for part in module.modules() if getattr(part, "cast_input_dtype_enabled", False) and dtype]
    for part in adapters:
        part.cast_input_dtype_enabled = False  # type: ignore[assignment]
    try:
        with torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            yield
    finally:
        for part in adapters:
            part.cast_input_dtype_enabled = True  # type: ignore[assignment]


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW groups: matrices decay, norms and biases do not (Loshchilov & Hutter, arXiv 1711.05101, as applied by
    transformers).
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not trained:
        raise TrainingError("nothing to train: every parameter is frozen")
    matrices = [p for name, p in trained if p.dim() > 1 and "bias" not in name]  # T5's position bias has two dims
    others = [p for name, p in trained if p.dim() <= 1 or "bias" in name]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def schedule(config: TrainingConfig, update: int, total: int) -> float:
    """The learning rate's factor for update number `update` (from 0) of `total`, as transformers' schedules give it.

    A linear rise over the warm-up, then linear or cosine decay to 0 at `total`, or constant.
    """
    warmup = config.warmup_steps or math.ceil(config.warmup_ratio * total)
    kind = config.lr_scheduler_type
    if update < warmup and kind != "constant":
        return update / max(1, warmup)
    if kind.startswith("constant"):
        return 1.0
    progress = (update - warmup) / max(1, total - warmup)
    if kind == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    return max(0.0, 1 - progress)


def _is_out_of_memory(error: BaseException) -> bool:
    """torch has a class for a full GPU only; a CPU's allocator raises a plain RuntimeError."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
