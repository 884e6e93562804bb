"""A job's facts as data: what the page says in words, whole and for other programs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from dialtune.report import provenance, wording
from dialtune.report.curves import chosen_step, series, stops
from dialtune.report.dialogues import changes, gained_and_lost, row_score
from dialtune.report.reading import Job
from dialtune.report.scores import headline
from dialtune.report.views import Section
from dialtune.results import EvalRow, Evaluation

SCHEMA = "dialtune.report/1"
_LONE = re.compile("[\ud800-\udfff]")


def to_json(jobs: Sequence[Job], sections: Sequence[Section], shown: int) -> str:
    """The document's text; `sections` are the jobs in words, `shown` dialogues at each end."""
    document = {
        "schema": SCHEMA,
        "jobs": [_job(job, section, shown) for job, section in zip(jobs, sections, strict=True)],
    }
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return _LONE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)  # half a character, which no file can hold


def _job(job: Job, section: Section, shown: int) -> dict[str, Any]:
    compared = job.comparison.model_dump(mode="json", by_alias=True) if job.comparison else None
    return {
        "name": job.name,
        "task": job.task,
        "sentence": section.sentence,
        "tally": section.tally or None,
        "notes": list(section.notes),
        "headline": headline(job),
        "before": _side(job.before),
        "after": _side(job.after),
        "comparison": compared,
        "other_dialogues": {
            name: other.model_dump(mode="json", by_alias=True)["scores"] for name, other in job.others.items()
        },
        "training": _training(job),
        "dialogues": _dialogues(job, shown),
        "licences": [dict(zip(("what", "name", "licence"), found, strict=True)) for found in section.licences],
        "commands": [{"makes": name, "command": command} for name, command in provenance.commands(job)],
        "environment": dict(provenance.environment(job.records)),
    }


def _side(evaluation: Evaluation | None) -> dict[str, Any] | None:
    """An evaluation without its rows, with every count in words."""
    if evaluation is None:
        return None
    found = evaluation.model_dump(mode="json", by_alias=True, exclude={"rows"})
    return found | {"counts": wording.counts(evaluation)}


def _training(job: Job) -> dict[str, Any] | None:
    if job.training is None:
        return None
    return {
        "sentence": wording.training_sentence(job.training.rows),
        "chosen_step": chosen_step(job),
        "frontier": [
            {"step": stop.step, "relevance": stop.x, "toxicity": stop.y, "kind": stop.kind} for stop in stops(job)
        ],
        "series": [
            {
                "name": found.key,
                "label": found.label,
                "every_step": list(found.every),
                "measured": {name: list(points) for name, points in found.measured.items()},
            }
            for found in series(job.training)
        ],
    }


def _dialogues(job: Job, shown: int) -> dict[str, Any] | None:
    by = row_score(job, headline(job))
    if by is None:
        return None
    top, bottom = gained_and_lost(job, by, shown)
    return {
        "by": by,
        "changes": {new.id: change for change, _, new in changes(job, by)} if job.before else None,
        "first": [_dialogue(job, by, *found) for found in top],
        "last": [_dialogue(job, by, *found) for found in bottom],
    }


def _dialogue(job: Job, by: str, change: float, old: EvalRow | None, new: EvalRow) -> dict[str, Any]:
    source = job.sources.get(new.id)
    return {
        "id": new.id,
        "change": change if old else None,
        "before": {"score": old.scores[by], "completion": old.completion} if old else None,
        "after": {"score": new.scores[by], "completion": new.completion},
        "dialogue": source.dialogue if source else None,
        "references": list(source.references) if source else [],
    }
