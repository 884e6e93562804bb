"""Learned rewards on data they never saw: true against shuffled replies of DailyDialog, and the ratings of chitchat.

DailyDialog: dialogues that validation or test holds too are taken out of training; the validation set chooses and
calibrates, the test set is reported on, beside the cosine of the untrained encoder on the very same pairs. chitchat:
one reward from ratings alone, one from contexts and ratings, beside the mean length of a reply. Every run is a folder;
`--work` goes on where a killed one stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import print_table, shared_data, write_result

from dialtune.config.loading import check_reward_text
from dialtune.config.reward_schema import RewardConfig
from dialtune.models.embedder import load_embedder
from dialtune.rewards.learned import load_reward
from dialtune.rewards.measures import pair_accuracy, rank_correlation
from dialtune.runs import read_rows
from dialtune.trainers.contrast import CHEAP, SHUFFLED, Exchange, Lessons
from dialtune.trainers.reward_data import held_out, teaching_dialogues
from dialtune.trainers.reward_run import run_reward
from dialtune.trainers.setup import read_data


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    folder = Path(options.work or tempfile.mkdtemp(prefix="bench-reward-"))
    dailydialog, seconds = learn(folder / "dailydialog", dailydialog_recipe(folder, options))
    rows = dailydialog_rows(folder, options, dailydialog, seconds)
    measured = {}
    for name, signals in (("ratings", {"ratings": 1.0}), ("both", {"contexts": 1.0, "ratings": 0.5})):
        measured[name], seconds = learn(folder / f"chitchat-{name}", chitchat_recipe(folder, name, signals, options))
        rows += chitchat_rows(name, measured[name], seconds)
    rows += baselines(check(chitchat_recipe(folder, "ratings", {"ratings": 1.0}, options)))
    print_table(rows)
    accuracy, spearman = dailydialog["contexts"]["accuracy"], measured["both"]["ratings"]["spearman"]
    headline = {
        "accuracy_dailydialog": accuracy["value"],
        "accuracy_dailydialog_ci_low": accuracy["ci"][0],
        "spearman_chitchat": spearman["value"],
        "spearman_chitchat_ci_low": spearman["ci"][0],
        "spearman_chitchat_ci_high": spearman["ci"][1],
    }
    card = {"dailydialog": dailydialog, **{f"chitchat {name}": found for name, found in measured.items()}}
    write_result("reward", rows, headline, measured=card, threads=options.threads)


def dailydialog_recipe(folder: Path, options: argparse.Namespace) -> str:
    data = shared_data(options.shared) / "dailydialog"
    files = {s: str(data / f"dialogues_{s}.txt.gz") for s in ("train", "validation", "test")}
    return recipe(
        folder / "dailydialog",
        {"contexts": 1.0},
        {**files, "leaks": "drop", "max_train_rows": options.dialogues, "max_validation_rows": options.held_out},
        options,
        data_licence="CC BY-NC-SA 4.0",
        num_train_epochs=options.epochs,
    )


def chitchat_recipe(folder: Path, name: str, signals: Mapping[str, float], options: argparse.Namespace) -> str:
    data = {split: f"chitchat:{split}" for split in ("train", "validation", "test")}
    turns = {"per_dialogue": options.per_dialogue}
    return recipe(folder / f"chitchat-{name}", signals, {**data, "turns": turns}, options)


def recipe(
    out: Path, signals: Mapping[str, float], data: Mapping[str, Any], options: argparse.Namespace, **more: Any
) -> str:
    values = {"signals": signals, "data": data, "output_dir": str(out), "seed": options.seed, "save_steps": 50, **more}
    return json.dumps(values)  # JSON is YAML


def check(text: str) -> RewardConfig:
    return check_reward_text(text, "benchmark")


def learn(out: Path, text: str) -> tuple[dict[str, Any], float]:
    """(held-out numbers, seconds of updates); trained unless it is there."""
    if not (out / "config.json").is_file():
        began = time.perf_counter()
        run_reward(check(text), resume="newest", on_event=progress)
        print(f"{out.name}: {time.perf_counter() - began:.0f} s", flush=True)
    reward = load_reward(out)
    return dict(reward.config.measured), sum(row["step_s"] for row in read_rows(out / "metrics.jsonl"))


def progress(kind: str, facts: Mapping[str, Any]) -> None:
    if kind == "note":
        print(facts["text"], flush=True)
    elif kind == "step" and "eval_loss" in facts:
        print({key: value for key, value in facts.items() if key in ("step", "loss", "eval_loss", "eval_accuracy")})


def dailydialog_rows(
    folder: Path, options: argparse.Namespace, measured: Mapping[str, Any], seconds: float
) -> list[dict[str, Any]]:
    lessons = reported(check(dailydialog_recipe(folder, options)))
    cosine = cosine_accuracy(lessons, SHUFFLED), cosine_accuracy(lessons, CHEAP)
    found = measured["contexts"]
    cheap = [found[f"accuracy:{kind}"]["value"] for kind in CHEAP]
    return [
        row("DailyDialog", "learned", "accuracy", found["accuracy"], seconds) | {"against echoes": min(cheap)},
        row("DailyDialog", "learned", "auc", found["auc"], seconds),
        row("DailyDialog", "cosine, untrained", "accuracy", cosine[0], 0.0) | {"against echoes": cosine[1]["value"]},
    ]


def chitchat_rows(name: str, measured: Mapping[str, Any], seconds: float) -> list[dict[str, Any]]:
    what = f"learned from {'contexts and ratings' if name == 'both' else name}"
    rows = [row("chitchat", what, "spearman", measured["ratings"]["spearman"], seconds)]
    if "contexts" in measured:
        rows.append(row("chitchat", what, "accuracy", measured["contexts"]["accuracy"], seconds))
    return rows


def baselines(config: RewardConfig) -> list[dict[str, Any]]:
    """What a count alone tells about a chat's rating: words per reply, and turns of the chat, which no reply shows."""
    assert config.data.test is not None
    data = read_data(config, config.data.test, None)
    turns = {example.id: len(example.messages) for example in data.dialogues}
    rated: dict[str, tuple[float, float, float]] = {}
    for rows in teaching_dialogues(data, config):
        ratings = [float(rows[0].meta[name]) for name in config.ratings]
        words = [len(example.references[0].split()) for example in rows]
        rated[rows[0].id] = (np.mean(words), turns[rows[0].meta["dialogue"]], np.mean(ratings))
    words, lengths, targets = np.array(list(rated.values())).T
    return [
        row("chitchat", what, "spearman", rank_correlation(values, targets).to_dict(), 0.0)
        for what, values in (("words per reply", words), ("turns of the chat", lengths))
    ]


