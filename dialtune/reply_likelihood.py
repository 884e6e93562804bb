"""A model asked how likely each true reply is: under its own context, under its last turn alone, under those of others.

Each context is read once for all replies of like length that are tried behind it, its own and those for which it is a
wrong one: that is what `LanguageModel.logprobs` does with a group, in either family.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dialtune.errors import ConfigError
from dialtune.metrics.base import Array, Metric
from dialtune.metrics.contexts import context_turns, last_turn_only, wrong_contexts
from dialtune.metrics.likelihood import N_WRONG, ReplyLikelihood, ReplyLogprobs
from dialtune.models.base import LanguageModel
from dialtune.types import Example, Message, Prompt

Ask = Callable[[Sequence[Example]], list[Prompt]]  # examples to the prompts that the model is given for them
Progress = Callable[[int, int], None]  # contexts done, contexts in all; one that is read twice counts twice

MAX_TOKENS = 256  # of a reply; longer ones are cut, as training cuts them by default
PADDING = 1.25  # a batch grows while it computes at most so many times the tokens of its contexts one by one


def bind_likelihoods(
    metrics: Sequence[Metric],
    model: LanguageModel,
    examples: Sequence[Example],
    ask: Ask,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[Metric]:
    """The metrics, those that need the model's likelihoods bound to them; without any the model is not asked.

    Args:
        metrics: any, returned in this order.
        model: any family; it is put in evaluation mode for the call.
        examples: ids unique.
        ask: how these examples become prompts; also used for the same examples with the last turn alone.
        batch_size: contexts per forward at most, >= 1.
        progress: called after each batch.
    """
    unbound = [isinstance(metric, ReplyLikelihood) and metric.found is None for metric in metrics]
    if not any(unbound):
        return list(metrics)
    found = reply_logprobs(model, examples, ask, batch_size=batch_size, progress=progress)
    return [
        metric.by(found) if isinstance(metric, ReplyLikelihood) and metric.found is None else metric
        for metric in metrics
    ]


def reply_logprobs(
    model: LanguageModel,
    examples: Sequence[Example],
    ask: Ask,
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ReplyLogprobs:
    """What the model says of each example's first reference; arguments as `bind_likelihoods`.

    A row without a reference, or without a turn before it, is not asked about. Where the prompt of the last turn alone
    is the whole prompt, there is nothing to compare and `last` is NaN.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size: got {batch_size}; allowed: >= 1")
    limit = _most_tokens(model)
    replies = [_reply_ids(model, example, limit) for example in examples]
    asked = [row for row, ids in enumerate(replies) if ids]
    trials = _trials(examples, asked, ask)
    sums = np.full((len(examples), N_WRONG + 2), np.nan)
    was_training = model.module.training
    model.module.eval()
    try:
        for cells, values in _asked(model, trials, replies, batch_size, progress):
            sums[tuple(np.array(cells).T)] = values
    finally:
        model.module.train(was_training)
    lengths = np.array([float(len(ids)) for ids in replies])
    digest = hashlib.sha256(repr(replies).encode()).hexdigest()[:8]
    return ReplyLogprobs(sums[:, TRUE], sums[:, LAST], sums[:, :N_WRONG], lengths, digest, limit)


