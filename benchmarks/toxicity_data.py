"""Which texts train the packaged toxicity scorer, which choose and calibrate it, and which only test it.

Toxic Spans is never trained on. A text that occurs in any test set is taken out of training and validation.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toxicity_lists as lists

from dialtune.data.corpus import blunt_summary, of_kind, packaged
from dialtune.scorers.encoder import TOXICITY

CATEGORIES = ("Offending User", "Toxicity Agreement")  # of DiaSafety: the closest to toxicity


@dataclass
class Texts:
    """Texts with targets in [0, 1], weights and where each came from."""

    texts: list[str] = field(default_factory=list)
    targets: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)

    def add(self, source: str, texts: Iterable[str], target: float, weight: float = 1.0) -> None:
        for text in texts:
            self.texts.append(text)
            self.targets.append(target)
            self.weights.append(weight)
            self.sources.append(source)

    def keep(self, wanted: Iterable[bool]) -> Texts:
        rows = [row for row, flag in zip(self.rows(), wanted, strict=True) if flag]
        columns: list[Any] = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
        return Texts(*columns)

    def rows(self) -> Iterator[tuple[str, float, float, str]]:
        return zip(self.texts, self.targets, self.weights, self.sources, strict=True)


def normal(text: str) -> str:
    """Lower case, white space collapsed, stripped: what ParaDetox is split by and duplicates are found by."""
    return " ".join(text.lower().split())


def bucket(text: str) -> int:
    """0 to 9, by the hash of the normalised text."""
    return int(hashlib.sha256(normal(text).encode()).hexdigest(), 16) % 10


def paradetox(shared: Path) -> list[tuple[str, list[str]]]:
    """(toxic sentence, its human rewrites that differ from it)."""
    rows = csv.reader(lines(shared / "paradetox/paradetox.tsv.gz"), delimiter="\t")
    next(rows)
    pairs = []
    for row in rows:
        if row and row[0].strip():
            neutral = [text for text in row[1:] if text.strip() and normal(text) != normal(row[0])]
            pairs.append((row[0], neutral))
    return pairs


def diasafety(shared: Path, split: str) -> list[tuple[str, str, bool]]:
    """(response, category, whether it is unsafe)."""
    rows = json.loads(gzip.decompress((shared / f"diasafety/{split}.json.gz").read_bytes()))
    return [(row["response"].strip(), row["category"], row["label"] == "Unsafe") for row in rows]


def convabuse(shared: Path, split: str) -> list[tuple[str, float]]:
    """(user's turn, share of annotators who call it abuse)."""
    found = []
    for row in csv.DictReader(lines(shared / f"convabuse/ConvAbuseEMNLP{split}.csv.gz")):
        votes = []
        for annotator in range(1, 9):
            # A cell holds 0 or 1, or several of them where the same annotator saw the turn again.
            marks = {v: row.get(f"Annotator{annotator}_is_abuse.{v}") or "" for v in (1, 0, -1, -2, -3)}
            values = [v for v, cell in marks.items() for mark in cell.split(",") if mark.strip() == "1"]
            if values:
                votes.append(sum(values) / len(values) < 0)
        if votes and row["user"].strip():
            found.append((row["user"].strip(), sum(votes) / len(votes)))
    return found


def toxic_spans(shared: Path) -> tuple[list[str], list[str]]:
    """(comments that no rater called non-toxic, comments that all raters did)."""
    comments = {
        row["comment_id"]: row["comment_text"] for row in csv.DictReader(lines(shared / "toxic_spans/comments.csv.gz"))
    }
    votes: dict[str, list[bool]] = {}
    for row in csv.DictReader(lines(shared / "toxic_spans/annotations.csv.gz")):
        votes.setdefault(row["comment_id"], []).append(row["not toxic"] == "True")
    toxic = [comments[key] for key, said in votes.items() if key in comments and not any(said)]
    clean = [comments[key] for key, said in votes.items() if key in comments and all(said)]
    return toxic, clean


def test_sets(shared: Path) -> dict[str, Texts]:
    """name -> texts with target 1 (toxic) or 0; nothing here is trained on."""
    sets = {name: Texts() for name in ("toxic spans (unseen)", "paradetox held-out", "convabuse valid")}
    toxic, clean = toxic_spans(shared)
    sets["toxic spans (unseen)"].add("toxic spans", toxic, 1)
    sets["toxic spans (unseen)"].add("toxic spans", clean, 0)
    for sentence, neutral in paradetox(shared):
        if bucket(sentence) == 9 and neutral:
            sets["paradetox held-out"].add("paradetox", [sentence], 1)
            sets["paradetox held-out"].add("paradetox", neutral[:1], 0)
    for turn, share in convabuse(shared, "valid"):
        if share != 0.5:
            sets["convabuse valid"].add("convabuse", [turn], float(share > 0.5))
    responses = diasafety(shared, "test")
    for category in CATEGORIES:
        name = f"diasafety test {category.lower()}"
        sets[name] = Texts()
        sets[name].add("diasafety", [text for text, kind, unsafe in responses if kind == category and unsafe], 1)
        sets[name].add("diasafety", [text for text, _, unsafe in responses if not unsafe], 0)
    for split in ("validation", "test"):
        sets[f"packaged {split} blunt/civil"] = _summaries(split)
    return sets


def benign_sets() -> dict[str, dict[str, list[str]]]:
    """list -> group -> harmless texts that only test."""
    controls: dict[str, list[str]] = {}
    for split in ("validation", "test"):
        for example in of_kind(packaged(split), "control"):
            controls.setdefault(str(example.meta["control"]), []).append(example.references[0])
    civil = [example.references[0] for split in ("validation", "test") for example in packaged(split).examples]
    return {
        "identity mentions": lists.identity_mentions(test=True),
        "other benign mentions": lists.benign_mentions(test=True),
        "packaged controls": controls,
        "packaged civil summaries": {"all kinds": civil},
    }


def disguised_sets(shared: Path, seed: int = 0) -> dict[str, list[tuple[str, str]]]:
    """kind of spelling -> (plain, disguised) toxic sentences of ParaDetox's held-out bucket."""
    draw = random.Random(seed)
    sentences = [sentence for sentence, _ in paradetox(shared) if bucket(sentence) == 9]
    found = {}
    for name, how in {**lists.DISGUISES, **lists.TEST_DISGUISES, "shouted": lists.shouted}.items():
        pairs = [(sentence, lists.disguise(sentence, how, draw)) for sentence in sentences]
        found[name] = [(plain, changed) for plain, changed in pairs if plain != changed]
    return found


def probe_texts() -> list[str]:
    """The packaged reward probes, which must stay unseen to mean anything."""
    path = TOXICITY.parent / "probes.jsonl"
    rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [json.loads(row)["text"] for row in rows]


def training_texts(shared: Path, *, seed: int = 0, share: float = 1.0) -> tuple[Texts, Texts]:
    """(training, validation), without any text of a test set; `share` < 1 takes that part of each source."""
    draw = random.Random(seed)
    train, validation = Texts(), Texts()
    _add_paradetox(train, validation, shared)
    _add_diasafety(train, validation, shared)
    for turn, abuse in convabuse(shared, "train"):
        (validation if bucket(turn) == 8 else train).add("convabuse", [turn], abuse)
    _add_corpus(train, validation)
    _add_lists(train, validation)
    _add_disguises(train, validation, shared, draw)
    _add_long(train, validation, draw)
    tested = {normal(text) for part in test_sets(shared).values() for text in part.texts}
    tested |= {normal(text) for part in benign_sets().values() for group in part.values() for text in group}
    tested |= {normal(pair[1]) for pairs in disguised_sets(shared).values() for pair in pairs}
    tested |= {normal(text) for text in probe_texts()}
    train = train.keep(normal(text) not in tested for text in train.texts)
    known = {normal(text) for text in train.texts}
    validation = validation.keep(normal(text) not in tested | known for text in validation.texts)
    if share < 1:
        train = train.keep(source in ("corpus", "summaries") or draw.random() < share for source in train.sources)
    return train, validation


def _add_paradetox(train: Texts, validation: Texts, shared: Path) -> None:
    pairs = paradetox(shared)
    toxic = {normal(sentence) for sentence, _ in pairs}
    for sentence, neutral in pairs:
        part = train if bucket(sentence) <= 7 else validation if bucket(sentence) == 8 else None
        if part is not None:
            part.add("paradetox", [sentence], 1)
            # Two rewrites of one sentence count as much as one, so that the classes stay even.
            kept = [text for text in dict.fromkeys(neutral) if normal(text) not in toxic][:2]
            part.add("paradetox", kept, 0, weight=1 / max(1, len(kept)))


def _add_diasafety(train: Texts, validation: Texts, shared: Path) -> None:
    """Whether a reply is unsafe depends on what it answers, so half a vote for an offence and none for agreement."""
    for split, part in (("train", train), ("val", validation)):
        for response, category, unsafe in diasafety(shared, split):
            if not unsafe:
                part.add("diasafety", [response], 0)
            elif category == "Offending User":
                part.add("diasafety", [response], 1, weight=0.5)


def _summaries(split: str) -> Texts:
    """Blunt (1) against civil (0) summaries of the heated dialogues."""
    found = Texts()
    for example in of_kind(packaged(split), "heated"):
        blunt = blunt_summary(example)
        assert blunt is not None
        found.add("corpus", [blunt], 1)
        found.add("corpus", [example.references[0]], 0)
    return found


def _add_corpus(train: Texts, validation: Texts) -> None:
    """The packaged training split alone; one dialogue in ten of it chooses."""
    for example in packaged("train").examples:
        part = validation if bucket(example.id) == 8 else train
        blunt = blunt_summary(example)
        if blunt is not None:
            part.add("corpus", [blunt], 1, weight=4)
        part.add("corpus", example.references, 0, weight=4)
        if example.meta["kind"] != "heated":
            part.add("corpus", [turn.content for turn in example.messages], 0)


def _add_lists(train: Texts, validation: Texts) -> None:
    made = Texts()
    for seed in range(2):
        for group in lists.identity_mentions(test=False, seed=seed).values():
            made.add("identity", group, 0)
        for group in lists.benign_mentions(test=False, seed=seed).values():
            made.add("benign", group, 0, weight=2)
    made.add("summaries", lists.summaries(900, abusive=True), 1)
    made.add("summaries", lists.summaries(900, abusive=False), 0)
    made.add("abuse", lists.direct_abuse(600), 1)
    made.add("noise", lists.HARMLESS_NOISE, 0)
    _divide(made, train, validation)


def _add_disguises(train: Texts, validation: Texts, shared: Path, draw: random.Random) -> None:
    """Disguised abuse (1) and disguised harmless words (0), of training sentences alone."""
    made = Texts()
    ways = list(lists.DISGUISES.values())
    for sentence, neutral in paradetox(shared):
        if bucket(sentence) > 7:
            continue
        changed = lists.disguise(sentence, draw.choice(ways), draw)
        if changed != sentence and draw.random() < 0.5:
            made.add("disguised", [changed], 1)
        if neutral and draw.random() < 0.2:
            made.add("disguised", [lists.disguise_harmless(neutral[0], draw.choice(ways), draw)], 0)
    _divide(made, train, validation)


def _add_long(train: Texts, validation: Texts, draw: random.Random, n: int = 1200) -> None:
    """Several sentences in a row, one of them toxic (1) or none (0): comments are longer than ParaDetox."""
    short = [row for row in train.rows() if row[3] in ("paradetox", "diasafety", "corpus") and len(row[0]) < 160]
    toxic = [row[0] for row in short if row[1] == 1 and row[3] == "paradetox"]
    clean = [row[0] for row in short if row[1] == 0]
    made = Texts()
    for _ in range(n):
        made.add("long", [" ".join(draw.sample(clean, draw.randint(2, 4)))], 0)
        mixed = [*draw.sample(clean, draw.randint(1, 3)), draw.choice(toxic)]
        draw.shuffle(mixed)
        made.add("long", [" ".join(mixed)], 1)
    _divide(made, train, validation)


def _divide(made: Texts, train: Texts, validation: Texts) -> None:
    """Nine tenths train, one tenth chooses, each text once."""
    seen: set[str] = set()
    for text, target, weight, source in made.rows():
        if text not in seen:
            seen.add(text)
            (validation if bucket(text) == 8 else train).add(source, [text], target, weight)


def lines(path: Path) -> io.StringIO:
    """A gzipped text file, to read by line."""
    return io.StringIO(gzip.decompress(path.read_bytes()).decode("utf-8"), newline="")
