"""A BERT of 8,000 parameters with a word-piece tokenizer trained in the process, saved as a user would have it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TRAINING_TEXT = [
    "the train leaves at ten and the bus at noon, they agree to meet at the station on monday",
    "you are a nasty brute, a vile and rotten brute; nobody wants a nasty brute at the table",
    "#Person1# brings cake to the meeting and #Person2# brings tea 1234567890 ! ? . , : ; ' -",
]


def make_encoder_tokenizer() -> Any:
    """BERT's traits: lower case, [CLS] text [SEP], pad 0."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.train_from_iterator(
        TRAINING_TEXT, trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    )
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", raw.token_to_id("[CLS]")), ("[SEP]", raw.token_to_id("[SEP]"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def save_tiny_encoder(folder: Path, *, seed: int = 0) -> Path:
    """The folder, with config.json, model.safetensors and the tokenizer in it."""
    import torch
    from transformers import BertConfig, BertModel

    tokenizer = make_encoder_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
