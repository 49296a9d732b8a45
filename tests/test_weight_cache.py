"""Quantized weights on disk: they are reused, and damaged files are noticed and rebuilt."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dlf
from dlf.checkpoints import content_hash, quantized, weight_cache
from dlf.checkpoints.folder import Folder
from dlf.checkpoints.precision import QUANTIZATIONS
from dlf.checkpoints.quantized import load_quantized
from dlf.checkpoints.source import Source
from dlf.checkpoints.weight_cache import cache_bytes, cache_folder, clear_cache
from dlf.errors import CheckpointError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the names of the models that were quantized, not read from the cache."""
    names: list[str] = []
    quantize = quantized._quantize

    def counted(source: Source, *rest: object) -> Iterator[tuple[str, torch.Tensor]]:
        names.append(source.path.name)
        return quantize(source, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(quantized, "_quantize", counted)
    return names


def load(folder: Path, width: str = "int8") -> dict[str, torch.Tensor]:
    """Load without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_quantized(Folder(folder), torch.float32, QUANTIZATIONS[width])


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.safetensors"))


@pytest.mark.parametrize("width", QUANTIZATIONS)
def test_found_again_bit_for_bit(
    folder: Path, cache: Path, built: list[str], width: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = load(folder, width), load(folder, width)
    assert built == ["model"] and same(first, second)
    monkeypatch.setenv("DLF_CACHE", "off")
    assert same(first, load(folder, width)) and len(built) == 2
    tiles = [name for name in first if name + "_scale" in first]
    assert len(tiles) == 2 * 7 + 1 and all(first[name].data_ptr() % 64 == 0 for name in tiles)
    if Path("/proc/self/maps").exists():
        assert str(entries(cache)[0]) in Path("/proc/self/maps").read_text()


def test_each_width_and_each_content_has_its_file(folder: Path, cache: Path, built: list[str]) -> None:
    load(folder, "int8")
    load(folder, "int4")
    assert len(entries(cache)) == 2
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    changed = load(folder, "int8")
    assert len(entries(cache)) == 3 and len(built) == 3
    shutil.copytree(folder, folder.with_name("copy"))  # equal content in another folder has the same file
    assert same(load(folder.with_name("copy")), changed) and len(built) == 3


def test_a_head_that_is_tied_later_is_another_source(folder: Path, cache: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    untied = load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    tied = load(folder)
    assert len(entries(cache)) == 2
    assert same(untied, tied)


def rewrite_header(content: bytes, **changes: str) -> bytes:
    """Change metadata and correct the checksum, as in a forged file or one of another version."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:end])
    header["__metadata__"] |= changes
    text = json.dumps(header, separators=(",", ":")).encode()
    path = Path(os.environ["DLF_CACHE"]) / "rewritten"
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[end:])
    at, size = weight_cache.CHECKSUM_AT, weight_cache.CHECKSUM_SIZE
    written = bytearray(path.read_bytes())
    written[at : at + size] = weight_cache._checksum(path)[1].encode()
    path.unlink()
    return bytes(written)


