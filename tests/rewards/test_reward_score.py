"""`reward:NAME` as a score: opened late, signed with its settings, marked where it trained the model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dialtune.comparison import compare, describe
from dialtune.data.reading import DataSet
from dialtune.errors import ConfigError, MissingExtraError
from dialtune.evaluation import evaluate_completions
from dialtune.metrics.reward import RewardScore, short_name
from dialtune.metrics.table import look_up
from dialtune.results import Evaluation, ModelInfo, to_json
from dialtune.rewards import score as rewards_score
from dialtune.rewards.score import alarm_scorers, open_score, reward_settings, trained_scorer, training_rewards
from dialtune.rewards.table import find_reward
from dialtune.rewards.text import LengthReward
from dialtune.types import Completion, Example, Message

ROWS = tuple(
    Example(
        f"d{k}#1", (Message("user", f"How was day {k}?"),), ("It was a good day.",), {"dialogue": f"d{k}", "turn": 1}
    )
    for k in range(40)
)


def evaluated(texts: Sequence[str], *names: str, model: str = "m") -> Evaluation:
    completions = [Completion(row.id, text, (), "stop") for row, text in zip(ROWS, texts, strict=True)]
    data = DataSet("toy", "test", "messages", ROWS)
    return evaluate_completions(data, completions, names, model=ModelInfo(name=model), task="respond", resamples=200)


def trained(folder: Path, rewards: dict[str, float], start: str = "base", qualities: Sequence[str] = ()) -> Path:
    """A run folder whose run.json says this, with a checkpoint in it."""
    (folder / "checkpoint-3").mkdir(parents=True)
    said = {"rewards": {"rewards": rewards, "qualities": list(qualities)}, "model": {"name": start}}
    (folder / "run.json").write_text(json.dumps(said))
    return folder


class Fixed:
    """A reward of the test: one value per row, masked where it is None."""

    name = "fixed"
    judges = "other"

    def __init__(self, values: Sequence[float | None]) -> None:
        self.values = values

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Any:
        return np.ma.array([v or 0.0 for v in self.values], mask=[v is None for v in self.values], dtype=np.float64)


# --- values ---


def test_the_score_is_the_mean_of_the_reward_with_an_interval() -> None:
    texts = ["one two three four five six"] * 30 + ["one"] * 10
    score = evaluated(texts, "reward:length").scores["reward:length"]
    # 5 to 40 words earn 1; one word of five earns 0.2: (30 + 10 * 0.2) / 40
    assert score.value == pytest.approx(0.8)
    assert score.n == 40
    assert score.ci is not None
    assert score.ci[0] < 0.8 < score.ci[1]
    assert score.note is None


def test_rows_to_which_a_reward_does_not_apply_are_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_score, "find_reward", lambda name: Fixed([0.5, None] * 20))
    found = evaluated(["x"] * 40, "reward:fixed")
    assert (found.scores["reward:fixed"].value, found.scores["reward:fixed"].n) == (0.5, 20)
    assert [row.scores["reward:fixed"] for row in found.rows[:2]] == [0.5, None]


def test_it_is_compared_in_pairs_and_higher_is_better() -> None:
    sides = [evaluated(["one"] * 40, "reward:length"), evaluated(["a b c d e f"] * 39 + ["one"], "reward:length")]
    entry = compare(*sides, resamples=300, permutations=300).scores["reward:length"]
    assert (entry.direction, entry.verdict) == ("higher", "improved")
    assert entry.before == pytest.approx(0.2)
    assert entry.after == pytest.approx(0.98)


# --- names and signatures ---


def test_any_name_is_found_and_nothing_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparing must not need the reward: its folder may be gone."""
    monkeypatch.setattr(rewards_score, "find_reward", lambda name: 1 / 0)
    metric = look_up("reward:gone/folder")
    assert isinstance(metric, RewardScore)
    assert (metric.name, metric.direction) == ("reward:folder", "higher")
    assert metric.unavailable() == "the reward has not been opened"
    assert np.isnan(metric.segments(["x"], ROWS[:1])).all()
    assert look_up("reward:") is None


@pytest.mark.parametrize(
    ("name", "short"),
    [("relevance", "relevance"), ("/a/b/reward-x/", "reward-x"), ("../r", "r"), ("toxicity:o/n#L", "toxicity:o/n#L")],
)
def test_results_hold_no_path(name: str, short: str) -> None:
    assert short_name(name) == short


def test_an_unknown_reward_is_an_error_that_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"reward 'lenght': unknown; did you mean 'length'\?"):
        evaluated(["x"] * 40, "reward:lenght")


def test_a_tool_that_is_not_installed_scores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise MissingExtraError("the encoder is not installed;\n run: pip install it")

    monkeypatch.setattr(rewards_score, "find_reward", refuse)
    found = evaluated(["x"] * 40, "reward:relevance", "echo_rate")
    assert found.scores["reward:relevance"].value is None
    assert found.scores["reward:relevance"].reason == "the encoder is not installed; run: pip install it"
    assert found.scores["echo_rate"].n == 40


