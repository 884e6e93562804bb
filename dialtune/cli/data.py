"""dialtune data check | stats | clean | split | leaks | stress."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from dialtune.data.audit import Leaks
    from dialtune.data.reading import DataSet
    from dialtune.data.stress import PairSet, StressSet
    from dialtune.types import Example

app = typer.Typer(help="Look at data, clean it, split it, find leaks.", no_args_is_help=True, add_completion=False)

Sources = Annotated[list[str], typer.Argument(help="Files, packaged:SPLIT or hub:ORG/NAME[:SPLIT].")]
Source = Annotated[str, typer.Argument(help="A file, packaged:SPLIT or hub:ORG/NAME[:SPLIT].")]
Layout = Annotated[str, typer.Option(help="Layout of the rows; auto finds it by the columns.")]
Columns = Annotated[list[str] | None, typer.Option("--column", help="OURS=THEIRS, e.g. dialogue=text. Repeatable.")]
Policy = Annotated[str, typer.Option("--on-bad-rows", help="fail, skip or quarantine.")]
Fraction = Annotated[
    float, typer.Option("--max-bad-fraction", help="Share of bad rows that skip and quarantine accept.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Report = Annotated[Path | None, typer.Option(help="Write the findings to this JSON file too.")]
Exact = Annotated[bool, typer.Option("--exact", help="Look for exact copies only.")]


@app.command()
def check(
    sources: Sources,
    layout: Layout = "auto",
    column: Columns = None,
    on_bad_rows: Policy = "fail",
    max_bad_fraction: Fraction = 0.01,
    as_json: AsJson = False,
    report: Report = None,
) -> None:
    """Read every row and say what is wrong with it, as file:line: reason."""
    from dialtune.data.audit import check as check_source

    found = []
    for source in sources:
        result, bad = check_source(
            source,
            layout=layout,
            columns=_mapping(column),
            on_bad_rows=_policy(on_bad_rows),
            max_bad_fraction=max_bad_fraction,
        )
        found.append(result)
        _save(report, [asdict(one) for one in found])
        if not as_json:
            bad.judge(result.rows)
            _lines(_check_lines(asdict(result)))
    if as_json:
        _print_json([asdict(one) for one in found])
        if any(one.bad for one in found) and on_bad_rows == "fail":
            raise typer.Exit(3)


@app.command()
def stats(sources: Sources, layout: Layout = "auto", column: Columns = None, as_json: AsJson = False) -> None:
    """Count turns, speakers, words and duplicates."""
    from dialtune.data.audit import stats as count

    found = {source: asdict(count(_read(source, layout, column).examples)) for source in sources}
    if as_json:
        _print_json(found)
        return
    for source, numbers in found.items():
        _stats_table(source, numbers)


@app.command()
def clean(
    source: Source,
    out: Annotated[Path, typer.Option(help="The clean rows, as JSON lines.")],
    step: Annotated[list[str] | None, typer.Option(help="Run only this step. Repeatable.")] = None,
    without: Annotated[list[str] | None, typer.Option(help="Leave this step out. Repeatable.")] = None,
    layout: Layout = "auto",
    column: Columns = None,
    on_bad_rows: Policy = "fail",
    max_bad_fraction: Fraction = 0.01,
    report: Report = None,
) -> None:
    """Remove noise step by step; shows what each step changed."""
    from dialtune.data.cleaning import choose_steps, clean_examples

    steps = choose_steps(step, without=without or ())
    data = _read(source, layout, column, on_bad_rows, max_bad_fraction)
    cleaned = clean_examples(data.examples, steps)
    _write(out, cleaned.examples)
    _save(
        report, {"source": data.name, "counts": cleaned.counts, "dropped": cleaned.dropped, "read": dict(data.counts)}
    )
    _lines(_clean_lines(cleaned.counts, cleaned.samples))
    _lines([*_dropped_lines(cleaned.dropped, data), f"{len(cleaned.examples):,} rows written to {out}"])


@app.command()
def split(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for one JSON lines file per split.")],
    share: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE; default train=0.8 validation=0.1 test=0.1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Any integer; the same seed gives the same split.")] = 0,
    layout: Layout = "auto",
    column: Columns = None,
    exact: Exact = False,
) -> None:
    """Divide rows so that a dialogue and its duplicates stay on one side."""
    from dialtune.data.splits import split_examples

    data = _read(source, layout, column)
    shares = {name: _number(name, text) for name, text in (_mapping(share) or {}).items()}
    for name, examples in split_examples(data.examples, shares or None, seed=seed, near=not exact).items():
        _write(out / f"{name}.jsonl", examples)
        _lines([f"{name}: {len(examples):,} rows ({len(examples) / len(data.examples):.1%}) in {out / name}.jsonl"])


@app.command()
def leaks(
    sources: Sources,
    layout: Layout = "auto",
    column: Columns = None,
    exact: Exact = False,
    threshold: Annotated[float, typer.Option(help="Share of common word 3-grams that makes a near duplicate.")] = 0.6,
    as_json: AsJson = False,
    fail: Annotated[bool, typer.Option("--fail", help="Exit 4 if two sources share a dialogue.")] = False,
) -> None:
    """Find dialogues that repeat within a source or occur in two of them."""
    from dialtune.data.audit import leaks as find_leaks
    from dialtune.errors import GateFailedError

    found = find_leaks(_named(sources, layout, column), near=not exact, threshold=threshold)
    if as_json:
        _print_json({"within": [asdict(one) for one in found.within], "across": [asdict(one) for one in found.across]})
    else:
        _lines(_leak_lines(found))
    if fail and found.found:
        names = ", ".join(f"{one.left} and {one.right}" for one in found.across if one.total)
        raise GateFailedError(f"leaks: {names} share dialogues; remove them from one side before training")


@app.command()
def stress(
    dialogues: Source,
    toxic: Annotated[str, typer.Argument(help="Sentences with rewrites: a file with columns toxic, neutral[1..n].")],
    split: Annotated[str, typer.Option(help="train, validation or test: whose dialogues and sentences to use.")],
    out: Annotated[Path, typer.Option(help="The rows, as JSON lines; FILE.jsonl gets a FILE.stress.json beside it.")],
    rows: Annotated[int | None, typer.Option(help="Heated rows; default: as many as can be made.")] = None,
    seed: Annotated[int, typer.Option(help="Any integer; the same seed gives the same rows.")] = 0,
    controls: Annotated[
        bool, typer.Option("--controls", help="Add a harmless row for every four heated ones.")
    ] = False,
    against: Annotated[
        list[str] | None, typer.Option(help="Another split: its dialogues are left out. Repeatable.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the toxic sentences, for the record.")] = None,
    layout: Layout = "auto",
    column: Columns = None,
    on_bad_rows: Policy = "fail",
    max_bad_fraction: Fraction = 0.01,
) -> None:
    """Put toxic turns into real dialogues, with a blunt and a civil summary of each."""
    from dialtune.data.stress import CONTROL_SHARE, build_stress, dialogues_of, read_pairs, refuse_overlap

    _refuse_other_than_jsonl(out)
    pairs = read_pairs(toxic, licence=licence, on_bad_rows=_policy(on_bad_rows), max_bad_fraction=max_bad_fraction)
    data = _read(dialogues, layout, column, on_bad_rows, max_bad_fraction)
    others = _named(against or (), layout, column)
    kept, lost = _not_in(others, dialogues_of(data, dialogues, split), dialogues)
    share = CONTROL_SHARE if controls else 0.0
    made = build_stress(kept, pairs.pairs, seed=seed, rows=rows, benign=share, split=split)
    for name, examples in others.items():
        refuse_overlap({out.name: made.examples, name: examples})
    _write(out, made.examples)
    record = {"split": split, "seed": seed, "dialogues": _data_record(data, dialogues), "against": lost}
    _save(out.with_suffix(".stress.json"), record | _stress_record(made, pairs, toxic, out))
    _lines(_stress_lines(made, lost, out))


def _refuse_other_than_jsonl(out: Path) -> None:
    from dialtune.errors import ConfigError

    if out.suffix != ".jsonl":
        raise ConfigError(f"--out: got '{out}'; expected a name that ends in .jsonl")


def _not_in(
    others: dict[str, tuple[Example, ...]], pool: tuple[Example, ...], source: str
) -> tuple[tuple[Example, ...], dict[str, int]]:
    """The dialogues that are not in the other sets, and how many each of these cost."""
    from dialtune.data.stress import without_leaks
    from dialtune.errors import ConfigError

    kept, lost = without_leaks(pool, others) if others else (pool, {})
    if not kept:
        raise ConfigError(f"{source}: every dialogue also occurs in {', '.join(others)}; give another split --against")
    return kept, lost


def _data_record(data: DataSet, source: str) -> dict[str, Any]:
    return {"source": source, "rows": len(data.examples), "fingerprint": data.fingerprint}


def _stress_record(made: StressSet, pairs: PairSet, toxic: str, out: Path) -> dict[str, Any]:
    """What is needed to make the same file again, and whose words are in it."""
    import hashlib
    from importlib.metadata import version

    first = pairs.pairs[0]
    sums = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in (toxic, str(out))}
    source = {"source": toxic, "sha256": sums[toxic], "name": first.source, "licence": first.licence}
    return {
        "toxic": source | {"counts": dict(pairs.counts)},
        "counts": dict(made.counts),
        "file": out.name,
        "sha256": sums[str(out)],
        "dialtune": version("dialtune"),
    }


def _stress_lines(made: StressSet, lost: dict[str, int], out: Path) -> Iterable[str]:
    yield f"{out}: {made.counts['heated']:,} heated rows, {made.counts['controls']:,} controls"
    yield from (f"  {count:,} {name}" for name, count in made.counts.items() if name not in ("heated", "controls"))
    yield from (f"  {count:,} dialogues left out: also in {name}" for name, count in lost.items())
    example, twin = made.examples[0], made.twins[0]
    place = example.meta["stress"]["place"]
    yield f"for example {example.id}, turn {place + 1} of {len(example.messages)} is new (*):"
    for at in range(place - 1, place + 2):
        yield f"  {'*' if at == place else ' '} {example.messages[at].speaker}: {example.messages[at].content}"
    yield f"  before: {twin.references[0]}"
    yield f"  blunt:  {example.meta['summary_blunt']}"
    yield f"  civil:  {example.references[0]}"


def _read(
    source: str, layout: str, column: Sequence[str] | None, on_bad_rows: str = "fail", max_bad_fraction: float = 0.01
) -> DataSet:
    from dialtune.data.reading import read_examples

    policy = _policy(on_bad_rows)
    columns = _mapping(column)
    return read_examples(source, layout=layout, columns=columns, on_bad_rows=policy, max_bad_fraction=max_bad_fraction)


def _named(sources: Sequence[str], layout: str, column: Sequence[str] | None) -> dict[str, tuple[Example, ...]]:
    """Examples by a short name, or by the whole source where two share it."""
    from dialtune.data.reading import read_examples

    sets = [(source, read_examples(source, layout=layout, columns=_mapping(column))) for source in sources]
    names = [data.name for _, data in sets]
    return {source if names.count(data.name) > 1 else data.name: data.examples for source, data in sets}


def _policy(text: str) -> Any:
    from dialtune.errors import ConfigError

    if text not in {"fail", "skip", "quarantine"}:
        raise ConfigError(f"--on-bad-rows: got '{text}'; known: fail, skip, quarantine")
    return text


def _mapping(pairs: Sequence[str] | None) -> dict[str, str] | None:
    from dialtune.errors import ConfigError

    wrong = [pair for pair in pairs or () if not all(pair.partition("="))]
    if wrong:
        raise ConfigError(f"got '{wrong[0]}'; expected NAME=VALUE")
    return dict((pair.partition("=")[0], pair.partition("=")[2]) for pair in pairs) if pairs else None


def _number(name: str, text: str) -> float:
    from dialtune.errors import ConfigError

    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--share {name}: got '{text}'; expected a number between 0 and 1") from error


def _lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _print_json(document: object) -> None:
    typer.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))


def _save(path: Path | None, document: object) -> None:
    if path:
        path.write_text(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _write(path: Path, examples: Sequence[Example]) -> None:
    from dialtune.data.layouts import to_row

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(to_row(example), ensure_ascii=False) + "\n" for example in examples)


def _check_lines(found: dict[str, Any]) -> Iterable[str]:
    low, high = found["references"]
    references = f"{low} to {high}" if low != high else str(high)
    yield f"{found['source']}: {found['rows']:,} rows, layout {found['layout']}, references per row: {references}"
    if found["without_reference"]:
        yield f"  {found['without_reference']:,} rows have no reference"
    yield from (f"  {count:,} rows dropped: {kind}" for kind, count in found["bad"].items())
    if found["duplicates"]:
        yield f"  {found['duplicates']:,} rows repeat an earlier dialogue"
    yield from (f"  {count:,} rows with {rule}" for rule, count in found["text"].items())


def _clean_lines(counts: Any, samples: Any) -> Iterable[str]:
    for step, count in counts.items():
        yield f"{step}: {count:,} {'turns dropped' if step == 'empty_turns' else 'texts changed'}"
        yield from (f"    {before!r} -> {after!r}" for before, after in samples[step])


def _dropped_lines(dropped: Any, data: DataSet) -> Iterable[str]:
    yield from (f"{count:,} rows dropped: {reason}" for reason, count in dropped.items())
    yield from (f"{count:,} rows {kind}" for kind, count in data.counts.items() if kind.startswith("dropped"))


def _stats_table(source: str, numbers: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    low, high = numbers["references"]
    repeats = numbers["examples"] - numbers["unique_dialogues"]
    title = (
        f"{source}: {numbers['examples']:,} rows, {repeats:,} repeat an earlier dialogue, references {low} to {high}"
    )
    columns = ("mean", "min", "p5", "p50", "p95", "max")
    table = Table("", *columns)
    for name, row in numbers["distributions"].items():
        table.add_row(name, *(f"{row[column]:,.1f}" for column in columns))
    _lines([title])
    Console().print(table)
    _lines(["speakers: " + ", ".join(f"{tag or '(untagged)'} {count:,}" for tag, count in numbers["speakers"].items())])


def _leak_lines(found: Leaks) -> Iterable[str]:
    for one in found.within:
        yield f"{one.name}: {one.unique:,} unique of {one.rows:,}; {one.near:,} with a near duplicate"
    for overlap in found.across:
        for name, exact, near, other in (
            (overlap.left, overlap.left_exact, overlap.left_near, overlap.right),
            (overlap.right, overlap.right_exact, overlap.right_near, overlap.left),
        ):
            yield f"{name}: {exact:,} rows also in {other}, {near:,} nearly (Jaccard >= {found.threshold:g})"
        yield from (f"    {left} ~ {right} {score:.2f}" for left, right, score in overlap.shown[:3])
