"""Progress lines: on stderr, few, and with the numbers a reader wants."""

from __future__ import annotations

import io
import sys
import time

from dialtune.cli.progress import counting, showing, training


def facts(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "loss": 2.0, "tokens_per_s": 1234.5, **more}


def test_counting_prints_a_line_for_each_tenth_and_none_for_small_jobs(capsys):
    with counting("generating") as tell:
        for done in range(0, 101, 5):
            tell(done, 100)
        tell(10, 20)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "generating 10/100"
    assert len(err.splitlines()) == 10


def test_counting_starts_again_for_the_next_job(capsys):
    with counting("generating") as tell:
        tell(60, 60)
        tell(60, 60)
    assert capsys.readouterr().err == "generating 60/60\ngenerating 60/60\n"


def test_training_prints_the_first_the_last_each_evaluation_and_every_so_many(capsys):
    with training(10) as show:
        show("start", {"total_steps": 25, "step": 0, "steps_per_epoch": 25})
        show("note", {"text": "a note"})
        for step in range(1, 26):
            show("step", facts(step, **({"eval_loss": 1.5} if step == 17 else {})))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "a note"
    assert [line.split("/")[0] for line in lines[1:]] == [f"update {step}" for step in (1, 10, 17, 20, 25)]
    assert lines[3].startswith("update 17/25: loss 2.000, eval_loss 1.500, 1,234 tokens/s, 0:0")


def test_an_update_on_rewards_shows_toxicity_relevance_and_multipliers(capsys):
    with training(1) as show:
        show("start", {"total_steps": 1, "step": 0})
        held = {"relevance_dialogue": 0.625, "lambda:relevance_dialogue": 0.75}
        show("step", {"step": 1, "loss": 0.5, "reward": 1.25, "toxic": 0.4, **held, "kl_per_sequence": 3.0})
    said = capsys.readouterr().err
    for part in ("reward 1.250", "toxic 0.400", "relevance_dialogue 0.625", "relevance_dialogue x 0.75", "KL 3.000"):
        assert part in said


def test_a_skipped_update_says_so_instead_of_a_loss(capsys):
    with training(1) as show:
        show("start", {"total_steps": 1, "step": 0})
        show("step", {"step": 1, "loss": None, "tokens_per_s": 10.0})
    assert "update 1/1: skipped, 10 tokens/s" in capsys.readouterr().err


def test_a_resumed_run_counts_its_time_from_where_it_started(monkeypatch, capsys):
    clock = iter([0.0, 100.0, 104.0])
    monkeypatch.setattr("dialtune.cli.progress.time.perf_counter", lambda: next(clock))
    with training(10) as show:
        show("start", {"total_steps": 30, "step": 20})
        show("step", facts(21))
        show("save", {"step": 21})
    # 4 s for one update since it started, 9 to go
    assert capsys.readouterr().err == "update 21/30: loss 2.000, 1,234 tokens/s, 0:36 left\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar_shows_loss_speed_and_notes(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with training(10) as show:
        show("start", {"total_steps": 2, "step": 0})
        show("note", {"text": "[not markup]"})
        show("step", facts(1, eval_loss=1.25))
        show("step", facts(2))
    with showing(10) as (_, tell):
        tell(3, 4)
        time.sleep(0.15)  # the display is drawn ten times a second
        tell(4, 4)
        tell(1, 9)
    assert "[not markup]" in screen.getvalue()
    assert "update 1: loss 2.000, eval_loss 1.250, 1,234 tokens/s" in screen.getvalue()
    assert "3/4" in screen.getvalue()
