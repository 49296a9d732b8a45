"""Requests, threads and processes: who owns a request, and what happens when the owner leaves."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest

import dlf
from dlf import _C, zoo
from dlf.ensemble import Ensemble
from dlf.request import RunningRequest

PROMPT = "Q: What is 12 plus 30?\nA:"
LONG = {"max_new_tokens": 400, "ignore_eos": True}
OPTIONS = {"max_new_tokens": 30, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine() -> Iterator[dlf.Engine]:
    with dlf.Engine(zoo.path("small-base"), threads=1, max_batch=2) as engine:
        yield engine


@pytest.fixture(scope="module")
def expected(engine: dlf.Engine) -> list[int]:
    return engine.generate(PROMPT, **OPTIONS).tokens


@pytest.fixture(autouse=True)
def nothing_is_left(engine: dlf.Engine, expected: list[int]) -> Iterator[None]:
    """Check after each test that no request runs and that the next one is right."""
    yield
    assert not engine._running
    assert engine.generate(PROMPT, **OPTIONS).tokens == expected


def closed(stream: dlf.Stream) -> None:
    stream.close()


def begun_and_closed(stream: dlf.Stream) -> None:
    next(stream)
    stream.close()
    assert list(stream) == []


def left(stream: dlf.Stream) -> None:
    with stream:
        next(stream)


def forgotten(stream: dlf.Stream) -> None:
    pass


def forgotten_in_a_cycle(stream: dlf.Stream) -> None:
    next(stream)
    session: dict[str, object] = {"stream": stream}
    session["session"] = session


@pytest.mark.parametrize("leave", [closed, begun_and_closed, left, forgotten, forgotten_in_a_cycle])
def test_a_stream_ends_with_whoever_wanted_it(engine: dlf.Engine, leave: Callable[[dlf.Stream], None]) -> None:
    for _ in range(4):  # more than the two slots
        leave(engine.stream(PROMPT, **LONG))
    gc.collect()


def test_a_stream_is_closed_while_a_piece_is_awaited(engine: dlf.Engine) -> None:
    async def close_early() -> None:
        stream = engine.stream(PROMPT, **LONG)
        taken = asyncio.create_task(asyncio.to_thread(list, stream))
        await asyncio.sleep(0.002)
        stream.close()
        assert len(await taken) < 400

    for _ in range(10):
        asyncio.run(close_early())


def test_one_thread_at_a_time_takes_pieces(engine: dlf.Engine) -> None:
    stream = engine.stream(PROMPT, **OPTIONS)
    with stream._taking, pytest.raises(ValueError, match="another thread"):
        next(stream)


def test_a_stream_keeps_its_engine() -> None:
    def stream() -> dlf.Stream:
        return dlf.Engine(zoo.path("small-base"), threads=1).stream(PROMPT, **OPTIONS)

    assert len(list(stream())) == 30


def test_a_forgotten_engine_ends_its_thread() -> None:
    engine = dlf.Engine(zoo.path("small-base"), threads=1)
    engine.generate(PROMPT, max_new_tokens=1)
    thread = engine._driver._thread
    del engine
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_finalisers_may_run_inside_a_step(engine: dlf.Engine) -> None:
    """The garbage collector may run them anywhere."""
    for _ in range(30):
        forgotten_in_a_cycle(engine.stream(PROMPT, **LONG))
        engine.generate([PROMPT] * 2, max_new_tokens=1)
    gc.collect()


def test_a_callback_ends_its_sequence_while_others_run(engine: dlf.Engine, expected: list[int]) -> None:
    stop = threading.Event()

    def others() -> None:
        while not stop.is_set():
            engine.generate("The quick", **OPTIONS)

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for count in range(1, 12):
            seen: list[int] = []

            def take(piece: dlf.Piece, seen: list[int] = seen, count: int = count) -> bool:
                seen.append(piece.token)
                time.sleep(0.002)
                return len(seen) < count

            found = engine.generate(PROMPT, callback=take, **OPTIONS)
            assert seen == found.tokens == expected[:count] and found.finish_reason == "callback"
    finally:
        stop.set()
        thread.join()


def test_an_interrupt_costs_nobody_else_a_token(
    engine: dlf.Engine, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    take = RunningRequest.take

    def interrupted(self: RunningRequest, output: _C.StepOutput) -> None:
        take(self, output)
        if threading.current_thread() is threading.main_thread() and len(self._tokens) == 10:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunningRequest, "take", interrupted)
    for _ in range(5):
        found: list[list[int]] = []
        thread = threading.Thread(target=lambda found=found: found.append(engine.generate(PROMPT, **OPTIONS).tokens))
        stream = engine.stream("Once", **LONG)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            list(stream)
        assert list(stream) == []  # the stream has ended, since the interrupt lost a token
        thread.join()
        assert found == [expected]


def test_text_is_encoded_while_others_decode(
    engine: dlf.Engine, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, encode = threading.Event(), dlf.prepare.lane_prompts

    def wait(*arguments: object, **options: object) -> list[_C.Prompt]:
        if threading.current_thread() is not threading.main_thread():
            slow.wait(10)
        return encode(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("dlf.prepare.lane_prompts", wait)
    thread = threading.Thread(target=engine.generate, args=(PROMPT,), kwargs={"max_new_tokens": 1})
    thread.start()
    assert engine.generate(PROMPT, **OPTIONS).tokens == expected
    assert thread.is_alive()
    slow.set()
    thread.join()


def test_what_runs_goes_on_during_a_long_scoring(engine: dlf.Engine, expected: list[int]) -> None:
    continuations = [[5 + i] * 300 for i in range(30)]
    alone = engine.score(PROMPT, continuations)
    with engine.stream(PROMPT, max_new_tokens=200, ignore_eos=True) as stream:
        first = next(stream).token
        beside = engine.score(PROMPT, continuations)
        assert stream._call._inbox._notes.qsize() >= len(continuations) - 1
        tokens = [first, *(piece.token for piece in stream)]
    assert tokens[:30] == expected
    for one, other in zip(alone, beside, strict=True):
        assert one.logprobs.tolist() == other.logprobs.tolist() and one.alpha.tolist() == other.alpha.tolist()


def test_a_scoring_that_is_interrupted_ends(engine: dlf.Engine) -> None:
    for _ in range(3):
        pressed = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
        pressed.start()
        with pytest.raises(KeyboardInterrupt):
            while True:
                engine.score(PROMPT, [[5] * 300] * 64)
        pressed.join()


def test_a_step_that_breaks_off_fails_all_of_its_requests(
    engine: dlf.Engine, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = {MemoryError: MemoryError("none left"), RuntimeError: OSError("lost")}
    for kind, error in errors.items():
        streams = [engine.stream(PROMPT, **LONG) for _ in range(3)]
        for stream in streams[:2]:
            next(stream)

        class Broken:
            def __init__(self, loop: _C.StepLoop, error: Exception) -> None:
                self._loop, self._error = loop, error

            def __getattr__(self, name: str) -> object:
                return getattr(self._loop, name)

            def step(self, hook: object, masks: object) -> None:
                engine._driver._loop = self._loop
                raise self._error

        def break_it(poll: object, error: Exception = error) -> None:
            engine._driver._loop = Broken(engine._driver.loop, error)  # type: ignore[assignment]

        engine._driver.call(break_it)
        for stream in streams:
            with pytest.raises(kind, match=str(error)):
                list(stream)
        assert engine.generate(PROMPT, **OPTIONS).tokens == expected


def test_the_loop_prepares_while_nobody_waits(engine: dlf.Engine, expected: list[int]) -> None:
    prepared: list[bool] = []

    class Preparing:
        def __init__(self, loop: _C.StepLoop) -> None:
            self._loop = loop

        def __getattr__(self, name: str) -> object:
            return getattr(self._loop, name)

        def prepare(self) -> bool:
            prepared.append(self._loop.idle)
            return len(prepared) % 4 != 0  # three pieces of work, then none

    def replace(poll: object) -> None:
        engine._driver._loop = Preparing(engine._driver.loop)  # type: ignore[assignment]

    def restore(poll: object) -> None:
        engine._driver._loop = engine._driver.loop._loop  # type: ignore[attr-defined]

    engine._driver.call(replace)
    try:
        for gap in (1, 2):
            deadline = time.monotonic() + 10
            while len(prepared) < 4 * gap and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            assert prepared == [True] * 4 * gap
            assert engine.generate(PROMPT, **OPTIONS).tokens == expected
    finally:
        engine._driver.call(restore)


def test_experts_change_only_while_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other requests may start while an expert is loaded."""
    expert = dlf.Expert(zoo.path("math-expert"), base=zoo.path("small-base"))
    load, streams = Ensemble.load, []
    with dlf.Engine(zoo.path("large-base"), threads=1, max_batch=2) as engine:

        def slowly(*arguments: object, **options: object) -> Ensemble:
            engine.generate(PROMPT, max_new_tokens=1)
            streams.append(engine.stream(PROMPT, **LONG))
            return load(*arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Ensemble, "load", slowly)
        with pytest.raises(RuntimeError, match="1 requests are running"):
            engine.add_expert(expert)
        assert engine.experts == [] and len(list(streams[0])) == 400
        monkeypatch.setattr(Ensemble, "load", load)
        engine.add_expert(expert)
        assert engine.experts == ["math-expert"]


