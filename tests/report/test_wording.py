from __future__ import annotations

from typing import Any

import pytest

from dialtune.report import wording
from dialtune.results import ScoreEntry


def test_an_improvement_is_one_plain_sentence(made: Any) -> None:
    entry = made.entry(19.4, 31.2, relative_ci=(0.52, 0.69))
    assert wording.comparison_sentence("summarize", "rougeL", entry) == (
        "Summaries improved: ROUGE-L 19.4 → 31.2, +61 % (95 % CI +52 to +69), 200 dialogues."
    )


def test_a_loss_is_called_worse_with_a_true_minus(made: Any) -> None:
    entry = made.entry(31.2, 29.4, "worse", relative_ci=(-0.09, -0.02))
    assert wording.comparison_sentence("summarize", "rougeL", entry) == (
        "Summaries got worse: ROUGE-L 31.2 → 29.4, −5.8 % (95 % CI −9.0 to −2.0), 200 dialogues."
    )


def test_no_difference_is_never_called_an_improvement_and_says_what_it_would_take(made: Any) -> None:
    entry = made.entry(30.9, 31.2, "no difference shown", relative_ci=(-0.03, 0.05), n_needed=1912)
    assert wording.comparison_sentence("summarize", "rougeL", entry) == (
        "No difference shown for summaries: ROUGE-L 30.9 → 31.2, +1.0 % (95 % CI −3.0 to +5.0), 200 dialogues; "
        "to show it would take about 1,900 dialogues."
    )


def test_a_change_without_a_relative_interval_is_told_in_the_scores_own_unit(made: Any) -> None:
    entry = made.entry(0.0, 0.42, relative=None, relative_ci=None, ci=(0.3, 0.5), n=1)
    assert wording.comparison_sentence("summarize", "role_swap_margin", entry) == (
        "Summaries improved: role swap margin 0.000 → 0.420, +0.420 (95 % CI +0.300 to +0.500), 1 dialogue."
    )


def test_what_was_not_scored_is_said_and_is_no_zero(made: Any) -> None:
    entry = made.entry(None, None, "no difference shown", n=0, note="no pair was scored on both sides", effect=None)
    assert wording.comparison_sentence("summarize", "bleu", entry) == (
        "Summaries: BLEU not scored (no pair was scored on both sides)."
    )
    blank = ScoreEntry(value=None, ci=None, n=0, signature="bleu", reason="no row has a reference")
    assert wording.evaluation_sentence("summarize", "bleu", blank) == (
        "Summaries: BLEU not scored (no row has a reference)."
    )


def test_one_evaluation_claims_no_change(made: Any) -> None:
    score = ScoreEntry(value=19.41, ci=(18.2, 20.6), n=200, signature="rougeL")
    assert wording.evaluation_sentence("summarize", "rougeL", score) == (
        "Summaries score ROUGE-L 19.4 (95 % CI 18.2 to 20.6) on 200 dialogues; compared with nothing."
    )


def test_replies_are_counted_as_such_with_the_dialogues_they_come_from(made: Any) -> None:
    entry = made.entry(0.8, 0.9, relative_ci=(0.05, 0.2), n=180, n_dialogues=60)
    assert wording.comparison_sentence("respond", "context_auc", entry) == (
        "Replies improved: context AUC 0.800 → 0.900, +12 % (95 % CI +5 to +20), 180 replies in 60 dialogues."
    )
    score = ScoreEntry(value=0.8, ci=(0.7, 0.9), n=180, signature="context_auc")
    assert wording.evaluation_sentence("respond", "context_auc", score) == (
        "Replies score context AUC 0.800 (95 % CI 0.700 to 0.900) on 180 replies; compared with nothing."
    )


def test_replies_are_told_by_a_judge_unless_it_trained_the_model(made: Any) -> None:
    before, after = (made.evaluation([20.0] * 40, name=name) for name in "ab")
    entries = {"bleu": made.entry(1, 2), "context_auc": made.entry(0.8, 0.9), "reward:judge": made.entry(0.6, 0.7)}
    assert wording.key_scores("respond", made.comparison(before, after, entries))[0] == "reward:judge"
    note = "this reward also trained the model: a gain in it is no evidence; judge by another"
    entries["reward:judge"] = entries["reward:judge"].model_copy(update={"note": note})
    assert wording.key_scores("respond", made.comparison(before, after, entries))[0] == "context_auc"
    only = {"reward:judge": entries["reward:judge"]}
    assert wording.key_scores("respond", made.comparison(before, after, only)) == ["reward:judge"]


