"""Recipes, models, prompts and results at addresses of fsspec, here in memory."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import dlf
from dlf import batch
from dlf.checkpoints import remote
from dlf.checkpoints.hub import resolve, resolve_adapter
from dlf.checkpoints.remote import fetch_file, fetch_folder, is_url
from dlf.checkpoints.weight_cache import cache_bytes, clear_cache
from dlf.recipe import RecipeError, load_recipe
from dlf.recipe.check import check_recipe


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store() -> Iterator[Any]:
    found = fsspec.filesystem("memory")
    yield found
    found.rm("/", recursive=True)


class Reads:
    """Names of the files that were read from the store."""

    def __init__(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: list[str] = []
        opened = type(store).open

        def open_(system: Any, path: str, mode: str = "rb", **options: Any) -> Any:
            if mode == "rb":
                self.names.append(path.rsplit("/", 1)[1])
            return opened(system, path, mode, **options)

        monkeypatch.setattr(type(store), "open", open_)


@pytest.fixture
def reads(store: Any, monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(store, monkeypatch)


def test_what_an_address_is() -> None:
    assert all(map(is_url, ("s3://bucket/a", "gs://b/c.gguf", "memory://x", "file:///a")))
    assert not any(map(is_url, ("org/model", "org/model@main", "/a/b", "./a", "C:/a", "s3:/a", "", Path("s3://a/b"))))


def test_a_batch_whose_files_are_all_remote(family: dict[str, Path], store: Any, tmp_path: Path) -> None:
    for name in ("large", "base", "expert-a"):
        store.put(str(family[name]), f"/house/models/{name}", recursive=True)
    recipe = {"large": "models/large", "base": "memory://house/models/base", "experts": [{"model": "models/expert-a"}]}
    recipe["experts"].append({"examples_file": "shots.jsonl", "name": "shots"})  # type: ignore[attr-defined]
    store.pipe_file("/house/shots.jsonl", b'{"question": "what", "answer": "sum"}\n')
    store.pipe_file("/house/pair.yaml", json.dumps(recipe).encode())
    rows = [{"id": i, "prompt": f"what is {i}"} for i in range(5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    store.pipe_file("/house/p.jsonl", lines.encode())
    options: dict[str, Any] = {"threads": 1, "max_context": 96, "rows_per_part": 2, "defaults": {"max_tokens": 4}}

    def run(output: str) -> batch.BatchReport:
        return batch.run("memory://house/pair.yaml", "memory://house/p.jsonl", output, **options)

    assert not check_recipe(load_recipe("memory://house/pair.yaml")).problems
    assert run("memory://house/out").answered == 5
    run(str(tmp_path / "here"))
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert len(names) == 4
    assert [path.rsplit("/", 1)[1] for path in sorted(store.ls("/house/out", detail=False))] == names
    assert all(store.cat(f"/house/out/{name}") == (tmp_path / "here" / name).read_bytes() for name in names)
    store.rm("/house/out/part-000001.jsonl")
    assert run("memory://house/out").answered == 2
    assert store.cat("/house/out/part-000001.jsonl") == (tmp_path / "here" / "part-000001.jsonl").read_bytes()
    store.pipe_file("/house/p.jsonl", lines.encode() * 2)
    with pytest.raises(dlf.OptionError, match="the prompts have another content"):
        run("memory://house/out")


def test_files_are_fetched_once_and_anew_when_they_change(store: Any, reads: Reads, cache: Path) -> None:
    store.pipe({"/m/config.json": b"{}", "/m/model.safetensors": b"a" * 100, "/m/other.bin": b"x" * 100})
    store.pipe_file("/m/additional_chat_templates/x.jinja", b"t")
    first = resolve("memory://m", weights=False)
    assert sorted(reads.names) == ["config.json", "x.jinja"] and not (first / "model.safetensors").exists()
    assert (first / "additional_chat_templates" / "x.jinja").read_bytes() == b"t"
    assert resolve("memory://m/") == first and (first / "model.safetensors").read_bytes() == b"a" * 100
    assert resolve("memory://m") == first and len(reads.names) == 3
    store.pipe_file("/m/model.safetensors", b"b" * 100)
    second = resolve("memory://m")
    assert second != first and (second / "model.safetensors").read_bytes() == b"b" * 100
    assert (first / "model.safetensors").read_bytes() == b"a" * 100  # it may be mapped
    assert cache_bytes(cache) == clear_cache(cache) > 200 and not cache_bytes(cache)


def test_only_what_is_read_is_fetched(store: Any, reads: Reads) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    store.pipe_file("/m/model.safetensors.index.json", json.dumps(index).encode())
    store.pipe({f"/m/model-{i}.safetensors": b"x" for i in range(4)})
    resolve("memory://m")
    assert sorted(reads.names) == ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
    reads.names.clear()
    store.pipe({f"/g/x-0000{i}-of-00002.gguf": b"x" for i in (1, 2)} | {"/g/y.gguf": b"x", "/g/z-[1].gguf": b"z"})
    assert resolve("memory://g/x-00001-of-00002.gguf").read_bytes() == b"x" and len(reads.names) == 2
    assert resolve("memory://g/z-[1].gguf").read_bytes() == b"z" and len(reads.names) == 3
    reads.names.clear()
    store.pipe({"/a/adapter_config.json": b"{}", "/a/adapter_model.safetensors": b"x", "/a/optimizer.pt": b"x"})
    resolve_adapter("memory://a")
    assert sorted(reads.names) == ["adapter_config.json", "adapter_model.safetensors"]


def test_processes_that_want_the_same_wait_for_each_other(store: Any, reads: Reads) -> None:
    store.pipe({f"/m/{i}.txt": b"x" * 1000 for i in range(20)})
    threads = [threading.Thread(target=fetch_folder, args=("memory://m", ["*.txt"])) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(reads.names) == 20


def test_errors_name_the_address(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("memory://nowhere/model", "memory://nowhere/x.gguf"):
        with pytest.raises(FileNotFoundError, match="memory://nowhere"):
            resolve(name)
    with pytest.raises(FileNotFoundError, match="nonsense://a/b"):
        resolve("nonsense://a/b")
    store.pipe_file("/m/large.yaml", b"#" * 2000)
    with pytest.raises(dlf.CheckpointError, match=r"memory://m/large\.yaml is larger than"):
        fetch_file("memory://m/large.yaml", 1000)
    store.pipe_file("/m/wrong.yaml", b"large: no/where\nexperts: 3\n")
    with pytest.raises(RecipeError, match=r"wrong\.yaml:2: experts"):
        load_recipe("memory://m/wrong.yaml")
    (tmp_path / "here.txt").write_text("x")
    assert fetch_file(f"file://{tmp_path}/here.txt") == tmp_path / "here.txt"
    with pytest.raises(dlf.CheckpointError, match="changed while it was fetched"):
        remote._fetch(store, "/m/large.yaml", tmp_path / "copy", 1999, "memory://m/large.yaml")
    assert not (tmp_path / "copy").exists() and not list(tmp_path.glob(".*"))
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(OSError, match="has less room"):
        fetch_file("memory://m/large.yaml")
    monkeypatch.setenv("DLF_CACHE", "off")
    with pytest.raises(OSError, match="DLF_CACHE"):
        fetch_file("memory://m/large.yaml")
