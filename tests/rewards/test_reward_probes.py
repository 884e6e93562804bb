"""Probes: the set itself, and rewards that are upside down, constant, broken, moody or unfair."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reward_fakes import TOXIC, FakeReward, FakeScorer, example

from dialtune.errors import MissingExtraError, RewardError
from dialtune.metrics.base import is_empty
from dialtune.rewards import probes
from dialtune.rewards.base import FunctionReward
from dialtune.rewards.probes import area_under_curve, cheap_texts, load_probes, run_probes
from dialtune.rewards.text import CopyReward, FormatReward, LengthReward, NoEcho, NoRepetition
from dialtune.rewards.toxicity import Civility

FAMILIES = ["toxic", "clean", "identity", "neutral", "obfuscated", "negated", "quoted", "empty", "gibberish", "polite"]
IDENTITY = {probe.text: probe.group for probe in load_probes() if probe.family == "identity"}


def civility(logit, label: str = "toxic") -> Civility:
    return Civility(FakeScorer(logit, label=label), "civility")


def fair(text: str) -> float:
    return 3.0 if text in TOXIC else -3.0


# the set


def test_every_family_has_forty_lines_and_none_is_there_twice() -> None:
    counts = Counter(probe.family for probe in load_probes())
    assert sorted(counts) == sorted(FAMILIES)
    assert min(counts.values()) >= 40
    texts = [probe.text for probe in load_probes()]
    assert len(set(texts)) == len(texts)


def test_pairs_and_twins_are_complete() -> None:
    keys = {family: [p.key for p in load_probes() if p.family == family] for family in FAMILIES}
    assert keys["toxic"] == keys["clean"]
    assert keys["identity"] == keys["neutral"]
    groups = Counter(probe.group for probe in load_probes() if probe.family == "identity")
    assert len(groups) >= 6
    assert min(groups.values()) >= 10  # one miss is a tenth
    assert all(bool(probe.group) == (probe.family in ("identity", "neutral")) for probe in load_probes())


def test_only_empty_probes_are_empty() -> None:
    assert [p for p in load_probes() if is_empty(p.text) != (p.family == "empty")] == []


def test_a_twin_differs_by_a_few_words_only() -> None:
    twins = {p.key: p.text for p in load_probes() if p.family == "neutral"}
    for probe in load_probes():
        if probe.family == "identity":
            other = twins[probe.key].lower().replace(".", " ").split()
            shared = set(probe.text.lower().replace(".", " ").split()) & set(other)
            assert len(shared) >= 0.4 * len(set(other)), (probe.text, twins[probe.key])


def test_no_probe_is_a_sentence_of_the_shared_corpora(shared_data) -> None:
    import gzip

    mine = {probe.text.lower() for probe in load_probes() if len(probe.text.split()) >= 4}
    seen = 0
    for path in sorted(shared_data.glob("*/*.gz")):
        with gzip.open(path, "rt", encoding="utf-8", errors="ignore") as file:
            text = file.read().lower()
        seen += 1
        assert [line for line in mine if line in text] == []
    assert seen >= 8


def test_a_missing_file_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(probes, "ASSET", tmp_path / "probes.jsonl")
    load_probes.cache_clear()
    try:
        with pytest.raises(MissingExtraError, match=r"^probes.jsonl: the packaged probes are missing; reinstall"):
            load_probes()
    finally:
        load_probes.cache_clear()


# toxicity


def test_a_fair_scorer_passes_with_its_numbers() -> None:
    report = run_probes(civility(fair))
    assert (report.passed, report.failures) == (True, ())
    report.require()
    n = report.numbers
    assert (n["auc"], n["clean_mean"], n["toxic_mean"]) == (1.0, 3.0, -3.0)
    assert (n["obfuscated_recall"], n["negated_alarms"], n["quoted_alarms"]) == (1.0, 0.0, 0.0)
    assert (n["identity_alarms"], n["neutral_alarms"], n["identity_alarms:religion"]) == (0.0, 0.0, 0.0)
    assert (n["empty_highest"], n["lowest"]) == (-8.0, -3.0)


def test_inverted_labels_are_named_with_both_means_and_the_label() -> None:
    report = run_probes(civility(lambda text: -fair(text), label="nothate"))
    assert report.failures == (
        "reward 'civility' is upside down: mean 3.00 on 48 toxic probes, -3.00 on 48 clean ones; "
        "clean text must earn more.",
    )
    with pytest.raises(RewardError, match=r"is upside down") as caught:
        report.require()
    assert str(caught.value).splitlines()[1] == "  It reads label 'nothate' of the scorer 'fake'."


def test_a_function_is_held_to_judge_toxicity_unless_it_says_otherwise() -> None:
    def rudeness(completions, **_):
        return [float(text in TOXIC) for text in completions]

    (failure,) = run_probes(FunctionReward(rudeness)).failures
    assert failure.startswith("reward 'rudeness' is upside down: mean 1.00 on 48 toxic probes, 0.00 on 48 clean ones")
    assert run_probes(FunctionReward(rudeness, judges="other")).passed


def test_a_function_need_not_know_about_silence() -> None:
    def kindness(completions, **_):
        return [-float(text in TOXIC) for text in completions]

    assert run_probes(FunctionReward(kindness)).passed
    (failure,) = run_probes(FakeReward(lambda text: 0.0 - float(text in TOXIC), "kind", "toxicity")).failures
    assert failure == (
        "reward 'kind' gives empty text up to 0, another probe only -1; nothing may earn less than silence"
    )


def test_the_same_value_everywhere_teaches_nothing() -> None:
    assert run_probes(civility(lambda text: 0.5)).failures == (
        "reward 'civility' gives -0.5 to all 458 probes; nothing to learn",
    )


def test_nan_is_refused_with_an_example() -> None:
    report = run_probes(civility(lambda text: float("nan") if "landlord" in text else fair(text)))
    assert report.failures == (
        "reward 'civility' gave no finite value on 2 of 522 probes, such as "
        "'My landlord is a greedy bastard and a filthy liar.'",
    )


def test_a_reward_that_raises_is_refused_with_its_reason() -> None:
    def breaks(text: str) -> float:
        raise ValueError("no such thing")

    assert run_probes(civility(breaks)).failures == ("reward 'civility' failed twice: ValueError: no such thing",)


def test_a_reward_that_applies_to_nothing_is_refused() -> None:
    reward = FunctionReward(lambda completions, **_: [None] * len(completions), "shy")
    assert run_probes(reward).failures == ("reward 'shy' applies to none of 522 probes; nothing can be said of it",)


def test_a_reward_that_skips_the_pairs_is_refused() -> None:
    clean = {probe.text for probe in load_probes() if probe.family == "clean"}
    reward = FunctionReward(
        lambda completions, **_: [None if t in clean else float(len(t)) for t in completions], "shy"
    )
    assert run_probes(reward).failures == (
        "reward 'shy' does not apply to toxic or to clean probes; nothing can be said of it",
    )


def test_a_reward_that_changes_its_mind_is_refused() -> None:
    moods = itertools.count()
    (failure,) = run_probes(FakeReward(lambda text: float(next(moods)), "moody")).failures
    assert failure.startswith("reward 'moody' is not deterministic or mixes rows: ")
    assert "probes got another value in another order, such as 0 and " in failure


def test_a_reward_that_mixes_rows_is_refused() -> None:
    class Ranks:
        name = "ranks"

        def scores(self, examples, completions):
            return np.arange(len(completions), dtype=np.float64)

    assert "mixes rows" in run_probes(Ranks()).failures[0]


def test_a_scorer_that_misses_a_tenth_of_the_pairs_is_refused() -> None:
    missed = {probe.text for probe in load_probes() if probe.family == "toxic" and probe.key.endswith("1")}
    report = run_probes(civility(lambda text: -3.0 if text in missed else fair(text)))
    # Five of 48 toxic lines (01, 11, 21, 31, 41) tie with all clean ones: 1 - 5 / 96.
    assert report.numbers["auc"] == pytest.approx(1 - 5 / 96)
    assert report.failures == (
        "reward 'civility' ranks clean above toxic probes with an AUC of 0.948; at least 0.95 is needed",
    )


def test_the_gap_is_measured_in_the_start_policys_spread() -> None:
    assert run_probes(civility(fair), start_std=5.9).passed
    assert run_probes(civility(fair), start_std=6.1).failures == (
        "reward 'civility' sets clean probes only 0.98 standard deviations above toxic ones; at least 1 is needed",
    )


def test_identity_mentions_taken_for_toxic_are_refused_by_group() -> None:
    faith = [text for text, group in IDENTITY.items() if group == "religion"]
    report = run_probes(civility(lambda text: 3.0 if text in faith[:2] else fair(text)))
    assert report.failures == (
        "reward 'civility' takes harmless mentions of people for toxic: religion 2 of 10; at most 10% of a group "
        "is allowed",
    )
    assert run_probes(civility(lambda text: 3.0 if text in faith[:1] else fair(text))).passed


def test_identity_mentions_may_not_alarm_three_times_as_often_as_their_twins() -> None:
    one_a_group = [next(text for text, group in IDENTITY.items() if group == name) for name in set(IDENTITY.values())]
    report = run_probes(civility(lambda text: 3.0 if text in one_a_group[:4] else fair(text)))
    assert report.failures == (
        "reward 'civility' takes 4 of 80 harmless lines about people for toxic, and 0 with a neutral word instead; "
        "at most 3 times as many are allowed",
    )
    assert run_probes(civility(lambda text: 3.0 if text in one_a_group[:3] else fair(text))).passed
    neutral = [probe.text for probe in load_probes() if probe.family == "neutral"][:2]
    assert run_probes(civility(lambda text: 3.0 if text in [*one_a_group[:6], *neutral] else fair(text))).passed


@pytest.mark.parametrize("reward", [LengthReward(), FormatReward(), CopyReward(), NoRepetition(), NoEcho()])
def test_rewards_that_judge_something_else_pass_what_every_reward_must(reward) -> None:
    assert run_probes(reward).failures == ()
    assert "auc" not in run_probes(reward).numbers


def test_a_function_that_needs_columns_is_probed_on_real_rows() -> None:
    def overlap(completions, topic, **_):
        return [float(len(text) + len(name)) for text, name in zip(completions, topic, strict=True)]

    rows = [replace(example("a"), meta={"topic": "rent"}), replace(example("b"), meta={"topic": "a holiday"})]
    assert run_probes(FunctionReward(overlap, judges="other"), examples=rows).passed
    assert "asks for 'topic'" in run_probes(FunctionReward(overlap, judges="other")).failures[0]


# the area under the curve


def test_ties_count_half() -> None:
    assert area_under_curve(np.array([1.0, 0.0]), np.array([0.0, 0.0])) == 0.75


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_the_area_equals_that_of_scikit_learn(high: list[int], low: list[int]) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    expected = metrics.roc_auc_score([1] * len(high) + [0] * len(low), high + low)
    assert area_under_curve(np.array(high, dtype=float), np.array(low, dtype=float)) == pytest.approx(expected)


# what can be written without reading


def test_cheap_texts_are_one_for_each_dialogue() -> None:
    rows = [example(f"d{i}", f"#Person1#: Folder {i}, please.\n#Person2#: Here it is.", ("gold",)) for i in range(3)]
    cheap = cheap_texts(rows)
    assert {len(texts) for texts in cheap.values()} == {3}
    assert cheap["a copy of the dialogue"][2] == "#Person1#: Folder 2, please.\n#Person2#: Here it is."
    assert len(set(cheap["gibberish"])) == 3
    polite = [name for name in cheap if name.endswith("of every dialogue")]
    assert len(polite) == sum(probe.family == "polite" for probe in load_probes())
    assert all(len(set(cheap[name])) == 1 for name in polite)


def test_gibberish_goes_round() -> None:
    rows = [example(f"d{i}") for i in range(100)]
    assert len(cheap_texts(rows)["gibberish"]) == 100
