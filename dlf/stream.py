"""The pieces of one sequence, for a thread and for a task."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import TypeVar

from dlf.call import Call
from dlf.results import Completion, Piece
from dlf.waiting import run

__all__ = ["AsyncStream", "Stream"]

T = TypeVar("T")


class Stream(Iterator[Piece]):
    """The pieces of one sequence, as they come.

    The engine decodes ahead of the reader, by at most ``max_new_tokens``. Leaving the stream, closing it from any
    thread or forgetting it ends the sequence and frees its slots. A thread that waits for the next piece then sees the
    end.
    """

    def __init__(self, call: Call, engine: object) -> None:
        self._call = call
        self._engine = engine  # kept, because a forgotten engine closes itself
        self._taking = threading.Lock()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        if not self._taking.acquire(blocking=False):
            raise ValueError("another thread is waiting for the next piece of this stream; one at a time")
        try:
            piece = run(self._call.piece())
            if piece is None:
                raise StopIteration
            return piece
        except BaseException:
            self.close()
            raise
        finally:
            self._taking.release()

    def completion(self) -> Completion:
        """Result of the sequence so far, and why it ended: None while it runs. Later tokens do not change it."""
        return self._call.requests[0].completion()

    def close(self) -> None:
        """End the sequence."""
        self._call.cancel()
        self._call.requests[0].pieces.clear()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream(AsyncIterator[Piece]):
    """The pieces of one sequence, as they come, for a task of an event loop.

    The prompt is encoded and queued when the first piece is awaited. From then on the engine decodes ahead of the
    reader, by at most ``max_new_tokens``: a slow reader holds up no other request. Leaving the loop over the stream,
    cancelling the task that waits for it or its timeout, closing the stream from any thread or forgetting it ends the
    sequence and frees its slots.
    """

    def __init__(self, start: Callable[[], Awaitable[Call]]) -> None:
        self._start = start  # keeps the engine
        self._call: Call | None = None
        self._taking = self._closed = False

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Piece:
        piece = await self._next(Call.piece)
        if piece is None:
            self.close()
            raise StopAsyncIteration
        return piece

    async def batch(self) -> list[Piece]:
        """Wait for the next piece, and return all that have come; none are left at the end."""
        return await self._next(Call.pieces) or []

    async def _next(self, take: Callable[[Call], Awaitable[T]]) -> T | None:
        if self._taking:
            raise ValueError("another task is waiting for the next piece of this stream; one at a time")
        self._taking = True
        try:
            if self._call is None and not self._closed:
                self._call = await self._start()
            if self._closed:
                self.close()  # another task or thread closed it meanwhile
            return None if self._call is None else await take(self._call)
        except BaseException:
            self.close()
            raise
        finally:
            self._taking = False

    def completion(self) -> Completion:
        """Result of the sequence so far, and why it ended: None while it runs. Later tokens do not change it.

        Raises
        ------
        RuntimeError
            If no piece has been awaited yet.
        """
        if self._call is None:
            raise RuntimeError("the stream has not begun; await a piece first")
        return self._call.requests[0].completion()

    def close(self) -> None:
        """End the sequence. A task that waits for the next piece then sees the end."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()
            self._call.requests[0].pieces.clear()

    async def aclose(self) -> None:
        """End the sequence; for `contextlib.aclosing`."""
        self.close()

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
