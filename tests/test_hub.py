"""Only the files that are read are fetched from the hub. The hub is a folder that records the requests."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects
from models import make_model, write_adapter
from safetensors.torch import load_file, save_file

import dlf
from dlf.checkpoints.hub import label_of, resolve, resolve_adapter

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]


class Hub:
    """Repositories in a folder, and the files fetched from them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.fetched: dict[str, set[str]] = {}
        self.revisions: list[str | None] = []

    def snapshot_download(self, name: str, revision: str | None, allow_patterns: Sequence[str]) -> str:
        source, snapshot = self.root / name, self.root / "snapshots" / name / COMMIT
        if not source.is_dir():
            raise OSError("no network")
        self.revisions.append(revision)
        files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=list(allow_patterns)):
            self.fetched.setdefault(name, set()).add(file)
            (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, snapshot / file)
        return str(snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", found.snapshot_download)
    monkeypatch.chdir(tmp_path)  # no folder here has the name of a repository
    return found


def clutter(folder: Path) -> None:
    """Write files that repositories have beside a checkpoint: other formats and precisions, training states, code."""
    for name in (
        "consolidated.safetensors",
        "model.fp32.safetensors",
        "checkpoint-500/model.safetensors",
        "checkpoint-500/config.json",
        "original/params.json",
        "onnx/model.onnx",
        "pytorch_model.bin",
        "optimizer.pt",
        "modeling_own.py",
        "trainer_state.json",
        "README.md",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")


def shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_one_file(hub: Hub) -> None:
    clutter(make_model(hub.root / "org/name", "qwen2"))
    folder = resolve("org/name")
    assert hub.fetched["org/name"] == {*SMALL, "model.safetensors"}
    assert hub.revisions == [None]
    with dlf.Engine("org/name", threads=1) as engine:
        assert engine.generate("The quick", max_new_tokens=2).tokens
    assert sorted(path.name for path in folder.iterdir()) == sorted([*SMALL, "model.safetensors"])


def test_several_files_are_those_that_the_index_names_of_the_same_commit(hub: Hub) -> None:
    repository = make_model(hub.root / "org/name", "qwen2")
    shard(repository)
    clutter(repository)
    (repository / "model-00001-of-00007.safetensors").write_text("of another edition")
    resolve("org/name@refs/pr/1")
    parts = {f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    assert hub.fetched["org/name"] == {*SMALL, "model.safetensors.index.json", *parts}
    assert hub.revisions == ["refs/pr/1", COMMIT]


def test_more_files_than_patterns_at_once(hub: Hub) -> None:
    repository = make_model(hub.root / "org/name", "qwen2")
    (repository / "model.safetensors").unlink()
    parts = [f"part-{number}.safetensors" for number in range(450)]
    for part in parts:
        (repository / part).write_text("")
    index = repository / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {part: part for part in parts}}))
    resolve("org/name")
    assert hub.fetched["org/name"] == {*SMALL, index.name, *parts}
    assert hub.revisions == [None, COMMIT, COMMIT, COMMIT]
    index.write_text(json.dumps({"weight_map": {str(number): f"{number}.safetensors" for number in range(4097)}}))
    with pytest.raises(dlf.CheckpointError, match="names over 4096 files"):
        resolve("org/name")


def test_an_index_that_leads_elsewhere_fetches_nothing(hub: Hub) -> None:
    repository = make_model(hub.root / "org/name", "qwen2")
    (repository / "model.safetensors").unlink()
    (repository / "model.safetensors.index.json").write_text('{"weight_map": {"a": "*.safetensors"}}')
    clutter(repository)
    with pytest.raises(dlf.CheckpointError, match="no plain name"):
        resolve("org/name")
    assert not any(name.endswith(".safetensors") for name in hub.fetched["org/name"])


def test_further_chat_templates(hub: Hub) -> None:
    repository = make_model(hub.root / "org/name", "qwen2")
    (repository / "additional_chat_templates").mkdir()
    (repository / "additional_chat_templates/tool_use.jinja").write_text("{{ messages }}")
    (repository / "chat_template.jinja").write_text("{{ messages }}")
    resolve("org/name", weights=False)
    assert hub.fetched["org/name"] == {*SMALL, "chat_template.jinja", "additional_chat_templates/tool_use.jinja"}


def test_without_weights(hub: Hub) -> None:
    clutter(make_model(hub.root / "org/name", "qwen2"))
    resolve("org/name", weights=False)
    assert hub.fetched["org/name"] == set(SMALL)


def test_an_adapter(hub: Hub) -> None:
    base = make_model(hub.root / "org/base", "qwen2")
    write_adapter(hub.root / "org/adapter", base, seed=1)
    clutter(hub.root / "org/adapter")
    resolve_adapter("org/adapter")
    assert hub.fetched["org/adapter"] == {"adapter_config.json", "adapter_model.safetensors"}


def test_every_model_takes_a_revision(hub: Hub) -> None:
    base = make_model(hub.root / "org/base", "qwen2")
    for name in ("large", "expert", "drafter"):
        shutil.copytree(base, hub.root / "org" / name)
    write_adapter(hub.root / "org/adapter", base, seed=1)
    experts = [
        dlf.Expert("org/expert@e1"),
        dlf.Lora(None, "org/adapter@a1"),
        dlf.TaskArithmetic("org/base@b1", {"org/expert@e2": 0.5}),
    ]
    with dlf.Engine("org/large@l1", experts, base="org/base@b1", drafter="org/drafter@d1", threads=1) as engine:
        assert engine.experts == ["expert@e1", "adapter@a1", "task_arithmetic(org/expert@e2)"]
    assert set(hub.revisions) == {"l1", "e1", "a1", "b1", "e2", "d1"}


def test_an_adapter_given_as_a_model_is_called_one(hub: Hub) -> None:
    base = make_model(hub.root / "org/base", "qwen2")
    write_adapter(hub.root / "org/adapter", base, seed=1)
    with pytest.raises(dlf.CheckpointError, match=r"is an adapter.*dlf\.Lora.*adapter:"):
        dlf.Engine("org/base", [dlf.Expert("org/adapter", base="org/base")])
    assert hub.fetched["org/adapter"] == {"adapter_config.json"}


@pytest.mark.parametrize(
    "name", ["org/name@", "org/name@a b", "org/name@../x", "org/name@/x", "@x", "name@x", "a" * 5000, "a\0b", "\udcff"]
)
def test_names_that_are_neither_folder_nor_id(hub: Hub, name: str) -> None:
    with pytest.raises(FileNotFoundError, match="no folder"):
        resolve(name)
    assert not hub.revisions


def test_a_revision_that_is_not_there_is_named(hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=r"org/none@v2.*no network.*connection"):
        resolve("org/none@v2")


def test_labels() -> None:
    assert label_of("org/name") == "name" and label_of("org/name@refs/pr/1") == "name@refs/pr/1"
    assert label_of("/a/b/") == "b" and label_of(Path("x/y@z")) == "y@z"
