"""Tensors from safetensors files: whole, in shards, converted, mapped, damaged."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from models import FAMILIES, make_model
from safetensors.torch import load_file, save_file

from dlf.checkpoint import check_finite, expected_tensors, load_tensors, resolve
from dlf.config import ModelConfig, read_config
from dlf.errors import CheckpointError


@pytest.fixture
def config(folder: Path) -> ModelConfig:
    return read_config(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_what_transformers_wrote(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    config = read_config(make_model(tmp_path, family))
    tensors = load_tensors(tmp_path, config, dtype)
    written = load_file(tmp_path / "model.safetensors")
    assert set(expected_tensors(config)) == set(written)
    assert set(tensors) == set(written) | {"lm_head.weight"}
    for name, tensor in written.items():
        assert torch.equal(tensors[name], tensor.to(dtype)), name
    if config.tie_word_embeddings:
        assert tensors["lm_head.weight"] is tensors["model.embed_tokens.weight"]


@pytest.mark.parametrize("settings", [{"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_biases_are_expected(tmp_path: Path, settings: dict[str, bool]) -> None:
    config = read_config(make_model(tmp_path, "llama", **settings))
    assert set(expected_tensors(config)) == set(load_file(tmp_path / "model.safetensors"))


def in_mapping_of(path: Path, address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            return line.endswith(str(path))
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_equal_dtype_is_mapped_not_copied(folder: Path, config: ModelConfig) -> None:
    path = folder / "model.safetensors"
    assert all(in_mapping_of(path, t.data_ptr()) for t in load_tensors(folder, config, torch.float32).values())
    assert not any(in_mapping_of(path, t.data_ptr()) for t in load_tensors(folder, config, torch.bfloat16).values())


MEASURE = """
import resource, sys, torch
import dlf
from dlf.model import load_model
load_model(sys.argv[1])  # a tiny one, so that libraries are there
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_model(sys.argv[2], sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, model.weights.nbytes)
"""


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_peak_memory_while_loading(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Mapped pages count; in another type the file's pages must have gone before the next ones come."""
    from bench.shapes import write_checkpoint

    big = write_checkpoint(tmp_path / "big", "135M", 0)
    arguments = [sys.executable, "-c", MEASURE, str(folder), str(big), dtype]
    found = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    peak, weights = map(int, found.split())
    assert weights > 250e6
    assert peak <= 1.15 * weights


@pytest.mark.parametrize("padding", range(9))
def test_numbers_lie_on_their_natural_borders(folder: Path, config: ModelConfig, padding: int) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    expected = {name: tensor.clone() for name, tensor in load_tensors(folder, config, torch.float32).items()}
    path.write_bytes(struct.pack("<Q", end - 8 + padding) + content[8:end] + b" " * padding + content[end:])
    tensors = load_tensors(folder, config, torch.float32)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert all(tensor.data_ptr() % 4 == 0 for tensor in tensors.values())


