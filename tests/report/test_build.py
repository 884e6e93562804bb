"""The page as a whole. After a wanted change of the page, look at it in a browser, then refresh the golden file:

DIALTUNE_REFRESH_GOLDEN=1 .venv/bin/python -m pytest tests/report/test_build.py -k golden
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from dialtune.errors import ConfigError, DataError
from dialtune.report.build import SIZE_LIMIT, build_report
from dialtune.results import to_json

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "report.html"
STYLE = Path(__file__).resolve().parents[2] / "dialtune" / "report" / "templates" / "style.css"
VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = (
    "</style></pre><script>alert(1)</script><img src=x onerror=alert(1)> $x_{ {{ 7*7 }} \u202egnp.exe\u2066 \x1b[31m"
)


class Page(HTMLParser):
    """Reads a page strictly: every element closed in order, ids unique; keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [value for _, name, value in self.attributes if name == "id"]
        assert len(ids) == len(set(ids))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def read(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def without_plots(page: str) -> str:
    """Coordinates depend on matplotlib's version; everything else must be equal to the letter."""
    return re.sub(r"<svg.*?</svg>", "<svg/>", page, flags=re.DOTALL)


def test_the_page_of_a_job_is_the_golden_one(job: Path) -> None:
    page = build_report(job).read_text(encoding="utf-8")
    if os.environ.get("DIALTUNE_REFRESH_GOLDEN"):
        GOLDEN.write_text(page, encoding="utf-8")
    assert without_plots(page) == without_plots(GOLDEN.read_text(encoding="utf-8"))
    assert page.count("<svg") == 6  # the forest wide and narrow, loss, scores, two changes


def test_the_first_screen_holds_the_sentence_and_the_tally(job: Path) -> None:
    text = read(build_report(job)).text
    sentence = text.index("Summaries improved: ROUGE-L 19.4 → 31.2, +61 % (95 % CI +52 to +69), 200 dialogues.")
    tally = text.index("Of 3 scores compared, 2 improved, 1 without a difference shown.")
    assert sentence < tally < text.index("Signatures")


def test_everything_that_the_issue_asks_for_is_on_the_page(job: Path, made: Any) -> None:
    text = read(build_report(job)).text
    for wanted in (
        "rougeL|refs:2|agg:mean|f:f1|stem:porter|tool:rouge-score-0.1.2|dialtune:1",  # signature
        "18.8 to 21.2", "< 0.0001", "no difference", "not compared",  # interval, Holm p, verdicts
        "Loss over training steps", "Distribution of the change of ROUGE-L per dialogue",  # plots
        "Gained most", "Lost most", "#Person1#: Is the heating still broken?", "They agree.",  # dialogues, references
        "cut by the token limit 1 1", "empty 1 1", "not scored by every score 0 0",  # counts
        "5e" * 32, "learning_rate: 0.0002", "torch 2.13.0",  # data fingerprint, config, versions
        "dialtune sft recipes/summarize-smollm2.yaml --set seed=0", "dialtune compare before after --seed 0",
        "dialtune evaluate --task summarize --data packaged:test --reference mean --out before "
        "--metric rougeL --metric rouge1 --metric bleu --metric length_ratio --model smollm2-135m "
        "--max_new_tokens 64 --num_beams 1 --seed 0",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_the_dialogues_shown_are_those_that_changed_most(tmp_path: Path, made: Any) -> None:
    before = made.evaluation([50.0] * 40, name="old")
    after = made.evaluation([50.0 + (k - 20) for k in range(40)], name="new")
    made.write_job(tmp_path, before=before, after=after)
    text = read(build_report(tmp_path)).text
    order = [text.index(f"test_{k} ROUGE-L 50.0 → {30 + k:.1f} ({'+' if k > 20 else '−'}{abs(k - 20):.1f})")
             for k in (39, 38, 37, 0, 1, 2)]  # fmt: skip
    assert order == sorted(order)


def test_the_same_files_give_the_same_bytes_anywhere_without_torch(job: Path, tmp_path: Path) -> None:
    here = build_report(job, tmp_path / "here.html").read_bytes()
    settings = tmp_path / "matplotlibrc"
    settings.write_text(
        "font.size: 30\ntext.usetex: True\nsvg.fonttype: path\nxtick.direction: in\naxes.linewidth: 6\n"
    )
    code = (
        "import sys, pathlib; from dialtune.report.build import build_report;"
        f"build_report({str(job)!r}, {str(tmp_path / 'there.html')!r});"
        "print([name for name in ('torch', 'transformers', 'scipy', 'sklearn', 'pyarrow') if name in sys.modules])"
    )
    env = {**os.environ, "PYTHONHASHSEED": "77", "MATPLOTLIBRC": str(settings), "MPLCONFIGDIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert found.stdout.strip() == "[]"
    assert (tmp_path / "there.html").read_bytes() == here


def test_a_page_asks_for_nothing_and_runs_nothing(job: Path) -> None:
    file = build_report(job)
    page = read(file)
    assert not {"script", "link", "img", "iframe", "object", "form", "base"} & set(page.tags)
    assert "http:" not in file.read_text()
    assert "https:" not in file.read_text()
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("src", "srcset", "action", "data"), (tag, name)
        assert name != "href" or value.startswith("#"), (tag, value)
        assert "url(" not in value or "url(#" in value, (tag, value)
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and name == "content")
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")


def test_hostile_text_is_shown_and_never_obeyed(tmp_path: Path, made: Any) -> None:
    plain = made.write_job(tmp_path / "plain")
    before, after = (json.loads((plain / side / "eval.json").read_text()) for side in ("before", "after"))
    for side in (before, after):
        side["model"]["name"] = side["data"]["name"] = HOSTILE
        side["task"] = HOSTILE
        for name in ("rougeL", "bleu"):
            side["scores"][HOSTILE + name] = {**side["scores"].pop(name), "signature": HOSTILE}
        for row in side["rows"]:
            row["id"] += HOSTILE
            row["completion"] = HOSTILE + "W" * 5000
            row["scores"][HOSTILE + "rougeL"] = row["scores"].pop("rougeL")
    entries = {HOSTILE + "rougeL": made.entry(19.4, 31.2, note=HOSTILE), HOSTILE + "bleu": made.entry(3.0, 6.0)}
    evaluate = type(made.evaluation([1.0], name="x")).model_validate
    folder = made.write_job(tmp_path / "<i>summarize", before=evaluate(before), after=evaluate(after), entries=entries)
    examples = [
        {"id": row["id"], "dialogue": HOSTILE + "\ud800\u2028", "references": [HOSTILE]} for row in after["rows"]
    ]
    (folder / "after" / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples))
    (folder / "train" / "config.yaml").write_text(f"model: {HOSTILE}\n")
    (folder / "train" / "run.json").write_text(json.dumps({"command": HOSTILE, "versions": {HOSTILE: HOSTILE}}))

    file = build_report(tmp_path, tmp_path / "out.html")
    page = read(file)
    assert set(page.tags) == set(read(build_report(plain)).tags) | {"a"}  # a: links to the jobs, now that there are two
    assert page.tags.count("style") == 1
    assert "alert(1)" in page.text
    assert "{{ 7*7 }}" in page.text
    assert "⟨U+202E⟩gnp.exe⟨U+2066⟩ ⟨U+001B⟩[31m" in page.text
    assert "⟨U+D800⟩⟨U+2028⟩" in page.text
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\x1b\x00]", file.read_text(encoding="utf-8"))


