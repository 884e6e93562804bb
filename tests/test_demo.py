"""Lab 1 end to end on a tiny model: the folders it leaves, what the report makes of them, and a second demo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reward_tiny import recipe as tiny_reward_recipe
from tiny import make_model

from dialtune import labs, model_evaluation
from dialtune.data.corpus import packaged
from dialtune.data.reading import read_examples
from dialtune.errors import ConfigError
from dialtune.labs import JOBS, run_demo, summarize_recipe
from dialtune.models.base import Sampling
from dialtune.report.build import build_report
from dialtune.results import Comparison
from dialtune.trainers.reward_run import run_reward

TEST_ROWS = 6


def _learn_every_other_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model writes noise before and after; here an adapted one knows each second summary by heart."""
    references = {example.id: example.references[0] for example in packaged("test").examples}
    generate = model_evaluation.generate

    def learned(model: Any, prompts: Any, *args: Any, **kwargs: Any) -> Any:
        written = generate(model, prompts, *args, **kwargs)
        if model.info.adapter is None:
            return written
        return [
            replace(completion, text=references.get(completion.example_id, "yes")) if place % 2 else completion
            for place, completion in enumerate(written)
        ]

    monkeypatch.setattr(model_evaluation, "generate", learned)


@pytest.fixture
def tiny_demo(tmp_path, monkeypatch, one_thread):
    """The demo on a tiny model and a few packaged dialogues."""
    folder = tmp_path / "tiny-llama"
    folder.mkdir()
    make_model("llama").save(folder)
    read, recipe = labs.read_examples, labs.summarize_recipe

    def few(source: str) -> Any:
        data = read(source)
        return replace(data, examples=data.examples[:TEST_ROWS]) if source == "packaged:test" else data

    def small(out: Path) -> Any:
        values = recipe(out).model_dump(exclude_unset=True)
        values["data"] |= {"max_train_rows": 6, "max_validation_rows": 2}
        values |= {"model": str(folder), "max_steps": 2, "per_device_train_batch_size": 2, "max_prompt_length": 64}
        return type(recipe(out)).model_validate(values)

    monkeypatch.setattr(labs, "read_examples", few)
    monkeypatch.setattr(labs, "summarize_recipe", small)
    monkeypatch.setattr(labs, "Sampling", lambda max_new_tokens: Sampling(max_new_tokens=4))
    _learn_every_other_reference(monkeypatch)
    return folder


def test_the_demo_leaves_the_folders_that_the_report_reads(tiny_demo, tmp_path):
    out, said, events = tmp_path / "demo", [], []
    verdicts = run_demo(["summarize"], out, say=said.append, on_event=lambda kind, facts: events.append(kind))
    assert list(verdicts) == ["summarize"]
    assert isinstance(verdicts["summarize"], Comparison)
    job = out / "summarize"
    before, after = (json.loads((job / side / "eval.json").read_text()) for side in ("before", "after"))
    compared = json.loads((job / "compare.json").read_text())
    assert (before["n_total"], after["n_total"]) == (TEST_ROWS, TEST_ROWS)
    assert before["data"]["fingerprint"] == after["data"]["fingerprint"]
    assert before["data"]["leakage"] == {"exact": 0, "near": 0}
    assert before["model"]["name"] == str(tiny_demo)
    assert after["model"]["adapter"].startswith(str(job / "train" / "checkpoint-"))
    assert before["model"]["weights_sha256"] != after["model"]["weights_sha256"]
    assert before["data"]["template_sha256"] == after["data"]["template_sha256"]
    assert after["scores"]["rougeL"]["value"] > before["scores"]["rougeL"]["value"] + 40
    assert compared["scores"].keys() == verdicts["summarize"].scores.keys()
    assert {"rougeL", "bleu"} <= compared["scores"].keys()
    assert {"config.yaml", "run.json", "metrics.jsonl"} <= {path.name for path in (job / "train").iterdir()}
    assert events.count("step") == 2
    assert said[0] == f"summarize: before training, {tiny_demo} writes {TEST_ROWS} summaries"
    assert said[1] == "summarize: training"
    assert said[2].startswith("summarize: after training, ")
    assert any(line.startswith("rougeL ") for line in said[3:])

    report = build_report(out)
    page = report.read_text()
    assert report == out / "report.html"
    assert len(page.encode()) < 1_000_000
    assert "rougeL" in page
    assert "summarize" in page
    assert packaged("test").examples[1].references[0][:40] in page  # one of the best dialogues, side by side

    # a second demo replaces the first, and nothing beside it
    (job / "train" / "of-the-first").write_text("")
    (out / "notes.txt").write_text("mine")
    run_demo(["summarize"], out)
    assert not (job / "train" / "of-the-first").exists()
    assert (job / "compare.json").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_an_unknown_job_is_named_before_anything_is_replaced(tmp_path):
    (tmp_path / "summarize").mkdir()
    known = "there are: summarize, respond, detoxify"
    with pytest.raises(ConfigError, match=rf"^demo --job: got sumarize, chat; {known}$"):
        run_demo(["summarize", "sumarize", "chat"], tmp_path)
    assert (tmp_path / "summarize").is_dir()


