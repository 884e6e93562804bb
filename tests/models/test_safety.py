"""M1: hostile model folders are refused by file and key, no canary fires, and honest folders pass."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dialtune.errors import ModelError, ModelNotFoundError, UnsafeModelError
from dialtune.models.safety import check_model_folder, convert_command

CONFIG = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "d_model": 8}
CANARY = "fired"
MODEL, TOKEN, ADAPT = "config.json", "tokenizer_config.json", "adapter_config.json"
INDEX = "model.safetensors.index.json"


class _Payload:
    """Unpickling it creates the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def _honest(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file({"w": torch.zeros(2, 3), "v": torch.ones(4, dtype=torch.bfloat16)}, folder / "model.safetensors")
    return folder


def _pickle(name: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps({"w": _Payload(folder.parent / CANARY)}))

    return build


def _pickle_alone(name: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        _pickle(name)(folder)

    return build


def _json(name: str, **keys: Any) -> Callable[[Path], None]:
    """A config with these keys, and beside it the code that they would run."""

    def build(folder: Path) -> None:
        path = folder / name
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**old, **keys}))
        code = f"import os\nos.mkdir({str(folder.parent / CANARY)!r})\n"
        (folder / "evil.py").write_text(code + "class Model: ...\n")
        (folder / "custom_generate").mkdir(exist_ok=True)
        (folder / "custom_generate" / "generate.py").write_text(code)

    return build


def _text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def _link(name: str, target: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder.parent / "secret").mkdir()
        (folder.parent / "secret" / "vocab.txt").write_text("secret")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target.replace("ABSOLUTE", str(folder.parent)))

    return build


