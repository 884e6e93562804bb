"""model × examples → Evaluation in one call: what `dialtune evaluate`, the labs and the benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from dialtune.data.reading import DataSet
from dialtune.evaluation import evaluate_completions, resolve_metrics, resolve_reference
from dialtune.generation import Progress, generate
from dialtune.metrics.base import Metric
from dialtune.models.base import LanguageModel, Sampling
from dialtune.models.loading import read_notes
from dialtune.prompts import build_prompts, template_sha256
from dialtune.reply_likelihood import bind_likelihoods
from dialtune.results import Decoding, Evaluation
from dialtune.rewards.score import open_score
from dialtune.tasks import TASKS, Task, find_task
from dialtune.types import Example, Prompt


def task_for(name: str, model: str, template: str | None = None) -> tuple[Task, int | None]:
    """The task as this model was trained to be asked it, and its prompt budget in tokens.

    A model that dialtune saved says its template and budget in dialtune.json; it counts for every task that is asked in
    the same way, so that a start policy and what became of it are. An explicit `template` wins.
    """
    task, notes = find_task(name), read_notes(model)
    trained = TASKS.get(notes.get("task", ""))
    chosen = template or (notes.get("template") if trained and trained.template == task.template else None)
    return (replace(task, template=chosen) if chosen else task), notes.get("max_prompt_length")


def prompts_for(model: LanguageModel, examples: Sequence[Example], task: Task, budget: int | None) -> list[Prompt]:
    """Prompts that fit both the budget and the model, whole turns dropped and counted."""
    limits = [limit for limit in (budget, model.max_prompt_tokens) if limit is not None]
    limit = min(limits) if limits else None
    return build_prompts(examples, task, max_prompt_tokens=limit, count_tokens=model.count_tokens)


def evaluate_model(  # noqa: PLR0913  what a score depends on is stated by the caller
    model: LanguageModel,
    dataset: DataSet,
    task: Task,
    *,
    sampling: Sampling | None = None,
    metrics: Sequence[str | Metric] | None = None,
    reference: str = "auto",
    max_prompt_tokens: int | None = None,
    batch_size: int = 16,
    seed: int = 0,
    leakage: Mapping[str, int] | None = None,
    train: Sequence[Example] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Write a completion for every example and score it; ask how likely the true replies are, if a metric wants that.

    Args:
        model: any family.
        dataset: ids unique.
        task: template, default metrics and default cap.
        sampling: None is greedy up to the task's cap.
        metrics: None is the task's own list.
        reference: see `evaluation.evaluate_completions`.
        max_prompt_tokens: budget; the model's own limit holds as well.
        batch_size: prompts per forward.
        seed: of decoding and resampling.
        leakage: rows that training has seen, if that was looked at.
        train: what the model was trained on; see `evaluation.evaluate_completions`.
        progress: called after each batch, of completions and then of contexts.
    """
    sampling = sampling or Sampling(max_new_tokens=task.max_new_tokens)
    reference = resolve_reference(reference, dataset.examples)
    chosen = resolve_metrics(metrics or task.metrics, reference, dataset.examples)  # a misspelt one fails at once
    chosen = [open_score(metric, model.info.name) for metric in chosen]
    prompts = prompts_for(model, dataset.examples, task, max_prompt_tokens)
    completions = generate(model, prompts, sampling, batch_size=batch_size, seed=seed, progress=progress)
    ask = partial(prompts_for, model, task=task, budget=max_prompt_tokens)
    chosen = bind_likelihoods(chosen, model, dataset.examples, ask, batch_size=batch_size, progress=progress)
    return evaluate_completions(
        dataset,
        completions,
        chosen,
        reference=reference,
        model=model.info,
        task=task.name,
        decoding=decoding_of(sampling, seed),
        template_sha256=template_sha256(task.template),
        dropped_turns=sum(prompt.dropped_turns for prompt in prompts),
        leakage=leakage,
        train=train,
        seed=seed,
    )


def decoding_of(sampling: Sampling, seed: int) -> Decoding:
    """What eval.json records about decoding."""
    return Decoding(
        strategy=sampling.strategy,
        num_beams=sampling.num_beams,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        seed=seed,
    )
