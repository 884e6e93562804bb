"""The same facts as data, in Markdown for a pull request, and as a model card that the hub's own library reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dialtune.cli.app import run_command
from dialtune.errors import ConfigError
from dialtune.report.build import build_cards, build_report
from dialtune.results import to_json

# --- json ---


def test_the_json_holds_the_facts_of_the_page(detox: Path) -> None:
    file = build_report(detox, kind="json")
    assert file == detox / "report.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["schema"] == "dialtune.report/1"
    (job,) = document["jobs"]
    assert job["sentence"].startswith("Summaries became less toxic: toxicity (n-grams) 0.410 → 0.130")
    assert job["headline"] == "toxicity_mean:ngrams"
    assert job["comparison"]["scores"]["toxicity_mean:ngrams"]["after"] == 0.13
    assert job["comparison"]["constraints"]["rougeL"]["held"] == "not shown"
    assert job["comparison"]["jury"]["gap"]["value"] == 2.1
    assert job["other_dialogues"]["calm"]["rougeL"]["verdict"] == "no difference shown"
    assert job["training"]["frontier"][-1] == {"step": 12, "relevance": 0.676, "toxicity": 0.066, "kind": "chosen"}
    assert [series["name"] for series in job["training"]["series"]] == [
        "reward",
        "toxic",
        "relevance",
        "kl_per_sequence",
    ]
    assert job["after"]["counts"]["asked for"] == 60
    assert "rows" not in job["after"]
    assert (
        job["after"]["scores"]["toxicity_mean:alt-profanity-check"]["reason"] == "alt-profanity-check is not installed"
    )
    assert len(job["dialogues"]["changes"]) == 60
    assert job["dialogues"]["first"][0]["before"]["completion"].startswith(("#Person1#", "Anna", "The clerk"))
    assert {"makes": "train/run.json", "command": "dialtune rl recipe.yaml"} in job["commands"]
    assert {"what": "model", "name": "smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct)", "licence": "apache-2.0"} in (
        job["licences"]
    )


def test_a_training_run_and_an_evaluation_alone_have_json_too(tmp_path: Path, made: Any) -> None:
    made.write_training(tmp_path / "run")
    (job,) = json.loads(build_report(tmp_path / "run", kind="json").read_text())["jobs"]
    assert (job["comparison"], job["after"], job["dialogues"]) == (None, None, None)
    assert job["training"]["series"][0]["name"] == "loss"
    assert len(job["training"]["series"][0]["every_step"]) == 59  # one was skipped
    (tmp_path / "eval.json").write_text(to_json(made.evaluation(made.scores(60, 19.4, 1), name="a")))
    (job,) = json.loads(build_report(tmp_path, kind="json").read_text())["jobs"]
    assert job["dialogues"]["changes"] is None
    assert len(job["dialogues"]["first"]) == 3


def test_half_a_character_in_a_text_does_not_break_the_file(job: Path) -> None:
    rows = [{"id": f"test_{k}", "dialogue": "a\ud800b", "references": []} for k in range(200)]
    (job / "after" / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = json.loads(build_report(job, kind="json").read_text(encoding="utf-8"))
    assert document["jobs"][0]["dialogues"]["first"][0]["dialogue"] == "a\ud800b"


# --- markdown ---


def test_the_markdown_of_a_pull_request_has_verdict_scores_and_counts_and_no_dialogue(detox: Path) -> None:
    text = build_report(detox, kind="md").read_text(encoding="utf-8")
    assert text.startswith("## Detoxify\n\n**Summaries became less toxic: ")
    for wanted in (
        "| toxicity (n-grams) | 0.410 | 0.130 | −0.280 (−0.320 to −0.240) | −68 % (−77 to −60) | \\< 0.0001 | 60 | "
        "✓ improved |",
        "| toxicity (alt-profanity-check) | not scored | not scored | not scored |  | not tested | 0 | not scored |",
        "#### What had to be kept", "| relevance to reference | 98 % | 112.8 % (107.0 to 118.0) | ✓ held |",
        "#### Jury", "- toxicity (alt-profanity-check): not scored, alt-profanity-check is not installed",
        "| asked for | 60 | 60 |", "- `train/run.json`: `dialtune rl recipe.yaml`", "<details><summary>Detoxify: ",
        "| model | `smollm2-135m (HuggingFaceTB/SmolLM2-135M-Instruct)` | apache-2.0 |",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "lazy pig" not in text
    assert len(text) < 65_536  # what a forge takes as a comment


def test_an_evaluation_alone_in_markdown_compares_nothing(tmp_path: Path, made: Any) -> None:
    (tmp_path / "eval.json").write_text(to_json(made.evaluation(made.scores(60, 19.4, 1), name="a")))
    text = build_report(tmp_path, kind="md").read_text()
    assert "compared with nothing" in text
    assert "| score | value | dialogues |" in text
    assert "verdict" not in text


def test_hostile_names_do_nothing_in_markdown(tmp_path: Path, made: Any) -> None:
    hostile = "x|y @root <img src=x> `a` \u202e [l](http://z)"
    entries = {hostile: made.entry(19.4, 31.2, note=hostile)}
    before, after = (made.evaluation([19.4] * 60, name="a"), made.evaluation([31.2] * 60, name="b"))
    folder = made.write_job(tmp_path / "job", before=before, after=after, entries=entries)
    (folder / "train" / "run.json").write_text(json.dumps({"command": f"dialtune {hostile}\n# x"}))
    text = build_report(folder, kind="md").read_text(encoding="utf-8")
    shown = re.sub(r"`[^`\n]*`", "", text).replace("\\<", "")
    assert "<img" not in shown
    assert "@root" not in shown
    assert "\u202e" not in text
    widths = {line.count("|") - line.count("\\|") for line in text.splitlines() if line.startswith("| ")}
    assert widths <= {3, 4, 9}


# --- card ---


def test_the_card_goes_beside_the_weights_and_the_hub_library_reads_it(detox: Path) -> None:
    from huggingface_hub import ModelCard

    (detox / "train" / "checkpoint-12").mkdir()
    (detox / "train" / "checkpoint-12" / "dialtune.json").write_text('{"template": "summarize"}')
    (written,) = build_cards(detox)
    assert written == detox / "train" / "checkpoint-12" / "README.md"
    card = ModelCard.load(written)
    assert card.data.library_name == "peft"
    assert card.data.tags == ["dialtune", "detoxify", "grpo", "lora", "dialogue"]
    found = {result.metric_name: result for result in card.data.eval_results}
    juror = found["toxicity (n-grams)"]
    assert (juror.metric_type, juror.metric_value, juror.task_type) == ("toxicity", 0.04, "summarization")
    assert (juror.dataset_name, juror.dataset_type, juror.dataset_split) == ("packaged:test", "packaged", "test")
    assert juror.metric_args["verdict"] == "improved"
    assert juror.metric_args["difference_ci95"] == [-0.32, -0.24]
    assert juror.metric_args["signature"] == "toxicity_mean|made:by-hand|dialtune:1"
    assert "toxicity (alt-profanity-check)" not in found  # not scored is not a number
    assert card.data.metrics == ["toxicity", "relevance_reference", "rouge"]
    assert "Summaries became less toxic" in card.text
    assert "### Jury" in card.text
    assert "- not scored: toxicity (alt-profanity-check), alt-profanity-check is not installed" in card.text
    assert "/home/someone" not in card.content
    assert "not scored ()" not in card.content
    assert "with the prompt template `summarize`" in card.text
    assert "lazy pig" not in card.content


def test_without_a_checkpoint_in_the_folder_the_card_goes_there(tmp_path: Path, made: Any) -> None:
    from huggingface_hub import ModelCard

    evaluated = made.evaluation(made.scores(60, 19.4, 1), name="google/flan-t5-base")
    (tmp_path / "eval.json").write_text(to_json(evaluated))
    (written,) = build_cards(tmp_path)
    assert written == tmp_path / "README.md"
    card = ModelCard.load(written)
    assert (card.data.base_model, card.data.license) == ("google/flan-t5-base", "apache-2.0")
    assert card.data.eval_results[0].metric_args["n"] == 60
    assert "compared with nothing" in card.text


def test_each_job_of_a_demo_has_a_card_and_one_file_cannot_hold_them(tmp_path: Path, made: Any) -> None:
    for name in ("summarize", "detoxify"):
        made.write_job(tmp_path / name)
    assert build_cards(tmp_path) == [tmp_path / name / "README.md" for name in ("summarize", "detoxify")]
    with pytest.raises(ConfigError, match=r"--out: one file for 2 jobs; give one job's folder, such as .*summarize"):
        build_cards(tmp_path, tmp_path / "x.md")


def test_one_job_in_a_folder_of_jobs_finds_its_own_checkpoint(tmp_path: Path, made: Any) -> None:
    folder = made.write_detox(tmp_path / "detoxify")
    (folder / "train" / "checkpoint-12").mkdir()
    assert build_cards(tmp_path) == [folder / "train" / "checkpoint-12" / "README.md"]


def test_texts_from_a_file_are_no_model_to_write_a_card_about(tmp_path: Path, made: Any) -> None:
    from dialtune.results import Decoding

    texts = made.evaluation([1.0] * 40, name="out.txt", decoding=Decoding(strategy="file"))
    (tmp_path / "eval.json").write_text(to_json(texts))
    with pytest.raises(ConfigError, match=r"no card: there is no train/ and no eval\.json of a model"):
        build_cards(tmp_path)
    assert build_cards(tmp_path, trained_only=True) == []


# --- the command ---


@pytest.mark.parametrize(
    ("form", "file"), [("html", "report.html"), ("md", "report.md"), ("json", "report.json"), ("card", "README.md")]
)
def test_the_command_writes_each_format_to_its_own_file(job: Path, capsys: Any, form: str, file: str) -> None:
    assert run_command(["report", str(job), "--format", form]) == 0
    assert capsys.readouterr().out == f"written: {job / file}\n"
    assert (job / file).stat().st_size > 500


def test_an_unknown_format_names_the_known_ones(job: Path, capsys: Any) -> None:
    assert run_command(["report", str(job), "--format", "pdf"]) == 2
    assert "--format: got 'pdf'; there are: html, md, json, card" in capsys.readouterr().err
