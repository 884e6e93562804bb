"""The frozen start policy that a trained policy is held to: with its own adapter, never the raw base model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dialtune.models.base import LanguageModel, Query
from dialtune.models.loading import OpenModel, load_model, resolve_folder

FROZEN = "reference"  # the name of the frozen copy among a module's adapters


class Reference:
    """Scores responses as the start policy would; nothing in it is ever trained.

    Three cases: all weights are trained (a second, frozen model); a fresh adapter on a start policy without one (the
    same model with its adapter switched off); the start policy's own adapter is trained on (a frozen copy of it).
    """

    def __init__(self, model: OpenModel, kind: Literal["model", "base", "adapter"]) -> None:
        self.model, self.kind = model, kind

    @torch.no_grad()
    def logprobs(self, query: Query, response: Tensor, mask: Tensor, *, temperature: float) -> Tensor:
        """(B,R) fp32 like `LanguageModel.logprobs` over the ids that can be sampled."""
        with self.active():
            return self.model.logprobs(query, response, mask, temperature=temperature, sampleable=True)

    @contextmanager
    def active(self) -> Iterator[LanguageModel]:
        """The start policy itself, for the time of the block."""
        module: Any = self.model.module
        if self.kind == "model":
            yield self.model
        elif self.kind == "base":
            with module.disable_adapter():
                yield self.model
        else:
            trained = [(p, p.requires_grad) for p in module.parameters()]
            module.set_adapter(FROZEN, inference_mode=True)
            try:
                yield self.model
            finally:
                module.set_adapter("default")
                for parameter, flag in trained:
                    parameter.requires_grad_(flag)


def open_reference(model: OpenModel, start: str, *, dtype: Literal["float32", "bfloat16"], **loading: Any) -> Reference:
    """The frozen start policy of `model`, which was opened from `start` (or from a checkpoint of a run that was).

    Args:
        model: the policy.
        start: the recipe's model: a hub name, a packaged name or a folder.
        dtype: of a second copy's weights, where one is needed.
        loading: what else `load_model` needs to open `start`.
    """
    if not hasattr(model.module, "peft_config"):
        frozen = load_model(start, dtype=dtype, **loading)
        disable_dropout(frozen.module)
        frozen.module.requires_grad_(False)
        return Reference(frozen, "model")
    revision = loading.get("revision")
    if not is_adapter(start, revision):
        return Reference(model, "base")
    module: Any = model.module
    module.load_adapter(str(resolve_folder(start, revision)), FROZEN, is_trainable=False)
    module.set_adapter("default")
    return Reference(model, "adapter")


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether a model name stands for a LoRA adapter."""
    return (resolve_folder(name, revision) / "adapter_config.json").is_file()


def disable_dropout(module: nn.Module) -> None:
    """Dropout off for good, in modules and in the numbers that fused attention reads.

    Policy, old policy and start policy must be one function; `eval()` alone would also undo gradient checkpointing.
    """
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for name, value in vars(part).items():
            if isinstance(value, float) and "drop" in name:
                setattr(part, name, 0.0)
