"""Clients that behave badly, on plain sockets, and counts of what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
from collections.abc import Awaitable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serving import BODY, KEY, TALK, Running

__all__ = ["Held", "http_request", "leave", "mixed_bodies", "resident_bytes"]

# A prompt of several chunks, which takes some steps to read.
LONG_PROMPT = "the sum of three and four is " * 60


@dataclass(frozen=True)
class Held:
    """What a server holds: tasks, threads and descriptors of its process, sequences of its engine."""

    tasks: int
    threads: int
    descriptors: int
    sequences: int

    @classmethod
    def by(cls, server: Running) -> Held:
        """Count them when nothing runs any more."""
        assert server.idle()

        async def tasks() -> int:
            return len(asyncio.all_tasks())

        return cls(
            asyncio.run_coroutine_threadsafe(tasks(), server.loop).result(20),
            len(os.listdir("/proc/self/task")),
            len(os.listdir("/proc/self/fd")),
            server.service.served[0].sequences + len(server.engine._running),
        )

    def beyond(self, before: Held) -> dict[str, int]:
        """What is held now and was not before. A thread that ends meanwhile is no loss."""
        now, then = asdict(self), asdict(before)
        return {name: now[name] - then[name] for name in now if now[name] > then[name]}


def resident_bytes(pid: int | str = "self") -> int:
    """Memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def mixed_bodies(order: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body: each endpoint, short and long, streamed or not."""
    more = {"max_tokens": order.choice([1, 5, 150]), "ignore_eos": True, "stream": order.random() < 0.5}
    chosen = order.randrange(5)
    if chosen == 0:
        talk = {"model": "pair", "messages": TALK, "temperature": 1, "n": order.choice([1, 3])}
        return "/v1/chat/completions", talk | more
    if chosen == 1:
        return "/tokenize", {"prompt": LONG_PROMPT}
    if chosen == 2:
        return "/v1/completions", BODY | more | {"echo": True, "logprobs": 2, "return_alpha": True}
    if chosen == 3:
        return "/v1/completions", BODY | more | {"prompt": LONG_PROMPT}
    return "/v1/completions", BODY | more | {"experts": order.choice([["a"], ["b"], []])}


def http_request(path: str, body: dict[str, Any]) -> bytes:
    """The bytes of a request."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content


async def leave(port: int, request: bytes, seconds: float, sent: float = 1.0) -> None:
    """Send a part of a request, read for some seconds, and vanish without a word."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request[: max(1, int(len(request) * sent))])
    with contextlib.suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(seconds):
            while await reader.read(1 << 16):
                pass
    writer.transport.abort()


async def all_of(work: Iterable[Awaitable[None]], at_once: int) -> None:
    """Run work, some of it at a time."""
    places = asyncio.Semaphore(at_once)

    async def one(each: Awaitable[None]) -> None:
        async with places:
            await each

    await asyncio.gather(*(one(each) for each in work))
