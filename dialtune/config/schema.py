"""The recipe: frozen models that refuse what they do not know; each field says unit, range and why this default."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, Field, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from dialtune.config.data_schema import CleaningStep as CleaningStep
from dialtune.config.data_schema import DataConfig as DataConfig
from dialtune.config.data_schema import LayoutName as LayoutName
from dialtune.config.data_schema import Section as Section
from dialtune.config.data_schema import TurnsConfig as TurnsConfig

# Names a recipe may use. A test holds each equal to its table, so that a typo shows before torch loads.
TaskName = Literal["summarize", "respond", "detoxify"]
TemplateName = Literal["summarize", "summarize-flan", "summarize-t5", "plain", "chat", "respond"]
MetricName = Literal[
    "rouge1", "rouge2", "rougeL", "rougeLsum", "rouge1_max", "rouge2_max", "rougeL_max", "rougeLsum_max", "bleu",
    "chrf", "relevance_reference", "relevance_reference_max", "relevance_dialogue", "context_auc", "context_mrr",
    "perplexity", "context_margin", "context_margin_last", "context_ll_auc", "context_ll_mrr", "generic_rate",
    "echo_rate", "repetition_rate", "distinct_1", "distinct_2", "toxicity_mean:minilm", "toxicity_rate:minilm",
    "toxicity_p95:minilm", "toxicity_mean:ngrams", "toxicity_rate:ngrams", "toxicity_p95:ngrams",
    "toxicity_mean:lexicon", "toxicity_rate:lexicon", "toxicity_p95:lexicon", "toxicity_mean:alt-profanity-check",
    "toxicity_rate:alt-profanity-check", "toxicity_p95:alt-profanity-check", "toxic_copied:minilm",
    "toxic_paraphrased:minilm", "toxic_invented:minilm", "empty_rate", "mention_kept", "tag_integrity",
    "speaker_coverage", "role_swap_margin", "length_ratio", "copy_rate", "novel_1grams", "novel_2grams",
    "novel_3grams",
]  # fmt: skip
BestName = Literal["eval_loss", "rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"]


class LoraConfig(Section):
    """Train small matrices beside frozen weights (arXiv 2106.09685). Absent: every weight is trained."""

    r: int = Field(16, description="Rank; 8 to 32 usually suffice, and 16 is the habit of trl and peft.", ge=1, le=1024)
    alpha: int = Field(
        32, description="Scale: updates count alpha / r times; twice the rank is the usual choice.", ge=1
    )
    dropout: float = Field(
        0.05, description="Share of adapter inputs dropped while training; as in the paper.", ge=0, lt=1
    )
    target_modules: str | tuple[str, ...] = Field(
        "all-linear",
        description="Names of layers, or all-linear: every linear layer but the head, best in QLoRA.",
        min_length=1,
    )


class GenerationConfig(Section):
    """How completions are made when the run evaluates."""

    max_new_tokens: int | None = Field(
        None, description="Tokens; null: the task's own cap, known to fit.", ge=1, le=8192
    )
    do_sample: bool = Field(False, description="Draw tokens; off: greedy or beam, so that a score repeats.")
    temperature: float = Field(
        1.0, description="Divides logits when drawing; 1 is the model's own distribution.", gt=0, le=10
    )
    top_p: float = Field(
        1.0, description="Draw from the likeliest tokens of this total probability; 1: from all.", gt=0, le=1
    )
    top_k: int = Field(0, description="Draw from this many likeliest tokens; 0: from all.", ge=0)
    num_beams: int = Field(1, description="Beams; 1 is greedy: cheaper, and close to beams in ROUGE.", ge=1, le=64)
    length_penalty: float = Field(
        1.0,
        description="Exponent of the length that divides a beam's score; above 1 favours longer texts.",
        gt=0,
        le=10,
    )
    batch_size: int = Field(16, description="Prompts generated together; changes speed and memory, not text.", ge=1)

    @field_validator("temperature", "top_p", "top_k")
    @classmethod
    def _drawing_needs_do_sample(cls, value: float, info: ValidationInfo) -> float:
        default = cls.model_fields[info.field_name or ""].default
        if info.data.get("do_sample") is False and value != default:
            raise ValueError("has no effect while do_sample is false; set do_sample: true")
        return value

    @field_validator("num_beams")
    @classmethod
    def _beams_do_not_draw(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("do_sample"):
            raise ValueError("beams and do_sample exclude each other; set num_beams: 1")
        return value


class EvaluationConfig(Section):
    """What is measured on the validation rows while training, and how."""

    metrics: tuple[MetricName, ...] | None = Field(
        None, description="Metric names; null: the task's own list.", min_length=1
    )
    reference: str = Field(
        "auto",
        description="Gold text to compare with: first, mean, max, a name; auto: mean where a row has several.",
        pattern=r"^\w+$",
    )
    max_rows: int | None = Field(
        64,
        description="Rows generated for metrics at each evaluation while training; null: all. Loss always uses all.",
        ge=1,
    )


class TrainingConfig(Section):
    """What every training has: a model, data, an optimizer, checkpoints."""

    model: str = Field(
        description="Hub name, local folder, or a packaged name such as smollm2-135m.",
        min_length=1,
        examples=["google/flan-t5-base"],
    )
    model_revision: str | None = Field(
        None, description="Commit of a hub model; null: its newest, recorded in run.json."
    )
    trust_remote_code: bool = Field(
        False, description="Run code that comes with the model; needs model_revision as a 40-digit commit."
    )
    task: TaskName = Field(
        "summarize", description="Sets prompt template, metrics and length cap; the main job by default."
    )
    template: TemplateName | None = Field(
        None, description="How a dialogue becomes a prompt; null: the task's own. plain for BART, as published."
    )
    data: DataConfig = Field(description="Where the rows are.")
    lora: LoraConfig | None = Field(None, description="Adapter; null trains every weight, best where memory allows.")
    output_dir: str = Field(
        "runs/sft", description="The run folder; everything that later stages need is in it.", min_length=1
    )

    max_steps: int = Field(-1, description="Optimizer updates; -1: num_train_epochs decides, else this does.", ge=-1)
    per_device_train_batch_size: int = Field(8, description="Dialogues per forward pass; 8 as in transformers.", ge=1)
    per_device_eval_batch_size: int = Field(16, description="Dialogues per forward pass without gradients.", ge=1)
    learning_rate: float = Field(
        5e-5,
        description="Peak step size; 5e-5 as in transformers, and 2e-4 with lora, whose few weights need more.",
        gt=0,
        le=1,
    )
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="Shape after warm-up; linear to zero as in transformers."
    )
    warmup_steps: int = Field(0, description="Updates of linear rise to the peak; 0 as in transformers.", ge=0)
    warmup_ratio: float = Field(0.0, description="The same as a share of all updates; set one of the two.", ge=0, lt=1)
    weight_decay: float = Field(0.0, description="AdamW decay of matrices, never of norms and biases.", ge=0, le=1)
    adam_beta1: float = Field(0.9, description="Decay of the gradient's mean; AdamW's own default.", ge=0, lt=1)
    adam_beta2: float = Field(0.999, description="Decay of the gradient's square; AdamW's own default.", ge=0, lt=1)
    adam_epsilon: float = Field(1e-8, description="Keeps the division finite; AdamW's own default.", gt=0, lt=1)
    max_grad_norm: float = Field(1.0, description="Gradients longer than this are cut to it; 0: never.", ge=0)
    max_prompt_length: int | None = Field(
        1024,
        description="Tokens; older turns of a longer dialogue are dropped whole and counted. null: the model's limit.",
        ge=8,
    )
    max_completion_length: int = Field(256, description="Tokens of gold text; longer ones are cut and counted.", ge=1)

    logging_steps: int = Field(10, description="Updates between printed lines; metrics.jsonl has every one.", ge=1)
    eval_steps: int = Field(0, description="Updates between evaluations; 0: after each epoch.", ge=0)
    save_steps: int = Field(0, description="Updates between checkpoints; 0: whenever it evaluates.", ge=0)
    save_total_limit: int | None = Field(2, description="Checkpoints kept beside the best one; null: all.", ge=1)
    load_best_model_at_end: bool = Field(
        True, description="End with the best checkpoint; without data.validation it is false: nothing can choose."
    )

    seed: int = Field(42, description="Of everything random; 42 as in transformers.", ge=0, le=2**32 - 1)
    data_seed: int | None = Field(None, description="Of the order of rows; null: seed.", ge=0, le=2**32 - 1)
    bf16: bool | Literal["auto"] = Field("auto", description="Compute in bfloat16; auto: where it is faster.")
    fp16: bool = Field(False, description="Compute in float16; needs a GPU, and T5 overflows in it, so prefer bf16.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: less memory, about a third slower.")
    on_save_error: Literal["stop", "continue"] = Field(
        "stop", description="When a checkpoint cannot be written; a run that cannot save is lost work."
    )
    report_to: Literal["none"] = Field("none", description="Trackers; metrics.jsonl and report.html need no account.")
    generation: GenerationConfig = Field(GenerationConfig(), description="Decoding while training evaluates.")

    @field_validator("trust_remote_code")
    @classmethod
    def _remote_code_is_pinned(cls, value: bool, info: ValidationInfo) -> bool:
        if value and not re.fullmatch(r"[0-9a-f]{40}", info.data.get("model_revision") or ""):
            raise ValueError("remote code runs only from a pinned commit; set model_revision to its 40 hex digits")
        return value

    @field_validator("max_steps")
    @classmethod
    def _zero_steps_train_nothing(cls, value: int) -> int:
        if value == 0:
            raise ValueError("0 steps train nothing; for the untouched model run: dialtune evaluate")
        return value

    @field_validator("warmup_ratio")
    @classmethod
    def _one_warmup(cls, value: float, info: ValidationInfo) -> float:
        if value and info.data.get("warmup_steps"):
            raise ValueError("warmup_steps is set too; keep one of the two")
        return value

    @field_validator("load_best_model_at_end", "early_stopping_patience", check_fields=False)
    @classmethod
    def _choosing_needs_validation(cls, value: int, info: ValidationInfo) -> int:
        data = info.data.get("data")
        if value and data is not None and data.validation is None:
            raise ValueError("needs data.validation, the rows that decide")
        return value

    @field_validator("fp16")
    @classmethod
    def _half_precision(cls, value: bool, info: ValidationInfo) -> bool:
        if value and re.search(r"t5|ul2|pegasus", str(info.data.get("model")), re.IGNORECASE):
            raise ValueError("this family overflows float16 (largest number 65,504) and trains to NaN; use bf16: auto")
        if value and info.data.get("bf16") is True:
            raise ValueError("bf16 is true as well; keep one of the two")
        return value

    def resolve(self) -> Self:
        """The same run with every derived value written out; resolving twice changes nothing."""
        derived: dict[str, Any] = {}
        if self.lora is not None and "learning_rate" not in self.model_fields_set:
            derived["learning_rate"] = 2e-4
        if self.data_seed is None:
            derived["data_seed"] = self.seed
        if self.data.validation is None:
            derived["load_best_model_at_end"] = False
        if self.data.leaks is None and self.task == "respond":
            derived["data"] = self.data.model_copy(update={"leaks": "stop"})
        return self.model_copy(update=derived)

    @property
    def fingerprint(self) -> str:
        """sha256 of the resolved values as canonical JSON, wherever they are written to."""
        values = self.resolve().model_dump(mode="json", exclude={"output_dir"})
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class RunConfig(TrainingConfig):
    """A whole run. Keys keep the spelling of transformers, trl and peft."""

    num_train_epochs: float = Field(3.0, description="Passes over the data; 3 as in transformers.", gt=0)
    gradient_accumulation_steps: int = Field(1, description="Forward passes per update; raise it to save memory.", ge=1)
    group_by_length: bool = Field(True, description="Batch rows of like length: less padding, same rows per epoch.")
    metric_for_best_model: BestName = Field(
        "eval_loss", description="What best means; the loss needs no generation and is never noisy by chance."
    )
    early_stopping_patience: int = Field(
        0, description="Evaluations without a better one before stopping; 0: never.", ge=0
    )
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Scores while training.")


def walk(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field with its dotted key, sections before their fields, in the order they are written here."""
    for name, field in section.model_fields.items():
        yield prefix + name, field
        inner = section_of(field)
        if inner is not None:
            yield from walk(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that is a section of its own, else None."""
    candidates = (field.annotation, *get_args(field.annotation))
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


def allowed(field: FieldInfo) -> str:
    """What a field takes, in words: `integer, at least 1`, `linear, cosine or constant`.

    >>> allowed(RunConfig.model_fields["warmup_ratio"])
    'number, at least 0 and below 1'
    >>> allowed(RunConfig.model_fields["bf16"])
    'true, false or auto'
    """
    kinds, limits = _words(field.annotation), _limits(field)
    alternatives = kinds[0] if len(kinds) == 1 else ", ".join(kinds[:-1]) + " or " + kinds[-1]
    return alternatives if not limits else f"{alternatives}, {' and '.join(limits)}"


def choices(field: FieldInfo) -> list[str]:
    """The names a field takes, if it takes names."""
    found: list[str] = []
    pending: list[Any] = [field.annotation]
    while pending:
        annotation = pending.pop(0)
        if get_origin(annotation) is Literal:
            found += [str(name) for name in get_args(annotation)]
        else:
            pending += get_args(annotation)
    return found


_KINDS = {bool: ["true", "false"], int: ["integer"], float: ["number"], str: ["text"], type(None): ["null"]}


def _words(annotation: Any) -> list[str]:
    origin, parts = get_origin(annotation), get_args(annotation)
    if annotation in _KINDS:
        return _KINDS[annotation]
    if origin is Literal:
        return [str(name) for name in parts]
    if origin is tuple:
        inner = _words(parts[0])
        return ["list of " + (inner[0] if inner == ["text"] else ", ".join(inner))]
    if origin is dict:
        return [f"mapping of text to {_words(parts[1])[0]}"]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return ["section"]
    return [word for part in parts for word in _words(part)]


def _limits(field: FieldInfo) -> list[str]:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    found = []
    for limit in field.metadata:
        found += [f"{word} {getattr(limit, name):,}" for name, word in words.items() if hasattr(limit, name)]
        if hasattr(limit, "min_length"):
            found.append("not empty")
        if getattr(limit, "pattern", None):
            found.append("letters, digits and _ only")
    return found


def explain(topic: str = "", schema: type[BaseModel] = RunConfig) -> list[tuple[str, str, str, str]]:
    """(key, what is allowed, default, doc line) of every key that `topic` names: a key, a section, or all."""
    rows = []
    for key, field in walk(schema):
        if not topic or key == topic or key.startswith(topic + "."):
            section = section_of(field)
            default = "required" if field.is_required() else _default(field, section)
            rows.append((key, allowed(field), default, field.description or ""))
    return rows


def _default(field: FieldInfo, section: type[BaseModel] | None) -> str:
    if section is not None and field.default is not None:
        return "as below"
    text = json.dumps(field.default, default=str) if not isinstance(field.default, float) else f"{field.default:g}"
    return text.replace('"', "")