def _tensors(header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> Callable[[Path], None]:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    content = struct.pack("<Q", len(raw) if length is None else length) + raw + data
    return lambda folder: (folder / "model.safetensors").write_bytes(content) and None


def _at(begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [begin, end]}


def _both(first: Callable[[Path], None], second: Callable[[Path], None]) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        first(folder)
        second(folder)

    return build


def _archive(folder: Path) -> None:
    with zipfile.ZipFile(folder / "weights.zip", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(_Payload(folder.parent / CANARY)))


def _fifo(folder: Path) -> None:
    os.mkfifo(folder / "generation_config.json")  # a reader would wait for ever


def _trainer_state_alone(folder: Path) -> None:
    _pickle_alone("training_args.bin")(folder)


REMOTE = {"AutoModelForSeq2SeqLM": "evil.Model", "AutoConfig": "someone/repo--evil.Config"}
GLOBALS = "{{ cycler.__init__.__globals__.os.mkdir('fired') }}"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    # pickles
    "pickled weights": (_pickle_alone("pytorch_model.bin"), r"pytorch_model\.bin: a pickle can run code"),
    "pickled weights beside good ones": (_pickle("pytorch_model.bin"), r"pytorch_model\.bin.*delete the pickle"),
    "pickled shard": (_pickle("pytorch_model-00001-of-00002.bin"), r"00001-of-00002\.bin: a pickle"),
    "pickled adapter": (_pickle_alone("adapter_model.bin"), r"adapter_model\.bin: a pickle"),
    "pt": (_pickle("weights.pt"), r"weights\.pt: a pickle"),
    "pth": (_pickle("consolidated.00.pth"), r"\.pth: a pickle"),
    "pkl": (_pickle("tokenizer.pkl"), r"tokenizer\.pkl: a pickle"),
    "pickle": (_pickle("vocab.pickle"), r"vocab\.pickle: a pickle"),
    "ckpt": (_pickle("last.ckpt"), r"last\.ckpt: a pickle"),
    "joblib": (_pickle("head.joblib"), r"head\.joblib: a pickle"),
    "capital letters": (_pickle("PYTORCH_MODEL.BIN"), r"PYTORCH_MODEL\.BIN: a pickle"),
    "in a subfolder": (_pickle("unet/diffusion.bin"), r"unet/diffusion\.bin: a pickle"),
    "trainer state as the only weights": (_trainer_state_alone, r"training_args\.bin: a pickle"),
    "pickle named safetensors": (_pickle("model.safetensors"), r"model\.safetensors: not safetensors"),
    "archive": (_archive, r"weights\.zip: an archive"),
    # configs that name code
    "auto_map": (_json(MODEL, auto_map=REMOTE), r"config\.json: key 'auto_map' names code"),
    "nested auto_map": (_json(MODEL, text_config={"a": [{"auto_map": REMOTE}]}), r"'text_config\.a\.0\.auto_map'"),
    "tokenizer auto_map": (_json(TOKEN, auto_map=REMOTE), r"tokenizer_config\.json: key 'auto_map'"),
    "processor auto_map": (_json("processor_config.json", auto_map=REMOTE), r"processor_config\.json: key 'auto_map'"),
    "auto_map in another config": (_json("config.4.0.0.json", auto_map=REMOTE), r"4\.0\.0\.json: key 'auto_map'"),
    "custom_generate": (_json("generation_config.json", custom_generate="x/y"), r"key 'custom_generate' names"),
    "attention internals": (
        _json(MODEL, _attn_implementation_internal="evil/kernel"),
        r"key '_attn_implementation_internal' is not accepted from a model's files: .*CVE-2026-4372",
    ),
    "expert internals": (_json(MODEL, _experts_implementation_internal="evil/k"), r"'_experts_implementation_int"),
    "own trust": (_json(MODEL, trust_remote_code=True), r"key 'trust_remote_code' is not accepted"),
    "adapter's own trust": (_json(ADAPT, trust_remote_code=True), r"adapter_config\.json: key 'trust_rem"),
    "attention kernel": (_json(MODEL, _attn_implementation="evil/kernel@main:f"), r"'_attn_implementation' asks"),
    "nested kernel": (_json(MODEL, attn_implementation={"text": "evil/k"}), r"'attn_implementation\.text' asks"),
    "kernel map": (_json(MODEL, kernel_config={"Linear": "evil/k:L"}), r"key 'kernel_config' is not accepted"),
    "use_kernels": (_json(MODEL, use_kernels=True), r"key 'use_kernels' is not accepted"),
    "peft import": (_json(ADAPT, auto_mapping={"parent_library": "evil"}), r"'auto_mapping\.parent_library'"),
    "peft import by prefix": (_json(ADAPT, a={"parent_library": "transformers_evil"}), r"makes peft import"),
    "megatron import": (_json(ADAPT, megatron_core="evil"), r"key 'megatron_core' makes peft import"),
    "megatron switch": (_json(ADAPT, megatron_config={"x": 1}), r"key 'megatron_config'"),
    "peft cache": (_json(ADAPT, corda_config={"cache_file": "c.pt"}), r"'corda_config\.cache_file'.*unpickles"),
    "remote base": (_json(ADAPT, base_model_name_or_path="https://evil/m"), r"'base_model_name_or_path' is an"),
    # templates
    "template in the tokenizer": (_json(TOKEN, chat_template=GLOBALS), r"'chat_template' reaches .*__init__"),
    "named template": (
        _json(TOKEN, chat_template=[{"name": "tool", "template": GLOBALS}]),
        r"'chat_template\.0\.template' reaches for python internals",
    ),
    "template file": (_text("chat_template.jinja", GLOBALS), r"chat_template\.jinja: its text reaches for"),
    "template json": (_json("chat_template.json", chat_template=GLOBALS), r"chat_template\.json: key 'chat_template'"),
    "huge template": (_text("chat_template.jinja", "a" * 1_100_000), r"1100000 characters; the limit is 1048576"),
    # paths and links
    "vocabulary above": (_json(TOKEN, vocab_file="../secret/vocab.txt"), r"'vocab_file' names a path outside"),
    "absolute vocabulary": (_json(TOKEN, tokenizer_file="/etc/passwd"), r"'tokenizer_file' names a path"),
    "home": (_json(TOKEN, merges_file="~/.ssh/id_rsa"), r"'merges_file' names a path"),
    "windows path": (_json(TOKEN, vocab_file="C:\\secret"), r"'vocab_file' names a path"),
    "address as file": (_json(TOKEN, vocab_file="https://evil/v"), r"'vocab_file' names a path"),
    "config elsewhere": (_json(MODEL, configuration_files=["config.4.json", "../c.json"]), r"'configuration_files\.1'"),
    "shard above": (
        _both(_text("../m.safetensors", ""), _json(INDEX, weight_map={"w": "../m.safetensors"})),
        r"'weight_map' names '\.\./m",
    ),
    "shard that is a pickle": (
        _both(_pickle("evil.txt"), _json(INDEX, weight_map={"w": "evil.txt"})),
        r"'weight_map' names 'evil\.txt'; only safetensors",
    ),
    "index without a map": (_text(INDEX, "[]"), r"index\.json: no index of shards"),
    "link above": (_link("vocab.txt", "../secret/vocab.txt"), r"vocab\.txt: a link that leaves the model folder"),
    "absolute link": (_link("config.json", "ABSOLUTE/secret/vocab.txt"), r"config\.json: a link that leaves"),
    "linked folder": (_link("onnx", "../secret"), r"onnx: a link that leaves"),
    "dangling link": (_link("vocab.txt", "nothing"), r"vocab\.txt: a link to nothing"),
    "pipe": (_fifo, r"generation_config\.json: neither a file nor a folder"),
    # json
    "deep json": (_text(MODEL, "[" * 200_000), r"config\.json: not readable as JSON \(RecursionError"),
    "not json": (_text(ADAPT, "{'a': 1}"), r"adapter_config\.json: not readable as JSON"),
    # safetensors
    "huge header": (_tensors(b"{}", length=2**63), r"its header claims 9223372036854775808 bytes"),
    "header over the limit": (_tensors(b" " * (2**24 + 1), b""), r"claims 16777217 bytes.*limit is 16 MiB"),
    "empty file": (lambda folder: (folder / "model.safetensors").write_bytes(b"") and None, r"not safetensors"),
    "trailing bytes": (_tensors({"w": _at(0, 8)}, b"\0" * 9), r"need 8 bytes of data and the file has 9"),
    "offsets outside": (_tensors({"w": _at(0, 4096)}), r"need 4096 bytes of data and the file has 8"),
    "negative offsets": (_tensors({"w": _at(-8, 8)}), r"tensor data at -8\.\.8 overlaps"),
    "backward offsets": (_tensors({"w": _at(8, 0)}), r"tensor data at 8\.\.0"),
    "overlap": (_tensors({"a": _at(0, 8), "b": _at(4, 8)}), r"tensor data at 4\.\.8 overlaps"),
    "gap": (_tensors({"a": _at(0, 4), "b": _at(6, 8)}), r"tensor data at 6\.\.8 .* leaves a gap after byte 4"),
    "float offsets": (_tensors({"w": _at(0.0, 8.0)}), r"data_offsets are not whole numbers"),
    "one name twice": (_tensors(b'{"w": 1, "w": 2}'), r"a name occurs twice"),
    "header of another shape": (_tensors(b"[1, 2]"), r"its header is no table of tensors"),
    "deep header": (_tensors(b'{"w":' + b"[" * 200_000), r"no table of tensors \(RecursionError"),
}  # fmt: skip


