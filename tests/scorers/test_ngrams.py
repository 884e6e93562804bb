"""The n-gram juror: features by hand, the formula, files that belong together, and the packaged weights' work."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from sklearn.metrics import roc_auc_score

from dialtune.data.corpus import blunt_summary, of_kind, packaged
from dialtune.errors import ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.scorers.base import probabilities
from dialtune.scorers.ngrams import (
    BLANK_LOGIT,
    BUCKETS,
    FORMAT,
    NGRAMS,
    NgramModel,
    NgramScorer,
    bucket,
    buckets,
    load_ngrams,
    words,
)

# Features


def test_a_bucket_is_the_low_bits_of_the_standard_crc() -> None:
    assert bucket("123456789") == 0xCBF43926 % 2**18  # the check value of CRC-32 (ISO-HDLC)


def test_features_of_one_word_by_hand() -> None:
    features = ["w ab", "c <a", "c ab", "c b>", "c <ab", "c ab>", "c <ab>"]  # too short for a run of five
    assert buckets("ab").tolist() == sorted(zlib.crc32(feature.encode()) % 2**18 for feature in features)


def test_neighbours_are_a_feature_of_their_own_and_order_counts() -> None:
    alone = set(buckets("shut").tolist()) | set(buckets("up").tolist())
    assert set(buckets("shut up").tolist()) - alone == {zlib.crc32(b"b shut up") % 2**18}
    assert set(buckets("up shut").tolist()) - alone == {zlib.crc32(b"b up shut") % 2**18}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("?! ... --", []),
        ("You IDIOT!", ["you", "idiot"]),
        ("fuuuuuck f**k $hit sh!t a$$", ["fuuck", "f**k", "hit", "sh!t", "a$$"]),
        ("ｉｄｉｏｔ", ["idiot"]),  # full width
        ("#Person1# thanks Person 2, person3 and personal", ["thanks", "and", "personal"]),
        ("in 1994, 2,600 times", ["in", "0", "0", "0", "times"]),
        ("don't half-wit", ["don't", "half-wit"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@given(st.text())
def test_features_of_any_text_are_sorted_distinct_buckets(text: str) -> None:
    found = buckets(text)
    assert (np.diff(found) > 0).all()
    assert ((found >= 0) & (found < BUCKETS)).all()
    assert (len(found) == 0) == (words(text) == [])


@given(st.text(alphabet="abc XYZ!", max_size=20))
def test_case_and_outer_marks_make_no_difference(text: str) -> None:
    assert (buckets(text) == buckets(f"  {text.upper()} ...")).all()


# The formula


def made(weights: dict[str, float], intercept: float = 0.0) -> NgramScorer:
    table = np.zeros(BUCKETS, dtype=np.float32)
    for feature, weight in weights.items():
        table[zlib.crc32(feature.encode()) % BUCKETS] = weight
    return NgramScorer(NgramModel("made", table, intercept, "00000000"))


def test_log_odds_are_the_sum_of_weights_over_the_root_of_the_count() -> None:
    scorer = made({"w ab": 3.0, "c <ab": 0.5, "w zz": 100.0}, intercept=-1.0)
    assert scorer.logits(["ab"])[0] == pytest.approx(3.5 / math.sqrt(7) - 1.0, abs=1e-12)


def test_a_repeated_word_counts_once() -> None:
    scorer = made({"w ab": 3.0})
    # Saying it twice adds one feature, the pair; saying it again adds none.
    assert scorer.logits(["ab ab"])[0] == pytest.approx(3.0 / math.sqrt(8))
    assert scorer.logits(["ab ab ab"])[0] == scorer.logits(["ab ab"])[0]


def test_a_text_without_a_word_is_as_clean_as_can_be() -> None:
    assert made({"w ab": 3.0}, intercept=2.0).logits(["", " \n", "?!"]).tolist() == [BLANK_LOGIT] * 3


def test_no_text_gives_no_value() -> None:
    assert made({}).logits([]).shape == (0,)


# Files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A scorer's folder as the training script writes it."""
    weights = np.zeros(BUCKETS, dtype=np.float16)
    weights[bucket("w ab")] = 2.5
    save_file({"weights": weights}, tmp_path / "model.safetensors")
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    config = {"format": FORMAT, "name": "tiny", "intercept": -0.5, "weights_sha256": digest}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def change(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **values}))


