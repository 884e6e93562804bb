"""PPO: its advantages, the value behind a cut, the warm-up of the value head, what it logs of its critic."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rl_tiny import (
    KINDS,
    letter_reward,
    rl_config,
    rollout_for,
    start_policy,
    start_weights,
    trained,
    unexamined,
    weights_of,
)

from dialtune.rl import losses
from dialtune.rl.advantages import generalized_advantages, shaped_rewards, whiten
from dialtune.trainers.method import Measured, with_old
from dialtune.trainers.rl_run import prepare

pytestmark = pytest.mark.usefixtures("one_thread")


def test_ppo_advantages_are_those_of_the_pure_functions_with_the_value_behind_a_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = rl_config(start_policy("gpt2"), "unused", method="ppo", truncation="bootstrap", max_completion_length=4)
    prepared = prepare(config, [letter_reward()])
    rollout = rollout_for(prepared, old=True)
    assert {"stop", "length"} == set(rollout.finish)
    torch.manual_seed(1)
    values = torch.randn(rollout.mask.shape) * rollout.mask
    last = torch.randn(len(rollout.texts))
    rollout = replace(rollout, values=values, last_values=last)
    prepared.method.begin(rollout, 0.05)
    assert rollout.old_logprobs is not None
    shaped = shaped_rewards(rollout.rewards, rollout.old_logprobs - rollout.ref_logprobs, rollout.mask, 0.05)
    cut = torch.tensor([reason == "length" for reason in rollout.finish])
    advantages, returns = generalized_advantages(shaped, values, rollout.mask, 1.0, 0.95, bootstrap=last * cut)
    method: Any = prepared.method
    torch.testing.assert_close(method.returns, returns)
    torch.testing.assert_close(method.advantages, whiten(advantages, rollout.mask))
    without, _ = generalized_advantages(shaped, values, rollout.mask, 1.0, 0.95)
    assert not torch.allclose(advantages, without)


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_behind_a_cut_is_that_of_one_more_position(kind: str) -> None:
    """Row by row: the value of the position from which the token after the last one would be predicted."""
    config = rl_config(
        start_policy(kind), "unused", method="ppo", truncation="bootstrap", max_completion_length=4, num_generations=3
    )
    prepared = prepare(config, [letter_reward()])
    method, model = prepared.method, prepared.model
    head: Any = method
    torch.manual_seed(2)
    torch.nn.init.normal_(head.head.linear.weight)
    rollout = rollout_for(prepared, old=False)
    found = with_old(model, method, rollout, config, batch=4)
    assert found.last_values is not None
    assert found.values is not None
    assert found.last_values.shape == (12,)
    cut = [row for row, reason in enumerate(rollout.finish) if reason == "length"]
    assert cut
    for row in cut:
        ids = rollout.response[row : row + 1]
        longer = torch.cat([ids, ids[:, :1]], dim=1)  # whichever token comes next
        query = rollout.queries([row // 3])
        with torch.no_grad():
            states = model.states(query, longer, torch.ones_like(longer, dtype=torch.bool))
            values = method.values(states)[0]
        torch.testing.assert_close(found.last_values[row], values[-1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.values[row], values[:-1], atol=1e-5, rtol=1e-5)
        assert abs(float(values[-1] - values[-2])) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("truncation", ["penalise", "mask"])
def test_one_forward_gives_what_a_pass_before_it_gives(kind: str, truncation: str) -> None:
    """Old log-probs, values and advantages of the update's own forward; of a pass before; and in halves."""
    config = rl_config(start_policy(kind), "unused", method="ppo", truncation=truncation, max_completion_length=4)
    prepared = prepare(config, [letter_reward()])
    method: Any = prepared.method
    torch.manual_seed(3)
    torch.nn.init.normal_(method.head.linear.weight)
    rollout = rollout_for(prepared, old=False)
    before = with_old(prepared.model, method, rollout, config, batch=2)
    everything = list(range(len(rollout.example_ids)))
    gradients = []
    for given, parts in ((rollout, [everything]), (before, [everything]), (rollout, [everything[:1], everything[1:]])):
        method.begin(given, 0.05)
        denominator = method.start_update(everything)
        method.trained.zero_grad(set_to_none=True)
        measured = Measured()
        for part in parts:
            (method.loss_sum(part, measured, policy_is_frozen=False) / denominator).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in method.trained.parameters() if p.grad is not None]))
        assert measured.ratio_min == pytest.approx(1, abs=1e-5)
    assert float(gradients[0].norm()) > 1e-3
    for other in gradients[1:]:
        assert float((other - gradients[0]).norm() / gradients[0].norm()) < 1e-4


def test_the_value_head_is_warmed_up_while_the_policy_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unexamined(monkeypatch)
    settings: dict[str, Any] = {"method": "ppo", "save_steps": 1, "save_total_limit": None, "weight_decay": 0.1}
    trained("gpt2", tmp_path / "run", max_steps=4, value_warmup_steps=2, **settings)
    start = start_weights("gpt2")
    heads = []
    for step in (1, 2, 3, 4):
        found = weights_of(tmp_path / "run" / f"checkpoint-{step}")
        assert all(found[name].equal(weight) for name, weight in start.items()) == (step <= 2)
        heads.append(found["linear.weight"])
    assert all(not after.equal(before) for before, after in itertools.pairwise(heads))
    assert heads[0].any()


def test_the_explained_variance_is_that_of_the_pure_function(monkeypatch: pytest.MonkeyPatch) -> None:
    config = rl_config(start_policy("gpt2"), "unused", method="ppo")
    prepared = prepare(config, [letter_reward()])
    rollout = rollout_for(prepared, old=True)
    method: Any = prepared.method
    torch.manual_seed(3)
    torch.nn.init.normal_(method.head.linear.weight)
    method.head.linear.bias.data.fill_(5.0)  # a constant error is not the critic's ignorance
    method.begin(rollout, 0.0)
    method.start_update([0, 1, 2, 3])
    measured = Measured()
    for part in ([0], [1, 2], [3]):
        method.loss_sum(part, measured, policy_is_frozen=False)
    with torch.no_grad():
        values = method.values(prepared.model.states(rollout.query, rollout.response, rollout.mask))
    # the pure function divides by n - 1 above and below the line, the record by n
    expected = losses.explained_variance(values, method.returns, method.mask)
    assert measured.record()["explained_variance"] == pytest.approx(expected, rel=1e-4)