def shard(folder: Path) -> dict[str, str]:
    """Split model.safetensors in two and return the index's weight_map."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_shards(folder: Path, config: ModelConfig) -> None:
    whole = {name: tensor.clone() for name, tensor in load_tensors(folder, config, torch.float32).items()}
    shard(folder)
    parts = load_tensors(folder, config, torch.float32)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "..", "", 3, {}]
)
def test_shard_names_stay_in_the_folder(folder: Path, config: ModelConfig, file: object) -> None:
    weight_map = shard(folder)
    write_index(folder, weight_map | {"model.norm.weight": file})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_tensors(folder, config, torch.float32)


def test_index_without_tensor_or_map(folder: Path, config: ModelConfig) -> None:
    weight_map = shard(folder)
    del weight_map["model.norm.weight"]
    write_index(folder, weight_map)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_tensors(folder, config, torch.float32)
    write_index(folder, [])
    with pytest.raises(CheckpointError, match="weight_map"):
        load_tensors(folder, config, torch.float32)


def test_missing_shard(folder: Path, config: ModelConfig) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of"):
        load_tensors(folder, config, torch.float32)


def rewrite(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors | ({} if tensor is None else {name: tensor}), folder / "model.safetensors")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (None, "no tensor"),
        (torch.zeros(65), r"shape \[65\].*\[64\]"),
        (torch.zeros(64, 1), "shape"),
        (torch.zeros(64, dtype=torch.int32), "I32"),
        (torch.zeros(64, dtype=torch.float8_e4m3fn), "F8_E4M3"),
        (torch.full((64,), torch.nan), "not finite"),
        (torch.cat([torch.zeros(63), torch.tensor([torch.inf])]), "not finite"),
    ],
    ids=["missing", "longer", "matrix", "int32", "float8", "nan", "inf"],
)
def test_bad_tensor_is_named(folder: Path, config: ModelConfig, tensor: torch.Tensor | None, words: str) -> None:
    rewrite(folder, "model.norm.weight", tensor)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_tensors(folder, config, torch.float32)
    assert "model.norm.weight" in str(caught.value)


def test_float16_overflow_is_named_with_the_remedy(folder: Path, config: ModelConfig) -> None:
    rewrite(folder, "model.norm.weight", torch.full((64,), 1e6))
    load_tensors(folder, config, torch.bfloat16)
    with pytest.raises(CheckpointError, match="bfloat16"):
        load_tensors(folder, config, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 7, 64, 100_003])
def test_check_finite_finds_one_bad_value_anywhere(size: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0] = torch.finfo(dtype).max  # a sum would overflow here
    check_finite(tensor, "t", Path("f"))
    for place in {0, size // 2, size - 1}:
        for value in (torch.nan, torch.inf, -torch.inf):
            bad = tensor.clone()
            bad[place] = value
            with pytest.raises(CheckpointError, match="'t'"):
                check_finite(bad, "t", Path("f"))


def test_extra_tensors_are_ignored(folder: Path, config: ModelConfig) -> None:
    tensors = load_file(folder / "model.safetensors")
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3), "other": torch.zeros(2, dtype=torch.int8)}
    save_file(tensors | extra, folder / "model.safetensors")
    assert not extra.keys() & load_tensors(folder, config, torch.float32).keys()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_file(folder: Path, config: ModelConfig, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_tensors(folder, config, torch.float32)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickle_is_not_opened(folder: Path, config: ModelConfig, file: str) -> None:
    (folder / "model.safetensors").rename(folder / file)
    with pytest.raises(CheckpointError, match="safetensors"):
        load_tensors(folder, config, torch.float32)


def test_no_weights_at_all(folder: Path, config: ModelConfig) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_tensors(folder, config, torch.float32)


def test_dtype_of_the_user_is_checked(folder: Path, config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="int8"):
        load_tensors(folder, config, torch.int8)


def test_resolve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    for name in ("no-such-folder", "../no/such", "/no/such", folder / "config.json", "a/b/c", Path("no/such")):
        with pytest.raises(FileNotFoundError, match="folder"):
            resolve(name)

    def offline(name: str, **_: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"no network.*connection"):
        resolve("organisation/name")


def test_resolve_fetches_no_code_and_no_pickle(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, allow_patterns: list[str]) -> str:
        assert (name, allow_patterns) == ("organisation/name", ["*.safetensors", "*.json", "*.jinja"])
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve("organisation/name") == folder


def fuzz(folder: Path, rounds: int) -> None:
    """Mutate the header, its bytes and its meaning; every outcome is a set of tensors or one of our errors."""
    random = np.random.default_rng(0)
    path = folder / "model.safetensors"
    original = path.read_bytes()
    config = read_config(folder)
    end = 8 + struct.unpack("<Q", original[:8])[0]
    header = json.loads(original[8:end])
    junk = [None, -1, 0, 2**63, 2**70, 1.5, "", "F16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "F4", "C64", [], [64], {}]
    read = 0
    for _ in range(rounds):
        content = bytearray(original)
        if random.random() < 0.5:
            for _ in range(random.integers(1, 4)):
                content[int(random.integers(0 if random.random() < 0.1 else 8, end + 1000))] = random.integers(256)
        else:
            # A header that is well-formed but means something else, its length and padding right.
            values = {name: dict(entry) for name, entry in header.items()}
            name = str(random.choice(list(values)))
            if random.random() < 0.2:  # a float16 matrix of twice the rows, say: the number of bytes still agrees
                shape = values[name].get("shape", [1])
                values[name] |= {"dtype": "F16", "shape": [2 * shape[0], *shape[1:]]}
            elif random.random() < 0.5:
                values[name][str(random.choice(["dtype", "shape", "data_offsets"]))] = junk[random.integers(len(junk))]
            elif random.random() < 0.5:
                values[name + "x"] = values.pop(name)
            else:
                values[name] |= {"dtype": str(random.choice(["I32", "U32", "F32"]))}
            text = json.dumps(values).encode() + b" " * int(random.integers(0, 9))  # so that tensors lie unaligned
            content = bytearray(struct.pack("<Q", len(text)) + text + original[end:])
        path.write_bytes(content)
        try:
            tensors = load_tensors(folder, config, torch.float32)
            assert tensors.keys() >= expected_tensors(config).keys()
            read += 1
        except CheckpointError:
            continue
    assert 0.02 * rounds < read < 0.9 * rounds


def test_fuzz(folder: Path) -> None:
    fuzz(folder, 300)


@pytest.mark.slow
def test_fuzz_long(folder: Path) -> None:
    fuzz(folder, 10_000)
