"""METRICS: every score by its name, and nothing else."""

from __future__ import annotations

from dialtune.metrics.base import Metric
from dialtune.metrics.bleu import Bleu, Chrf
from dialtune.metrics.rouge import Rouge
from dialtune.metrics.text import CopyRate, LengthRatio, NovelNgrams, RoleSwapMargin, SpeakerCoverage, TagIntegrity

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
