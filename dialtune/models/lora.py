"""LoRA adapters through peft: attach, count what trains, merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from dialtune.errors import ModelError
from dialtune.models.causal import CausalLM
from dialtune.models.packaged import quiet_transformers
from dialtune.models.seq2seq import Seq2SeqLM


def attach_lora(
    model: CausalLM | Seq2SeqLM, *, r: int, alpha: float, dropout: float, target_modules: str | Sequence[str], seed: int
) -> CausalLM | Seq2SeqLM:
    """The same model with a fresh adapter as its only trainable part; adapter weights are fp32 whatever the base is.

    Args:
        model: any family.
        r: rank, >= 1.
        alpha: scale; the update is multiplied by alpha / r (Hu et al. 2021, arXiv 2106.09685, section 4.1).
        dropout: on the adapter's input, in [0, 1).
        target_modules: `all-linear`, or the names of linear layers.
        seed: initialises A; B starts at zero, so the model is unchanged until the first update.
    Raises:
        ModelError: no layer goes by the names given.
    """
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, task_type=model.peft_task)  # type: ignore[arg-type]
    try:
        with quiet_transformers():
            wrapped: Any = get_peft_model(model.core, config)
    except ValueError as error:
        linear = sorted(
            {name.rpartition(".")[2] for name, part in model.core.named_modules() if isinstance(part, nn.Linear)}
        )
        raise ModelError(
            f"lora.target_modules: no layer of {model.name} matches {target_modules!r}; "
            f"its linear layers are {', '.join(linear)}; or use all-linear"
        ) from error
    return type(model)(wrapped, model.tokenizer, model.info.model_copy(update={"adapter": f"lora-r{r}"}))


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters, tied ones counted once."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
