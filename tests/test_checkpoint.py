"""Tensors from safetensors files: whole, in shards, converted, mapped, damaged."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from models import FAMILIES, make_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import dlf
from dlf.checkpoints.checkpoint import check_finite, load_tensors
from dlf.checkpoints.config import ModelConfig, read_config
from dlf.checkpoints.folder import Folder
from dlf.checkpoints.hub import resolve
from dlf.checkpoints.precision import QUANTIZATIONS
from dlf.checkpoints.quantized import load_quantized
from dlf.cli.inspect import describe
from dlf.errors import CheckpointError
from dlf.model import load_model


@pytest.fixture
def config(folder: Path) -> ModelConfig:
    return read_config(folder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_what_transformers_wrote(tmp_path: Path, family: str, dtype: torch.dtype) -> None:
    source = Folder(make_model(tmp_path, family))
    config, tensors = source.config, load_tensors(source, dtype)
    written = load_file(tmp_path / "model.safetensors")
    assert set(config.tensors()) == set(written)
    assert set(tensors) == {part.name for part in config.parts.values()} | {config.head}
    for part in config.parts.values():
        assert torch.equal(tensors[part.name], part.take(written[part.tensor]).to(dtype)), part.name
    if config.tie_word_embeddings:
        assert tensors[config.head] is tensors[config.embedding]


@pytest.mark.parametrize("settings", [{"attention_bias": True}, {"mlp_bias": True}], ids=str)
def test_biases_are_expected(tmp_path: Path, settings: dict[str, bool]) -> None:
    config = read_config(make_model(tmp_path, "llama", **settings))
    assert set(config.tensors()) == set(load_file(tmp_path / "model.safetensors"))


def in_mapping_of(path: Path, address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(number, 16) for number in line.split()[0].split("-"))
        if begin <= address < end:
            return line.endswith(str(path))
    return False


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_equal_dtype_is_mapped_not_copied(folder: Path, config: ModelConfig) -> None:
    path = folder / "model.safetensors"
    assert all(in_mapping_of(path, t.data_ptr()) for t in load_tensors(Folder(folder), torch.float32).values())
    assert not any(in_mapping_of(path, t.data_ptr()) for t in load_tensors(Folder(folder), torch.bfloat16).values())


MEASURE = """
import resource, sys, torch
import dlf
from dlf.model import load_model
load_model(sys.argv[1])  # a tiny model, so that libraries are loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_model(sys.argv[2], sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, model.weights.nbytes)
"""


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_peak_memory_while_loading(folder: Path, tmp_path: Path, dtype: str) -> None:
    """Mapped pages count: when a type is converted, pages that were read must be released before the next are read."""
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
    expected = {name: tensor.clone() for name, tensor in load_tensors(Folder(folder), torch.float32).items()}
    path.write_bytes(struct.pack("<Q", end - 8 + padding) + content[8:end] + b" " * padding + content[end:])
    tensors = load_tensors(Folder(folder), torch.float32)
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
    whole = {name: tensor.clone() for name, tensor in load_tensors(Folder(folder), torch.float32).items()}
    shard(folder)
    parts = load_tensors(Folder(folder), torch.float32)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "model.bin", "..", "", 3, {}]
)
def test_shard_names_stay_in_the_folder(folder: Path, config: ModelConfig, file: object) -> None:
    weight_map = shard(folder)
    write_index(folder, weight_map | {"model.norm.weight": file})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_tensors(Folder(folder), torch.float32)


def test_index_without_tensor_or_map(folder: Path, config: ModelConfig) -> None:
    weight_map = shard(folder)
    del weight_map["model.norm.weight"]
    write_index(folder, weight_map)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        load_tensors(Folder(folder), torch.float32)
    write_index(folder, [])
    with pytest.raises(CheckpointError, match="weight_map"):
        load_tensors(Folder(folder), torch.float32)


def test_missing_shard(folder: Path, config: ModelConfig) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of"):
        load_tensors(Folder(folder), torch.float32)


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
        load_tensors(Folder(folder), torch.float32)
    assert "model.norm.weight" in str(caught.value)


def test_float16_overflow_is_named_with_the_remedy(folder: Path, config: ModelConfig) -> None:
    rewrite(folder, "model.norm.weight", torch.full((64,), 1e6))
    load_tensors(Folder(folder), torch.bfloat16)
    with pytest.raises(CheckpointError, match="bfloat16"):
        load_tensors(Folder(folder), torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 7, 64, 100_003])
def test_check_finite_finds_one_bad_value_anywhere(size: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor[0] = torch.finfo(dtype).max  # a sum would overflow
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
    assert not extra.keys() & load_tensors(Folder(folder), torch.float32).keys()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_truncated_file(folder: Path, config: ModelConfig, keep: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_tensors(Folder(folder), torch.float32)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickle_is_not_opened(folder: Path, config: ModelConfig, file: str) -> None:
    (folder / "model.safetensors").rename(folder / file)
    with pytest.raises(CheckpointError, match="safetensors"):
        load_tensors(Folder(folder), torch.float32)


def test_no_weights_at_all(folder: Path, config: ModelConfig) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        load_tensors(Folder(folder), torch.float32)


def test_dtype_of_the_user_is_checked(folder: Path, config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="int8"):
        load_tensors(Folder(folder), torch.int8)


def test_resolve(folder: Path) -> None:
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    for name in ("no-such-folder", "../no/such", "/no/such", folder / "config.json", "a/b/c", Path("no/such")):
        with pytest.raises(FileNotFoundError, match="folder"):
            resolve(name)


def add(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    save_file(load_file(folder / "model.safetensors") | own, folder / "model.safetensors")


def alter(folder: Path, **values: object) -> None:
    """Change config.json; None removes a key."""
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps({key: one for key, one in config.items() if one is not None}))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_head_of_its_own_is_used_whatever_the_config_says(folder: Path, config: ModelConfig, sharded: bool) -> None:
    """Even if only the last value differs, in the sign of a zero."""
    assert not config.tie_word_embeddings
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    embedding[-1, -1] = 0.0
    add(folder, {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding})
    alter(folder, tie_word_embeddings=True)
    assert Folder(folder).config.tie_word_embeddings
    add(folder, {"lm_head.weight": embedding.double()})
    assert not Folder(folder).config.tie_word_embeddings
    embedding[-1, -1] = -0.0
    add(folder, {"lm_head.weight": embedding})
    if sharded:
        shard(folder)
    found = Folder(folder).config
    assert not found.tie_word_embeddings
    assert load_tensors(Folder(folder), torch.float32)["lm_head.weight"][-1, -1].signbit()


def test_a_head_that_is_missing_is_an_error(folder: Path) -> None:
    rewrite(folder, "lm_head.weight", None)
    with pytest.raises(CheckpointError, match=r"no tensor 'lm_head\.weight'"):
        load_model(folder)
    alter(folder, tie_word_embeddings=True)
    load_model(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_dtype_that_is_not_given_is_that_of_the_file(folder: Path, dtype: str) -> None:
    kind = getattr(torch, dtype)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(kind) for name, tensor in tensors.items()}, folder / "model.safetensors")
    alter(folder, dtype=None)
    assert Folder(folder).config.dtype == dtype
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype
    assert theirs == kind
    on_the_cpu = "float32" if dtype == "float16" else dtype
    assert load_model(folder).weights.dtype == on_the_cpu
    found = describe(str(folder))
    assert found["kv_cache_bytes_per_token"] == 2 * 2 * 2 * 16 * getattr(torch, on_the_cpu).itemsize
    alter(folder, dtype="float32")
    assert load_model(folder).weights.dtype == "float32"


def test_tensors_that_nobody_asks_for_are_a_warning(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    zeros = torch.zeros(3)
    add(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": zeros, "model.embed_tokens.position_ids": zeros.int()})
    load_model(folder)
    assert not recwarn.list
    extra = {f"model.layers.{layer}.mlp.up_proj.weight": zeros for layer in range(2, 9)}
    add(folder, extra | {"\x1b[31m": zeros})
    with pytest.warns(RuntimeWarning, match=r"has 8 tensors .* not used: '\\x1b\[31m', 'model\.layers\.2.*, \.\.\.;"):
        load_model(folder)
    shard(folder)
    with pytest.warns(RuntimeWarning, match="has 8 tensors"):
        load_model(folder)


def test_work_is_linear_in_the_number_of_tensors(
    folder: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever reads all tensors opens a file a few times, not once for each tensor."""
    opened: list[Path] = []

    def counted(path: Path, **options: str) -> object:
        opened.append(path)
        return safe_open(path, **options)

    path, source = folder / "model.safetensors", Folder(folder)
    assert source.config.tensors() == config.tensors()
    monkeypatch.setattr("dlf.checkpoints.tensor_file.safe_open", counted)
    load_tensors(source, torch.float32)
    assert opened.count(path) <= 2
    load_quantized(source, torch.float32, QUANTIZATIONS["int8"])
    assert opened.count(path) <= 5
    opened.clear()
    dlf.TaskArithmetic(folder, {folder: 0.5}).save(tmp_path / "merged")
    assert opened.count(path) <= 4


