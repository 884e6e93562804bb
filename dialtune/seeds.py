"""Randomness by identity, never by history: a seed depends on what is drawn, not on what was drawn before."""

from __future__ import annotations

import hashlib


def seed_for(run_seed: int, purpose: str, epoch: int = 0, index: int | str = 0) -> int:
    """A 63-bit seed for one draw, the same on every machine and after every restart.

    Args:
        run_seed: the recipe's `seed`, any integer.
        purpose: what the draw is for, e.g. `shuffle`, `sample`, `dropout`.
        epoch: pass over the data, or 0.
        index: position or id of the item within the purpose.

    >>> seed_for(0, "shuffle", 1) == seed_for(0, "shuffle", 1) != seed_for(0, "shuffle", 2)
    True
    """
    # The unit separator cannot occur in a number, so (1, "2|3") and ("1|2", 3) cannot collide.
    key = "\x1f".join((str(run_seed), purpose, str(epoch), type(index).__name__, str(index)))
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1
