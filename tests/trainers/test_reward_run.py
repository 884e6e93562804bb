"""A recipe to a learned reward, end to end: what is written and refused, and that a killed run ends in the same."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reward_tiny import data, home, preferences, recipe, rows, write
from sklearn.linear_model import LogisticRegression

from dialtune.errors import ConfigError, DataError, InterruptedRunError, ModelNotFoundError
from dialtune.rewards.learned import LearnedRewardConfig, load_reward
from dialtune.runs import read_rows
from dialtune.trainers import reward_run as module
from dialtune.trainers.contrast import Exchange, Lessons, RatedDialogue, ReplyPair
from dialtune.trainers.reward_report import calibrate, card_text, measure
from dialtune.trainers.reward_run import prepare, preview_reward, run_reward


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def say(lines: list[str]) -> Any:
    return lambda kind, facts: lines.append(facts["text"]) if kind == "note" else None


# Enough for the tiny encoder, whose weights are random and whose pieces of words differ from process to process.
PATIENT = {"num_train_epochs": 20, "head_size": 32, "head_dropout": 0.0}


def test_a_run_leaves_a_reward_that_knows_what_fits():
    lines: list[str] = []
    signals = {"contexts": 1, "ratings": 0.5}
    folder = run_reward(recipe(ratings=["witty"], signals=signals, **PATIENT), on_event=say(lines))
    assert folder == Path("reward")
    assert {path.name for path in folder.iterdir()} >= {
        "CARD.md", "config.json", "config.yaml", "metrics.jsonl", "model.safetensors", "run.json",
    }  # fmt: skip
    reward = load_reward(folder)
    measured = reward.config.measured
    assert measured["contexts"]["accuracy"]["value"] > 0.6
    assert measured["contexts"]["accuracy"]["ci"][0] < measured["contexts"]["accuracy"]["value"]
    assert measured["contexts"]["accuracy"]["dialogues"] == 12  # half of the validation set
    assert set(measured["contexts"]) >= {"auc", "brier", "accuracy:reply", "accuracy:context", "accuracy:echo"}
    assert -1 <= measured["ratings"]["spearman"]["value"] <= 1
    assert reward.config.name == "reward"
    assert reward.config.training["settings"]["signals"] == {"contexts": 1.0, "ratings": 0.5}
    assert reward.config.training["data"]["train"] | {"fingerprint": ""} == {
        "name": "train.jsonl", "replies": 96, "dialogues": 32, "fingerprint": "", "licence": "not stated",
    }  # fmt: skip
    assert str(home()) not in (folder / "CARD.md").read_text()  # nor any other folder of this machine
    assert "contexts: held-out accuracy" in "\n".join(lines)
    record = json.loads((folder / "run.json").read_text())
    assert record["outcome"] == "done"
    assert record["model"]["sha256"] == reward.config.base_sha256


def test_the_same_recipe_gives_the_same_bytes_and_the_folder_does_not_matter():
    one, other = (run_reward(recipe(output_dir=name)) for name in ("a/fit", "b/fit"))
    for file in ("model.safetensors", "config.json", "CARD.md"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_a_run_that_was_killed_goes_on_to_the_same_reward(monkeypatch: pytest.MonkeyPatch):
    whole = run_reward(recipe(output_dir="whole"))
    here = Path.cwd()

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    for name, step in (("calibrate", 12), ("save_folder", 12)):  # after training, and half written
        monkeypatch.setattr(module, name, killed)
        with pytest.raises(KeyboardInterrupt):
            run_reward(recipe(output_dir=name))
        monkeypatch.undo()
        monkeypatch.chdir(here)
        assert json.loads(Path(name, "run.json").read_text())["outcome"].startswith("KeyboardInterrupt")
        assert [row["step"] for row in read_rows(Path(name, "metrics.jsonl"))][-1] == step
        assert Path(name, "vectors.safetensors").is_file()
        resumed = run_reward(recipe(output_dir=name), resume="newest")
        assert not Path(name, "vectors.safetensors").exists()
        assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert load_reward(resumed).config == replace(load_reward(whole).config, name=name)


def test_a_run_is_not_written_over_and_not_resumed_under_another_recipe():
    run_reward(recipe())
    with pytest.raises(ConfigError, match="already holds checkpoint-12; go on with --resume"):
        run_reward(recipe())
    with pytest.raises(ConfigError, match="changed keys: learning_rate"):
        run_reward(recipe(learning_rate=0.5), resume="newest")


def test_a_signal_is_heard(monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_arguments: object, **_named: object) -> None:
        raise InterruptedRunError("stopped by signal 15", 15)

    monkeypatch.setattr(module, "train_reward", interrupted)
    with pytest.raises(InterruptedRunError):
        run_reward(recipe())
    assert json.loads(Path("reward/run.json").read_text())["outcome"].startswith("InterruptedRunError")


# the other signals


def test_it_learns_from_preferences():
    train, validation = (
        write(Path("train.jsonl"), preferences("train", 48)),
        write(Path("v.jsonl"), preferences("v", 32)),
    )
    changes = {"signals": {"preferences": 1.0}, "data": {"train": train, "validation": validation, "leaks": "allow"}}
    reward = load_reward(run_reward(recipe(**changes, **PATIENT)))
    assert reward.config.measured["preferences"]["accuracy"]["value"] > 0.6
    assert "contexts" not in reward.config.measured


def test_it_learns_from_ratings_alone():
    """Chats about a brute are rated 9 or 10, others 2 or 3."""

    def rated(split: str, n: int) -> str:
        found = rows(split, n)
        for number, row in enumerate(found):
            topic = "nasty rotten brute" if number % 2 else "cake and tea"
            row["dialogue"] = "\n".join(f"#Person{1 + k % 2}#: {topic} {split}{number} {k}" for k in range(4))
            row["witty"] = (9 if number % 2 else 2) + number // 2 % 2
        return write(Path(f"{split}.jsonl"), found)

    given = {"train": rated("train", 48), "validation": rated("validation", 48), "leaks": "allow"}
    reward = load_reward(run_reward(recipe(signals={"ratings": 1.0}, ratings=["witty"], data=given, **PATIENT)))
    assert reward.config.measured["ratings"]["spearman"]["value"] > 0.5
    assert reward.judges == "other"
    assert reward.config.slope > 0


def test_held_out_rows_of_their_own_are_reported_on():
    files = data()
    given = {"train": files["train"], "validation": files["validation"], "test": files["test"], "leaks": "allow"}
    reward = load_reward(run_reward(recipe(data=given, num_train_epochs=1, data_licence="CC0-1.0")))
    assert reward.config.measured["contexts"]["accuracy"]["dialogues"] == 16
    assert set(reward.config.training["data"]) == {"train", "validation", "test"}
    assert {facts["licence"] for facts in reward.config.training["data"].values()} == {"CC0-1.0"}
    assert "CC0-1.0" in Path("reward/CARD.md").read_text()


def test_with_lora_the_update_is_saved_and_its_scale_kept():
    folder = run_reward(recipe(lora={"r": 2, "alpha": 8, "dropout": 0.0}, max_steps=3))
    reward = load_reward(folder)
    assert reward.config.scale == 4.0
    assert reward.config.training["settings"]["learning_rate"] == 1e-2


# calibration and measuring


class Fixed:
    """A reward whose raw values are known by reply."""

    def __init__(self, values: dict[str, float], signals: tuple[str, ...] = ("contexts",)) -> None:
        self.values = values
        self.config = LearnedRewardConfig(
            name="fixed", base="b", base_sha256="", signals=signals, window=2, max_tokens=8, scale=0.0, slope=1.0,
            intercept=0.0, weights_sha256="", measured={}, training={"data": {}},
        )  # fmt: skip

    def raw(self, contexts: Any, replies: list[str]) -> np.ndarray[Any, Any]:
        return np.array([self.values[reply] for reply in replies])


def pair(better: str, worse: str, unit: int, kind: str = "reply") -> ReplyPair:
    return ReplyPair(Exchange(("x",), better), Exchange(("x",), worse), kind, unit)


def test_calibration_is_a_logistic_regression_on_the_two_sides_of_the_pairs():
    """Against sklearn on Platt's targets: each row is there twice, as a 1 and as a 0, weighted by its target."""
    rng = np.random.default_rng(0)
    values = {f"b{k}": float(rng.normal(1.0)) for k in range(60)} | {f"w{k}": float(rng.normal()) for k in range(60)}
    pairs = [pair(f"b{k}", f"w{k}", k) for k in range(60)]
    found = calibrate(Fixed(values), Lessons({"contexts": pairs}))  # type: ignore[arg-type]
    raw = np.array([*(values[f"b{k}"] for k in range(60)), *(values[f"w{k}"] for k in range(60))])
    high, low = 61 / 62, 1 / 62
    wanted = np.repeat([high, low], 60)
    judge = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    judge.fit(np.r_[raw, raw][:, None], np.repeat([1, 0], 120), sample_weight=np.r_[wanted, 1 - wanted])
    assert (found.slope, found.intercept) == pytest.approx((judge.coef_[0, 0], judge.intercept_[0]), rel=1e-4)


