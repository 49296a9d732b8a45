"""Placement of models on devices, as far as any machine can test it."""

from __future__ import annotations

from pathlib import Path

import pytest

import dlf
from dlf import _C
from dlf.devices import Placement


def test_the_cpu_is_the_default(family: dict[str, Path]) -> None:
    assert Placement.of("cpu") == Placement()
    assert not Placement().cuda
    assert Placement.of("cpu", {"large": "cpu"}).devices(3) == []
    assert Placement((0,), 1).devices(3) == [0, 1, 1]
    assert Placement.named("cuda:7", {"experts": "cuda:300"}) == Placement((7,), 300)  # devices of another machine
    Placement((0,), 0).check_dtype("float16")
    with pytest.raises(ValueError, match="float16 is for CUDA"):
        Placement().check_dtype("float16")


def test_a_large_model_on_several_devices() -> None:
    split = Placement.named("cpu", {"large": ["cuda:1", "cuda:0"], "experts": "cuda:2"})
    assert split == Placement((1, 0), 2)
    assert (split.devices(3), split.split) == ([1, 2, 2], [0])
    assert Placement.named("cpu", {"large": ["cuda:1", "cuda:0"]}) == Placement((1, 0), 1)  # experts on the first one
    assert Placement.named("cuda:3", {"large": ["cuda:1", "cuda"]}) == Placement((1, 0), 3)
    assert Placement.named("cpu", {"large": ["cpu"]}) == Placement()


@pytest.mark.parametrize(
    "places, message",
    [
        ({"large": ["cuda:0", "cuda:0"]}, "split over cuda:0, cuda:0: name each once"),
        ({"large": ["cpu", "cpu"]}, "name each once"),
        ({"large": ["cuda:0", "cpu"]}, "all of them on the CPU or all on CUDA"),
        ({"large": []}, "names 0 devices for 'large'"),
        ({"large": [f"cuda:{i}" for i in range(9)]}, "names 9 devices for 'large'"),
        ({"large": "cuda:0", "experts": ["cuda:0", "cuda:1"]}, "names 2 devices for 'experts'"),
    ],
)
def test_impossible_splits_are_refused(places: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement.named("cpu", places)


def test_batches_have_a_bound_on_cuda() -> None:
    Placement().check_batch(1000)
    Placement((0,), 0).check_batch(256)
    with pytest.raises(ValueError, match="max_batch is 257; on CUDA it can be at most 256"):
        Placement((0,), 0).check_batch(257)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:x", "mps", ""])
def test_unknown_devices_are_refused(device: str) -> None:
    with pytest.raises(ValueError, match="it takes 'cpu', 'cuda'"):
        Placement.of(device)


def test_maps_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="'small'; its keys are 'large' and 'experts'"):
        Placement.of("cpu", {"small": "cuda:0"})
    with pytest.raises(ValueError, match="all of them on the CPU or all on CUDA"):
        Placement.of("cpu", {"large": "cpu", "experts": "cuda:1"})
    with pytest.raises(TypeError, match="a device is a string"):
        Placement.of(0)  # type: ignore[arg-type]


@pytest.mark.skipif(bool(_C.cuda_version), reason="this build has CUDA")
def test_a_build_without_cuda_says_so(family: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="this build of dlf has no CUDA"):
        dlf.Engine(family["large"], device="cuda")


@pytest.mark.skipif(
    not _C.cuda_version or bool(_C.cuda_devices()), reason="for a build with CUDA, on a machine without"
)
def test_a_machine_without_a_device_says_so(family: dict[str, Path]) -> None:
    with pytest.raises(RuntimeError, match="no CUDA device is there"):
        dlf.Engine(family["large"], device="cuda")


def test_float16_is_for_cuda(family: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="float16 is for CUDA devices"):
        dlf.Engine(family["large"], dtype="float16")
    with pytest.raises(ValueError, match="float16 is for CUDA devices"):
        dlf.Engine(family["large"], weights="fp16")
