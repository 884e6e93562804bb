"""Filters and draws by hand, and a scripted model through the decoding loop."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dialtune.models.base import Sampled, Sampling
from dialtune.models.decoding import (
    BLOCK,
    attend_from_one,
    decode_loop,
    filter_logits,
    finish_reasons,
    invert,
    pick,
    row_uniforms,
)
from dialtune.seeds import seed_for

# Probabilities 0.5, 0.3, 0.15, 0.05, out of order.
LOGITS = torch.tensor([[math.log(p) for p in (0.15, 0.5, 0.05, 0.3)]])
INF = -math.inf


def _kept(logits: Tensor) -> list[int]:
    return (logits[0] > INF).nonzero()[:, 0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("top_k", "kept"), [(0, [0, 1, 2, 3]), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_top_k_keeps_the_k_most_likely(top_k: int, kept: list[int]) -> None:
    assert _kept(filter_logits(LOGITS, top_k, 1.0)) == kept


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1.0, [0, 1, 2, 3]),
        (0.99, [0, 1, 2, 3]),
        (0.94, [0, 1, 3]),
        (0.79, [1, 3]),
        (0.51, [1, 3]),
        (0.49, [1]),
        (1e-9, [1]),
    ],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: list[int]) -> None:
    assert _kept(filter_logits(LOGITS, 0, top_p)) == kept


def test_top_p_counts_within_the_top_k() -> None:
    """Of 0.5 and 0.3 alone the first is 0.625: enough for 0.6, not for 0.63."""
    assert _kept(filter_logits(LOGITS, 2, 0.6)) == [1]
    assert _kept(filter_logits(LOGITS, 2, 0.63)) == [1, 3]


def test_filters_treat_each_row_alone_and_change_no_kept_logit() -> None:
    both = torch.cat([LOGITS, LOGITS.flip(1)])
    found = filter_logits(both, 3, 0.79)
    assert (found > INF).tolist() == [[False, True, False, True], [True, False, True, False]]
    assert found[found > INF].equal(both[found > INF])


@pytest.mark.parametrize(
    ("u", "expected"), [(0.0, 0), (0.149, 0), (0.151, 1), (0.649, 1), (0.651, 2), (0.701, 3), (0.999, 3)]
)
def test_a_draw_inverts_the_cumulative_distribution(u: float, expected: int) -> None:
    ids, logprobs = pick(LOGITS, torch.tensor([u], dtype=torch.float64), Sampling(temperature=1.0))
    assert ids.tolist() == [expected]
    assert float(logprobs) == pytest.approx(float(LOGITS[0, expected]), abs=1e-6)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_a_draw_at_the_edge_never_takes_what_is_ruled_out(u: float) -> None:
    logits = torch.tensor([[INF, 0.0, 0.0, INF]])
    ids, logprobs = pick(logits, torch.tensor([u], dtype=torch.float64), Sampling(temperature=1.0))
    assert ids.item() in (1, 2)
    assert float(logprobs) == pytest.approx(math.log(0.5))


def test_draws_follow_the_distribution_at_its_temperature() -> None:
    """T = 0.5 squares the probabilities: 0.25, 0.09, 0.0225, 0.0025 of 0.365."""
    n = 20_000
    uniforms = row_uniforms([0], 1, n)[0]
    ids, _ = pick(LOGITS.expand(n, 4), uniforms, Sampling(temperature=0.5))
    shares = ids.bincount(minlength=4) / n
    expected = torch.tensor([0.0225, 0.25, 0.0025, 0.09]) / 0.365
    torch.testing.assert_close(shares, expected, atol=0.014, rtol=0)  # four standard errors


@pytest.mark.parametrize("n", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 5000])
def test_a_draw_ends_where_the_sum_over_the_whole_row_says(n: int) -> None:
    """Against one running sum in float64; fp32 block sums may move a border by 1e-6 of the total."""
    generator = torch.Generator().manual_seed(n)
    weights = torch.rand(400, n, generator=generator) ** 8
    weights[torch.rand(400, n, generator=generator) < 0.3] = 0
    weights[:, n // 2] += 1e-3
    uniforms = torch.rand(400, generator=generator, dtype=torch.float64)
    ids = invert(weights, uniforms)
    for row, index in enumerate(ids.tolist()):
        masses = weights[row].tolist()
        below, total = math.fsum(masses[:index]), math.fsum(masses)
        assert masses[index] > 0
        assert below - 1e-6 * total <= float(uniforms[row]) * total < below + masses[index] + 1e-6 * total


@given(
    masses=st.lists(st.sampled_from([0.0, 0.0, 1e-30, 1e-6, 0.5, 1.0]), min_size=1, max_size=3 * BLOCK),
    place=st.integers(0, 3 * BLOCK - 1),
    uniform=st.sampled_from([0.0, 5e-324, 0.5, 1 - 2**-53]),
)
def test_an_id_without_weight_is_never_drawn(masses: list[float], place: int, uniform: float) -> None:
    masses[place % len(masses)] = 1e-6
    index = int(invert(torch.tensor([masses]), torch.tensor([uniform], dtype=torch.float64)))
    assert masses[index] > 0
    if uniform == 0:
        assert not any(masses[:index])
    if uniform == 1 - 2**-53:
        assert sum(masses[index + 1 :]) <= 1e-6 * sum(masses)


def test_greedy_takes_the_likeliest_and_its_plain_logprob() -> None:
    ids, logprobs = pick(LOGITS, torch.tensor([0.99], dtype=torch.float64), Sampling(top_k=1))
    assert ids.tolist() == [1]
    assert float(logprobs) == pytest.approx(math.log(0.5))


def test_uniforms_belong_to_seed_and_place_alone() -> None:
    both = row_uniforms([11, 22], 3, 5)
    assert both.shape == (6, 5)
    assert both.dtype == torch.float64
    assert row_uniforms([22], 3, 5).equal(both[3:])
    assert row_uniforms([11], 1, 5).equal(both[:1])
    assert row_uniforms([11, 11], 2, 5)[:2].equal(row_uniforms([11, 11], 2, 5)[2:])
    assert len(set(both.flatten().tolist())) == 30
    assert bool(((both >= 0) & (both < 1)).all())
    assert row_uniforms([], 3, 5).shape == (0, 5)


def test_uniforms_are_the_documented_generator() -> None:
    generator = torch.Generator().manual_seed(seed_for(11, "sample", 0, 1))
    expected = torch.rand(4, generator=generator, dtype=torch.float64)
    assert row_uniforms([11], 2, 4)[1].equal(expected)


def test_uniforms_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    row_uniforms([1, 2], 4, 8)
    assert torch.get_rng_state().equal(before)


class Script:
    """A model that writes the given rows, whatever is sampled, and notes which rows it was asked for."""

    def __init__(self, rows: list[list[int]], vocabulary: int = 10) -> None:
        self.rows, self.vocabulary, self.going, self.position = rows, vocabulary, list(range(len(rows))), 0
        self.fed: list[list[int]] = []

    def logits(self) -> Tensor:
        found = torch.zeros(len(self.going), self.vocabulary)
        for i, row in enumerate(self.going):
            found[i, self.rows[row][self.position]] = 9.0
        return found

    def step(self, ids: Tensor) -> Tensor:
        self.fed.append(ids.tolist())
        self.position += 1
        return self.logits()

    def keep(self, rows: Tensor) -> None:
        self.going = [self.going[i] for i in rows.tolist()]

    def run(
        self, *, stops: tuple[int, ...] = (1,), pad: int = 0, cap: int = 5, forbidden: Tensor | None = None
    ) -> Sampled:
        uniforms = torch.zeros(len(self.rows), cap, dtype=torch.float64)
        return decode_loop(
            self.logits(),
            self.step,
            self.keep,
            Sampling(cap),
            uniforms,
            stop_ids=stops,
            forbidden=forbidden,
            pad_id=pad,
        )


ROWS = [[5, 1, 9, 9, 9], [6, 7, 8, 7, 6], [1, 9, 9, 9, 9], [4, 4, 4, 1, 9]]


def test_rows_end_at_their_stop_token_and_keep_their_place() -> None:
    script = Script(ROWS)
    sampled = script.run()
    assert sampled.response.tolist() == [[5, 1, 0, 0, 0], [6, 7, 8, 7, 6], [1, 0, 0, 0, 0], [4, 4, 4, 1, 0]]
    assert sampled.mask.sum(1).tolist() == [2, 5, 1, 4]
    assert sampled.finish == ("stop", "length", "stop", "stop")
    assert script.fed == [[5, 6, 4], [7, 4], [8, 4], [7]]  # a finished row is fed no more once it left
    assert not sampled.logprobs[~sampled.mask].any()


def test_few_finished_rows_wait_in_the_batch_and_add_nothing() -> None:
    script = Script([[1, 9, 9]] + [[5, 6, 7]] * 7)
    sampled = script.run(cap=3)
    assert [len(ids) for ids in script.fed] == [8, 8]  # an eighth is done: too few to rebuild the caches
    assert sampled.response[0].tolist() == [1, 0, 0]
    assert sampled.mask[0].tolist() == [True, False, False]


def test_any_of_several_stop_ids_ends_a_row_and_belongs_to_it() -> None:
    sampled = Script([[5, 2, 9], [5, 5, 1], [5, 5, 5]]).run(stops=(1, 2), cap=3)
    assert sampled.response.tolist() == [[5, 2, 0], [5, 5, 1], [5, 5, 5]]
    assert sampled.finish == ("stop", "stop", "length")


def test_padding_that_is_the_stop_token_ends_no_row_early_and_hides_no_stop() -> None:
    sampled = Script(ROWS).run(pad=1)
    assert sampled.mask.sum(1).tolist() == [2, 5, 1, 4]
    assert sampled.finish == ("stop", "length", "stop", "stop")


def test_decoding_ends_when_the_last_row_has_stopped() -> None:
    sampled = Script([[1, 9, 9], [5, 1, 9]]).run(cap=3)
    assert sampled.response.tolist() == [[1, 0], [5, 1]]


def test_a_stop_token_at_the_cap_is_a_stop() -> None:
    assert Script([[5, 6, 1]]).run(cap=3).finish == ("stop",)


def test_a_forbidden_id_is_not_taken_and_has_no_share() -> None:
    forbidden = torch.zeros(10, dtype=torch.bool)
    forbidden[5] = True
    sampled = Script([[5, 5]]).run(cap=2, forbidden=forbidden)
    assert sampled.response.tolist() == [[0, 0]]  # the rest are equal, the first of them is taken
    torch.testing.assert_close(sampled.logprobs, torch.full((1, 2), -math.log(9)))


def test_finish_reasons_look_for_a_stop_anywhere() -> None:
    assert finish_reasons(torch.tensor([[5, 1, 0], [5, 6, 7]]), [1]) == ("stop", "length")


class Layer(nn.Module):
    """What transformers' attention functions read of an attention layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kind", ["nothing", "bool mask", "float mask", "bias", "bias and mask"])
