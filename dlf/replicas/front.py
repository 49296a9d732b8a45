"""The front: takes requests of clients, and passes each on to a replica."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Any

from fastapi.responses import Response
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlf.replicas.metrics import joined
from dlf.replicas.router import key_of
from dlf.server.errors import ApiError, error_body
from dlf.server.guard import Guard
from dlf.server.responses import Json
from dlf.server.settings import ServerSettings

__all__ = ["Front"]

logger = logging.getLogger("dlf.replicas")
PASSED = ("type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers")
ASGI = {"version": "3.0", "spec_version": "2.3"}


class Front:
    """Passes requests on, and answers those whose replica dies with 503, which clients try again.

    Parameters
    ----------
    replicas
        Handle of the deployment of `Replica`.
    settings
        Limits and keys, which are checked before a body is read.
    """

    def __init__(self, replicas: Any, settings: ServerSettings) -> None:
        self._replicas, self._settings = replicas, settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application, as Serve asks for it."""
        return Guard(self._pass_on, self._settings)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["path"] == "/metrics":
            await Response(await self._metrics(), media_type="text/plain; version=0.0.4")(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        plain = {name: scope[name] for name in PASSED if name in scope} | {"asgi": ASGI}
        plain["headers"] = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        started = False
        try:
            handle = self._replicas.options(stream=True)
            async for found in handle.answer.remote(plain, body, key=key_of(body)):
                started = True
                await send(found)
        except (RayError, RayServeException) as error:
            if started:
                raise RuntimeError("an answer was broken off") from error  # the client sees that it is not whole
            refused = _refusal(error)
            await Json(error_body(refused), refused.status, refused.headers)(scope, receive, send)

    async def _metrics(self) -> bytes:
        """The metrics of all replicas, each with its name as a label."""
        context = serve.get_replica_context()
        status = await asyncio.to_thread(serve.status)
        states = status.applications[context.app_name].deployments[self._replicas.deployment_name].replica_states
        found: dict[str, bytes] = {}
        for number in range(states.get("RUNNING", 0)):  # one after the other: calls of one request share their id
            with contextlib.suppress(RayError, RayServeException):  # one that dies
                name, text = await self._replicas.metrics.remote(only=number)
                found[name] = text
        return joined(found)


def _refusal(error: Exception) -> ApiError:
    if isinstance(error, RayTaskError) and not isinstance(error, RayActorError):
        logger.error("a replica failed with %s", type(error.cause).__name__)
        return ApiError(500, "the server failed; its log says why", code="internal_error")
    return ApiError(
        503, "the replica of this request died; try again", code="engine_unavailable", headers={"Retry-After": "1"}
    )


async def _live(receive: Receive, send: Send) -> None:
    """Take part in Serve's start and end of an application."""
    while True:
        message: Message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
