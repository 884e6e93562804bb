"""One decoding loop for both families: a step function gives the next logits, this file picks tokens from them.

Each row draws from its own seed, so a completion does not depend on what else is in the batch (exactly so in fp32;
bf16 rounding may move near-ties).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dialtune.models.base import Sampled, Sampling, mask_after_stop
from dialtune.seeds import seed_for
from dialtune.types import FinishReason

BLOCK = 64  # ids whose weights are added up first when a token is drawn
ONE_TOKEN = "dialtune_one_token"  # our attention's name among transformers'

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

    Sampling inverts the cumulative distribution, so one uniform number decides a token.

    Args:
        logits: (B,V) fp32.
        uniforms: (B,) float64 in [0,1); unused when greedy.
    Returns:
        ids (B,) int64 and logprobs (B,) fp32.
    """
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
        return ids, logits.log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    scaled = logits if sampling.temperature == 1 else logits / sampling.temperature
    logprobs = filter_logits(scaled, sampling.top_k, sampling.top_p).log_softmax(-1)
    ids = invert(logprobs.exp(), uniforms.to(logprobs.device))
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """The first id (B,) of each row up to which more than the share `uniforms` of the row's weight lies.

    First the block of ids is found, then the id in it, so that float64 sums run over V / BLOCK + BLOCK numbers a row
    rather than over V, which took longer than the softmax. An id of weight 0 is never taken.

    Args:
        weights: (B,V) float, >= 0, something above 0 in each row.
        uniforms: (B,) float64 in [0,1).
    """
    missing = -weights.shape[-1] % BLOCK
    padded = nn.functional.pad(weights, (0, missing)) if missing else weights
    blocks = padded.reshape(len(padded), -1, BLOCK)
    block, rest = _share(blocks.sum(-1), uniforms)
    inside = blocks.gather(1, block[:, None, None].expand(-1, 1, BLOCK))[:, 0]
    return block * BLOCK + _share(inside, rest)[0]


def _share(weights: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Where each row's `shares` (B,) of its weights (B,M) end: the index (B,), and the share within that weight."""
    weights = weights.double()
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    target = torch.minimum(shares * total, total.nextafter(torch.zeros_like(total)))  # never behind the last weight
    index = torch.searchsorted(cumulative, target[:, None], right=True)
    taken = weights.gather(-1, index)
    start = cumulative.gather(-1, index) - taken
    return index[:, 0], ((target[:, None] - start) / taken).clamp(0, 1)[:, 0]


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


@contextmanager
def one_token_attention(config: Any, device: torch.device) -> Iterator[None]:
    """Within, a transformers model with this `config` attends from single tokens by plain products in fp32.

    On a CPU only: its fused attention takes 4 to 8 times as long in bf16 when each head has one query.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    before = config._attn_implementation
    if device.type != "cpu" or before != "sdpa":
        yield
        return
    AttentionInterface.register(ONE_TOKEN, attend_from_one)
    AttentionMaskInterface.register(ONE_TOKEN, sdpa_mask)
    config._attn_implementation = ONE_TOKEN
    try:
        yield
    finally:
        config._attn_implementation = before


def attend_from_one(  # noqa: PLR0913  the signature is transformers'
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """softmax(q K^T * scaling + position_bias + mask) V in fp32; anything but one query a head is left to transformers.

    Args:
        module: the attention layer.
        query: (B,H,1,D).
        key, value: (B,K,T,D), H a multiple of K: a key head serves its neighbours (arXiv 2305.13245).
        attention_mask: (B,1,1,T), True where a key counts, or a float that is added; None: all count.
        scaling: None is D ** -0.5.
        position_bias: (1 or B,H,1,T), added.
        others: for transformers' own attention.
    Returns:
        (B,1,H,D) in the dtype of `query`, and no weights.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    per_head = attention_mask is not None and attention_mask.shape[1] > 1
    if query.shape[2] > 1 or per_head or others.get("dropout"):
        if position_bias is not None:
            others["position_bias"] = position_bias  # only some releases know it
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    n_rows, n_heads, _, size = query.shape
    n_kv = key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        packed = query.float().reshape(n_rows, n_kv, n_heads // n_kv, size)
        scores = packed @ key.float().transpose(-1, -2) * (size**-0.5 if scaling is None else scaling)  # (B,K,H/K,T)
        if position_bias is not None:
            scores = scores + position_bias.float().reshape(-1, n_kv, n_heads // n_kv, position_bias.shape[-1])
        if attention_mask is not None and attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, -torch.inf)
        elif attention_mask is not None:
            scores = scores + attention_mask
        found = scores.softmax(-1) @ value.float()
    return found.reshape(n_rows, 1, n_heads, -1).to(query.dtype), None


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
