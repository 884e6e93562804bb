"""Completions x examples x metrics to an Evaluation: counts of everything, an interval for every score; eval.json.

`evaluate_completions` is all a caller needs; `read_predictions` makes completions of a file that another program wrote.
"""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from dialtune.data.dialogue import render_dialogue
from dialtune.data.reading import DataSet
from dialtune.errors import ConfigError, DataError
from dialtune.metrics.base import EVERY, Array, Metric, chosen_references, is_empty
from dialtune.metrics.contexts import dialogue_units
from dialtune.metrics.table import METRICS, look_up, unknown_metric
from dialtune.results import DataInfo, Decoding, EvalRow, Evaluation, ModelInfo, to_json
from dialtune.rewards.score import open_score
from dialtune.runs import RunFolder, write_text_atomic
from dialtune.score_entries import score_entries
from dialtune.seeds import seed_for
from dialtune.statistics import RESAMPLES
from dialtune.types import Completion, Example, FinishReason

FILE_DECODING = Decoding(strategy="file")  # how predictions from a file were decoded is not known
NO_TEMPLATE = "unknown"  # template_sha256 of predictions from a file
_SHOWN = 5  # problems listed one by one


def evaluate_completions(  # noqa: PLR0913  # what a score depends on is stated by the caller, never guessed
    dataset: DataSet,
    completions: Sequence[Completion],
    metrics: Sequence[str | Metric],
    *,
    reference: str = "auto",
    model: ModelInfo,
    task: str,
    decoding: Decoding = FILE_DECODING,
    template_sha256: str = NO_TEMPLATE,
    dropped_turns: int = 0,
    leakage: Mapping[str, int] | None = None,
    train: Sequence[Example] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Evaluation:
    """Every row scored by every metric, with 95 % intervals resampled by dialogue.

    Args:
        dataset: its examples, ids unique.
        completions: one for each example, found by `example_id`, in any order. Empty texts count as 0.
        metrics: names that `metrics.table.look_up` knows, or metrics. One whose tool is not installed is not scored,
            and one that asks the model itself only if `reply_likelihood.bind_likelihoods` has asked it.
        reference: `first`, a reference's name such as `summary2`, `mean`, `max`, or `auto` (mean if a row has several).
            With `mean` and several references the ROUGE scores come with their `_max` companions.
        model: what wrote the completions.
        task: `summarize` and so on.
        decoding: resolved.
        template_sha256: of the prompt template.
        dropped_turns: turns cut to fit the token budget, over all rows.
        leakage: `{"exact": n, "near": n}` rows that are also in the training data, if that was looked at.
        train: what the model was trained on; its most frequent replies are those that `generic_rate` counts.
        seed: of the resampling.
        resamples: draws for the intervals.

    Raises:
        ConfigError: an unknown metric or reference.
        DataError: completions and examples do not match one to one.
    """
    examples = dataset.examples
    ordered = _align(examples, completions)
    reference = resolve_reference(reference, examples)
    resolved = resolve_metrics(metrics, reference, examples)
    chosen = [open_score(metric.with_rows(examples, train), model.name) for metric in resolved]
    references = _span(examples)
    texts = [completion.text for completion in ordered]
    absent = {metric.name: reason for metric in chosen if (reason := metric.unavailable())}
    nothing = np.full((len(examples), 1), np.nan)
    stats = {m.name: nothing if m.name in absent else m.segments(texts, examples) for m in chosen}
    units = dialogue_units(examples)
    draws = {"resamples": resamples, "seed": seed_for(seed, "bootstrap")}
    headline = [metric for metric in chosen if metric.direction and metric.every_row and metric.name not in absent]
    scored = [~np.isnan(stats[metric.name][:, 0]) for metric in headline]
    return Evaluation(
        model=model,
        task=task,
        data=DataInfo(
            name=dataset.name,
            split=dataset.split,
            fingerprint=dataset.fingerprint,
            references=references,
            reference=reference,
            template_sha256=template_sha256,
            dropped_turns=dropped_turns,
            leakage=dict(leakage) if leakage is not None else None,
            limit=dataset.limit,
            turns=dict(dataset.turns),
        ),
        decoding=decoding,
        n_total=len(examples),
        n_generated=len(ordered),
        n_truncated=sum(completion.finish == "length" for completion in ordered),
        n_empty=sum(is_empty(text) for text in texts),
        n_scored=int(np.all(scored, axis=0).sum()) if scored else len(ordered),
        scores=score_entries([(metric, absent.get(metric.name)) for metric in chosen], stats, units, references, draws),
        rows=_rows(examples, ordered, chosen, stats, units),
    )


def _span(examples: Sequence[Example]) -> tuple[int, int]:
    counts = [len(example.references) for example in examples]
    return min(counts), max(counts)


def resolve_reference(reference: str, examples: Sequence[Example]) -> str:
    """The reference choice in its one spelling: `auto` decided, the first reference by any name `first`."""
    most = _span(examples)[1] if examples else 0
    if reference == "auto":
        return "mean" if most > 1 else "first"
    if reference in EVERY or reference == "first" or most == 0:
        return reference
    picked = [chosen_references(example, reference) for example in examples]
    if not any(picked):
        names = next((example.meta.get("reference_names") for example in examples if example.references), None)
        allowed = ", ".join([*(names or [f"summary{k + 1}" for k in range(most)]), "first", "mean", "max"])
        raise ConfigError(f"reference: got '{reference}', which no row has; allowed here: {allowed}")
    same = all(texts == example.references[:1] for texts, example in zip(picked, examples, strict=True))
    return "first" if same else reference


def resolve_metrics(metrics: Sequence[str | Metric], reference: str, examples: Sequence[Example]) -> list[Metric]:
    """The metrics by name, judged by this reference choice; each once.

    Raises:
        ConfigError: all unknown names at once.
    """
    known = [look_up(item) if isinstance(item, str) else item for item in metrics]
    unknown = [unknown_metric(str(item)) for item, metric in zip(metrics, known, strict=True) if metric is None]
    if unknown:
        raise ConfigError(unknown)
    found: dict[str, Metric] = {}
    for metric in known:
        told = metric.with_reference(reference) if metric else None
        if told:
            found.setdefault(told.name, told)
    if reference == "mean" and examples and _span(examples)[1] > 1:
        companions = [METRICS[f"{name}_max"] for name in found if f"{name}_max" in METRICS]
        found = {metric.name: metric for metric in (*found.values(), *companions)}
    return list(found.values())


def _align(examples: Sequence[Example], completions: Sequence[Completion]) -> list[Completion]:
    """The completions in the order of the examples, one each."""
    if not examples:
        raise DataError("nothing to evaluate: the data has no rows")
    ids = Counter(example.id for example in examples)
    twice = [f"data: id '{key}' on {count} rows; ids must differ" for key, count in ids.items() if count > 1]
    if twice:
        raise DataError(
            [*_first(twice), "Rows of one dialogue with one reference each: regroup them by dialogue first."]
        )
    if len(completions) != len(examples):
        raise DataError(f"{len(completions)} completions for {len(examples)} dialogues; each needs exactly one")
    by_id = {completion.example_id: completion for completion in completions}
    missing = [f"no completion for id '{key}'" for key in ids if key not in by_id]
    strange = [f"completion for id '{key}', which the data does not have" for key in by_id if key not in ids]
    if missing or strange:
        raise DataError(_first(strange) + _first(missing))
    return [by_id[example.id] for example in examples]


def _first(problems: list[str]) -> list[str]:
    more = len(problems) - _SHOWN
    return problems if more <= 0 else [*problems[:_SHOWN], f"and {more:,} more like these"]


def _rows(
    examples: Sequence[Example],
    completions: Sequence[Completion],
    metrics: Sequence[Metric],
    stats: Mapping[str, Array],
    units: Sequence[int],
) -> tuple[EvalRow, ...]:
    by_row = [metric.name for metric in metrics if metric.row_wise]
    corpus = [metric.name for metric in metrics if not metric.row_wise]
    return tuple(
        EvalRow(
            id=example.id,
            completion=completion.text,
            finish=completion.finish,
            scores={name: _number(stats[name][k, 0]) for name in by_row},
            statistics={name: _statistics(stats[name][k]) for name in corpus if not np.isnan(stats[name][k, 0])},
            unit=None if units[k] == k else examples[units[k]].id,
            kind=kind if isinstance(kind := example.meta.get("kind"), str) else None,
            words=sum(len(message.content.split()) for message in example.messages),
            speakers=len({message.speaker for message in example.messages} - {None, ""}) or None,
        )
        for k, (example, completion) in enumerate(zip(examples, completions, strict=True))
    )


def _statistics(row: Array) -> tuple[int | float, ...]:
    """The row without its padding; counts as whole numbers."""
    return tuple(int(value) if value == int(value) else float(value) for value in row[~np.isnan(row)])


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def write_evaluation(path: str | Path, evaluation: Evaluation) -> Path:
    """Write eval.json atomically; `path` is the file, or a folder that then gets an eval.json."""
    file = Path(path)
    file = file if file.suffix == ".json" else RunFolder(file).evaluation
    write_text_atomic(file, to_json(evaluation))
    return file


def write_examples(folder: Path, dataset: DataSet) -> Path:
    """examples.jsonl beside eval.json: dialogues and references, which the report shows beside completions."""
    rows = [
        {"id": example.id, "dialogue": render_dialogue(example.messages), "references": list(example.references)}
        for example in dataset.examples
    ]
    path = folder / "examples.jsonl"
    write_text_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_evaluation(path: str | Path) -> Evaluation:
    """The Evaluation in a file, or in a folder's eval.json.

    Raises:
        ConfigError: there is none.
        DataError: it does not follow the schema; the first problems with their places.
    """
    file = Path(path)
    file = RunFolder(file).evaluation if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; make it with: dialtune evaluate ... --out {file.parent}")
    try:
        return Evaluation.model_validate_json(file.read_bytes())
    except ValidationError as error:
        problems = [f"{file}: {'.'.join(map(str, e['loc'])) or 'document'}: {e['msg']}" for e in error.errors()]
        raise DataError(_first(problems)) from error


def read_predictions(path: str | Path, examples: Sequence[Example]) -> list[Completion]:
    """What another program wrote for these examples, in their order; .gz is unpacked.

    A name ending in .jsonl holds objects: the text under `completion`, `prediction` or `text`, optionally `id` (on
    every row or on none) and `finish`. Any other file holds one prediction a line: an empty line is an empty
    prediction, and the last line needs no line end.

    Raises:
        ConfigError: no such file.
        DataError: rows that cannot be used as file:line: reason, or another number of rows than examples.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{file}: no such file; --predictions takes one prediction a line, or jsonl")
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        text = raw.decode("utf-8-sig")
    except (UnicodeDecodeError, OSError, EOFError) as error:
        raise DataError(f"{file}: cannot be read as UTF-8 text: {error}") from error
    lines = text.split("\n")  # not splitlines: U+2028 and form feeds belong to a text
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if file.name.removesuffix(".gz").endswith((".jsonl", ".ndjson")):
        rows = _parse_rows(file, lines)
    else:
        rows = [(None, line, "stop") for line in lines]
    if len(rows) != len(examples):
        raise DataError(
            f"{file}: {len(rows):,} predictions, but the data has {len(examples):,} dialogues; each needs exactly one"
        )
    if not rows or rows[0][0] is None:
        return [Completion(e.id, row[1], (), row[2]) for e, row in zip(examples, rows, strict=True)]
    return _align(examples, [Completion(key or "", text, (), finish) for key, text, finish in rows])


_Row = tuple[str | None, str, FinishReason]


def _parse_rows(file: Path, lines: Sequence[str]) -> list[_Row]:
    rows: list[_Row] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(_parse_row(json.loads(line)))
        except (ValueError, RecursionError) as error:
            problems.append(f"{file}:{number}: {error}")
    with_id = sum(row[0] is not None for row in rows)
    if not problems and 0 < with_id < len(rows):
        problems.append(f"{file}: {with_id} of {len(rows)} rows have an id; give one to every row or to none")
    twice = [key for key, count in Counter(row[0] for row in rows if row[0] is not None).items() if count > 1]
    problems += [f"{file}: id '{key}' occurs more than once" for key in twice]
    if problems:
        raise DataError(_first(problems))
    return rows


def _parse_row(row: Any) -> _Row:
    if not isinstance(row, dict):
        raise ValueError(f"got {type(row).__name__}, a row is a JSON object")
    keys = [key for key in ("completion", "prediction", "text") if key in row]
    if len(keys) != 1 or not isinstance(row[keys[0]], str):
        raise ValueError("needs one text under 'completion', 'prediction' or 'text'")
    finish = row.get("finish", "stop")
    if finish not in ("stop", "length"):
        raise ValueError(f"finish: got {finish!r}; allowed: stop, length")
    key = row.get("id")
    return None if key is None else str(key), row[keys[0]], finish
