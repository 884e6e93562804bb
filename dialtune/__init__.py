"""Fine-tune a language model for conversation and prove that it got better: the public names, loaded on first use.

Leaves (labs, report, cli) are not among them: the library works with any of them deleted.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dialtune.checkpoints import newest_checkpoint as newest_checkpoint
    from dialtune.comparison import check_requirements as check_requirements
    from dialtune.comparison import compare as compare
    from dialtune.comparison import describe as describe
    from dialtune.comparison import read_comparison as read_comparison
    from dialtune.comparison import write_comparison as write_comparison
    from dialtune.config.data_schema import TurnsConfig as TurnsConfig
    from dialtune.config.loading import load_config as load_config
    from dialtune.config.loading import load_reward_config as load_reward_config
    from dialtune.config.loading import load_rl_config as load_rl_config
    from dialtune.config.reward_schema import RewardConfig as RewardConfig
    from dialtune.config.rl_schema import RLConfig as RLConfig
    from dialtune.config.schema import RunConfig as RunConfig
    from dialtune.data.reading import DataSet as DataSet
    from dialtune.data.reading import read_examples as read_examples
    from dialtune.data.turns import reply_data as reply_data
    from dialtune.errors import DialtuneError as DialtuneError
    from dialtune.evaluation import evaluate_completions as evaluate_completions
    from dialtune.evaluation import read_evaluation as read_evaluation
    from dialtune.evaluation import read_predictions as read_predictions
    from dialtune.evaluation import write_evaluation as write_evaluation
    from dialtune.generation import generate as generate
    from dialtune.metrics.table import METRICS as METRICS
    from dialtune.model_evaluation import evaluate_model as evaluate_model
    from dialtune.model_evaluation import task_for as task_for
    from dialtune.models.base import LanguageModel as LanguageModel
    from dialtune.models.base import Sampling as Sampling
    from dialtune.models.loading import load_model as load_model
    from dialtune.models.loading import save_model as save_model
    from dialtune.prompts import build_prompts as build_prompts
    from dialtune.results import Comparison as Comparison
    from dialtune.results import Evaluation as Evaluation
    from dialtune.rewards.base import FunctionReward as FunctionReward
    from dialtune.rewards.table import find_reward as find_reward
    from dialtune.runs import RunFolder as RunFolder
    from dialtune.runs import read_rows as read_rows
    from dialtune.scorers.table import find_scorer as find_scorer
    from dialtune.scoring import score_file as score_file
    from dialtune.tasks import TASKS as TASKS
    from dialtune.trainers.reward_run import run_reward as run_reward
    from dialtune.trainers.rl_run import run_rl as run_rl
    from dialtune.trainers.sft import train_sft as train_sft
    from dialtune.trainers.sft_run import run_sft as run_sft
    from dialtune.types import Completion as Completion
    from dialtune.types import Example as Example
    from dialtune.types import Message as Message
    from dialtune.types import Prompt as Prompt
    from dialtune.types import Score as Score

# Public name → its module; a test holds it equal to the imports above.
_HOMES = {
    "Comparison": "results",
    "Completion": "types",
    "DataSet": "data.reading",
    "DialtuneError": "errors",
    "Evaluation": "results",
    "Example": "types",
    "FunctionReward": "rewards.base",
    "LanguageModel": "models.base",
    "METRICS": "metrics.table",
    "Message": "types",
    "Prompt": "types",
    "RLConfig": "config.rl_schema",
    "RewardConfig": "config.reward_schema",
    "RunConfig": "config.schema",
    "RunFolder": "runs",
    "Sampling": "models.base",
    "Score": "types",
    "TASKS": "tasks",
    "TurnsConfig": "config.data_schema",
    "build_prompts": "prompts",
    "check_requirements": "comparison",
    "compare": "comparison",
    "describe": "comparison",
    "evaluate_completions": "evaluation",
    "evaluate_model": "model_evaluation",
    "find_reward": "rewards.table",
    "find_scorer": "scorers.table",
    "generate": "generation",
    "load_config": "config.loading",
    "load_model": "models.loading",
    "load_reward_config": "config.loading",
    "load_rl_config": "config.loading",
    "newest_checkpoint": "checkpoints",
    "read_comparison": "comparison",
    "read_evaluation": "evaluation",
    "read_examples": "data.reading",
    "read_predictions": "evaluation",
    "read_rows": "runs",
    "reply_data": "data.turns",
    "run_reward": "trainers.reward_run",
    "run_rl": "trainers.rl_run",
    "run_sft": "trainers.sft_run",
    "save_model": "models.loading",
    "score_file": "scoring",
    "task_for": "model_evaluation",
    "train_sft": "trainers.sft",
    "write_comparison": "comparison",
    "write_evaluation": "evaluation",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """A public name, or `__version__`."""
    if name == "__version__":
        from importlib.metadata import version

        return version("dialtune")
    if name not in _HOMES:
        raise AttributeError(f"module 'dialtune' has no attribute {name!r}")
    value = getattr(import_module(f"dialtune.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
