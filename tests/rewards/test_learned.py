"""A learned reward from its folder: bit for bit what was saved, one value whatever stands beside it, refusals."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_encoder import save_tiny_encoder

from dialtune.errors import ConfigError, ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.metrics.table import find_metric
from dialtune.models.embedder import open_encoder
from dialtune.models.reply_head import new_head
from dialtune.rewards.base import score_safely
from dialtune.rewards.learned import (
    FORMAT,
    LearnedReward,
    LearnedRewardConfig,
    build_reward,
    is_reward_folder,
    load_reward,
)
from dialtune.rewards.score import open_score
from dialtune.rewards.table import find_reward, is_learned
from dialtune.trainers.scorer import inject_update, save_folder, trained_update
from dialtune.types import Example, Message

CONTEXTS = [("the train leaves at ten",), ("cake and tea", "the bus at noon", "they meet on monday"), ("tea ?",)]
REPLIES = ["agree to meet at the station", "a nasty brute", "cake"]


def tensors_of(base: str, *, lora: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights as training leaves them, every part of them far from 0."""
    torch.manual_seed(seed)
    head = new_head(16, 3, 8) | {"out": torch.randn(8)}
    found = {f"head.{name}": value for name, value in head.items()}
    if lora:
        encoder = open_encoder(base, max_tokens=32)
        inject_update(encoder, r=2, alpha=4)
        update = trained_update(encoder.module)
        found |= {name: torch.randn_like(value) * 0.3 for name, value in sorted(update.items())}
    return found


