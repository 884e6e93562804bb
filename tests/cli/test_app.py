"""The root command: help, wrong verbs, and every error as a line and an exit code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from dialtune import errors
from dialtune.cli import app as module
from dialtune.cli.app import ELSEWHERE, MAX_LINES, app, run_command


def command_names():
    return typer.main.get_command(app).commands


@pytest.fixture
def failing(monkeypatch):
    """Makes `dialtune doctor` raise what the test wants."""

    def arrange(error: BaseException) -> int:
        def examine(folder):
            raise error

        monkeypatch.setattr("dialtune.diagnosis.examine", examine)
        return run_command(["doctor"])

    return arrange


def test_help_loads_no_heavy_package_and_says_where_to_start():
    code = (
        "import sys\nfrom dialtune.cli.app import run_command\nassert run_command(['--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'yaml', 'rich', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Start with: dialtune demo" in done.stdout


def test_help_of_every_command_loads_no_torch():
    paths = [[name] for name in command_names()] + [["config", "show"], ["data", "check"]]
    code = (
        f"import sys\nfrom dialtune.cli.app import run_command\nfor path in {paths!r}:\n"
        "    assert run_command([*path, '--help']) == 0, path\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_stand_in_the_order_of_a_first_run():
    group = typer.main.get_command(app)
    assert group.list_commands(None) == list(group.ORDER)


def test_without_a_verb_the_help_is_shown(capsys):
    assert run_command([]) == 0
    assert "Commands:" in capsys.readouterr().out
    assert run_command(["config"]) == 0
    assert "explain" in capsys.readouterr().out


def test_version(capsys):
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out.startswith("dialtune 0.")


@pytest.mark.parametrize("verb", sorted(ELSEWHERE))
def test_verbs_of_other_tools_are_answered_with_ours(verb, capsys):
    assert run_command([verb, "x.yaml"]) == 2
    assert capsys.readouterr().err == (
        f"dialtune: there is no verb '{verb}'; it is: dialtune {ELSEWHERE[verb]}\n  Help: dialtune --help\n"
    )


def test_the_answers_name_verbs_that_exist():
    assert {answer.split()[0] for answer in ELSEWHERE.values()} <= set(command_names())


def test_a_misspelt_verb_gets_the_closest_one(capsys):
    assert run_command(["evalute"]) == 2
    assert "there is no verb 'evalute'; did you mean: dialtune evaluate\n" in capsys.readouterr().err
    assert run_command(["qqq"]) == 2
    assert "there is no verb 'qqq'; verbs: demo, init, sft, " in capsys.readouterr().err


def test_an_unknown_option_exits_2_with_the_command_to_ask(capsys):
    assert run_command(["init", "--modle", "x"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("dialtune: No such option")
    assert lines[1] == "  Help: dialtune init --help"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.DialtuneError("m"), 1), (errors.ConfigError("m"), 2), (errors.NotComparableError("m"), 2),
        (errors.MissingExtraError("m"), 2), (errors.ModelNotFoundError("m"), 2), (errors.UnsafeModelError("m"), 2),
        (errors.DataError("m"), 3), (errors.GateFailedError("m"), 4), (errors.CheckpointError("m"), 1),
        (errors.NonFiniteError("m"), 1), (errors.InterruptedRunError("m", 15), 143),
        (errors.InterruptedRunError("m", 2), 130),
    ],
)  # fmt: skip
def test_each_error_is_one_line_and_its_exit_code(error, code, failing, capsys):
    assert failing(error) == code
    assert capsys.readouterr().err == "dialtune: m\n"


def test_a_list_of_problems_is_printed_as_editors_read_it(failing, capsys):
    assert failing(errors.DataError(["a.jsonl:1: no", "a.jsonl:2: no"])) == 3
    assert capsys.readouterr().err == "a.jsonl:1: no\na.jsonl:2: no\n"


def test_a_long_list_keeps_its_first_lines_and_its_last(failing, capsys):
    assert failing(errors.DataError([f"a:{i}: no" for i in range(1, 200)])) == 3
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == MAX_LINES
    assert lines[-2:] == ["… and 150 more", "a:199: no"]


def test_an_unexpected_error_is_one_line_that_says_how_to_see_more(failing, capsys, monkeypatch):
    monkeypatch.delenv("DIALTUNE_DEBUG", raising=False)
    assert failing(ZeroDivisionError("by zero\nsecond line")) == 1
    assert capsys.readouterr().err == (
        "dialtune: unexpected ZeroDivisionError: by zero\n"
        "  This is a bug in dialtune. For the traceback: DIALTUNE_DEBUG=1 dialtune …\n"
    )


def test_with_debug_the_traceback_comes_through(failing, monkeypatch):
    monkeypatch.setenv("DIALTUNE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError("by zero"))


def test_ctrl_c_exits_130(failing):
    assert failing(KeyboardInterrupt()) == 130


def test_a_reader_that_left_is_no_error():
    code = "import sys\nfrom dialtune.cli.app import main\nmain(['config', 'explain'])"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -1', shell=True, capture_output=True, text=True, executable="/bin/bash"
    )
    assert done.stderr == ""
    assert done.stdout.startswith("model: ")


def test_main_exits_with_the_code(monkeypatch):
    monkeypatch.setattr(module, "run_command", lambda arguments: 3)
    with pytest.raises(SystemExit) as caught:
        module.main(["x"])
    assert caught.value.code == 3
