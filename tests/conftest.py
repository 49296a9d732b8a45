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

# For bench/. It comes last, because the repository's sources of dlf would hide the installed package.
sys.path.append(str(Path(__file__).parents[1]))

# Some tests press Ctrl-C; a process that a script starts in the background ignores it by default.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked cuda without a device; a build with an emulated one (make test-emulated) has it."""
    if item.get_closest_marker("cuda") and not _C.cuda_devices():
        if os.environ.get("DLF_REQUIRE_CUDA") == "1":
            pytest.fail("DLF_REQUIRE_CUDA is 1, but there is no CUDA device, or dlf was built without CUDA")
        pytest.skip("no CUDA device")


@pytest.fixture(scope="session", autouse=True)
def weight_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Cache folder in place of the user's, also for processes that tests start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLF_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A large model, a small base and two experts, random and with one tokenizer."""
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
    """Small checkpoint to copy; tests must not change it."""
    return make_model(tmp_path_factory.mktemp("source"), "qwen2", num_hidden_layers=2)


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """Copy of `source` that a test may change."""
    return Path(shutil.copytree(source, tmp_path / "model"))
