"""Train, calibrate and measure the n-gram juror; writes dialtune/assets/ngrams and benchmarks/results/ngrams.json.

Logistic regression with an L2 penalty on hashed n-grams (dialtune/scorers/ngrams.py); the target of a text is the
share of its raters who call it toxic. No weight is negative: the clean texts are about other things than the rude ones
(chats and appointments against politics), and what only tells the subjects apart must not pay for an insult. The
penalty is chosen, and the outputs are calibrated (Platt 1999), on the validation part.

ParaDetox and DiaSafety, which train the reward's scorer, and DialogSum and DailyDialog, whose licences forbid it, are
measured at most. No randomness but a seeded choice of chats: the same data and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import toxicity_lists
from numpy.typing import NDArray
from record import print_table, shared_data, write_result
from safetensors.numpy import save
from scipy.optimize import Bounds, minimize
from scipy.sparse import csr_matrix
from toxicity_data import bucket, convabuse, normal, paradetox

from dialtune.data.corpus import blunt_summary, of_kind, packaged
from dialtune.runs import write_text_atomic
from dialtune.scorers.base import sigmoid
from dialtune.scorers.lexicon import find_words
from dialtune.scorers.ngrams import BUCKETS, CONFIG, FORMAT, NGRAMS, WEIGHTS, NgramScorer, buckets, load_ngrams

Array = NDArray[np.float64]

PENALTIES = (4.0, 16.0, 64.0)  # C: the inverse strength of the L2 penalty
RAREST = 3  # a bucket of fewer training texts keeps weight 0
N_CHATS = 12_000
CORPUS_WEIGHT = 3.0
# Said of people in ways that no toxicity scorer may trip over; toxicity_lists has others, which only test.
GROUPS = (
    "Muslim Jewish Christian Catholic Hindu Buddhist Sikh gay lesbian bisexual transgender queer Black white Asian "
    "Latino African Arab Indian Mexican Chinese Polish Turkish Nigerian Russian deaf blind disabled autistic female "
    "male"
)
MENTIONS = (
    "My neighbour is {a} {group} nurse.",
    "She told us that she is {group} and proud of it.",
    "He asks whether {group} guests need anything special.",
    "Many {group} people live in this part of town.",
    "I grew up in {a} {group} family and moved here at six.",
    "#Person1# mentions that #Person2#'s teacher is {group}.",
)


@dataclass
class Rows:
    """Texts with targets in [0, 1], weights, sources, and the part that each belongs to."""

    texts: list[str] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    def add(self, source: str, text: str, target: float, weight: float = 1.0, *, key: str | None = None) -> None:
        """`key` decides the part, by its hash: the text itself unless rows of one dialogue must stay together."""
        tenth = bucket(text if key is None else key)
        self.texts.append(text)
        self.targets.append(target)
        self.weights.append(weight)
        self.sources.append(source)
        self.parts.append("train" if tenth <= 7 else "validation" if tenth == 8 else "test")

    def part(self, name: str) -> NDArray[np.bool_]:
        return np.array([part == name for part in self.parts])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", help="folder of the corpora; default: ../shared/data beside this checkout")
    parser.add_argument("--out", type=Path, default=NGRAMS, help="where the scorer goes")
    options = parser.parse_args()
    shared = shared_data(options.shared)
    rows = gather(shared)
    weights, intercept, chosen = train(rows)
    config = write(options.out, weights, intercept, {"penalty": chosen, "rows": counted(rows)})
    measured = measure(load_ngrams(options.out), shared, rows)
    config["measured"] = measured
    write_text_atomic(options.out / CONFIG, json.dumps(config, indent=2) + "\n")
    write_text_atomic(options.out / "CARD.md", card(config))
    print_table(measured["auc"])
    print_table(measured["false_positives"])
    headline = {f"auc {row['set']}": row["auc"] for row in measured["auc"]}
    write_result("ngrams", measured["auc"], headline, false_positives=measured["false_positives"])


def gather(shared: Path) -> Rows:
    """Everything that trains, calibrates or tests within its own source."""
    rows = Rows()
    for comment, share in toxic_spans(shared):
        rows.add("toxic spans", comment, share)
    for text in chats():
        rows.add("chitchat", text, 0)
    for example in packaged("train").examples:
        rows.add("packaged", example.references[0], 0, CORPUS_WEIGHT, key=example.id)
        if example.meta["kind"] != "heated":
            for message in example.messages:
                rows.add("packaged", message.content, 0, CORPUS_WEIGHT, key=example.id)
    for group in GROUPS.split():
        for template in MENTIONS:
            article = "an" if group[0] in "aeioAEIO" else "a"
            rows.add("mentions", template.format(a=article, group=group), 0)
    return rows


def toxic_spans(shared: Path) -> list[tuple[str, float]]:
    """(comment, share of its raters who did not call it non-toxic)."""
    comments = {row["comment_id"]: row["comment_text"] for row in read_csv(shared / "toxic_spans/comments.csv.gz")}
    votes: dict[str, list[bool]] = {}
    for row in read_csv(shared / "toxic_spans/annotations.csv.gz"):
        votes.setdefault(row["comment_id"], []).append(row["not toxic"] != "True")
    return [(comments[key], sum(said) / len(said)) for key, said in votes.items() if key in comments]


def read_csv(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def chats() -> list[str]:
    """Messages of the chitchat wheel, one to six in a row, none with a listed word; it is taken as clean, unrated."""
    spec = find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise SystemExit("chitchat-dataset is not installed; run: pip install --no-deps -r requirements/offline.txt")
    draw, found = random.Random(0), dict[str, str]()
    for chat in json.loads((Path(spec.origin).parent / "dataset.json").read_text(encoding="utf-8")).values():
        messages = [message["text"].strip() for turn in chat["messages"] for message in turn]
        start = 0
        while start < len(messages):
            end = start + draw.choice((1, 1, 2, 4, 6))
            text = " ".join(message for message in messages[start:end] if message)
            if len(text.split()) >= 3 and not find_words(text):
                found.setdefault(normal(text), text)
            start = end
    return draw.sample(list(found.values()), N_CHATS)


def train(rows: Rows) -> tuple[Array, float, float]:
    """Calibrated weights (BUCKETS,), intercept, and the penalty that the validation part chose."""
    features = matrix(rows.texts)
    targets, weights = np.array(rows.targets), np.array(rows.weights)
    learn, choose = rows.part("train"), rows.part("validation")
    known = np.flatnonzero(np.asarray((features[learn] > 0).sum(axis=0)).ravel() >= RAREST)
    features = features[:, known]
    best: tuple[float, Array, float] | None = None
    for penalty in PENALTIES:
        solution = fit(features[learn], targets[learn], weights[learn], penalty)
        raw = features[choose] @ solution[1:] + solution[0]
        slope, shift, loss = platt(raw, targets[choose], weights[choose])
        print(f"C {penalty:g}: validation loss {loss:.5f}, slope {slope:.2f}", flush=True)
        if best is None or loss < best[0]:
            best = loss, np.append(solution[1:] * slope, solution[0] * slope + shift), penalty
    assert best is not None
    table = np.zeros(BUCKETS)
    table[known] = best[1][:-1]
    return table, float(best[1][-1]), best[2]


def matrix(texts: Sequence[str]) -> csr_matrix:
    """(N, BUCKETS): 1 / sqrt(number of features) where a text has the feature."""
    found = [buckets(text) for text in texts]
    sizes = np.array([len(row) for row in found])
    values = np.repeat(1 / np.sqrt(np.maximum(sizes, 1)), sizes)
    edges = np.concatenate([[0], np.cumsum(sizes)])
    return csr_matrix((values, np.concatenate(found), edges), shape=(len(texts), BUCKETS))


def fit(features: Any, targets: Array, weights: Array, penalty: float) -> Array:
    """Intercept and weights w >= 0 that minimise weighted cross-entropy + |w|^2 / (2 C); the intercept is free."""

    def loss(solution: Array) -> tuple[float, Array]:
        raw = features @ solution[1:] + solution[0]
        error = weights * (sigmoid(raw) - targets)
        value = cross_entropy(raw, targets, weights) + solution[1:] @ solution[1:] / (2 * penalty)
        return value, np.append(error.sum(), features.T @ error + solution[1:] / penalty)

    start = np.zeros(features.shape[1] + 1)
    floor = Bounds(np.append(-np.inf, start[1:]), np.inf)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=floor, options={"maxiter": 200})
    return np.asarray(found.x)


def platt(raw: Array, targets: Array, weights: Array) -> tuple[float, float, float]:
    """Slope and shift that calibrate raw outputs, and the mean cross-entropy then."""

    def loss(solution: Array) -> tuple[float, Array]:
        scaled = raw * solution[0] + solution[1]
        error = weights * (sigmoid(scaled) - targets)
        return cross_entropy(scaled, targets, weights), np.array([error @ raw, error.sum()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    return float(found.x[0]), float(found.x[1]), float(found.fun) / float(weights.sum())


def cross_entropy(raw: Array, targets: Array, weights: Array) -> float:
    return float((weights * (np.logaddexp(0, raw) - targets * raw)).sum())


def write(folder: Path, weights: Array, intercept: float, training: dict[str, Any]) -> dict[str, Any]:
    """model.safetensors and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    raw = save({"weights": weights.astype(np.float16)})
    (folder / WEIGHTS).write_bytes(raw)
    config = {
        "format": FORMAT,
        "name": "dialtune-ngrams-1",
        "intercept": round(intercept, 6),
        "weights_sha256": hashlib.sha256(raw).hexdigest(),
        "training": training,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return config


def counted(rows: Rows) -> dict[str, dict[str, int]]:
    """source -> part -> texts."""
    table: dict[str, dict[str, int]] = {}
    for (source, part), n in sorted(Counter(zip(rows.sources, rows.parts, strict=True)).items()):
        table.setdefault(source, {})[part] = n
    return table


def measure(scorer: NgramScorer, shared: Path, rows: Rows) -> dict[str, Any]:
    """AUCs with intervals, false positives, and calibration, on texts that trained nothing."""
    known = {normal(text) for text, part in zip(rows.texts, rows.parts, strict=True) if part != "test"}
    aucs = []
    for name, pairs in labelled(shared, rows).items():
        kept = [(text, toxic) for text, toxic in pairs if normal(text) not in known]
        logits, toxic = scorer.logits([text for text, _ in kept]), np.array([flag for _, flag in kept])
        value, low, high = auc_interval(logits[toxic], logits[~toxic])
        recall = float((logits[toxic] >= 0).mean())
        aucs.append({"set": name, "n": len(kept), "auc": value, "low": low, "high": high, "recall": recall})
    false = []
    for name, texts in harmless(shared).items():
        kept = [text for text in texts if normal(text) not in known]
        judged = scorer.logits(kept) >= 0
        false.append({"set": name, "n": len(kept), "judged_toxic": int(judged.sum()), "share": float(judged.mean())})
    return {"auc": aucs, "false_positives": false, "calibration": calibration(scorer, rows)}


def labelled(shared: Path, rows: Rows) -> dict[str, list[tuple[str, bool]]]:
    """set -> (text, whether it is toxic)."""
    spans = [
        (text, target)
        for text, target, source, part in zip(rows.texts, rows.targets, rows.sources, rows.parts, strict=True)
        if source == "toxic spans" and part == "test"
    ]
    sets = {
        "Toxic Spans test, majority": [(text, share > 0.5) for text, share in spans if share != 0.5],
        "Toxic Spans test, unanimous": [(text, share == 1) for text, share in spans if share in (0, 1)],
        "ConvAbuse valid": [(turn, share > 0.5) for turn, share in convabuse(shared, "valid") if share != 0.5],
        "ParaDetox held-out": [
            pair
            for sentence, neutral in paradetox(shared)
            if bucket(sentence) == 9 and neutral
            for pair in ((sentence, True), (neutral[0], False))
        ],
    }
    for split in ("validation", "test"):
        heated = of_kind(packaged(split), "heated")
        sets[f"packaged {split} blunt/civil"] = [(str(blunt_summary(example)), True) for example in heated]
        sets[f"packaged {split} blunt/civil"] += [(example.references[0], False) for example in heated]
    return sets


def harmless(shared: Path) -> dict[str, list[str]]:
    """set -> texts that nobody should call toxic."""
    sets: dict[str, list[str]] = {}
    for split in ("validation", "test"):
        data = packaged(split)
        sets[f"packaged {split} civil summaries"] = [example.references[0] for example in data.examples]
        for example in of_kind(data, "control"):
            kind = f"packaged controls, {example.meta['control']}"
            sets.setdefault(kind, []).append(example.references[0])
    for group, texts in toxicity_lists.identity_mentions(test=True).items():
        sets[f"identity mentions, {group}"] = texts
    sets["other benign mentions"] = [t for part in toxicity_lists.benign_mentions(test=True).values() for t in part]
    with gzip.open(shared / "dialogsum/dialogsum.dev.jsonl.gz", "rt", encoding="utf-8") as file:
        sets["DialogSum dev summaries"] = [json.loads(line)["summary"] for line in file]
    return sets


def calibration(scorer: NgramScorer, rows: Rows) -> list[dict[str, Any]]:
    """Per fifth of [0,1]: texts of the test parts, their mean probability and their mean share of toxic votes."""
    chosen = rows.part("test")
    texts = [text for text, flag in zip(rows.texts, chosen, strict=True) if flag]
    found, targets = sigmoid(scorer.logits(texts)), np.array(rows.targets)[chosen]
    table = []
    for low in np.arange(0, 1, 0.2):
        inside = (found >= low) & ((found < low + 0.2) | (low > 0.79))
        if inside.any():
            table.append({
                "from": round(float(low), 1), "n": int(inside.sum()),
                "probability": float(found[inside].mean()), "votes": float(targets[inside].mean()),
            })  # fmt: skip
    return table


def auc_interval(toxic: Array, clean: Array) -> tuple[float, float, float]:
    """Share of (toxic, clean) pairs in the right order, ties half, with DeLong's 95 % interval (DeLong et al. 1988)."""
    order_clean, order_toxic = np.sort(clean), np.sort(toxic)
    above = (
        (np.searchsorted(order_clean, toxic, "left") + np.searchsorted(order_clean, toxic, "right")) / 2 / len(clean)
    )
    below = (
        (np.searchsorted(order_toxic, clean, "left") + np.searchsorted(order_toxic, clean, "right")) / 2 / len(toxic)
    )
    value = float(above.mean())
    error = float(np.sqrt(above.var(ddof=1) / len(toxic) + below.var(ddof=1) / len(clean)))
    return value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)


