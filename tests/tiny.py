"""Tiny models of every family, built from config, with tokenizers trained in the process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

TRAINING_TEXT = [
    "#Person1#: Hello Anna, the train leaves at ten. #Person2#: Thanks, I will be there on Monday.",
    "Summarize the dialogue. Summary: They agree to meet at the station before the meeting starts.",
    "You are a helpful assistant. The quick brown fox jumps over the lazy dog, 1234567890 times! Why? Because: no.",
]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_level(vocab_size: int, specials: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    return tokenizer


def make_chat_tokenizer() -> Any:
    """Like SmolLM2's: pad and stop token share an id, a reserved token is to spare, ChatML template."""
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|reserved|>"]
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(400, specials),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        extra_special_tokens=["<|reserved|>"],
        chat_template=CHAT_TEMPLATE,
    )


def make_base_tokenizer() -> Any:
    """A base model's: no chat template, an end token and a pad token."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level(380, ["<|endoftext|>", "<|pad|>"]), eos_token="<|endoftext|>", pad_token="<|pad|>"
    )


def make_t5_tokenizer() -> Any:
    """T5's traits: pad 0, which is also the decoder's start, </s> 1, appended to every text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    raw = _byte_level(390, ["<pad>", "</s>", "<unk>"])
    raw.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def make_bart_tokenizer() -> Any:
    """BART's traits: <s> 0, <pad> 1, </s> 2, which is also the decoder's start."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    raw = _byte_level(390, ["<s>", "<pad>", "</s>", "<unk>"])
    raw.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def tiny_t5(dropout: float = 0.0) -> tuple[Any, Any]:
    """A T5 of 20,000 parameters whose head has more rows than the tokenizer, as Flan-T5's does."""
    from transformers import T5Config, T5ForConditionalGeneration

    tokenizer = make_t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer) + 4, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=dropout,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return T5ForConditionalGeneration(config), tokenizer


def tiny_bart(dropout: float = 0.0) -> tuple[Any, Any]:
    from transformers import BartConfig, BartForConditionalGeneration

    tokenizer = make_bart_tokenizer()
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=256, dropout=dropout,
        attention_dropout=dropout, activation_dropout=dropout, bos_token_id=0, pad_token_id=1, eos_token_id=2,
        decoder_start_token_id=2, forced_eos_token_id=None,
    )  # fmt: skip
    return BartForConditionalGeneration(config), tokenizer


def tiny_pegasus(dropout: float = 0.0) -> tuple[Any, Any]:
    """Pegasus: BART's shape with fixed positions, no <s>, and a decoder that starts from pad 0, as T5's does."""
    from transformers import PegasusConfig, PegasusForConditionalGeneration

    tokenizer = make_t5_tokenizer()
    config = PegasusConfig(
        vocab_size=len(tokenizer), d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=256, dropout=dropout,
        attention_dropout=dropout, activation_dropout=dropout, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0,
        forced_eos_token_id=None,
    )  # fmt: skip
    return PegasusForConditionalGeneration(config), tokenizer


def tiny_llama(dropout: float = 0.0, *, chat: bool = True) -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_chat_tokenizer() if chat else make_base_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, attention_dropout=dropout, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config), tokenizer


def tiny_gpt2(dropout: float = 0.0) -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_base_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=512, resid_pdrop=dropout,
        embd_pdrop=dropout, attn_pdrop=dropout, bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config), tokenizer


BUILDERS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "t5": tiny_t5,
    "bart": tiny_bart,
    "pegasus": tiny_pegasus,
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
}


def make_model(kind: str, *, dropout: float = 0.0, seed: int = 0) -> Any:
    """A tiny random LanguageModel; weights are spread enough that its argmax is not a near-tie."""
    import torch

    from dialtune.models.causal import CausalLM
    from dialtune.models.seq2seq import Seq2SeqLM
    from dialtune.results import ModelInfo

    torch.manual_seed(seed)
    module, tokenizer = BUILDERS[kind](dropout)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    wrapper = Seq2SeqLM if module.config.is_encoder_decoder else CausalLM
    family = "encoder-decoder" if module.config.is_encoder_decoder else "decoder-only"
    return wrapper(module.eval(), tokenizer, ModelInfo(name=f"tiny-{kind}", family=family, dtype="float32"))
