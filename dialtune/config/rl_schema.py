"""The recipe of a reinforcement-learning run: what every training has, and the keys of PPO, RLOO and GRPO."""

from __future__ import annotations

import os
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationInfo, field_validator

from dialtune.config.schema import Section, TaskName, TrainingConfig

RewardName = Literal[
    "toxicity", "relevance", "relevance_dialogue", "relevance_reference", "rougeL", "length", "format", "copy",
    "no_repetition", "no_echo",
]  # fmt: skip
QualityName = Literal["relevance", "relevance_dialogue", "relevance_reference", "rougeL", "no_repetition", "no_echo"]


class ConstraintConfig(Section):
    """What must stay as good as the start policy while the reward rises."""

    qualities: tuple[QualityName, ...] = Field(
        ("relevance", "rougeL"),
        description="Scores in [0, 1] whose mean must stay, each with its own multiplier; no_repetition, no_echo: "
        "for replies.",
    )
    delta: float = Field(0.02, description="Share that a quality may lose against the start policy.", ge=0, lt=1)
    length: tuple[float, float] | None = Field(
        (0.9, 1.2), description="Mean tokens as shares of the start policy's; null: free. Silence would be civil too."
    )
    learning_rate: float = Field(0.1, description="Step of a multiplier, once per rollout.", gt=0, le=10)
    multiplier: float = Field(
        1.0,
        description="Each multiplier at the start, 0 for the greatest length; it then follows the constraint.",
        ge=0,
    )
    max_multiplier: float = Field(
        50.0,
        description="A multiplier's cap; after 20 rollouts at it the run stops as infeasible.",
        gt=0,
        validate_default=True,
    )
    proportional: float = Field(
        0.0,
        description="Added to a multiplier per standard deviation that its quality is short of now, taken off per one "
        "to spare; about 2 ends the swings of a short run.",
        ge=0,
        le=50,
    )
    memory: float = Field(
        0.9,
        description="Share of a running mean that a rollout leaves. Less notices a loss sooner, and luck too; a run of "
        "some dozens of rollouts needs about 0.7.",
        ge=0,
        lt=1,
    )
    baseline_prompts: int = Field(
        64,
        description="Prompts that measure the start policy once, with two completions each, or more of fewer.",
        ge=2,
    )

    @field_validator("length")
    @classmethod
    def _some_length_is_allowed(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not 0 <= value[0] < value[1]:
            raise ValueError("the least, 0 or more, then the most, above it: shares of the start policy's mean length")
        return value

    @field_validator("max_multiplier")
    @classmethod
    def _the_cap_is_above_the_start(cls, value: float, info: ValidationInfo) -> float:
        if value < (start := info.data.get("multiplier", 0)):
            raise ValueError(f"the multipliers start at {start:g} (multiplier), above their cap")
        return value


def _scorer(name: str) -> str:
    """What a scorer's name opens: without its label, the packaged scorer's short name spelt out."""
    head = name.partition("#")[0]
    return "minilm" if head == "toxicity" else head


class RLConfig(TrainingConfig):
    """A whole reinforcement-learning run. Keys keep the spelling of trl's GRPO where it has one."""

    method: Literal["ppo", "rloo", "grpo"] = Field(
        "grpo", description="grpo and rloo compare siblings; ppo learns a value head, for few completions a prompt."
    )
    task: TaskName = Field("detoxify", description="Sets prompt template, metrics and length cap.")
    output_dir: str = Field("runs/rl", description="The run folder.", min_length=1)
    max_steps: int = Field(100, description="Optimizer updates.", ge=1)
    learning_rate: float = Field(
        1e-5, description="Peak step size; 1e-5 for all weights, and 1e-4 with lora, whose few weights need more.",
        gt=0, le=1,
    )  # fmt: skip
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "constant", description="Shape after warm-up; constant, as the run may stop at any good checkpoint."
    )
    per_device_train_batch_size: int = Field(
        4, description="Prompts per forward pass, each with all its completions; lower it to save memory.", ge=1
    )
    max_completion_length: int = Field(64, description="Tokens a completion may have.", ge=1)
    eval_steps: int = Field(10, description="Updates between evaluations on data.validation; 0: only at the end.", ge=0)

    rollout_batch_size: int = Field(8, description="Prompts per rollout.", ge=1)
    num_generations: int = Field(8, description="Completions per prompt; the group that shares its prompt.", ge=1)
    num_iterations: int = Field(1, description="Passes over a rollout; 1 keeps the ratio at 1 by construction.", ge=1)
    num_minibatches: int = Field(1, description="Updates per pass; a rollout's prompts are cut into so many.", ge=1)
    temperature: float = Field(1.0, description="Of sampling and scoring alike.", gt=0, le=10)
    kl_off: bool = Field(False, description="Needed for beta: 0; nothing then holds the policy near its start.")
    beta: float = Field(0.05, description="Weight of the KL to the start policy, per nat.", ge=0, validate_default=True)
    kl_target: float | None = Field(
        None, description="Nats per completion; beta then adapts towards it (arXiv 1909.08593). null: beta is fixed.",
        gt=0,
    )  # fmt: skip
    epsilon: float = Field(0.2, description="Clip of the probability ratio below 1.", gt=0, lt=1)
    epsilon_high: float | None = Field(None, description="Clip above 1; null: epsilon.", gt=0)
    loss_type: Literal["constant", "tokens", "sequence"] = Field(
        "constant", description="Divides the loss by N*C (no length bias), by all tokens, or per completion."
    )
    scale_rewards: Literal["none", "batch", "group"] = Field(
        "none", description="grpo: divide advantages by a std. none is Dr.GRPO; group is the paper's, and noisy."
    )
    truncation: Literal["penalise", "mask", "bootstrap"] = Field(
        "penalise", description="A completion that hit the cap: minus one std, left out, or (ppo) valued."
    )
    alarm_scorer: str | None = Field(
        "ngrams",
        description="A toxicity scorer that no reward uses; it watches data.validation for reward hacking. null: none.",
    )
    rewards: dict[str, float] = Field(
        {"toxicity": 1.0},
        description="Name: weight. toxicity:NAME takes any Hugging Face classifier, toxicity:NAME#LABEL its label; the "
        "folder of a learned reward is a name too.",
        min_length=1,
        validate_default=True,  # the alarm_scorer may be the default reward's
    )
    constraint: ConstraintConfig | None = Field(
        ConstraintConfig(), description="null: nothing holds relevance, and the policy will trade it away."
    )

    gamma: float = Field(1.0, description="ppo: discount; 1 as the reward comes at the end.", gt=0, le=1)
    gae_lambda: float = Field(0.95, description="ppo: bias against variance (arXiv 1506.02438).", ge=0, le=1)
    vf_coef: float = Field(0.1, description="ppo: weight of the value loss.", ge=0)
    cliprange_value: float = Field(0.2, description="ppo: clip of the value's change.", gt=0)
    value_warmup_steps: int = Field(
        10, description="ppo: first updates that train the value head alone (arXiv 2503.01491).", ge=0
    )

    @field_validator("beta")
    @classmethod
    def _kl_is_switched_off_on_purpose(cls, value: float, info: ValidationInfo) -> float:
        off = info.data.get("kl_off")
        if value == 0 and not off:
            raise ValueError("nothing then holds the policy near its start; set kl_off: true if that is meant")
        if value and off:
            raise ValueError("kl_off is true as well; keep one of the two")
        return value

    @field_validator("kl_target")
    @classmethod
    def _nothing_adapts_from_nothing(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("beta") == 0:
            raise ValueError("beta is 0 and adapts by factors, so it would stay 0; leave kl_off, or kl_target, out")
        return value

    @field_validator("num_generations")
    @classmethod
    def _siblings_are_compared(cls, value: int, info: ValidationInfo) -> int:
        method = info.data.get("method")
        if value < 2 and method in ("grpo", "rloo"):
            raise ValueError(f"{method} needs at least 2, its baseline is the other completions of a prompt; try 4")
        return value

    @field_validator("num_minibatches")
    @classmethod
    def _minibatches_hold_prompts(cls, value: int, info: ValidationInfo) -> int:
        prompts = info.data.get("rollout_batch_size")
        if prompts is not None and value > prompts:
            raise ValueError(f"a rollout has {prompts} prompts (rollout_batch_size); a minibatch needs at least one")
        return value

    @field_validator("scale_rewards")
    @classmethod
    def _only_grpo_scales(cls, value: str, info: ValidationInfo) -> str:
        if value != "none" and info.data.get("method") in ("ppo", "rloo"):
            raise ValueError(f"{info.data['method']} does not divide by a std; set method: grpo, or leave it none")
        return value

    @field_validator("truncation")
    @classmethod
    def _only_ppo_bootstraps(cls, value: str, info: ValidationInfo) -> str:
        if value == "bootstrap" and info.data.get("method") != "ppo":
            raise ValueError("bootstrap needs the value head of method: ppo; use penalise or mask")
        return value

    @field_validator("rewards")
    @classmethod
    def _known_rewards(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        known = get_args(RewardName)
        for name, weight in value.items():
            head, _, scorer = name.partition(":")
            learned = head not in known and ("/" in head or os.path.isdir(name or "?"))  # as rewards.table.is_learned
            if not learned and (head not in known or (scorer and head != "toxicity")):
                raise ValueError(f"no reward {name!r}; known: {', '.join(known)}, toxicity:NAME, or a reward's folder")
            if weight == 0:
                raise ValueError(f"{name} has weight 0; leave it out")
            if weight < 0 and head == "toxicity":
                raise ValueError(f"{name} has weight {weight:g}, which pays for abuse; it pays for civil text as it is")
            if head == "toxicity" and _scorer(scorer or "toxicity") == _scorer(info.data.get("alarm_scorer") or ""):
                raise ValueError(f"{name} is the alarm_scorer too; a reward cannot watch itself, name another there")
        return value

    def resolve(self) -> Self:
        """See TrainingConfig; an adapter's default learning rate is 1e-4 here."""
        resolved = super().resolve()
        derived: dict[str, Any] = {}
        if self.lora is not None and "learning_rate" not in self.model_fields_set:
            derived["learning_rate"] = 1e-4
        if self.epsilon_high is None:
            derived["epsilon_high"] = self.epsilon
        return resolved.model_copy(update=derived)

    @property
    def updates_per_rollout(self) -> int:
        """Optimizer updates made from one rollout."""
        return self.num_iterations * self.num_minibatches