def test_chosen_jobs_run_in_their_order_with_folders_of_their_own(tmp_path, monkeypatch):
    made = []
    for name in ("a", "b"):
        monkeypatch.setitem(JOBS, name, lambda folder, say, on_event, progress: made.append(folder) or folder.name)
    assert run_demo(["b", "a"], tmp_path) == {"b": "b", "a": "a"}
    assert made == [tmp_path / "b", tmp_path / "a"]


def test_the_third_lab_judges_heated_and_calm_dialogues_before_and_after(tiny_demo, tmp_path, monkeypatch):
    def few(source: str) -> Any:
        data = read_examples(source)
        return replace(data, examples=data.examples[:TEST_ROWS]) if ":test" in source else data

    recipes = []

    def run_rl(recipe: Any, **_: Any) -> Path:  # tests/trainers/test_rl.py trains on rewards
        recipes.append(recipe)
        return Path(recipe.model)

    monkeypatch.setattr(labs, "read_examples", few)
    monkeypatch.setattr(labs, "run_rl", run_rl)
    said: list[str] = []
    verdicts = run_demo(["detoxify"], tmp_path / "demo", say=said.append)
    job = tmp_path / "demo" / "detoxify"
    assert {path.name for path in job.iterdir()} >= {"before", "after", "calm", "start", "compare.json"}
    (recipe,) = recipes
    assert Path(recipe.model).parent == job / "start"
    assert recipe.data.train == "packaged:train:heated"
    assert recipe.data.validation == "packaged:validation:heated"
    assert recipe.output_dir == str(job / "train")
    assert recipe.constraint is not None
    compared = json.loads((job / "compare.json").read_text())
    assert {"toxicity_mean:minilm", "toxicity_mean:lexicon", "toxicity_mean:ngrams"} <= compared["scores"].keys()
    assert verdicts["detoxify"].scores["toxicity_mean:minilm"].difference == 0
    kinds = {json.loads(line)["id"] for line in (job / "calm" / "after" / "examples.jsonl").read_text().splitlines()}
    assert kinds <= {e.id for e in packaged("test").examples if e.meta["kind"] != "heated"}
    assert (job / "calm" / "compare.json").is_file()


def test_the_second_lab_judges_replies_to_strangers_by_a_reward_that_trained_nothing(tiny_demo, tmp_path, monkeypatch):
    judges = []

    def few(source: str, *, limit: int | None = None) -> Any:
        return read_examples(source, limit={"chitchat:test": 4, "chitchat:train": 12}.get(source, limit))

    def tiny_judge(recipe: Any, **_: Any) -> Path:
        judges.append(recipe)
        return run_reward(tiny_reward_recipe(output_dir=recipe.output_dir))

    monkeypatch.setattr(labs, "read_examples", few)
    monkeypatch.setattr(labs, "run_reward", tiny_judge)
    said: list[str] = []
    verdicts = run_demo(["respond"], tmp_path / "demo", say=said.append)
    job = tmp_path / "demo" / "respond"
    assert {path.name for path in job.iterdir()} >= {"judge", "before", "train", "after", "compare.json"}
    (judge,) = judges
    assert (judge.data.train, judge.data.validation) == ("chitchat:train", "chitchat:validation")
    (score,) = (name for name in verdicts["respond"].scores if name.startswith("reward:"))
    assert score == "reward:judge"
    assert {"bleu", "rougeL", "relevance_reference", "generic_rate", "echo_rate"} <= verdicts["respond"].scores.keys()
    before, after = (json.loads((job / side / "eval.json").read_text()) for side in ("before", "after"))
    assert before["data"]["fingerprint"] == after["data"]["fingerprint"]
    assert before["data"]["template_sha256"] == after["data"]["template_sha256"]
    assert before["n_total"] == 12  # three replies of each chat
    assert before["data"]["leakage"] == {"exact": 0, "near": 0}
    rows = [json.loads(line) for line in (job / "before" / "examples.jsonl").read_text().splitlines()]
    assert len({row["id"].partition("#")[0] for row in rows}) == 4
    assert said[0] == "respond: a judge learns which reply fits where"
    page = build_report(tmp_path / "demo").read_text()
    assert "respond" in page


def test_the_recipe_of_the_lab_trains_on_nothing_that_is_tested(tmp_path):
    recipe = summarize_recipe(tmp_path)
    assert recipe.model == "smollm2-135m"
    assert (recipe.data.train, recipe.data.validation) == ("packaged:train", "packaged:validation")
    assert recipe.output_dir == str(tmp_path / "train")
    assert recipe.lora is not None
    assert (len(packaged("train").examples), len(packaged("test").examples)) == (160, 60)
