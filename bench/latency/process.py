"""Worker processes, from the side of the benchmark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any


class EngineFailed(Exception):
    """Raised when an engine fails at a request."""


class Process:
    """A worker process with one peer's module."""

    def __init__(self, module: str, threads: int, log: Path) -> None:
        self.log = log
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bench.latency.worker", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ
                | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
                | {"PYTHONPATH": os.pathsep.join(sys.path)},  # so that it imports the same dlf
            )

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its reply."""
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps({"command": command, **arguments}), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
            raise EngineFailed(f"the process ended with code {code} during {command}: {''.join(last)}")
        reply = json.loads(line)
        if "error" in reply:
            raise EngineFailed(reply["error"])
        return reply

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
