"""What the numbers were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def value_of(file: str, key: str) -> str:
    """The first value of a key in a file of ``key : value`` lines."""
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def describe(versions: Mapping[str, str | None], threads: int) -> dict[str, Any]:
    """Processor, memory, system, and the versions of everything that was measured."""
    return {
        "processor": value_of("/proc/cpuinfo", "model name"),
        "family, model, stepping": [value_of("/proc/cpuinfo", key) for key in ("cpu family", "model", "stepping")],
        "instructions": sorted(
            flag for flag in value_of("/proc/cpuinfo", "flags").split() if flag.startswith(("avx", "amx"))
        ),
        "cores": os.cpu_count(),
        "memory_bytes": 1024 * int(value_of("/proc/meminfo", "MemTotal").split()[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": dict(versions),
        "threads": threads,
        "date": datetime.date.today().isoformat(),
    }