def _most_tokens(model: LanguageModel) -> int:
    """The longest reply that fits behind any prompt: a model's limit on prompts leaves a third of it at least."""
    return MAX_TOKENS if model.max_prompt_tokens is None else min(MAX_TOKENS, model.max_prompt_tokens // 3)


def _reply_ids(model: LanguageModel, example: Example, limit: int) -> list[int]:
    """The ids of the first reference; none if there is none, or nothing that it answers."""
    text = example.references[0].strip() if example.references else ""
    return model.response_ids(text)[:limit] if text and context_turns(example) else []


LAST, TRUE = N_WRONG, N_WRONG + 1  # columns of the table of sums, after those of the wrong contexts


@dataclass(frozen=True)
class _Trial:
    """A prompt and the replies to try behind it: (row of the reply, column of the table)."""

    messages: tuple[Message, ...]
    replies: list[tuple[int, int]]


def _trials(examples: Sequence[Example], asked: Sequence[int], ask: Ask) -> list[_Trial]:
    """Every context with all replies to try behind it, then the last turns of those that have more than one."""
    tried: dict[int, list[tuple[int, int]]] = {row: [(row, TRUE)] for row in asked}
    for row, others in enumerate(wrong_contexts(examples, N_WRONG)):
        for place, other in enumerate(others):
            if row in tried and other in tried:
                tried[other].append((row, place))
    whole = ask([examples[row] for row in asked])
    short = ask([last_turn_only(examples[row]) for row in asked])
    found = [_Trial(prompt.messages, tried[row]) for row, prompt in zip(asked, whole, strict=True)]
    lone = [
        _Trial(part.messages, [(row, LAST)])
        for row, part, prompt in zip(asked, short, whole, strict=True)
        if part.messages != prompt.messages
    ]
    return found + lone


@torch.inference_mode()
def _asked(
    model: LanguageModel,
    trials: Sequence[_Trial],
    replies: Sequence[Sequence[int]],
    batch_size: int,
    progress: Progress | None,
) -> Iterator[tuple[list[tuple[int, int]], Array]]:
    """(cells, sums) batch by batch."""
    parts = [
        (query, cells)
        for trial in trials
        for query in [model.query_ids(trial.messages)]
        for cells in _of_like_length(len(query), trial.replies, replies)
    ]
    shapes = [_Shape(len(query), [len(replies[row]) for row, _ in cells]) for query, cells in parts]
    done = 0
    for batch in _batches(shapes, batch_size):
        group = max(len(parts[i][1]) for i in batch)
        cells: list[tuple[int, int] | None] = []
        for i in batch:
            cells += [*parts[i][1], *[None] * (group - len(parts[i][1]))]
        responses = [replies[cell[0]] if cell else [] for cell in cells]
        ready = model.batch([parts[i][0] for i in batch], responses)
        sums = model.logprobs(ready.query, ready.response, ready.mask).double().sum(1).cpu().numpy()
        kept = [place for place, cell in enumerate(cells) if cell]
        yield [cell for cell in cells if cell], sums[kept]
        done += len(batch)
        if progress:
            progress(done, len(parts))


def _of_like_length(
    n_query: int, cells: Sequence[tuple[int, int]], replies: Sequence[Sequence[int]]
) -> list[list[tuple[int, int]]]:
    """The replies behind one context in parts that are computed apart, so that tokens and padding are fewest in all.

    Each part costs the context's tokens and its replies, all padded to the longest of them: one long reply among short
    ones is better off alone. Parts are runs of the replies by length, found by dynamic programming over their ends.
    """
    order = sorted(cells, key=lambda cell: len(replies[cell[0]]))
    cost, start = [0], [0]  # of the first k replies, and where the last part of these begins
    for end in range(1, len(order) + 1):
        longest = len(replies[order[end - 1][0]])
        options = [(cost[begin] + n_query + (end - begin) * longest, begin) for begin in range(end)]
        best = min(options)
        cost.append(best[0])
        start.append(best[1])
    parts, end = [], len(order)
    while end:
        parts.append(order[start[end] : end])
        end = start[end]
    return parts


@dataclass(frozen=True)
class _Shape:
    """Tokens of a prompt and of each reply behind it."""

    query: int
    replies: list[int]


def _batches(shapes: Sequence[_Shape], batch_size: int) -> Iterator[list[int]]:
    """Trials of like shape, the largest first; every one once."""
    order = sorted(range(len(shapes)), key=lambda i: (-(max(shapes[i].replies) // 8), -shapes[i].query, i))
    batch: list[int] = []
    for i in order:
        wider = [shapes[j] for j in (*batch, i)]
        if batch and (len(batch) == batch_size or _padded(wider) > PADDING * sum(_padded([one]) for one in wider)):
            yield batch
            batch = []
        batch = [*batch, i]
    if batch:
        yield batch


def _padded(shapes: Sequence[_Shape]) -> int:
    group, longest = max(len(s.replies) for s in shapes), max(max(s.replies) for s in shapes)
    return len(shapes) * (max(s.query for s in shapes) + group * longest)
