"""The installed package: its version, its types, and the torch for which it was built."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dlf
from dlf import _C
from dlf._compat import check_torch

ROOT = Path(__file__).parents[1]
TORCH_MINOR = ".".join(torch.__version__.split(".")[:2])


def test_version_is_written_once():
    assert dlf.__version__ == _C.__version__ == importlib.metadata.version("dlf")


def test_the_installed_package_is_tested():
    assert not Path(dlf.__file__).is_relative_to(ROOT / "dlf")


def test_types_ship_with_the_package():
    package = Path(dlf.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "_C.pyi").exists()


@pytest.mark.skipif(
    f"torch=={TORCH_MINOR}." not in (ROOT / "pyproject.toml").read_text(),
    reason="the pybind11 of another torch writes signatures differently",
)
def test_stub_describes_the_extension():
    check = subprocess.run([sys.executable, ROOT / "tools" / "stubs.py", "--check"], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout + check.stderr


def test_requires_the_torch_minor_it_was_built_for():
    requirements = importlib.metadata.requires("dlf") or []
    assert f"torch=={TORCH_MINOR}.*" in [requirement.replace(" ", "") for requirement in requirements]
    assert _C.torch_minor == TORCH_MINOR


def test_documents_name_the_range_of_torch_that_the_build_takes():
    oldest, newest = re.findall(r"^set\(DLF_TORCH_\w+ ([\d.]+)\)$", (ROOT / "cmake" / "Torch.cmake").read_text(), re.M)
    assert f"your torch, {oldest} or newer" in (ROOT / "README.md").read_text()
    assert f"built against, {oldest} to {newest}" in (ROOT / "third_party" / "README.md").read_text()


def test_accepts_the_torch_it_was_built_for():
    check_torch()
    check_torch(TORCH_MINOR)


def test_another_torch_is_an_error_that_names_the_remedies():
    with pytest.raises(ImportError, match=r"built for torch 2\.10, but torch .* is installed") as caught:
        check_torch("2.10")
    assert "pip install --no-build-isolation" in str(caught.value)
    assert "pip install 'torch==2.10.*'" in str(caught.value)


def test_a_build_with_cuda_asks_for_a_torch_with_the_same_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    check_torch(TORCH_MINOR, "13.0")
    check_torch(TORCH_MINOR, "")
    monkeypatch.setattr(torch.version, "cuda", None)
    check_torch(TORCH_MINOR, "")
    with pytest.raises(ImportError, match=r"\(CUDA 13\.0\), but torch .* \(CUDA none\) is installed"):
        check_torch(TORCH_MINOR, "13.0")


def test_devices_are_listed_where_there_are_none():
    assert not _C.cuda_version or _C.cuda_version.split(".")[0] == (torch.version.cuda or "").split(".")[0]
    assert len(_C.cuda_devices()) == (torch.cuda.device_count() if _C.cuda_version else 0)


def run_python(code, folder, **options):
    """Run `code` in `folder`; in the repository the sources would be imported in place of the installed package."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, **options)


def test_torch_is_checked_before_the_extension_is_loaded(tmp_path):
    code = (
        "import sys, torch\n"
        "torch.__version__ = '2.10.1'\n"
        "try:\n    import dlf\n"
        "except ImportError as error:\n    assert 'dlf._C' not in sys.modules; print(error)\n"
    )
    done = run_python(code, tmp_path, check=True)
    assert "but torch 2.10.1 is installed" in done.stdout


def test_a_python_that_runs_in_the_repository_finds_the_extension():
    run_python("import dlf, dlf._C; dlf.fusion.solve", ROOT, check=True)


def test_an_error_of_the_engine_reaches_python_as_itself(tmp_path):
    code = "import dlf._C; dlf._C.cpu_capability()"
    environment = {"DLF_CPU_CAPABILITY": "sse9", "PATH": ""}
    done = run_python(code, tmp_path, env=environment)
    assert "ValueError: DLF_CPU_CAPABILITY is 'sse9'" in done.stderr
