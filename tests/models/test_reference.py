"""The frozen start policy: the same function as the policy before training, and after it still the start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rl_tiny import KINDS, examples, start_adapter, start_policy
from safetensors.torch import load_file
from torch import Tensor, nn

from dialtune.models.base import TrainingBatch
from dialtune.models.loading import load_model, save_model
from dialtune.models.lora import attach_lora
from dialtune.models.packaged import quiet_transformers
from dialtune.models.reference import FROZEN, Reference, disable_dropout, is_adapter, open_reference
from dialtune.prompts import build_prompts
from dialtune.tasks import find_task

CASES = ("model", "base", "adapter")  # all weights; a fresh adapter; the start policy's own adapter, trained on


pytestmark = pytest.mark.usefixtures("one_thread")


def opened(kind: str, case: str) -> tuple[Any, Reference]:
    """A policy and its reference, as a run opens them."""
    start = str(start_adapter(kind) if case == "adapter" else start_policy(kind))
    policy = load_model(start, dtype="float32", merge_adapter=False)
    if case == "base":
        policy = attach_lora(policy, r=2, alpha=8, dropout=0.0, target_modules="all-linear", seed=0)
    return policy, open_reference(policy, start, dtype="float32")


def some_batch(model: Any) -> TrainingBatch:
    rows = examples()[:3]
    targets = ["tea now", "They meet at the station, she said.", "no"]
    return model.training_batch(build_prompts(rows, find_task("summarize")), targets)  # type: ignore[no-any-return]


def policy_logprobs(model: Any, batch: TrainingBatch, temperature: float = 0.8) -> Tensor:
    with torch.no_grad():
        return model.logprobs(  # type: ignore[no-any-return]
            batch.query, batch.response, batch.mask, temperature=temperature, sampleable=True
        )


def reference_logprobs(reference: Reference, batch: TrainingBatch) -> Tensor:
    return reference.logprobs(batch.query, batch.response, batch.mask, temperature=0.8)


def move(module: nn.Module, size: float = 0.3) -> None:
    """What training does, and more of it: noise on every weight that is trained."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn_like(parameter)


def trainable(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_start_policy_before_training_and_after_it(kind: str, case: str) -> None:
    policy, reference = opened(kind, case)
    assert reference.kind == case
    batch = some_batch(policy)
    start = reference_logprobs(reference, batch)
    torch.testing.assert_close(start, policy_logprobs(policy, batch), atol=1e-6, rtol=0)
    move(policy.module)
    assert reference_logprobs(reference, batch).equal(start)
    assert float((policy_logprobs(policy, batch) - start).abs().max()) > 0.1
    assert not start.requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_start_policy_that_is_an_adapter_is_not_its_raw_base(kind: str) -> None:
    """The fault of public code: 30 nats at step 1, since the reference is the model without its adapter."""
    policy, reference = opened(kind, "adapter")
    batch = some_batch(policy)
    start = reference_logprobs(reference, batch)
    base = policy_logprobs(load_model(str(start_policy(kind)), dtype="float32"), batch)
    merged = policy_logprobs(load_model(str(start_adapter(kind)), dtype="float32"), batch)
    assert float((start - base).abs().max()) > 0.5
    torch.testing.assert_close(start, merged, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_block_leaves_what_is_trained_as_it_was(case: str) -> None:
    policy, reference = opened("llama", case)
    before = trainable(policy.module)
    assert before
    for parameter in policy.module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
            break
    with reference.active() as start:
        assert not any(FROZEN in name.split(".") for name in trainable(start.module))
    assert trainable(policy.module) == before

    def fail() -> None:
        with reference.active():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert trainable(policy.module) == before
    assert sum(p.grad is not None for p in policy.module.parameters()) == 1
    batch = some_batch(policy)
    logprobs = policy.logprobs(batch.query, batch.response, batch.mask)
    logprobs.sum().backward()
    assert {name for name, p in policy.module.named_parameters() if p.grad is not None} == before


def test_what_is_trained_may_be_a_part_of_the_adapter() -> None:
    policy, reference = opened("t5", "adapter")
    for name, parameter in policy.module.named_parameters():
        parameter.requires_grad_("lora_B" in name and ".default." in name)
    before = trainable(policy.module)
    assert before
    reference_logprobs(reference, some_batch(policy))
    assert trainable(policy.module) == before


def test_a_second_model_shares_no_memory_and_is_frozen() -> None:
    policy, reference = opened("bart", "model")
    mine = {p.data_ptr() for p in policy.module.parameters()}
    assert not mine & {p.data_ptr() for p in reference.model.module.parameters()}
    assert not trainable(reference.model.module)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_holds_the_trained_adapter_alone_and_opens_in_plain_peft(kind: str, tmp_path: Path) -> None:
    from peft import PeftModel

    policy, _ = opened(kind, "adapter")
    move(policy.module)
    batch = some_batch(policy)
    expected = policy_logprobs(policy, batch)
    save_model(policy, tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved
    assert not any(FROZEN in name for name in saved)
    base = load_model(str(start_policy(kind)), dtype="float32")
    with quiet_transformers():  # peft asks for a name that transformers has given up
        plain: Any = PeftModel.from_pretrained(base.core, tmp_path)
    again = type(base)(plain.eval(), base.tokenizer, base.info)
    torch.testing.assert_close(policy_logprobs(again, batch), expected, atol=1e-6, rtol=0)


def test_a_name_is_an_adapter_if_its_folder_says_so() -> None:
    assert is_adapter(str(start_adapter("t5")))
    assert not is_adapter(str(start_policy("t5")))


@pytest.mark.parametrize("kind", KINDS)
def test_without_dropout_training_mode_is_one_function_too(kind: str, tmp_path: Path) -> None:
    from tiny import make_model

    model = make_model(kind, dropout=0.3)
    model.module.train()
    batch = some_batch(model)
    assert not policy_logprobs(model, batch).equal(policy_logprobs(model, batch))
    disable_dropout(model.module)
    assert policy_logprobs(model, batch).equal(policy_logprobs(model, batch))
    model.module.eval()
    evaluated = policy_logprobs(model, batch)
    model.module.train()
    assert policy_logprobs(model, batch).equal(evaluated)
    assert all(part.p == 0 for part in model.module.modules() if isinstance(part, nn.Dropout))
