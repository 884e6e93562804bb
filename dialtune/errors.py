"""Every error that dialtune raises on purpose; each is also the stdlib error it resembles.

    DialtuneError                        exit 1   anything below; catch this one
    ├── ConfigError        (ValueError)          exit 2   recipe, flag or argument: all problems of one file at once
    ├── NotComparableError (ValueError)          exit 2   two evaluations whose signatures, data or rows differ
    ├── MissingExtraError  (ImportError)         exit 2   an optional package or packaged asset is not installed
    ├── ModelError         (ValueError)          exit 2   a model that cannot be used
    │   ├── ModelNotFoundError (FileNotFoundError)        no such name or folder
    │   └── UnsafeModelError   (PermissionError)          pickles, remote code, paths that leave the folder
    ├── DataError          (ValueError)          exit 3   rows that were rejected, each as file:line: reason
    ├── GateFailedError    (AssertionError)      exit 4   a --require gate, or a verdict below its floor
    ├── CheckpointError    (OSError)             exit 1   nothing that verifies, or no room to write
    ├── RunLockedError     (BlockingIOError)     exit 1   another process owns the run folder
    ├── RewardError        (RuntimeError)        exit 1   a reward that failed twice, or ranks text wrongly
    │   └── RewardTimeoutError (TimeoutError)              it did not answer in time
    ├── TrainingError      (RuntimeError)        exit 1   training stopped itself and says by which rule
    │   └── NonFiniteError (ArithmeticError)              NaN or infinity, with the name of the first bad tensor
    └── InterruptedRunError (RuntimeError)       exit 130 or 143   stopped by a signal after a saved checkpoint

A message says what is wrong, what was got, what is allowed and what to do next, in at most three lines.
"""

from __future__ import annotations

from collections.abc import Sequence


class DialtuneError(Exception):
    """Root of the tree; `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(DialtuneError, ValueError):
    """A recipe, flag or argument is wrong; `problems` holds one line per mistake."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class NotComparableError(DialtuneError, ValueError):
    """Two evaluations must not be compared: the message lists the keys that differ."""

    exit_code = 2


class MissingExtraError(DialtuneError, ImportError):
    """An optional package or a packaged asset is not installed; the message says what to install."""

    exit_code = 2


class ModelError(DialtuneError, ValueError):
    """A model exists but cannot be used as asked."""

    exit_code = 2


class ModelNotFoundError(ModelError, FileNotFoundError):
    """No packaged name, folder or reachable hub repository goes by this name."""


class UnsafeModelError(ModelError, PermissionError):
    """Loading the model would run code, unpickle something or leave its folder."""


class DataError(DialtuneError, ValueError):
    """Rows were rejected; `problems` holds `file:line: reason`, one per row."""

    exit_code = 3

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class GateFailedError(DialtuneError, AssertionError):
    """A `--require` gate was not met."""

    exit_code = 4


class CheckpointError(DialtuneError, OSError):
    """A checkpoint could not be written, or none of those present verifies."""


class RunLockedError(DialtuneError, BlockingIOError):
    """Another process is writing to the run folder; the message names it."""


class RewardError(DialtuneError, RuntimeError):
    """A reward failed twice, answered with the wrong number or kind of values, or did not pass its probes."""


class RewardTimeoutError(RewardError, TimeoutError):
    """A reward function did not answer in time; the message names it and the limit."""


class TrainingError(DialtuneError, RuntimeError):
    """Training stopped itself; the message names the rule and the last good checkpoint."""


class NonFiniteError(TrainingError, ArithmeticError):
    """NaN or infinity survived the guards; the message names the first bad tensor."""


class InterruptedRunError(DialtuneError, RuntimeError):
    """A signal stopped the run after a checkpoint was saved; `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int) -> None:
        self.exit_code = 128 + signal_number
        super().__init__(message)
