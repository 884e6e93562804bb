"""Train the packaged toxicity scorer; `make toxicity-scorer` runs this and writes dialtune/assets/toxicity/.

A low-rank update of MiniLM and a linear head, on ParaDetox (buckets 0 to 7), DiaSafety, ConvAbuse, the packaged
training split and sentences written for it; see toxicity_data.py for what is kept apart and CARD.md for the result.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

from record import shared_data
from toxicity_data import training_texts

from dialtune.scorers.encoder import TOXICITY
from dialtune.trainers.scorer import FitSettings, fit, save_scorer

DATA = {
    "ParaDetox": "CC0 1.0",
    "DiaSafety": "Apache-2.0",
    "ConvAbuse": "CC BY 4.0",
    "packaged dialogues, training split": "Apache-2.0",
    "sentences of benchmarks/toxicity_lists.py": "Apache-2.0",
}


def main() -> None:
    defaults = FitSettings()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", help="folder with the real corpora; default: ../shared/data")
    parser.add_argument("--out", type=Path, default=TOXICITY)
    parser.add_argument("--share", type=float, default=1.0, help="part of the training texts, for a quick look")
    parser.add_argument("--epochs", type=float, default=1.3)
    parser.add_argument("--rank", type=int, default=defaults.r)
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--batch-size", type=int, default=defaults.batch_size)
    parser.add_argument("--max-tokens", type=int, default=defaults.max_tokens)
    parser.add_argument("--evaluations", type=int, default=1)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    given = parser.parse_args()
    train, validation = training_texts(shared_data(given.shared), seed=given.seed, share=given.share)
    print(f"{len(train.texts)} training texts, {len(validation.texts)} validation texts")
    settings = FitSettings(
        r=given.rank,
        alpha=2.0 * given.rank,
        n_epochs=given.epochs,
        batch_size=given.batch_size,
        learning_rate=given.learning_rate,
        max_tokens=given.max_tokens,
        n_evaluations=given.evaluations,
        seed=given.seed,
    )
    began = time.perf_counter()

    def report(kind: str, facts: dict[str, float]) -> None:
        seconds = time.perf_counter() - began
        if kind == "validation":
            print(f"{seconds:7.0f} s  update {facts['step']}: validation loss {facts['loss']:.4f}", flush=True)
        elif facts["step"] % 100 == 0:
            print(
                f"{seconds:7.0f} s  update {facts['step']}/{facts['total_steps']}: loss {facts['loss']:.4f}", flush=True
            )

    notes = {"data": DATA, "texts": dict(sorted(Counter(train.sources).items())), "share": given.share}
    fitted = fit(
        train.texts,
        train.targets,
        (validation.texts, validation.targets),
        weights=train.weights,
        settings=settings,
        name="minilm",
        label="toxic",
        notes=notes,
        on_event=report,
    )
    save_scorer(fitted, given.out)
    size = sum((given.out / name).stat().st_size for name in ("model.safetensors", "config.json"))
    print(f"calibration: slope {fitted.config.slope:.3f}, intercept {fitted.config.intercept:.3f}; {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
