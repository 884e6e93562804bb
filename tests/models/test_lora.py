"""Adapters: what trains, what it starts from, and that merging changes no probability."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dialtune.errors import ModelError
from dialtune.models.loading import load_model, save_model
from dialtune.models.lora import attach_lora, count_parameters
from dialtune.types import Message, Prompt

SETTINGS: dict[str, Any] = {"r": 4, "alpha": 8.0, "dropout": 0.0, "target_modules": "all-linear"}
PROMPTS = [Prompt("0", (Message("user", "Hello Anna, why?"),), "plain"), Prompt("1", (Message("user", "No"),), "plain")]
TARGETS = ("They meet at the station.", "Yes.")


def _logprobs(model: Any) -> Tensor:
    batch = model.training_batch(PROMPTS, TARGETS)
    with torch.no_grad():
        return model.logprobs(batch.query, batch.response, batch.mask)  # type: ignore[no-any-return]


def _disturbed(model: Any) -> Any:
    """An adapter that has learned something: its B, zero at the start, is not."""
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.3)
    return model


def test_a_fresh_adapter_changes_nothing_and_alone_trains(model: Any) -> None:
    before, total = _logprobs(model), sum(p.numel() for p in model.module.parameters())
    adapted = attach_lora(model, **SETTINGS, seed=0)
    assert type(adapted) is type(model)
    assert adapted.info.adapter == "lora-r4"
    trainable = {name for name, p in adapted.module.named_parameters() if p.requires_grad}
    assert trainable
    assert all("lora_" in name for name in trainable)
    torch.testing.assert_close(_logprobs(adapted), before, atol=1e-6, rtol=0)
    learned, all_parameters = count_parameters(adapted.module)
    assert all_parameters == total + learned


def test_the_number_of_trained_parameters_by_hand() -> None:
    """Rank r on a layer from n to m adds r*(n+m) numbers."""
    plain = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2))
    plain[0].weight.requires_grad_(False)
    assert count_parameters(plain) == (12, 27)
    plain[1].weight = plain[0].weight = nn.Parameter(torch.zeros(5, 5))
    assert count_parameters(plain) == (27, 27)  # the shared matrix once, and a bias of 2


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_only_the_layers_asked_for_are_adapted(model: Any) -> None:
    """Two layers of hidden size 16 with 4 heads, 2 of them for keys: q is 16 -> 16, v is 16 -> 8."""
    adapted = attach_lora(model, **{**SETTINGS, "target_modules": ["q_proj", "v_proj"]}, seed=0)
    assert count_parameters(adapted.module)[0] == 2 * 4 * ((16 + 16) + (16 + 8))


@pytest.mark.parametrize("model", ["t5"], indirect=True)
def test_layers_that_do_not_exist_are_answered_with_those_that_do(model: Any) -> None:
    with pytest.raises(ModelError) as caught:
        attach_lora(model, **{**SETTINGS, "target_modules": ["q_proj"]}, seed=0)
    assert str(caught.value) == (
        "lora.target_modules: no layer of tiny-t5 matches ['q_proj']; "
        "its linear layers are k, lm_head, o, q, v, wi_0, wi_1, wo; or use all-linear"
    )


@pytest.mark.parametrize("model", ["llama"], indirect=True)
@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)])
def test_the_start_of_an_adapter_depends_on_its_seed_alone(model: Any, seeds: tuple[int, int]) -> None:
    torch.manual_seed(0)
    first = _adapter_weights(attach_lora(model, **SETTINGS, seed=seeds[0]))
    model.core = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.core
    torch.manual_seed(99)
    second = _adapter_weights(attach_lora(model, **SETTINGS, seed=seeds[1]))
    assert first.equal(second) == (seeds[0] == seeds[1])


def _adapter_weights(model: Any) -> Tensor:
    parts = [p.detach().flatten().clone() for name, p in model.module.named_parameters() if "lora_A" in name]
    model.module.unload()  # gives the base back as it was
    return torch.cat(parts)


@pytest.mark.parametrize("model", ["t5", "llama"], indirect=True)
def test_an_adapter_is_fp32_on_a_bf16_base(model: Any) -> None:
    model.module.bfloat16()
    adapted = attach_lora(model, **SETTINGS, seed=0)
    kinds = {("lora_" in name, p.dtype) for name, p in adapted.module.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}


@pytest.mark.parametrize("group", [1, 3])
def test_gradients_reach_every_adapter_weight_through_the_shared_prompt(model: Any, group: int) -> None:
    adapted = _disturbed(attach_lora(model, **SETTINGS, seed=0))
    queries = [adapted.query_ids(prompt.messages) for prompt in PROMPTS]
    batch = adapted.batch(queries, [adapted.response_ids(target) for target in TARGETS for _ in range(group)])
    adapted.logprobs(batch.query, batch.response, batch.mask).sum().backward()
    for name, parameter in adapted.module.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert all(float(p.grad.abs().sum()) > 0 for n, p in adapted.module.named_parameters() if "lora_B" in n)


@pytest.mark.parametrize("kind", ["t5", "bart", "llama", "gpt2"])
def test_a_merged_adapter_gives_the_logprobs_of_the_unmerged_one(
    kind: str, saved_model: Callable[[str], Path], tmp_path: Path
) -> None:
    base = load_model(str(saved_model(kind)), dtype="float32")
    plain = _logprobs(base)
    trained = _disturbed(attach_lora(base, **SETTINGS, seed=0))
    expected = _logprobs(trained)
    assert float((expected - plain).abs().max()) > 0.1  # the adapter says something
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_model(trained, folder)
    merged = load_model(str(folder), dtype="float32")
    apart = load_model(str(folder), dtype="float32", merge_adapter=False)
    torch.testing.assert_close(_logprobs(merged), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(_logprobs(apart), expected, atol=1e-5, rtol=0)
    assert not any("lora_" in name for name, _ in merged.module.named_parameters())
    assert {n.split(".")[-3] for n, p in apart.module.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}
    assert merged.info.adapter == str(folder)
    assert merged.info.name == base.info.name
    assert merged.info.weights_sha256 == apart.info.weights_sha256 != base.info.weights_sha256
    assert not (folder / "model.safetensors").exists()


def test_a_t5_adapter_is_not_merged_into_float16(saved_model: Callable[[str], Path], tmp_path: Path) -> None:
    adapted = attach_lora(load_model(str(saved_model("t5")), dtype="float32"), **SETTINGS, seed=0)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_model(adapted, folder)
    for merge in (True, False):
        with pytest.raises(ModelError, match="dtype float16 overflows in t5"):
            load_model(str(folder), dtype="float16", merge_adapter=merge)
    merged = load_model(str(folder), dtype="bfloat16")
    assert merged.info.dtype == "bfloat16"
    assert {p.dtype for p in merged.module.parameters()} == {torch.bfloat16}
