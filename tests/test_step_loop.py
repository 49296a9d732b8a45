"""The step loop from Python: who owns its outputs, and values that no engine passes to it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import make_model

from dlf import _C
from dlf.model import load_model

VOCAB = 384
PROMPT = [5, 17, 200, 3] * 5
HUGE = 2**62


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> _C.Weights:
    return load_model(make_model(tmp_path_factory.mktemp("model") / "llama", "llama", seed=3)).weights


def make_loop(
    weights: _C.Weights, *, max_batch: int = 2, max_context: int = 512, threads: int = 2, vocab: int = VOCAB
) -> _C.StepLoop:
    return _C.StepLoop([weights], _C.FusionPlan([0], [], vocab), _C.EngineOptions(max_batch, max_context, threads))


def add(loop: _C.StepLoop, number: int, max_new_tokens: int = 20, **options: object) -> None:
    options = {"logprobs": 3} | options
    speculation = _C.Speculation(4, _C.PROMPT_LOOKUP, False)
    sampling = _C.SamplingOptions(**options)
    loop.add(_C.Request(number, [_C.Prompt(PROMPT)], [], sampling, max_new_tokens, speculation))


def contents(outputs: list[_C.StepOutput]) -> list[tuple[object, ...]]:
    return [(o.request, o.token, o.logprob, list(o.top_tokens), list(o.top_logprobs), o.drafted) for o in outputs]


def run(loop: _C.StepLoop) -> list[int]:
    tokens = []
    while not loop.idle:
        tokens += [output.token for output in loop.step()]
    return tokens


def test_outputs_are_those_who_read_them(weights: _C.Weights) -> None:
    loop = make_loop(weights)
    add(loop, 1)
    add(loop, 2)
    outputs, timings = loop.step(), loop.timings
    seen, seconds = contents(outputs), timings.large
    assert seconds > 0
    loop.cancel(1)
    loop.cancel(2)
    loop.step()
    add(loop, 3)
    loop.step()
    del loop
    assert contents(outputs) == seen
    assert timings.large == seconds


def test_a_poll_ends_scoring(weights: _C.Weights) -> None:
    loop = make_loop(weights)

    def interrupt() -> None:
        raise KeyboardInterrupt("enough")

    with pytest.raises(KeyboardInterrupt, match="enough"):
        loop.score(_C.ScoreRequest([_C.Prompt(PROMPT)], [], [PROMPT]), interrupt)
    assert len(loop.score(_C.ScoreRequest([_C.Prompt(PROMPT)], [], [PROMPT]))[0].logprobs) == len(PROMPT)


def test_sequences_go_on_in_a_poll(weights: _C.Weights) -> None:
    loop = make_loop(weights)
    continuations = [PROMPT[:count] for count in range(2, 12)]
    request = _C.ScoreRequest([_C.Prompt(PROMPT)], [], continuations)
    expected = [score.logprobs for score in loop.score(request)]
    add(loop, 1)
    alone = run(loop)
    tokens: list[int] = []

    def step() -> None:
        tokens.extend(output.token for output in loop.step())
        with pytest.raises(RuntimeError, match="scores something already"):
            loop.score(request)

    add(loop, 1)
    found = loop.score(request, step)
    assert [score.logprobs for score in found] == expected
    assert len(tokens) >= 5
    assert tokens + run(loop) == alone


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda weights: make_loop(weights, threads=0), ValueError, "threads"),
        (lambda weights: make_loop(weights, threads=2**31 - 1), ValueError, "threads"),
        (lambda weights: make_loop(weights, max_batch=HUGE), ValueError, "max_batch"),
        (lambda weights: make_loop(weights, max_batch=-1), ValueError, "max_batch"),
        (lambda weights: make_loop(weights, max_context=HUGE), ValueError, "max_context"),
        (lambda weights: make_loop(weights, vocab=-1), ValueError, "vocab"),
        (lambda weights: make_loop(weights, max_batch=1024, max_context=2**24), MemoryError, "memory ran out.*lower"),
        (lambda weights: add(make_loop(weights), 1, logprobs=HUGE), ValueError, "logprobs"),
        (lambda weights: add(make_loop(weights), 1, logprobs=-1), ValueError, "logprobs"),
        (lambda weights: add(make_loop(weights), 1, 0), ValueError, "max_new_tokens"),
        (lambda weights: _C.Sampler(_C.SamplingOptions(logprobs=HUGE), VOCAB), ValueError, "logprobs"),
        (lambda weights: _C.Sampler(_C.SamplingOptions(), VOCAB, [], HUGE), ValueError, "max_new_tokens"),
        (lambda weights: _C.Sampler(_C.SamplingOptions(), HUGE), ValueError, "vocabulary"),
        (lambda weights: draw(HUGE), ValueError, "draws"),
        (lambda weights: _C.Decoder(weights, HUGE, 16, 1), ValueError, "slots"),
        (lambda weights: _C.Decoder(weights, 1, HUGE, 1), ValueError, "max_context"),
    ],
)
def test_values_are_bounded_before_memory_is_taken(
    weights: _C.Weights, call: Callable[[_C.Weights], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(weights)


def draw(count: int) -> object:
    return _C.sample_many(np.zeros(8, np.float32), _C.SamplingOptions(temperature=1.0), count)


def test_more_tokens_than_the_context_holds_may_be_asked_for(weights: _C.Weights) -> None:
    loop = make_loop(weights, max_context=64)
    add(loop, 1, HUGE)
    assert len(run(loop)) == 64 - len(PROMPT) + 1


def test_a_forked_process_goes_on(weights: _C.Weights) -> None:
    loop = make_loop(weights)
    add(loop, 1)
    expected = run(loop)
    child = os.fork()
    if child == 0:
        try:
            add(loop, 1)
            os._exit(0 if run(loop) == expected else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


# The matrix library keeps each kernel, 0.6 MB; one for each length and each of a model's matrices would be 1 GB.
GROWTH = """
import sys
from dlf import _C
from dlf.model import load_model

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1024

decoder = _C.Decoder(load_model(sys.argv[1], dtype="bfloat16").weights, slots=1, max_context=256, threads=2)
decoder.prefill([7] * 256, 0, 0)
before = resident()
for count in range(17, 256):
    decoder.prefill([7] * count, 0, 0)
print(resident() - before)
"""


def test_a_prompt_of_a_new_length_takes_no_memory(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "llama", "llama", seed=3)
    child = subprocess.run([sys.executable, "-c", GROWTH, folder], capture_output=True, text=True, check=True)
    assert float(child.stdout) < 150
