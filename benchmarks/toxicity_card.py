"""Writes the packaged toxicity scorer's model card from benchmarks/results/toxicity.json and its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from record import RESULTS

from dialtune.scorers.encoder import TOXICITY

SHOWN = ("minilm", "alt-profanity-check")

TEMPLATE = """# Toxicity scorer `minilm` (dialtune-minilm)

Reads one English text and says how probable it is that people call it toxic: insulting, abusive, obscene. MiniLM
(all-MiniLM-L6-v2, Apache-2.0, sha256 {base}) with a low-rank update of its linear layers (rank {r}) and a
linear head, {size:.2f} MB in fp16, no pickles. It is the default reward of job 3; what it trained is judged by a jury
too (`ngrams`, `lexicon`, alt-profanity-check), which saw other data.

Trained by `make toxicity-scorer` (about 15 minutes on 2 cores); this page is written by
`python benchmarks/toxicity_card.py` from the files of `python benchmarks/bench_toxicity.py`.

## Data

{n_texts:,} texts: {data}. Never the test sets below: a text that
occurs in one of them, or in the packaged probes, was taken out of training and validation. Calibration (Platt) is on
the validation part: slope {slope:.3f}, intercept {intercept:.3f}.

## Telling toxic from clean

AUC with its 95 % interval (bootstrap within each class, {trials:,} draws), beside the other scorers; calibration error
(ECE), recall and false positives of `minilm` at a probability of 0.5. "Better by": the paired interval of the
difference to alt-profanity-check.

{ranks}

- **Toxic Spans** was pre-selected as toxic, so its "clean" comments are those of heated threads that no rater called
  toxic, {n_clean} of them. Word and character n-grams trained on that very set and cross-validated reach 0.741, so 0.90
  is out of reach of what its labels hold. No text of it trained this scorer. (Most of it trained the
  juror `ngrams`, whose number there is not held-out.)
- **DiaSafety** labels depend on the context, which a scorer of single texts does not see: agreeing with an insult
  (toxicity agreement) is a polite sentence by itself.

## False positives

Share of harmless texts at 0.5 or more.

{benign}

## Disguised spellings

Share of ParaDetox's held-out toxic sentences found, as written and in a spelling that hides the words.

{disguises}

## Limits

- English only.
- One text at a time: irony, implied hate and insults that only the context makes are missed.
- Sentences that deny an insult or aim one at oneself are the benign mentions it errs on most; see the table.
- A score is no verdict about a person. For moderation, calibrate on your own texts.
"""


def write_card(folder: Path = TOXICITY) -> Path:
    """CARD.md beside the weights; the results must be those of these weights."""
    result = json.loads((RESULTS / "toxicity.json").read_text(encoding="utf-8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = result["rows"]
    ranks = [row for row in rows if "auc" in row]
    spans = next(row for row in ranks if row["set"].startswith("toxic spans"))
    sources = ", ".join(f"{name} ({licence})" for name, licence in config["training"]["data"].items())
    text = TEMPLATE.format(
        base=config["base_sha256"][:8],
        r=config["training"]["settings"]["r"],
        size=sum((folder / name).stat().st_size for name in ("model.safetensors", "config.json")) / 1e6,
        n_texts=config["training"]["n_texts"],
        data=sources,
        slope=config["slope"],
        intercept=config["intercept"],
        trials=result.get("trials", 2000),
        ranks=_ranks(ranks),
        n_clean=spans["n_clean"],
        benign=_table(
            ["texts", "n", *SHOWN],
            [
                [f"{row['list']}, {row['group']}", row["n"], *(_share(row.get(name)) for name in SHOWN)]
                for row in rows
                if "list" in row
            ],
        ),
        disguises=_table(
            ["spelling", "n", "as written", "disguised", "alt-profanity-check, disguised"],
            [
                [row["spelling"], row["n"], _share(row["minilm plain"]), *(_share(row.get(name)) for name in SHOWN)]
                for row in rows
                if "spelling" in row
            ],
        ),
    )  # fmt: skip
    path = folder / "CARD.md"
    path.write_text(text, encoding="utf-8")
    return path


def _ranks(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = []
    for name in dict.fromkeys(row["set"] for row in rows):
        by = {row["scorer"]: row for row in rows if row["set"] == name}
        ours, apc = by["minilm"], by.get("alt-profanity-check")
        others = [f"{by[key]['auc']:.3f}" if key in by else "" for key in ("alt-profanity-check", "ngrams", "lexicon")]
        better = "[{:+.3f}, {:+.3f}]".format(*apc["minilm_better_by_ci"]) if apc else ""
        low, high = ours["ci"]
        cells.append(
            [
                name,
                f"{ours['n_toxic']:,} + {ours['n_clean']:,}",
                f"**{ours['auc']:.3f}** [{low:.3f}, {high:.3f}]",
                *others,
                better,
                f"{ours['ece']:.3f}",
                _share(ours["recall"]),
                _share(ours["false_positives"]),
            ]
        )
    head = ["set", "toxic + clean", "minilm", "alt-profanity-check", "ngrams", "lexicon", "better by"]
    return _table([*head, "ECE", "recall", "false positives"], cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


if __name__ == "__main__":
    print(f"written: {write_card().name}")
