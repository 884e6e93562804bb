"""One decoding loop for both families: a step function gives the next logits, this file picks tokens from them.

Each row draws from its own seed, so a completion does not depend on what else is in the batch (exactly so in fp32;
bf16 rounding may move near-ties).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dialtune.models.base import Sampled, Sampling, mask_after_stop
from dialtune.seeds import seed_for
from dialtune.types import FinishReason

Step = Callable[[Tensor], Tensor]  # last tokens (A,) -> next logits (A,V)
Keep = Callable[[Tensor], None]  # rows (A',) of the current batch that go on; the others are dropped from the caches


def row_uniforms(seeds: Sequence[int], group: int, steps: int) -> Tensor:
    """(B,steps) float64 in [0,1): one number per row and step, a function of (seed, row in group) alone."""
    rows = []
    for seed in seeds:
        for member in range(group):
            generator = torch.Generator().manual_seed(seed_for(seed, "sample", 0, member))
            rows.append(torch.rand(steps, generator=generator, dtype=torch.float64))
    return torch.stack(rows) if rows else torch.zeros(0, steps, dtype=torch.float64)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """(B,V) with everything outside the top k, then outside the smallest set of mass >= top_p, at -inf."""
    if top_k and top_k < logits.shape[-1]:
        floor = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        drop = (before >= top_p).scatter(-1, order, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def pick(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row and its log-prob under the distribution it came from.

    Sampling inverts the cumulative distribution in float64, so one uniform number decides a token.

    Args:
        logits: (B,V) fp32.
        uniforms: (B,) float64 in [0,1); unused when greedy.
    Returns:
        ids (B,) int64 and logprobs (B,) fp32.
    """
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
        return ids, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    scaled = filter_logits(logits / sampling.temperature, sampling.top_k, sampling.top_p)
    logprobs = scaled.log_softmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    target = (uniforms[:, None] * cumulative[:, -1:]).to(cumulative.device)
    ids = torch.searchsorted(cumulative, target, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]


def decode_loop(  # noqa: PLR0913  everything a step needs is stated by the model
    logits: Tensor,
    step: Step,
    keep: Keep,
    sampling: Sampling,
    uniforms: Tensor,
    *,
    stop_ids: Sequence[int],
    forbidden: Tensor | None,
    pad_id: int,
) -> Sampled:
    """Sample until every row has stopped or `max_new_tokens` is reached.

    Rows that have stopped leave the batch once a quarter of it is done, so that the last long row does not pay for
    its finished neighbours.

    Args:
        logits: (B,V) next-token logits after the prompt.
        step: feeds the chosen tokens of the rows still in the batch, gives their next logits.
        keep: drops finished rows from whatever `step` caches.
        uniforms: (B,max_new_tokens) float64.
        stop_ids: any of them ends a row and belongs to it.
        forbidden: (V,) bool, ids that are no tokens (padding, rows beyond the tokenizer), or None.
        pad_id: fills what follows the stop token.
    """
    n_rows, device = logits.shape[0], logits.device
    response = torch.full((n_rows, sampling.max_new_tokens), pad_id, dtype=torch.int64, device=device)
    logprobs = torch.zeros(n_rows, sampling.max_new_tokens, device=device)
    stops = torch.tensor(list(stop_ids), device=device)
    rows = torch.arange(n_rows, device=device)  # which row of the result each row of the batch is
    done = torch.zeros(n_rows, dtype=torch.bool, device=device)
    n_steps = 0
    for position in range(sampling.max_new_tokens):
        scores = logits.float()
        if forbidden is not None:
            scores = scores.masked_fill(forbidden, -torch.inf)
        ids, logprob = pick(scores, uniforms[rows.cpu(), position], sampling)
        alive = ~done
        response[rows[alive], position] = ids[alive]
        logprobs[rows[alive], position] = logprob[alive]
        n_steps = position + 1
        done = done | torch.isin(ids, stops)
        n_done = int(done.sum())
        if n_done == len(rows) or n_steps == sampling.max_new_tokens:
            break
        if 4 * n_done >= len(rows):
            going = (~done).nonzero()[:, 0]
            keep(going)
            rows, ids, done = rows[going], ids[going], done[going]
        logits = step(ids)
    response, logprobs = response[:, :n_steps], logprobs[:, :n_steps]
    mask = mask_after_stop(response, stop_ids)
    return Sampled(response, mask, logprobs * mask, finish_reasons(response, stop_ids))


def finish_reasons(response: Tensor, stop_ids: Sequence[int]) -> tuple[FinishReason, ...]:
    """`stop` for a row (of (B,R)) that holds a stop token, `length` for one that ran to the cap."""
    ended = torch.isin(response, torch.tensor(list(stop_ids), device=response.device)).any(1)
    return tuple("stop" if flag else "length" for flag in ended.tolist())


def beam_search(module: Any, inputs: dict[str, Tensor], sampling: Sampling, **special: Any) -> Tensor:
    """transformers' beam search under our settings only: the new ids (P,R), padded after the stop token.

    `special` holds pad, stop and decoder start ids. The module's own generation settings are set aside for the call.
    """
    from transformers import GenerationConfig

    settings: Any = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=sampling.max_new_tokens,
        num_beams=sampling.num_beams,
        length_penalty=sampling.length_penalty,
        do_sample=False,
        early_stopping=False,
        **special,
    )
    stored, module.generation_config = module.generation_config, settings
    try:
        ids: Tensor = module.generate(**inputs, generation_config=settings)
    finally:
        module.generation_config = stored
    skip = 1 if "decoder_start_token_id" in special else inputs["input_ids"].shape[1]
    return ids[:, skip:]
