"""Exact and near duplicates: the normal form of a dialogue, MinHash over word n-grams, verified by true Jaccard.

Near: at least 0.6 of the distinct word 3-grams of two texts are shared. 32 bands of 4 hashes (LSH) propose a pair of
similarity s with probability 1 - (1 - s^4)^32, 0.988 at 0.6 (Broder 1997; Leskovec et al., Mining of Massive Datasets,
3.4); every proposal is then compared in full, so no pair below the threshold comes out.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dialtune.data.dialogue import EOU, PERSON_TAG
from dialtune.types import Example

THRESHOLD = 0.6  # Jaccard
NGRAM = 3  # words
BANDS, ROWS = 32, 4

_NOT_KEPT = bytes(byte for byte in range(256) if not (48 <= byte <= 57 or 97 <= byte <= 122))
_WORD = re.compile(r"[^\W_]+")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # golden ratio, as in splitmix64

Hashes = NDArray[np.uint64]


def plain_text(example: Example) -> str:
    """What is compared: the words of all turns, without speakers and tags, lower case."""
    text = " ".join(message.content for message in example.messages).lower()
    if EOU in text:
        text = text.replace(EOU, " ")
    return PERSON_TAG.sub(" ", text) if "#" in text else text


def normal_form(plain: str) -> str:
    """`plain_text` reduced to [a-z0-9]; a text with none of those keeps its letters.

    >>> normal_form("#Person1#: It's 10:30 !".lower().replace("#person1#", ""))
    'its1030'
    """
    kept = plain.encode("ascii", "ignore").translate(None, _NOT_KEPT).decode("ascii")
    return kept or "".join(_WORD.findall(plain))


def shingles(plain: str) -> Hashes:
    """The distinct word 3-grams of a text as sorted 64-bit hashes; a shorter text is one n-gram."""
    words = np.array([_word_hash(word) for word in _WORD.findall(plain)], dtype=np.uint64)
    if not len(words):
        return words
    size = min(NGRAM, len(words))
    mixed = np.zeros(len(words) - size + 1, dtype=np.uint64)
    for offset in range(size):
        mixed = _scramble(mixed + words[offset : len(words) - size + 1 + offset])
    return np.unique(mixed)


def jaccard(one: Hashes, two: Hashes) -> float:
    """Shared over all distinct n-grams of two sorted sets, 0 to 1."""
    shared = len(np.intersect1d(one, two, assume_unique=True))
    return shared / max(len(one) + len(two) - shared, 1)


def near_pairs(texts: Sequence[str], threshold: float = THRESHOLD) -> Iterator[tuple[int, int, float]]:
    """(i, j, Jaccard) with i < j for texts that share `threshold` of their 3-grams; exact copies are best left out."""
    yield from near_sets([shingles(text) for text in texts], threshold)


def near_sets(
    sets: Sequence[Hashes],
    threshold: float = THRESHOLD,
    *,
    border: int | None = None,
    similarity: Callable[[Hashes, Hashes], float] = jaccard,
) -> Iterator[tuple[int, int, float]]:
    """(i, j, similarity) with i < j for sets of hashes, as `near_pairs`.

    Args:
        sets: sorted and distinct hashes of each text, or of a part of each text.
        threshold: similarity from which on a pair is told, 0 to 1.
        border: tell only pairs with i < border <= j.
        similarity: of two sets, 0 to 1.
    """
    proposed: set[tuple[int, int]] = set()
    for band in _bands(sets):
        found = _collisions(band)
        proposed.update(found if border is None else ((i, j) for i, j in found if i < border <= j))
    for i, j in sorted(proposed):
        small, large = sorted((len(sets[i]), len(sets[j])))
        if small and small >= threshold * large and (alike := similarity(sets[i], sets[j])) >= threshold:
            yield i, j, alike


def clusters(texts: Sequence[str], *, near: bool = True, threshold: float = THRESHOLD) -> list[int]:
    """For each text the index of the first text of its cluster: equal normal forms, and near duplicates if `near`."""
    first: dict[str, int] = {}
    forms = [normal_form(text) for text in texts]
    parent = [first.setdefault(form, index) if form else index for index, form in enumerate(forms)]
    if near:
        unique = sorted(set(parent))
        for i, j, _ in near_pairs([texts[index] for index in unique], threshold):
            _join(parent, unique[i], unique[j])
    return [_root(parent, index) for index in range(len(texts))]


def _root(parent: list[int], index: int) -> int:
    while parent[index] != index:
        parent[index] = parent[parent[index]]
        index = parent[index]
    return index


def _join(parent: list[int], i: int, j: int) -> None:
    low, high = sorted((_root(parent, i), _root(parent, j)))
    parent[high] = low


@lru_cache(maxsize=1 << 16)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def _scramble(values: Hashes) -> Hashes:
    """A fixed 64-bit permutation with good low and high bits (splitmix64 finaliser, Steele et al. 2014)."""
    values = (values + _MIX) ^ (values >> np.uint64(30))
    values = values * np.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> np.uint64(27))
    values = values * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _bands(sets: Sequence[Hashes]) -> Iterator[Hashes]:
    """Per band one key per text: equal keys mean equal minima under the band's four hash functions."""
    filled = [index for index, hashes in enumerate(sets) if len(hashes)]
    if not filled:
        return
    flat = np.concatenate([sets[index] for index in filled])
    starts = np.cumsum([0, *(len(sets[index]) for index in filled[:-1])])
    odd = _scramble(np.arange(1, 2 * BANDS * ROWS + 1, dtype=np.uint64)) | np.uint64(1)
    lonely = _scramble(np.arange(len(sets), dtype=np.uint64) + np.uint64(1 << 40))  # texts without words meet nobody
    for band in range(BANDS):
        key = np.zeros(len(filled), dtype=np.uint64)
        for row in range(ROWS):
            multiplier, shift = odd[2 * (band * ROWS + row)], odd[2 * (band * ROWS + row) + 1]
            # multiply-add-shift over 64 bits (Dietzfelbinger 1996); the upper bits are the good ones, minima use them
            minima = np.minimum.reduceat(flat * multiplier + shift, starts)
            key = _scramble(key + minima)
        keys = lonely.copy()
        keys[filled] = key
        yield keys


def _collisions(keys: Hashes) -> Iterable[tuple[int, int]]:
    """Pairs of equal keys; a group of more than 100 is paired along a chain and with its first, not with itself."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    edges = np.flatnonzero(ordered[1:] == ordered[:-1])
    groups: dict[int, list[int]] = defaultdict(list)
    for edge in edges.tolist():
        group = groups[int(ordered[edge])]
        if not group:
            group.append(int(order[edge]))
        group.append(int(order[edge + 1]))
    for group in groups.values():
        if len(group) <= 100:
            yield from ((i, j) for at, i in enumerate(group) for j in group[at + 1 :])
        else:
            yield from ((group[0], j) for j in group[1:])
            yield from pairwise(group[1:])
