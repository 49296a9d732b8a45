"""The one thread that steps an engine's loop.

Other threads leave notes in its inbox and wait for the answer (`dlf.waiting`). Leaving a note takes no lock that a step
holds, so finalisers and signal handlers may do it too.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import Any, Protocol, TypeAlias, TypeVar

from dlf import _C
from dlf.errors import EngineError, ErrorKind, StepMemoryError

__all__ = ["Answer", "Driver", "Hook", "Job", "Mask", "News", "Outbox", "Poll", "closed", "outcome"]

Result = TypeVar("Result")
Poll: TypeAlias = "Callable[[], None]"
Hook: TypeAlias = "Callable[[_C.HookRows], bool]"
Mask: TypeAlias = "Callable[[_C.MaskRows], None]"
Answer: TypeAlias = "tuple[Any, BaseException | None]"  # a result or an error

GAP = 0.01  # seconds without a note after which the loop is asked to prepare for later steps
FORKED = "this process was forked from one that {}; make the engine, or the request, in this process"


@dataclass
class News:
    """Outputs of one step for the requests of one outbox."""

    outputs: list[_C.StepOutput]
    timings: _C.StepTimings
    time: float


class Outbox(Protocol):
    """Delivers the outputs of one call to whoever waits for them."""

    def put(self, news: News | Exception | None) -> None:
        """Deliver without waiting; None only wakes the receiver."""


@dataclass
class Job:
    """Work for the driver's thread, which calls `reply` with the answer."""

    work: Callable[[Poll], Any]
    reply: Callable[[Answer], None]
    long: bool = False  # so long that others must not wait for it
    abandoned: bool = False


class Abandoned(Exception):
    """Nobody waits for this job any more."""


