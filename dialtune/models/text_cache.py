"""Text to value, remembered up to a bound: the same text is never embedded or scored twice in a row of calls."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Value = TypeVar("Value")


class TextCache(Generic[Value]):
    """The `size` most recently asked texts with their values.

    >>> cache = TextCache[int](size=100)
    >>> cache.fill(["a", "bb", "a"], lambda unknown: [len(text) for text in unknown])
    [1, 2, 1]
    """

    def __init__(self, size: int) -> None:
        assert size >= 1
        self.size = size
        self._known: OrderedDict[str, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def fill(self, texts: Sequence[str], compute: Callable[[list[str]], Sequence[Value]]) -> list[Value]:
        """One value per text, in order.

        Args:
            texts: any; repeats are computed once, also when a call brings more texts than the cache holds.
            compute: gets the distinct unknown texts in the order of their first appearance; not called without any.
        """
        found = {text: self._known[text] for text in texts if text in self._known}
        unknown = [text for text in dict.fromkeys(texts) if text not in found]
        if unknown:
            found.update(zip(unknown, compute(unknown), strict=True))
        for text in dict.fromkeys(texts):
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > self.size:
            self._known.popitem(last=False)
        return [found[text] for text in texts]
