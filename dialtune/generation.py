"""list[Prompt] → list[Completion]: batches of like length, a seed per example, the order of the prompts kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from dialtune.errors import ConfigError
from dialtune.models.base import LanguageModel, Sampling
from dialtune.seeds import seed_for
from dialtune.types import Completion, Prompt

Progress = Callable[[int, int], None]  # completions done, completions in all


def generate(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Completion]:
    """One completion per prompt, in the prompts' order.

    Prompts are batched longest first, so that padding is small and a batch that does not fit fails at once. What an
    example draws depends on (seed, example id) alone, never on its neighbours.

    Args:
        model: any family; it is put in evaluation mode for the call.
        prompts: any number; ids need not be unique.
        sampling: how to decode.
        batch_size: prompts per forward, >= 1.
        seed: any integer.
        progress: called after each batch.
    Raises:
        ConfigError: a setting is out of range.
    """
    check_sampling(sampling, batch_size)
    lengths = [model.count_tokens(prompt.messages) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-lengths[i], i))
    found: dict[int, Completion] = {}
    was_training = model.module.training
    model.module.eval()
    try:
        for batch in _chunks(order, batch_size):
            chosen = [prompts[i] for i in batch]
            found.update(zip(batch, _complete(model, chosen, sampling, seed), strict=True))
            if progress:
                progress(len(found), len(prompts))
    finally:
        model.module.train(was_training)
    return [found[i] for i in range(len(prompts))]


@torch.inference_mode()
def _complete(model: LanguageModel, prompts: Sequence[Prompt], sampling: Sampling, seed: int) -> list[Completion]:
    seeds = [seed_for(seed, "generate", 0, prompt.example_id) for prompt in prompts]
    sampled = model.sample(model.encode(prompts), sampling, seeds=seeds)
    texts = model.decode(sampled.response, sampled.mask)
    ids = [tuple(row[keep].tolist()) for row, keep in zip(sampled.response, sampled.mask, strict=True)]
    return [
        Completion(prompt.example_id, text, row, finish)
        for prompt, text, row, finish in zip(prompts, texts, ids, sampled.finish, strict=True)
    ]


def check_sampling(sampling: Sampling, batch_size: int = 1) -> None:
    """Refuse what cannot be decoded, all problems at once.

    Raises:
        ConfigError: names each setting with its value and range.
    """
    rules = (
        ("batch_size", batch_size, batch_size >= 1, ">= 1"),
        ("max_new_tokens", sampling.max_new_tokens, sampling.max_new_tokens >= 1, ">= 1"),
        ("temperature", sampling.temperature, 0 <= sampling.temperature < float("inf"), ">= 0 (0 is greedy)"),
        ("top_p", sampling.top_p, 0 < sampling.top_p <= 1, "in (0, 1]"),
        ("top_k", sampling.top_k, sampling.top_k >= 0, ">= 0 (0 is off)"),
        ("num_beams", sampling.num_beams, sampling.num_beams >= 1, ">= 1"),
        ("temperature", sampling.temperature, sampling.num_beams == 1 or sampling.temperature == 0, "0 with beams"),
    )
    problems = [f"generation.{name}: got {value}; allowed: {allowed}" for name, value, ok, allowed in rules if not ok]
    if problems:
        raise ConfigError(problems)


def _chunks(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (items[start : start + size] for start in range(0, len(items), size))
