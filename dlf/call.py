"""The requests of one call, which end with whoever made it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from types import TracebackType

from dlf import _C
from dlf.driver import Driver, News, Outbox, Submission
from dlf.request import RunningRequest
from dlf.results import Piece

__all__ = ["Call", "Stream"]

AT_ONCE = 256  # requests that the driver queues between two steps


class Call:
    """The requests of one call of `Engine.generate` or `Engine.stream`.

    The driver knows only where to put their outputs. What they become is decided here, in the thread that waits for
    them; and when nobody holds the call any more, they end.

    Parameters
    ----------
    driver
        Of the engine.
    running
        Where the engine lists the requests that are running.
    """

    def __init__(self, driver: Driver, running: dict[int, RunningRequest | None]) -> None:
        self.requests: list[RunningRequest] = []
        self._driver = driver
        self._running = running
        self._outbox: Outbox = SimpleQueue()
        self._by_id: dict[int, RunningRequest] = {}

    def start(
        self, requests: Sequence[RunningRequest], submissions: Sequence[Submission], ready: Callable[[], None]
    ) -> None:
        """Queue the requests; all of them or none. Errors are those of `Driver.submit`."""
        self.requests.extend(requests)
        self._by_id |= {request.request: request for request in requests}
        try:
            for request in requests:
                self._running[request.request] = request
            for begin in range(0, len(submissions), AT_ONCE):
                self._driver.submit(self._outbox, submissions[begin : begin + AT_ONCE], ready)
        except BaseException:
            self.cancel(requests)
            raise

    def receive(self) -> list[RunningRequest]:
        """Wait for what the next step gives, and return the requests that it was for."""
        news = self._outbox.get()
        if news is None:  # cancelled meanwhile
            return []
        if not isinstance(news, News):
            open_ones = [request for request in self.requests if not request.finished]
            for request in open_ones:
                request.fail(news)
                self._running.pop(request.request, None)
            return open_ones
        found = {}
        for output in news.outputs:
            request = self._by_id[output.request]
            if request.finished:  # by a stop string, or from outside
                continue
            found[output.request] = request
            if output.drafted >= 0:  # the first token that the step gave it
                request.spend(news.timings, news.time)
            request.take(output)
            if request.finished:
                self._running.pop(output.request, None)
                if output.finish == _C.FinishReason.none:
                    self._driver.cancel([output.request])
        return list(found.values())

    def cut(self, request: RunningRequest, reason: str) -> None:
        """End a request with the last piece that was taken from it."""
        request.cut(reason)
        self.cancel([request])

    def cancel(self, requests: Sequence[RunningRequest] | None = None) -> None:
        """End requests, all of them if not told which, and wake whoever waits for them.

        Finalisers and signal handlers may call it, so it takes no lock.
        """
        ended = []
        for request in self.requests if requests is None else requests:
            request.cancelled = True
            if self._running.pop(request.request, None) is not None:
                ended.append(request.request)
        if ended:
            self._driver.cancel(ended)
            self._outbox.put(None)

    def __del__(self) -> None:
        try:
            self.cancel()
        except BaseException:  # a Ctrl-C that came just here
            self.cancel()
            raise


class Stream(Iterator[Piece]):
    """The pieces of one sequence, as they come.

    Leaving it, closing it from any thread or forgetting it ends the sequence and frees its places. Whoever waits for
    its next piece then sees the end.
    """

    def __init__(self, call: Call, engine: object) -> None:
        self._call = call
        self._engine = engine  # which must not be closed by being forgotten before the stream is
        self._taking = threading.Lock()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Piece:
        if not self._taking.acquire(blocking=False):
            raise ValueError("another thread is waiting for the next piece of this stream; one at a time")
        request = self._call.requests[0]
        try:
            while not request.pieces:
                if request.finished:
                    request.raise_failure()
                    raise StopIteration
                self._call.receive()
            return request.pieces.popleft()
        except BaseException:
            self.close()
            raise
        finally:
            self._taking.release()

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
