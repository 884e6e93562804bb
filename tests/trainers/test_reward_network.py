"""Losses by hand and against torch's finite differences; the network reads each text once and learns what it may."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reward_tiny import recipe
from torch import nn

from dialtune.trainers import reward_network as module
from dialtune.trainers.contrast import Exchange, Lessons, RatedDialogue, ReplyPair
from dialtune.trainers.reward_network import RewardNetwork, bradley_terry, rating_loss

ONE = Exchange(("cake and tea",), "meet at noon")
TWO = Exchange(("the bus", "cake and tea"), "a nasty brute")
THREE = Exchange(("cake and tea",), "the train")


# Bradley-Terry


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=5))
def test_the_loss_of_a_pair_is_minus_the_log_of_its_chance(values: list[tuple[float, float]]):
    """-log(1 / (1 + exp(-(a - b)))), arXiv 2009.01325 equation 1, in Python's own floats."""
    better, worse = (torch.tensor(side, dtype=torch.float64) for side in zip(*values, strict=True))
    expected = [math.log1p(math.exp(-(a - b))) for a, b in values]
    assert bradley_terry(better, worse).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_known_losses_of_a_pair():
    found = bradley_terry(torch.tensor([0.0, math.log(3), 0.0]), torch.tensor([0.0, 0.0, 1000.0]))
    # chances 1/2, 3/4, and one that no float holds
    assert found.tolist() == pytest.approx([math.log(2), math.log(4 / 3), 1000.0])


def test_only_the_difference_counts():
    values = torch.tensor([0.3, -1.2])
    assert torch.allclose(
        bradley_terry(values + 7, values.flip(0) + 7), bradley_terry(values, values.flip(0)), atol=1e-6
    )


def test_its_gradient_is_the_chance_of_the_wrong_order():
    """d/d(better) = -sigmoid(worse - better), and the opposite for the worse one; checked by finite differences too."""
    better = torch.tensor([0.5, -2.0], dtype=torch.float64, requires_grad=True)
    worse = torch.tensor([1.5, -3.0], dtype=torch.float64, requires_grad=True)
    bradley_terry(better, worse).sum().backward()
    assert better.grad is not None
    assert worse.grad is not None
    assert better.grad.tolist() == pytest.approx([-1 / (1 + math.exp(-1.0)), -1 / (1 + math.exp(1.0))])
    assert torch.equal(better.grad, -worse.grad)
    assert torch.autograd.gradcheck(bradley_terry, (better.detach().requires_grad_(), worse.detach()))


# ratings


def test_the_loss_of_a_rating_is_its_cross_entropy_behind_a_rising_line():
    raw, targets = torch.tensor([0.2, -1.0]), torch.tensor([0.7, 0.25])
    slope, intercept = torch.tensor(0.5), torch.tensor(-0.1)
    expected = []
    for x, t in ((0.2, 0.7), (-1.0, 0.25)):
        p = 1 / (1 + math.exp(-(math.exp(0.5) * x - 0.1)))
        expected.append(-(t * math.log(p) + (1 - t) * math.log(1 - p)))
    assert rating_loss(raw, targets, slope, intercept).tolist() == pytest.approx(expected, rel=1e-5)


def test_gradients_of_a_rating_are_those_of_finite_differences():
    parts = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([0.2, -1.0], 0.5, -0.1)]
    targets = torch.tensor([0.7, 0.25], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda raw, slope, bias: rating_loss(raw, targets, slope, bias), parts)


# the network


def lessons() -> Lessons:
    pairs = [ReplyPair(ONE, TWO, "reply", 0), ReplyPair(ONE, THREE, "context", 0)]
    return Lessons({"contexts": pairs, "preferences": [pairs[0]]}, [RatedDialogue((ONE, THREE), 0.8, 0)])


def network(**changes: object) -> RewardNetwork:
    signals = {"contexts": 1.0, "preferences": 1.0, "ratings": 1.0}
    return RewardNetwork(recipe(signals=signals, head_dropout=0.0, **changes))


@pytest.mark.parametrize("lora", [None, {"r": 2, "alpha": 4, "dropout": 0.0}])
def test_losses_are_means_over_what_the_lessons_say(lora: dict[str, float] | None):
    made = network(lora=lora).eval()
    with torch.no_grad():
        raw = made.raw([ONE, TWO, THREE])
        found, accuracy = made.losses(lessons())
        pair = bradley_terry(raw[[0, 0]], raw[[1, 2]])
        rated = rating_loss(
            raw[[0, 2]].mean()[None], torch.tensor([0.8]), *(made.line[n] for n in ("slope", "intercept"))
        )
    assert set(found) == {"contexts", "preferences", "ratings"}
    assert float(found["contexts"]) == pytest.approx(float(pair.mean()), rel=1e-5)
    assert float(found["preferences"]) == pytest.approx(float(pair[0]), rel=1e-5)
    assert float(found["ratings"]) == pytest.approx(float(rated), rel=1e-5)
    assert accuracy == float((raw[0] > raw[1:]).float().mean())


