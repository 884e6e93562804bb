"""Job 3 on the page: who says it, what was kept, where toxic sentences come from, the jury, slices, the way there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_build import read

from dialtune.report import wording
from dialtune.report.build import build_report
from dialtune.report.curves import chosen_step, stops
from dialtune.report.findings import findings, jury_sentences, limits
from dialtune.report.reading import read_jobs
from dialtune.report.scores import headline, unscored


def test_the_sentence_of_job_three_quotes_a_juror_and_says_what_was_kept(detox: Path) -> None:
    text = read(build_report(detox)).text
    assert (
        "Summaries became less toxic: toxicity (n-grams) 0.410 → 0.130, −68 % (95 % CI −77 to −60), 60 dialogues; "
        "ROUGE-L not shown to be kept (floor 98 %); relevance to reference kept (floor 98 %)."
    ) in text
    assert "Of 5 scores compared, 3 improved, 1 without a difference shown, 1 not scored." in text
    assert text.index("Summaries became less toxic") < text.index("What had to be kept")


def test_the_rewards_own_scorer_stands_for_the_job_only_where_there_is_no_other() -> None:
    both = ["toxicity_mean:minilm", "toxicity_mean:ngrams", "rougeL"]
    assert wording.headline("detoxify", both, "ngrams") == "toxicity_mean:minilm"
    assert wording.headline("detoxify", both, "minilm") == "toxicity_mean:ngrams"
    assert wording.headline("detoxify", ["toxicity_mean:minilm"], "minilm") == "toxicity_mean:minilm"


def test_everything_about_job_three_is_on_the_page_in_this_order(detox: Path) -> None:
    text = read(build_report(detox)).text
    order = [
        "What had to be kept Score Floor Kept of before Held relevance to reference 98 % 112.8 % 107.0 to 118.0 held",
        "ROUGE-L 98 % 101.7 % 97.0 to 105.0 not shown",
        "Toxicity (by the reward's scorer) against relevance on the validation dialogues",
        "Change of toxicity (n-grams) per dialogue",
        "Gained most",
        "Where toxic sentences come from",
        "copied by MiniLM 55 % 5 % −50.0 points −62.0 to −38.0",
        "Jury",
        "Mean toxicity by the one scorer that no reward used: −68 %.",
        "gap +2.10 sd (+1.80 to +2.40): no alarm.",
        "MiniLM reward 0.810 0.080",
        "alt-profanity-check juror not scored alt-profanity-check is not installed",
        "MiniLM and n-grams 0.71 0.55 120",
        "Slices",
        "heated 60",
        "calm (other dialogues) 24",
        "What was not scored",
        "toxicity (alt-profanity-check): not scored alt-profanity-check is not installed",
        "Model, data and licences",
        "smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct) apache-2.0",
        "data, train packaged:train:heated apache-2.0",
        "Commands to reproduce",
    ]
    places = [text.index(wanted) for wanted in order]
    assert places == sorted(places)


def test_differences_are_marked_by_elements_and_not_by_colour_alone(detox: Path) -> None:
    file = build_report(detox)
    page = file.read_text(encoding="utf-8")
    assert "Anna <del>shouts that Ben is a lazy pig</del> since" in page
    assert "Anna <ins>is upset</ins> since" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert "line-through" in style
    assert "underline" in style
    assert "[gone: " in style  # for those who listen


def test_the_relevance_that_the_run_held_is_drawn(detox: Path) -> None:
    (log,) = detox.rglob("metrics.jsonl")
    log.write_text(log.read_text().replace("relevance", "relevance_dialogue"))
    (job,) = read_jobs(detox)
    assert [stop.x for stop in stops(job)] == [0.546, 0.52, 0.676]
    assert "Relevance to dialogue, over updates" in build_report(detox).read_text(encoding="utf-8")


def test_the_way_of_the_run_knows_start_refused_and_chosen(detox: Path) -> None:
    (job,) = read_jobs(detox)
    assert [(stop.step, stop.kind) for stop in stops(job)] == [(0, "start"), (6, "refused"), (12, "chosen")]
    assert chosen_step(job) == 12
    page = build_report(detox).read_text(encoding="utf-8")
    assert "step 6: relevance 0.520, toxicity 0.310; step 12: relevance 0.676, toxicity 0.066. Chosen: step 12." in page


def test_a_run_that_notes_no_result_has_no_chosen_point(detox: Path) -> None:
    record = detox / "train" / "run.json"
    record.write_text(record.read_text().replace("result: checkpoint-12", "stopped"))
    (job,) = read_jobs(detox)
    assert [stop.kind for stop in stops(job)] == ["start", "refused", "passed"]


def test_more_invented_toxicity_is_an_alarm(tmp_path: Path, made: Any) -> None:
    from dialtune.results import Shift

    worse = {"invented:minilm": Shift(before=0.0, after=0.2, difference=0.2, ci=(0.1, 0.3), n=60)}
    (job,) = read_jobs(made.write_detox(tmp_path, origins=worse))
    (found,) = [finding for finding in findings(job) if finding.heading.startswith("Where")]
    alarm = "Alarm: more completions hold a toxic sentence that neither copies nor paraphrases a turn."
    assert found.sentences == (alarm,)
    assert found.tone == "bad"
    text = read(build_report(tmp_path)).text
    assert text.index("Alarm: more completions") < text.index("Scores Score")  # on the first screen


def test_more_invented_toxicity_that_chance_explains_is_none(tmp_path: Path, made: Any) -> None:
    from dialtune.results import Shift

    unclear = {"invented:minilm": Shift(before=0.0, after=0.1, difference=0.1, ci=(-0.1, 0.3), n=60)}
    (job,) = read_jobs(made.write_detox(tmp_path, origins=unclear))
    assert all(finding.sentences == () for finding in findings(job) if finding.heading.startswith("Where"))


def test_a_limit_that_broke_or_a_gamed_reward_is_said_first_and_colours_the_verdict(tmp_path: Path, made: Any) -> None:
    from dialtune.results import Constraint

    broken = {"relevance_reference": Constraint(floor=0.98, ratio=0.8, ci=(0.7, 0.9), held="no")}
    made.write_detox(tmp_path, constraints=broken, jury=made.detox_jury(alarm=True))
    page = build_report(tmp_path).read_text(encoding="utf-8")
    text = read(tmp_path / "report.html").text
    assert "relevance to reference not kept (floor 98 %)." in text
    assert (
        text.index("Not kept: relevance to reference.") < text.index("The reward may be gamed") < text.index("Scores")
    )
    assert '<div class="verdict bad">' in page


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"alarm": True},
            "gap +2.10 sd (+1.80 to +2.40): alarm, the reward may be gamed.",
        ),
        (
            {"gap": None, "trained_gain": None, "jury_gain": None, "alarm": None, "reason": "no spread"},
            "How far the reward's scorer is from the jury is not shown: no spread.",
        ),
        (
            {"jurors": {}, "median_relative": None},
            "Nobody but MiniLM, the reward's own scorer, has judged.",
        ),
    ],
)
def test_the_jury_says_alarm_ignorance_and_absence(made: Any, changes: dict[str, Any], expected: str) -> None:
    assert list(jury_sentences(made.detox_jury(**changes)))[-1].endswith(expected)


def test_a_juror_that_watched_the_training_says_so(detox: Path) -> None:
    file = next(detox.rglob("compare.json"))
    found = json.loads(file.read_text())
    found["jury"]["jurors"]["ngrams"]["seen"] = True
    file.write_text(json.dumps(found))
    page = build_report(detox).read_text(encoding="utf-8")
    assert "juror, seen in training" in page
    assert "Seen in training: it watched for a hacked reward, and paid nothing." in page


def test_job_one_has_no_jury_no_limits_and_no_origins(job: Path) -> None:
    (found,) = read_jobs(job)
    assert limits(found) == ()
    assert findings(found) == ()
    assert stops(found) == []
    assert unscored(found) == ()


def test_a_score_missing_on_one_side_says_on_which(detox: Path) -> None:
    (job,) = read_jobs(detox)
    assert unscored(job) == (("toxicity (alt-profanity-check)", "alt-profanity-check is not installed"),)
    assert job.before is not None
    there = job.before.scores["toxicity_mean:ngrams"]
    before = job.before.model_copy(update={"scores": {**job.before.scores, "toxicity_mean:alt-profanity-check": there}})
    from dataclasses import replace

    assert unscored(replace(job, before=before))[0][0] == "toxicity (alt-profanity-check) (after)"


def test_a_comparison_of_other_dialogues_that_does_not_belong_is_refused(detox: Path, made: Any) -> None:
    from dialtune.errors import DataError
    from dialtune.results import to_json

    (detox / "calm" / "after" / "eval.json").write_text(to_json(made.evaluation([1.0], name="x")))
    with pytest.raises(DataError, match=r"calm/compare\.json: was made from another evaluation \(after"):
        build_report(detox)


def test_the_baseline_is_found_beside_the_candidate(tmp_path: Path, made: Any) -> None:
    """`compare runs/before runs/after` and `report runs/after`: both texts are shown."""
    job = made.write_job(tmp_path / "job")
    for name in ("before", "after"):
        (job / name).rename(tmp_path / name)
    (job / "compare.json").rename(tmp_path / "after" / "compare.json")
    (found,) = read_jobs(tmp_path / "after")
    assert found.before is not None
    assert headline(found) == "rougeL"
    text = read(build_report(tmp_path / "after")).text
    assert "Gained most" in text
    assert "not in this folder" not in text