@pytest.mark.parametrize("steps", [1, 2])
def test_attention_from_one_token_is_softmax_attention(groups: int, kind: str, steps: int) -> None:
    """Against the equation in float64, head by head; two tokens at a time go to transformers' own."""
    generator = torch.Generator().manual_seed(groups)
    query = torch.randn(2, 2 * groups, steps, 4, generator=generator)
    key, value = (torch.randn(2, 2, 7, 4, generator=generator) for _ in range(2))
    keep = torch.rand(2, 1, steps, 7, generator=generator) < 0.7
    keep[..., 3] = True
    bias = torch.randn(1, 2 * groups, steps, 7, generator=generator) if "bias" in kind else None
    added = torch.zeros(2, 1, steps, 7).masked_fill(~keep, -1e30)
    mask = {"bool mask": keep, "float mask": added, "bias and mask": keep}.get(kind)
    if mask is None and steps == 2:
        mask = torch.ones_like(keep)  # without any, several tokens would be causal among themselves
    found, weights = attend_from_one(Layer(groups), query, key, value, mask, scaling=0.3, position_bias=bias)
    scores = query.double() @ key.repeat_interleave(groups, 1).double().transpose(-1, -2) * 0.3
    if bias is not None:
        scores = scores + bias
    if mask is not None and "mask" in kind:
        scores = scores + added
    expected = scores.softmax(-1) @ value.repeat_interleave(groups, 1).double()
    torch.testing.assert_close(found.double(), expected.transpose(1, 2), atol=1e-6, rtol=1e-5)
    assert weights is None


def test_attention_from_one_token_adds_up_in_fp32() -> None:
    """bf16 scores of 100 and more are a whole unit apart; their softmax would be another."""
    query, key = torch.full((1, 1, 1, 64), 2.0), torch.linspace(0.8, 0.9, 5)[None, None, :, None].expand(1, 1, 5, 64)
    value = torch.eye(5)[None, None]
    half = [part.bfloat16() for part in (query, key, value)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = attend_from_one(Layer(1), *half, None, scaling=1.0)
    expected = (half[0].double() @ half[1].double().transpose(-1, -2)).softmax(-1)[0, 0, 0]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[0, 0, 0].double(), expected, atol=2e-3, rtol=1e-2)  # bf16 keeps 8 bits