def test_experts_change_while_a_request_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = dlf.Expert(zoo.path("math-expert"), base=zoo.path("small-base"))
    encode = dlf.prepare.lane_prompts
    with dlf.Engine(zoo.path("large-base"), threads=1) as engine:

        def meanwhile(*arguments: object, **options: object) -> list[_C.Prompt]:
            found = encode(*arguments, **options)  # type: ignore[arg-type]
            if not engine.experts:
                engine.add_expert(expert)
            return found

        monkeypatch.setattr("dlf.prepare.lane_prompts", meanwhile)
        assert engine.generate(PROMPT, max_new_tokens=3).alpha.shape == (3, 1)


def test_closing_fails_whoever_waits() -> None:
    engine = dlf.Engine(zoo.path("small-base"), threads=1, max_batch=1)
    found: list[str] = []

    def wait(work: Callable[[], object]) -> None:
        try:
            work()
        except RuntimeError as error:
            found.append(str(error))

    works: list[Callable[[], object]] = [
        lambda: engine.generate([PROMPT] * 100, **LONG),
        lambda: list(engine.stream(PROMPT, **LONG)),
        lambda: engine.score([PROMPT] * 5000, [[5] * 300] * 5000),
    ]
    threads = [threading.Thread(target=wait, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    while len(engine._running) < 102:
        pass
    engine.close()
    for thread in threads:
        thread.join(10)
    assert len(found) == 3 and all("closed" in words for words in found)


def run(program: str) -> subprocess.CompletedProcess[str]:
    start = f"import os, signal, threading, time\nimport dlf\nfrom dlf import zoo\nPROMPT = {PROMPT!r}\n"
    command = [sys.executable, "-P", "-c", start + program]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_closing_in_a_signal_handler() -> None:
    """Close an engine as a server does at its end: the handler interrupts any work of the main thread."""
    done = run("""
engine = dlf.Engine(zoo.path("small-base"), threads=1)
def end(*arguments):
    engine.close()
    raise SystemExit(7)
signal.signal(signal.SIGTERM, end)
threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
while True:
    engine.generate([PROMPT] * 4, max_new_tokens=400, ignore_eos=True)
""")
    assert (done.returncode, done.stderr) == (7, "")


def test_a_process_ends_while_daemon_threads_wait() -> None:
    done = run("""
engine = dlf.Engine(zoo.path("small-base"), threads=2, max_batch=2)
works = [
    lambda: engine.generate([PROMPT] * 50, max_new_tokens=400, ignore_eos=True),
    lambda: list(engine.stream(PROMPT, max_new_tokens=400, ignore_eos=True)),
    lambda: engine.score([PROMPT] * 5000, [[5, 6, 7]] * 5000),
]
for work in works:
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
""")
    assert (done.returncode, done.stderr) == (0, "")


def in_a_child(work: Callable[[], bool]) -> int:
    """Return the exit code of a forked child: 0 if `work` returns True there."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = 0 if work() else 1
        except BaseException:
            traceback.print_exc()  # pytest shows it if the code is unexpected
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_an_engine_goes_on_in_a_forked_child() -> None:
    for threads in (1, 2):
        with dlf.Engine(zoo.path("small-base"), threads=threads, max_batch=2) as engine:
            expected = engine.generate(PROMPT, **OPTIONS).tokens

            def goes_on(engine: dlf.Engine = engine, expected: list[int] = expected) -> bool:
                return engine.generate(PROMPT, **OPTIONS).tokens == expected

            assert in_a_child(goes_on) == 0
            assert goes_on()


def test_a_request_belongs_to_the_process_that_began_it(engine: dlf.Engine, expected: list[int]) -> None:
    def fails(stream: dlf.Stream) -> bool:
        try:
            list(stream)
        except RuntimeError as error:
            return "forked" in str(error)
        return False

    def engine_works_or_says_why() -> bool:
        try:
            return engine.generate(PROMPT, **OPTIONS).tokens == expected
        except RuntimeError as error:
            return "in the middle of a step" in str(error)

    for _ in range(5):
        with engine.stream(PROMPT, **LONG) as stream:
            next(stream)
            assert in_a_child(lambda stream=stream: fails(stream) and engine_works_or_says_why()) == 0
