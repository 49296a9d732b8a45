"""Random calls from several threads, with interrupts, closes and abandoned streams."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

import dlf
from dlf import zoo

SECONDS = float(os.environ.get("DLF_STRESS_SECONDS", "45"))
TOKENS = 40
PROMPTS = [problem.prompt for problem in zoo.problems("math")[:5]] + ["The quick", "x " * 150]
CHOICES = [None, [], ["math-expert"]]
SPECULATE = ["auto", False, dlf.Speculation("prompt_lookup")]


def make_engine() -> dlf.Engine:
    base = zoo.path("small-base")
    experts = [dlf.Expert(zoo.path("math-expert"), base=base), dlf.InContext(base, [("2 + 2", "4")])]
    return dlf.Engine(zoo.path("large-base"), experts, threads=2, max_batch=3, prefix_cache_bytes=1 << 22)


class GivenUpError(Exception):
    """Raised by a callback."""


@dataclass
class Caller:
    """Makes one random call after another and compares the results with those of a single thread."""

    engines: list[dlf.Engine]  # the last one is in use
    tokens: dict[Any, list[int]]
    scores: dict[str, list[dlf.Score]]
    random: random.Random
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def call(self) -> None:
        """Make one call; the only error allowed is that of a closed engine."""
        kind = self.random.choice([self.list, self.stream, self.leave, self.stop, self.fail, self.close, self.score])
        try:
            kind(self.engines[-1])
            self.counts[kind.__name__] += 1
        except RuntimeError as error:
            if "closed" not in str(error):
                self.wrong.append(f"{kind.__name__}: {error!r}")
        except Exception as error:
            self.wrong.append(f"{kind.__name__}: {error!r}")

    def choose(self, tokens: int = TOKENS) -> tuple[str, dict[str, Any], list[int]]:
        prompt, number, temperature = self.random.choice(PROMPTS), self.random.randrange(3), self.random.choice([0, 1])
        options = {
            "experts": CHOICES[number],
            "temperature": temperature,
            "speculate": self.random.choice(SPECULATE),
            "max_new_tokens": tokens,
            "seed": 5,
            "ignore_eos": True,
        }
        return prompt, options, self.tokens[prompt, number, temperature]

    def list(self, engine: dlf.Engine) -> None:
        count = self.random.randint(1, TOKENS)
        prompt, options, expected = self.choose(count)
        for found in engine.generate([prompt] * self.random.randint(1, 4), progress=False, **options):
            assert found.tokens == expected[:count]

    def stream(self, engine: dlf.Engine) -> None:
        prompt, options, expected = self.choose()
        assert [piece.token for piece in engine.stream(prompt, **options)] == expected

    def leave(self, engine: dlf.Engine) -> None:
        prompt, options, expected = self.choose(300)
        stream = engine.stream(prompt, **options)
        taken = [next(stream).token for _ in range(self.random.randint(0, 3))]
        assert taken == expected[: len(taken)]
        self.random.choice([stream.close, lambda: None, lambda: [cycle := [stream], cycle.append(cycle)]])()

    def stop(self, engine: dlf.Engine) -> None:
        prompt, options, expected = self.choose()
        count = itertools.count(1)
        found = engine.generate(prompt, callback=lambda piece: next(count) < 7, **options)
        assert found.tokens == expected[:7] and found.finish_reason == "callback"

    def fail(self, engine: dlf.Engine) -> None:
        def give_up(piece: dlf.Piece) -> None:
            if self.random.random() < 0.3:
                raise GivenUpError

        prompt, options, _ = self.choose()
        with pytest.raises(GivenUpError):
            while True:
                engine.generate([prompt] * 3, callback=give_up, progress=False, **options)

    def close(self, engine: dlf.Engine) -> None:
        prompt, options, expected = self.choose(300)
        stream = engine.stream(prompt, **options)
        timer = threading.Timer(self.random.random() / 50, stream.close)
        timer.start()
        taken = [piece.token for piece in stream][:TOKENS]
        timer.join()
        assert taken == expected[: len(taken)]

    def score(self, engine: dlf.Engine) -> None:
        prompt = self.random.choice(PROMPTS)
        for found, expected in zip(engine.score(prompt, [" 42", " of the"]), self.scores[prompt], strict=True):
            assert np.array_equal(found.logprobs, expected.logprobs) and np.array_equal(found.alpha, expected.alpha)


def uninterrupted(work: Callable[[], None]) -> None:
    while True:
        try:
            return work()
        except KeyboardInterrupt:
            continue


@pytest.mark.slow
def test_random_calls() -> None:
    with make_engine() as engine:
        options = {"max_new_tokens": TOKENS, "seed": 5, "ignore_eos": True}
        tokens = {
            (prompt, number, heat): engine.generate(prompt, experts=CHOICES[number], temperature=heat, **options).tokens
            for prompt in PROMPTS
            for number in range(3)
            for heat in (0, 1)
        }
        scores = {prompt: engine.score(prompt, [" 42", " of the"]) for prompt in PROMPTS}
    engines = [make_engine()]
    callers = [Caller(engines, tokens, scores, random.Random(seed)) for seed in range(6)]
    end = time.monotonic() + SECONDS

    def call(caller: Caller) -> None:
        while time.monotonic() < end and not any(one.wrong for one in callers):
            caller.call()

    def interrupt() -> None:
        pause = random.Random(9)
        while time.monotonic() < end and not any(one.wrong for one in callers):
            time.sleep(pause.random() / 4)
            os.kill(os.getpid(), signal.SIGINT)

    def main() -> None:
        for calls in itertools.count(1):
            if time.monotonic() > end or any(one.wrong for one in callers):
                return
            callers[0].call()
            if calls % 100 == 0:
                engines.append(make_engine())
                engines[-2].close()
            if calls % 30 == 0:
                gc.collect()

    threads = [threading.Thread(target=call, args=(caller,)) for caller in callers[1:]]
    threads.append(threading.Thread(target=interrupt))
    for thread in threads:
        thread.start()
    uninterrupted(main)
    for thread in threads:
        uninterrupted(thread.join)
    assert not [words for caller in callers for words in caller.wrong]
    assert len(sum((caller.counts for caller in callers), Counter())) == 7
    gc.collect()
    assert not engines[-1]._running
    engines[-1].close()
