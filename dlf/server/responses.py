"""How answers leave the server: as JSON, and as a stream of events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from dlf.server.answers import Answer
from dlf.server.errors import ApiError, error_body, timed_out

__all__ = ["Events", "Json", "Part"]

Part = dict[str, Any]


class Json(JSONResponse):
    """JSON with whatever text a client may have sent: half of a surrogate pair is escaped."""

    def render(self, content: Any) -> bytes:
        """Write it as UTF-8."""
        return _written(content).encode("utf-8", "backslashreplace")


class Events(StreamingResponse):
    """A stream of server-sent events, whose sequences end with it.

    Parameters
    ----------
    first
        The first part, which has been awaited: until then an error is a response of its own.
    source
        The parts that follow; it is closed when the stream ends, also if the client leaves before it begins.
    frame
        Makes the last part, which has the tokens used, if `usage` asks for it.
    deadline
        Time of the event loop at which the stream ends with an error; `timeout` is what its message names.
    """

    def __init__(
        self,
        first: Part | None,
        source: AsyncGenerator[Part],
        frame: Answer,
        usage: bool,
        deadline: float,
        timeout: float,
    ) -> None:
        self._first, self._source, self._frame, self._usage = first, source, frame, usage
        self._deadline, self._timeout = deadline, timeout
        super().__init__(self._events(), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream, unless the client leaves."""
        async with aclosing(self._source):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send the head, however late it is, and events until the deadline."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        last = b""
        try:
            async with asyncio.timeout_at(self._deadline):
                async for event in self.body_iterator:
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except TimeoutError:
            last = _event(error_body(timed_out(self._timeout)))
        await send({"type": "http.response.body", "body": last, "more_body": False})

    async def _events(self) -> AsyncIterator[bytes]:
        none = {"usage": None} if self._usage else {}
        part = self._first
        try:
            while part is not None:
                yield _event(part | none)
                part = await anext(self._source, None)
        except ApiError as error:
            yield _event(error_body(error))
            return
        if self._usage:
            yield _event(self._frame.part() | {"usage": self._frame.usage.body()})
        yield b"data: [DONE]\n\n"


def _event(value: Part) -> bytes:
    return b"data: %b\n\n" % _written(value).encode("utf-8", "backslashreplace")


_written = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
