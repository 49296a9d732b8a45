"""A server for tests, in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

import dlf
from dlf.server import Served, ServerSettings, Service, make_app
from dlf.server.connection import make_server

KEY = "a key of the tests"
PROMPT = "Question: what is the sum"
GREEDY: dict[str, Any] = {"model": "pair", "temperature": 0, "max_tokens": 8}
BODY = GREEDY | {"prompt": PROMPT}
TALK = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "why"}]


def experts_of(family: dict[str, Path]) -> list[Any]:
    fine = [dlf.Expert(family[f"expert-{name}"], family["base"], name=name) for name in "ab"]
    return [*fine, dlf.Guidance(name="cfg", scale=1.0)]


class Running:
    """A server in a thread of its own, with an event loop and an engine."""

    def __init__(self, family: dict[str, Path], settings: ServerSettings, **options: Any) -> None:
        self._family, self._settings, self._options = family, settings, options
        self.service: Service
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        experts = experts_of(self._family)
        options = {"threads": 2, "max_batch": 4, "max_context": 200} | self._options
        async with dlf.AsyncEngine(self._family["large"], experts, **options) as engine:
            self.engine = engine
            self.service = Service({"pair": Served("pair", engine)})
            self.server = make_server(make_app(self.service, self._settings), replace(self._settings, port=0))
            serving = asyncio.create_task(self.server.serve())
            while not self.server.started:
                await asyncio.sleep(0.01)
            self.loop = asyncio.get_running_loop()
            self.port = self.server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{self.port}"
            self._ready.set()
            await serving

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60, **options)

    def idle(self) -> bool:
        """Wait until no sequence has a place, as after a client has left."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if not self.service.served[0].sequences and not self.engine._running:
                return True
            time.sleep(0.01)
        return False
