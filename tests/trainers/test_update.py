"""One update equals torch's own AdamW loop, whatever the accumulation, the precision or the memory there is."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
import torch
from tiny import make_model
from torch import Tensor, nn

from dialtune.checkpoints import flatten_state, unflatten_state
from dialtune.config.schema import RunConfig
from dialtune.errors import NonFiniteError, TrainingError
from dialtune.trainers import update
from dialtune.trainers.update import Updater, UpdateResult, compute_dtype, decay_groups, schedule

CPU = torch.device("cpu")


def _config(**settings: Any) -> RunConfig:
    defaults = {"learning_rate": 1e-2, "bf16": False, "lr_scheduler_type": "constant", "max_grad_norm": 0.0}
    return RunConfig(model="tiny", data={"train": "rows"}, **{**defaults, **settings})


class _Task:
    """A small network with a norm and biases, eight rows, and the summed loss of some of them."""

    def __init__(self, dropout: float = 0.0) -> None:
        torch.manual_seed(0)
        layers = (nn.Linear(6, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3))
        self.module = nn.Sequential(*layers).train()
        self.inputs, self.targets = torch.randn(8, 6), torch.randint(3, (8,))

    def loss_sum(self, rows: Sequence[int]) -> Tensor:
        chosen = list(rows)
        logits = self.module(self.inputs[chosen]).float()
        return nn.functional.cross_entropy(logits, self.targets[chosen], reduction="sum")

    def updater(self, total_steps: int = 10, **settings: Any) -> Updater:
        return Updater(self.module, _config(**settings), total_steps=total_steps, device=CPU)

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.module.parameters()]


def _assert_close(found: Sequence[Tensor], wanted: Sequence[Tensor], rtol: float = 1e-5, atol: float = 1e-7) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


# the schedule


@pytest.mark.parametrize("warmup", [{}, {"warmup_steps": 1}, {"warmup_steps": 7}, {"warmup_ratio": 0.13}])
@pytest.mark.parametrize("total", [1, 2, 20, 101])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_every_factor_is_the_one_of_transformers(kind, total, warmup):
    from transformers import TrainingArguments, get_scheduler

    config = _config(lr_scheduler_type=kind, **warmup)
    # A ratio becomes steps as transformers' own arguments make it so.
    arguments = TrainingArguments(
        output_dir="unused",
        warmup_steps=warmup.get("warmup_steps", 0) or warmup.get("warmup_ratio", 0),
        report_to="none",
        use_cpu=True,
    )
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    peer = get_scheduler(kind, optimizer, arguments.get_warmup_steps(total), total)
    for number in range(total):
        assert schedule(config, number, total) == pytest.approx(peer.get_last_lr()[0], abs=1e-12), number
        optimizer.step()
        peer.step()


def test_each_update_runs_at_the_rate_of_its_schedule():
    task = _Task()
    updater = task.updater(total_steps=4, lr_scheduler_type="linear", learning_rate=1e-2)
    rates = [updater.step([range(8)], task.loss_sum, 8, number=n).learning_rate for n in range(4)]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


# decay


@pytest.mark.parametrize("kind", ["bart", "gpt2", "llama", "t5"])
def test_the_parameters_that_decay_are_those_that_transformers_decays(kind, tmp_path):
    from transformers import Trainer, TrainingArguments

    module = make_model(kind).module
    peer = Trainer(model=module, args=TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True))
    wanted = set(peer.get_decay_parameter_names(module))
    decayed, plain = decay_groups(module, 0.1)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert {names[id(parameter)] for parameter in decayed["params"]} == wanted & set(names.values())
    assert {names[id(parameter)] for parameter in plain["params"]} == set(names.values()) - wanted


def test_frozen_parameters_are_in_no_group():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[0].requires_grad_(False)
    found = [parameter for group in decay_groups(module, 0.1) for parameter in group["params"]]
    assert {id(parameter) for parameter in found} == {id(module[1].weight), id(module[1].bias)}


def test_a_model_without_trainable_parts_is_refused():
    with pytest.raises(TrainingError, match=r"^nothing to train: every parameter is frozen$"):
        decay_groups(nn.Linear(2, 2).requires_grad_(False), 0.0)


# the update itself


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_updates_equal_a_plain_adamw_loop(clip):
    task = _Task()
    peer = copy.deepcopy(task)
    groups = [
        {"params": [p for p in peer.module.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in peer.module.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.99), eps=1e-6)
    updater = task.updater(weight_decay=0.1, adam_beta1=0.8, adam_beta2=0.99, adam_epsilon=1e-6, max_grad_norm=clip)
    for number in range(6):
        rows = [(number + i) % 8 for i in range(4)]
        found = updater.step([rows], task.loss_sum, 4, number=number)
        optimizer.zero_grad()
        loss = peer.loss_sum(rows) / 4
        loss.backward()
        norm = nn.utils.clip_grad_norm_(peer.module.parameters(), clip or math.inf)
        assert not clip or norm > clip  # else the test would not clip
        optimizer.step()
        assert found.loss == pytest.approx(loss.item(), rel=1e-6)
        assert found.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert found.skipped is None
    _assert_close(task.weights(), peer.weights(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_parts", [2, 4])
def test_accumulation_changes_neither_loss_nor_weights(n_parts):
    whole, parted = _Task(), _Task()
    size = 8 // n_parts
    micro = [range(start, start + size) for start in range(0, 8, size)]
    updaters = whole.updater(max_grad_norm=0.1), parted.updater(max_grad_norm=0.1)
    for number in range(3):
        a = updaters[0].step([range(8)], whole.loss_sum, 8, number=number)
        b = updaters[1].step(micro, parted.loss_sum, 8, number=number)
        assert (a.loss, a.grad_norm) == pytest.approx((b.loss, b.grad_norm), rel=1e-6)
    _assert_close(parted.weights(), whole.weights(), rtol=1e-6, atol=1e-6)


def test_rows_of_unequal_size_weigh_by_their_tokens_not_by_their_batch():
    # Two micro-batches of 1 and 7 rows: a mean of means would count the single row seven times as much.
    whole, parted = _Task(), _Task()
    whole.updater().step([range(8)], whole.loss_sum, 8, number=0)
    parted.updater().step([range(1), range(1, 8)], parted.loss_sum, 8, number=0)
    _assert_close(parted.weights(), whole.weights(), rtol=1e-6, atol=1e-6)


def test_gradients_are_gone_after_an_update():
    task = _Task()
    task.updater().step([range(8)], task.loss_sum, 8, number=0)
    assert all(parameter.grad is None for parameter in task.module.parameters())


def test_the_cpu_keeps_freed_memory(monkeypatch):
    asked = []
    monkeypatch.setattr(update, "keep_freed_memory", lambda: asked.append(1))
    _Task().updater()
    assert asked == [1]


# dropout


def _after_updates(task: _Task, updater: Updater, numbers: Sequence[int]) -> list[Tensor]:
    for number in numbers:
        updater.step([range(4), range(4, 8)], task.loss_sum, 8, number=number)
    return task.weights()


def test_a_replayed_update_drops_the_same_units():
    first, again = _Task(dropout=0.5), _Task(dropout=0.5)
    wanted = _after_updates(first, first.updater(), [0, 1])
    torch.manual_seed(99)
    torch.rand(1000)
    found = _after_updates(again, again.updater(), [0, 1])
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize(("seed", "number"), [(43, 0), (42, 1)])
def test_another_seed_or_update_drops_other_units(seed, number):
    first, other = _Task(dropout=0.5), _Task(dropout=0.5)
    wanted = _after_updates(first, first.updater(), [0])
    found = _after_updates(other, other.updater(seed=seed), [number])
    assert not torch.equal(found[0], wanted[0])


def test_each_micro_batch_drops_its_own_units():
    task, seen = _Task(dropout=0.5), []
    task.module[3].register_forward_hook(lambda *a: seen.append(a[2] == 0))
    task.updater().step([range(4), range(4)], task.loss_sum, 8, number=0)
    assert not torch.equal(seen[0], seen[1])


# memory


def _cramped(task: _Task, limit: int, error: Callable[[], Exception], sizes: list[int]) -> Callable[..., Tensor]:
    """The loss on a machine that holds `limit` rows; asking for more fails after part of the work is done."""

    def loss_sum(rows: Sequence[int]) -> Tensor:
        sizes.append(len(rows))
        loss = task.loss_sum(rows)
        if len(rows) > limit:
            raise error()
        return loss

    return loss_sum


def _cpu_allocation_failure() -> Exception:
    try:
        torch.empty(10**15)
    except Exception as error:
        return error
    raise AssertionError("a petabyte was allocated")


OUT_OF_MEMORY = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory"),
    "cpu": _cpu_allocation_failure,
    "python": MemoryError,
}


@pytest.mark.parametrize("error", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
@pytest.mark.parametrize("limit", [1, 3, 7])
def test_a_full_memory_halves_the_batch_and_keeps_the_gradient(limit, error):
    roomy, cramped, sizes = _Task(), _Task(), []
    a = roomy.updater().step([range(8)], roomy.loss_sum, 8, number=0)
    b = cramped.updater().step([range(8)], _cramped(cramped, limit, error, sizes), 8, number=0)
    assert b.loss == pytest.approx(a.loss, rel=1e-6)
    assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-5)
    _assert_close(cramped.weights(), roomy.weights(), rtol=1e-5, atol=1e-6)
    n_final = {1: 8, 3: 4, 7: 2}[limit]
    assert sizes[-n_final:] == [8 // n_final] * n_final


def test_what_was_accumulated_before_memory_ran_out_is_not_counted_twice():
    roomy, cramped, sizes = _Task(), _Task(), []
    micro = [range(2), range(2, 8)]  # the first fits and has left its gradient when the second fails
    roomy.updater().step(micro, roomy.loss_sum, 8, number=0)
    cramped.updater().step(micro, _cramped(cramped, 3, OUT_OF_MEMORY["gpu"], sizes), 8, number=0)
    assert sizes == [2, 6, 1, 1, 3, 3]
    _assert_close(cramped.weights(), roomy.weights(), rtol=1e-5, atol=1e-6)


def test_a_single_row_that_does_not_fit_is_one_clear_line():
    task = _Task()
    before = task.weights()
    with pytest.raises(TrainingError) as caught:
        task.updater().step([range(8)], _cramped(task, 0, OUT_OF_MEMORY["gpu"], []), 8, number=3)
    assert str(caught.value) == (
        "update 3: out of memory with a single row per forward pass; lower max_prompt_length, "
        "set gradient_checkpointing: true, or train an adapter (lora: {r: 16})"
    )
    assert all(torch.equal(a, b) for a, b in zip(task.weights(), before, strict=True))


def test_another_runtime_error_is_not_taken_for_a_lack_of_memory():
    task, sizes = _Task(), []

    def broken() -> Exception:
        return RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes"):
        task.updater().step([range(8)], _cramped(task, 1, broken, sizes), 8, number=0)
    assert sizes == [8]


# what is not finite


def _run(updater: Updater, task: _Task, factors: Iterable[float]) -> list[UpdateResult]:
    """An update on all rows for each factor of the loss."""
    return [
        updater.step([range(8)], lambda rows, factor=factor: task.loss_sum(rows) * factor, 8, number=number)
        for number, factor in enumerate(factors)
    ]


def test_skipped_updates_leave_the_schedule_where_it_was():
    task = _Task()
    updater = task.updater(total_steps=4, lr_scheduler_type="linear")
    updater.step([range(8)], task.loss_sum, 8, number=0)
    bad = updater.step([range(8)], lambda rows: task.loss_sum(rows) * math.nan, 8, number=1)
    good = updater.step([range(8)], task.loss_sum, 8, number=2)
    assert (bad.loss, bad.grad_norm, bad.skipped) == (None, None, "loss is not finite")
    assert bad.learning_rate == good.learning_rate == pytest.approx(7.5e-3)
    assert (updater.updates, updater.n_skipped) == (2, 1)


def test_skips_above_a_twentieth_of_the_window_stop_the_run():
    task = _Task()
    updater = task.updater(total_steps=10_000)
    factors = itertools.cycle([1.0] * 17 + [math.nan])  # one in 18 is 5.6 %, never two in a row
    with pytest.raises(NonFiniteError, match=r"11 of the last 198 updates were skipped .*5% of 200"):
        _run(updater, task, itertools.islice(factors, 1000))
    assert updater.n_skipped + updater.updates == 198


def _stored(state: dict[str, Any]) -> Any:
    """What a checkpoint gives back: tensors of their own."""
    tensors, document = flatten_state(state)
    return unflatten_state({name: tensor.clone() for name, tensor in tensors.items()}, document)


def test_the_state_survives_a_round_trip_through_what_checkpoints_store():
    task = _Task()
    updater = task.updater(max_grad_norm=0.1, lr_scheduler_type="linear")
    _run(updater, task, [1.0, math.nan, 1.0])
    other = copy.deepcopy(task)
    restored = other.updater(max_grad_norm=0.1, lr_scheduler_type="linear")
    restored.load_state(_stored(updater.state()))
    assert list(restored.recent) == [False, True, False]
    assert restored.state().keys() == updater.state().keys()
    assert (restored.updates, restored.n_skipped) == (2, 1)
    results = [u.step([range(8)], t.loss_sum, 8, number=3) for u, t in ((updater, task), (restored, other))]
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(task.weights(), other.weights(), strict=True))


# precision


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [({"bf16": True}, torch.bfloat16), ({"fp16": True}, torch.float16), ({}, torch.float32)],
    ids=["bf16", "fp16", "fp32"],
)
def test_products_run_in_the_recipes_dtype_and_weights_stay_fp32(settings, dtype):
    exact, task, seen = _Task(), _Task(), []
    exact.updater().step([range(8)], exact.loss_sum, 8, number=0)
    task.module[0].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    result = task.updater(**settings).step([range(8)], task.loss_sum, 8, number=0)
    assert seen == [dtype]
    assert result.skipped is None
    assert {parameter.dtype for parameter in task.module.parameters()} == {torch.float32}
    # Adam's first update is the rate times the gradient's sign: coarse products may flip a sign near zero only.
    same = torch.cat([(a - b).abs().flatten() for a, b in zip(task.weights(), exact.weights(), strict=True)]) < 1e-3
    assert same.float().mean() > 0.95


def test_adapters_cast_their_input_again_after_the_forward_pass():
    class Adapter(nn.Linear):
        cast_input_dtype_enabled = True

    module = nn.Sequential(Adapter(2, 2))
    with compute_dtype(module, _config(bf16=True), CPU):
        assert module[0].cast_input_dtype_enabled is False
    assert module[0].cast_input_dtype_enabled is True
    with compute_dtype(module, _config(), CPU):  # fp32: the frozen weights may be anything, so the cast is needed
        assert module[0].cast_input_dtype_enabled is True


def test_fp16_scales_the_loss_and_reports_the_unscaled_gradient():
    exact, task = _Task(), _Task()
    a = exact.updater().step([range(8)], exact.loss_sum, 8, number=0)
    updater = task.updater(fp16=True)
    b = updater.step([range(8)], task.loss_sum, 8, number=0)
    assert updater.scaler.get_scale() == 2.0**16
    assert b.loss == pytest.approx(a.loss, rel=1e-2)  # fp16 has 11 bits
    assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-2)


def test_fp16_lowers_its_scale_until_the_gradient_fits_and_stops_nothing():
    task = _Task()
    before = task.weights()
    updater = task.updater(fp16=True)
    # Gradients pass through fp16, whose largest number is 65,504: 2**16 times this loss needs some halvings first.
    results = _run(updater, task, [2.0**11] * 20)
    skipped = [result.skipped is not None for result in results]
    n_skips = sum(skipped)
    assert 5 < n_skips < 17
    assert skipped == [True] * n_skips + [False] * (20 - n_skips)
    assert updater.scaler.get_scale() == 2.0 ** (16 - n_skips)
    assert (updater.updates, updater.n_skipped) == (20 - n_skips, n_skips)
    assert not torch.equal(task.weights()[0], before[0])


@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_fp16_with_numbers_that_no_scale_can_mend_stops_too(place):
    task = _Task()
    before = task.weights()
    updater = task.updater(fp16=True)
    if place == "gradient":
        task.module[0].weight.register_hook(lambda gradient: gradient * math.nan)
    factor = math.nan if place == "loss" else 1.0
    with pytest.raises(NonFiniteError, match=f"training stopped: {place} is not finite"):
        _run(updater, task, [factor] * 100)
    assert updater.n_skipped == {"loss": 5, "gradient": 21}[place]  # the 17th halves the scale below 1, then 5 in a row
    assert all(torch.equal(a, b) for a, b in zip(task.weights(), before, strict=True))


def test_the_scale_of_fp16_goes_on_after_a_resume():
    task = _Task()
    updater = task.updater(fp16=True)
    task.module[0].weight.register_hook(lambda gradient: gradient * math.inf)
    updater.step([range(8)], task.loss_sum, 8, number=0)
    restored = task.updater(fp16=True)
    restored.load_state(_stored(updater.state()))
    assert restored.scaler.get_scale() == updater.scaler.get_scale() == 2.0**15
