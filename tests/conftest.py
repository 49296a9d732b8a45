"""Shared fixtures: tiny random models of each family, written once."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from models import finetune, make_model

from dlf import _C

# For bench/; last, because in the repository the sources of dlf would hide the installed package.
sys.path.append(str(Path(__file__).parents[1]))

# Some tests press Ctrl-C, to which a process that a script has put in the background is deaf.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked cuda need a device, or the build in which one is emulated (make test-emulated)."""
    if item.get_closest_marker("cuda") and not _C.cuda_devices():
        if os.environ.get("DLF_REQUIRE_CUDA") == "1":
            pytest.fail("DLF_REQUIRE_CUDA is 1, but there is no CUDA device, or dlf was built without CUDA")
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def weight_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Quantized weights are kept here, not in the user's cache; processes that tests start inherit it."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLF_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A large model, a small base and two experts, random and of one tokenizer."""
    root = tmp_path_factory.mktemp("family")
    large = make_model(root / "large", "llama", seed=1, hidden_size=64, num_hidden_layers=3)
    base = make_model(root / "base", "llama", seed=2)
    return {
        "large": large,
        "base": base,
        "expert-a": finetune(root / "expert-a", base, 3, 0.2),
        "expert-b": finetune(root / "expert-b", base, 4, 0.3),
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint to copy; it must not be changed."""
    return make_model(tmp_path_factory.mktemp("source"), "qwen2", num_hidden_layers=2)


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy of it to change at will."""
    return Path(shutil.copytree(source, tmp_path / "model"))
