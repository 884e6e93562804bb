"""Rollouts: whose row is whose, what is masked, that sampled ids are scored ids, and that nothing is lost on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl_tiny import judge_by
from safetensors.torch import load_file, save_file
from tiny import make_model

from dialtune.models.base import Sampled, Sampling
from dialtune.models.reference import Reference
from dialtune.rl.rollouts import Judged, Rollout, chunks, collect, ids_digest, journal_rows
from dialtune.runs import append_row, read_rows
from dialtune.types import Example, Message, Prompt

TEXTS = ("Summarize. #Person1#: Hello Anna.", "Why?", "#Person1#: Thanks, I will be there on Monday. Because: no.")
PROMPTS = [Prompt(f"row-{i}", (Message("user", text),), "plain") for i, text in enumerate(TEXTS)]
ROWS = [Example(p.example_id, p.messages, (f"gold {i}",)) for i, p in enumerate(PROMPTS)]
SAMPLING = Sampling(max_new_tokens=9, temperature=0.9)
SEEDS = [11, 12, 13]
GROUP = 4


@pytest.fixture
def policy(model: Any) -> Any:
    """A fifth of the vocabulary ends a row, so that rows end at different steps, and some at the cap."""
    model.stop_ids = (model.stop_ids[0], *range(40, 110))
    return model


def collected(
    model: Any, judge: Callable[..., Judged] | None = None, *, batch: int = 2, reference: Any = None
) -> Rollout:
    return collect(
        model, reference, ROWS, PROMPTS, judge or judge_by(lambda text: float(len(text))),
        sampling=SAMPLING, group=GROUP, seeds=SEEDS, batch=batch, timed=lambda _: nullcontext(),
    )  # fmt: skip


# what was sampled


def test_rows_are_prompt_major_and_each_prompt_draws_from_its_own_seed(policy: Any) -> None:
    rollout = collected(policy)
    assert rollout.group == GROUP
    assert rollout.example_ids == ("row-0", "row-1", "row-2")
    for p, prompt in enumerate(PROMPTS):
        alone = policy.sample(policy.encode([prompt]), SAMPLING, seeds=[SEEDS[p]], group=GROUP)
        for g in range(GROUP):
            row = p * GROUP + g
            ids = rollout.response[row][rollout.mask[row]].tolist()
            assert ids == alone.response[g][alone.mask[g]].tolist()
            assert rollout.finish[row] == alone.finish[g]


def test_the_judge_sees_each_text_beside_its_own_example(policy: Any) -> None:
    seen: list[tuple[str, str, int, str]] = []

    def judge(rows: Sequence[Example], texts: Sequence[str], lengths: Any, finish: Sequence[Any]) -> Judged:
        seen.extend(zip([row.id for row in rows], texts, lengths.tolist(), finish, strict=True))
        n = len(texts)
        return Judged(torch.arange(float(n)), torch.ones(n, dtype=torch.bool), {"place": torch.arange(float(n))})

    rollout = collected(policy, judge)
    assert [row[0] for row in seen] == [f"row-{p}" for p in range(3) for _ in range(GROUP)]
    assert tuple(row[1] for row in seen) == rollout.texts == tuple(policy.decode(rollout.response, rollout.mask))
    assert [row[2] for row in seen] == rollout.mask.sum(1).tolist() == rollout.lengths.tolist()
    assert tuple(row[3] for row in seen) == rollout.finish
    assert rollout.rewards.tolist() == rollout.parts["place"].tolist() == list(range(12))


def test_the_ids_that_will_be_scored_are_the_ids_that_were_sampled(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_out: list[Sampled] = []
    sample = policy.sample

    def spy(*args: Any, **kwargs: Any) -> Sampled:
        given_out.append(sample(*args, **kwargs))
        return given_out[-1]

    monkeypatch.setattr(policy, "sample", spy)
    rollout = collected(policy)
    assert len(given_out) == 1
    assert rollout.response.equal(given_out[0].response)
    assert rollout.mask.equal(given_out[0].mask)
    assert rollout.sampled_logprobs.equal(given_out[0].logprobs)
    assert ids_digest(rollout.response, rollout.mask) == ids_digest(given_out[0].response, given_out[0].mask)


def test_the_mask_holds_first_and_stop_token_and_nothing_behind(policy: Any) -> None:
    rollout = collected(policy)
    assert {"stop", "length"} == set(rollout.finish)
    assert rollout.mask[:, 0].all()
    for ids, mask, finish in zip(rollout.response.tolist(), rollout.mask.tolist(), rollout.finish, strict=True):
        kept = [i for i, inside in zip(ids, mask, strict=True) if inside]
        assert ids[: len(kept)] == kept
        assert (kept[-1] in policy.stop_ids) == (finish == "stop")
        assert not set(kept[:-1]) & set(policy.stop_ids)


def test_sampled_logprobs_are_those_that_scoring_gives(policy: Any) -> None:
    rollout = collected(policy)
    with torch.no_grad():
        scored = policy.logprobs(rollout.query, rollout.response, rollout.mask, temperature=0.9, sampleable=True)
    torch.testing.assert_close(rollout.sampled_logprobs, scored, atol=1e-5, rtol=0)


def test_nothing_in_a_rollout_carries_a_gradient(policy: Any) -> None:
    rollout = collected(policy, reference=Reference(policy, "model"))
    assert not any(tensor.requires_grad for tensor in rollout.tensors().values())


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_reference_logprobs_are_the_start_policys_row_by_row_however_they_are_batched(kind: str) -> None:
    model, start = make_model(kind), Reference(make_model(kind, seed=5), "model")
    rollouts = [collected(model, reference=start, batch=batch) for batch in (1, 2, 3)]
    for row in range(3 * GROUP):
        length = int(rollouts[0].lengths[row])
        one = rollouts[0].response[row : row + 1, :length]
        query = start.model.encode([PROMPTS[row // GROUP]])
        alone = start.logprobs(query, one, torch.ones_like(one, dtype=torch.bool), temperature=0.9)
        for rollout in rollouts:
            torch.testing.assert_close(rollout.ref_logprobs[row, :length], alone[0], atol=1e-5, rtol=0)
            assert not rollout.ref_logprobs[row, length:].any()


def test_a_reward_that_failed_leaves_its_row_invalid(policy: Any) -> None:
    values = iter([1.0, math.nan, *([2.0] * 10)])
    rollout = collected(policy, judge_by(lambda _: next(values)))
    assert rollout.valid.tolist() == [True, False, *([True] * 10)]
    assert rollout.rewards.tolist() == [1.0, 0.0, *([2.0] * 10)]


@pytest.mark.parametrize(
    "sampling",
    [replace(SAMPLING, top_p=0.9), replace(SAMPLING, top_k=5), replace(SAMPLING, num_beams=2),
     replace(SAMPLING, temperature=0.0)],
    ids=["top_p", "top_k", "beams", "greedy"],
)  # fmt: skip
def test_another_distribution_than_the_scored_one_is_our_own_mistake(sampling: Sampling) -> None:
    with pytest.raises(AssertionError):
        collect(
            None, None, ROWS, PROMPTS, judge_by(float), sampling=sampling, group=2, seeds=SEEDS, batch=1,  # type: ignore[arg-type]
            timed=lambda _: nullcontext(),
        )  # fmt: skip


def test_seconds_are_told_apart_by_phase(policy: Any) -> None:
    phases: list[str] = []

    def timed(name: str) -> Any:
        phases.append(name)
        return nullcontext()

    collect(
        policy, Reference(policy, "model"), ROWS, PROMPTS, judge_by(lambda _: 0.0), sampling=SAMPLING, group=2,
        seeds=SEEDS, batch=3, timed=timed,
    )  # fmt: skip
    assert phases == ["generate", "reward", "ref"]


# cutting


def test_rows_and_queries_of_some_prompts_stay_whole(policy: Any) -> None:
    rollout = collected(policy)
    assert rollout.rows([2, 0]).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    for p in range(3):
        alone = policy.encode([PROMPTS[p]])
        assert rollout.queries([p]).ids.equal(alone.ids)  # no column that is padding in all of them
        assert rollout.queries([p]).mask.equal(alone.mask)
    both = rollout.queries([2, 1])
    assert both.ids[0][both.mask[0]].tolist() == policy.query_ids(PROMPTS[2].messages)
    assert both.ids[1][both.mask[1]].tolist() == policy.query_ids(PROMPTS[1].messages)


def test_a_part_of_a_rollout_holds_whole_groups_in_every_field(policy: Any) -> None:
    rollout = collected(policy)
    part, rows = rollout.part([2, 0]), [8, 9, 10, 11, 0, 1, 2, 3]
    assert (part.example_ids, part.group) == (("row-2", "row-0"), GROUP)
    assert part.query.ids.equal(rollout.queries([2, 0]).ids)
    assert (part.texts, part.finish) == (
        tuple(rollout.texts[row] for row in rows),
        tuple(rollout.finish[row] for row in rows),
    )
    assert all(part.parts[name].equal(values[rows]) for name, values in rollout.parts.items())
    for field in ("response", "mask", "sampled_logprobs", "ref_logprobs", "rewards", "valid"):
        assert getattr(part, field).equal(getattr(rollout, field)[rows]), field


@given(n=st.integers(0, 40), size=st.integers(1, 12))
def test_chunks_are_all_numbers_in_order_in_runs_of_a_size(n: int, size: int) -> None:
    found = chunks(n, size)
    assert [i for chunk in found for i in chunk] == list(range(n))
    assert all(len(chunk) == size for chunk in found[:-1])
    assert all(1 <= len(chunk) <= size for chunk in found)


def test_the_digest_sees_ids_inside_the_mask_alone() -> None:
    ids = torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    digest = ids_digest(ids, mask)
    outside, inside, shorter = ids.clone(), ids.clone(), mask.clone()
    outside[1, 2], inside[1, 1], shorter[0, 2] = 4, 4, False
    assert ids_digest(outside, mask) == digest
    assert ids_digest(inside, mask) != digest
    assert ids_digest(ids, shorter) != digest


# on disk


@pytest.mark.parametrize("optional", [False, True], ids=["one update", "several"])
def test_a_rollout_comes_back_from_disk_bit_for_bit(tmp_path: Path, optional: bool) -> None:
    model = make_model("gpt2")
    rollout = collected(model, judge_by(lambda text: math.nan if len(text) % 3 == 0 else float(len(text))))
    rollout = replace(rollout, problems=("reward 'value' gave nan",))
    rollout = replace(rollout, parts={**rollout.parts, "toxicity:org/name#a label": rollout.parts["value"] * 2})
    if optional:
        rollout = replace(
            rollout, old_logprobs=torch.randn(rollout.mask.shape), values=torch.randn(rollout.mask.shape),
            last_values=torch.randn(len(rollout.texts)),
        )  # fmt: skip
    save_file(rollout.tensors(), tmp_path / "rollout.safetensors")
    document = json.loads(json.dumps(rollout.document(), allow_nan=False))
    again = Rollout.restore(load_file(tmp_path / "rollout.safetensors"), document)
    for field in fields(Rollout):
        mine, theirs = getattr(rollout, field.name), getattr(again, field.name)
        if field.name == "query":
            assert (mine.ids.equal(theirs.ids), mine.mask.equal(theirs.mask)) == (True, True)
        elif field.name == "parts":
            assert mine.keys() == theirs.keys()
            assert all(torch.equal(mine[name].nan_to_num(7), theirs[name].nan_to_num(7)) for name in mine)
        elif isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype
            assert mine.equal(theirs), field.name
        else:
            assert mine == theirs, field.name


def test_the_journal_replays_to_the_logprobs_it_holds(policy: Any, tmp_path: Path) -> None:
    start = Reference(policy, "model")
    rollout = collected(policy, judge_by(lambda text: math.nan if len(text) % 5 == 0 else float(len(text))))
    rollout = replace(rollout, ref_logprobs=collected(policy, reference=start).ref_logprobs)
    for row in journal_rows(rollout, 7):
        append_row(tmp_path / "rollouts.jsonl", row)
    rows = read_rows(tmp_path / "rollouts.jsonl")
    assert len(rows) == 3 * GROUP
    assert {row["rollout"] for row in rows} == {7}
    by_id = {prompt.example_id: prompt for prompt in PROMPTS}
    queries = [policy.query_ids(by_id[row["example_id"]].messages) for row in rows]
    batch = policy.batch(queries, [row["token_ids"] for row in rows])
    with torch.no_grad():
        found = policy.logprobs(batch.query, batch.response, batch.mask, temperature=0.9, sampleable=True)
    for i, row in enumerate(rows):
        expected = torch.tensor(row["logprobs"])
        torch.testing.assert_close(found[i][batch.mask[i]], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(torch.tensor(row["ref_logprobs"]), expected, atol=1e-5, rtol=0)
        assert policy.decode(batch.response[i : i + 1], batch.mask[i : i + 1]) == [row["text"]]
        failed = len(row["text"]) % 5 == 0
        assert row["reward"] == (None if failed else float(len(row["text"])))
        assert row["parts"] == ({} if failed else {"value": float(len(row["text"]))})
        assert (row["finish"] == "stop") == (row["token_ids"][-1] in policy.stop_ids)
