"""Policy, frozen start policy and rewards → a Rollout: what was sampled, how likely it was, what it earned.

Dims: P prompts, G completions per prompt, B = P*G rows in prompt-major order, R response tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from dialtune.models.base import LanguageModel, Query, Sampling
from dialtune.models.reference import Reference
from dialtune.types import Example, FinishReason, Prompt


@dataclass(frozen=True, slots=True)
class Judged:
    """What the completions of a rollout earned."""

    rewards: Tensor  # (B,) fp32, the composite; 0 where not valid
    valid: Tensor  # (B,) bool; False leaves a row out of everything
    parts: Mapping[str, Tensor]  # name -> (B,) fp32 raw scores, NaN = does not apply
    problems: tuple[str, ...] = ()


Judge = Callable[[Sequence[Example], Sequence[str], Tensor, Sequence[FinishReason]], Judged]
"""(examples (B), completion texts (B), lengths (B,) in tokens, how each ended) → Judged."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One batch of experience; nothing in it carries a gradient."""

    example_ids: tuple[str, ...]  # P
    query: Query
    response: Tensor  # (B,R) int64, the ids that were sampled
    mask: Tensor  # (B,R) bool, the stop token counts
    sampled_logprobs: Tensor  # (B,R) fp32, seen while sampling
    ref_logprobs: Tensor  # (B,R) fp32, under the frozen start policy
    rewards: Tensor  # (B,) fp32
    valid: Tensor  # (B,) bool
    texts: tuple[str, ...]  # B
    finish: tuple[FinishReason, ...]  # B
    parts: Mapping[str, Tensor]
    old_logprobs: Tensor | None = None  # (B,R) fp32 under the policy that sampled; None: the update's own forward
    values: Tensor | None = None  # (B,R) fp32, PPO only
    last_values: Tensor | None = None  # (B,) fp32, after the last token; PPO with truncation: bootstrap only
    problems: tuple[str, ...] = ()  # rewards that could not be used, by name

    @property
    def group(self) -> int:
        """G."""
        return len(self.texts) // len(self.example_ids)

    @property
    def lengths(self) -> Tensor:
        """(B,) tokens, the stop token included."""
        return self.mask.sum(1)

    def rows(self, prompts: Sequence[int]) -> Tensor:
        """Row numbers (B',) of these prompts' groups, whole and in order."""
        start = torch.tensor(list(prompts))[:, None] * self.group
        return (start + torch.arange(self.group)).reshape(-1).to(self.response.device)

    def queries(self, prompts: Sequence[int]) -> Query:
        """The queries of some prompts, without columns that are padding in all of them."""
        chosen = torch.tensor(list(prompts), device=self.response.device)
        return Query(self.query.ids[chosen], self.query.mask[chosen]).rows(0, len(prompts))

    def part(self, prompts: Sequence[int]) -> Rollout:
        """The rollout of these prompts alone."""
        rows = self.rows(prompts)
        return replace(
            self,
            example_ids=tuple(self.example_ids[i] for i in prompts),
            query=self.queries(prompts),
            texts=tuple(self.texts[i] for i in rows.tolist()),
            finish=tuple(self.finish[i] for i in rows.tolist()),
            parts={name: part[rows] for name, part in self.parts.items()},
            **{name: tensor[rows] for name, tensor in self._fields_of_rows().items()},
        )

    def _fields_of_rows(self) -> dict[str, Any]:
        """Every field that is a tensor, a row per completion."""
        known = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in known.items() if isinstance(value, Tensor)}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name, for a checkpoint."""
        named = {"query_ids": self.query.ids, "query_mask": self.query.mask}
        named |= {f"part.{name}": part for name, part in self.parts.items()}
        named |= self._fields_of_rows()
        return {name: tensor.contiguous() for name, tensor in named.items()}

    def document(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {
            "example_ids": list(self.example_ids),
            "texts": list(self.texts),
            "finish": list(self.finish),
            "problems": list(self.problems),
        }

    @classmethod
    def restore(cls, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> Rollout:
        """From `tensors()` and `document()`."""
        rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(("query_", "part."))}
        return cls(
            query=Query(tensors["query_ids"], tensors["query_mask"]),
            parts={name.removeprefix("part."): t for name, t in tensors.items() if name.startswith("part.")},
            example_ids=tuple(document["example_ids"]),
            texts=tuple(document["texts"]),
            finish=tuple(document["finish"]),
            problems=tuple(document["problems"]),
            **rest,
        )


@torch.no_grad()
def collect(  # noqa: PLR0913  what a rollout depends on is stated by the caller
    model: LanguageModel,
    reference: Reference | None,
    examples: Sequence[Example],
    prompts: Sequence[Prompt],
    judge: Judge,
    *,
    sampling: Sampling,
    group: int,
    seeds: Sequence[int],
    batch: int,
    timed: Callable[[str], Any],
) -> Rollout:
    """Sample G completions per prompt, judge them, and score them under the start policy.

    Args:
        model: the policy, dropout off; the caller sets the compute dtype.
        reference: None leaves `ref_logprobs` zero.
        examples: P, with references and meta for the rewards.
        prompts: P, rendered.
        judge: texts to rewards.
        sampling: temperature only: anything else would sample from another distribution than is scored.
        group: G.
        seeds: P.
        batch: prompts per scoring forward.
        timed: `timed("generate")` and so on, a context manager that adds up seconds.
    """
    assert (sampling.top_p, sampling.top_k, sampling.num_beams) == (1, 0, 1)
    assert sampling.temperature > 0
    with timed("generate"):
        query = model.encode(prompts)
        sampled = model.sample(query, sampling, seeds=seeds, group=group)
        texts = tuple(model.decode(sampled.response, sampled.mask))
    with timed("reward"):
        repeated = [example for example in examples for _ in range(group)]
        judged = judge(repeated, texts, sampled.mask.sum(1).cpu(), sampled.finish)
    rollout = Rollout(
        example_ids=tuple(prompt.example_id for prompt in prompts),
        query=query,
        response=sampled.response.contiguous(),
        mask=sampled.mask,
        sampled_logprobs=sampled.logprobs,
        ref_logprobs=torch.zeros_like(sampled.logprobs),
        rewards=judged.rewards.to(query.ids.device),
        valid=judged.valid.to(query.ids.device),
        texts=texts,
        finish=sampled.finish,
        parts={name: part.to(query.ids.device) for name, part in judged.parts.items()},
        problems=judged.problems,
    )
    if reference is None:
        return rollout
    with timed("ref"):
        scored = [
            reference.logprobs(
                rollout.queries(chosen),
                rollout.response[rows],
                rollout.mask[rows],
                temperature=sampling.temperature,
            )
            for chosen in chunks(len(prompts), batch)
            for rows in (rollout.rows(chosen),)
        ]
    return replace(rollout, ref_logprobs=torch.cat(scored))


def chunks(n: int, size: int) -> list[list[int]]:
    """0..n-1 in runs of at most `size`."""
    return [list(range(start, min(start + size, n))) for start in range(0, n, size)]


def journal_rows(rollout: Rollout, number: int) -> list[dict[str, Any]]:
    """One JSON row per completion: enough to judge or score it again, and to see what was learned from."""
    rows = []
    for row, text in enumerate(rollout.texts):
        keep = rollout.mask[row]
        parts = {name: float(part[row]) for name, part in rollout.parts.items() if torch.isfinite(part[row])}
        rows.append(
            {
                "rollout": number,
                "example_id": rollout.example_ids[row // rollout.group],
                "text": text,
                "finish": rollout.finish[row],
                "token_ids": rollout.response[row][keep].tolist(),
                "logprobs": [round(value, 6) for value in rollout.sampled_logprobs[row][keep].tolist()],
                "ref_logprobs": [round(value, 6) for value in rollout.ref_logprobs[row][keep].tolist()],
                "reward": float(rollout.rewards[row]) if rollout.valid[row] else None,
                "parts": parts,
            }
        )
    return rows


def ids_digest(response: Tensor, mask: Tensor) -> str:
    """sha256 of the ids inside the mask: sampled and scored ids must have the same one."""
    flat = torch.where(mask, response, torch.full_like(response, -1)).cpu().numpy().tobytes()
    return hashlib.sha256(flat).hexdigest()
