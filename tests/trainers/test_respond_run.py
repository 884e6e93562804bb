"""Replies through a whole run: rows of several replies, the same losses, the marks of the dry run, resume."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import make_model

from dialtune.config.schema import RunConfig
from dialtune.data.dialogue import EOU
from dialtune.runs import RunFolder, read_rows
from dialtune.trainers.setup import with_compute_dtype
from dialtune.trainers.sft import mean_loss
from dialtune.trainers.sft_run import prepare, preview_sft, run_sft

SAID = ["Where is the {}?", "Behind the old {}, I think.", "Did you look there?", "Twice, and the {} was gone.",
        "Then ask Anna.", "She is at the {}."]  # fmt: skip
PLACES = ["bridge", "station", "kitchen", "market", "harbor", "museum"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind in ("llama", "t5"):
        folders[kind] = tmp_path_factory.mktemp(f"tiny-{kind}")
        make_model(kind).save(folders[kind])
    return folders


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Dialogues of 3 to 6 turns, one a line; validation talks about something else."""
    found = {}
    for name, places in (("train", PLACES), ("validation", ["circus", "chapel"])):
        lines = [f" {EOU} ".join(text.format(place) for text in SAID[: 3 + number % 4])
                 for number, place in enumerate(places)]  # fmt: skip
        path = tmp_path / f"{name}.txt"
        path.write_text("".join(f"{line} {EOU}\n" for line in lines))
        found[name] = str(path)
    return found


def config_of(model: Path, files: dict[str, str], out: Path, *, turns: Any = None, **settings: Any) -> RunConfig:
    defaults: dict[str, Any] = {
        "max_steps": 3, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "bf16": False, "eval_steps": 1,
        "save_total_limit": None,
    }  # fmt: skip
    data = {**files, "turns": turns or {}}
    return RunConfig(model=str(model), task="respond", data=data, output_dir=str(out), **{**defaults, **settings})


def rows_of(config: RunConfig) -> Any:
    return prepare(with_compute_dtype(config.resolve()))


def metrics(run: Path) -> list[dict[str, Any]]:
    return [{key: row[key] for key in row if not key.endswith("_s")} for row in read_rows(run / "metrics.jsonl")]


def n_replies() -> int:
    return sum(2 + number % 4 for number in range(len(PLACES)))


def test_a_dialogue_is_a_row_for_each_learned_speaker(tiny, files, tmp_path):
    both = rows_of(config_of(tiny["llama"], files, tmp_path / "a"))
    assert (both.targets.n, len(both.rows)) == (n_replies(), 2 * len(PLACES))
    second = rows_of(config_of(tiny["llama"], files, tmp_path / "a", turns={"speaker": "second"}))
    assert len(second.rows) == len(PLACES)
    assert [row.example_id for row in second.rows] == [f"{e.id}#1" for e in second.train.dialogues]


@pytest.mark.parametrize(("kind", "pack"), [("llama", False), ("t5", "auto"), ("t5", True)])
def test_a_row_per_reply_where_it_is_asked_for_or_cannot_be_otherwise(tiny, files, tmp_path, kind, pack):
    prepared = rows_of(config_of(tiny[kind], files, tmp_path / "a", turns={"pack": pack}))
    assert len(prepared.rows) == prepared.targets.n == n_replies()


def test_the_validation_loss_and_the_first_update_do_not_depend_on_packing(tiny, files, tmp_path):
    found = []
    for pack in (False, "auto"):
        turns = {"pack": pack}
        config = config_of(
            tiny["llama"], files, tmp_path / str(pack), turns=turns, per_device_train_batch_size=64, max_steps=1
        )
        run_sft(config)
        prepared = rows_of(config)
        found.append((metrics(tmp_path / str(pack))[0], mean_loss(prepared.model, prepared.validation_rows, config)))
    (single, single_loss), (joined, joined_loss) = found
    assert joined["n_tokens"] == single["n_tokens"]
    assert joined["loss"] == pytest.approx(single["loss"], rel=1e-5)
    assert joined["grad_norm"] == pytest.approx(single["grad_norm"], rel=1e-4)
    assert joined["eval_loss"] == pytest.approx(single["eval_loss"], rel=1e-4)
    assert joined_loss == pytest.approx(single_loss, rel=1e-5)


