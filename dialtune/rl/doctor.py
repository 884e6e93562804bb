"""Checks on real prompts before the first update; each failure says why and stops the run.

The numbers D01 to D24 are those of docs/rl.md. Most faults of public reinforcement-learning code leave a run that looks
healthy: a masked stop token, a start policy that is not the start policy, a reward upside down. Each is cheap to see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from dialtune.models.base import Query, Sampling
from dialtune.models.reference import Reference
from dialtune.rl.advantages import equal_rewards
from dialtune.rl.rollouts import Judge, Rollout, collect, ids_digest
from dialtune.types import Example, FinishReason, Prompt

MAX_TRUNCATED = 0.5
MIN_SPREAD = 0.25
FEW = 2  # prompts
GRADIENT_PROMPTS = 4  # of which two backward passes are made
STOP: FinishReason = "stop"
LEAST_STEP = 0.01  # of the weights' norm; bf16 has 8 bits of precision


@dataclass(frozen=True, slots=True)
class Check:
    """One check: `problem` is None if it passed; `advice` stops nothing."""

    name: str  # D01 and so on
    title: str
    problem: str | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far two computations of one number may lie apart, in nats."""

    same: float  # the same code with and without gradient, which may choose another kernel
    reference: float  # policy and start policy before any update, mean per token
    # Another batch shape or cache. In half precision the mean per token: one improbable token alone can move by half a
    # nat there, and a leak moves nearly all of them.
    padded: float
    sampled: float  # sampling step by step against scoring at once, mean per token

    @classmethod
    def of(cls, half: bool) -> Tolerance:
        """For bf16 or fp16 products, else for fp32."""
        return cls(1e-2, 5e-3, 0.05, 0.05) if half else cls(1e-4, 1e-5, 1e-4, 1e-4)


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined: a policy, its start, and some real prompts."""

    model: Any  # LanguageModel with tokenizer, pad_id and stop_ids
    reference: Reference
    examples: Sequence[Example]
    prompts: Sequence[Prompt]
    judge: Judge
    sampling: Sampling
    group: int
    siblings: int  # completions per prompt in the run, at least `group`
    seeds: Sequence[int]
    half: bool  # bf16 or fp16 products
    objective: Callable[[Rollout], Tensor]  # the loss that an update makes of a rollout, without a KL


def examine(patient: Patient, *, trained: nn.Module, timed: Callable[[str], Any]) -> list[Check]:
    """All checks that need the policy; the caller sets the compute dtype.

    Args:
        patient: policy, start policy, prompts.
        trained: the module whose parameters with requires_grad an update would move.
        timed: as `rollouts.collect` takes it.
    """
    model = patient.model
    rollout = collect(
        model, patient.reference, patient.examples, patient.prompts, patient.judge,
        sampling=patient.sampling, group=patient.group, seeds=patient.seeds, batch=len(patient.prompts), timed=timed,
    )  # fmt: skip
    everything = list(range(len(patient.prompts)))
    query = rollout.queries(everything)
    limit = Tolerance.of(patient.half)

    def scored(target: Rollout = rollout, asked: Query = query) -> Tensor:
        return model.logprobs(  # type: ignore[no-any-return]
            asked, target.response, target.mask, temperature=patient.sampling.temperature, sampleable=True
        )

    few = everything[:FEW]  # enough where one row would show the fault
    some, here = rollout.queries(few), rollout.rows(few)

    def scored_few(asked: Query) -> Tensor:
        return model.logprobs(  # type: ignore[no-any-return]
            asked, rollout.response[here], rollout.mask[here], temperature=patient.sampling.temperature, sampleable=True
        )

    with torch.no_grad():
        plain = scored()
        once, again, repeated = scored_few(some), scored_few(some), scored_few(_repeated(some, rollout.group))
    inside = rollout.mask[here]
    found = [
        *_ids(model, rollout),
        *_stops(model, rollout),
        _same_ids(patient, rollout),
        _near("D06", "sampled distribution = scored distribution", rollout.sampled_logprobs, plain, rollout.mask,
              limit.sampled, "sampled and scored log-probs differ by {x:.2g} nats per token: a generation setting "
              "changes the distribution", mean=True),
        _near("D08", "dropout is off", once, again, inside, 0.0,
              "two forwards differ by {x:.2g} nats: dropout or another random part is active"),
        _near("D10", "reference = start policy", plain, rollout.ref_logprobs, rollout.mask, limit.reference,
              "KL to the reference is {x:.2g} nats per token before any update: it is not the start policy", mean=True),
        _reference(patient.reference, trained),
        _alone(patient, rollout, plain, limit),
        _near("D13", "shared prompt = repeated prompt", once, repeated, inside, limit.padded,
              "shared-prompt log-probs differ by {x:.2g} nats from the repeated path; report the architecture",
              mean=patient.half),
        _texts(model, rollout),
        _spread(rollout, patient.siblings),
    ]  # fmt: skip
    part = rollout.part(everything[:GRADIENT_PROMPTS])
    with torch.no_grad():
        before = scored(part, part.query)  # not rows of `plain`: other neighbours, other rounding
    return found + _gradients(patient, trained, lambda: scored(part, part.query), before, part, limit)


def _repeated(query: Query, group: int) -> Query:
    return Query(query.ids.repeat_interleave(group, 0), query.mask.repeat_interleave(group, 0))


def _near(  # noqa: PLR0913  one line of a table each
    name: str, title: str, one: Tensor, other: Tensor, mask: Tensor, limit: float, message: str, *, mean: bool = False
) -> Check:
    gaps = (one - other).abs()[mask]
    gap = float(gaps.mean() if mean else gaps.max()) if len(gaps) else 0.0
    return Check(name, title, None if gap <= limit else message.format(x=gap))


def _ids(model: Any, rollout: Rollout) -> list[Check]:
    same = model.pad_id in model.stop_ids
    first = int((~rollout.mask[:, 0]).sum())
    known = len(model.tokenizer)
    inside = rollout.response[rollout.mask]
    strange = inside[(inside >= known) | (inside == model.pad_id)]
    return [
        Check("D01", "pad is no stop token", None if not same else
              f"pad and EOS share id {model.pad_id}: the stop action would be masked. Set a separate pad token"),
        Check("D02", "first token is an action", None if not first else f"first token is masked on {first} rows"),
        Check("D07", "every sampled id is a token", None if not len(strange) else
              f"id {int(strange[0])} has no token; the logit rows behind the tokenizer must be masked in both paths"),
    ]  # fmt: skip


def _stops(model: Any, rollout: Rollout) -> list[Check]:
    is_stop = torch.isin(rollout.response, torch.tensor(list(model.stop_ids), device=rollout.response.device))
    ended = torch.tensor([reason == "stop" for reason in rollout.finish], device=is_stop.device)
    outside = int((ended & ~(is_stop & rollout.mask).any(1)).sum())
    share = 1 - float(ended.float().mean())
    return [
        Check("D03", "stop token is inside the mask", None if not outside else
              f"EOS is outside the mask on {outside} of {int(ended.sum())} ended rows: stopping would not be learned"),
        Check("D04", "completions end by themselves", None if share <= MAX_TRUNCATED else
              f"{share:.0%} of rows hit the cap of {rollout.mask.shape[1]} tokens: raise max_completion_length "
              "or fine-tune the start policy first"),
    ]  # fmt: skip


def _same_ids(patient: Patient, rollout: Rollout) -> Check:
    """The ids that will be scored are those that sampling gives, not a text that was tokenised again."""
    sampled = patient.model.sample(rollout.query, patient.sampling, seeds=patient.seeds, group=patient.group)
    same = ids_digest(sampled.response, sampled.mask) == ids_digest(rollout.response, rollout.mask)
    return Check("D05", "scored ids = sampled ids", None if same else
                 "the ids to be scored are not those that were sampled: was a completion tokenised again?")  # fmt: skip


def _reference(reference: Reference, trained: nn.Module) -> Check:
    moving = {p.data_ptr(): name for name, p in trained.named_parameters() if p.requires_grad}
    bad = None
    if reference.kind == "model":
        for name, parameter in reference.model.module.named_parameters():
            if parameter.requires_grad or parameter.data_ptr() in moving:
                bad = name
                break
    else:
        names = [name for name, p in trained.named_parameters() if p.requires_grad and ".reference." in name]
        bad = names[0] if names else None
    return Check("D11", "reference is frozen", None if bad is None else
                 f"reference parameter {bad} would move with the policy")  # fmt: skip


def _alone(patient: Patient, rollout: Rollout, plain: Tensor, limit: Tolerance) -> Check:
    """The shortest prompt's first row, encoded and scored without its neighbours and their padding."""
    shortest = min(range(len(patient.prompts)), key=lambda i: patient.model.count_tokens(patient.prompts[i].messages))
    row = shortest * rollout.group
    length = int(rollout.lengths[row])
    with torch.no_grad():
        alone = patient.model.logprobs(
            patient.model.encode([patient.prompts[shortest]]), rollout.response[row : row + 1, :length],
            rollout.mask[row : row + 1, :length], temperature=patient.sampling.temperature, sampleable=True,
        )  # fmt: skip
    return _near("D12", "padding changes nothing", alone[0], plain[row, :length], rollout.mask[row, :length],
                 limit.padded, f"padding leaks: {{x:.2g}} nats on row {row} (padding side or position ids)",
                 mean=patient.half)  # fmt: skip


