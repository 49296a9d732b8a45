"""Starts a helper process, asks it and ends it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["Helper", "HelperError"]

LENGTH = struct.Struct("<Q")
MAX_ANSWER = 256 << 20
GRACE = 2  # seconds past its time limit after which a helper whose user is gone ends itself
PASSED_ON = ("LD_LIBRARY_PATH", "PATH", "TZ")


class HelperError(ValueError):
    """The work was refused, took too long, or ended the helper process; the text is the reason."""


class Helper:
    """One process for one kind of work, started at the first request; threads take turns.

    A request that takes too long, is interrupted or crashes the process ends that process, and the next request starts
    another one. A forked child starts its own.

    Parameters
    ----------
    room
        Module of this folder that does the work.
    packages
        Packages that it imports. Only the folders that hold them are passed on.
    memory
        Bytes of address space that the process may have.
    seconds
        Time limit of a request.
    prepare
        Method and arguments of the first request to a new process.
    prepare_seconds
        Time limit of that first request, in seconds.
    """

    def __init__(
        self,
        room: str,
        packages: Iterable[str],
        memory: int,
        seconds: int,
        prepare: tuple[str, list[Any]] | None = None,
        prepare_seconds: int = 0,
    ) -> None:
        folder = Path(__file__).parent
        homes = {_home(package): None for package in packages}
        # Isolated and without site, so that imports come only from these folders and the standard library.
        self._command = [sys.executable, "-I", "-S", str(folder / "serve.py"), room, str(memory), str(folder), *homes]
        self._seconds = seconds
        self._prepare = prepare
        self._prepare_seconds = prepare_seconds
        # A signal handler may ask while its thread waits for an answer; the thread then does not get that answer.
        self._turn = threading.RLock()
        self._running = _Running()
        weakref.finalize(self, self._running.end)
        _helpers.add(self)

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the room and return its result.

        Raises
        ------
        HelperError
            If it refuses, takes too long, or crashes.
        TypeError, ValueError
            If an argument is no JSON value.
        """
        request = _request(self._seconds, method, list(arguments))
        with self._turn:
            if not self._running.idle():
                self._start()
            return self._exchange(request, self._seconds)

    def _start(self) -> None:
        self._running.end()
        try:
            self._running.start(self._command)
        except OSError as error:
            raise HelperError(f"a helper process cannot be started: {error}") from error
        if self._prepare is not None:
            try:
                self._exchange(_request(self._prepare_seconds, *self._prepare), self._prepare_seconds)
            except HelperError:
                self._running.end()
                raise

    def _exchange(self, request: bytes, seconds: int) -> Any:
        try:
            answer = self._running.exchange(request, time.monotonic() + seconds)
        except TimeoutError:
            self._running.end()
            raise HelperError(f"it takes longer than {seconds} s") from None
        except (OSError, MemoryError):
            self._running.end()
            raise HelperError("it needs too much memory, or crashes") from None
        if "error" in answer:
            raise HelperError(answer["error"])
        return answer["value"]

    def _forget(self) -> None:
        """Leave the process to the parent, in a forked child, where the lock's holder does not exist."""
        self._turn = threading.RLock()
        self._running.forget()


def _request(seconds: int, method: str, arguments: list[Any]) -> bytes:
    return json.dumps([seconds + GRACE, method, arguments]).encode("ascii")


class _Running:
    """The process and the socket to it, if there is one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._asked = False  # an answer is outstanding, perhaps since an interruption

    def idle(self) -> bool:
        """Whether it can be asked."""
        return self._process is not None and not self._asked and self._process.poll() is None

    def start(self, command: list[str]) -> None:
        ours, theirs = socket.socketpair()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # Rust writes its panics there
                cwd="/",
                env={name: os.environ[name] for name in PASSED_ON if name in os.environ},
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._socket, self._asked = ours, False

    def exchange(self, request: bytes, deadline: float) -> dict[str, Any]:
        connection = self._socket
        if connection is None:
            raise ConnectionError("the helper process has been ended")
        self._asked = True
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        connection.sendall(LENGTH.pack(len(request)) + request)
        size = LENGTH.unpack(_receive(connection, LENGTH.size, deadline))[0]
        if size > MAX_ANSWER:
            raise ConnectionError("the answer is too large")
        answer: dict[str, Any] = json.loads(_receive(connection, size, deadline))
        self._asked = False
        return answer

    def end(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._process = self._socket = None

    def forget(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None:
            self._process.returncode = 0  # otherwise this process would wait for its end
        self._process = self._socket = None


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    found = bytearray(size)
    view = memoryview(found)
    while view:
        connection.settimeout(max(0.001, deadline - time.monotonic()))
        count = connection.recv_into(view)
        if not count:
            raise ConnectionError("the helper process has ended")
        view = view[count:]
    return bytes(found)


def _home(package: str) -> str:
    """Folder in which a package lies, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed")
    return str(Path(spec.origin).parents[1])


_helpers: weakref.WeakSet[Helper] = weakref.WeakSet()


def _forget_all() -> None:
    for helper in list(_helpers):
        helper._forget()


os.register_at_fork(after_in_child=_forget_all)
