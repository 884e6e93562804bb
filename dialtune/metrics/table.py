"""METRICS: every score by its name; `look_up` also finds any reward, and toxicity by scorers without a row here."""

from __future__ import annotations

import os
from difflib import get_close_matches

from dialtune.errors import ConfigError
from dialtune.metrics.base import Metric
from dialtune.metrics.bleu import Bleu, Chrf
from dialtune.metrics.likelihood import KINDS as LIKELIHOODS
from dialtune.metrics.likelihood import ReplyLikelihood
from dialtune.metrics.origin import ORIGINS, ToxicOrigin
from dialtune.metrics.relevance import ContextMatch, RelevanceDialogue, RelevanceReference
from dialtune.metrics.reply import Distinct, EchoRate, GenericRate, RepetitionRate
from dialtune.metrics.reward import PREFIX as REWARD
from dialtune.metrics.reward import RewardScore
from dialtune.metrics.rouge import Rouge
from dialtune.metrics.text import CopyRate, LengthRatio, NovelNgrams, RoleSwapMargin, SpeakerCoverage, TagIntegrity
from dialtune.metrics.toxicity import KINDS, EmptyRate, MentionKept, Toxicity
from dialtune.scorers.table import ALIASES, PACKAGED_SCORERS

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Rouge("rouge1"),
        Rouge("rouge2"),
        Rouge("rougeL"),
        Rouge("rougeLsum"),
        Rouge("rouge1", reference="max"),
        Rouge("rouge2", reference="max"),
        Rouge("rougeL", reference="max"),
        Rouge("rougeLsum", reference="max"),
        Bleu(),
        Chrf(),
        RelevanceReference(),
        RelevanceReference(reference="max"),
        RelevanceDialogue(),
        ContextMatch("context_auc"),
        ContextMatch("context_mrr"),
        *(ReplyLikelihood(kind) for kind in LIKELIHOODS),
        GenericRate(),
        EchoRate(),
        RepetitionRate(),
        Distinct(1),
        Distinct(2),
        *(Toxicity(kind, scorer) for scorer in PACKAGED_SCORERS for kind in KINDS),
        *(ToxicOrigin(origin, "minilm") for origin in ORIGINS),
        EmptyRate(),
        MentionKept(),
        TagIntegrity(),
        SpeakerCoverage(),
        RoleSwapMargin(),
        LengthRatio(),
        CopyRate(),
        NovelNgrams(1),
        NovelNgrams(2),
        NovelNgrams(3),
    )
}


def look_up(name: str) -> Metric | None:
    """The metric called `name`, or None.

    Besides the rows of METRICS that is `reward:` with the name or folder of a reward, not opened yet, and
    `toxicity_mean:<scorer>`, `toxicity_rate:` and `toxicity_p95:` by an alias of a packaged scorer, a Hugging Face name
    (`org/name`, with `#LABEL` if need be) or a folder.
    """
    stem, _, scorer = name.partition(":")
    if name.startswith(REWARD) and scorer:
        return RewardScore(scorer)
    if scorer in ALIASES:
        return METRICS.get(f"{stem}:{ALIASES[scorer]}")
    kind = next((kind for kind in KINDS if kind == stem), None)
    if kind and scorer not in PACKAGED_SCORERS and ("/" in scorer or os.path.isdir(scorer)):
        return Toxicity(kind, scorer)
    return METRICS.get(name)


def find_metric(name: str) -> Metric:
    """The metric called `name`; ConfigError names the closest one and those that exist."""
    found = look_up(name)
    if found is None:
        raise ConfigError(unknown_metric(name))
    return found


def unknown_metric(name: str) -> str:
    """What is said about a name that `look_up` does not find."""
    close = get_close_matches(name, METRICS, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return f"metric '{name}': unknown{hint} known: {', '.join(METRICS)}"
