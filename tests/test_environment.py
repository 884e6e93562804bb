"""What is found out about the machine."""

from __future__ import annotations

import json
import os
from importlib import metadata

from dialtune import environment as env


def test_versions_come_from_metadata_and_python_is_first():
    found = env.versions()
    assert next(iter(found)) == "python"
    assert found["numpy"] == metadata.version("numpy")


def test_a_package_that_is_not_there_is_left_out(monkeypatch):
    monkeypatch.setattr(env, "PACKAGES", ("numpy", "no-such-package-x"))
    assert list(env.versions()) == ["python", "numpy"]


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
