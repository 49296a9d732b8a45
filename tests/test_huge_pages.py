"""Weights in huge pages: equal copies in separate memory, if the machine has such pages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import make_model

import dlf
from dlf.checkpoints import huge_pages
from dlf.checkpoints.huge_pages import HugePages, placement


def test_copies_are_equal_and_lie_on_pages() -> None:
    tensors = [torch.randn(37, 5), torch.arange(7, dtype=torch.uint8), torch.randn(3, 1000).bfloat16()]
    memory = HugePages(sum(tensor.nbytes for tensor in tensors), len(tensors))
    copies = [memory.copy(tensor) for tensor in tensors]
    del memory  # the tensors keep the memory alive
    for tensor, copy in zip(tensors, copies, strict=True):
        assert torch.equal(tensor, copy) and copy.dtype == tensor.dtype and copy.is_contiguous()
        assert copy.data_ptr() % 4096 == 0
        assert copy.data_ptr() != tensor.data_ptr()
    assert copies[0].data_ptr() % (2 << 20) == 0


def test_only_what_was_announced_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "LEAST_BYTES", 1)
    place = placement({"a": 40})
    tensor = torch.randn(2, 5)
    assert place("a", tensor).data_ptr() != tensor.data_ptr()
    assert place("b", tensor) is tensor
    vector = torch.randn(10)  # as a view of a file it would keep all of the file mapped
    assert place("b", vector).data_ptr() != vector.data_ptr()


def test_small_models_stay_where_they_are() -> None:
    tensor = torch.randn(10)
    assert placement({"a": tensor.nbytes})("a", tensor) is tensor


def test_too_little_memory_or_no_huge_pages_leaves_tensors_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"a": 1 << 60}
    assert HugePages.available_for(sizes) is None
    monkeypatch.setattr(huge_pages, "LEAST_BYTES", 1)
    monkeypatch.setattr(huge_pages, "MEMINFO", tmp_path / "missing")
    assert HugePages.available_for({"a": 40}) is None
    monkeypatch.undo()
    monkeypatch.setattr(huge_pages, "LEAST_BYTES", 1)
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    monkeypatch.setattr(huge_pages, "ENABLED", tmp_path / "enabled")
    assert HugePages.available_for({"a": 40}) is None


@pytest.mark.parametrize("weights", ["fp32", "bf16", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])  # qwen3's head is tied
def test_tokens_do_not_depend_on_where_weights_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, weights: str
) -> None:
    folder = make_model(tmp_path / family, family, seed=3)
    copied: list[str] = []
    original = HugePages.copy

    def copy(self: HugePages, tensor: torch.Tensor) -> torch.Tensor:
        copied.append(str(tensor.dtype))
        return original(self, tensor)

    monkeypatch.setattr(HugePages, "copy", copy)
    tokens = []
    for least in (1 << 40, 1):
        monkeypatch.setattr(huge_pages, "LEAST_BYTES", least)
        for _ in range(2):  # a quantized model is made once, then read from the cache
            with dlf.Engine(folder, weights=weights, threads=2) as engine:
                tokens.append(engine.generate("The quick brown", max_new_tokens=20, ignore_eos=True).tokens)
        assert bool(copied) == (least == 1)
    assert all(one == tokens[0] for one in tokens)
    linears = 3 * 7 + 1
    assert len(copied) == 2 * linears * (2 if weights.startswith("int") else 1)
