"""Finds the extension, and checks torch before the extension is loaded."""

import importlib
import importlib.metadata
from pathlib import Path


def find_extension(package_path: list[str]) -> None:
    """Add the installed package to the path of a package that has no extension.

    Python in a checkout imports the sources there, but the extension lies in the installed package.

    Parameters
    ----------
    package_path
        ``dlf.__path__``.
    """
    if not any(Path(folder, "_build.py").exists() for folder in package_path):
        try:
            installed = importlib.metadata.distribution("dlf").locate_file("dlf")
        except importlib.metadata.PackageNotFoundError:
            return
        package_path.append(str(installed))


def check_torch(built_minor: str | None = None, built_cuda: str | None = None) -> None:
    """Check that the installed torch is the one that the extension was built for.

    libtorch keeps its binary interface only within a minor version; with another one, the extension would stop at a
    missing symbol, or worse, not stop. A build with CUDA needs a torch with the same major version of CUDA.

    Parameters
    ----------
    built_minor
        Minor version of torch, such as ``"2.13"``, of the build; by default as the build recorded it.
    built_cuda
        CUDA version of the build, such as ``"13.0"``, ``""`` for none; by default as the build recorded it.

    Raises
    ------
    ImportError
        If torch is missing, or has another minor version or major CUDA version, or if the package was never built.
    """
    if built_minor is None:
        built_minor = _recorded("torch_minor")
    if built_cuda is None:
        built_cuda = _recorded("cuda_version")
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ImportError(f"dlf needs torch {built_minor}: pip install 'torch=={built_minor}.*'") from error
    there = ".".join(torch.__version__.split(".")[:2])
    cuda = torch.version.cuda or "none"
    if there != built_minor:
        built_for, found = built_minor, str(torch.__version__)
    elif built_cuda and built_cuda.split(".")[0] != cuda.split(".")[0]:
        built_for, found = f"{built_minor} (CUDA {built_cuda})", f"{torch.__version__} (CUDA {cuda})"
    else:
        return
    raise ImportError(
        f"dlf was built for torch {built_for}, but torch {found} is installed. Either build dlf for it (in a checkout "
        "of dlf: pip install --no-build-isolation --force-reinstall --no-deps .), or install the torch that dlf was "
        f"built for (pip install 'torch=={built_minor}.*')."
    )


def _recorded(name: str) -> str:
    """Return what CMake wrote into ``dlf/_build.py``."""
    try:
        recorded: str = getattr(importlib.import_module("dlf._build"), name)
    except ModuleNotFoundError as error:
        raise ImportError("dlf has no compiled extension here: run 'make setup' or 'pip install .'") from error
    return recorded