def config_of(base: str, **changes: Any) -> LearnedRewardConfig:
    known = LearnedRewardConfig(
        name="fit",
        base=base,
        base_sha256=open_encoder(base).sha256,
        signals=["contexts"],
        window=3,
        max_tokens=32,
        scale=2.0,
        slope=1.5,
        intercept=-0.25,
        weights_sha256="",
        measured={},
        training={},
    )
    return replace(known, **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_encoder(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def folder(base: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("made") / "fit"
    save_folder(path, tensors_of(base, lora=True), {"format": FORMAT, **asdict(config_of(base))})
    return path


@pytest.fixture
def reward(folder: Path) -> LearnedReward:
    return load_reward(folder)


def row(*turns: str, name: str = "row") -> Example:
    roles = ("user", "assistant")
    return Example(name, tuple(Message(roles[i % 2], turn) for i, turn in enumerate(turns)), ())  # type: ignore[arg-type]


@pytest.mark.parametrize("lora", [False, True])
def test_what_is_loaded_scores_bit_for_bit_as_what_was_made(base: str, tmp_path: Path, lora: bool):
    tensors, config = tensors_of(base, lora=lora), config_of(base)
    made = build_reward(open_encoder(base, max_tokens=32), tensors, config, name="fit")
    save_folder(tmp_path / "fit", tensors, {"format": FORMAT, **asdict(config)})
    loaded = load_reward(tmp_path / "fit")
    assert np.array_equal(loaded.logits(CONTEXTS, REPLIES), made.logits(CONTEXTS, REPLIES))
    assert len(set(loaded.logits(CONTEXTS, REPLIES).tolist())) == 3
    assert loaded.config == replace(config, weights_sha256=loaded.config.weights_sha256)
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == ["config.json", "model.safetensors"]


def test_the_update_of_the_encoder_counts(base: str):
    tensors = tensors_of(base, lora=True)
    with_update = build_reward(open_encoder(base, max_tokens=32), tensors, config_of(base), name="fit")
    head = {name: value for name, value in tensors.items() if name.startswith("head.")}
    without = build_reward(open_encoder(base, max_tokens=32), head, config_of(base), name="fit")
    assert not np.allclose(with_update.raw(CONTEXTS, REPLIES), without.raw(CONTEXTS, REPLIES), atol=1e-2)


def test_a_value_is_the_sigmoid_of_the_calibrated_logit(reward: LearnedReward):
    examples = [row(*context) for context in CONTEXTS]
    raw = reward.raw(CONTEXTS, REPLIES)
    assert reward.scores(examples, REPLIES).tolist() == pytest.approx((1 / (1 + np.exp(0.25 - 1.5 * raw))).tolist())


def test_an_empty_reply_gets_nothing_and_a_row_without_a_context_no_value(reward: LearnedReward):
    system = Example("s", (Message("system", "Be kind."),), ())
    found = reward.scores([row("tea ?"), row("tea ?"), system, row(" ... ")], ["", " ?! ", "cake", "cake"])
    assert found.tolist() == [0.0, 0.0, None, None]
    result = score_safely(reward, [system, row("tea ?")], ["cake", "cake"])
    assert np.isnan(result.values[0])
    assert 0 < result.values[1] < 1
    assert not result.bad.any()


def test_only_the_last_turns_that_say_something_are_read(reward: LearnedReward):
    short = row("cake", "tea", "the bus")
    long = row("a nasty brute", "cake", " . ", "tea", "the bus ")
    system = Example("x", (Message("system", "Be kind."), *short.messages), ())
    values = reward.scores([short, long, system], ["at noon", "at noon", " at noon "])
    assert values[0] == values[1] == values[2]
    assert values[0] != reward.scores([row("tea", "cake", "the bus")], ["at noon"])[0]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_value_does_not_depend_on_what_stands_beside_it(reward: LearnedReward, folder: Path, order: tuple[int, ...]):
    together = reward.raw([CONTEXTS[place] for place in order], [REPLIES[place] for place in order])
    for place, value in zip(order, together, strict=True):
        assert load_reward(folder).raw([CONTEXTS[place]], [REPLIES[place]])[0] == value


def test_reading_ahead_changes_the_last_bits_at_most(reward: LearnedReward, folder: Path):
    ahead = load_reward(folder)
    ahead.remember([*REPLIES, *(turn for context in CONTEXTS for turn in context)])
    assert np.allclose(ahead.raw(CONTEXTS, REPLIES), reward.raw(CONTEXTS, REPLIES), atol=1e-5)


def test_nothing_asked_is_nothing_answered(reward: LearnedReward):
    assert reward.scores([], []).tolist() == []
    assert reward.raw([], []).tolist() == []


def test_long_turns_are_cut_and_counted(reward: LearnedReward):
    before = reward.n_truncated
    reward.scores([row("tea " * 100)], ["cake"])
    assert reward.n_truncated == before + 1


def test_the_signature_names_weights_and_what_is_read(reward: LearnedReward, base: str):
    found = reward.settings()
    assert found == {
        "sha": reward.sha, "base": Path(base).name, "signals": "contexts", "window": "3", "max": "32",
        "link": "sigmoid",
    }  # fmt: skip
    assert len(reward.sha) == 8
    int(reward.sha, 16)


def test_who_learned_from_ratings_alone_need_not_know_what_fits(base: str):
    for signals, judges in ((["contexts", "ratings"], "reply"), (["preferences"], "reply"), (["ratings"], "other")):
        config = config_of(base, signals=signals)
        made = build_reward(open_encoder(base, max_tokens=32), tensors_of(base, lora=False), config, name="fit")
        assert made.judges == judges
        assert signals[0] in made.hint


# found by its folder


def test_a_folder_is_a_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    assert find_reward(str(folder)).name == str(folder)
    assert find_reward(str(folder), name="fit").name == "fit"
    monkeypatch.chdir(folder.parent)
    assert find_reward("fit").name == "fit"
    with pytest.raises(ConfigError, match="reward 'fit': no setting 'limit'; known: name"):
        find_reward("fit", limit=3)


def test_a_built_in_name_stays_one_even_beside_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "length").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_learned("length")
    assert is_learned("./length")
    assert not is_learned("")
    assert find_reward("length").name == "length"


def test_a_folder_is_a_score_whose_signature_names_its_weights(folder: Path, reward: LearnedReward):
    metric = open_score(find_metric(f"reward:{folder}"), "some-model")
    examples = [row(*context) for context in CONTEXTS]
    assert metric.name == "reward:fit"
    assert metric.segments(REPLIES, examples)[:, 0].tolist() == reward.scores(examples, REPLIES).tolist()
    assert f":fit|sha:{reward.sha}|base:" in metric.signature((1, 1))


def test_what_is_no_reward_folder_is_told_apart(folder: Path, base: str, tmp_path: Path):
    assert is_reward_folder(folder)
    for other in (Path(base), tmp_path, tmp_path / "none"):
        assert not is_reward_folder(other)
    (tmp_path / "config.json").write_text("{")
    assert not is_reward_folder(tmp_path)


# refusals


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "copy"
    path.mkdir()
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


def changed(path: Path, **values: Any) -> Path:
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(known | values))
    return path


def test_a_folder_that_is_not_there_is_said_so(tmp_path: Path):
    with pytest.raises(ModelNotFoundError, match="no/reward: no such folder; a learned reward is a folder that"):
        find_reward("no/reward")
    with pytest.raises(ModelNotFoundError, match=r"holds no config\.json; a reward is a folder with config\.json and"):
        find_reward(str(tmp_path))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "dialtune.scorer/1"}, r"config.json has format 'dialtune.scorer/1', this version reads"),
        ({"odd": 1}, "config.json is no reward's: .*unexpected keyword"),
        ({"base_sha256": "0" * 64}, "trained on .* with weights 000000000000…, found .*train the reward again"),
        ({"window": 2}, "the head was made for another encoder or window than .* of width 16 and 2 turns"),
    ],
)
def test_a_config_of_something_else_is_refused(copy: Path, values: dict[str, Any], message: str):
    with pytest.raises(ModelError, match=message):
        load_reward(changed(copy, **values))


def test_weights_of_something_else_are_refused(copy: Path):
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1] + b"\x00")
    with pytest.raises(ModelError, match=r"is not the file that config\.json was written for"):
        load_reward(copy)


def test_a_pickle_beside_it_is_refused(copy: Path):
    (copy / "extra.pkl").write_bytes(b"x")
    with pytest.raises(UnsafeModelError):
        load_reward(copy)


def test_an_encoder_that_is_not_installed_is_named(copy: Path):
    with pytest.raises(ModelNotFoundError, match="no-such-encoder: no such encoder"):
        load_reward(changed(copy, base="no-such-encoder"))