def test_ratings_are_calibrated_on_the_means_of_dialogues():
    rng = np.random.default_rng(0)
    targets = rng.uniform(0.1, 0.9, size=80)
    logits = np.log(targets / (1 - targets)) + rng.normal(size=80) / 4
    values = {f"{side}{k}": float(logits[k]) for k in range(80) for side in "ab"}
    rated = [RatedDialogue((Exchange(("x",), f"a{k}"), Exchange(("x",), f"b{k}")), t, k) for k, t in enumerate(targets)]
    found = calibrate(Fixed(values, ("ratings",)), Lessons({}, rated))  # type: ignore[arg-type]
    chances = 1 / (1 + np.exp(-(found.slope * np.array([values[f"a{k}"] for k in range(80)]) + found.intercept)))
    assert float(np.abs(chances - targets).mean()) < 0.06
    assert float(chances.mean()) == pytest.approx(float(targets.mean()), abs=0.01)


@pytest.mark.parametrize(
    ("lessons", "message"),
    [
        (Lessons({"contexts": []}), "no pair and no rated dialogue"),
        (Lessons({}, [RatedDialogue((Exchange(("x",), "a"),), 0.5, k) for k in range(3)]), "every rating is 0.5 of 1"),
    ],
)
def test_rows_that_cannot_calibrate_are_refused(lessons: Lessons, message: str):
    with pytest.raises(DataError, match=f"held-out rows: {message}; a reward is calibrated on rows that differ"):
        calibrate(Fixed({"a": 1.0}, ("ratings",)), lessons)  # type: ignore[arg-type]


