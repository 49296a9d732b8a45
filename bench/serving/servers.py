"""Servers in processes of their own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

__all__ = ["can_run_llama_cpp", "dlf_server", "llama_cpp_server"]

PACKAGES = ("llama_cpp", "starlette_context", "sse_starlette", "pydantic_settings")


def can_run_llama_cpp() -> bool:
    """Whether llama-cpp-python and what its server needs are installed."""
    return all(find_spec(name) is not None for name in PACKAGES)


@contextmanager
def dlf_server(recipe: Path | str, threads: int, max_batch: int, max_context: int) -> Iterator[int]:
    """Serve a recipe or a model; yields the port."""
    port = _free_port()
    options = ["--threads", threads, "--max-batch", max_batch, "--max-context", max_context]
    with _running([sys.executable, "-P", "-m", "dlf.cli", "serve", recipe, "--port", port, *options], port):
        yield port


@contextmanager
def llama_cpp_server(model: Path, threads: int, max_context: int) -> Iterator[int]:
    """Serve a GGUF file by llama-cpp-python, which answers one request after the other; yields the port."""
    port = _free_port()
    options = ["--n_ctx", max_context, "--n_threads", threads, "--n_threads_batch", threads, "--verbose", "False"]
    # A request would otherwise end the one before it.
    options += ["--interrupt_requests", "False"]
    with _running([sys.executable, "-P", "-m", "llama_cpp.server", "--model", model, "--port", port, *options], port):
        yield port


@contextmanager
def _running(command: Sequence[object], port: int) -> Iterator[None]:
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        _await(process, port)
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()


def _await(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            assert process.stderr is not None
            raise RuntimeError(f"the server ended: {process.stderr.read().decode()[-2000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
    raise RuntimeError("the server does not answer")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
