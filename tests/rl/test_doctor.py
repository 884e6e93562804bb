"""The doctor: green on healthy starts of every family, and each of its checks seen red by the fault it is there for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from rl_tiny import KINDS, LORA, data, letter_reward, rl_config, start_adapter, start_policy, write_rows
from torch import Tensor, nn

from dialtune.errors import TrainingError
from dialtune.models.base import Query, Sampled
from dialtune.models.loading import load_model
from dialtune.models.reference import Reference
from dialtune.rewards.toxicity import Civility
from dialtune.rl import doctor
from dialtune.rl.doctor import Check, Tolerance, failures
from dialtune.trainers import group, ppo, rl_run
from dialtune.trainers.rl_run import Prepared, check_rl, prepare

MODEL = ("D01", "D02", "D03", "D04", "D05", "D06", "D07", "D08", "D09", "D10", "D11", "D12", "D13", "D14", "D16", "D17")
REWARD = ("D18", "D19", "D20", "D21")


pytestmark = pytest.mark.usefixtures("one_thread")


def prepared_for(kind: str = "t5", tmp_path: Path = Path("unused"), reward: Any = None, **settings: Any) -> Prepared:
    start = settings.pop("start", None) or start_policy(kind)
    return prepare(rl_config(start, tmp_path / "run", **settings), [reward or letter_reward()])


def found_in(prepared: Prepared) -> dict[str, str]:
    """Failed checks: name → its line."""
    rl_run._calibrate(prepared, least=True)
    return {check.name: str(check.problem) for check in rl_run._checks(prepared) if check.problem}


# healthy


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_green_on_every_family_with_all_weights_and_with_an_adapter(kind: str, lora: bool) -> None:
    method = "ppo" if lora == (kind in ("bart", "llama")) else "grpo"
    config = rl_config(
        start_policy(kind), "unused", method=method, lora=LORA if lora else None, data=data(),
        rewards={"length": 0.1, "copy": -0.1}, constraint={"qualities": ["rougeL"], "baseline_prompts": 16},
    )  # fmt: skip
    checks = check_rl(config, rewards=[letter_reward()])
    assert failures(checks) == []
    names = {check.name for check in checks}
    assert names == {*MODEL, *REWARD, "D22", "D23", "D24"} | ({"D15"} if method == "ppo" else set())
    assert sum(check.name == "D21" for check in checks) == 3


@pytest.mark.parametrize("kind", ["bart", "gpt2"])
def test_it_is_green_where_an_adapter_is_trained_on(kind: str) -> None:
    prepared = prepared_for(start=start_adapter(kind), lora=LORA)
    assert prepared.reference.kind == "adapter"
    assert found_in(prepared) == {}


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo"])
@pytest.mark.parametrize(
    "settings",
    [{"loss_type": "tokens"}, {"loss_type": "sequence"}, {"temperature": 0.7, "num_generations": 2}],
    ids=["tokens", "sequence", "cooler"],
)
def test_it_is_green_for_every_method_and_loss(method: str, settings: dict[str, Any]) -> None:
    assert found_in(prepared_for("gpt2", method=method, **settings)) == {}


def test_it_leaves_weights_gradients_and_generators_as_they_were() -> None:
    prepared = prepared_for("t5", method="ppo")
    rl_run._calibrate(prepared, least=True)
    before = {name: p.detach().clone() for name, p in prepared.method.trained.named_parameters()}
    flags = {name: p.requires_grad for name, p in prepared.method.trained.named_parameters()}
    state = torch.get_rng_state()
    rl_run._checks(prepared)
    now = dict(prepared.method.trained.named_parameters())
    assert all(now[name].equal(weight) for name, weight in before.items())
    assert all(p.grad is None for p in now.values())
    assert {name: p.requires_grad for name, p in now.items()} == flags
    assert torch.get_rng_state().equal(state)


# each check, red


def sampling_fault(change: Callable[[Any, Sampled], Sampled]) -> Callable[[Prepared, pytest.MonkeyPatch], None]:
    """Every sample comes out changed."""

    def sabotage(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
        model: Any = prepared.model
        sample = model.sample
        monkeypatch.setattr(model, "sample", lambda *a, **k: change(model, sample(*a, **k)))

    return sabotage


def pad_is_a_stop_token(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = prepared.model
    model.stop_ids = (*model.stop_ids, model.pad_id)


def without_first_token(model: Any, sampled: Sampled) -> Sampled:
    """Masked by id where start and pad are the same: T5."""
    mask = sampled.mask.clone()
    mask[:, 0] = False
    return replace(sampled, mask=mask)


def without_stop_token(model: Any, sampled: Sampled) -> Sampled:
    """Masked by `ids != eos`, as if the stop token were padding."""
    stops = torch.isin(sampled.response, torch.tensor(model.stop_ids))
    return replace(sampled, mask=sampled.mask & (~stops | (torch.arange(stops.shape[1]) == 0)))


def retokenised(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rollout's ids are those of its decoded texts; the doctor's own sample is honest."""
    model: Any = prepared.model
    sample, calls = model.sample, []

    def once(*args: Any, **kwargs: Any) -> Sampled:
        sampled: Sampled = sample(*args, **kwargs)
        calls.append(1)
        if len(calls) > 1:
            return sampled
        response, mask = sampled.response.clone(), sampled.mask.clone()
        for row, text in enumerate(model.decode(response, mask)):
            ids = model.response_ids(text)[: response.shape[1]]
            response[row] = model.pad_id
            response[row, : len(ids)] = torch.tensor(ids)
            mask[row] = torch.arange(response.shape[1]) < len(ids)
        return replace(sampled, response=response, mask=mask)

    monkeypatch.setattr(model, "sample", once)


