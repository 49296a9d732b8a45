"""Runs one engine in its own process: reads JSON requests from standard input, one per line, and writes replies.

So load time and memory are this engine's alone, and engines do not share threads.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.peers import Peer, Timed

MEMORY = {"peak": "VmHWM", "resident": "VmRSS", "anonymous": "RssAnon", "mapped": "RssFile"}


def read_memory() -> dict[str, int]:
    """Bytes of this process: the peak, the resident memory, and its anonymous and file-mapped parts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: 1024 * int(fields[key].split()[0]) for name, key in MEMORY.items()}


class Worker:
    """Answers requests: each method is one, with JSON arguments and a JSON result."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.peer: Peer | None = None
        self.tokens: Iterator[object] = iter(())

    def prepare(self, folders: list[str], weights: str, scratch: str) -> dict[str, Any]:
        start = time.perf_counter()
        paths = [str(self.module.prepare(Path(folder), weights, Path(scratch))) for folder in folders]
        return {"paths": paths, "seconds": time.perf_counter() - start}

    def load(self, paths: list[str], options: dict[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        self.peer = self.module.load([Path(path) for path in paths], **options)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "weight_bytes": self.peer.weight_bytes, "settings": self.peer.settings}

    def start(self, prompt: list[int]) -> dict[str, Any]:
        assert self.peer is not None
        self.tokens = iter(())  # frees the last sequence before timing begins
        start = time.perf_counter()
        self.tokens = self.peer.tokens(prompt)
        next(self.tokens)
        return {"seconds": time.perf_counter() - start}

    def decode(self, count: int) -> dict[str, Any]:
        if isinstance(self.tokens, Timed):
            return {"seconds": self.tokens.timed(count)}
        times = []
        for _ in range(count):
            start = time.perf_counter()
            next(self.tokens)
            times.append(time.perf_counter() - start)
        return {"seconds": times}

    def memory(self) -> dict[str, int]:
        torch = sys.modules.get("torch")
        of_card = torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized()
        # dlf also allocates the card's memory with torch.
        return read_memory() | ({"card": torch.cuda.memory_reserved()} if of_card else {})


def main() -> None:
    # Engines may print: their standard output goes to the log, and replies keep the real one.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker(importlib.import_module(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = getattr(worker, request.pop("command"))(**request)
        except Exception as error:  # any failure of a peer becomes a note in the benchmark's table
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
