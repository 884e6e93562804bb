"""What a reward is, how a TRL-style function becomes one, and what happens to a batch when a reward misbehaves."""

from __future__ import annotations

import asyncio
import inspect
import io
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dialtune.data.dialogue import render_dialogue
from dialtune.errors import ConfigError, DialtuneError, RewardError, RewardTimeoutError
from dialtune.types import Example

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Judges = Literal["toxicity", "reply", "other"]  # which probes a reward must pass
OnFailure = Literal["stop", "mask"]

ATTEMPTS = 2
_SHOWN_IDS = 3


class Reward(Protocol):
    """One float per completion, for training; higher is better.

    A row may have no value because the reward does not apply to it (TRL's None), or because something broke. The two
    must not look alike, since the first leaves the row's sum and the second masks the whole row. So `scores` returns
    a numpy masked array when some rows do not apply: masked means "does not apply", and whatever is not masked must
    be finite. NaN or infinity in an entry that is not masked, or in a plain array, is a fault and counted as one.

    Optional attributes: `judges` ("toxicity" unless it says "reply" or "other") chooses its probes; `toxic_below` is
    the value under which a text counts as toxic; `hint` says which label of which classifier is read; `needs` is what a
    row must bring, as the words after "needs", empty for nothing.
    """

    @property
    def name(self) -> str:
        """What recipes, logs and messages call it."""

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) float64; examples[i] belongs to completions[i]. Rows must not influence each other."""


@dataclass(frozen=True)
class RewardResult:
    """What a reward said about N completions, safe to compute with.

    `values` (N,) float64 is NaN where the reward does not apply and where it failed; `bad` (N,) bool is True for the
    second kind only. `problems` are lines for a log.
    """

    values: Array
    bad: Mask
    problems: tuple[str, ...] = ()


def optional_values(values: Sequence[float | None]) -> Array:
    """A masked array of numbers, masked where there is None.

    >>> optional_values([0.5, None]).tolist()
    [0.5, None]
    """
    numbers = [0.0 if value is None else value for value in values]
    return np.ma.array(numbers, mask=[value is None for value in values], dtype=np.float64)


def where_it_applies(values: Array, applies: Mask) -> Array:
    """The values (N,) as a masked array in which only rows with `applies` (N,) count."""
    masked: Array = np.ma.array(np.where(applies, values, 0.0), mask=~applies)
    return masked


def score_safely(
    reward: Reward, examples: Sequence[Example], completions: Sequence[str], *, on_failure: OnFailure = "stop"
) -> RewardResult:
    """A reward's answer for a batch, whatever the reward does.

    None, or a masked entry, becomes NaN without being bad. NaN and infinity make their row bad. An exception, a
    time-out, a wrong number or kind of values is tried once more; then `stop` raises and `mask` makes every row bad.
    What the reward prints is dropped and counted. A reward that answers differently each time cannot be seen from one
    call: the probes ask twice.

    Args:
        reward: any object with `name` and `scores`.
        examples: N rows, one per completion.
        completions: N texts.
        on_failure: what a second failure does.
    Raises:
        RewardError: the reward failed twice and `on_failure` is `stop`.
        DialtuneError: the user's mistake, such as a scorer that is not installed; it is not tried again.
    """
    assert len(examples) == len(completions), (len(examples), len(completions))
    rows, texts, sink = tuple(examples), tuple(completions), _Sink()
    with redirect_stdout(sink):
        answer, failure = _ask(reward, rows, texts) if texts else (np.empty(0), None)
    printed = (f"reward '{reward.name}' printed {sink.count:,} characters: dropped",) if sink.count else ()
    if answer is None or failure is not None:
        assert failure is not None
        if on_failure == "stop":
            raise failure
        line = f"{failure}; {len(texts)} completions are masked"
        return RewardResult(np.full(len(texts), np.nan), np.ones(len(texts), dtype=np.bool_), (line, *printed))
    data, absent = np.ma.getdata(answer), np.ma.getmaskarray(answer)
    bad: Mask = ~absent & ~np.isfinite(data)
    problems = (_not_finite(reward.name, data, bad, rows),) if bad.any() else ()
    return RewardResult(np.where(absent | bad, np.nan, data), bad, problems + printed)


def _ask(
    reward: Reward, examples: tuple[Example, ...], texts: tuple[str, ...]
) -> tuple[Array | None, RewardError | None]:
    """(answer, None), or (None, the error) after two failures."""
    failure: RewardError | None = None
    for _ in range(ATTEMPTS):
        try:
            return _checked(reward.name, reward.scores(examples, texts), len(texts)), None
        except RewardError as error:
            failure = error
        except DialtuneError:
            raise
        except Exception as error:  # foreign code may raise anything; what it was stays attached as the cause
            failure = RewardError(f"reward '{reward.name}' failed twice: {_in_one_line(error)}")
            failure.__cause__ = error
    return None, failure


def _checked(name: str, answer: Any, n: int) -> Array:
    """The answer as a masked (N,) float64 array."""
    if not isinstance(answer, np.ndarray) or answer.dtype == object:
        return optional_values(parse_values(name, answer, n))
    if answer.shape != (n,) or answer.dtype.kind not in "biuf":
        raise RewardError(
            f"reward '{name}' returned shape {answer.shape} of {answer.dtype} for {n} completions; "
            f"one number each is needed, shape ({n},)"
        )
    return np.ma.array(answer, dtype=np.float64)


def parse_values(name: str, returned: Any, n: int) -> list[float | None]:
    """What a reward function returned, as n numbers or None.

    A list, a tuple, or anything with `tolist` (numpy, torch); an element is None or converts to float.

    Raises:
        RewardError: another type, another length, or an element that is no number.
    """
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, list | tuple):
        kind = type(returned).__name__
        raise RewardError(f"reward '{name}' returned {kind}; a list with one number or None per completion is needed")
    if len(values) != n:
        raise RewardError(f"reward '{name}' returned {len(values)} values for {n} completions; one each is needed")
    return [_number(name, place, value) for place, value in enumerate(values)]


def _number(name: str, place: int, value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, str | bytes):  # float("1") works, and would hide a function that returns texts
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        shown = f"{value!r:.40}"
        raise RewardError(
            f"reward '{name}' returned {shown} ({type(value).__name__}) for completion {place}; "
            "a finite number or None is needed"
        ) from None


def _not_finite(name: str, data: Array, bad: Mask, examples: Sequence[Example]) -> str:
    rows = np.flatnonzero(bad)
    kinds = ", ".join(sorted({str(value) for value in data[rows]}))
    ids = [f"'{examples[row].id}'" for row in rows[:_SHOWN_IDS]]
    ids += [f"{len(rows) - _SHOWN_IDS} more"] if len(rows) > _SHOWN_IDS else []
    return (
        f"reward '{name}' gave {kinds} for {len(rows)} of {len(data)} completions, which are masked: {', '.join(ids)}"
    )


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


class _Sink(io.TextIOBase):
    """Takes the place of stdout, where results go, and only counts."""

    def __init__(self) -> None:
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.count += len(text)
        return len(text)


@dataclass(frozen=True)
class FunctionReward:
    """A function with the signature of TRL's reward functions, as a Reward.

    It is called as `function(prompts=..., completions=..., **columns)` and returns a list with a number or None per
    completion; it may be `async`. All arguments are lists of N, made anew for each call, so changing them changes
    nothing. Prompts are the rendered dialogues and completions the texts. Columns: `reference` (the first, or None),
    `references`, `example_id`, and each value of the rows' `meta` that is a number, text or truth value on every row
    that has it, None on the others. A function without `**kwargs` gets those that it names.

    The call runs in a thread of its own and may take `timeout_s` seconds. Python cannot stop a thread: one that hangs
    is left behind and ends with the process.

    Raises (from `scores`):
        RewardTimeoutError: no answer in time.
        RewardError: it asks for a column that the rows lack, or did not return one number or None per completion.
    """

    function: Callable[..., Any]
    name: str = ""
    timeout_s: float = 60.0
    judges: Judges = "toxicity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or getattr(self.function, "__name__", type(self.function).__name__))
        if not self.timeout_s > 0:
            raise ConfigError(f"reward '{self.name}': timeout_s: got {self.timeout_s}; allowed: more than 0 seconds")

    @property
    def hint(self) -> str:
        """What may be meant where it fails the probes of toxicity."""
        judged = "It is asked about toxicity; if it judges something else: FunctionReward(function, judges='other')."
        return judged if self.judges == "toxicity" else ""

    def scores(self, examples: Sequence[Example], completions: Sequence[str]) -> Array:
        """(N,) float64, masked where the function says None."""
        keywords = self._accepted(columns_of(examples, completions))
        returned = self._within_time(keywords)
        return optional_values(parse_values(self.name, returned, len(completions)))

    def _accepted(self, columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """The columns that the function takes."""
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # some built-in callables have no signature
            return columns
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        missing = [p.name for p in named if p.default is p.empty and p.name not in columns]
        if missing:
            raise RewardError(f"reward '{self.name}' asks for '{missing[0]}'; the rows have: {', '.join(columns)}")
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return columns
        return {p.name: columns[p.name] for p in named if p.name in columns}

    def _within_time(self, keywords: dict[str, list[Any]]) -> Any:
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                found = self.function(**keywords)
                answers.put((asyncio.run(found) if inspect.iscoroutine(found) else found, None))
            except BaseException as error:  # carried to the caller's thread and raised there
                answers.put((None, error))

        threading.Thread(target=work, name=f"reward {self.name}", daemon=True).start()
        try:
            returned, error = answers.get(timeout=self.timeout_s)
        except queue.Empty:
            raise RewardTimeoutError(
                f"reward '{self.name}' gave no answer within {self.timeout_s:g} s for "
                f"{len(keywords.get('completions', ()))} completions; raise timeout_s or make it faster"
            ) from None
        if isinstance(error, Exception):
            raise error
        if error is not None:  # SystemExit and the like must not end the run from inside a reward
            raise RewardError(f"reward '{self.name}' raised {_in_one_line(error)}") from error
        return returned


def as_reward(given: Reward | Callable[..., Any]) -> Reward:
    """A reward as it is; a bare function as a FunctionReward; ConfigError for anything else."""
    if hasattr(given, "scores") and hasattr(given, "name"):
        return cast(Reward, given)
    if not callable(given) or inspect.isclass(given):
        raise ConfigError(
            f"rewards: got {given!r:.60}; allowed: a function with TRL's signature, an object with `name` and `scores`"
        )
    return FunctionReward(given)


def columns_of(examples: Sequence[Example], completions: Sequence[str]) -> dict[str, list[Any]]:
    """The keyword arguments of a TRL-style reward function: fresh lists of N."""
    columns: dict[str, list[Any]] = {
        "prompts": [render_dialogue(example.messages) for example in examples],
        "completions": list(completions),
        "reference": [example.references[0] if example.references else None for example in examples],
        "references": [list(example.references) for example in examples],
        "example_id": [example.id for example in examples],
    }
    metas: list[Mapping[str, Any]] = [example.meta for example in examples]
    for key in sorted({key for meta in metas for key in meta} - set(columns)):
        values = [meta.get(key) for meta in metas]
        if all(value is None or isinstance(value, str | int | float) for value in values):
            columns[key] = values
    return columns
