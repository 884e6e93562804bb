"""Scores for any file of texts, by any toxicity scorer or reward: one {"text", "score"} a line."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dialtune.data.decoding import ByteSource, kind_of
from dialtune.data.reading import read_examples
from dialtune.data.rows import REFUSED, format_of, scan_rows
from dialtune.errors import ConfigError, DataError
from dialtune.evaluation import read_evaluation
from dialtune.results import EVAL_SCHEMA
from dialtune.rewards.base import score_safely
from dialtune.rewards.learned import is_reward_folder
from dialtune.rewards.table import REWARDS, find_reward
from dialtune.runs import write_text_atomic
from dialtune.scorers.base import probabilities
from dialtune.scorers.table import PACKAGED_SCORERS, find_scorer
from dialtune.types import Example

Progress = Callable[[int, int], None]  # texts done, texts in all

TEXT_KEYS = ("text", "completion", "prediction", "summary")
_ROW_FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
_BATCH = 256
_SHOWN = 20


class FoundText(NamedTuple):
    """One text to score; `id` is the row's own, None if it has none."""

    id: str | None
    text: str


@dataclass(frozen=True)
class ScoredFile:
    """Texts with their scores, None where the scorer does not apply; `problems` are lines for the user."""

    scorer: str
    texts: tuple[str, ...]
    scores: tuple[float | None, ...]
    problems: tuple[str, ...] = ()

    @property
    def lines(self) -> str:
        """One {"text", "score"} a line."""
        rows = ({"text": t, "score": s} for t, s in zip(self.texts, self.scores, strict=True))
        return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)

    @property
    def summary(self) -> str:
        """How many, their mean, how many were not scored."""
        known = [score for score in self.scores if score is not None]
        mean = f"mean {sum(known) / len(known):.4f}" if known else "no mean"
        missing = f", {len(self.scores) - len(known):,} not scored" if len(known) < len(self.scores) else ""
        return f"{len(self.texts):,} texts by {self.scorer}, {mean}{missing}"


def score_file(
    scorer: str,
    file: str | Path,
    *,
    out: str | Path | None = None,
    data: str | None = None,
    label: str | None = None,
    progress: Progress | None = None,
) -> ScoredFile:
    """The texts of a file with their scores, also written to `out` if it is given.

    A toxicity scorer gives calibrated probabilities in [0,1], higher is more toxic. A reward gives its raw value,
    higher is better.

    Args:
        scorer: `toxicity`, another packaged scorer, a folder or hub name of a sequence classifier, the name of a
            built-in reward such as `relevance` or `rougeL`, or the folder of a learned reward.
        file: see `read_texts`.
        out: written atomically.
        data: dialogues for a reward that reads them, any source of `read_examples`; texts are matched by id if every
            one has an id, else by order.
        label: the toxic label of a classifier whose label names do not say so.
        progress: called after each batch.
    Raises:
        ConfigError: an unknown scorer, no such file, no `data` where it is needed, or `out` is one of the inputs.
        DataError: nothing to score, rows that cannot be read, or texts that do not match the dialogues.
        RewardError, ModelError, MissingExtraError: the scorer cannot be used.
    """
    file = Path(file)
    if out is not None and any(Path(out).resolve() == Path(source).resolve() for source in (file, data or file)):
        raise ConfigError(f"--out: got {out}, which is being read; name another file")
    scorer = scorer.removeprefix("toxicity:")  # as recipes and logs call it
    _check_name(scorer)
    if (scorer in REWARDS and scorer != "toxicity") or is_reward_folder(Path(scorer)):
        if label is not None:
            raise ConfigError(f"--label: got '{label}', but {scorer} is no classifier; leave it out")
        rows = read_texts(file)
        scored = _by_reward(scorer, file, rows, data, progress)
    else:
        if data is not None:
            raise ConfigError(f"--data: {scorer} reads the text alone; leave it out")
        rows = read_texts(file)
        scored = _by_scorer(scorer, label, rows, progress)
    if out is not None:
        write_text_atomic(Path(out), scored.lines)
    return scored


def _check_name(name: str) -> None:
    """Refuses a misspelt name; what `find_scorer` may know, such as a folder or a hub name, passes."""
    known = [*dict.fromkeys(["toxicity", *PACKAGED_SCORERS, *REWARDS])]
    if name in known or "/" in name or "#" in name or Path(name).exists():
        return
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ConfigError(
        f"scorer '{name}': unknown; {hint}known: {', '.join(known)}, "
        "or the folder or hub name (org/name) of a classifier, or the folder of a learned reward"
    )


def _by_scorer(name: str, label: str | None, rows: Sequence[FoundText], progress: Progress | None) -> ScoredFile:
    scorer = find_scorer(name, label=label)
    texts = tuple(row.text for row in rows)
    values = _in_batches(lambda chosen: probabilities(scorer, [texts[i] for i in chosen]), len(texts), progress)
    broken = int((~np.isfinite(values)).sum())
    problems = (f"{name} gave no finite value for {broken} of {len(texts)} texts",) if broken else ()
    return ScoredFile(name, texts, _or_none(values), problems)


