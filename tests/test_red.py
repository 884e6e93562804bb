# ruff: noqa: E501  a row stays on its line
"""Every formula's proof is seen red: the code is broken in a copy, one line at a time, and its test must fail there.

Each row names the line, what it becomes, and the test that must notice; a row whose line is gone fails too.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# (module, line, what it becomes, test)
BROKEN = [
    # advantages
    ("rl/advantages", "- table) / siblings", ") / siblings", "rl/test_advantages.py::test_leave_one_out_is_the_loop_over_siblings"),
    ("rl/advantages", ".sum(1, keepdim=True) - 1).clamp(min=1)", ".sum(1, keepdim=True)).clamp(min=1)", "rl/test_advantages.py::test_values_by_hand"),
    ("rl/advantages", "/ (n - 1).clamp(min=1)).sqrt()", "/ n.clamp(min=1)).sqrt()", "rl/test_advantages.py::test_group_relative_is_the_loop_over_groups"),
    ("rl/advantages", "std.clamp(min=floor)", "std", "rl/test_advantages.py::test_the_floor_keeps_a_group_that_agrees_small"),
    ("rl/advantages", "return high <= low", "return high < low", "rl/test_advantages.py::test_equal_rewards_give_exactly_nothing"),
    ("rl/advantages", "penalties = -beta *", "penalties = beta *", "rl/test_advantages.py::test_the_reward_stands_on_the_last_token_and_every_token_pays_for_its_kl"),
    ("rl/advantages", "running = delta[:, t] + gamma * lam * running", "running = delta[:, t] + lam * running", "rl/test_advantages.py::test_gae_is_the_square_sum"),
    ("rl/advantages", "+ gamma * following - known", "+ following - known", "rl/test_advantages.py::test_gae_is_the_square_sum"),
    ("rl/advantages", "following = torch.where(_last_token(mask)", "following = torch.where(_last_token(mask) & False", "rl/test_advantages.py::test_a_truncated_completion_is_valued_after_its_last_token_and_an_ended_one_is_not"),
    ("rl/advantages", "inside.std(correction=0)", "at_least_float32(values).std(correction=0)", "rl/test_advantages.py::test_whitening_is_over_the_mask_alone"),
    ("rl/advantages", "return values.masked_fill(~mask.bool(), 0)", "return values * mask", "rl/test_advantages.py::test_a_row_that_is_masked_out_changes_nothing"),
    # losses
    ("rl/losses", "return _constant(logprobs) - _constant(ref)", "return _constant(ref) - _constant(logprobs)", "rl/test_losses.py::test_kl_estimators_by_hand"),
    ("rl/losses", "- _constant(ref)) ** 2 / 2", "- _constant(ref)) ** 2", "rl/test_losses.py::test_kl_estimators_by_hand"),
    ("rl/losses", ".clamp(max=LOG_RATIO_CAP)) + k1", ") + k1", "rl/test_losses.py::test_k3_stays_finite_far_from_the_start_policy"),
    ("rl/losses", "- _constant(old)).masked_fill(~mask.bool(), 0)", "- _constant(old))", "rl/test_losses.py::test_the_ratio_is_masked_before_exp_so_that_padding_cannot_poison_backward"),
    ("rl/losses", "return -torch.minimum(free, clipped)", "return -torch.maximum(free, clipped)", "rl/test_losses.py::test_the_clipped_surrogate_by_hand"),
    ("rl/losses", "1 - epsilon_low, 1 + epsilon_high) * a", "1 - epsilon_high, 1 + epsilon_low) * a", "rl/test_losses.py::test_the_clipped_surrogate_by_hand"),
    ("rl/losses", "return weights, float(rows * cap)", "return weights, float(max(1, int(inside.sum())))", "rl/test_losses.py::test_normalisers_by_hand"),
    ("rl/losses", "return torch.maximum((v - target)", "return torch.minimum((v - target)", "rl/test_losses.py::test_the_clipped_value_loss_by_hand"),
    ("rl/losses", "mask).detach().clamp(1 - epsilon_low", "mask).clamp(1 - epsilon_low", "rl/test_losses.py::test_kl_in_the_loss_holds_its_ratio_constant"),
    ("rl/losses", "(target - v).var() / target.var()", "target.var() / (target - v).var()", "rl/test_losses.py::test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one"),
    ("rl/losses", "return -(logprobs.exp() * finite).sum(-1)", "return -finite.mean(-1)", "rl/test_losses.py::test_entropy_by_hand"),
    # the constraint
    ("rl/constraint", "away if self.at_least else -away", "away", "rl/test_constraint.py::test_a_quality_that_must_stay_low_pushes_the_other_way"),
    ("rl/constraint", "self.value + rate * missing", "self.value - rate * missing", "rl/test_constraint.py::test_an_update_by_hand"),
    ("rl/constraint", "multiplier.value + self.proportional * multiplier.missing, 0.0", "multiplier.value - self.proportional * multiplier.missing, 0.0", "rl/test_constraint.py::test_the_proportional_part_acts_at_once_and_lets_go_at_once"),
    ("rl/constraint", "max(0.0, 1 - chance / total) *", "max(0.0, 1 + chance / total) *", "rl/test_constraint.py::test_a_prompts_shift_is_what_chance_does_not_explain"),
    ("rl/judging", "held[name] = held[name] - np.repeat", "held[name] = held[name] + np.repeat", "rl/test_judging.py::test_a_rollout_of_hard_prompts_is_no_loss"),
    ("rl/constraint", "missing = error / self.sd -", "missing = -", "rl/test_constraint.py::test_an_update_by_hand"),
    ("rl/constraint", "ema = memory * self.ema + (1 - memory)", "ema = (1 - memory) * self.ema + memory", "rl/test_constraint.py::test_an_update_by_hand"),
    ("rl/constraint", "below = below + weight * applies", "below = below + 0 * applies", "rl/test_constraint.py::test_the_reward_by_hand"),
    ("rl/constraint", "-CLIP, multiplier.pays)", "-CLIP, CLIP)", "rl/test_constraint.py::test_length_is_bounded_on_both_sides"),
    ("rl/constraint", "slack = np.where(nothing, -CLIP, slack)", "slack = slack", "rl/test_constraint.py::test_an_empty_completion_earns_less_than_any_other"),
    ("rl/constraint", "interval[0] >= share", "interval[1] >= share", "rl/test_constraint.py::test_a_point_above_the_bound_is_not_enough"),
    ("rl/constraint", "(1 + _BETA_STEP * error)", "(1 - _BETA_STEP * error)", "rl/test_constraint.py::test_beta_follows_the_kl"),
    # one prompt for a group: equal to the repeated prompt, in log-probs and gradients
    ("models/shared_prefix", "+ shared.bias[:, None, None]  #", "  #", "models/test_shared_prefix.py"),
    ("models/shared_prefix", "rank = torch.arange(len(self.owner), device=self.owner.device) - starts[self.owner]", "rank = torch.zeros_like(self.owner)", "models/test_shared_prefix.py"),
    ("models/seq2seq", "first = last.repeat_interleave(group, dim=0)[:, None]", "first = last.repeat(group, 1)[:, None]", "models/test_contract.py::test_a_shared_prompt_gives_the_logprobs_and_gradients_of_row_by_row"),
    ("models/decoding", "index = torch.searchsorted(cumulative, target[:, None], right=True)", "index = torch.searchsorted(cumulative, 0.9 * target[:, None], right=True)", "models/test_decoding.py::test_a_draw_ends_where_the_sum_over_the_whole_row_says"),
    ("models/decoding", "logprobs.exp(), uniforms", "(0.5 * logprobs).exp(), uniforms", "models/test_decoding.py"),
    # the loop: a group's baseline, the KL of the right sign, what a resumed run must remember
    ("trainers/group", "rewards - self.beta * (", "rewards + self.beta * (", "trainers/test_rl.py::test_a_completion_pays_for_its_distance_from_the_start_policy"),
    ("trainers/group", "old = logprobs.detach() if", "old = rollout.sampled_logprobs[rows] * 0.9 if", "trainers/test_rl.py"),
    ("trainers/ppo", "old - rollout.ref_logprobs, rollout.mask", "rollout.ref_logprobs - old, rollout.mask", "trainers/test_ppo.py"),
    ("trainers/ppo", "self.advantages = whiten(advantages, self.mask)", "self.advantages = advantages", "trainers/test_ppo.py"),
    # how many dialogues a claim needs; which rows are in a slice
    ("planning", "return (both + size) / 2, (both - size) / 2", "return both, size", "test_planning.py::test_two_evaluations_of_a_rate_give_mcnemars_numbers"),
    ("planning", "level = alpha / family", "level = alpha", "test_planning.py::test_a_comparison_gives_its_sd_by_the_effect_and_its_family_by_its_scores"),
    ("planning", "both = max(spread.discordant, size)", "both = size", "test_planning.py::test_two_evaluations_of_a_rate_give_mcnemars_numbers"),
    ("planning", "p * q + spread.rho * math", "p * q + 0 * math", "test_planning.py::test_a_rate_of_one_side_is_split_by_the_correlation"),
    ("slices", "MIN_SLICE <= len(ids) < len(rows)", "MIN_SLICE <= len(ids)", "test_slices.py::test_a_slice_of_nine_rows_or_of_all_is_left_out"),
]  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    top = tmp_path_factory.mktemp("red")
    for name in ("dialtune", "tests", "recipes"):
        shutil.copytree(ROOT / name, top / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", top)
    yield top
    shutil.rmtree(top)


def run(top: Path, tests: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow"]
    return subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=top,
        env=os.environ | {"PYTHONPATH": str(top), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_unbroken_they_are_green(copy: Path) -> None:
    result = run(copy, sorted({test for *_, test in BROKEN}))
    assert result.returncode == 0, result.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "line", "broken", "test"), BROKEN)
def test_broken_it_is_red(copy: Path, module: str, line: str, broken: str, test: str) -> None:
    path = copy / "dialtune" / f"{module}.py"
    whole = path.read_text(encoding="utf-8")
    assert line in whole, f"{module} has no such line any more; mend the row"
    path.write_text(whole.replace(line, broken, 1), encoding="utf-8")
    try:
        result = run(copy, [test])
    finally:
        path.write_text(whole, encoding="utf-8")
    assert result.returncode == 1, result.stdout[-2000:] + result.stderr[-500:]
    assert "FAILED tests/" in result.stdout  # and not an error of collection
