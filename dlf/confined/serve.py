"""The helper process: answers requests from its standard input, which is a socket, under limits of its own.

A request is JSON ``[seconds, method, arguments]`` after its length. An answer is ``{"value": ...}``, or ``{"error":
...}`` with a reason. Closing the socket ends the process.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

LENGTH = struct.Struct("<Q")
MAX_REASON = 1000  # characters
OPEN_FILES = 16


def confine(memory: int) -> None:
    """Limit the resources of this process, and make sure that its alarm ends it, whatever its parent set."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def read(size: int) -> bytes:
    """Read exactly `size` bytes, or nothing at the end."""
    found = bytearray()
    while len(found) < size:
        piece = os.read(0, min(size - len(found), 1 << 20))
        if not piece:
            return b""
        found += piece
    return bytes(found)


def write(answer: dict[str, Any]) -> None:
    """Send one answer."""
    content = json.dumps(answer).encode("ascii")
    view = memoryview(LENGTH.pack(len(content)) + content)
    while view:
        view = view[os.write(0, view) :]


def answer(room: Any, method: str, arguments: list[Any]) -> dict[str, Any]:
    """Do one piece of work; a failure is an answer too."""
    try:
        return {"value": room.METHODS[method](*arguments)}
    except ValueError as error:  # a room refuses by it
        return {"error": str(error)[:MAX_REASON]}
    except MemoryError:
        return {"error": "it takes too much memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}


def main() -> None:
    """Serve until the socket is closed."""
    name, memory, *folders = sys.argv[1:]
    sys.path.extend(folders)
    room = importlib.import_module(name)
    confine(int(memory))
    while header := read(LENGTH.size):
        request = read(LENGTH.unpack(header)[0])
        if not request:
            return
        seconds, method, arguments = json.loads(request)
        # After this time the kernel ends this process, however busy it is, if nobody is left to do so.
        signal.alarm(seconds)
        found = answer(room, method, arguments)
        write(found)
        signal.alarm(0)


if __name__ == "__main__":
    main()
