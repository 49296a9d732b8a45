"""A Ray cluster of several nodes on this machine, each with processes of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster


@contextmanager
def nodes(*cpus: int) -> Iterator[Any]:
    """Start a node for each number of CPUs."""
    found = Cluster()
    try:
        for count in cpus:
            found.add_node(num_cpus=count, num_gpus=0, object_store_memory=100 << 20, include_dashboard=False)
        found.wait_for_nodes()
        yield found
    finally:
        if ray.is_initialized():
            ray.shutdown()
        found.shutdown()


def workers(cluster: Any, name: str) -> list[int]:
    """Processes of the cluster whose actor has this name."""
    raylets = {one.process.pid for node in cluster.list_all_nodes() for one in node.all_processes["raylet"]}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes().decode(errors="replace")
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent in raylets and title.startswith(f"ray::{name}"):
            found.append(int(folder.name))
    return found


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
