"""Every command and every program of the pages runs, in the order of its page, on tiny models in place of real ones."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from itertools import pairwise
from pathlib import Path

import doc_pages as pages
import pytest
import torch
from rl_tiny import data as rl_rows
from rl_tiny import start_policy

from dialtune.cli.app import run_command

PLACES = ["kitchen", "garden", "office", "station", "market", "bridge", "school", "harbor", "museum", "bakery"]
# Names that the pages use for real models; a word of a command that is one of them is replaced.
MODELS = {"smollm2-135m", "google/flan-t5-base"}
# What is not run here, and where it is.
ELSEWHERE = {
    "demo": "tests/test_demo.py, tests/test_own_rows.py",
    "doctor rl": "tests/cli/test_rl_command.py",
    "hub:": "needs the network",
    "--resume": "tests/test_resume.py, tests/test_resume_rl.py",
    "reward": "tests/trainers/test_reward_run.py",
    "runs/reward": "tests/rewards/test_reward_score.py",
}
SMALL = ["bf16=false", "max_prompt_length=96", "per_device_train_batch_size=2", "max_steps=2"]
SMALL_SFT = [*SMALL, "data.max_train_rows=4", "data.max_validation_rows=2"]
SMALL_RL = [
    *SMALL, "rewards={length: 1.0}", "constraint=null", "alarm_scorer=null", "rollout_batch_size=4",
    "num_generations=4", "max_completion_length=24", "eval_steps=0",
]  # fmt: skip

# Of the tasks that judge by many scorers and by likelihoods, the scores that the pages go on to compare.
FEW = {"detoxify": ("toxicity_mean:ngrams", "toxicity_mean:lexicon", "relevance_reference"), "respond": ("bleu",)}


def row(number: int) -> dict[str, str]:
    place = PLACES[number % 10]
    turns = [
        f"Hello, call {number}.",
        f"You left it at the {place}, {number}.",
        f"Good, I go there at {number}.",
        "Bye.",
    ]
    dialogue = "\n".join(f"#Person{1 + at % 2}#: {turn}" for at, turn in enumerate(turns))
    return {"fname": f"d{number}", "dialogue": dialogue, "summary": f"#Person1# goes to the {place} at {number}."}


def write_rows(path: str, numbers: range) -> None:
    Path(path).write_text("".join(json.dumps(row(number)) + "\n" for number in numbers))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The files and runs that the pages name, as a reader has them by then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("world")
    with contextlib.chdir(folder), quiet():
        write_rows("my.jsonl", range(10))
        write_rows("train.jsonl", range(100, 140))
        write_rows("validation.jsonl", range(200, 204))
        write_rows("test.jsonl", range(300, 340))
        Path("out.txt").write_text("".join(f"{row(number)['summary']}\n" for number in range(300, 340)))
        Path("chats.csv").write_text('chat,gist\n"Anna: Tea?\nBen: Yes.",Ben wants tea.\n')
        toxic = [
            f"you are a fool of the {place} {n} .\tyou are at the {place} {n}" for n in range(60) for place in PLACES
        ]
        Path("toxic.tsv").write_text("\n".join(["toxic\tneutral", *toxic]))
        for block in pages.blocks(pages.DOCS / "migrating.md", "yaml"):
            Path("mine.yaml").write_text(block.text)
        shutil.copytree(start_policy("llama"), "tiny")
        run("init --model tiny --train train.jsonl --validation validation.jsonl --lora")
        run("init --task detoxify --model runs/summarize --train train.jsonl --out own.yaml")
        run("data split my.jsonl --out splits --share train=0.4 --share validation=0.2 --share test=0.4")
        run(*small(["sft", "recipe.yaml", "--output_dir", "runs/summarize"]))
        for side, model in (("before", "tiny"), ("after", "runs/summarize")):
            run(*small(["evaluate", "--model", model, "--data", "test.jsonl", "--out", f"runs/{side}"]))
        run("compare runs/before runs/after --out runs/demo/summarize")
        for side in ("before", "after"):
            shutil.copytree(f"runs/{side}", f"runs/demo/summarize/{side}")
    yield folder
    torch.set_num_threads(threads)


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world for one page."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")


@contextlib.contextmanager
def quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def run(*words: str) -> None:
    given = words[0].split() if len(words) == 1 else list(words)
    assert run_command(given) in ((0, 4) if "--require" in given else (0,)), " ".join(given)


def small(words: list[str]) -> list[str]:
    """The same command on tiny weights, few rows and few tokens."""
    words = ["tiny" if word in MODELS and words[0] != "init" else word for word in words]
    if words[0] == "sft":
        sets = [part for text in SMALL_SFT for part in ("--set", text)]
        tiny = str(start_policy("t5")) if "t5" in words[1] else "tiny"  # its adapter names layers of a T5
        return [*words, *sets, *([] if "--model" in words else ["--model", tiny])]
    if words[0] == "rl":
        rows = [f"data.{name}={file}" for name, file in rl_rows().items()]
        sets = [part for text in [*SMALL_RL, *rows] for part in ("--set", text)]
        flags = [word for word in words if word not in ("--num_generations", "4", "--max_steps", "50")]
        return [*flags, *sets, "--model", str(start_policy("t5" if "t5" in words[1] else "llama"))]
    if words[0] == "evaluate" and "--model" in words:
        few = next((FEW[task] for task in FEW if task in words and "--metric" not in words), ())
        return [*words, "--limit", "6", "--max-new-tokens", "4", *(part for name in few for part in ("--metric", name))]
    return words


def is_run_here(words: list[str]) -> bool:
    said = " ".join(words)
    return not any(said.startswith(start) for start in ELSEWHERE) and not any(
        part in word for word in words for part in ("hub:", "--resume", "runs/reward")
    )


PAGES = [file for file in pages.WRITTEN if pages.blocks(file, "bash")]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_the_commands_of_a_page_run_from_top_to_bottom(file, here, monkeypatch):
    for block in pages.blocks(file, "bash"):
        for words in pages.commands(block):
            if words[0] == "dialtune" and is_run_here(words[1:]):
                if words[1] == "init":  # a reader's folder is empty; this one has the recipes of other pages
                    Path(words[words.index("--out") + 1] if "--out" in words else "recipe.yaml").unlink(missing_ok=True)
                with quiet():
                    run(*small(words[1:]))


@pytest.mark.parametrize("block", pages.every("python"), ids=lambda block: block.place)
def test_the_programs_of_a_page_run(block, here):
    text = block.text
    for name, verb in (("summarize-smollm2", "sft"), ("detoxify-smollm2", "rl")):
        text = text.replace(f'"{name}"', f'"{verb}.yaml"')
    shown = f"{block.place.replace('/', '_')}.py"
    with quiet():
        recipe("sft")
        recipe("rl")
        exec(compile(text, shown, "exec"), {"__name__": "example"})


def recipe(verb: str) -> None:
    """sft.yaml or rl.yaml: a packaged recipe on tiny weights, all its settings written out."""
    from dialtune.config.loading import load_config, load_rl_config, to_yaml

    load, name = (load_config, "summarize-smollm2") if verb == "sft" else (load_rl_config, "detoxify-smollm2")
    words = small([verb, name])
    sets = [value for flag, value in pairwise(words) if flag == "--set"]
    loaded = load(name, [*sets, f"output_dir=runs/{verb}"], model=words[-1])
    Path(f"{verb}.yaml").write_text(to_yaml(loaded))


def test_what_is_not_run_here_is_run_where_it_is_said_to_be():
    files = [name for text in ELSEWHERE.values() for name in text.split(", ") if name.startswith("tests/")]
    assert [name for name in files if not (pages.ROOT / name).is_file()] == []
