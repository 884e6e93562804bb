"""How well each toxicity scorer tells toxic from clean on texts it never saw; writes benchmarks/results/toxicity.json.

AUC with a 95 % bootstrap interval per set, calibration, false positives on harmless mentions, recall on disguises.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from record import print_table, shared_data, write_result
from toxicity_data import Texts, benign_sets, disguised_sets, test_sets, training_texts

from dialtune.errors import MissingExtraError
from dialtune.scorers.base import ToxicityScorer, probabilities, sigmoid
from dialtune.scorers.encoder import load_encoder_scorer
from dialtune.scorers.table import find_scorer

SCORERS = ("minilm", "ngrams", "lexicon", "alt-profanity-check")
TRIALS = 2000
BINS = 15  # of equal width, for the calibration error


def auc_draws(
    logits: NDArray[np.float64], targets: NDArray[np.float64], *, trials: int, seed: int
) -> tuple[float, NDArray[np.float64]]:
    """The area under the ROC curve (ties count half) and that of `trials` resamples, each class resampled on its own.

    The same seed draws the same rows, so differences of two scorers' draws are paired.
    """
    _, place = np.unique(logits, return_inverse=True)
    groups = [place[targets >= 0.5], place[targets < 0.5]]
    draw = np.random.default_rng(seed)
    rows = [draw.integers(0, len(group), size=(trials, len(group))) for group in groups]

    def area(toxic: NDArray[np.int64], clean: NDArray[np.int64]) -> float:
        n_toxic, n_clean = (np.bincount(part, minlength=place.max() + 1) for part in (toxic, clean))
        below = np.cumsum(n_clean) - n_clean / 2
        return float((n_toxic * below).sum() / (len(toxic) * len(clean)))

    draws = [area(groups[0][rows[0][trial]], groups[1][rows[1][trial]]) for trial in range(trials)]
    return area(groups[0], groups[1]), np.array(draws)


def interval(draws: NDArray[np.float64]) -> list[float]:
    return [round(float(bound), 4) for bound in np.percentile(draws, [2.5, 97.5])]


def calibration_error(chances: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Expected calibration error: sum over bins of share * |mean target - mean probability| (Guo et al. 2017)."""
    place = np.minimum((chances * BINS).astype(int), BINS - 1)
    gaps = [abs(targets[place == b].sum() - chances[place == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(chances))


def share_flagged(scorer: ToxicityScorer, texts: Sequence[str]) -> float:
    return float((probabilities(scorer, texts) >= 0.5).mean())


def rank_rows(scorers: Mapping[str, ToxicityScorer], sets: Mapping[str, Texts]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, data in sets.items():
        targets = np.array(data.targets)
        all_draws = {}
        for scorer_name, scorer in scorers.items():
            logits = scorer.logits(data.texts)
            value, draws = auc_draws(logits, targets, trials=TRIALS, seed=0)
            all_draws[scorer_name] = draws
            chances = sigmoid(logits)
            row: dict[str, Any] = {
                "set": name,
                "scorer": scorer_name,
                "n_toxic": int(targets.sum()),
                "n_clean": int((1 - targets).sum()),
                "auc": round(value, 4),
                "ci": interval(draws),
                "ece": round(calibration_error(chances, targets), 4),
                "recall": round(float((chances[targets == 1] >= 0.5).mean()), 4),
                "false_positives": round(float((chances[targets == 0] >= 0.5).mean()), 4),
            }
            if scorer_name != "minilm" and "minilm" in all_draws:
                row["minilm_better_by_ci"] = interval(all_draws["minilm"] - draws)
            rows.append(row)
    return rows


def benign_rows(scorers: Mapping[str, ToxicityScorer]) -> list[dict[str, Any]]:
    rows = []
    for name, groups in benign_sets().items():
        everything = {**groups, "all": [text for texts in groups.values() for text in texts]}
        for group, texts in everything.items():
            shares = {key: round(share_flagged(scorer, texts), 4) for key, scorer in scorers.items()}
            rows.append({"list": name, "group": group, "n": len(texts), **shares})
    return rows


def disguise_rows(scorers: Mapping[str, ToxicityScorer], shared: Path) -> list[dict[str, Any]]:
    rows = []
    for kind, pairs in disguised_sets(shared).items():
        row: dict[str, Any] = {"spelling": kind, "n": len(pairs)}
        for key, scorer in scorers.items():
            row[f"{key} plain"] = round(share_flagged(scorer, [plain for plain, _ in pairs]), 4)
            row[key] = round(share_flagged(scorer, [changed for _, changed in pairs]), 4)
        rows.append(row)
    return rows


def available() -> dict[str, ToxicityScorer]:
    """Every scorer that can be opened here, the trained one first; the others are named."""
    found: dict[str, ToxicityScorer] = {}
    for name in SCORERS:
        try:
            found[name] = find_scorer(name)
        except MissingExtraError as error:
            print(f"{name}: not scored (not available): {error}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", help="folder with the real corpora; default: ../shared/data")
    parser.add_argument("--minilm", type=Path, help="folder of another trained scorer in place of the packaged one")
    given = parser.parse_args()
    shared = shared_data(given.shared)
    scorers = available()
    if given.minilm:
        scorers["minilm"] = load_encoder_scorer(given.minilm)
    sets = test_sets(shared)
    _, validation = training_texts(shared)
    sets["validation mix (calibrated on)"] = validation.keep(target in (0, 1) for target in validation.targets)
    ranks, benign, disguises = rank_rows(scorers, sets), benign_rows(scorers), disguise_rows(scorers, shared)
    for table in (ranks, benign, disguises):
        print_table([{key: row.get(key, "") for key in table[-1]} for row in table])
        print()
    if given.minilm:
        return
    ours = {row["set"]: row for row in ranks if row["scorer"] == "minilm"}
    totals = {row["list"]: row["minilm"] for row in benign if row["group"] == "all"}
    seen = [row["minilm"] for row in disguises]
    write_result(
        "toxicity",
        [*ranks, *benign, *disguises],
        {
            "auc_unseen_comments": ours["toxic spans (unseen)"]["auc"],
            "auc_unseen_comments_ci_low": ours["toxic spans (unseen)"]["ci"][0],
            "auc_paradetox_heldout": ours["paradetox held-out"]["auc"],
            "auc_packaged_test_blunt_civil": ours["packaged test blunt/civil"]["auc"],
            "false_positives_identity": totals["identity mentions"],
            "false_positives_controls": totals["packaged controls"],
            "recall_disguised_lowest": min(seen),
            "ece_paradetox_heldout": ours["paradetox held-out"]["ece"],
        },
        trials=TRIALS,
        scorers={name: scorer.settings() for name, scorer in scorers.items()},
    )


if __name__ == "__main__":
    main()
