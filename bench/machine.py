"""The machine of a measurement."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from dlf import _C
from dlf.devices import DeviceError, Placement

DEVICE_HELP = "cpu, cuda or cuda:0, cuda:1, ..."


def value_of(file: str, key: str) -> str:
    """The first value of a key in a file of ``key : value`` lines."""
    for line in Path(file).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def card_of(device: str) -> _C.DeviceInfo | None:
    """The card behind the name of a CUDA device; None for the CPU.

    Raises
    ------
    typer.BadParameter
        If there is no such device.
    """
    try:
        indices = Placement.of(device).large
    except (ValueError, DeviceError) as error:
        raise typer.BadParameter(str(error)) from None
    return next((card for card in _C.cuda_devices() if card.index in indices), None)


def where(device: str, threads: int) -> str:
    """The card's name, or the number of threads on the processor."""
    card = card_of(device)
    return f"{threads} threads" if card is None else card.name


def file_name(name: str, device: str) -> str:
    """A file name for results, with the card's name if they come from one."""
    card = card_of(device)
    return name if card is None else f"{name}-{re.sub('[^a-z0-9]+', '-', card.name.lower()).strip('-')}"


def describe(versions: Mapping[str, str | None], threads: int, device: str = "cpu") -> dict[str, Any]:
    """Processor, memory, system and card, and the versions of what was measured."""
    card = card_of(device)
    of_card = (
        {
            "card": card.name,
            "card_bytes": card.total_bytes,
            "compute_capability": card.compute_capability,
            "cuda": _C.cuda_version,
        }
        if card
        else {}
    )
    return of_card | {
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


def milliseconds(seconds: float) -> str:
    """Milliseconds for a table: two decimals below 10 ms, since a card is often a hundred times as fast."""
    return f"{1e3 * seconds:.1f}" if seconds >= 0.01 else f"{1e3 * seconds:.2f}"
