"""Hermetic fixtures: tiny models built from config, tokenizers trained in the process, a home of the test's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tiny import BUILDERS, make_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is not a failure: no test asserts wall-clock time.
settings.register_profile("dialtune", deadline=None)
settings.load_profile("dialtune")

REPOSITORY = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("DIALTUNE_CACHE") or Path.home() / ".cache" / "dialtune")
SHARED = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real corpora; a test that needs them says so by asking for this."""
    if not SHARED.is_dir():
        pytest.skip("the shared corpora are not beside this checkout (../shared/data)")
    return SHARED


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the developer's own caches, except the converted packaged model, which is read-only."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DIALTUNE_CACHE", str(CACHE))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    for name in ("WANDB_PROJECT", "WANDB_MODE", "HF_TOKEN", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads, and a forked child must not wait for those of its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=sorted(BUILDERS))
def model(request: pytest.FixtureRequest) -> Any:
    """Every family in turn."""
    return make_model(request.param)


@pytest.fixture
def saved_model(tmp_path: Path) -> Callable[[str], Path]:
    """kind → a folder with a tiny saved model, as a user would have one."""

    def save(kind: str, **kwargs: Any) -> Path:
        folder = tmp_path / f"tiny-{kind}"
        folder.mkdir()
        make_model(kind, **kwargs).save(folder)
        return folder

    return save