def test_numbers_by_hand():
    values = {"a": 3.0, "b": 2.0, "c": 1.0, "d": 0.0}
    pairs = [pair("a", "b", 0), pair("c", "b", 1), pair("a", "d", 0, "context"), pair("d", "c", 1, "echo")]
    rated = [
        RatedDialogue((Exchange(("x",), one), Exchange(("x",), two)), t, k)
        for k, (one, two, t) in enumerate([("a", "b", 0.9), ("c", "c", 0.5), ("d", "b", 0.6)])
    ]
    found = measure(Fixed(values), Lessons({"contexts": pairs, "preferences": pairs[:2]}, rated))  # type: ignore[arg-type]
    contexts = found["contexts"]
    assert contexts["accuracy"]["value"] == pytest.approx(2 / 3)  # cheap pairs stand beside it
    assert contexts["accuracy:reply"]["value"] == 0.5
    assert contexts["accuracy:context"]["value"] == 1.0
    assert contexts["accuracy:echo"]["value"] == 0.0
    assert "accuracy:repeat" not in contexts
    # true ones 3, 1, 3 against 2, 2, 0: six of nine, 3 > 2, 2, 0 twice and 1 > 0
    assert contexts["auc"]["value"] == pytest.approx(7 / 9)
    chance = {value: 1 / (1 + math.exp(-value)) for value in (0.0, 1.0, 2.0, 3.0)}
    true, false = (3.0, 1.0, 3.0), (2.0, 2.0, 0.0)
    brier = (sum((chance[v] - 1) ** 2 for v in true) + sum(chance[v] ** 2 for v in false)) / 6
    assert contexts["brier"] == pytest.approx(brier)
    assert found["preferences"]["accuracy"]["value"] == 0.5
    # means 2.5, 1, 1 and ratings .9, .5, .6: ranks 3, 1.5, 1.5 and 3, 1, 2, so r = 1.5 / sqrt(1.5 * 2)
    assert found["ratings"]["spearman"]["value"] == pytest.approx(math.sqrt(3) / 2)


def test_the_card_says_what_could_not_be_measured():
    fixed = Fixed({})
    unknown = {"value": None, "ci": None, "n": 1, "dialogues": 1, "reason": "fewer than two dialogues"}
    config = replace(fixed.config, measured={"ratings": {"spearman": unknown}})
    text = card_text(config, recipe())
    assert "not measured (fewer than two dialogues)" in text
    assert text.startswith("# fixed\n")


def test_a_reward_that_ranks_the_other_way_round_says_so():
    fixed = Fixed({"a": 0.0, "b": 1.0})
    config = calibrate(fixed, Lessons({"contexts": [pair("a", "b", k) for k in range(9)]}))  # type: ignore[arg-type]
    assert config.slope < 0
    assert "nothing was learned" in module._findings(config)[-1]


