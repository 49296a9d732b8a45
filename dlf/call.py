"""The requests of one call; they end when its caller is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dlf import _C
from dlf.driver import Driver, News
from dlf.request import RunningRequest
from dlf.results import Piece
from dlf.waiting import Waiting

__all__ = ["Call"]

AT_ONCE = 256  # requests that the driver queues between two steps


class Call:
    """The requests of one call of `Engine.generate`, `Engine.stream` or their `AsyncEngine` counterparts.

    The driver only delivers their outputs. The thread or task that waits for them makes text of them here. The requests
    end when nothing refers to the call any more.

    Parameters
    ----------
    driver
        The engine's driver.
    running
        The engine's running requests by id; those of this call are added to it.
    waiting
        How the caller waits.
    """

    def __init__(self, driver: Driver, running: dict[int, RunningRequest | None], waiting: Waiting) -> None:
        self.requests: list[RunningRequest] = []
        self._driver = driver
        self._running = running
        self._waiting = waiting
        self._inbox = waiting.inbox()
        self._by_id: dict[int, RunningRequest] = {}

    async def start(
        self, requests: Sequence[RunningRequest], submissions: Sequence[_C.Request], ready: Callable[[], None]
    ) -> None:
        """Queue the requests, all or none. Errors are those of `Driver.admission`."""
        self.requests.extend(requests)
        self._by_id |= {request.request: request for request in requests}
        hooks = {request.request: request.own_rule for request in requests if request.own_rule is not None}
        masks = {request.request: request.mask for request in requests if request.mask is not None}
        try:
            for request in requests:
                self._running[request.request] = request
            for begin in range(0, len(submissions), AT_ONCE):
                work = self._driver.admission(self._inbox, submissions[begin : begin + AT_ONCE], hooks, masks, ready)
                await self._waiting.answer(self._driver, work)
        except BaseException:
            self.cancel(requests)
            raise

    async def receive(self) -> list[RunningRequest]:
        """Wait for the outputs of the next step, and return the requests that they belong to."""
        news = await self._inbox.get()
        if news is None:  # cancelled meanwhile
            return []
        if not isinstance(news, News):
            open_ones = [request for request in self.requests if not request.finished]
            for request in open_ones:
                request.fail(news)
                self._running.pop(request.request, None)
            return open_ones
        if self.requests[0].tokenizer.confined:  # each token is a round trip to a helper process
            return await self._waiting.aside(partial(self._take, news))
        return self._take(news)

    async def piece(self) -> Piece | None:
        """Wait for the next piece of the only request; None at its end. Raises the error that ended it."""
        [request] = self.requests
        while not request.pieces:
            if request.finished:
                request.raise_failure()
                return None
            await self.receive()
        return request.pieces.popleft()

    async def pieces(self) -> list[Piece]:
        """Wait for the next piece of the only request, and return all that have come; none at its end."""
        first = await self.piece()
        if first is None:
            return []
        while self._inbox.ready():  # the engine was faster than this reader
            await self.receive()
        [request] = self.requests
        found = [first, *request.pieces]
        request.pieces.clear()
        return found

    def _take(self, news: News) -> list[RunningRequest]:
        """Turn outputs into pieces."""
        found = {}
        for output in news.outputs:
            request = self._by_id[output.request]
            if request.finished:  # by a stop string, or from outside
                continue
            found[output.request] = request
            if output.drafted >= 0:  # the first token of this step for the request
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
        """End the given requests, or all of the call, and wake whoever waits for them.

        Finalisers and signal handlers may call it, so it takes no lock.
        """
        ended = []
        for request in self.requests if requests is None else requests:
            request.cancelled = True
            if self._running.pop(request.request, None) is not None:
                ended.append(request.request)
        if ended:
            self._driver.cancel(ended)
            self._inbox.put(None)

    def __del__(self) -> None:
        try:
            self.cancel()
        except BaseException:  # Ctrl-C in the line above
            self.cancel()
            raise
