"""A client that costs little: on a machine with few cores its own work would slow the server down.

guidellm and aiperf measure the same, but bring torch or a hundred other packages, and use a core of their own.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Answer", "ask", "ask_all"]

Body = dict[str, Any]


@dataclass
class Answer:
    """One streamed answer: when it was asked for, when each of its events came, and its number of tokens."""

    start: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    usage: int = 0

    @property
    def tokens(self) -> int:
        """Tokens as the server counts them; one for each event of a server that does not."""
        return self.usage or len(self.times)

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.times[0] - self.start

    @property
    def gaps(self) -> list[float]:
        """Seconds between two events."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


async def ask(port: int, body: Body) -> Answer:
    """Stream a completion from a server on this machine.

    Raises
    ------
    RuntimeError
        If the server refuses it, or breaks off.
    """
    content = json.dumps(body | {"stream": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    answer = Answer()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(head.encode() + content)
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"the server said {status!r}: {(await reader.read(2000))!r}")
        async for line in reader:
            if line.startswith(b"data: [DONE]"):
                return answer
            if b'"completion_tokens":' in line:
                answer.usage = int(json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"])
            # The last event has the reason alone.
            elif line.startswith(b"data: {") and b'"finish_reason":"' not in line.replace(b": ", b":"):
                answer.times.append(time.perf_counter())
        raise RuntimeError("the server broke off an answer")
    finally:
        writer.close()


async def ask_all(port: int, bodies: Sequence[Body], at_once: int) -> list[Answer]:
    """Stream all of these completions, `at_once` at a time."""
    places = asyncio.Semaphore(at_once)

    async def one(body: Body) -> Answer:
        async with places:
            return await ask(port, body)

    return await asyncio.gather(*(one(body) for body in bodies))