def _texts(model: Any, rollout: Rollout) -> Check:
    specials = [token for token in model.tokenizer.all_special_tokens if len(token) > 1]
    found = next((token for token in specials for text in rollout.texts if token in text), None)
    return Check("D20", "rewards see the completion only", None if found is None else
                 f"reward input contains {found}: score the completion's text only")  # fmt: skip


def _spread(rollout: Rollout, siblings: int) -> Check:
    """D19. Where g siblings are equal with probability q, each is the first one's equal with about q^(1 / (g - 1))."""
    rewards, valid, group = rollout.rewards, rollout.valid, rollout.group
    problem = None
    if not bool(torch.isfinite(rewards).all()) or not bool(valid.any()):
        problem = "rewards are not finite on the start policy's completions"
    elif group == 1 and len(rewards) > 1 and bool((rewards[valid] == rewards[valid][0]).all()):
        problem = "all completions have equal rewards: nothing to learn here; raise temperature"
    elif group > 1:
        equal = float(equal_rewards(rewards, group, valid).float().mean()) ** ((siblings - 1) / (group - 1))
        if equal > 1 - MIN_SPREAD:
            problem = (
                f"about {equal:.0%} of groups have equal rewards: nothing to learn here; raise temperature or "
                "num_generations"
            )
    return Check("D19", "rewards differ within groups", problem)


