"""Encoder-decoder models (T5, Flan-T5, BART, Pegasus): encode the query once, teacher-force the response."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dialtune.errors import ModelError
from dialtune.models.base import (
    Query,
    Sampled,
    Sampling,
    TrainingBatch,
    forbidden_ids,
    mask_after_stop,
    only_trained_adapter,
    pad_right,
    recomputes,
    scatter_rows,
    token_logprobs,
)
from dialtune.models.decoding import beam_search, decode_loop, finish_reasons, one_token_attention, row_uniforms
from dialtune.models.text import choose_pad, neutralise, plain_text, special_strings, stop_ids_of
from dialtune.results import ModelInfo
from dialtune.types import Message, Prompt


class Seq2SeqLM:
    """A `LanguageModel` over any transformers encoder-decoder; queries are padded right."""

    peft_task = "SEQ_2_SEQ_LM"

    def __init__(self, module: Any, tokenizer: Any, info: ModelInfo) -> None:
        self._module, self.tokenizer, self._info = module, tokenizer, info
        self.name = info.name
        self.core: Any = module.get_base_model() if hasattr(module, "get_base_model") else module  # adapters inside
        self.stop_ids = stop_ids_of(tokenizer, self.core)
        self.pad_id = choose_pad(tokenizer, self.stop_ids)
        self._specials = special_strings(tokenizer)
        start = self.core.config.decoder_start_token_id
        if start is None:
            raise ModelError(f"{info.name}: config.json names no decoder_start_token_id; the first token has no input")
        self.start_id = int(start)
        self._head = _Head(self.core)

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
    def one_sequence(self) -> bool:
        return False  # each reply has a query of its own, read by the encoder in both directions

    @property
    def max_prompt_tokens(self) -> int | None:
        # T5's positions are relative: it takes any length.
        limit = (
            None
            if hasattr(self.core.config, "relative_attention_num_buckets")
            else self.core.config.max_position_embeddings
        )
        return limit

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return len(self.query_ids(messages))

    def encode(self, prompts: Sequence[Prompt]) -> Query:
        return Query(*pad_right([self.query_ids(prompt.messages) for prompt in prompts], self.pad_id, self.device))

    def batch(self, queries: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> TrainingBatch:
        query = Query(*pad_right(queries, self.pad_id, self.device))
        return TrainingBatch(query, *pad_right(responses, self.pad_id, self.device))

    def training_batch(self, prompts: Sequence[Prompt], targets: Sequence[str]) -> TrainingBatch:
        queries = [self.query_ids(prompt.messages) for prompt in prompts]
        return self.batch(queries, [self.response_ids(target) for _, target in zip(prompts, targets, strict=True)])

    def response_ids(self, target: str) -> list[int]:
        """A target as the tokenizer writes it, stop token at its end (and <s> in front for BART, as pretrained)."""
        ids: list[int] = self.tokenizer(text_target=neutralise(target, self._specials))["input_ids"]
        return ids if ids[-1:] == [self.stop_ids[0]] else [*ids, self.stop_ids[0]]

    def decode(self, response: Tensor, mask: Tensor) -> list[str]:
        rows = [row[keep].tolist() for row, keep in zip(response, mask, strict=True)]
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(token) for token in self.tokenizer.convert_ids_to_tokens(list(ids))]

    def states(self, query: Query, response: Tensor, mask: Tensor) -> Tensor:
        del mask  # right-padded responses under a causal decoder: no real token can see padding
        group = response.shape[0] // query.ids.shape[0]
        if group > 1 and not recomputes(self.core):
            return self._shared_states(query, response, group)
        encoded = self._encoded(query)
        if group > 1:
            encoded = encoded.repeat_interleave(group, dim=0)
        out = self.core.get_decoder()(
            input_ids=torch.cat([self._start(len(response)), response[:, :-1]], dim=1),
            encoder_hidden_states=encoded,
            encoder_attention_mask=query.mask.repeat_interleave(group, dim=0).long(),
            use_cache=False,
        )
        return out.last_hidden_state  # type: ignore[no-any-return]

    def logprobs(
        self, query: Query, response: Tensor, mask: Tensor, *, temperature: float = 1.0, sampleable: bool = False
    ) -> Tensor:
        states = self.states(query, response, mask)
        return self.score(states, response, mask, temperature=temperature, sampleable=sampleable)

    def score(
        self, states: Tensor, response: Tensor, mask: Tensor, *, temperature: float = 1.0, sampleable: bool = False
    ) -> Tensor:
        forbidden = self._forbidden() if sampleable else None
        picked = token_logprobs(self._head, states[mask], response[mask], temperature=temperature, forbidden=forbidden)
        return scatter_rows(picked, mask)

    @torch.no_grad()
    def sample(self, query: Query, sampling: Sampling, *, seeds: Sequence[int], group: int = 1) -> Sampled:
        if sampling.num_beams > 1:
            return self._beam(query, sampling)
        cache, encoded, last = self._prefill(query)
        cache.batch_repeat_interleave(group)
        decoder = self.core.get_decoder()
        context = {
            "encoder_hidden_states": encoded.repeat_interleave(group, dim=0),
            "encoder_attention_mask": query.mask.repeat_interleave(group, dim=0).long(),
        }

        def step(ids: Tensor) -> Tensor:
            out = decoder(input_ids=ids[:, None], past_key_values=cache, use_cache=True, **context)
            return self._head(out.last_hidden_state[:, -1])  # type: ignore[no-any-return]

        def keep(rows: Tensor) -> None:
            cache.batch_select_indices(rows)
            for key in context:
                context[key] = context[key][rows]

        logits = self._head(last).repeat_interleave(group, dim=0)
        uniforms = row_uniforms(seeds, group, sampling.max_new_tokens)
        with one_token_attention(decoder.config, self.device):
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
        whole = self.core(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits[0]
        query = Query(ids, torch.ones_like(ids, dtype=torch.bool))
        response = torch.cat([ids[:, 1:], ids[:, :1]], dim=1)
        start, self.start_id = self.start_id, 0
        try:
            ours = self._head(self.states(query, response, response >= 0))
        finally:
            self.start_id = start
        return whole, ours[0]

    def query_ids(self, messages: Sequence[Message]) -> list[int]:
        ids: list[int] = self.tokenizer(neutralise(plain_text(messages), self._specials))["input_ids"]
        return ids

    def _encoded(self, query: Query) -> Tensor:
        out = self.core.get_encoder()(input_ids=query.ids, attention_mask=query.mask.long())
        return out.last_hidden_state  # type: ignore[no-any-return]

    def _start(self, rows: int) -> Tensor:
        """(rows,1), what the decoder is fed first."""
        return torch.full((rows, 1), self.start_id, device=self.device)

    def _prefill(self, query: Query) -> tuple[Any, Tensor, Tensor]:
        """A cache with the prompts' cross-attention keys and values and the start token, the encoder's states (P,Q,D),
        and the state (P,D) from which the first response token is predicted.
        """
        from transformers import DynamicCache, EncoderDecoderCache

        encoded = self._encoded(query)
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        out = self.core.get_decoder()(
            input_ids=self._start(len(encoded)),
            encoder_hidden_states=encoded,
            encoder_attention_mask=query.mask.long(),
            past_key_values=cache,
            use_cache=True,
        )
        return cache, encoded, out.last_hidden_state[:, -1]

    def _shared_states(self, query: Query, response: Tensor, group: int) -> Tensor:
        """Encoder, cross-attention keys and values and the start token once per prompt, gradients included."""
        cache, encoded, last = self._prefill(query)
        first = last.repeat_interleave(group, dim=0)[:, None]
        if response.shape[1] == 1:
            return first
        cache.batch_repeat_interleave(group)
        out = self.core.get_decoder()(
            input_ids=response[:, :-1],
            encoder_hidden_states=encoded.repeat_interleave(group, dim=0),
            encoder_attention_mask=query.mask.repeat_interleave(group, dim=0).long(),
            past_key_values=cache,
            use_cache=True,
        )
        return torch.cat([first, out.last_hidden_state], dim=1)

    def _forbidden(self) -> Tensor:
        vocabulary = self.core.get_output_embeddings().weight.shape[0]
        return forbidden_ids(vocabulary, len(self.tokenizer), self.pad_id, self.device)

    def _beam(self, query: Query, sampling: Sampling) -> Sampled:
        special = {
            "pad_token_id": self.pad_id,
            "eos_token_id": list(self.stop_ids),
            "decoder_start_token_id": self.start_id,
        }
        ids = beam_search(self.core, {"input_ids": query.ids, "attention_mask": query.mask.long()}, sampling, **special)
        mask = mask_after_stop(ids, self.stop_ids)
        return Sampled(ids, mask, self.logprobs(query, ids, mask), finish_reasons(ids, self.stop_ids))


class _Head(nn.Module):
    """Decoder states to logits as the whole model would give them: T5's scale and BART's bias included."""

    def __init__(self, core: Any) -> None:
        super().__init__()
        self._core = [core]  # in a list, so that the module is not registered a second time
        self._scale = core.config.d_model**-0.5 if getattr(core.config, "scale_decoder_outputs", False) else 1.0

    def forward(self, states: Tensor) -> Tensor:
        core = self._core[0]
        logits: Tensor = core.get_output_embeddings()(states * self._scale if self._scale != 1.0 else states)
        bias = getattr(core, "final_logits_bias", None)
        return logits if bias is None else logits + bias