def test_the_tally_counts_the_scores_that_got_worse(made: Any) -> None:
    before, after = (made.evaluation([20.0] * 40, name=name) for name in "ab")
    entries = {
        "rougeL": made.entry(1, 2), "bleu": made.entry(2, 1, "worse"), "chrf": made.entry(1, 1, "no difference shown"),
    }  # fmt: skip
    assert wording.tally_sentence(made.comparison(before, after, entries)) == (
        "Of 3 scores compared, 1 improved, 1 got worse, 1 without a difference shown."
    )


def test_the_sentence_of_a_training_run_prefers_the_evaluation_loss() -> None:
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": None, "skipped": True}, {"step": 3, "loss": 1.25}]
    assert wording.training_sentence(rows) == "Trained for 3 steps: training loss 3.000 → 1.250."
    rows[0]["eval_loss"], rows[2]["eval_loss"] = 2.5, 2.0
    assert wording.training_sentence(rows) == "Trained for 3 steps: evaluation loss 2.500 → 2.000."
    assert wording.training_sentence([]) == "Training has not logged two steps yet."


@pytest.mark.parametrize(
    ("task", "names", "expected"),
    [
        ("summarize", ["rouge1", "rougeL", "bleu"], "rougeL"),
        ("summarize", ["bleu", "rouge1"], "rouge1"),
        ("summarize", ["tag_integrity"], "tag_integrity"),
        ("my own task", ["a", "b"], "a"),
        ("summarize", [], None),
    ],
)
def test_the_headline_is_the_tasks_own_score_or_else_the_first(
    task: str, names: list[str], expected: str | None
) -> None:
    assert wording.headline(task, names) == expected


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (None, "not tested"),
        (0.00001, "< 0.0001"),
        (0.00042, "0.0004"),
        (0.0035, "0.0035"),
        (0.0124, "0.012"),
        (1.0, "1.000"),
    ],
)
def test_a_p_value_is_never_shown_as_zero(p: float | None, shown: str) -> None:
    assert wording.p_value(p) == shown


@pytest.mark.parametrize("code", [0x00, 0x1B, 0x7F, 0x85, 0xAD, 0x200B, 0x202E, 0x2028, 0x2066, 0xD800, 0xFEFF, 0xFFFF])
def test_what_cannot_be_seen_is_spelled_out(code: int) -> None:
    assert wording.visible(f"a{chr(code)}b") == f"a⟨U+{code:04X}⟩b"


def test_ordinary_text_of_any_script_stays_as_it_is() -> None:
    text = "Zoë said:\n\tنعم\u200cها 你好 👩‍👧 ½ £12"
    assert wording.visible(text) == text


def test_cut_text_says_how_much_is_missing() -> None:
    assert wording.clip("x" * 1010, 10) == "x" * 10 + "… (1,000 more characters)"


def test_a_score_without_a_value_is_counted_as_such_in_the_tally(made: Any) -> None:
    before, after = (made.evaluation([20.0] * 40, name=name) for name in "ab")
    absent = made.entry(None, None, "no difference shown", n=0, effect=None)
    assert wording.tally_sentence(made.comparison(before, after, {"rougeL": made.entry(1, 2), "bleu": absent})) == (
        "Of 2 scores compared, 1 improved, 1 not scored."
    )
    assert wording.tally_sentence(made.comparison(before, after, {"rougeL": made.entry(1, 2)})) == ""


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rougeL", "ROUGE-L"), ("relevance_dialogue", "relevance to dialogue"),
        ("toxicity_mean:ngrams", "toxicity (n-grams)"),
        ("toxicity_rate:org/name#TOXIC", "toxic share (org/name#TOXIC)"),
        ("toxic_copied:minilm", "toxic copied (MiniLM)"), ("reward:civility", "reward (civility)"),
    ],
)  # fmt: skip
def test_scores_have_names_for_people(name: str, shown: str) -> None:
    assert wording.metric_name(name) == shown


def test_limits_are_told_worst_first(made: Any) -> None:
    from dialtune.results import Constraint

    held = {
        "rougeL": Constraint(floor=0.98, ratio=1.2, ci=(1.1, 1.3), held="yes"),
        "bleu": Constraint(floor=0.98, ratio=1.2, ci=(1.1, 1.3), held="yes"),
        "rouge1": Constraint(floor=0.95, ratio=0.8, ci=(0.7, 0.9), held="no"),
    }
    sentence = wording.comparison_sentence("detoxify", "toxicity_mean:ngrams", made.entry(0.4, 0.1), held)
    assert sentence.endswith("; ROUGE-1 not kept (floor 95 %); ROUGE-L and BLEU kept (floor 98 %).")


@pytest.mark.parametrize(("value", "shown"), [(0.98, "98 %"), (1.1284, "112.8 %"), (0.0, "0 %"), (0.9996, "100 %")])
def test_shares_are_percents_with_a_decimal_only_where_it_says_something(value: float, shown: str) -> None:
    assert wording.share(value) == shown
