"""Decoder-only models (SmolLM2, Llama, Qwen, GPT-2): the response runs behind the query, through the chat template."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dialtune.models.base import (
    Query,
    Sampled,
    Sampling,
    TrainingBatch,
    forbidden_ids,
    mask_after_stop,
    only_trained_adapter,
    pad_left,
    pad_right,
    recomputes,
    scatter_rows,
    token_logprobs,
)
from dialtune.models.decoding import beam_search, decode_loop, finish_reasons, one_token_attention, row_uniforms
from dialtune.models.shared_prefix import SharedPrefixCache
from dialtune.models.text import choose_pad, neutralise, plain_text, special_strings, stop_ids_of
from dialtune.results import ModelInfo
from dialtune.types import Message, Prompt

_logger = logging.getLogger(__name__)
_PROBE = "dialtuneprobe"
# Query and response share a decoder's positions: room for a response of the default max_completion_length, but at most
# a quarter. GPT-2, whose positions are a table of 1,024, cannot run past them.
_RESPONSE_ROOM = 256


class CausalLM:
    """A `LanguageModel` over any transformers decoder-only model; queries are padded left.

    One completion per prompt runs as one compact sequence, right-padded, which needs no attention mask at all. Several
    completions share one forward of their prompt through its key/value cache, gradients included.
    """

    peft_task = "CAUSAL_LM"

    def __init__(self, module: Any, tokenizer: Any, info: ModelInfo, *, shared_prompt: bool = True) -> None:
        self._module, self.tokenizer, self._info = module, tokenizer, info
        self.name, self.shared_prompt = info.name, shared_prompt
        self.core: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # adapters inside
        self._specials = special_strings(tokenizer)
        eos_ids = stop_ids_of(tokenizer, self.core)
        turn_end = self._turn_end_id(eos_ids)
        self.stop_ids = (turn_end, *(index for index in eos_ids if index != turn_end))
        self.pad_id = choose_pad(tokenizer, self.stop_ids)

    @property
    def info(self) -> ModelInfo:
        return self._info

    @property
    def module(self) -> nn.Module:
        return self._module  # type: ignore[no-any-return]

    @property
    def device(self) -> torch.device:
        return self.core.device  # type: ignore[no-any-return]

    @property
    def hidden_size(self) -> int:
        return int(self.core.get_output_embeddings().weight.shape[1])

    @property
    def max_prompt_tokens(self) -> int | None:
        limit = getattr(self.core.config, "max_position_embeddings", None)
        return None if limit is None else int(limit) - min(_RESPONSE_ROOM, int(limit) // 4)

    @property
    def one_sequence(self) -> bool:
        return True

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.query_ids(messages))

    def encode(self, prompts: Sequence[Prompt]) -> Query:
        return Query(*pad_left([self.query_ids(prompt.messages) for prompt in prompts], self.pad_id, self.device))

    def batch(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> TrainingBatch:
        query = Query(*pad_left(queries, self.pad_id, self.device))
        return TrainingBatch(query, *pad_right(responses, self.pad_id, self.device))

    def training_batch(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> TrainingBatch:
        queries = [self.query_ids(prompt.messages) for prompt in prompts]
        return self.batch(queries, [self.response_ids(target) for _, target in zip(prompts, targets, strict=True)])

    def response_ids(self, target: str) -> list[int]:
        """A target's tokens and the token that ends the assistant's turn."""
        text = neutralise(target, self._specials)
        # Without a template the prompt ends in a bare word; most vocabularies attach the space to what follows.
        text = text if self.tokenizer.chat_template else f" {text}"
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.stop_ids[0]]

    def decode(self, response: Tensor, mask: Tensor) -> list[str]:
        rows = [row[keep].tolist() for row, keep in zip(response, mask, strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(self.tokenizer.decode([index])) for index in ids]

    def states(self, query: Query, response: Tensor, mask: Tensor) -> Tensor:
        group = response.shape[0] // query.ids.shape[0]
        if group > 1 and self.shared_prompt and not recomputes(self.core):
            return self._shared_states(query, response, group)
        if group > 1:
            query = Query(query.ids.repeat_interleave(group, 0), query.mask.repeat_interleave(group, 0))
        return self._compact_states(query, response, mask)

    def logprobs(
        self, query: Query, response: Tensor, mask: Tensor, *, temperature: float = 1.0, sampleable: bool = False
    ) -> Tensor:
        states = self.states(query, response, mask)
        return self.score(states, response, mask, temperature=temperature, sampleable=sampleable)

    def score(
        self, states: Tensor, response: Tensor, mask: Tensor, *, temperature: float = 1.0, sampleable: bool = False
    ) -> Tensor:
        forbidden = self._forbidden() if sampleable else None
        picked = token_logprobs(
            self.core.get_output_embeddings(),
            states[mask],
            response[mask],
            temperature=temperature,
            forbidden=forbidden,
        )
        return scatter_rows(picked, mask)

    @torch.no_grad()
    def sample(self, query: Query, sampling: Sampling, *, seeds: Sequence[int], group: int = 1) -> Sampled:
        if sampling.num_beams > 1:
            return self._beam(query, sampling)
        cache, last = self._prefill(query)
        head = self.core.get_output_embeddings()
        behind = self._behind(query, cache, group)

        def step(ids: Tensor) -> Tensor:
            return head(behind.states(ids[:, None])[:, -1])  # type: ignore[no-any-return]

        keep = behind.keep
        logits = head(last).repeat_interleave(group, 0)
        uniforms = row_uniforms(seeds, group, sampling.max_new_tokens)
        with one_token_attention(self.core.config, self.device):
            return decode_loop(
                logits,
                step,
                keep,
                sampling,
                uniforms,
                stop_ids=self.stop_ids,
                forbidden=self._forbidden(),
                pad_id=self.pad_id,
            )

    def save(self, folder: Path) -> None:
        self._module.save_pretrained(folder, **only_trained_adapter(self._module))
        self.tokenizer.save_pretrained(folder)

    @torch.no_grad()
    def probe_logits(self) -> tuple[Tensor, Tensor]:
        """(4,V) logits of four tokens: by the whole model, and by the states-then-head path that scores."""
        ids = torch.arange(4, device=self.device)[None]
        ours = self.core.get_output_embeddings()(self.core.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        return self.core(input_ids=ids, use_cache=False).logits[0], ours[0]

    def _render(self, messages: Sequence[dict[str, str]], *, generate: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        return text

    def query_ids(self, messages: Sequence[Message]) -> list[int]:
        safe = [Message(m.role, neutralise(m.content, self._specials)) for m in messages]
        if not self.tokenizer.chat_template:
            plain: list[int] = self.tokenizer(plain_text(safe))["input_ids"]
            return plain
        text = self._render([{"role": m.role, "content": m.content} for m in safe], generate=True)
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _turn_end_id(self, eos_ids: tuple[int, ...]) -> int:
        """The id that the chat template writes after an assistant's text, else the end-of-sequence id."""
        if not self.tokenizer.chat_template:
            return eos_ids[0]
        turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _PROBE}]
        tail = self._render(turns, generate=False).rpartition(_PROBE)[2]
        ids = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        specials = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return next((index for index in ids if index in specials), eos_ids[0])

    def _prefill(self, query: Query) -> tuple[Any, Tensor]:
        """The prompts' key/value cache, and the state (P,D) from which the first response token is predicted."""
        from transformers import DynamicCache

        cache = DynamicCache()
        positions = (query.mask.long().cumsum(1) - 1).clamp(min=0)
        out = self.core.base_model(
            input_ids=query.ids,
            attention_mask=query.mask.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        return cache, out.last_hidden_state[:, -1]

    def _shared_states(self, query: Query, response: Tensor, group: int) -> Tensor:
        cache, last = self._prefill(query)
        first = last.repeat_interleave(group, 0)[:, None]
        if response.shape[1] == 1:
            return first
        return torch.cat([first, self._behind(query, cache, group).states(response[:, :-1])], dim=1)

    def _behind(self, query: Query, cache: Any, group: int) -> _SharedPrompts | _RepeatedPrompts:
        """What runs tokens behind prompts that are in the cache; gradients of a group add up in its one prompt."""
        if group > 1 and self._can_share:
            return _SharedPrompts(self.core, query, cache, group)
        return _RepeatedPrompts(self.core, query, cache, group)

    @cached_property
    def _can_share(self) -> bool:
        """Whether this architecture's attention is the plain one; asked of two short prompts, once."""
        with torch.no_grad():
            spread = self.core.get_output_embeddings().weight.shape[0] // 11  # not only the first, often special, ids
            ids = (torch.arange(10, device=self.device) * spread + spread // 2).reshape(2, 5)
            query = Query(ids[:, :3], torch.ones_like(ids[:, :3], dtype=torch.bool))
            tokens = ids[:, 3:].repeat_interleave(2, 0)
            try:
                ours = _SharedPrompts(self.core, query, self._prefill(query)[0], 2).states(tokens)
            except (AttributeError, AssertionError, RuntimeError, TypeError, ValueError, IndexError) as error:
                reason = f"{type(error).__name__}"
            else:
                plain = _RepeatedPrompts(self.core, query, self._prefill(query)[0], 2).states(tokens)
                gap = float((ours - plain).float().norm() / plain.float().norm())
                exact = plain.dtype == torch.float32 and not torch.is_autocast_enabled(self.device.type)
                reason = "" if gap < (1e-4 if exact else 0.1) else f"states differ by {gap:.2g}"
        if reason:
            _logger.warning("%s: prompts are repeated for each completion (%s): slower, same result", self.name, reason)
        return not reason

    def _compact_states(self, query: Query, response: Tensor, mask: Tensor) -> Tensor:
        """Each row as query then response without the padding between, so that plain causal attention is exact."""
        steps = torch.arange(response.shape[1], device=response.device)
        n_query, n_response = query.mask.sum(1), (mask * (steps + 1)).amax(1)  # a mask may leave tokens out
        joined = torch.cat([query.ids, response], dim=1)
        offset = query.ids.shape[1] - n_query  # left padding of each row
        width = int((n_query + n_response).max()) - 1  # the last token predicts nothing that is asked for
        index = (offset[:, None] + torch.arange(width, device=joined.device)).clamp(max=joined.shape[1] - 1)
        out = self.core.base_model(input_ids=joined.gather(1, index), use_cache=False)
        where = (n_query[:, None] - 1 + steps).clamp(max=width - 1)
        hidden: Tensor = out.last_hidden_state
        return hidden.gather(1, where[:, :, None].expand(-1, -1, hidden.shape[-1]))

    def _forbidden(self) -> Tensor:
        vocabulary = self.core.get_output_embeddings().weight.shape[0]
        return forbidden_ids(vocabulary, len(self.tokenizer), self.pad_id, self.device)

    def _beam(self, query: Query, sampling: Sampling) -> Sampled:
        special = {"pad_token_id": self.pad_id, "eos_token_id": list(self.stop_ids)}
        ids = beam_search(self.core, {"input_ids": query.ids, "attention_mask": query.mask.long()}, sampling, **special)
        mask = mask_after_stop(ids, self.stop_ids)
        return Sampled(ids, mask, self.logprobs(query, ids, mask), finish_reasons(ids, self.stop_ids))


class _SharedPrompts:
    """Tokens behind prompts that are kept once per group."""

    def __init__(self, core: Any, query: Query, cache: Any, group: int) -> None:
        self.core, self.cache = core, SharedPrefixCache(cache, query.mask, group)
        self.position = query.mask.sum(1).repeat_interleave(group, 0)

    def states(self, ids: Tensor) -> Tensor:
        """(B,T,D) of the next T tokens."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        with self.cache.attending(self.core.config):
            out = self.core.base_model(
                input_ids=ids,
                position_ids=self.position[:, None] + steps,
                past_key_values=self.cache,
                use_cache=True,
            )
        self.position = self.position + ids.shape[1]
        return out.last_hidden_state  # type: ignore[no-any-return]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.keep(rows)
        self.position = self.position[rows]


class _RepeatedPrompts:
    """The same with the prompts' keys and values repeated for every row: for one completion, and odd architectures."""

    def __init__(self, core: Any, query: Query, cache: Any, group: int) -> None:
        self.core, self.cache = core, cache
        if group > 1:
            cache.batch_repeat_interleave(group)  # differentiable
        self.mask = query.mask.repeat_interleave(group, 0).long()
        self.position = query.mask.sum(1).repeat_interleave(group, 0)

    def states(self, ids: Tensor) -> Tensor:
        """(B,T,D) of the next T tokens."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        out = self.core.base_model(
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=self.position[:, None] + steps,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.position = self.position + ids.shape[1]
        return out.last_hidden_state  # type: ignore[no-any-return]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only."""
        self.cache.batch_select_indices(rows)
        self.mask, self.position = self.mask[rows], self.position[rows]