def test_the_signature_names_the_reward_and_what_it_was_made_with() -> None:
    metric = open_score(RewardScore("length"), "m")
    assert metric.signature((1, 1)) == "reward|by:length|low:5|high:40|of:absolute|agg:mean|dialtune:1"
    assert reward_settings(LengthReward(0.5, 1.5, "reference")) == {"low": "0.5", "high": "1.5", "of": "reference"}
    assert reward_settings(find_reward("rougeL")) == {"metric": "rougeL", "scale": "100"}
    assert reward_settings(find_reward("toxicity:lexicon"))["scorer"].startswith("dialtune-lexicon")


def test_a_reward_may_say_its_own_settings_and_none_can_break_the_signature() -> None:
    class Told(Fixed):
        def settings(self) -> dict[str, str]:
            return {"sha": "ab|cd", "base": "Mini LM", "agg": "median"}

    settings = reward_settings(Told([]))
    assert settings == {"sha": "ab|cd", "base": "Mini LM", "agg": "median"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards_score, "find_reward", lambda name: Told([]))
        signed = open_score(RewardScore("told"), "m").signature((1, 1))
    assert signed == "reward|by:told|sha:ab-cd|base:Mini-LM|agg:mean|dialtune:1"
    assert reward_settings(Fixed([])) == {}


def test_another_metric_is_left_alone() -> None:
    other = look_up("echo_rate")
    assert other is not None
    assert open_score(other, "m") is other
    opened = open_score(RewardScore("length"), "m")
    assert open_score(opened, "m") is opened


# --- never reward and judge in one run without a warning ---

WARNING = "this reward also trained the model: a gain in it is no evidence; judge by another"


def test_the_rewards_of_a_run_are_those_of_its_folder_and_its_checkpoints(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"length": 1.0, "toxicity": 2.0}, qualities=["rougeL"])
    assert training_rewards(str(run)) == ("length", "toxicity", "rougeL")
    assert training_rewards(str(run / "checkpoint-3")) == ("length", "toxicity", "rougeL")
    assert training_rewards("org/name") == ()
    assert training_rewards(str(tmp_path)) == ()


def test_the_scorer_that_a_run_learned_from_is_no_juror(tmp_path: Path) -> None:
    for place, (rewards, scorer) in enumerate(
        [
            ({"toxicity": 1.0}, "minilm"),
            ({"length": 1.0, "toxicity:ngrams": 2.0}, "ngrams"),
            ({"toxicity:org/name#hate": 1.0}, "org/name#hate"),
            ({"toxicity:toxicity": 1.0}, "minilm"),
            ({"length": 1.0}, None),
        ]
    ):
        assert trained_scorer(str(trained(tmp_path / str(place), rewards))) == scorer
    assert trained_scorer("org/name") is None


def test_the_scorers_that_watched_a_model_are_known(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"length": 1.0})
    assert alarm_scorers(str(run)) == ()
    record = json.loads((run / "run.json").read_text())
    for alarm, names in (("ngrams", ("ngrams",)), ("toxicity", ("minilm",)), (None, ())):
        record["rewards"]["alarm"] = alarm
        (run / "run.json").write_text(json.dumps(record))
        assert alarm_scorers(str(run)) == names


def test_what_a_run_started_from_counts_too(tmp_path: Path) -> None:
    first = trained(tmp_path / "first", {"length": 1.0})
    second = trained(tmp_path / "second", {"copy": 1.0}, start=str(first / "checkpoint-3"))
    assert training_rewards(str(second)) == ("copy", "length")


def test_a_run_that_names_itself_or_nothing_readable_ends_the_search(tmp_path: Path) -> None:
    run = tmp_path / "loop"
    trained(run, {"length": 1.0}, start=str(run))
    assert training_rewards(str(run)) == ("length",)
    pair = [tmp_path / "a", tmp_path / "b"]
    for one, other in (pair, pair[::-1]):
        trained(one, {"copy": 1.0}, start=str(other))
    assert training_rewards(str(pair[0])) == ("copy",)
    for text in ("{", "[]", '{"rewards": 3}', '{"rewards": {"rewards": null}}'):
        (run / "run.json").write_text(text)
        assert training_rewards(str(run)) == ()


def test_a_score_by_a_reward_that_trained_the_model_says_so_everywhere(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", {"length": 1.0})
    names = ("reward:length", "reward:copy")
    before, after = evaluated(["one"] * 40, *names), evaluated(["a b c d e f"] * 40, *names, model=str(run))
    assert after.scores["reward:length"].note == WARNING
    assert after.scores["reward:copy"].note is None
    assert Evaluation.model_validate_json(to_json(after)) == after
    compared = compare(before, after, resamples=200, permutations=200)
    entry = compared.scores["reward:length"]
    assert entry.note is not None
    assert entry.note.endswith(WARNING)
    assert "fewer than 100 dialogues" in entry.note
    assert WARNING in describe(compared)[0]
    assert WARNING not in (compared.scores["reward:copy"].note or "")


def test_a_learned_reward_is_known_by_its_folders_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards_score, "find_reward", lambda name: Fixed([0.5] * 40))
    run = trained(tmp_path / "run", {"runs/judge": 1.0})
    found = evaluated(["x"] * 40, f"reward:{tmp_path}/elsewhere/judge", model=str(run))
    assert list(found.scores) == ["reward:judge"]
    assert found.scores["reward:judge"].note == WARNING
