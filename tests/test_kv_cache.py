"""Memory of the KV caches: requests share it, are put back where it runs out, and have the same results."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlf
from dlf import _C

CONTEXT = 192
OPTIONS: dict[str, Any] = {"threads": 1, "max_context": CONTEXT, "max_batch": 4}
PROMPTS = [[(7 * i + k) % 90 + 3 for i in range(5 + 10 * k)] for k in range(6)]
SAMPLING: dict[str, Any] = {"temperature": 1.0, "seed": 4, "ignore_eos": True, "frequency_penalty": 0.2}


def make(family: dict[str, Path], tokens: int = 0, **options: Any) -> dlf.Engine:
    """An engine whose KV caches hold so many tokens of every lane."""
    experts = [dlf.Expert(family["expert-a"], family["base"]), dlf.Expert(family["expert-b"], family["base"])]
    engine = dlf.Engine(family["large"], experts, **OPTIONS | options)
    if not tokens:
        return engine
    with engine:
        models = [engine._ensemble.models[lane.model] for lane in engine._ensemble.lanes.lanes]
        width = 4 if not options.get("dtype") else 2
        size = sum(model.config.kv_bytes_per_token(width) for model in models) * tokens
    return dlf.Engine(family["large"], experts, **OPTIONS | options, kv_cache_bytes=size)


# On an emulated device it takes minutes, and repeats step_loop_cuda_test's requests that are put back.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.slow])])
def test_little_memory_changes_no_result(family: dict[str, Path], device: str) -> None:
    prompts, max_batch = (PROMPTS[:3], 2) if device == "cuda" else (PROMPTS, 4)  # larger batches are not exact on CUDA
    with make(family, device=device, max_batch=max_batch) as plenty:
        expected = plenty.generate(prompts, max_new_tokens=120, **SAMPLING)
    with make(family, CONTEXT, device=device, max_batch=max_batch) as engine:
        for _ in range(2):  # first without, then with the prefix cache
            found = engine.generate(prompts, max_new_tokens=120, **SAMPLING)
            for one, other in zip(found, expected, strict=True):
                assert one.tokens == other.tokens
                assert np.array_equal(one.alpha, other.alpha) and np.array_equal(one.logprobs, other.logprobs)
        assert engine.cache_use().put_back > 0


def test_a_grammar_goes_on_after_its_request_was_put_back(family: dict[str, Path]) -> None:
    pytest.importorskip("llguidance")
    grammar = dlf.Grammar.regex("(a|b|c|d| ){100}")
    options = SAMPLING | {"grammar": grammar, "max_new_tokens": 90}
    with make(family) as plenty:
        expected = plenty.generate(PROMPTS, **options)
    with make(family, CONTEXT) as engine:
        found = engine.generate(PROMPTS, **options)
        assert engine.cache_use().put_back > 0
    assert [one.tokens for one in found] == [one.tokens for one in expected]


def test_what_never_fits_is_refused(family: dict[str, Path]) -> None:
    with make(family, 128) as engine:
        with pytest.raises(
            ValueError, match="192 tokens in the KV cache of model 0 .* holds 128: raise kv_cache_bytes"
        ):
            engine.generate(PROMPTS[0], max_new_tokens=150)
        assert engine.generate(PROMPTS[0], max_new_tokens=100, ignore_eos=True).tokens
    with pytest.raises(ValueError, match="kv_cache_bytes is 1000; 64 tokens of every lane take"):
        make(family, kv_cache_bytes=1000)
    with pytest.raises(ValueError, match="kv_cache_bytes"):
        make(family, kv_cache_bytes=-1)
    with make(family) as engine, pytest.raises((TypeError, ValueError), match="priority"):
        engine.generate(PROMPTS[0], priority="high")


def test_the_memory_is_what_was_asked_for(family: dict[str, Path]) -> None:
    with make(family) as engine:
        whole = engine.memory.by_part()
    size = whole["KV cache"] // 3
    with make(family, kv_cache_bytes=size, max_batch=64) as engine:
        found = engine.memory.by_part()
    assert 0.8 * size < found["KV cache"] <= size and "prefix cache" not in found
    assert _C.CACHE_BLOCK == 64


def test_the_lower_priority_begins_first(family: dict[str, Path]) -> None:
    everyone_waits = threading.Event()
    steps: list[int] = []  # numbers of the requests that have them

    def watch(number: int) -> None:
        steps.append(number)
        assert everyone_waits.wait(60)

    async def ask_all() -> None:
        async with dlf.AsyncEngine(family["large"], **OPTIONS | {"max_batch": 1}) as engine:

            async def ask(number: int) -> None:
                options = {"max_new_tokens": 2, "ignore_eos": True, "priority": -number}
                await engine.complete(PROMPTS[0], rule=lambda step: watch(number), **options)

            first = asyncio.create_task(ask(0))
            while not steps:
                await asyncio.sleep(0.01)
            others = [asyncio.create_task(ask(number)) for number in (1, 2, 3)]
            await asyncio.sleep(0.5)
            everyone_waits.set()
            await asyncio.gather(first, *others)

    asyncio.run(ask_all())
    assert steps == [0, 0, 3, 3, 2, 2, 1, 1]


def test_use_of_the_cache(family: dict[str, Path]) -> None:
    with make(family, CONTEXT) as engine:
        assert engine.cache_use() == dlf.CacheUse(0.0, 0)
        with engine.stream(PROMPTS[0], max_new_tokens=120, ignore_eos=True) as stream:
            next(stream)
            assert 0 < engine.cache_use().share <= 1
        assert engine.cache_use().share == 0