def row(data: str, what: str, number: str, found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    low, high = found["ci"] or (None, None)
    return {
        "data": data, "judge": what, "number": number, "value": found["value"], "ci_low": low, "ci_high": high,
        "n": found["n"], "dialogues": found["dialogues"], "against echoes": None, "updates_s": round(seconds),
    }  # fmt: skip


def reported(config: RewardConfig) -> Lessons:
    """The pairs and ratings that the reward was reported on."""
    assert config.data.validation is not None
    validation = read_data(config, config.data.validation, config.data.max_validation_rows)
    report = read_data(config, config.data.test, None) if config.data.test else None
    return held_out(validation, report, config)[1]


def cosine_accuracy(lessons: Lessons, kinds: Sequence[str]) -> dict[str, Any]:
    """The same pairs by the untrained encoder: cosine of the reply with the mean of the turns before it."""
    pairs = [pair for pair in lessons.pairs["contexts"] if pair.kind in kinds]
    embedder = load_embedder()

    def values(exchanges: Sequence[Exchange]) -> np.ndarray[Any, Any]:
        contexts = np.stack([embedder.embed(one.context).mean(axis=0) for one in exchanges])
        replies = embedder.embed([one.reply for one in exchanges])
        return (contexts * replies).sum(axis=1) / np.linalg.norm(contexts, axis=1)

    better, worse = values([pair.better for pair in pairs]), values([pair.worse for pair in pairs])
    return pair_accuracy(better, worse, [pair.unit for pair in pairs]).to_dict()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", help="folder of the real corpora")
    parser.add_argument("--work", help="where runs are kept; given again, finished ones are not repeated")
    parser.add_argument("--dialogues", type=int, default=6000, help="of DailyDialog to train on")
    parser.add_argument("--held-out", type=int, default=500, help="of DailyDialog that choose and calibrate")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--per-dialogue", type=int, default=4, help="replies of a chat")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