class Driver:
    """Steps a loop while it has requests.

    Parameters
    ----------
    loop
        The step loop; the driver owns it from now on.
    survives_fork
        Whether the loop can go on in a forked child; one on a GPU cannot.
    """

    def __init__(self, loop: _C.StepLoop, survives_fork: bool) -> None:
        self._loop: _C.StepLoop | None = loop
        self._survives_fork = survives_fork
        self._outboxes: dict[int, Outbox] = {}
        self._hooks: dict[int, Hook] = {}
        self._masks: dict[int, Mask] = {}
        self._inside = False  # whether the driver's thread is inside the loop
        self._closing = self._ended = False
        self._lost: str | None = None
        self._renew()
        self._start()
        _drivers.add(self)

    def admission(
        self,
        outbox: Outbox,
        requests: Iterable[_C.Request],
        hooks: Mapping[int, Hook],
        masks: Mapping[int, Mask],
        ready: Callable[[], None],
    ) -> Callable[[Poll], None]:
        """Return work that queues requests whose outputs go to `outbox`: all, or none if one is refused.

        Parameters
        ----------
        hooks
            Functions, by request, that see the logits of each step on the driver's thread.
        masks
            Functions, by request, that write the masks of each step, on that thread; they raise nothing.
        ready
            Called first, on the driver's thread; its exceptions reach the caller.

        Raises
        ------
        ValueError, IndexError
            From the work, if the loop cannot run a request.
        """

        def work(poll: Poll) -> None:
            ready()
            added = []
            try:
                for request in requests:
                    self.loop.add(request)
                    self._outboxes[request.id] = outbox
                    if request.id in hooks:
                        self._hooks[request.id] = hooks[request.id]
                    if request.id in masks:
                        self._masks[request.id] = masks[request.id]
                    added.append(request.id)
            except BaseException:
                self._cancel(added)
                raise

        return work

    def cancel(self, requests: Iterable[int]) -> None:
        """End requests before the next step; unknown ones are ignored. Does not wait."""
        self._inbox.put(list(requests))

    @property
    def loop(self) -> _C.StepLoop:
        """The step loop, for work that `call` runs.

        Raises
        ------
        RuntimeError
            If the engine is closed.
        """
        if self._loop is None:
            raise closed()
        return self._loop

    def post(self, job: Job) -> None:
        """Leave a job for the driver's thread, which does it between two steps. Does not wait.

        The work gets a function to call from time to time. If the job is `long`, running requests have a step there;
        if it was abandoned, the function raises and the work ends. Long jobs run one after another.

        Raises
        ------
        RuntimeError
            If the engine is closed.
        """
        if self._closing:
            _park()
            raise closed()
        if self._lost:
            raise EngineError(self._lost, ErrorKind.FORKED)
        self._inbox.put(job)
        self._start()
        if self._ended:
            self._refuse()

    def call(self, work: Callable[[Poll], Result], long: bool = False) -> Result:
        """Post a job and wait, in this thread, for what it returns or raises."""
        replies: SimpleQueue[Answer] = SimpleQueue()
        job = Job(work, replies.put, long)
        try:
            self.post(job)
            found: Result = outcome(replies.get())
        except BaseException:
            job.abandoned = True
            raise
        return found

    def replace(self, make: Callable[[], _C.StepLoop], otherwise: Callable[[], _C.StepLoop]) -> None:
        """Replace the loop, on the driver's thread; if `make` fails, `otherwise` makes the new one."""
        self._loop = None  # frees its caches before the new loop allocates
        try:
            self._loop = make()
        except BaseException:
            self._loop = otherwise()
            raise

    def close(self, wait: bool = True) -> None:
        """End all requests and free the loop."""
        self._closing = True
        if self._first():
            self._end()
            return
        thread = self._thread
        self._inbox.put(None)
        if wait and threading.current_thread() is not thread:
            self._done.get()
            self._done.put(None)  # for the next caller that waits

    def _renew(self) -> None:
        """Make a thread and its inbox; a forked child does not have its parent's."""
        self._inbox: SimpleQueue[Job | list[int] | None] = SimpleQueue()
        self._long: deque[Job] = deque()
        self._done: SimpleQueue[None] = SimpleQueue()
        self._starts = [True]
        self._thread = threading.Thread(target=self._run, name="dlf", daemon=True)

    def _first(self) -> bool:
        """Whether this is the first call; `list.pop` is atomic, so no lock is needed."""
        try:
            return self._starts.pop()
        except IndexError:
            return False

    def _start(self) -> None:
        if not self._first():
            return
        try:
            self._thread.start()
        except RuntimeError as error:
            self._renew()
            raise RuntimeError(f"the engine's thread cannot start ({error}); end other threads or processes") from error

    def _run(self) -> None:
        try:
            while not self._closing:
                self._read(wait=self._idle and not self._long)
                if self._long and not self._closing:
                    self._answer(self._long.popleft())
                self._turn()
        finally:
            self._end()

    @property
    def _idle(self) -> bool:
        return self._loop is None or self._loop.idle

    def _read(self, wait: bool) -> None:
        """Handle the notes in the inbox; long jobs are put off."""
        while not self._closing and (wait or not self._inbox.empty()):
            note = self._next() if wait else self._inbox.get()
            wait = False
            if isinstance(note, list):
                self._cancel(note)
            elif note is not None and note.long:
                self._long.append(note)
            elif note is not None:
                self._answer(note)

    def _next(self) -> Job | list[int] | None:
        """Wait for a note; meanwhile the loop prepares for later requests, piece by piece."""
        while True:
            try:
                return self._inbox.get(timeout=GAP)
            except Empty:
                if not self._prepare():
                    return self._inbox.get()

    def _prepare(self) -> bool:
        before, self._inside = self._inside, True
        try:
            return self._loop is not None and self._loop.prepare()
        except Exception:  # if it matters, a step will fail too and report it
            return False
        finally:
            self._inside = before

    def _turn(self) -> None:
        """Step the loop if requests are running."""
        if not self._idle and not self._closing:
            self._step()

    def _answer(self, job: Job) -> None:
        if not job.abandoned:
            answer = self._work(job)
            if not _exiting:
                job.reply(answer)

    def _work(self, job: Job) -> Answer:
        def poll() -> None:
            if job.abandoned or self._closing:
                raise Abandoned
            if job.long:
                self._read(wait=False)
                self._turn()

        before, self._inside = self._inside, True
        try:
            return job.work(poll), None
        except Abandoned:
            return None, closed()
        except BaseException as error:
            return None, error
        finally:
            self._inside = before

    def _cancel(self, requests: Iterable[int]) -> None:
        for request in requests:
            self._hooks.pop(request, None)
            self._masks.pop(request, None)
            if self._outboxes.pop(request, None) is not None and self._loop is not None:
                self._loop.cancel(request)

    def _step(self) -> None:
        """Run one step and deliver its outputs; if it fails, every request fails."""
        assert self._loop is not None
        before, self._inside = self._inside, True
        try:
            outputs = self._loop.step(self._hook if self._hooks else None, self._mask if self._masks else None)
            timings, time = self._loop.timings, perf_counter()
            news: dict[int, tuple[Outbox, News]] = {}
            for output in outputs:
                outbox = self._outboxes.get(output.request)
                if outbox is None:
                    continue
                news.setdefault(id(outbox), (outbox, News([], timings, time)))[1].outputs.append(output)
                if output.finish != _C.FinishReason.none:
                    del self._outboxes[output.request]
                    self._hooks.pop(output.request, None)
                    self._masks.pop(output.request, None)
            for outbox, own in news.values():
                outbox.put(own)
        except BaseException as error:
            # The contents of the caches are unknown, so no sequence may go on.
            for request in self._outboxes:
                self._loop.cancel(request)
            self._fail(partial(_broken_off, error))
        finally:
            self._inside = before

    def _hook(self, rows: _C.HookRows) -> bool:
        hook = self._hooks.get(rows.request)
        return hook is not None and hook(rows)

    def _mask(self, wanted: Sequence[_C.MaskRows]) -> None:
        for rows in wanted:
            mask = self._masks.get(rows.request)
            if mask is not None:
                mask(rows)

    def _fail(self, make: Callable[[], Exception]) -> None:
        """Fail every request. Each outbox gets an error of its own: two must not share one traceback."""
        outboxes = {id(outbox): outbox for outbox in self._outboxes.values()}
        self._outboxes.clear()
        self._hooks.clear()
        self._masks.clear()
        for outbox in outboxes.values():
            outbox.put(make())

    def _end(self) -> None:
        self._closing = True
        self._loop = None
        if not _exiting:
            self._fail(closed)
        self._ended = True
        self._refuse()
        self._done.put(None)

    def _refuse(self) -> None:
        """Refuse the jobs that are left after the end."""
        while not self._inbox.empty():
            note = self._inbox.get()
            if isinstance(note, Job):
                self._long.append(note)
        while self._long and not _exiting:
            self._long.popleft().reply((None, closed()))

    def _after_fork(self) -> None:
        """Give an idle loop a new thread in a forked child; a busy one, or one on a GPU, is lost."""
        self._renew()
        if self._inside or not self._survives_fork:
            _unusable.append(self._loop)
            self._loop = None
            self._lost = FORKED.format("was in the middle of a step" if self._inside else "had its engine on a GPU")
        for request in list(self._outboxes):
            if self._loop is not None:
                self._loop.cancel(request)
        self._fail(lambda: EngineError(FORKED.format("had begun this request"), ErrorKind.FORKED))


