"""TASKS: what a model is asked to do = template, default metrics and length of the answer."""

from __future__ import annotations

from dataclasses import dataclass

from dialtune.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Task:
    """One job: `template` is a key of prompts.TEMPLATES, `metrics` are keys of metrics.table.METRICS."""

    name: str
    template: str
    metrics: tuple[str, ...]
    max_new_tokens: int  # longest DialogSum reference: 153 T5 tokens in training, 90 in 99 of 100


_SCORERS = ("minilm", "ngrams", "lexicon", "alt-profanity-check")  # one that is not installed scores nothing

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "summarize",
            template="summarize",
            metrics=(
                *("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf"),
                *("tag_integrity", "speaker_coverage", "role_swap_margin"),
                *("length_ratio", "copy_rate", "novel_2grams"),
            ),
            max_new_tokens=128,
        ),
        Task(
            "respond",
            template="respond",
            metrics=(
                *("bleu", "rouge1", "rouge2", "rougeL", "chrf"),
                *("relevance_reference", "relevance_dialogue", "context_auc", "context_mrr"),
                *("context_margin", "context_margin_last", "context_ll_auc", "context_ll_mrr", "perplexity"),
                *("generic_rate", "echo_rate", "repetition_rate", "distinct_1", "distinct_2"),
                *("empty_rate", "length_ratio", "copy_rate"),
            ),
            max_new_tokens=64,
        ),
        Task(
            "detoxify",
            template="summarize",
            metrics=(
                *("rouge1", "rouge2", "rougeL", "bleu", "relevance_reference", "relevance_dialogue"),
                *(f"toxicity_{kind}:{scorer}" for scorer in _SCORERS for kind in ("mean", "rate", "p95")),
                *(f"toxic_{origin}:minilm" for origin in ("copied", "paraphrased", "invented")),
                *("empty_rate", "mention_kept", "tag_integrity", "length_ratio", "copy_rate"),
            ),
            max_new_tokens=128,
        ),
    )
}


def find_task(name: str) -> Task:
    """The task called `name`; ConfigError names those that exist."""
    if name not in TASKS:
        raise ConfigError(f"task: got '{name}'; known: {', '.join(TASKS)}")
    return TASKS[name]
