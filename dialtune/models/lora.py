"""LoRA adapters through peft: attach, count what trains, merge."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dialtune.errors import ModelError
from dialtune.models.causal import CausalLM
from dialtune.models.packaged import quiet_transformers
from dialtune.models.seq2seq import Seq2SeqLM
from dialtune.runs import write_text_atomic


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
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer, whose matrix lies the other way

    torch.manual_seed(seed)
    layers = [(name, part) for name, part in model.core.named_modules() if isinstance(part, nn.Linear | Conv1D)]
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft multiplies by it, whole or not
        lora_dropout=dropout,
        target_modules=target_modules if isinstance(target_modules, str) else list(target_modules),
        task_type=model.peft_task,
        fan_in_fan_out=any(isinstance(part, Conv1D) for _, part in layers),
    )
    try:
        with quiet_transformers():
            wrapped: Any = get_peft_model(model.core, config)
    except ValueError as error:
        linear = sorted({name.rpartition(".")[2] for name, _ in layers})
        raise ModelError(
            f"lora.target_modules: no layer of {model.name} matches {target_modules!r}; "
            f"its linear layers are {', '.join(linear)}; or use all-linear"
        ) from error
    return type(model)(wrapped, model.tokenizer, model.info.model_copy(update={"adapter": f"lora-r{r}"}))


def settle_adapter_config(folder: Path) -> None:
    """Rewrite adapter_config.json with sorted names: peft writes sets, whose order differs from process to process."""
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(settings.get(key), list):
            settings[key].sort()
    write_text_atomic(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters, tied ones counted once."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)
