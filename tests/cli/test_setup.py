"""doctor, init, config show and explain."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dialtune import diagnosis
from dialtune.cli.app import run_command
from dialtune.config.loading import load_config, load_rl_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_init_writes_a_commented_recipe_that_loads_and_says_what_is_next(capsys):
    assert run_command(["init", "--task", "summarize", "--model", "google/flan-t5-base"]) == 0
    assert capsys.readouterr().out == "recipe.yaml: written. Look first: dialtune sft recipe.yaml --dry-run\n"
    config = load_config("recipe.yaml")
    assert (config.model, config.output_dir) == ("google/flan-t5-base", "runs/summarize-flan-t5-base")
    assert config.template == "summarize-flan"


def test_init_for_detoxify_names_the_commands_of_rewards(capsys):
    assert run_command(["init", "--task", "detoxify", "--model", "google/flan-t5-base", "-o", "d.yaml"]) == 0
    assert capsys.readouterr().out == "d.yaml: written. Look first: dialtune doctor rl d.yaml\n"
    assert load_rl_config("d.yaml").method == "grpo"
    assert run_command(["config", "show", "d.yaml"]) == 0


def test_init_with_lora_trains_an_adapter():
    assert run_command(["init", "--lora", "--out", "l.yaml"]) == 0
    config = load_config("l.yaml")
    assert config.lora.r == 16
    assert config.learning_rate == 2e-4


def test_init_does_not_replace_a_file_unasked(capsys):
    Path("recipe.yaml").write_text("mine")
    assert run_command(["init"]) == 2
    assert capsys.readouterr().err == (
        "dialtune: recipe.yaml: exists already; choose another name with --out, or --force replaces it\n"
    )
    assert Path("recipe.yaml").read_text() == "mine"
    assert run_command(["init", "--force"]) == 0


def test_init_refuses_an_unknown_task_and_writes_nothing(capsys):
    assert run_command(["init", "--task", "sumarize"]) == 2
    assert "task: got 'sumarize'; known: summarize, respond, detoxify" in capsys.readouterr().err
    assert not Path("recipe.yaml").exists()


def test_show_prints_what_can_be_fed_back(capsys):
    assert run_command(["config", "show", "tiny-causal", "--set", "seed=7"]) == 0
    text = capsys.readouterr().out
    Path("again.yaml").write_text(text)
    fingerprint = re.match(r"# fingerprint ([0-9a-f]{64})\n", text)[1]
    assert load_config("again.yaml").fingerprint == fingerprint
    assert load_config("again.yaml").seed == 7


def test_show_reports_every_problem_and_exits_2(capsys):
    Path("r.yaml").write_text("model: m\ndata: {train: t}\nsed: 1\nlora: {r: 0}\nmax_steps: x\n")
    assert run_command(["config", "show", "r.yaml"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_explain_says_range_default_and_reason(capsys):
    assert run_command(["config", "explain", "lora.r"]) == 0
    assert capsys.readouterr().out == (
        "lora.r: integer, at least 1 and at most 1,024; default 16\n"
        "    Rank; 8 to 32 usually suffice, and 16 is the habit of trl and peft.\n"
    )


def test_doctor_shows_findings_and_what_to_do(monkeypatch, capsys):
    findings = [
        diagnosis.Finding("cpu", "2 usable"),
        diagnosis.Finding("asset", "x is not installed", "pip install x"),
    ]
    monkeypatch.setattr(diagnosis, "examine", lambda folder: findings)
    assert run_command(["doctor", "tiny-causal"]) == 0
    out = capsys.readouterr().out
    assert "! asset      x is not installed\n             -> pip install x\n" in out
    assert "tiny-causal: valid, fingerprint " in out
    assert out.endswith("1 to look at, marked with !\n")
