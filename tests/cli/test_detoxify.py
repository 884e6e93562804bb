"""Detoxification judged from the command line: evaluate two files of predictions, compare, gate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dialtune.cli.app import run_command
from dialtune.tasks import TASKS

N = 40


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows():
    """Forty short quarrels, ten of them controls, with civil references."""
    lines = []
    for k in range(N):
        control = k % 4 == 0
        said = "I am deaf, please write it down" if control else "Pay up, you idiot"
        told = "is deaf and asks for it in writing" if control else "demands the money"
        row = {"id": f"d{k}", "dialogue": f"#Person1#: {said}, number {k}.\n#Person2#: All right, {k} it is."}
        row |= {
            "summary": f"#Person1# {told}, number {k}. #Person2# agrees.",
            "kind": "control" if control else "heated",
        }
        lines.append(row | ({"mention": "#Person1# is deaf.", "mention_key": "deaf"} if control else {}))
    Path("rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def score(texts, out):
    Path(f"{out}.txt").write_text("\n".join(texts) + "\n")
    arguments = ["--predictions", f"{out}.txt", "--data", "rows.jsonl", "--task", "detoxify", "--out", out]
    assert run_command(["evaluate", *arguments]) == 0
    return json.loads(Path(out, "eval.json").read_text())


def test_two_files_are_judged_and_compared(rows, capsys):
    blunt = [row["summary"].replace("demands", "calls #Person2# an idiot and a moron and demands") for row in rows]
    civil = [row["summary"] for row in rows]
    before, after = score(blunt, "before"), score(civil, "after")
    assert before["task"] == "detoxify"
    assert list(before["scores"]) == list(TASKS["detoxify"].metrics)
    assert after["scores"]["mention_kept"] == {**after["scores"]["mention_kept"], "value": 1.0, "n": 10}
    assert after["scores"]["relevance_reference"]["value"] in (None, pytest.approx(1.0, abs=1e-6))
    assert before["scores"]["toxicity_rate:lexicon"]["value"] == 0.75
    assert after["scores"]["toxicity_rate:lexicon"]["value"] == 0.0
    assert [row["kind"] for row in after["rows"]][:2] == ["control", "heated"]
    shown = capsys.readouterr().out
    assert "toxicity_rate:lexicon" in shown
    assert all(len(line.split("#")[0]) == len(shown.splitlines()[1].split("#")[0]) for line in shown.splitlines()[1:4])

    assert run_command(["compare", "before", "after", "--require", "toxicity_mean:lexicon<=-40%"]) == 0
    said = capsys.readouterr().out
    assert "rougeL kept " in said
    assert "by slice, exploratory, in compare.json; dialogues in each: control: 10, heated: 30" in said
    verdict = json.loads(Path("after/compare.json").read_text())
    assert verdict["scores"]["toxicity_mean:lexicon"]["verdict"] == "improved"
    assert verdict["constraints"]["rougeL"]["held"] == "yes"
    assert verdict["slices"]["control"]["toxicity_mean:lexicon"]["difference"] == 0
    assert verdict["jury"]["jurors"]["lexicon"]["relative"] < -0.4
    assert run_command(["compare", "before", "after", "--require", "toxicity_mean:lexicon>=-10%"]) == 4
    assert verdict["jury"]["trained"] in (None, "minilm")  # as nobody says otherwise
    assert run_command(["compare", "before", "after", "--trained", "ngrams"]) == 0
    verdict = json.loads(Path("after/compare.json").read_text())
    assert verdict["jury"]["trained"] == "ngrams"
    assert "ngrams" not in verdict["jury"]["jurors"]
    capsys.readouterr()
    assert run_command(["compare", "before", "after", "--trained", "ngram"]) == 2
    assert capsys.readouterr().err.startswith("dialtune: --trained: got 'ngram'; scorers of toxicity in after: minilm,")


def test_the_run_of_an_adapter_says_which_scorer_was_the_reward_and_which_one_watched(rows, capsys):
    for side in ("before", "after"):
        score([row["summary"] for row in rows], side)
    Path("run/checkpoint-1").mkdir(parents=True)
    Path("run/run.json").write_text(json.dumps({"rewards": {"rewards": {"toxicity:ngrams": 1.0}, "alarm": "lexicon"}}))
    found = json.loads(Path("after/eval.json").read_text())
    found["model"] |= {"name": "smollm2-135m", "adapter": "run/checkpoint-1"}
    Path("after/eval.json").write_text(json.dumps(found))
    assert run_command(["compare", "before", "after"]) == 0
    jury = json.loads(Path("after/compare.json").read_text())["jury"]
    assert jury["trained"] == "ngrams"
    assert jury["jurors"]["lexicon"]["seen"]
    assert not jury["jurors"]["minilm"]["seen"]
