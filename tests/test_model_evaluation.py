"""model × examples → Evaluation: the model is asked as it was trained, and what decoded is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dialtune.data.reading import DataSet, read_examples
from dialtune.errors import ConfigError
from dialtune.evaluation import evaluate_completions, write_examples
from dialtune.generation import generate
from dialtune.model_evaluation import decoding_of, evaluate_model, prompts_for, task_for
from dialtune.models.base import Sampling
from dialtune.prompts import template_sha256
from dialtune.results import Decoding
from dialtune.tasks import TASKS

SUMMARIZE = TASKS["summarize"]


@pytest.fixture
def dataset(tmp_path: Path) -> DataSet:
    """Six dialogues of two to four turns, with two references each."""
    rows = [
        {"id": f"d{i}", "dialogue": "\n".join(f"#Person{1 + t % 2}#: Hello {i} {t}." for t in range(2 + i % 3)),
         "summary1": f"They greet {i} times.", "summary2": f"A greeting, “{i}”."}
        for i in range(6)
    ]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_examples(path)


def _noted(folder: Path, **notes: Any) -> str:
    (folder / "config.json").write_text("{}")
    (folder / "dialtune.json").write_text(json.dumps(notes))
    return str(folder)


def test_a_model_is_asked_by_the_template_and_budget_it_was_trained_with(tmp_path: Path) -> None:
    model = _noted(tmp_path, task="summarize", template="plain", max_prompt_length=77)
    task, budget = task_for("summarize", model)
    assert (task.template, budget) == ("plain", 77)
    assert task.metrics == SUMMARIZE.metrics
    assert task_for("summarize", model, "summarize-flan")[0].template == "summarize-flan"
    assert SUMMARIZE.template == "summarize"  # the table is as it was


def test_notes_of_another_task_choose_no_template(tmp_path: Path) -> None:
    model = _noted(tmp_path, task="reply", template="plain", max_prompt_length=77)
    assert task_for("summarize", model) == (SUMMARIZE, 77)


def test_a_start_policy_and_what_became_of_it_are_asked_alike(tmp_path: Path) -> None:
    model = _noted(tmp_path, task="summarize", template="plain", max_prompt_length=77)
    assert task_for("detoxify", model)[0].template == "plain"
    assert task_for("respond", model)[0].template == "respond"  # its prompt is of another kind


def test_a_model_without_notes_gets_the_tasks_own_template() -> None:
    assert task_for("summarize", "org/model") == (SUMMARIZE, None)
    with pytest.raises(ConfigError, match=r"task: got 'sing'; known: summarize"):
        task_for("sing", "org/model")


def test_prompts_fit_the_budget_and_count_what_was_dropped(model: Any, dataset: DataSet) -> None:
    free = prompts_for(model, dataset.examples, SUMMARIZE, None)
    assert [prompt.example_id for prompt in free] == [f"d{i}" for i in range(6)]
    assert not any(prompt.dropped_turns for prompt in free)
    lengths = [model.count_tokens(prompt.messages) for prompt in free]
    budget = max(lengths) - 1
    tight = prompts_for(model, dataset.examples, SUMMARIZE, budget)
    assert all(model.count_tokens(prompt.messages) <= budget for prompt in tight)
    assert [p.dropped_turns > 0 for p in tight] == [length > budget for length in lengths]


@pytest.mark.parametrize("model", ["gpt2", "t5"], indirect=True)
def test_the_models_own_limit_holds_beside_the_budget(
    model: Any, dataset: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def spy(examples: Any, task: Any, *, max_prompt_tokens: int | None, count_tokens: Any) -> list[Any]:
        asked.append(max_prompt_tokens)
        return []

    monkeypatch.setattr("dialtune.model_evaluation.build_prompts", spy)
    for budget in (None, 50, 10_000):
        prompts_for(model, dataset.examples, SUMMARIZE, budget)
    own = model.max_prompt_tokens
    assert asked == ([own, 50, own] if own else [None, 50, 10_000])


def test_an_evaluation_is_that_of_the_completions_the_model_writes(model: Any, dataset: DataSet) -> None:
    sampling, seen = Sampling(max_new_tokens=6, temperature=0.9), []
    found = evaluate_model(
        model, dataset, SUMMARIZE, sampling=sampling, metrics=["rouge1", "chrf"], batch_size=4, seed=3,
        leakage={"exact": 1, "near": 2}, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    prompts = prompts_for(model, dataset.examples, SUMMARIZE, None)
    completions = generate(model, prompts, sampling, batch_size=1, seed=3)
    assert [(row.id, row.completion) for row in found.rows] == [(c.example_id, c.text) for c in completions]
    assert seen == [(4, 6), (6, 6)]
    expected = evaluate_completions(
        dataset, completions, ["rouge1", "chrf"], model=model.info, task="summarize", seed=3,
        decoding=Decoding(strategy="sample", temperature=0.9, max_new_tokens=6, seed=3),
        template_sha256=template_sha256("summarize"), leakage={"exact": 1, "near": 2},
    )  # fmt: skip
    assert found.scores == expected.scores
    assert found.data == expected.data
    assert found.decoding == expected.decoding
    assert found.model == model.info


@pytest.mark.parametrize("model", ["t5"], indirect=True)
def test_without_settings_it_is_greedy_up_to_the_tasks_cap_with_the_tasks_metrics(
    model: Any, dataset: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Sampling] = []

    def short(model: Any, prompts: Any, sampling: Sampling, **settings: Any) -> Any:
        used.append(sampling)
        return generate(model, prompts, Sampling(2), **settings)

    monkeypatch.setattr("dialtune.model_evaluation.generate", short)
    found = evaluate_model(model, dataset, SUMMARIZE)
    assert used == [Sampling(max_new_tokens=128)]
    assert found.decoding == Decoding(strategy="greedy", temperature=0.0, max_new_tokens=128)
    assert set(SUMMARIZE.metrics) <= set(found.scores)


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_dropped_turns_are_in_the_record(model: Any, dataset: DataSet) -> None:
    prompts = prompts_for(model, dataset.examples, SUMMARIZE, None)
    budget = max(model.count_tokens(prompt.messages) for prompt in prompts) - 1
    found = evaluate_model(
        model, dataset, SUMMARIZE, sampling=Sampling(2), metrics=["rouge1"], max_prompt_tokens=budget
    )
    dropped = sum(p.dropped_turns for p in prompts_for(model, dataset.examples, SUMMARIZE, budget))
    assert found.data.dropped_turns == dropped > 0


def test_decoding_is_recorded_resolved() -> None:
    assert decoding_of(Sampling(9, num_beams=4), 2) == Decoding(
        strategy="beam", num_beams=4, temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=9, seed=2
    )
    assert decoding_of(Sampling(9, 0.7, 0.9, 40), 0) == Decoding(
        strategy="sample", temperature=0.7, top_p=0.9, top_k=40, max_new_tokens=9, seed=0
    )


def test_examples_are_written_with_all_their_references(dataset: DataSet, tmp_path: Path) -> None:
    path = write_examples(tmp_path, dataset)
    assert path == tmp_path / "examples.jsonl"
    text = path.read_text(encoding="utf-8")
    assert "“0”" in text  # letters as they are, not as escapes
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows[0] == {
        "id": "d0",
        "dialogue": "#Person1#: Hello 0 0.\n#Person2#: Hello 0 1.",
        "references": ["They greet 0 times.", "A greeting, “0”."],
    }
    assert [row["id"] for row in rows] == [f"d{i}" for i in range(6)]