def test_learned_tokens_are_counted_and_recorded(tiny, files, tmp_path):
    run = tmp_path / "run"
    notes: list[str] = []
    config = config_of(tiny["llama"], files, run, num_train_epochs=1, max_steps=-1, eval_steps=0)
    run_sft(config, on_event=lambda kind, facts: notes.append(facts["text"]) if kind == "note" else None)
    prepared = rows_of(config)
    logged = metrics(run)
    assert len(logged) == len(PLACES)  # twelve rows by two
    assert sum(row["n_tokens"] for row in logged) == sum(row.n_learned for row in prepared.rows)
    record = json.loads((run / "run.json").read_text())
    assert (record["targets"], record["rows"]) == (n_replies(), 2 * len(PLACES))
    assert f"; {n_replies()} replies in {2 * len(PLACES)} rows (" in notes[0]


@pytest.mark.parametrize("group_by_length", [True, False])
def test_a_resumed_run_on_rows_of_several_replies_equals_the_unbroken_one(tiny, files, tmp_path, group_by_length):
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    settings = {"max_steps": 6, "eval_steps": 4, "save_steps": 2, "group_by_length": group_by_length}
    run_sft(config_of(tiny["llama"], files, unbroken, **settings))
    shutil.copytree(unbroken, resumed)
    for step, path in RunFolder(resumed).checkpoints().items():
        if step > 2:
            shutil.rmtree(path)
    run_sft(config_of(tiny["llama"], files, resumed, **settings), resume="newest")
    assert metrics(resumed) == metrics(unbroken)
    weights = "checkpoint-6/model.safetensors"
    assert (resumed / weights).read_bytes() == (unbroken / weights).read_bytes()


def test_the_dry_run_marks_the_learned_turns_and_nothing_between_them(tiny, files, tmp_path):
    lines = preview_sft(config_of(tiny["llama"], files, tmp_path / "run", turns={"speaker": "second"}))
    at = next(i for i, line in enumerate(lines) if line.startswith("example ") and "#1: " in line)
    text = "\n".join(lines[at + 1 :]).split("\nexample ")[0]
    learned = re.sub(r"\[([^\[\]]*)\]|.", lambda found: found[1] or "", text, flags=re.DOTALL)
    turns = [said.format("bridge") for said in SAID[:3]]
    assert learned == f"{turns[1]}<|im_end|>"
    config = config_of(tiny["llama"], files, tmp_path / "run", turns={"speaker": "second"})
    longest = max(rows_of(config).rows, key=lambda row: row.n_learned)
    assert (longest.learn or ()).count(True) == longest.n_learned < len(longest.response)


def test_with_pack_true_a_window_starts_pieces_and_bounds_them(tiny, files, tmp_path):
    turns = {"speaker": "second", "window": 1}
    auto = rows_of(config_of(tiny["llama"], files, tmp_path / "a", turns=turns))
    assert len(auto.rows) == auto.targets.n  # every context begins at another turn
    whole = rows_of(config_of(tiny["llama"], files, tmp_path / "a", turns={**turns, "pack": True}))
    assert len(whole.rows) == len(PLACES)
    small = {"max_prompt_length": 60, "max_completion_length": 40}
    pieces = rows_of(config_of(tiny["llama"], files, tmp_path / "a", turns={**turns, "pack": True}, **small))
    assert len(PLACES) < len(pieces.rows) < pieces.targets.n
    assert all(row.length <= 100 for row in pieces.rows)
    assert sum(row.n_learned for row in pieces.rows) == sum(row.n_learned for row in auto.rows)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_scores_of_true_replies_are_measured_while_training(tiny, files, tmp_path, kind):
    """The perplexity of the validation replies is exp of their loss, which the loop measures by another road."""
    asked = {"metrics": ["perplexity", "context_ll_auc", "echo_rate"], "max_rows": None}
    config = config_of(tiny[kind], files, tmp_path / "run", evaluation=asked, generation={"max_new_tokens": 2})
    run_sft(config)
    found = metrics(tmp_path / "run")
    assert [row["eval_perplexity"] for row in found] == pytest.approx(
        [math.exp(row["eval_loss"]) for row in found], rel=1e-4
    )
    assert all(0 <= row["eval_context_ll_auc"] <= 1 for row in found)
    assert all(row["eval_echo_rate"] is not None for row in found)
