"""What the numbers were measured on."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.latency.engines import Engine


def _value(file: str, key: str) -> str:
    """The first value of a key in a file of ``key : value`` lines."""
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def describe(engines: Iterable[Engine], threads: int) -> dict[str, Any]:
    """Processor, memory, system, and the versions of everything that was measured."""
    versions = {name: found for engine in engines for name, found in engine.versions().items()}
    return {
        "processor": _value("/proc/cpuinfo", "model name"),
        "family, model, stepping": [_value("/proc/cpuinfo", key) for key in ("cpu family", "model", "stepping")],
        "instructions": sorted(
            flag for flag in _value("/proc/cpuinfo", "flags").split() if flag.startswith(("avx", "amx"))
        ),
        "cores": os.cpu_count(),
        "memory_bytes": 1024 * int(_value("/proc/meminfo", "MemTotal").split()[0]),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
        "threads": threads,
        "date": datetime.date.today().isoformat(),
    }