def cooler(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """A temperature from the checkpoint's generation file."""
    model: Any = prepared.model
    sample = model.sample
    monkeypatch.setattr(model, "sample", lambda q, s, **k: sample(q, replace(s, temperature=0.9 * s.temperature), **k))


def logits_changed(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Prepared, pytest.MonkeyPatch], None]:
    """A generation setting that changes the logits while sampling, and not while scoring."""

    def sabotage(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
        from dialtune.models import decoding

        pick = decoding.pick
        monkeypatch.setattr(decoding, "pick", lambda logits, *a: pick(change(prepared.model, logits), *a))

    return sabotage


def no_early_stop(model: Any, logits: Tensor) -> Tensor:
    """As `min_new_tokens` would: a stop token is a little less likely."""
    logits = logits.clone()
    logits[:, list(model.stop_ids)] -= 0.1
    return logits


def no_token(model: Any, sampled: Sampled) -> Sampled:
    response = sampled.response.clone()
    response[0, 0] = len(model.tokenizer)
    return replace(sampled, response=response)


def dropout_is_on(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.model.module.train()
    for part in prepared.model.module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.1


def another_path_with_gradient(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = prepared.model
    logprobs = model.logprobs
    monkeypatch.setattr(model, "logprobs", lambda *a, **k: logprobs(*a, **k) * (1.01 if torch.is_grad_enabled() else 1))


def another_model_as_reference(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    other = load_model(str(start_policy("t5")), dtype="float32")
    other.module.requires_grad_(False)
    with torch.no_grad():
        next(other.module.parameters()).mul_(1.05)
    object.__setattr__(prepared, "reference", Reference(other, "model"))


def base_as_reference(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter switched off: the model before fine-tuning, not the start policy."""
    object.__setattr__(prepared, "reference", Reference(prepared.model, "base"))


def reference_is_trained(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.reference.model.module.requires_grad_(True)


def reference_is_the_policy(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    object.__setattr__(prepared, "reference", Reference(prepared.model, "model"))


def frozen_copy_is_trained(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, parameter in prepared.model.module.named_parameters():
        if ".reference." in name:
            parameter.requires_grad_(True)


def padding_is_read(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attention mask was dropped."""
    model: Any = prepared.model
    encode = model.encode

    def unmasked(prompts: Any) -> Query:
        query = encode(prompts)
        return Query(query.ids, torch.ones_like(query.mask))

    monkeypatch.setattr(model, "encode", unmasked)


def shared_prompts_are_mixed_up(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    """`repeat` in the place of `repeat_interleave`: rows meet the prompt of another group."""
    model: Any = prepared.model
    states = model.states

    def mixed(query: Query, response: Tensor, mask: Tensor) -> Tensor:
        times = len(response) // len(query.ids)
        repeated = Query(query.ids.repeat(times, 1), query.mask.repeat(times, 1)) if times > 1 else query
        return states(repeated, response, mask)  # type: ignore[no-any-return]

    monkeypatch.setattr(model, "states", mixed)


def gradient_is_not_finite(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    parameter = next(p for p in prepared.model.module.parameters() if p.requires_grad)
    parameter.register_hook(lambda gradient: gradient * float("nan"))


def value_head_knows_something(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    head: Any = prepared.method
    nn.init.normal_(head.head.linear.weight)


def encoder_gets_nothing(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = prepared.model
    encoded = model._encoded
    monkeypatch.setattr(model, "_encoded", lambda query: encoded(query).detach())


def unused_weight(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared.model.module.register_parameter("spare", nn.Parameter(torch.zeros(2)))


def frozen_weight_gets_a_gradient(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = next(p for p in prepared.model.module.parameters() if not p.requires_grad)
    frozen.grad = torch.ones_like(frozen)


def loss_upside_down(module: Any) -> Callable[[Prepared, pytest.MonkeyPatch], None]:
    def sabotage(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
        right = module.policy_loss

        def wrong(*args: Any, **kwargs: Any) -> Any:
            loss, stats = right(*args, **kwargs)
            return -loss, stats

        monkeypatch.setattr(module, "policy_loss", wrong)

    return sabotage


def advantage_upside_down(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    right = group.group_relative
    monkeypatch.setattr(group, "group_relative", lambda *a, **k: -right(*a, **k))


def control_tokens_in_texts(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = prepared.model

    def decode(response: Tensor, mask: Tensor) -> list[str]:
        rows = [row[keep].tolist() for row, keep in zip(response, mask, strict=True)]
        return list(model.tokenizer.batch_decode(rows, skip_special_tokens=False))

    monkeypatch.setattr(model, "decode", decode)


SABOTAGES: list[tuple[str, str, Any, dict[str, Any], str]] = [
    ("D01", "t5", pad_is_a_stop_token, {}, "pad and EOS share id 0: the stop action would be masked"),
    ("D01", "gpt2", pad_is_a_stop_token, {}, "pad and EOS share id 1"),
    ("D02", "t5", sampling_fault(without_first_token), {}, "first token is masked on 16 rows"),
    ("D03", "t5", sampling_fault(without_stop_token), {}, "EOS is outside the mask on"),
    ("D03", "llama", sampling_fault(without_stop_token), {}, "ended rows: stopping would not be learned"),
    ("D04", "t5", None, {"max_completion_length": 2}, "of rows hit the cap of 2 tokens: raise max_completion_length"),
    ("D05", "llama", retokenised, {}, "was a completion tokenised again?"),
    ("D06", "t5", cooler, {}, "a generation setting changes the distribution"),
    ("D06", "llama", logits_changed(no_early_stop), {}, "a generation setting changes the distribution"),
    ("D07", "t5", sampling_fault(no_token), {}, "has no token; the logit rows behind the tokenizer must be masked"),
    ("D08", "t5", dropout_is_on, {}, "nats: dropout or another random part is active"),
    ("D09", "bart", another_path_with_gradient, {}, "old and new come from different code or weights"),
    ("D10", "t5", another_model_as_reference, {}, "nats per token before any update: it is not the start policy"),
    ("D10", "adapter", base_as_reference, {"lora": LORA}, "before any update: it is not the start policy"),
    ("D11", "t5", reference_is_trained, {}, "would move with the policy"),
    ("D11", "gpt2", reference_is_the_policy, {}, "would move with the policy"),
    ("D11", "adapter", frozen_copy_is_trained, {"lora": LORA}, "would move with the policy"),
    ("D12", "t5", padding_is_read, {}, "padding leaks:"),
    ("D12", "llama", padding_is_read, {}, "padding leaks:"),
    ("D13", "llama", shared_prompts_are_mixed_up, {}, "nats from the repeated path"),
    ("D13", "bart", shared_prompts_are_mixed_up, {}, "nats from the repeated path"),
    ("D14", "t5", gradient_is_not_finite, {}, "has a gradient that is not finite; use bf16: auto or false"),
    ("D15", "t5", value_head_knows_something, {"method": "ppo"}, "value head does not start at 0"),
    ("D16", "t5", encoder_gets_nothing, {}, "is trainable but got no gradient"),
    ("D16", "llama", unused_weight, {}, "spare is trainable but got no gradient"),
    ("D16", "llama", frozen_weight_gets_a_gradient, {"lora": LORA}, "is frozen but got one"),
    ("D17", "t5", loss_upside_down(group), {}, "update moves the policy the wrong way"),
    ("D17", "gpt2", loss_upside_down(ppo), {"method": "ppo"}, "sign of loss or advantage"),
    ("D17", "llama", advantage_upside_down, {"lora": LORA}, "sign of loss or advantage"),
    ("D20", "t5", control_tokens_in_texts, {}, "reward input contains </s>: score the completion's text only"),
    ("D20", "llama", control_tokens_in_texts, {}, "reward input contains <|im_end|>"),
]


@pytest.mark.parametrize(
    ("name", "kind", "sabotage", "settings", "line"),
    SABOTAGES,
    ids=[f"{s[0]}-{s[1]}-{getattr(s[2], '__name__', 'settings')}" for s in SABOTAGES],
)
def test_each_fault_is_seen_and_named(
    name: str, kind: str, sabotage: Any, settings: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_for("t5", start=start_adapter("gpt2") if kind == "adapter" else start_policy(kind), **settings)
    if sabotage is not None:
        sabotage(prepared, monkeypatch)
    found = found_in(prepared)
    assert name in found
    assert line in found[name]


def test_dropout_left_on_by_the_loader_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without `disable_dropout`, in training mode: the whole road, not a switch thrown by hand."""
    monkeypatch.setattr(rl_run, "disable_dropout", lambda module: None)
    prepared = prepared_for("bart")
    for part in prepared.model.module.modules():
        if isinstance(getattr(part, "dropout", None), float):
            part.dropout = 0.2
    prepared.model.module.train()
    assert "D08" in found_in(prepared)


# rewards


def test_a_reward_that_draws_is_seen() -> None:
    draw = np.random.default_rng(0)
    moody = letter_reward(lambda completions: draw.normal(size=len(completions)).tolist())
    found = found_in(prepared_for(reward=moody))
    assert found.keys() == {"D18"}
    assert "reward 'letter' is not deterministic or mixes rows" in found["D18"]


def test_a_reward_that_mixes_rows_is_seen() -> None:
    found = found_in(prepared_for(reward=letter_reward(lambda completions: list(range(len(completions))))))
    assert found.keys() == {"D18"}


def test_a_constant_reward_is_seen() -> None:
    found = found_in(prepared_for(reward=letter_reward(lambda completions: [0.5] * len(completions))))
    assert "gives 0.5 to all" in found["D21"]


@pytest.mark.parametrize(("method", "line"), [("grpo", "of groups have equal rewards"), ("ppo", "all completions")])
def test_a_reward_without_spread_in_its_groups_is_seen(method: str, line: str) -> None:
    """It knows long probes from short ones, and the start policy only writes short ones."""
    reward = letter_reward(lambda completions: [float(len(text) > 300) for text in completions])
    generations = 4 if method == "grpo" else 1
    prepared = prepared_for(reward=reward, method=method, num_generations=generations)
    del prepared.judging.rewards["length"]  # which a recipe cannot leave out
    found = found_in(prepared)
    assert line in found["D19"]


@pytest.mark.parametrize(("siblings", "seen"), [(2, True), (8, False)])
def test_pairs_of_equals_are_no_groups_of_equals(siblings: int, seen: bool) -> None:
    """Seven of eight pairs earn the same: of groups of eight about 39 % would, which is something to learn from."""
    rewards = torch.tensor([1.0, 1.0] * 7 + [0.0, 1.0])
    rollout = SimpleNamespace(rewards=rewards, valid=torch.ones(16, dtype=torch.bool), group=2)
    problem = doctor._spread(rollout, siblings).problem  # type: ignore[arg-type]
    assert (problem is not None) == seen
    if problem:
        assert problem.startswith("about 88% of groups have equal rewards")


class Labelled:
    """A toxicity scorer that finds the packaged probes' toxic texts; `sign` -1 reads the other label."""

    name = "labelled"

    def __init__(self, sign: float) -> None:
        from dialtune.rewards.probes import load_probes

        self.sign, self.toxic = sign, {p.text for p in load_probes() if p.family == "toxic"}

    def logits(self, texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([self.sign * (3.0 if t in self.toxic else -2.0 - len(t) % 3) for t in texts])

    def settings(self) -> dict[str, str]:
        return {"label": "nothate" if self.sign < 0 else "hate"}


def test_a_reward_that_reads_the_wrong_label_is_seen() -> None:
    assert "D21" not in found_in(prepared_for(reward=Civility(Labelled(1.0), "civil")))
    found = found_in(prepared_for(reward=Civility(Labelled(-1.0), "civil")))
    assert "reward 'civil' is upside down" in found["D21"]
    assert "It reads label 'nothate'" in found["D21"]


def test_a_quality_that_the_start_policy_lacks_is_seen(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ["tea", "milk", "rain", "snow"])
    rows.write_text(rows.read_text().replace(" now", " zzz qqq xxx vvv").replace('"summary": "', '"summary": "jjj'))
    constraint = {"qualities": ["rougeL"], "baseline_prompts": 16}
    prepared = prepared_for(data={"train": str(rows)}, constraint=constraint)
    with pytest.raises(TrainingError, match=r"constraint 'rougeL': mean 0\.0"):
        found_in(prepared)


def test_validation_dialogues_among_the_training_prompts_are_seen() -> None:
    found = found_in(prepared_for(data={"train": data()["train"], "validation": data()["train"]}))
    assert found == {"D23": "8 validation dialogues occur in the training prompts; run: dialtune data leaks"}


# what is said


def test_failures_are_one_line_each() -> None:
    checks = [Check("D01", "a"), Check("D02", "b", "is wrong"), Check("D03", "c", "is bad")]
    assert failures(checks) == ["D02: is wrong", "D03: is bad"]


def test_half_precision_is_granted_more() -> None:
    full, half = Tolerance.of(False), Tolerance.of(True)
    assert (full.same, full.reference) == (1e-4, 1e-5)
    assert (half.same, half.reference, half.sampled) == (1e-2, 5e-3, 0.05)
    assert all(getattr(full, name) < getattr(half, name) for name in ("same", "reference", "padded", "sampled"))


def test_a_bf16_run_is_green_too() -> None:
    prepared = prepared_for("llama", bf16=True, lora=LORA)
    assert found_in(prepared) == {}


def test_every_check_of_the_design_has_been_seen_red() -> None:
    others = {"D18", "D19", "D21", "D22", "D23"}  # above, one test each
    assert {s[0] for s in SABOTAGES} | others == {f"D{number:02}" for number in range(1, 24)}
