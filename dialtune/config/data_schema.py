"""The recipe's data section: which rows, how they are read, and how dialogues become replies to learn."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

CleaningStep = Literal[
    "html_tags", "html_entities", "mojibake", "control_characters", "zero_width", "urls", "unicode_nfc",
    "special_characters", "tokenised_spacing", "whitespace", "empty_turns",
]  # fmt: skip
LayoutName = Literal[
    "auto", "dialogsum", "document", "article", "messages", "sharegpt", "preference", "prompt_completion", "alpaca",
    "prompt", "dialogue",
]  # fmt: skip


def _contains(annotation: Any, kind: type) -> bool:
    return annotation is kind or any(_contains(part, kind) for part in get_args(annotation))


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, bool) and not _contains(field.annotation, bool):  # pydantic would read true as 1
            raise PydanticCustomError("bool_type", "a number or text is needed")
        return value


class TurnsConfig(Section):
    """How a dialogue becomes (context, reply) pairs; read by task: respond alone."""

    speaker: str = Field(
        "both",
        description="Whose turns are replies: both, first, second, assistant, or a tag such as Anna. Chats with roles "
        "have one side to learn, so that both is their assistant.",
        min_length=1,
    )
    window: int | None = Field(
        None, description="Turns of context at most, the latest ones, whole; null: all that fit the prompt.", ge=1
    )
    system: str | None = Field(
        None,
        description="What the model is told first: its part, the domain. A chat's own system message wins. null: none.",
        min_length=1,
    )
    per_dialogue: int | None = Field(
        None, description="Replies of one dialogue at most, spread evenly over it; null: every one.", ge=1
    )
    min_words: int | None = Field(
        None,
        description="Replies of fewer words are context alone: a small model that learns short ones gives them to "
        "everybody. No default of `evaluate`, which asks for every reply. null: every reply is learned.",
        ge=1,
    )
    pack: bool | Literal["auto"] = Field(
        "auto",
        description="One forward pass for several replies of a dialogue, on decoder-only models. auto: for those whose "
        "contexts begin at the same turn, which changes speed and no loss; true: also for later ones, which then see "
        "more turns than window or max_prompt_length leave them; false: a pass per reply.",
    )


class DataConfig(Section):
    """Which rows train, which choose the best checkpoint, and what is done to them first."""

    train: str = Field(
        description="Rows to learn from: a file, packaged:train, chitchat:train, or hub:org/name[:split].",
        min_length=1,
        examples=["packaged:train"],
    )
    validation: str | None = Field(
        None, description="Rows that choose the best checkpoint; null: the last checkpoint is the result.", min_length=1
    )
    test: str | None = Field(
        None, description="Rows kept for `evaluate`; training looks for copies of them, no more.", min_length=1
    )
    layout: LayoutName = Field("auto", description="How rows are written; auto detects it by columns and says so.")
    columns: dict[str, str] = Field({}, description="Our name: your column, e.g. {dialogue: chat}; for unusual files.")
    max_train_rows: int | None = Field(None, description="Rows; the first so many. null: all, nothing is hidden.", ge=1)
    max_validation_rows: int | None = Field(
        None, description="Rows; the first so many. null: all. Lower it if evaluating costs more than training.", ge=1
    )
    on_bad_rows: Literal["fail", "skip", "quarantine"] = Field(
        "fail", description="A bad row stops the run by default: silent drops change what a score means."
    )
    max_bad_fraction: float = Field(
        0.01,
        description="Share of rows; more bad rows than this fail even under skip: the layout is wrong.",
        ge=0,
        le=1,
    )
    clean: tuple[CleaningStep, ...] = Field(
        (), description="Cleaning steps, in order; none by default: data stays as is."
    )
    reference: str = Field(
        "first", description="The gold text to train on: first, or a column such as summary2.", pattern=r"^\w+$"
    )
    turns: TurnsConfig = Field(TurnsConfig(), description="Dialogues to replies, for task: respond.")
    leaks: Literal["stop", "drop", "allow"] | None = Field(
        None,
        description="Training dialogues that validation or test hold too: stop, drop them, or allow and record how "
        "many. null: stop for task: respond; else not looked for.",
    )