LITTLE_MEMORY = """
import resource, sys
from dlf.model import load_model
used = int(open("/proc/self/statm").read().split()[0]) * 4096
for megabytes in (2, 100, 400):  # nothing, less than the file, less than its numbers as float32
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))
    try:
        load_model(sys.argv[1], "float32")
    except MemoryError as error:
        print("MemoryError")
"""


def test_too_little_memory_is_no_damaged_file(tmp_path: Path) -> None:
    from bench.shapes import write_checkpoint

    folder = write_checkpoint(tmp_path / "model", "135M", 0)
    command = [sys.executable, "-c", LITTLE_MEMORY, str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert found.stdout.split() == ["MemoryError"] * 3, found.stderr


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "model.safetensors.index.json"])
def test_a_git_lfs_pointer_is_called_one(folder: Path, file: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 268435456\n"
    if file.endswith("index.json"):
        shard(folder)
    (folder / file).write_text(pointer)
    with pytest.raises(CheckpointError, match=rf"{file} is a Git LFS pointer.*git lfs pull"):
        load_model(folder)


def test_a_byte_order_mark_is_skipped(folder: Path) -> None:
    shard(folder)
    for name in ("config.json", "generation_config.json", "model.safetensors.index.json"):
        text = (folder / name).read_text().replace("\n", "\r\n")
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    load_model(folder)


def test_files_that_cannot_be_read(folder: Path, config: ModelConfig) -> None:
    """Each raises one of our errors, and none waits for a writer of a pipe."""
    path = folder / "generation_config.json"
    path.unlink()
    os.mkfifo(path)
    read_config(folder)  # ignores it
    for spoil in (os.mkfifo, os.mkdir, lambda path: os.symlink(path, path), lambda path: os.symlink("x" * 300, path)):
        for name in ("config.json", "model.safetensors.index.json"):
            copy = Path(shutil.copytree(folder, folder.with_name("copy"), ignore=lambda *_: [path.name]))
            (copy / "model.safetensors").unlink()
            (copy / name).unlink(missing_ok=True)
            spoil(copy / name)
            with pytest.raises((CheckpointError, FileNotFoundError), match=name):
                load_model(copy)
            shutil.rmtree(copy)
    for name in ("elsewhere", "added_tokens.json", "chat_template.jinja", "additional_chat_templates"):
        os.symlink("x" * 300, folder / name)
    load_model(folder)
    assert describe(str(folder))["layers"] == len(config.spec.layers)
    weight_map = shard(folder)
    write_index(folder, weight_map | {"model.norm.weight": "a" * 300 + ".safetensors"})
    with pytest.raises(CheckpointError, match="no plain name"):
        load_tensors(Folder(folder), torch.float32)
    write_index(folder, weight_map | {"model.norm.weight": "\u00e9" * 240 + ".safetensors"})
    with pytest.raises(FileNotFoundError, match="is missing"):
        load_tensors(Folder(folder), torch.float32)


def test_a_folder_whose_name_is_not_utf8(folder: Path) -> None:
    other = Path(os.fsdecode(os.fsencode(folder) + b"\xff"))
    folder.rename(other)
    with pytest.raises(CheckpointError, match="no name in UTF-8"):
        load_model(other)


def fuzz(folder: Path, rounds: int) -> None:
    """Mutate the header, by bytes and by values; every outcome is a set of tensors or one of our errors."""
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
            # A well-formed header with another meaning; its length is right.
            values = {name: dict(entry) for name, entry in header.items()}
            name = str(random.choice(list(values)))
            if random.random() < 0.2:  # float16 with twice the rows: the number of bytes stays right
                shape = values[name].get("shape", [1])
                values[name] |= {"dtype": "F16", "shape": [2 * shape[0], *shape[1:]]}
            elif random.random() < 0.5:
                values[name][str(random.choice(["dtype", "shape", "data_offsets"]))] = junk[random.integers(len(junk))]
            elif random.random() < 0.5:
                values[name + "x"] = values.pop(name)
            else:
                values[name] |= {"dtype": str(random.choice(["I32", "U32", "F32"]))}
            text = json.dumps(values).encode() + b" " * int(random.integers(0, 9))  # so that tensors are unaligned
            content = bytearray(struct.pack("<Q", len(text)) + text + original[end:])
        path.write_bytes(content)
        try:
            tensors = load_tensors(Folder(folder), torch.float32)
            assert tensors.keys() >= config.tensors().keys()
            read += 1
        except CheckpointError:
            continue
    assert 0.02 * rounds < read < 0.9 * rounds


@pytest.mark.parametrize("rounds", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_fuzz(folder: Path, rounds: int) -> None:
    fuzz(folder, rounds)
