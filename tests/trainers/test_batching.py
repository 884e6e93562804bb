"""Every row once an epoch, from the seed alone, with less padding; targets cut and counted."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import make_model

from dialtune.trainers.batching import POOL, epoch_batches, tokenize_rows
from dialtune.types import Message, Prompt

LENGTHS = st.lists(st.integers(1, 60), max_size=400)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 3), st.booleans())
def test_every_row_is_in_exactly_one_batch_and_only_one_batch_is_short(lengths, batch_size, seed, epoch, grouped):
    batches = epoch_batches(lengths, batch_size, seed=seed, epoch=epoch, group_by_length=grouped)
    assert sorted(itertools.chain(*batches)) == list(range(len(lengths)))
    assert sorted(map(len, batches), reverse=True)[: len(lengths) // batch_size] == [batch_size] * (
        len(lengths) // batch_size
    )
    assert len(batches) == -(-len(lengths) // batch_size)


@given(LENGTHS.filter(bool), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_grouped_batches_start_with_the_longest_row(lengths, batch_size, seed):
    first, *_ = epoch_batches(lengths, batch_size, seed=seed, epoch=1, group_by_length=True)
    assert max(lengths[row] for row in first) == max(lengths)


@given(LENGTHS, st.integers(1, 9), st.integers(0, 99), st.booleans())
def test_the_same_seed_and_epoch_give_the_same_batches(lengths, batch_size, seed, grouped):
    def batches():
        return epoch_batches(lengths, batch_size, seed=seed, epoch=2, group_by_length=grouped)

    assert batches() == batches()


@pytest.mark.parametrize("grouped", [False, True])
def test_another_epoch_and_another_seed_mix_the_rows_anew(grouped):
    lengths = [row % 17 + 1 for row in range(3 * POOL * 4)]

    def mixture(seed, epoch):
        batches = epoch_batches(lengths, 4, seed=seed, epoch=epoch, group_by_length=grouped)
        return {frozenset(batch) for batch in batches}

    assert mixture(0, 0) != mixture(0, 1)
    assert mixture(0, 0) != mixture(1, 0)
    assert mixture(0, 1) != mixture(1, 0)


def test_rows_of_a_single_pool_come_in_another_order_each_epoch():
    lengths = list(range(40))
    first, second = (epoch_batches(lengths, 4, seed=0, epoch=e, group_by_length=True) for e in (0, 1))
    assert first[0] == second[0] == [39, 38, 37, 36]
    assert first[1:] != second[1:]


def test_long_and_short_batches_come_in_no_order_after_the_first():
    # Sorted batches would train on all long dialogues first and on all short ones last.
    lengths = list(range(400))
    batches = epoch_batches(lengths, 4, seed=0, epoch=0, group_by_length=True)[1:]
    means = [sum(lengths[row] for row in batch) / len(batch) for batch in batches]
    rises = sum(later > earlier for earlier, later in itertools.pairwise(means))
    assert 0.3 < rises / len(means) < 0.7


def _padded(lengths: list[int], batches: list[list[int]]) -> float:
    """Share of a padded batch that is padding."""
    cells = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    return 1 - sum(lengths) / cells


def _dialogue_lengths(folder: Path, limit: int) -> list[int]:
    with gzip.open(folder / "dialogsum" / "dialogsum.train.jsonl.gz", "rt", encoding="utf-8") as file:
        return [len(json.loads(line)["dialogue"].split()) for line in itertools.islice(file, limit)]


def test_grouping_saves_most_of_the_padding_of_real_dialogues(shared_data):
    lengths = _dialogue_lengths(shared_data, 4000)
    shares = {
        grouped: _padded(lengths, epoch_batches(lengths, 8, seed=0, epoch=0, group_by_length=grouped))
        for grouped in (False, True)
    }
    best = _padded(
        lengths, [sorted(range(len(lengths)), key=lengths.__getitem__)[i : i + 8] for i in range(0, 4000, 8)]
    )
    assert shares[False] > 0.35
    assert shares[True] < 0.05
    assert best < shares[True]  # pools mix; a full sort is the floor
    assert POOL * 8 < 4000


def _rows(model: Any, targets: list[str], cap: int) -> list[Any]:
    prompts = [Prompt(f"d{i}", (Message("user", f"Summarize number {i}."),), "plain") for i in range(len(targets))]
    return tokenize_rows(model, prompts, targets, max_response=cap)


def test_a_target_within_the_cap_is_whole_with_its_stop_token(model):
    target = "They meet at ten."
    needed = len(model.response_ids(target))
    (row,) = _rows(model, [target], needed)
    assert row.cut == 0
    assert list(row.response) == model.response_ids(target)
    assert row.response[-1] == model.stop_ids[0]
    assert list(row.query) == model.query_ids((Message("user", "Summarize number 0."),))
    assert (row.example_id, row.length) == ("d0", len(row.query) + len(row.response))


def test_what_is_over_the_cap_is_counted_and_teaches_no_stop(model):
    targets = ["They meet.", "They meet at the station before the meeting starts."]
    needed = [len(model.response_ids(target)) for target in targets]
    rows = _rows(model, targets, needed[0])
    assert [row.cut for row in rows] == [0, needed[1] - needed[0]]
    assert len(rows[1].response) == needed[0]
    assert rows[1].response[-1] != model.stop_ids[0]


def test_prompts_and_targets_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        tokenize_rows(make_model("llama"), [], ["a"], max_response=4)