def test_a_saved_scorer_opens_as_it_was(folder: Path) -> None:
    scorer = load_ngrams(folder)
    assert scorer.logits(["ab"])[0] == pytest.approx(2.5 / math.sqrt(7) - 0.5)
    assert scorer.settings()["scorer"] == "tiny"


def test_the_digest_covers_calibration_too(folder: Path) -> None:
    before = load_ngrams(folder).settings()["sha"]
    change(folder, intercept=-0.25)
    load_ngrams.cache_clear()
    assert load_ngrams(folder).settings()["sha"] != before


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ModelNotFoundError, match=f"holds no {file}"):
        load_ngrams(folder)


@pytest.mark.parametrize("values", [{"weights_sha256": "0" * 64}, {"format": "dialtune.ngrams/2"}])
def test_files_that_do_not_belong_together_are_refused(folder: Path, values: dict[str, str]) -> None:
    change(folder, **values)
    with pytest.raises(ModelError, match=r"do not belong together, or are of another version than dialtune\.ngrams/1"):
        load_ngrams(folder)


def test_a_table_of_another_size_is_refused(folder: Path) -> None:
    save_file({"weights": np.zeros(64, dtype=np.float16)}, folder / "model.safetensors")
    change(folder, weights_sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    with pytest.raises(ModelError, match="do not belong together"):
        load_ngrams(folder)


def test_a_pickle_in_the_folder_is_refused(folder: Path) -> None:
    (folder / "model.pkl").write_bytes(b"")
    with pytest.raises(UnsafeModelError):
        load_ngrams(folder)


def test_no_folder_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        load_ngrams(tmp_path / "nowhere")


# The packaged weights


def test_the_packaged_files_are_small_plain_and_described() -> None:
    assert sorted(path.name for path in NGRAMS.iterdir()) == ["CARD.md", "config.json", "model.safetensors"]
    assert (NGRAMS / "model.safetensors").stat().st_size <= 2**20
    assert load_file(NGRAMS / "model.safetensors")["weights"].dtype == np.float16


def test_the_card_quotes_the_numbers_of_config_json() -> None:
    card = (NGRAMS / "CARD.md").read_text(encoding="utf-8")
    measured = json.loads((NGRAMS / "config.json").read_text(encoding="utf-8"))["measured"]
    assert len(measured["auc"]) >= 5
    for row in measured["auc"]:
        assert f"| {row['set']} | {row['n']:,} | {row['auc']:.3f} [{row['low']:.3f}, {row['high']:.3f}] |" in card


@pytest.mark.parametrize("text", ["You are a stupid idiot.", "She calls him a pathetic liar and a moron."])
def test_plain_insults_are_toxic(text: str) -> None:
    assert probabilities(load_ngrams(), [text])[0] > 0.5


@pytest.mark.parametrize(
    "text",
    [
        "They agree to meet at ten on Monday and to bring the papers.",
        "#Person1# asks #Person2# for a room with a view. #Person2# offers one for 90 euros.",
        "The doctor says that the operation went well.",
    ],
)
def test_plain_summaries_are_clean(text: str) -> None:
    assert probabilities(load_ngrams(), [text])[0] < 0.5


def test_it_tells_blunt_summaries_from_civil_ones() -> None:
    heated = of_kind(packaged("validation"), "heated")
    texts = [blunt_summary(example) or "" for example in heated] + [example.references[0] for example in heated]
    labels = [1] * len(heated) + [0] * len(heated)
    assert roc_auc_score(labels, load_ngrams().logits(texts)) >= 0.9