def test_lessons_without_a_signal_give_no_loss():
    made = network()
    assert made.losses(Lessons({"contexts": [], "preferences": []})) == ({}, None)


def test_a_frozen_encoder_reads_each_text_once_and_learns_nothing(monkeypatch: pytest.MonkeyPatch):
    made, read = network(), list[str]()
    ids = made.reader.ids

    def watched(texts):
        read.extend(texts)
        return ids(texts)

    monkeypatch.setattr(type(made.reader), "ids", lambda _self, texts: watched(texts))
    made.remember(["cake and tea", "meet at noon"])
    made.losses(lessons())
    made.losses(lessons())
    assert sorted(read) == sorted({"cake and tea", "meet at noon", "the bus", "a nasty brute", "the train"})
    names = {name for name, _ in made.trained()}
    assert names == {f"head.{part}" for part in made.head} | {"line.intercept", "line.slope"}
    assert set(made.tensors()) == names


def test_vectors_are_kept_for_the_same_texts_and_settings_alone(tmp_path, monkeypatch: pytest.MonkeyPatch):
    file, texts = tmp_path / "vectors.safetensors", ["cake and tea", "meet at noon", "the bus"]
    first = network()
    first.remember(texts, file=file)
    expected = first.raw([ONE])
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    again, read = network(), list[int]()
    encode = RewardNetwork._encode
    monkeypatch.setattr(RewardNetwork, "_encode", lambda *given: read.append(len(given[1])) or encode(*given))
    again.remember(texts, file=file)
    assert read == []
    assert torch.equal(again.raw([ONE]), expected)
    for changes, others in (({"max_turn_length": 16}, texts), ({}, texts[::-1]), ({}, [*texts, "a nasty brute"])):
        before = len(read)
        network(**changes).remember(others, file=file)
        assert read[before:] == [len(others)]
    file.write_bytes(file.read_bytes()[:50])  # torn: read again, and written again
    network().remember(texts, file=file)
    network().remember(texts, file=file)
    assert read == [3, 3, 4, 3]


def test_a_kill_while_reading_costs_one_block(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_BLOCK", 2)
    file, texts = tmp_path / "vectors.safetensors", ["cake and tea", "meet at noon", "the bus", "a nasty brute", "the"]
    whole = network()
    whole.remember(texts)
    encode, read = RewardNetwork._encode, list[list[str]]()

    def killed(self: RewardNetwork, given: list[str]) -> torch.Tensor:
        if read:
            raise KeyboardInterrupt
        read.append(given)
        return encode(self, given)

    monkeypatch.setattr(RewardNetwork, "_encode", killed)
    with pytest.raises(KeyboardInterrupt):
        network().remember(texts, file=file)
    monkeypatch.setattr(RewardNetwork, "_encode", lambda *given: read.append(given[1]) or encode(*given))
    again, notes = network(), list[str]()
    again.remember(texts, lambda _kind, facts: notes.append(facts["text"]), file=file)
    assert read == [texts[:2], texts[2:4], texts[4:]]
    assert notes == ["reading turns: 4 of 5", "reading turns: 5 of 5"]
    assert torch.equal(again._table, whole._table)


def test_without_ratings_there_is_no_line_to_learn():
    made = RewardNetwork(recipe())
    assert not any(name.startswith("line.") for name, _ in made.trained())


def test_with_lora_the_encoder_gets_a_gradient():
    made = network(lora={"r": 2, "alpha": 4, "dropout": 0.0}).train()
    nn.init.normal_(made.head["out"])  # at 0 nothing behind it has a gradient
    found, _ = made.losses(lessons())
    torch.stack(list(found.values())).sum().backward()
    moved = [name for name, value in made.trained() if value.grad is not None and value.grad.abs().sum() > 0]
    assert any("lora_B" in name for name in moved)
    assert "head.compare" in moved
    assert {name.partition(".")[0] for name in made.tensors()} == {"head", "line", "lora"}


def test_the_seed_decides_where_it_begins():
    first, again, other = (RewardNetwork(recipe(seed=seed)).tensors() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.compare"], other["head.compare"])


def test_what_was_trained_is_loaded_bit_for_bit():
    one, other = network(), network(seed=5)
    other.load({name: value.detach() for name, value in one.trained()})
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(one.trained(), other.trained(), strict=True))
