"""The schemas of eval.json and compare.json: frozen pydantic models, no NaN, null exactly when nothing was scored."""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

EVAL_SCHEMA: Final = "dialtune.eval/1"
COMPARE_SCHEMA: Final = "dialtune.compare/1"

Interval = tuple[FiniteFloat, FiniteFloat]
Count = Annotated[int, Field(ge=0)]
Verdict = Literal["improved", "worse", "no difference shown"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelInfo(_Record):
    """What was evaluated; for `--predictions` the name is the file's and everything else is unknown."""

    name: str
    revision: str | None = None
    family: Literal["encoder-decoder", "decoder-only", "unknown"] = "unknown"
    adapter: str | None = None
    weights_sha256: str | None = None
    dtype: str | None = None

    @property
    def trained_from(self) -> str:
        """The folder or name whose run made the weights: the adapter's, where there is one."""
        return self.adapter or self.name


class DataInfo(_Record):
    """Which rows: `fingerprint` is sha256 over sorted (id, normalised messages, references)."""

    name: str
    split: str
    fingerprint: str
    references: tuple[int, int]  # fewest and most references on a row
    reference: str  # which of them were used: first, summary2, mean, max
    template_sha256: str
    dropped_turns: Count = 0  # turns cut to fit the token budget, over all rows
    leakage: dict[str, int] | None = None
    limit: int | None = None  # rows read at most
    turns: dict[str, str | int | bool] = {}  # what was asked of `data.turns`, where it is not the default


class Decoding(_Record):
    """Resolved decoding, never "default"; `strategy` is `file` for predictions that came from one."""

    strategy: Literal["greedy", "sample", "beam", "file"]
    num_beams: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 0
    samples_per_prompt: int = 1
    seed: int = 0


class ScoreEntry(_Record):
    """One aggregated score."""

    value: float | None
    ci: Interval | None
    n: Count
    signature: str
    reason: str | None = None
    note: str | None = None  # what a reader must know; left out of the file where it is null

    @model_validator(mode="after")
    def _null_iff_nothing_scored(self) -> ScoreEntry:
        if (self.value is None) != (self.n == 0):
            raise ValueError("value is null exactly when n is 0")
        if self.value is None and not self.reason:
            raise ValueError("a score that is null needs a reason")
        return self


class EvalRow(_Record):
    """One dialogue: what the model wrote and every row-wise score (null: not scored).

    `statistics` are what corpus scores (BLEU, chrF, distinct-n, perplexity) are made of, so that comparing never reads
    a text again. `unit` names the first row of the same dialogue if there is an earlier one (a copy, or another reply):
    all of them are resampled together. `kind` is the row's own (plain, heated, control), if the data says so; `words`
    and `speakers` are of its dialogue. Comparisons are also made by these, and what is null is left out of the file.
    """

    id: str
    completion: str
    finish: Literal["stop", "length"]
    scores: dict[str, float | None]
    statistics: dict[str, tuple[int | FiniteFloat, ...]] = {}
    unit: str | None = None
    kind: str | None = None
    words: Count | None = None
    speakers: Count | None = None  # different tags; null where nobody has one


class Evaluation(_Record):
    """eval.json."""

    schema_: Literal["dialtune.eval/1"] = Field(EVAL_SCHEMA, alias="schema")
    model: ModelInfo
    task: str
    data: DataInfo
    decoding: Decoding
    n_total: Count
    n_generated: Count
    n_truncated: Count
    n_empty: Count
    n_scored: Count
    scores: dict[str, ScoreEntry]
    rows: tuple[EvalRow, ...]

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    @model_validator(mode="after")
    def _counts_are_ordered(self) -> Evaluation:
        if not self.n_scored <= self.n_generated <= self.n_total:
            raise ValueError("n_scored <= n_generated <= n_total must hold")
        return self


class Side(_Record):
    """One side of a comparison, named by the hash of its eval.json."""

    model: ModelInfo
    eval_sha256: str


class Method(_Record):
    """How intervals and p-values were made."""

    ci: str
    resamples: int
    test: str
    permutations: int
    correction: Literal["holm"] = "holm"
    alpha: float
    seed: int
    unit: Literal["dialogue"] = "dialogue"


class Effect(_Record):
    """Mean over sd of the differences, and the shares of dialogues that got better, tied, worse."""

    dz: float | None
    better: float
    tied: float
    worse: float


class SecondVerdict(_Record):
    """The same score with empty completions as toxic as can be, where a side has any that the score leaves out."""

    before: float
    after: float
    difference: float
    ci: Interval | None
    p: float
    p_holm: float
    n: Count
    verdict: Verdict


class Entry(_Record):
    """One score, before against after; `ci` is the 95 % interval of the difference."""

    before: float | None
    after: float | None
    difference: float | None
    relative: float | None
    ci: Interval | None
    relative_ci: Interval | None = None  # percentile interval of the relative change, same resamples
    p: float | None
    p_holm: float | None
    n: Count
    n_dropped: Count
    n_dialogues: Count | None = None  # that the n pairs come from; left out of the file where it is null: as many
    effect: Effect | None
    direction: Literal["higher", "lower"]
    verdict: Verdict
    n_needed: int | None = None
    note: str | None = None
    empty_as_toxic: SecondVerdict | None = None

    @property
    def dialogues(self) -> int:
        """What was resampled: the dialogues behind the pairs."""
        return self.n if self.n_dialogues is None else self.n_dialogues


class Shift(_Record):
    """A share of all dialogues before and after, with the 95 % interval of the difference; no test, no verdict."""

    before: float
    after: float
    difference: float
    ci: Interval | None
    n: Count


class Constraint(_Record):
    """A floor on after/before: held is yes if the interval's low end reaches it, no if its high end does not.

    Ratio and interval are null where there is none, and `note` says why.
    """

    floor: float
    ratio: float | None
    ci: Interval | None
    held: Literal["yes", "no", "not shown"]
    note: str | None = None


class Juror(_Record):
    """Change of mean toxicity by one scorer that no reward used; null, with a reason, if it was not there."""

    difference: float | None
    relative: float | None
    n: Count
    reason: str | None = None
    seen: bool = False  # it watched the training as alarm_scorer, although it paid nothing


class Gain(_Record):
    """Fall of mean toxicity in standard deviations of the rows before, with its 95 % interval."""

    value: float
    ci: Interval


class Agreement(_Record):
    """Two scorers on the completions of both sides: rank correlation, and Cohen's kappa of toxic or not.

    `reason` is set exactly when one of them is null.
    """

    one: str
    other: str
    spearman: float | None
    kappa: float | None
    n: Count
    reason: str | None = None


class Jury(_Record):
    """The scorers that no reward used, held against the one that was the reward (`trained`; null if it is not there).

    `gap` is the trained scorer's gain minus the jurors' median gain; `alarm`: the gap's interval is above 0 while that
    of the jury's gain is not. All four are null exactly when `reason` says why.
    """

    trained: str | None
    jurors: dict[str, Juror]
    median_relative: float | None  # of the jurors that were there
    trained_gain: Gain | None
    jury_gain: Gain | None
    gap: Gain | None
    alarm: bool | None
    reason: str | None
    agreement: tuple[Agreement, ...]


class Comparison(_Record):
    """compare.json; `slices` are for reading, each corrected by itself: no claim rests on them."""

    schema_: Literal["dialtune.compare/1"] = Field(COMPARE_SCHEMA, alias="schema")
    before: Side
    after: Side
    data: DataInfo
    decoding: Decoding
    method: Method
    scores: dict[str, Entry]
    constraints: dict[str, Constraint] = {}
    slices: dict[str, dict[str, Entry]] = {}  # by kind of row, length of dialogue, number of speakers
    origins: dict[str, Shift] = {}  # of toxic sentences: copied, paraphrased, invented
    jury: Jury | None = None  # where a score by a toxicity scorer was compared
    allowed: tuple[str, ...] = ()  # differences that were accepted on request, e.g. decoding

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


_OPTIONAL = ("kind", "words", "speakers")  # of a row


def to_json(record: Evaluation | Comparison) -> str:
    """The file's text: two-space indent, a row a line, non-ASCII kept, a newline at the end, same value same bytes."""
    document = record.model_dump(mode="json", by_alias=True)
    rows = document.pop("rows", None)
    optional = "note" if isinstance(record, Evaluation) else "n_dialogues"  # of a score
    for entry in (e for scores in (document["scores"], *document.get("slices", {}).values()) for e in scores.values()):
        if entry[optional] is None:
            del entry[optional]
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    if rows is not None:
        kept = ({key: value for key, value in row.items() if key not in _OPTIONAL or value is not None} for row in rows)
        lines = ",\n".join("    " + json.dumps(row, ensure_ascii=False, allow_nan=False) for row in kept)
        text = text[:-2] + ',\n  "rows": [' + (f"\n{lines}\n  " if rows else "") + "]\n}"
    return text + "\n"
