"""The memory that an engine reports."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
from models import write_adapter

import dlf
from dlf import _C

CUDA = {"device": "cuda"}
SMALL = {"max_batch": 2, "max_context": 64, "threads": 1, "prefix_cache_bytes": 1 << 20}


def make(family: dict[str, Path], **options: Any) -> dlf.Engine:
    experts = [dlf.Expert(family["expert-a"], family["base"]), dlf.Expert(family["expert-b"], family["base"])]
    return dlf.Engine(family["large"], experts, **SMALL | options)


def test_the_parts_on_the_cpu(family: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dlf"), make(family) as engine:
        memory = engine.memory
        models = engine._ensemble.models
    assert memory.total == sum(part.bytes for part in memory.parts) == memory.on("cpu")
    assert memory.by_part() == {
        "weights": sum(model.weights.nbytes for model in models),
        # One slot more than sequences, for scoring.
        "KV cache": sum(model.config.kv_bytes_per_token(4) * 64 * 3 for model in models),
        "prefix cache": 1 << 20,
    }
    weights = {part.model: part.bytes for part in memory.parts if part.name == "weights"}
    assert list(weights) == ["large", "expert-a", "base", "expert-b"]
    assert weights["large"] == models[0].weights.nbytes
    assert str(memory) in caplog.messages and "(large " in str(memory)


def test_adapters_and_names_that_are_alike(family: dict[str, Path], tmp_path: Path) -> None:
    twin = tmp_path / "large"
    shutil.copytree(family["base"], twin)
    adapter = write_adapter(tmp_path / "adapter", family["base"], seed=5)
    with dlf.Engine(family["large"], [dlf.Expert(family["base"], twin), dlf.Lora(twin, adapter)], **SMALL) as engine:
        parts = {(part.model, part.name): part.bytes for part in engine.memory.parts}
        [loaded] = [one for of_model in engine._ensemble.adapters for one in of_model]
    assert parts[str(twin), "adapters"] == loaded.nbytes
    assert (str(family["large"]), "weights") in parts and ("base", "weights") in parts


def test_an_expert_more(family: dict[str, Path]) -> None:
    with dlf.Engine(family["large"], base=family["base"], **SMALL) as engine:
        alone = engine.memory
        engine.add_expert(family["expert-a"])
        assert engine.memory.total > alone.total
        engine.remove_expert("expert-a")
        assert engine.memory == alone


@pytest.mark.cuda
def test_the_parts_on_a_card(family: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dlf"), make(family, **CUDA) as engine:
        memory = engine.memory
        models = engine._ensemble.models
        assert engine.generate("a prompt", max_new_tokens=2, ignore_eos=True).tokens
    found = memory.by_part("cuda:0")
    assert memory.total == memory.on("cuda:0") == sum(found.values())
    assert found["weights"] == sum(model.weights.nbytes for model in models)
    assert found["KV cache"] == sum(model.config.kv_bytes_per_token(4) * 64 * 2 for model in models)
    assert 0.5 * 2**20 < found["prefix cache"] <= 1 << 20  # in whole blocks
    assert set(found) == {
        *("weights", "KV cache", "activations", "logits", "workspace", "fusion and sampling", "prefix cache")
    }
    assert memory.cards == {"cuda:0": _C.cuda_devices()[0].name}
    assert str(memory) in caplog.messages and memory.cards["cuda:0"] in str(memory)
    with make(family, **CUDA | {"weights": "int8"}) as engine:
        assert engine.memory.by_part()["weights"] < found["weights"]
        assert engine.memory.by_part()["workspace"] > found["workspace"]  # for dequantized matrices


@pytest.mark.cuda
def test_each_card_has_its_own_sum(family: dict[str, Path]) -> None:
    if len(_C.cuda_devices()) < 2:
        pytest.skip("one CUDA device")
    with make(family, device_map={"large": "cuda:0", "experts": "cuda:1"}) as engine:
        memory = engine.memory
    assert set(memory.free) == {"cuda:0", "cuda:1"} and len(str(memory).splitlines()) == 2
    assert memory.total == memory.on("cuda:0") + memory.on("cuda:1")
    logits = [part.device for part in memory.parts if part.name == "logits" and part.model == "base"]
    assert sorted(logits) == ["cuda:0", "cuda:1"]  # computed on one, fused on the other


@pytest.mark.cuda
def test_what_is_refused_is_this_sum(family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with make(family, **CUDA) as engine:
        need = engine.memory.total
    real = _C.cuda_devices

    class Card:
        """The first device, with `free_bytes` of free memory."""

        free_bytes = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(real()[0], name)

    monkeypatch.setattr(_C, "cuda_devices", lambda: [Card()])
    Card.free_bytes = need
    make(family, **CUDA).close()
    Card.free_bytes = need - 1
    with pytest.raises(
        MemoryError, match=r"GiB free: weights .*\(large .*KV cache .*, prefix cache [0-9.]+ KiB, activations "
    ):
        make(family, **CUDA)


@pytest.mark.cuda
def test_an_engine_may_take_its_own_place(family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory of the present loop counts as free, since it is freed before the new loop is made."""
    from dlf import memory

    free = {}
    real = memory.plan_memory

    def plan(*arguments: Any, **options: Any) -> dlf.Memory:
        found = real(*arguments, **options)
        free[options.get("given_up") is not None] = found.free["cuda:0"], options.get("given_up")
        return found

    monkeypatch.setattr("dlf.ensemble.plan_memory", plan)
    devices = _C.cuda_devices()  # fixed here, since the free memory changes by itself
    monkeypatch.setattr(_C, "cuda_devices", lambda: devices)
    with dlf.Engine(family["large"], base=family["base"], **SMALL | CUDA) as engine:
        engine.add_expert(family["expert-a"])
    before, _ = free[False]
    after, given_up = free[True]
    certain = {name: size for name, size in given_up.by_part().items() if name != "workspace"}
    assert after - before == sum(certain.values()) > 0
