"""Finds chat templates of published models: llama.cpp keeps some, and the sources of its Python package have them."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

__all__ = ["PACKAGE", "fetch_templates"]

PACKAGE = "llama-cpp-python==0.3.16"
PLACE = "/vendor/llama.cpp/models/templates/"


def fetch_templates() -> Path | None:
    """Return their folder, downloaded into ``$DLF_REAL_MODELS`` or the user's cache; None if they cannot be had."""
    cache = Path(os.environ.get("DLF_REAL_MODELS") or "~/.cache/dlf-real-models").expanduser()
    folder = cache / "templates"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        name = PACKAGE.split("==")[0]
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        if subprocess.run([*download, "--no-build-isolation", "--no-binary", name, PACKAGE], check=False).returncode:
            return None
        (archive,) = cache.glob(f"{name.replace('-', '_')}-*.tar.gz")
        found = {}
        with tarfile.open(archive) as sources:
            for member in sources:
                if member.isfile() and PLACE in member.name and member.name.endswith(".jinja"):
                    file = sources.extractfile(member)
                    assert file is not None
                    found[Path(member.name).name] = file.read()
        archive.unlink()
        part = cache / "templates.part"
        part.mkdir(exist_ok=True)
        for own, content in found.items():
            (part / own).write_bytes(content)
        part.rename(folder)
    return folder