def _by_reward(
    name: str, file: Path, rows: Sequence[FoundText], data: str | None, progress: Progress | None
) -> ScoredFile:
    reward = find_reward(name)
    needs = getattr(reward, "needs", "")
    if needs and data is None:
        raise ConfigError(f"{name} compares texts with {needs}; add: --data FILE (one row per text of {file.name})")
    texts = tuple(row.text for row in rows)
    examples = matched(file, rows, read_examples(data).examples) if data else [Example("text", ())] * len(rows)
    problems: list[str] = []

    def score(chosen: range) -> NDArray[np.float64]:
        part = slice(chosen.start, chosen.stop)
        result = score_safely(reward, examples[part], texts[part])
        problems.extend(result.problems)
        return result.values

    return ScoredFile(name, texts, _or_none(_in_batches(score, len(texts), progress)), tuple(problems))


def _in_batches(
    score: Callable[[range], NDArray[np.float64]], n: int, progress: Progress | None
) -> NDArray[np.float64]:
    found = []
    for start in range(0, n, _BATCH):
        chosen = range(start, min(start + _BATCH, n))
        found.append(score(chosen))
        if progress:
            progress(chosen.stop, n)
    return np.concatenate(found)


def _or_none(values: NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(float(value) if np.isfinite(value) else None for value in values)


def matched(file: Path, rows: Sequence[FoundText], examples: Sequence[Example]) -> list[Example]:
    """The example of each text: by id if every text has one, and then texts may share an example; else by order.

    Raises:
        DataError: an id that the data lacks, ids on some texts only, or another number of texts than examples.
    """
    with_id = sum(row.id is not None for row in rows)
    if with_id == len(rows):
        by_id = {example.id: example for example in examples}
        strange = [str(row.id) for row in rows if row.id not in by_id]
        if strange:
            raise DataError(
                f"{file}: {len(strange):,} of {len(rows):,} texts have an id that the data does not, "
                f"the first '{strange[0][:60]}'"
            )
        return [by_id[str(row.id)] for row in rows]
    if with_id:
        raise DataError(f"{file}: {with_id:,} of {len(rows):,} texts have an id; give one to every text or to none")
    if len(rows) != len(examples):
        raise DataError(f"{file}: {len(rows):,} texts without ids for {len(examples):,} dialogues; one each is needed")
    return list(examples)


def read_texts(path: str | Path) -> list[FoundText]:
    """The texts of a file, in its order; `.gz` is unpacked.

    - eval.json, or a folder that holds one: its completions, with ids;
    - jsonl, json, csv, tsv, parquet: the one column of `text`, `completion`, `prediction`, `summary`, and `id`;
    - any other name: one text a line; an empty line is an empty text.

    Raises:
        ConfigError: no such file.
        DataError: it holds no text, or rows that cannot be used as file:line: reason.
    """
    path = Path(path)
    if path.is_dir() and (path / "eval.json").is_file():
        path = path / "eval.json"
    suffix = next((s.lower() for s in reversed(path.suffixes) if s.lower() != ".gz"), "")
    if not path.is_file() or suffix in REFUSED:
        format_of(path)  # raises, with the reason
    if suffix == ".json" and _is_evaluation(path):
        rows = [FoundText(row.id, row.completion) for row in read_evaluation(path).rows]
    else:
        found = _row_texts(path) if suffix in _ROW_FORMATS else _line_texts(path)
        rows = _collected(path, found)
    if not rows:
        raise DataError(f"{path}: no text to score: the file is empty")
    return rows


def _is_evaluation(path: Path) -> bool:
    with path.open("rb") as file:
        return f'"{EVAL_SCHEMA}"'.encode() in file.read(4096)


_Read = tuple[int, FoundText | None, str]  # line, text or the reason why there is none


def _collected(path: Path, found: Iterator[_Read]) -> list[FoundText]:
    """All texts, or every problem up to a page of them."""
    rows: list[FoundText] = []
    bad: list[str] = []
    for line, row, reason in found:
        if row is not None:
            rows.append(row)
        else:
            bad.append(f"{path}:{line}: {reason}")
            if len(bad) > _SHOWN:
                raise DataError([*bad[:_SHOWN], f"{path}: more rows like these; reading stopped there"])
    if bad:
        raise DataError(bad)
    return rows


def _row_texts(path: Path) -> Iterator[_Read]:
    for row in scan_rows(path):
        text, reason = (None, row.reason) if row.data is None else _text_of(row.data)
        key = row.data.get("id") if row.data else None
        yield row.line, None if text is None else FoundText(None if key is None else str(key), text), reason


def _text_of(row: dict[str, Any]) -> tuple[str | None, str]:
    """(text, "") or (None, reason)."""
    present = [key for key in TEXT_KEYS if key in row]
    if not present:
        columns = ", ".join(islice((str(key) for key in row), 8)) or "nothing"
        return None, f"no text: needs a column {', '.join(TEXT_KEYS[:-1])} or {TEXT_KEYS[-1]}; has: {columns}"
    if len(present) > 1:
        return None, f"two texts: has {' and '.join(present)}; keep the one to score"
    text = row[present[0]]
    return (text, "") if isinstance(text, str) else (None, f"{present[0]}: expected text, got {kind_of(text)}")


def _line_texts(path: Path) -> Iterator[_Read]:
    number = 0
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for line in ByteSource(path, stream).lines():  # type: ignore[arg-type]  # GzipFile reads like a file
                number = line.number
                text = line.text.removesuffix("\n").removesuffix("\r")
                reason = "a NUL byte: this is no text file" if "\0" in text else line.reason
                yield number, None if reason else FoundText(None, text), reason
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: damaged gzip: {error}") from error
