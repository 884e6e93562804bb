"""Freed memory stays in the process where glibc can do it, and nothing breaks where it cannot."""

from __future__ import annotations

import ctypes
import platform
import sys
from types import SimpleNamespace

import pytest

from dialtune.trainers import memory
from dialtune.trainers.memory import keep_freed_memory


class _Libc:
    """Notes the settings; answers as mallopt does, 1 for success."""

    def __init__(self, answer: int = 1) -> None:
        self.answer = answer
        self.settings: dict[int, int] = {}

    def mallopt(self, name: int, value: int) -> int:
        self.settings[name] = value
        return self.answer


@pytest.fixture
def linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc")
def test_glibc_takes_both_settings():
    assert keep_freed_memory() is True


def test_large_blocks_are_neither_mapped_afresh_nor_given_back(linux, monkeypatch):
    libc = _Libc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    assert keep_freed_memory() is True
    # malloc.h: M_TRIM_THRESHOLD -1, M_MMAP_THRESHOLD -3.
    assert libc.settings == {-3: 2**30, -1: 2**31 - 1}


def test_a_libc_that_refuses_is_reported(linux, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: _Libc(answer=0))
    assert keep_freed_memory() is False


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_left_alone(monkeypatch, system):
    def unexpected(name):
        raise AssertionError(f"{name} was opened")

    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(ctypes, "CDLL", unexpected)
    assert keep_freed_memory() is False


def test_a_linux_without_glibc_is_left_alone(linux, monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert keep_freed_memory() is False
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # musl under that name: no mallopt
    assert keep_freed_memory() is False


def test_settling_trims_only_once_memory_has_grown_by_a_fifth(monkeypatch):
    sizes = iter([100, 119, 121, 130])  # first; small growth; growth; growth
    trimmed = []
    library = SimpleNamespace(malloc_trim=trimmed.append)
    monkeypatch.setattr(memory, "_resident_bytes", lambda: next(sizes))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: library)
    assert memory.settle(0) == 100
    assert memory.settle(100) == 100
    assert trimmed == []
    assert memory.settle(100) == 100
    assert trimmed == [0]
    assert memory.settle(100) == 100
    assert trimmed == [0, 0]


def test_the_resident_size_is_that_of_a_python_process():
    assert 10e6 < memory._resident_bytes() < 64e9