def test_three_jobs_of_long_texts_stay_under_one_megabyte(tmp_path: Path, made: Any) -> None:
    for name in ("summarize", "respond", "detoxify"):
        folder = made.write_job(tmp_path / name)
        rows = [{"id": f"test_{k}", "dialogue": '"' * 5000, "references": ['"<&' * 400] * 6} for k in range(200)]
        (folder / "after" / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "train" / "config.yaml").write_text("'" * 900_000)
    file = build_report(tmp_path)
    assert file == tmp_path / "report.html"
    assert file.stat().st_size < SIZE_LIMIT
    text = read(file).text
    assert "(600 more characters)" in text
    assert "Reference 5" in text
    assert "Reference 6" not in text
    assert text.index("Summarize in detail") < text.index("Respond in detail") < text.index("Detoxify in detail")


def test_dialogues_give_way_when_a_page_would_grow_too_large(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build_report(job).stat().st_size
    monkeypatch.setattr("dialtune.report.build.SIZE_LIMIT", whole)
    fewer = read(build_report(job))
    assert fewer.tags.count("article") == 2
    monkeypatch.setattr("dialtune.report.build.SIZE_LIMIT", 1000)
    none = read(build_report(job))
    assert none.tags.count("article") == 0
    assert "Left out to keep the page under 1 MB." in none.text


def test_a_training_run_alone_is_reported_by_its_losses(tmp_path: Path, made: Any) -> None:
    made.write_training(tmp_path)
    page = read(build_report(tmp_path))
    assert "Trained for 60 steps: evaluation loss 2.300 → 2.071." in page.text
    assert "1 step was skipped." in page.text
    assert "Scores Score" not in page.text
    assert "Gained most" not in page.text


def test_a_run_whose_command_was_not_recorded_is_repeated_from_its_recipe(job: Path) -> None:
    (job / "train" / "run.json").write_text('{"format": "dialtune.run/1"}')
    text = read(build_report(job)).text
    assert "# makes train/run.json dialtune sft train/config.yaml --output_dir again" in text


def test_a_note_on_every_score_is_said_once_and_another_one_beside_its_score(tmp_path: Path, made: Any) -> None:
    few = "fewer than 100 dialogues: read the interval with care"
    entries = {name: made.entry(19.4, 31.2, note=few) for name in ("rougeL", "rouge1")}
    assert read(build_report(made.write_job(tmp_path / "a", entries=entries))).text.lower().count(few) == 1
    entries["bleu"] = made.entry(3.1, 6.1, note="withheld")
    text = read(build_report(made.write_job(tmp_path / "b", entries=entries))).text
    assert text.lower().count(few) == 3
    assert "withheld" in text


def test_an_evaluation_alone_compares_nothing(tmp_path: Path, made: Any) -> None:
    (tmp_path / "eval.json").write_text(to_json(made.evaluation(made.scores(60, 19.4, 1), name="smollm2-135m")))
    text = read(build_report(tmp_path)).text
    assert "compared with nothing" in text
    assert "Best" in text
    assert "Worst" in text
    assert "there is no examples.jsonl" in text
    assert "Verdict" not in text


def test_an_evaluation_with_its_comparison_says_that_the_earlier_texts_are_elsewhere(tmp_path: Path, made: Any) -> None:
    job = made.write_job(tmp_path / "job")
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "eval.json").write_bytes((job / "after" / "eval.json").read_bytes())
    (alone / "compare.json").write_bytes((job / "compare.json").read_bytes())
    text = read(build_report(alone)).text
    assert "Summaries improved" in text
    assert "What was written before is not in this folder." in text


