"""Two ways to wait for an engine: a thread blocks, a task of an event loop lets others run.

The calls of an engine are written once, as coroutines that wait by one of these classes. With `Blocking` no await
suspends, so `run` completes a coroutine in the calling thread, without an event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from queue import SimpleQueue
from typing import Any, Protocol, TypeAlias, TypeVar

from dlf.driver import Answer, Driver, Job, News, Outbox, Poll, outcome

__all__ = ["Awaiting", "Blocking", "Inbox", "Waiting", "run"]

Result = TypeVar("Result")
Note: TypeAlias = "News | Exception | None"


class Inbox(Outbox, Protocol):
    """The receiving side of an `Outbox`."""

    async def get(self) -> Note:
        """Wait for the driver's next note."""

    def ready(self) -> bool:
        """Whether there is a note, so that `get` need not wait."""


class Waiting(Protocol):
    """How a call waits."""

    def inbox(self) -> Inbox:
        """A new queue for the outputs of a call."""

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Run work that takes a while, such as encoding a text, where it delays nobody else."""

    async def answer(self, driver: Driver, work: Callable[[Poll], Result], long: bool = False) -> Result:
        """Run work on the driver's thread; see `Driver.post`. The work ends if the caller stops waiting."""


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that waits by `Blocking` to its end."""
    try:
        work.send(None)
    except StopIteration as end:
        found: Result = end.value
        return found
    finally:
        work.close()
    raise AssertionError("a coroutine that blocks was suspended")


class Blocking:
    """Waits by blocking the calling thread."""

    def inbox(self) -> Inbox:
        """A queue that `get` blocks on."""
        return _ThreadInbox()

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Run it in this thread."""
        return work()

    async def answer(self, driver: Driver, work: Callable[[Poll], Result], long: bool = False) -> Result:
        """Block until it is done."""
        return driver.call(work, long)


class _ThreadInbox:
    def __init__(self) -> None:
        self._notes: SimpleQueue[Note] = SimpleQueue()
        self.put = self._notes.put

    async def get(self) -> Note:
        return self._notes.get()

    def ready(self) -> bool:
        return not self._notes.empty()


class Awaiting:
    """Waits in tasks of one event loop; the outputs of a step for all of them wake the loop once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._calls: deque[Callable[[], None]] = deque()
        self._woken = False

    def inbox(self) -> Inbox:
        """A queue whose `get` is awaited in this loop."""
        return _TaskInbox(self)

    async def aside(self, work: Callable[[], Result]) -> Result:
        """Run it in another thread."""
        return await asyncio.to_thread(work)

    async def answer(self, driver: Driver, work: Callable[[Poll], Result], long: bool = False) -> Result:
        """Await the result from the driver's thread."""
        future: asyncio.Future[Answer] = self._loop.create_future()
        job = Job(work, partial(self._reply, future), long)
        try:
            driver.post(job)
            found: Result = outcome(await future)
        except BaseException:
            job.abandoned = True
            raise
        finally:
            del job, future  # the traceback of an error would keep them
        return found

    def soon(self, call: Callable[[], None]) -> None:
        """Schedule a call in the loop. Takes no lock: any thread, finaliser or signal handler may use it."""
        if self._loop.is_closed():  # no task can wait there any more
            return
        self._calls.append(call)
        if self._woken:
            return
        try:
            self._woken = True
            self._loop.call_soon_threadsafe(self._catch_up)
        except BaseException as error:
            self._woken = False
            if not (isinstance(error, RuntimeError) and self._loop.is_closed()):
                raise

    def here(self) -> asyncio.AbstractEventLoop:
        """Return the loop.

        Raises
        ------
        RuntimeError
            If another loop is running: nothing would wake it.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise RuntimeError("this belongs to another event loop; await it where it began")
        return self._loop

    def _reply(self, future: asyncio.Future[Answer], answer: Answer) -> None:
        self.soon(partial(_settle, future, answer))

    def _catch_up(self) -> None:
        self._woken = False
        while self._calls:
            self._calls.popleft()()


class _TaskInbox:
    def __init__(self, waiting: Awaiting) -> None:
        self._waiting = waiting
        self._notes: deque[Note] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, news: Note) -> None:
        self._waiting.soon(partial(self._deliver, news))

    def _deliver(self, news: Note) -> None:
        self._notes.append(news)
        if self._waiter is not None:
            _settle(self._waiter, None)

    async def get(self) -> Note:
        loop = self._waiting.here()
        while not self._notes:
            self._waiter = loop.create_future()
            await self._waiter
        return self._notes.popleft()

    def ready(self) -> bool:
        return bool(self._notes)


def _settle(future: asyncio.Future[Result], result: Result) -> None:
    if not future.done():  # its task still waits
        future.set_result(result)
