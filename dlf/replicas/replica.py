"""A replica: engines and the server's application in an actor, which answers requests that a front passes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from typing import Any

from ray import serve

from dlf.server.settings import ServerSettings

__all__ = ["Replica"]

Message = dict[str, Any]


class Replica:
    """Engines of this process, loaded once.

    Parameters
    ----------
    arguments
        Arguments of the engine of each recipe, by its name.
    settings
        Limits and keys.
    """

    def __init__(self, arguments: Mapping[str, Mapping[str, Any]], settings: ServerSettings) -> None:
        import dlf
        from dlf.server import Served, Service, make_app

        models = dlf.SharedModels()
        served = {}
        for name, one in arguments.items():
            served[name] = Served(name, dlf.AsyncEngine(**one, models=models), one.get("defaults") or {})
        self._app = make_app(Service(served), settings)
        self._name = serve.get_replica_context().replica_id.unique_id

    async def answer(
        self, scope: Message, body: bytes, *, key: str = "", only: int | None = None
    ) -> AsyncGenerator[Message]:
        """Yield the application's messages of ASGI for a request; `key` and `only` are the router's."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        given = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if not given:
                await asyncio.Event().wait()  # the client stays until the task is cancelled
            return given.pop()

        async def send(message: MutableMapping[str, Any]) -> None:
            messages.put_nowait(dict(message))

        task = asyncio.ensure_future(self._app({**scope, "state": {}}, receive, send))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield message
            await task  # raises
        finally:
            task.cancel()

    async def metrics(self, *, only: int | None = None) -> tuple[str, bytes]:
        """Name and metrics of this replica."""
        scope = {"type": "http", "method": "GET", "path": "/metrics", "query_string": b"", "headers": []}
        body = b"".join([message.get("body", b"") async for message in self.answer(scope, b"")])
        return self._name, body
