"""What a request must pass before its body is read, a key and a bound on its size, and what an error must not pass."""

from __future__ import annotations

import hmac
import json
import logging
import traceback

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dlf.server.errors import ApiError, error_body, from_engine
from dlf.server.settings import ServerSettings

__all__ = ["Guard", "log_failure"]

logger = logging.getLogger("dlf.server")
MAX_DIGITS = 18  # of a length
OPEN = ("/", "/health", "/health/live", "/health/ready", "/version")  # the page asks for a key; probes have none


class Guard:
    """Middleware that refuses requests without a key and bodies that are too large; an error ends one request alone.

    Parameters
    ----------
    app
        The application behind it.
    settings
        Its keys, of which none is needed if there are none, and the most bytes of a body.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._app = app
        self._keys = [key.encode() for key in settings.api_keys]
        self._most = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self._keys and scope["path"] not in OPEN and not self._knows(headers.get(b"authorization", b"")):
            await _refuse(
                send, ApiError(401, "give a valid API key: Authorization: Bearer KEY", code="invalid_api_key")
            )
            return
        too_large = ApiError(413, f"the body is larger than {self._most} bytes", code="request_too_large")
        said = headers.get(b"content-length", b"0")
        if not said.isdigit() or len(said) > MAX_DIGITS or int(said) > self._most:
            await _refuse(send, too_large)
            return
        read = 0
        refused = started = False

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._most:
                raise too_large  # which the application may turn into another error
            return message

        async def checked(message: Message) -> None:
            nonlocal refused, started
            started = True
            if read <= self._most:
                await send(message)
            elif not refused:
                refused = True
                await _refuse(send, too_large)

        try:
            await self._app(scope, bounded, checked)
        except Exception as error:
            log_failure(error)
            if started:  # uvicorn closes the connection, so that the client sees that the answer is not whole
                raise RuntimeError("an answer was broken off") from None
            await _refuse(send, from_engine(RuntimeError()))

    def _knows(self, header: bytes) -> bool:
        """Whether a header has one of the keys; takes the same time for every key of a length."""
        kind, _, key = header.partition(b" ")
        matches = [hmac.compare_digest(key.strip(), one) for one in self._keys]
        return kind.lower() == b"bearer" and any(matches)


def log_failure(error: BaseException) -> None:
    """Log where an error came from; its message stays out, since it may quote a prompt."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("a request failed with %s at\n%s", type(error).__name__, frames)


async def _refuse(send: Send, error: ApiError) -> None:
    body = json.dumps(error_body(error)).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