def card(config: dict[str, Any]) -> str:
    measured, training = config["measured"], config["training"]
    aucs = [
        f"| {r['set']} | {r['n']:,} | {r['auc']:.3f} [{r['low']:.3f}, {r['high']:.3f}] | {100 * r['recall']:.0f} % |"
        for r in measured["auc"]
    ]
    false = [
        f"| {r['set']} | {r['n']:,} | {r['judged_toxic']} ({100 * r['share']:.1f} %) |"
        for r in measured["false_positives"]
    ]
    levels = [
        f"| {r['from']:.1f} | {r['n']:,} | {r['probability']:.3f} | {r['votes']:.3f} |" for r in measured["calibration"]
    ]
    parts = [
        f"| {source} | {' | '.join(f'{n.get(part, 0):,}' for part in ('train', 'validation', 'test'))} |"
        for source, n in training["rows"].items()
    ]
    return CARD.format(
        name=config["name"], penalty=f"{training['penalty']:g}", aucs="\n".join(aucs), false="\n".join(false),
        levels="\n".join(levels), parts="\n".join(parts),
    )  # fmt: skip


CARD = """# Toxicity juror `ngrams` ({name})

A linear classifier: hashed character 2- to 5-grams of each word, words and pairs of words, one weight per bucket
(2^18, fp16, 512 KB). It judges a single text; toxic means a probability of at least 0.5. It is a juror: a second
opinion of another kind and from other data than the packaged scorer `minilm`, never a reward by default.

Written by `python benchmarks/train_ngrams.py`; config.json holds every number of this page.

## Data

| source | train | validation | test |
|---|---|---|---|
{parts}

- **toxic spans**: comments of Civil Comments (CC0 1.0) pre-selected as toxic, with the votes of their raters; target:
  the share that did not call it non-toxic.
- **chitchat**: messages of the chitchat dataset (MIT) without a word of our list; taken as clean, nobody rated them.
- **packaged**: civil summaries and turns of dialtune's own training split (Apache-2.0); clean.
- **mentions**: harmless sentences about groups of people, written for this project; clean.

Split by the text's hash (packaged: the dialogue's): 80, 10, 10 %. C = {penalty} and the calibration (Platt) come from
the validation part. No text of ParaDetox, DiaSafety or ConvAbuse, which train `minilm`, and none of DialogSum or
DailyDialog.

## Measured

Texts that trained nothing. AUC with DeLong's 95 % interval; recall at a probability of 0.5.

| set | n | AUC | recall |
|---|---|---|---|
{aucs}

Toxic Spans holds hardly a comment that is clean: its AUC says how well rude comments are ranked among rude ones.

| harmless texts | n | judged toxic |
|---|---|---|
{false}

Calibration on the test parts, by fifths of the probability:

| from | n | mean probability | mean share of toxic votes |
|---|---|---|---|
{levels}

## Limits

- It knows spellings and no meaning: irony, quotation, negation and implied insults are beyond it.
- No weight is negative, so no polite word pays for an insult; but a long text around it dilutes it (the sum of the
  weights is divided by the root of their number).
- Most of what it knows of toxicity are comments on North American news of 2015 to 2017.
- English only.
"""


if __name__ == "__main__":
    main()