DAMAGES = {
    "empty": lambda content: b"",
    "garbage": lambda content: bytes(range(256)) * 40,
    "header length": lambda content: b"\xff" * 8 + content[8:],
    "short": lambda content: content[:50],
    "half": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "one byte more": lambda content: content + b"\0",
    "version": lambda content: rewrite_header(content, dlf="0"),
    "source": lambda content: rewrite_header(content, source="0" * 64),
    "width": lambda content: rewrite_header(content, width="int4"),
    "renamed tensor": lambda content: rewrite_header(
        content.replace(b"model.layers.0.mlp.up", b"model.layers.9.mlp.up")
    ),
    "no checksum": lambda content: content.replace(b'"checksum"', b'"checksam"'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_and_mended(folder: Path, cache: Path, built: list[str], damage: str) -> None:
    whole = {name: tensor.clone() for name, tensor in load(folder).items()}
    (path,) = entries(cache)
    content = path.read_bytes()
    other = cache / "other"
    other.write_bytes(DAMAGES[damage](content))  # type: ignore[no-untyped-call]
    os.replace(other, path)
    with pytest.warns(RuntimeWarning, match=rf"{path.name}.*quantizing again"):
        found = load_quantized(Folder(folder), torch.float32, QUANTIZATIONS["int8"])
    assert same(found, whole) and len(built) == 2
    assert path.read_bytes() == content and len(entries(cache)) == 1
    assert same(load(folder), whole) and len(built) == 2


def test_every_flipped_bit_is_noticed(folder: Path, cache: Path) -> None:
    load(folder)
    (path,) = entries(cache)
    content = path.read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0]
    layout = QUANTIZATIONS["int8"].layout(quantized.linear_shapes(Folder(folder).config))
    source = Folder(folder).content_hash(cache)
    place = weight_cache.CachedWeights(cache, source, "int8", layout)
    assert place._complaint() == ""
    random = torch.Generator().manual_seed(0)
    header = torch.randint(0, end, (150,), generator=random).tolist()
    data = torch.randint(end, len(content), (50,), generator=random).tolist()
    for at in [*range(120), *header, *data, end, len(content) - 1]:
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        path.write_bytes(flipped)
        assert place._complaint() == "is damaged", at


def test_what_is_no_file_is_not_opened(folder: Path, cache: Path, built: list[str]) -> None:
    whole = load(folder)
    (path,) = entries(cache)
    path.unlink()
    path.mkdir()  # a folder cannot be replaced
    with pytest.warns(RuntimeWarning) as caught:
        found = load_quantized(Folder(folder), torch.float32, QUANTIZATIONS["int8"])
    assert same(found, whole)
    assert ["is no file" in str(one.message) for one in caught] == [True, False]
    path.rmdir()
    target = cache.parent / "target"
    target.write_bytes(b"precious")
    path.symlink_to(target)
    with pytest.warns(RuntimeWarning, match="damaged"):
        load_quantized(Folder(folder), torch.float32, QUANTIZATIONS["int8"])
    assert target.read_bytes() == b"precious" and not path.is_symlink()  # the link is replaced, not its target
    os.replace(path, cache.parent / "moved")
    path.symlink_to(cache.parent / "moved")  # a link to a valid file is read
    assert same(load(folder), whole)
    assert len(built) == 4  # the first load, two tries for the folder, one for the link


def test_mapped_weights_outlive_their_file(folder: Path, cache: Path) -> None:
    first = load(folder)
    copies = {name: tensor.clone() for name, tensor in first.items()}
    assert cache_bytes(cache) > sum(tensor.nbytes for name, tensor in first.items() if "proj" in name)
    (cache / "mine-int8.safetensors").touch()
    assert clear_cache(cache) > 0 and cache_bytes(cache) == 0
    assert entries(cache) == [cache / "mine-int8.safetensors"]  # files of others stay
    assert same(first, copies)


@pytest.mark.parametrize("kind", ["no folder", "full"])
def test_a_cache_that_cannot_be_written(
    folder: Path, cache: Path, built: list[str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "no folder":
        cache.write_text("in the way")  # permissions would not stop root, as in containers
    else:
        monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.warns(RuntimeWarning, match=f"{cache}.*DLF_CACHE") as caught:
        found = load_quantized(Folder(folder), torch.float32, QUANTIZATIONS["int4"])
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    assert not cache.is_dir() or not list(cache.glob("*.safetensors")) + list(cache.glob(".*"))
    monkeypatch.setenv("DLF_CACHE", "off")
    assert same(found, load(folder, "int4"))


@pytest.mark.parametrize("name", [b"\xff\xfe", b"a" * 300, b"\xff" * 300], ids=["not UTF-8", "long", "both"])
def test_a_cache_that_cannot_be(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, name: bytes) -> None:
    place = Path(os.fsdecode(os.fsencode(cache) + b"/" + name))
    monkeypatch.setenv("DLF_CACHE", str(place))
    with pytest.warns(RuntimeWarning, match="cannot be kept.*DLF_CACHE"):
        found = load_quantized(Folder(folder), torch.float32, QUANTIZATIONS["int4"])
    with pytest.warns(RuntimeWarning, match="merged expert 'mixed' cannot be kept.*DLF_CACHE"):
        expert = dlf.TaskArithmetic(folder, {folder: 0.5}, name="mixed", weights="bf16")
        with dlf.Engine(folder, [expert], threads=1) as engine:
            assert engine.generate("a", max_new_tokens=2).tokens
    assert cache_bytes(place) == clear_cache(place) == 0
    monkeypatch.setenv("DLF_CACHE", "off")
    assert same(found, load(folder, "int4"))


def test_without_threads(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading works if the system starts no more threads."""
    first = load(folder)

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", refuse)
    assert same(first, load(folder))


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not stop root")
def test_a_read_only_cache_is_read(folder: Path, cache: Path, built: list[str]) -> None:
    load(folder)
    cache.chmod(0o500)
    load(folder)
    with pytest.warns(RuntimeWarning, match="kept"):
        load_quantized(Folder(folder), torch.float32, QUANTIZATIONS["int4"])
    cache.chmod(0o700)
    assert len(built) == 3


def test_values_that_are_not_finite_are_refused_and_leave_nothing(folder: Path, cache: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.down_proj.*not finite"):
        load(folder)
    assert not [path for path in cache.iterdir() if path.is_file()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_types_of_files(folder: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    narrow = load(folder)
    save_file({name: t.float() for name, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert same(load(folder), narrow)


def test_on_the_command_line_a_warning_is_one_line(folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"DLF_CACHE": os.devnull}
    command = [
        sys.executable,
        "-m",
        "dlf.cli",
        "generate",
        str(folder),
        "x",
        "--weights",
        "int8",
        "--max-new-tokens",
        "1",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0
    assert re.fullmatch(r"dlf: warning: [^\n]*/dev/null[^\n]*\n", done.stderr)


SCRIPT = """
import sys, torch
from pathlib import Path
from dlf.model import load_model
print(load_model(sys.argv[1], weights="int8").weights.nbytes)
"""


def test_processes_at_once(folder: Path, cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", SCRIPT, str(folder)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) for _ in range(3)]
    assert len({process.communicate()[0] for process in running}) == 1
    assert all(process.returncode == 0 for process in running)
    assert len(entries(cache)) == 1 and not list(cache.glob(".*"))


def test_what_a_killed_writer_left_is_removed(folder: Path, cache: Path) -> None:
    cache.mkdir()
    old, new = cache / ".dlf-old.tmp", cache / ".dlf-new.tmp"
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    load(folder)
    assert not old.exists() and new.exists()


def test_hashes_are_remembered_until_a_file_changes(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "model.safetensors"
    shards = {path: ["a"]}
    first = content_hash.content_hash(shards, cache)
    assert not (cache / content_hash.MEMORY).exists()  # the file is too new and may still change
    monkeypatch.setattr(content_hash, "SETTLED_SECONDS", 0.02)
    time.sleep(0.1)
    assert content_hash.content_hash(shards, cache) == first
    (note,) = (cache / content_hash.MEMORY).iterdir()
    digest = note.read_text()
    with monkeypatch.context() as patch:
        patch.setattr(content_hash.hashlib, "file_digest", None)
        assert content_hash.content_hash(shards, cache) == first
    assert content_hash.content_hash({path: ["b"]}, cache) != first

    for junk in ("", "x" * 64, digest[:-1], digest + "\n", "ü"):
        note.write_text(junk)
        assert content_hash.content_hash(shards, cache) == first

    # Changed in place, with its old modification time restored.
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\x80\x3f")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert content_hash.content_hash(shards, cache) != first


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path.home()
    for own, xdg, expected in [
        ("/a/b", "/x", Path("/a/b")),
        ("~/c", "/x", home / "c"),
        ("off", "/x", None),
        ("", "/x", Path("/x/dlf")),
        ("", "relative", home / ".cache" / "dlf"),
        ("", "", home / ".cache" / "dlf"),
    ]:
        monkeypatch.setenv("DLF_CACHE", own)
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
        assert cache_folder() == expected


MEASURE = """
import resource, sys
from dlf.model import load_model
load_model(sys.argv[1], weights=sys.argv[3])  # a tiny model, so that libraries are loaded
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load_model(sys.argv[2], weights=sys.argv[3])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, model.weights.nbytes)
"""


@pytest.mark.parametrize("width", ["int8", "int4"])
def test_peak_memory_while_quantizing(folder: Path, tmp_path: Path, width: str) -> None:
    """Peak memory, built and reused: the weights, and one large tensor with its tiles."""
    from bench.shapes import write_checkpoint

    big = write_checkpoint(tmp_path / "big", "135M", 0, torch.float32)
    head = 4 * 32000 * 576
    for _ in range(2):
        arguments = [sys.executable, "-c", MEASURE, str(folder), str(big), width]
        found = subprocess.run(arguments, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
        peak, weights = map(int, found.split())
        assert peak <= 1.15 * weights + head
