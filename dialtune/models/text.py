"""Messages to text and ids, and back: what both families share before any tensor exists.

Text that merely looks like a control token is data. It is broken up before the tokenizer sees it, so that no row can
forge a turn or a stop.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from dialtune.errors import ModelError
from dialtune.types import Message

ROLE_NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}


def special_strings(tokenizer: Any) -> tuple[str, ...]:
    """Every string that the tokenizer would turn into a control token, longest first."""
    found = set(tokenizer.all_special_tokens)
    found |= {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted((text for text in found if len(text) > 1), key=lambda text: (-len(text), text)))


def neutralise(text: str, specials: Sequence[str]) -> str:
    """The text with a space inside anything that would read as a control token.

    T5's tokenizer folds compatibility characters and drops control characters before it looks a piece up, so that
    look-alikes become the real thing; a text in which that would happen is folded here first.

    >>> neutralise("bye</s>", ["</s>"]), neutralise("bye＜/s＞", ["</s>"])
    ('bye< /s>', 'bye< /s>')
    """
    return _neutralised(text, tuple(specials))


@lru_cache(maxsize=1 << 16)  # a turn is in the context of every reply after it
def _neutralised(text: str, specials: tuple[str, ...]) -> str:
    folded = unicodedata.normalize("NFKC", "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc"))
    if folded != text and any(special in folded for special in specials):
        text = folded
    for special in specials:
        if special in text:
            text = text.replace(special, f"{special[0]} {special[1:]}")
    return text


def plain_text(messages: Sequence[Message]) -> str:
    r"""Messages for a model without a chat template: one user message as it is, a longer exchange with role names.

    >>> plain_text([Message("user", "Hello")])
    'Hello'
    >>> plain_text([Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Bye")])
    'User: Hi\nAssistant: Yes?\nUser: Bye\nAssistant:'
    """
    system = [message.content for message in messages if message.role == "system"]
    rest = [message for message in messages if message.role != "system"]
    if len(rest) == 1 and rest[0].role == "user":
        return "\n\n".join([*system, rest[0].content])
    lines = [f"{ROLE_NAMES[message.role]}: {message.content}" for message in rest]
    return "\n\n".join([*system, "\n".join([*lines, "Assistant:"])])


def choose_pad(tokenizer: Any, stop_ids: Sequence[int]) -> int:
    """A padding id that is no stop id: the tokenizer's own, else a reserved token that the chat template never uses.

    Padding is known by position here, but other programs that read the saved tokenizer mask it by id, and a shared id
    teaches them to ignore the stop token.
    """
    pad_id = tokenizer.pad_token_id
    if pad_id is not None and pad_id not in stop_ids:
        return int(pad_id)
    taken = {tokenizer.bos_token_id, tokenizer.eos_token_id, *stop_ids}
    template = tokenizer.chat_template or ""
    spare = [
        (("pad" not in token.content.lower()), -index, index)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.special and index not in taken and token.content not in template
    ]
    if not spare:
        raise ModelError(
            f"pad and stop token share id {pad_id} and the tokenizer has no reserved token to spare: "
            "a model padded this way forgets how to stop. Add a pad token to the tokenizer and resize the embeddings."
        )
    chosen: int = min(spare)[2]
    tokenizer.pad_token = tokenizer.added_tokens_decoder[chosen].content
    return chosen


def stop_ids_of(tokenizer: Any, module: Any) -> tuple[int, ...]:
    """Every id that ends a response, the tokenizer's own first: a model may have several."""
    found: list[int] = []
    generation = getattr(module, "generation_config", None)
    for source in (tokenizer.eos_token_id, module.config.eos_token_id, getattr(generation, "eos_token_id", None)):
        ids = source if isinstance(source, list | tuple) else [source]
        found += [int(index) for index in ids if index is not None and int(index) not in found]
    if not found:
        raise ModelError("the tokenizer and the model name no end-of-sequence token: nothing could ever stop")
    return tuple(found)
