"""`AsyncEngine`: the same tokens as `Engine`, and requests that end with the tasks that await them."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any

import numpy as np
import pytest

import dlf
from dlf import _C, zoo
from dlf.driver import Answer, Job
from dlf.request import RunningRequest

PROMPT = "Q: What is 12 plus 30?\nA:"
LONG = {"max_new_tokens": 400, "ignore_eos": True}
OPTIONS = {"max_new_tokens": 30, "ignore_eos": True}
EXPERT = dlf.Expert(zoo.path("math-expert"), base=zoo.path("small-base"))
SECONDS = 60


@pytest.fixture(scope="module")
def engine() -> Iterator[dlf.AsyncEngine]:
    engine = dlf.AsyncEngine(zoo.path("small-base"), threads=1, max_batch=2)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def expected() -> dlf.Completion:
    with dlf.Engine(zoo.path("small-base"), threads=1, max_batch=2) as engine:
        return engine.generate(PROMPT, **OPTIONS)


@pytest.fixture(autouse=True)
def nothing_is_left(engine: dlf.AsyncEngine, expected: dlf.Completion) -> Iterator[None]:
    """Check after each test that no request runs and that the next one is right."""
    yield
    gc.collect()
    assert not engine._running
    assert run(engine.complete(PROMPT, **OPTIONS)).tokens == expected.tokens


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, SECONDS))


async def tokens(stream: dlf.AsyncStream) -> list[int]:
    return [piece.token async for piece in stream]


def test_a_stream_is_what_generate_gives(engine: dlf.AsyncEngine, expected: dlf.Completion) -> None:
    async def stream() -> None:
        stream = engine.generate(PROMPT, **OPTIONS)
        pieces = [await anext(stream)]
        assert stream.completion().finish_reason is None
        pieces += [piece async for piece in stream]
        assert [piece.token for piece in pieces] == expected.tokens
        assert [piece.logprob for piece in pieces] == expected.logprobs.tolist()
        assert "".join(piece.text for piece in pieces) == expected.text == stream.completion().text
        assert stream.completion().finish_reason == "length"

    run(stream())


def test_with_experts_it_is_what_the_engine_gives() -> None:
    prompts = [problem.prompt for problem in zoo.problems("math")[:4]]
    with dlf.Engine(zoo.path("large-base"), [EXPERT], threads=1, max_batch=2) as engine:
        completions = engine.generate(prompts, temperature=1, seed=5, max_new_tokens=20)
        score = engine.score(PROMPT, " 42")

    async def same() -> None:
        async with dlf.AsyncEngine(zoo.path("large-base"), threads=1, max_batch=2) as engine:
            await engine.add_expert(EXPERT)
            assert engine.experts == ["math-expert"]
            found, own, *streamed = await asyncio.gather(
                engine.complete(prompts, temperature=1, seed=5, max_new_tokens=20),
                engine.score(PROMPT, " 42"),
                *(tokens(engine.generate(one, temperature=1, seed=5, max_new_tokens=20)) for one in prompts),
            )
            await engine.remove_expert("math-expert")
            assert engine.experts == []
        for one, other, streamed_tokens in zip(found, completions, streamed, strict=True):
            assert one.tokens == other.tokens == streamed_tokens and np.array_equal(one.alpha, other.alpha)
        assert np.array_equal(own.logprobs, score.logprobs)

    run(same())


async def broken_off(engine: dlf.AsyncEngine) -> None:
    async for _ in engine.generate(PROMPT, **LONG):
        break
    assert not engine._running  # at once, not only at the next garbage collection


async def cancelled(engine: dlf.AsyncEngine) -> None:
    stream = engine.generate(PROMPT, **LONG)
    await anext(stream)
    task = asyncio.create_task(tokens(stream))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not engine._running  # although the stream is still referenced
    assert await tokens(stream) == []


async def cancelled_early(engine: dlf.AsyncEngine) -> None:
    """Cancel while the prompt is encoded, queued or read."""
    for pause in (0, 0.0005, 0.001, 0.002):
        task = asyncio.create_task(tokens(engine.generate(PROMPT, **LONG)))
        await asyncio.sleep(pause)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def timed_out(engine: dlf.AsyncEngine) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            while True:
                await engine.complete([PROMPT] * 5, **LONG)


async def failed(engine: dlf.AsyncEngine) -> None:
    with pytest.raises(ZeroDivisionError):
        async for _ in engine.generate(PROMPT, **LONG):
            1 / 0  # noqa: B018


async def left(engine: dlf.AsyncEngine) -> None:
    async with aclosing(engine.generate(PROMPT, **LONG)) as stream:
        await anext(stream)
    assert await tokens(stream) == []


async def never_begun(engine: dlf.AsyncEngine) -> None:
    engine.generate(PROMPT, **LONG)
    async with engine.generate(PROMPT, **LONG) as stream:
        pass
    assert await tokens(stream) == []


async def forgotten_in_a_cycle(engine: dlf.AsyncEngine) -> None:
    stream = engine.generate(PROMPT, **LONG)
    await anext(stream)
    session: dict[str, object] = {"stream": stream}
    session["session"] = session
    del stream, session
    gc.collect()


async def closed_by_a_thread(engine: dlf.AsyncEngine) -> None:
    stream = engine.generate(PROMPT, **LONG)
    threading.Timer(0.005, stream.close).start()
    assert len(await tokens(stream)) < 400


@pytest.mark.parametrize(
    "leave",
    [
        broken_off,
        cancelled,
        cancelled_early,
        timed_out,
        failed,
        left,
        never_begun,
        forgotten_in_a_cycle,
        closed_by_a_thread,
    ],
)
def test_a_request_ends_with_whoever_wanted_it(
    engine: dlf.AsyncEngine, expected: dlf.Completion, leave: Callable[[dlf.AsyncEngine], Awaitable[None]]
) -> None:
    async def several() -> None:
        for _ in range(4):  # more than the two slots
            await leave(engine)
        deadline = time.monotonic() + 5
        while engine._running and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        assert (await engine.complete(PROMPT, **OPTIONS)).tokens == expected.tokens

    run(several())


def test_a_request_that_ends_costs_nobody_else_a_token(engine: dlf.AsyncEngine, expected: dlf.Completion) -> None:
    async def others() -> None:
        for _ in range(10):
            goes = asyncio.create_task(tokens(engine.generate(PROMPT, **OPTIONS)))
            ends = asyncio.create_task(tokens(engine.generate("Once", **LONG)))
            await asyncio.sleep(0.005)
            ends.cancel()
            assert await goes == expected.tokens

    run(others())


def test_a_scoring_that_is_cancelled_ends(engine: dlf.AsyncEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Answer] = []
    begun = threading.Event()

    def noted(work: Any, reply: Callable[[Answer], None], long: bool) -> Job:
        def begin(poll: Any) -> Any:
            begun.set()
            return work(poll)

        def answer(given: Answer) -> None:
            answers.append(given)
            reply(given)

        return Job(begin, answer, long)

    monkeypatch.setattr("dlf.waiting.Job", noted)

    async def cancel() -> None:
        task = asyncio.create_task(engine.score(PROMPT, [[5] * 300] * 64))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine._running and not answers
        await engine.score(PROMPT, " 42")
        assert [error is None for _, error in answers] == [False, True]  # the first has no scores

    run(cancel())


def test_a_hundred_requests_at_once(engine: dlf.AsyncEngine, expected: dlf.Completion) -> None:
    async def hundred() -> list[list[int]]:
        return await asyncio.gather(*(tokens(engine.generate(PROMPT, **OPTIONS)) for _ in range(100)))

    assert run(hundred()) == [expected.tokens] * 100


def test_event_loops_of_several_threads(engine: dlf.AsyncEngine, expected: dlf.Completion) -> None:
    async def several() -> list[list[int]]:
        return await asyncio.gather(*(tokens(engine.generate(PROMPT, **OPTIONS)) for _ in range(5)))

    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.extend(run(several()))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected.tokens] * 15
    run(several())
    assert len(engine._loops) == 1  # entries of closed loops are gone


def test_the_event_loop_runs_while_a_prompt_is_encoded(
    engine: dlf.AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, told = dlf.prepare.lane_prompts, threading.Event()

    def wait(*arguments: Any, **options: Any) -> list[_C.Prompt]:
        assert told.wait(10)  # only the event loop sets it
        return encode(*arguments, **options)

    monkeypatch.setattr("dlf.prepare.lane_prompts", wait)

    async def tell() -> None:
        stream = asyncio.create_task(tokens(engine.generate(PROMPT, **OPTIONS)))
        await asyncio.sleep(0.01)
        told.set()
        await stream

    run(tell())


def test_what_is_wrong_is_said_before_anything_is_queued(engine: dlf.AsyncEngine) -> None:
    with pytest.raises(ValueError, match="temperature"):
        engine.generate(PROMPT, temperature=-1)
    with pytest.raises(ValueError, match="one sequence"):
        engine.generate(PROMPT, temperature=1, num_return_sequences=2)
    for options, words in (({}, "is empty"), ({"stop_token_ids": [10**6]}, "stop_token_ids")):
        with pytest.raises(ValueError, match=words):
            run(anext(engine.generate("" if not options else PROMPT, **options)))
    with pytest.raises(ValueError, match="context holds"):
        run(engine.complete("word " * 100000))


def test_a_reader_may_take_all_pieces_that_have_come(engine: dlf.AsyncEngine, expected: dlf.Completion) -> None:
    async def main() -> None:
        async with engine.generate(PROMPT, **OPTIONS) as stream:
            batches = [await stream.batch()]
            while stream.completion().finish_reason is None:
                await asyncio.sleep(0.01)
                batches.append(await stream.batch())
            batches.append(await stream.batch())
            assert [piece.token for batch in batches for piece in batch] == expected.tokens
            assert max(map(len, batches)) > 1 and all(batches[:-1]) and batches[-1] == []
            assert await stream.batch() == []

    asyncio.run(main())


def test_one_task_at_a_time_takes_pieces(engine: dlf.AsyncEngine) -> None:
    async def two() -> None:
        stream = engine.generate(PROMPT, **OPTIONS)
        first = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="another task"):
            await anext(stream)
        await first

    run(two())


def test_a_stream_belongs_to_its_event_loop(engine: dlf.AsyncEngine) -> None:
    stream = engine.generate(PROMPT, **LONG)
    run(anext(stream))
    with pytest.raises(RuntimeError, match="another event loop"):
        run(tokens(stream))


def test_a_slow_reader_holds_up_nobody(engine: dlf.AsyncEngine, expected: dlf.Completion) -> None:
    async def slow() -> None:
        stream = engine.generate(PROMPT, **OPTIONS)
        first = await anext(stream)
        assert await tokens(engine.generate("Once", **LONG))
        assert [first.token, *await tokens(stream)] == expected.tokens

    run(slow())


def test_closing_fails_whoever_waits() -> None:
    async def close() -> None:
        engine = dlf.AsyncEngine(zoo.path("small-base"), threads=1, max_batch=1)
        tasks = [
            asyncio.create_task(one)
            for one in (
                engine.complete([PROMPT] * 50, **LONG),
                tokens(engine.generate(PROMPT, **LONG)),
                engine.score([PROMPT] * 2000, [[5] * 300] * 2000),
            )
        ]
        while len(engine._running) < 52:
            await asyncio.sleep(0.001)
        await engine.close()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(found, RuntimeError) and "closed" in str(found)
        with pytest.raises(RuntimeError, match="closed"):
            await anext(engine.generate(PROMPT))

    run(close())


def test_a_stream_keeps_its_engine_and_a_forgotten_engine_ends_its_thread() -> None:
    async def forget() -> threading.Thread:
        engine = dlf.AsyncEngine(zoo.path("small-base"), threads=1)
        stream, thread = engine.generate(PROMPT, **OPTIONS), engine._driver._thread
        del engine
        gc.collect()
        assert len(await tokens(stream)) == 30
        return thread

    thread = run(forget())
    gc.collect()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_text_of_a_helper_process_is_decoded_beside_the_event_loop(
    engine: dlf.AsyncEngine, expected: dlf.Completion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(engine.tokenizer), "confined", True)
    threads: set[threading.Thread] = set()
    take = RunningRequest.take

    def noted(self: RunningRequest, output: _C.StepOutput) -> None:
        threads.add(threading.current_thread())
        take(self, output)

    monkeypatch.setattr(RunningRequest, "take", noted)
    assert run(tokens(engine.generate(PROMPT, **OPTIONS))) == expected.tokens
    assert threads and threading.main_thread() not in threads


def test_ctrl_c_ends_a_program() -> None:
    program = f"""
import asyncio, os, signal, threading
import dlf
from dlf import zoo

engine = dlf.AsyncEngine(zoo.path("small-base"), threads=1, max_batch=2)

async def main():
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    while True:
        await asyncio.gather(*(engine.complete({PROMPT!r}, max_new_tokens=400, ignore_eos=True) for _ in range(5)))

try:
    asyncio.run(main())
except KeyboardInterrupt:
    assert not engine._running
    print(asyncio.run(engine.complete({PROMPT!r}, max_new_tokens=5)).text)
"""
    # A process that a script starts in the background ignores Ctrl-C by default.
    default = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-P", "-c", default + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip()


def test_a_process_ends_while_the_event_loop_of_a_daemon_thread_waits() -> None:
    program = f"""
import asyncio, threading, time
import dlf
from dlf import zoo

engine = dlf.AsyncEngine(zoo.path("small-base"), threads=1, max_batch=2)
work = lambda: asyncio.run(engine.complete([{PROMPT!r}] * 50, max_new_tokens=400, ignore_eos=True))
threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