# before the first update


def test_a_dry_run_shows_a_pair_of_each_kind_and_writes_nothing():
    lines = preview_reward(recipe(signals={"contexts": 1.0, "ratings": 1.0}, ratings=["witty"]))
    text = "\n".join(lines)
    assert not Path("reward").exists()
    for kind in ("reply", "context", "echo", "repeat"):
        assert f"{kind}: better" in text
        assert f"{kind}: worse" in text
    assert "32 dialogues" in text
    assert "rated 0." in text


def test_nothing_of_a_held_out_dialogue_is_trained_on():
    prepared = prepare(recipe())
    trained = {example.meta["dialogue"] for rows in prepared.plan.dialogues for example in rows}
    assert all(name.startswith("train") for name in trained)
    choosing, reporting = set(prepared.choosing.texts), set(prepared.reporting.texts)
    assert choosing
    assert reporting
    assert not choosing & reporting  # every turn names its dialogue


def test_the_held_out_pairs_are_capped():
    prepared = prepare(recipe(max_evaluation_pairs=100))
    kinds = [found.kind for found in prepared.choosing.pairs["contexts"]]
    assert sum(kind in ("reply", "context") for kind in kinds) <= 100
    assert len(kinds) <= 150


def test_a_leak_stops_the_run():
    files = data()
    leaking = {"train": files["train"], "validation": files["train"], "leaks": "stop"}
    with pytest.raises(DataError, match="training dialogues are also in"):
        run_reward(recipe(data=leaking))


def refuse(message: str, **changes: Any) -> None:
    with pytest.raises(DataError, match=message):
        run_reward(recipe(**changes))
    assert not Path("reward/model.safetensors").exists()


def sets(train: list[dict[str, Any]], validation: list[dict[str, Any]]) -> dict[str, Any]:
    files = {"train": write(Path("t.jsonl"), train), "validation": write(Path("v.jsonl"), validation)}
    return files | {"leaks": "allow"}


def test_a_signal_that_the_rows_do_not_have_is_refused():
    chats = sets(rows("train", 8), rows("validation", 8))
    refuse(
        "signals.preferences: none of 24 rows of t.jsonl has a chosen and a rejected reply",
        signals={"preferences": 1.0},
        data=chats,
    )
    refuse(
        "signals.ratings: no dialogue of t.jsonl has funny; name its columns in ratings",
        signals={"ratings": 1.0},
        ratings=["funny"],
        data=chats,
    )


def test_ratings_that_teach_nothing_are_refused():
    chats = sets(rows("train", 8, witty=5), rows("validation", 8))
    refuse(
        "signals.ratings: all 8 rated dialogues of t.jsonl have one mean of witty",
        signals={"ratings": 1.0},
        ratings=["witty"],
        data=chats,
    )


def test_ratings_that_do_not_differ_on_held_out_rows_cannot_calibrate():
    chats = sets(rows("train", 8), rows("validation", 8, witty=5))
    refuse("held-out rows: every rating is 0.5 of 1", signals={"ratings": 1.0}, ratings=["witty"], data=chats)


def test_ratings_that_are_no_numbers_of_the_scale_are_refused():
    changes = {"signals": {"ratings": 1.0}, "ratings": ["witty"]}
    refuse("train-0#1: rating 'witty' is 1; a number from 3 to 10", rating_scale=[3, 10], **changes)
    refuse(
        "train-0#1: rating 'witty' is 'nice'",
        data=sets(rows("train", 8, witty="nice"), rows("validation", 8)),
        **changes,
    )
    with pytest.raises(DataError, match="NaN"):  # which JSON does not have
        run_reward(recipe(data=sets(rows("train", 8, witty=float("nan")), rows("validation", 8)), **changes))


def test_too_few_dialogues_are_refused():
    refuse("t.jsonl: 1 dialogues with a reply to learn from", data=sets(rows("train", 1), rows("validation", 8)))
    refuse("v.jsonl: 1 held-out dialogues in this half to judge by", data=sets(rows("train", 8), rows("validation", 3)))


def test_an_unknown_encoder_is_named_before_anything_is_written():
    with pytest.raises(ModelNotFoundError, match="no-such: no such encoder; give a packaged name"):
        run_reward(recipe(model="no-such"))


def test_a_layout_without_replies_is_refused():
    documents = [{"document": f"A text number {k}.", "summary": "A text."} for k in range(4)]
    with pytest.raises(DataError, match="holds a reply"):
        run_reward(recipe(data=sets(documents, documents)))