def test_a_row_that_one_side_did_not_score_is_left_out_of_the_changes(tmp_path: Path, made: Any) -> None:
    before, after = (made.evaluation([20.0 + k % 5 for k in range(40)], name=name) for name in ("old", "new"))
    rows = (after.rows[0].model_copy(update={"scores": {"rougeL": None}}), *after.rows[1:])
    made.write_job(tmp_path, before=before, after=after.model_copy(update={"rows": rows}),
                   entries={"rougeL": made.entry(22.0, 22.0, "no difference shown", n=39, n_dropped=1)})  # fmt: skip
    text = read(build_report(tmp_path)).text
    assert "0 better, 39 unchanged, 0 worse of 39 dialogues" in text
    assert "1 left out: one side not scored" in text
    assert "No dialogue's ROUGE-L changed." in text


# --- what is missing or broken ---


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such folder; .*dialtune demo"):
        build_report(tmp_path / "nowhere")


def test_a_folder_with_nothing_to_report_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing to report: no eval\.json.*\n.*dialtune demo"):
        build_report(tmp_path)


def test_all_missing_files_of_a_job_are_named_at_once(job: Path) -> None:
    (job / "after" / "eval.json").unlink()
    (job / "compare.json").unlink()
    with pytest.raises(ConfigError) as caught:
        build_report(job)
    assert [line.removeprefix(str(job)) for line in str(caught.value).splitlines()] == [
        "/after/eval.json: missing",
        "/compare.json: missing",
        "A job needs all three; finish it with: dialtune demo --job summarize, or: dialtune compare BEFORE AFTER",
    ]
    assert not (job / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("before/eval.json", b'{"schema": ', r"before/eval\.json: document: Invalid JSON"),
        ("compare.json", b'{"schema": "dialtune.compare/1"}', r"compare\.json: before: Field required"),
        ("train/run.json", b"[1, 2]", r"run\.json: got list, needs a JSON object; run the job again"),
        ("train/run.json", b'{"a": ', r"run\.json: not JSON: .*; it was cut or edited"),
        ("train/config.yaml", b"model: \xff", r"config\.yaml: not UTF-8 text \(byte 7\)"),
        ("train/metrics.jsonl", b'{"step": 1}\noops\n', r"metrics\.jsonl:2: not JSON"),
        ("train/metrics.jsonl", b'{"loss": 1}\n', r"metrics\.jsonl:1: step: got None, needs a whole number"),
        ("after/examples.jsonl", b'{"id": "a", "dialogue": 3, "references": []}\n', r"examples\.jsonl:1: needs id and"),
        ("after/examples.jsonl", b'{"id": "a", "dialogue": "b"}\n', r"examples\.jsonl:1: needs .*'references'"),
    ],
)
def test_a_broken_file_is_named_with_its_place(job: Path, file: str, content: bytes, message: str) -> None:
    (job / file).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        build_report(job)
    assert len(str(caught.value).splitlines()) <= 6


@pytest.mark.parametrize("file", ["config.yaml", "run.json", "metrics.jsonl"])
def test_a_training_run_needs_its_three_files(job: Path, file: str) -> None:
    (job / "train" / file).unlink()
    with pytest.raises(ConfigError, match=rf"{re.escape(file)}: missing\nA training run writes all three"):
        build_report(job)


def test_a_comparison_of_other_evaluations_is_refused(job: Path, made: Any) -> None:
    other = made.evaluation(made.scores(200, 35, 9), name="newer")
    (job / "after" / "eval.json").write_text(to_json(other))
    with pytest.raises(DataError, match=r"compare\.json: was made from another evaluation \(after: sha256 \w{8}, here"):
        build_report(job)


# --- contrast ---


def _luminance(colour: str) -> float:
    """WCAG 2.2 relative luminance of #rrggbb."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1])
def test_every_text_colour_reaches_wcag_aa_on_both_backgrounds(scheme: int) -> None:
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2  # light, dark
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[scheme]))
    for text in ("ink", "muted", "good", "bad", "flat", "link", *(f"run{n}" for n in range(1, 7))):
        for ground in ("page", "card"):
            light, dark = sorted((_luminance(colours[text]), _luminance(colours[ground])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