def outcome(answer: Answer) -> Any:
    """Return the result of an answer, or raise its error."""
    result, error = answer
    del answer
    if error is None:
        return result
    try:
        raise error
    finally:
        del error  # its own traceback would keep it, and the loop with it


def closed() -> EngineError:
    """Error for the use of a closed engine."""
    return EngineError("the engine is closed; make a new one", ErrorKind.CLOSED)


def _broken_off(error: BaseException) -> Exception:
    if isinstance(error, MemoryError):
        return StepMemoryError(f"a step of the engine ran out of memory: {error}")
    return EngineError(f"a step of the engine failed: {error}")


_drivers: weakref.WeakSet[Driver] = weakref.WeakSet()
_unusable: list[_C.StepLoop | None] = []  # loops of a forked child that must not even be destroyed
_exiting: list[bool] = []


def _park() -> None:
    """Block a daemon thread while the process ends: an error would only be printed."""
    if _exiting and threading.current_thread().daemon:
        SimpleQueue[None]().get()


@atexit.register
def _close_all() -> None:
    """End every thread while Python can still wait for it; daemon threads that wait for results go on waiting."""
    _exiting.append(True)
    for driver in list(_drivers):
        driver.close()


def _after_fork() -> None:
    for driver in list(_drivers):
        driver._after_fork()


os.register_at_fork(after_in_child=_after_fork)