def _gradients(
    patient: Patient, trained: nn.Module, score: Callable[[], Tensor], plain: Tensor, rollout: Rollout, limit: Tolerance
) -> list[Check]:
    """D09, D14, D16 and D17 from two backward passes; the weights are put back bit for bit."""
    names = [(name, p) for name, p in trained.named_parameters() if p.requires_grad]
    wanted = _better_and_worse(rollout)
    _forget(names)
    logprobs = score()
    ratio = float((logprobs.detach() - plain).abs()[rollout.mask].max())
    (wanted[:, None] * logprobs).sum().backward()  # type: ignore[no-untyped-call]
    without = [name for name, p in names if p.grad is None]
    frozen = [name for name, p in trained.named_parameters() if not p.requires_grad and p.grad is not None]
    broken = [name for name, p in names if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    checks = [
        Check("D09", "ratio is 1 before any update", None if ratio <= limit.same else
              f"log-probs with and without gradient differ by {ratio:.2g} nats: old and new come from "
              "different code or weights"),
        Check("D14", "gradients are finite", None if not broken else
              f"{broken[0]} has a gradient that is not finite; use bf16: auto or false"),
        Check("D16", "gradients reach what is trained", None if not without and not frozen else
              (f"{without[0]} is trainable but got no gradient" if without else f"{frozen[0]} is frozen but got one")),
    ]  # fmt: skip
    if not broken:
        uphill = [torch.zeros_like(p) if p.grad is None else p.grad for _, p in names]
        _forget(names)
        known = replace(
            rollout, rewards=wanted, valid=torch.ones_like(rollout.valid), finish=tuple(STOP for _ in wanted),
            old_logprobs=plain, values=torch.zeros_like(plain),
        )  # fmt: skip
        patient.objective(known).backward()  # type: ignore[no-untyped-call]
        problem = _moves(names, uphill, lambda: float((wanted[:, None] * (score() - plain)).sum()))
        checks.append(Check("D17", "a step moves the policy the right way", problem))
    _forget(names)
    return checks


def _forget(names: Sequence[tuple[str, nn.Parameter]]) -> None:
    for _, parameter in names:
        parameter.grad = None


def _better_and_worse(rollout: Rollout) -> Tensor:
    """(B,) rewards that say which completions must become likelier: drawn, with mean 0 over each group."""
    drawn = torch.randn(len(rollout.texts), generator=torch.Generator().manual_seed(0)).to(rollout.response.device)
    table = drawn.reshape(-1, rollout.group if rollout.group > 1 else len(drawn))
    return (table - table.mean(1, keepdim=True)).reshape(-1)


@torch.no_grad()
def _moves(
    names: Sequence[tuple[str, nn.Parameter]], uphill: Sequence[Tensor], gain_of: Callable[[], float]
) -> str | None:
    """A small step down the loss must make better completions likelier and worse ones less likely.

    `uphill` is the gradient of that gain; the step is as long as gains 2 nats, were the model linear, and not so short
    that bf16 products round it away.
    """
    moved = [(p, p.grad) for _, p in names if p.grad is not None]
    slope = -sum(
        (float((p.grad * up).sum()) for (_, p), up in zip(names, uphill, strict=True) if p.grad is not None), 0.0
    )
    if slope > 0:
        saved = [p.detach().clone() for p, _ in moved]
        least = LEAST_STEP * torch.nn.utils.get_total_norm(saved) / torch.nn.utils.get_total_norm([g for _, g in moved])
        for parameter, gradient in moved:
            parameter.sub_(gradient * max(2 / slope, float(least)))
        torch.clear_autocast_cache()  # it holds the weights as they were
        slope = gain_of()
        for (parameter, _), old in zip(moved, saved, strict=True):
            parameter.copy_(old)
        torch.clear_autocast_cache()
    return None if slope > 0 else f"update moves the policy the wrong way ({slope:.2g}): sign of loss or advantage"


def failures(checks: Sequence[Check]) -> list[str]:
    """One line per failed check."""
    return [f"{check.name}: {check.problem}" for check in checks if check.problem]
