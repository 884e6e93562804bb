"""Which rows meet in a batch: a pure function of lengths, seed and epoch, so a position in it is all a resume needs."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dialtune.config.reward_schema import RewardConfig
from dialtune.config.schema import RunConfig
from dialtune.models.base import LanguageModel, pad_right
from dialtune.seeds import seed_for
from dialtune.types import Prompt

# Rows are sorted by length inside pools of this many batches: nearly the padding of a full sort, still a new mixture
# each epoch. Data that fits in one pool keeps its mixture and changes its order.
POOL = 50


class Epochs:
    """How many updates a run by epochs has, and what is due when; a plan says which batches they are."""

    __slots__ = ()
    config: RunConfig | RewardConfig

    @property
    def steps_per_epoch(self) -> int:
        """Updates in a pass over the data."""
        raise NotImplementedError

    @property
    def total_steps(self) -> int:
        """Updates of the run: max_steps if there are any, else those of all epochs."""
        if self.config.max_steps > 0:
            return self.config.max_steps
        return max(1, math.ceil(self.config.num_train_epochs * self.steps_per_epoch))

    def is_due(self, step: int, every: int) -> bool:
        """Whether something done every so many updates (0: at the end of each epoch) is due after `step` updates."""
        return step == self.total_steps or step % (every or self.steps_per_epoch) == 0


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One training row as ids; `cut` tokens of its target were over the cap (and then it has no stop token).

    `learn` marks the response tokens that are learned; None: all. In a row of several replies the turns between them
    stand in `response` too, not learned.
    """

    example_id: str
    query: tuple[int, ...]
    response: tuple[int, ...]
    cut: int = 0
    learn: tuple[bool, ...] | None = None

    @property
    def n_learned(self) -> int:
        """Response tokens that the loss is the mean over."""
        return len(self.response) if self.learn is None else sum(self.learn)

    @property
    def length(self) -> int:
        """Tokens in all: what a forward pass costs."""
        return len(self.query) + len(self.response)


def tokenize_rows(
    model: LanguageModel, prompts: Sequence[Prompt], targets: Sequence[str], *, max_response: int
) -> list[TokenRow]:
    """Each prompt and its target as ids, tokenised once for all epochs."""
    rows = []
    for prompt, target in zip(prompts, targets, strict=True):
        response = model.response_ids(target)
        over = max(0, len(response) - max_response)
        query = model.query_ids(prompt.messages)
        rows.append(TokenRow(prompt.example_id, tuple(query), tuple(response[:max_response]), over))
    return rows


def learned_mask(rows: Sequence[TokenRow], mask: Tensor) -> Tensor:
    """(B,R) bool: `mask` without the response tokens that their row does not learn."""
    if all(row.learn is None for row in rows):
        return mask
    marks = [row.learn or (True,) * len(row.response) for row in rows]
    return mask & pad_right(marks, 0, mask.device)[0].bool()


def learned_logprobs(model: LanguageModel, rows: Sequence[TokenRow]) -> Tensor:
    """(B,R) fp32 log p of the rows' learned tokens, 0 elsewhere: SFT's loss is minus their mean."""
    batch = model.batch([row.query for row in rows], [row.response for row in rows])
    return model.logprobs(batch.query, batch.response, learned_mask(rows, batch.mask))


def epoch_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int, group_by_length: bool
) -> list[list[int]]:
    """The epoch's batches of row numbers: every row once, the longest first so that a lack of memory shows at once.

    >>> epoch_batches([5, 1, 5, 1], 2, seed=0, epoch=0, group_by_length=True)
    [[0, 2], [1, 3]]
    """
    generator = random.Random(seed_for(seed, "shuffle", epoch))
    order = list(range(len(lengths)))
    generator.shuffle(order)
    if not group_by_length:
        return _cut(order, batch_size)
    batches: list[list[int]] = []
    for pool in _cut(order, POOL * batch_size):
        batches += _cut(sorted(pool, key=lambda row: (-lengths[row], row)), batch_size)
    generator.shuffle(batches)
    longest = max(range(len(batches)), key=lambda i: (max(lengths[row] for row in batches[i]), -i), default=0)
    return batches[longest : longest + 1] + batches[:longest] + batches[longest + 1 :]


def _cut(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]