@pytest.fixture(params=HOSTILE, ids=lambda name: str(name).replace(" ", "-"))
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    build, message = HOSTILE[request.param]
    folder = _honest(tmp_path / "model")
    build(folder)
    return folder, message


def test_there_are_at_least_forty_hostile_folders() -> None:
    assert len(HOSTILE) >= 40


def test_m1_a_hostile_folder_is_refused_by_name_and_no_canary_fires(hostile: tuple[Path, str]) -> None:
    folder, message = hostile
    with pytest.raises(UnsafeModelError, match=message) as caught:
        check_model_folder(folder)
    assert str(caught.value).count("\n") <= 2, "at most three lines"
    assert str(folder) in str(caught.value)
    assert not (folder.parent / CANARY).exists()


def test_m1_load_model_refuses_it_before_anything_is_opened(hostile: tuple[Path, str]) -> None:
    from dialtune.models.loading import load_model

    folder, _ = hostile
    with pytest.raises(ModelError):
        load_model(str(folder))
    assert not (folder.parent / CANARY).exists()


def test_the_canary_is_alive(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    _pickle("pytorch_model.bin")(folder)
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert (tmp_path / CANARY).is_dir()


def test_an_honest_folder_passes(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    check_model_folder(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 32}, "weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "vocab.txt").symlink_to("config.json")
    check_model_folder(folder)


def test_what_published_models_really_contain_passes(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    # google/flan-t5-base, google/mt5-base: paths of their makers' machines that no loader reads; null and false keys
    tokenizer = {
        "special_tokens_map_file": "/home/someone/.cache/huggingface/hub/special_tokens_map.json",
        "name_or_path": "/scratch/checkpoints/t5",
        "tokenizer_file": None,
        "auto_map": None,
        "added_tokens_decoder": {"0": {"content": "../"}, "1": {"content": "/etc"}},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    config = {**CONFIG, "trust_remote_code": False, "kernel_size": 3, "_attn_implementation": "sdpa", "auto_map": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "data_config.json").write_text("[]")  # sentence-transformers
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}__{{ m.role }}{% endfor %}")
    adapter = {
        "base_model_name_or_path": "/home/me/models/flan",
        "megatron_core": "megatron.core",
        "megatron_config": None,
        "auto_mapping": {"base_model_class": "T5Model", "parent_library": "transformers.models.t5.modeling_t5"},
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter))
    check_model_folder(folder)


def test_trainer_state_beside_safetensors_is_never_opened_and_so_accepted(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_0.pth"):
        _pickle(name)(folder)
    check_model_folder(folder)


def test_a_hub_cache_snapshot_passes_and_links_out_of_the_cache_do_not(tmp_path: Path) -> None:
    cache = tmp_path / "models--google--tiny"
    honest = _honest(tmp_path / "upload")
    snapshot = cache / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for file in honest.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(cache / "blobs" / digest)
        (snapshot / file.name).symlink_to(f"../../blobs/{digest}")
    check_model_folder(snapshot)
    (tmp_path / "vocab.txt").write_text("")
    (snapshot / "vocab.txt").symlink_to("../../../vocab.txt")
    with pytest.raises(UnsafeModelError, match=r"vocab\.txt: a link that leaves"):
        check_model_folder(snapshot)


def test_the_real_tokenizers_pass(shared_data: Path) -> None:
    folders = [path for path in (shared_data / "tokenizers").iterdir() if path.is_dir()]
    assert len(folders) >= 2
    for folder in folders:
        check_model_folder(folder)


def test_remote_code_keys_pass_only_when_this_run_asks(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    _json("config.json", auto_map=REMOTE)(folder)
    check_model_folder(folder, trust_remote_code=True)
    _json("config.json", _attn_implementation_internal="evil/kernel")(folder)
    with pytest.raises(UnsafeModelError, match="_attn_implementation_internal"):
        check_model_folder(folder, trust_remote_code=True)


def test_a_pickle_needs_both_the_flag_and_its_own_hash(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    _pickle_alone("pytorch_model.bin")(folder)
    digest = hashlib.sha256((folder / "pytorch_model.bin").read_bytes()).hexdigest()
    check_model_folder(folder, allow_pickle=True, sha256=digest)
    check_model_folder(folder, allow_pickle=True, sha256=["0" * 64, digest.upper()])
    with pytest.raises(UnsafeModelError, match=r"only safetensors are loaded"):
        check_model_folder(folder, sha256=digest)
    for wrong in (None, (), "0" * 64):
        with pytest.raises(UnsafeModelError, match=rf"this one has {digest}, which was not given"):
            check_model_folder(folder, allow_pickle=True, sha256=wrong)


def test_the_advice_for_a_pickle_works_also_for_tied_weights(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    shared = torch.arange(6.0).view(2, 3)
    torch.save({"shared": shared, "lm_head": shared}, folder / "pytorch_model.bin")
    with pytest.raises(UnsafeModelError) as caught:
        check_model_folder(folder)
    command = str(caught.value).splitlines()[1].strip()
    assert command == convert_command(folder / "pytorch_model.bin")
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    assert torch.equal(load_file(folder / "model.safetensors")["lm_head"], shared)
    (folder / "pytorch_model.bin").unlink()
    check_model_folder(folder)


def test_many_problems_are_counted_in_three_lines(tmp_path: Path) -> None:
    folder = _honest(tmp_path / "model")
    for number in range(5):
        _pickle(f"shard-{number}.bin")(folder)
    with pytest.raises(UnsafeModelError, match=r"shard-0\.bin: a pickle.*\n.*4 more such files or keys"):
        check_model_folder(folder)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dialtune.models import safety

    folder = _honest(tmp_path / "model")
    monkeypatch.setattr(safety, "MAX_TENSORS", 1)
    with pytest.raises(UnsafeModelError, match=r"2 tensors; the limit is 1"):
        check_model_folder(folder)


def test_a_folder_that_is_not_there_is_another_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=re.escape(f"{tmp_path / 'x'}: no such model folder")):
        check_model_folder(tmp_path / "x")


def test_the_base_of_an_adapter_is_checked_too(tmp_path: Path) -> None:
    from dialtune.models.loading import load_model

    base = _honest(tmp_path / "base")
    _pickle_alone("pytorch_model.bin")(base)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(base)})
    )
    save_file({"w": torch.zeros(1)}, adapter / "adapter_model.safetensors")
    with pytest.raises(UnsafeModelError, match=r"base/pytorch_model\.bin: a pickle"):
        load_model(str(adapter))
    assert not (tmp_path / CANARY).exists()
