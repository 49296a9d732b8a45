"""The connection of a client, which is cut off when it takes or sends nothing."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from dlf.server.settings import ServerSettings

__all__ = ["make_server"]

BUFFER = 1 << 17  # bytes that the kernel keeps; it would keep megabytes for a reader that has stopped
Base: Any = AutoHTTPProtocol


class Connection(Base):  # type: ignore[misc] # what uvicorn chose
    """A connection with a bound on how long the client may take to send a request, or to read what waits for it.

    Otherwise a client that has stopped would hold its answer, its place in the queue and its descriptor for ever.
    """

    patience = 30.0  # seconds
    _request: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Wait for the first request."""
        super().connection_made(transport)
        sent = transport.get_extra_info("socket")
        if sent is not None:
            sent.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Wait for the end of a request that begins."""
        if self._request is None and (self.cycle is None or self.cycle.response_complete):
            self._expect()
        super().data_received(data)

    def on_response_complete(self) -> None:
        """Leave the wait for the next request to uvicorn, which closes idle connections."""
        _cancel(self._request)
        self._request = None
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Wait for a reader that does not keep up."""
        super().pause_writing()
        self._reader = self.loop.call_later(self.patience, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on with a reader that caught up."""
        super().resume_writing()
        _cancel(self._reader)

    def connection_lost(self, error: Exception | None) -> None:
        """Wait no longer."""
        _cancel(self._request)
        _cancel(self._reader)
        super().connection_lost(error)

    def _expect(self) -> None:
        self._request = self.loop.call_later(self.patience, self._late)

    def _late(self) -> None:
        self._request = None
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            self.transport.abort()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def make_server(app: FastAPI, settings: ServerSettings) -> uvicorn.Server:
    """The server of an application; `uvicorn.Server.serve` takes the sockets to listen on, or opens `settings.port`."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=type("Connection", (Connection,), {"patience": settings.patience}),
        ws="none",
        timeout_graceful_shutdown=settings.drain,
        log_level="warning",
        access_log=False,
    )
    return uvicorn.Server(config)
