"""The recipe of a learned reward: what it learns from, what it reads, and the keys of training that it shares."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from dialtune.config.schema import LoraConfig, TaskName, TrainingConfig

SignalName = Literal["contexts", "preferences", "ratings"]
# Shared keys that say nothing to an encoder: they keep their defaults.
WITHOUT_EFFECT = (
    "model_revision", "trust_remote_code", "template", "max_prompt_length", "max_completion_length", "fp16",
    "gradient_checkpointing", "generation", "per_device_eval_batch_size",
)  # fmt: skip


class RewardConfig(TrainingConfig):
    """A whole reward model: an encoder and a small head that say how good a reply is where it was given."""

    model: str = Field(
        "all-minilm-l6-v2",
        description="The encoder: all-minilm-l6-v2 (packaged), a folder, or a hub name. It reads turns one by one.",
        min_length=1,
    )
    task: TaskName = Field("respond", description="Dialogues become replies by data.turns.")
    output_dir: str = Field("runs/reward", description="The folder of the reward.", min_length=1)
    signals: dict[SignalName, float] = Field(
        {"contexts": 1.0},
        description="What it learns from, and how much each counts: contexts (a reply where it was said against "
        "elsewhere), preferences (chosen against rejected), ratings (of a dialogue or row).",
        min_length=1,
        validate_default=True,
    )
    ratings: tuple[str, ...] = Field(
        ("interesting", "upbeat", "witty"),
        description="Columns with a number; their mean is the rating. The default is that of chitchat.",
        min_length=1,
    )
    rating_scale: tuple[float, float] = Field(
        (0, 10), description="The lowest and the highest rating there is; a rating outside is an error."
    )
    window: int = Field(
        3, description="Turns that it reads before the reply, the latest ones, whole; more cost more.", ge=1, le=16
    )
    max_turn_length: int = Field(
        96, description="Tokens of a turn or reply; longer ones lose their end, and are counted.", ge=8, le=8192
    )
    comparisons: int = Field(
        8, description="Wrong replies and wrong contexts that each reply is held against, drawn in its batch.", ge=1
    )
    cheap_replies: bool = Field(
        True, description="Also hold each reply against the turns before it said again: the nearest texts there are."
    )
    head_size: int = Field(256, description="Hidden units of the head, which compares the turns' vectors.", ge=1)
    head_dropout: float = Field(0.1, description="Share of hidden units dropped while training.", ge=0, lt=1)
    lora: LoraConfig | None = Field(
        None, description="Train the encoder too, by small matrices. null: it stays as it is and only the head learns."
    )
    num_train_epochs: float = Field(4.0, description="Passes over the dialogues.", gt=0)
    per_device_train_batch_size: int = Field(
        32, description="Dialogues per update; wrong replies and contexts come from the others.", ge=2
    )
    learning_rate: float = Field(
        1e-3, description="Peak step size; 1e-3 for the head alone, 5e-4 with lora.", gt=0, le=1
    )
    weight_decay: float = Field(0.01, description="AdamW decay of matrices, never of norms and biases.", ge=0, le=1)
    warmup_ratio: float = Field(0.05, description="Share of all updates in which the step size rises.", ge=0, lt=1)
    max_evaluation_pairs: int = Field(
        4000, description="Held-out pairs that choose the state, and again so many that it is reported on.", ge=100
    )
    data_licence: str | None = Field(
        None, description="Licence of the data, for the card; null: known for packaged sources, else `not stated`."
    )

    @field_validator(*WITHOUT_EFFECT)
    @classmethod
    def _says_nothing_here(cls, value: Any, info: ValidationInfo) -> Any:
        default = TrainingConfig.model_fields[info.field_name or ""].default
        if value != default:
            raise ValueError("has no effect on a reward model; leave it out")
        return value

    @field_validator("signals")
    @classmethod
    def _signals_count(cls, value: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        data = info.data.get("data")
        if data is not None and data.validation is None:
            raise ValueError("a reward is calibrated and reported on rows it never saw; set data.validation")
        for name, weight in value.items():
            if weight <= 0:
                raise ValueError(f"{name} has weight {weight:g}; a signal counts more than 0, or is left out")
        return value

    @field_validator("rating_scale")
    @classmethod
    def _scale_rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("the first number is the lowest rating, the second the highest; e.g. [0, 10]")
        return value

    @field_validator("lora")
    @classmethod
    def _every_layer(cls, value: LoraConfig | None) -> LoraConfig | None:
        if value is not None and value.target_modules != "all-linear":
            raise ValueError("target_modules: an encoder is trained in every linear layer; leave it all-linear")
        return value

    def resolve(self) -> Self:
        """See TrainingConfig; with an adapter the default learning rate is 5e-4."""
        resolved = super().resolve()
        if self.lora is not None and "learning_rate" not in self.model_fields_set:
            return resolved.model_copy(update={"learning_rate": 5e-4})
        return resolved
