"""Measures answers over HTTP and in process, in turns, so that other load of the machine affects all alike."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dlf
from bench.machine import describe
from bench.serving.client import Answer, Body, ask, ask_all
from bench.serving.servers import can_run_llama_cpp, dlf_server, llama_cpp_server
from dlf import zoo

__all__ = ["main"]

RESULTS = Path(__file__).parents[1] / "results" / "serving.json"
IN_PROCESS, HTTP, LLAMA = "in process", "dlf serve", "llama.cpp's server"
AT_ONCE = (1, 4, 8, 16)
TOKENS = 48
CONTEXT = 1536
WORDS = "river stone market seven winter letter garden engine bread quiet mountain copper window harvest signal".split()
Way = Callable[[Sequence[Body], int], Awaitable[list[Answer]]]


def main(
    gguf: Annotated[Path | None, typer.Option(help="GGUF file of a model that llama.cpp runs too.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each way at each concurrency.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of each engine.")] = None,
    output: Annotated[Path, typer.Option(help="JSON file.")] = RESULTS,
) -> None:
    """Tokens a second over HTTP beside the same engine in process, and beside llama.cpp's server."""
    asyncio.run(_run(gguf, rounds, threads or torch.get_num_threads(), output))


async def _run(gguf: Path | None, rounds: int, threads: int, output: Path) -> None:
    found: dict[str, Any] = {"machine": describe(_versions(), threads), "tokens": TOKENS, "rounds": rounds}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "fused.yaml"
        expert = {"model": str(zoo.path("math-expert")), "name": "math"}
        models = {"large": str(zoo.path("large-base")), "base": str(zoo.path("small-base")), "experts": [expert]}
        recipe.write_text(json.dumps(models))
        found["zoo, fused"] = await _measure(str(recipe), None, rounds, threads)
    if gguf is not None:
        found[gguf.stem] = await _measure(str(gguf), gguf if can_run_llama_cpp() else None, rounds, threads)
    _show(found)
    output.write_text(json.dumps(found, indent=1) + "\n")


async def _measure(source: str, peer: Path | None, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one model by every way."""
    name = Path(source).stem if source.endswith(".yaml") else Path(source).name
    options: dict[str, Any] = {"threads": threads, "max_batch": max(AT_ONCE)}
    with ExitStack() as stack:
        length = 256 if peer is None and source.endswith(".yaml") else CONTEXT
        port = stack.enter_context(dlf_server(source, threads, max(AT_ONCE), length))
        options["max_context"] = length
        if source.endswith(".yaml"):
            engine = dlf.AsyncEngine.from_recipe(source, **options)
        else:
            engine = dlf.AsyncEngine(source, **options)
        try:
            ways: dict[str, Way] = {
                IN_PROCESS: lambda bodies, at_once: _complete_all(engine, bodies, at_once),
                HTTP: lambda bodies, at_once: ask_all(port, [_for_dlf(name, one) for one in bodies], at_once),
            }
            if peer is not None:
                other = stack.enter_context(llama_cpp_server(peer, threads, CONTEXT))
                ends = {str(engine.tokenizer.eos_token_id): -100}
                ways[LLAMA] = lambda bodies, at_once: ask_all(
                    other, [one | {"logit_bias": ends} for one in bodies], at_once
                )
            rates = await _turns(ways, rounds)
            gaps = await _beside_long_prompts(port, name, length)
        finally:
            await engine.close()
    return {"tokens a second": rates, "seconds between tokens": gaps}


async def _turns(ways: dict[str, Way], rounds: int) -> dict[str, Any]:
    """Tokens a second of each way at each concurrency, and seconds to the first token: medians over the turns."""
    order = random.Random(1)
    rates: dict[str, dict[int, list[float]]] = {name: {one: [] for one in AT_ONCE} for name in ways}
    firsts: dict[str, dict[int, list[float]]] = {name: {one: [] for one in AT_ONCE} for name in ways}
    for way in ways.values():
        await way(_bodies(1, order), 1)
    for _ in track(range(rounds), "Taking turns"):
        for at_once in AT_ONCE:
            for name in order.sample(list(ways), len(ways)):
                bodies = _bodies(2 * at_once + 2, order)
                start = time.perf_counter()
                answers = await ways[name](bodies, at_once)
                tokens = sum(answer.tokens for answer in answers)
                rates[name][at_once].append(tokens / (time.perf_counter() - start))
                firsts[name][at_once].append(statistics.median(answer.first for answer in answers))
                await asyncio.sleep(0.05)
    return {
        name: {
            str(at_once): {
                "median": statistics.median(rates[name][at_once]),
                "turns": rates[name][at_once],
                # Of the same round, so that a change of the machine between rounds does not count.
                "of in process": statistics.median(
                    own / whole for own, whole in zip(rates[name][at_once], rates[IN_PROCESS][at_once], strict=True)
                ),
                "first token": statistics.median(firsts[name][at_once]),
            }
            for at_once in AT_ONCE
        }
        for name in ways
    }


async def _beside_long_prompts(port: int, name: str, length: int) -> dict[str, Any]:
    """Seconds between the tokens of four streams, alone and while long prompts arrive one after the other."""
    order = random.Random(2)
    count = min(200, length // 2)

    async def stream() -> list[float]:
        bodies = [_for_dlf(name, one | {"max_tokens": count}) for one in _bodies(4, order)]
        return [gap for answer in await ask_all(port, bodies, 4) for gap in answer.gaps]

    async def prompts() -> None:
        while True:
            text = " ".join(order.choices(WORDS, k=length // 4))
            await ask(port, _for_dlf(name, {"prompt": text, "max_tokens": 1, "temperature": 0}))

    alone = await stream()
    arriving = asyncio.create_task(prompts())
    beside = await stream()
    arriving.cancel()
    await asyncio.gather(arriving, return_exceptions=True)
    return {
        label: {"median": float(np.median(gaps)), "p99": float(np.quantile(gaps, 0.99)), "most": max(gaps)}
        for label, gaps in (("alone", alone), ("while prompts arrive", beside))
    }


async def _complete_all(engine: dlf.AsyncEngine, bodies: Sequence[Body], at_once: int) -> list[Answer]:
    """What a program gets from the engine itself."""
    places = asyncio.Semaphore(at_once)

    async def one(body: Body) -> Answer:
        async with places:
            answer = Answer()
            options = {"max_new_tokens": body["max_tokens"], "temperature": 0.0, "ignore_eos": True, "speculate": False}
            async for _ in engine.generate(body["prompt"], **options):
                answer.times.append(time.perf_counter())
            return answer

    return await asyncio.gather(*(one(body) for body in bodies))


def _bodies(count: int, order: random.Random) -> list[Body]:
    """Requests with prompts of their own, so that no cache of prompts helps."""
    prompts = [" ".join(order.choices(WORDS, k=12)) for _ in range(count)]
    return [{"prompt": prompt, "max_tokens": TOKENS, "temperature": 0} for prompt in prompts]


def _for_dlf(name: str, body: Body) -> Body:
    return body | {
        "model": name,
        "ignore_eos": True,
        "speculate": False,
        "stream_options": {"include_usage": True},
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"dlf": dlf.__version__, "torch": torch.__version__}
    for name in ("fastapi", "uvicorn", "llama-cpp-python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _show(found: dict[str, Any]) -> None:
    console = Console()
    for model, measured in found.items():
        if not isinstance(measured, dict) or "tokens a second" not in measured:
            continue
        table = Table(title=f"{model}: tokens a second, and as a share of the engine in process")
        for column in ("", *map(str, AT_ONCE)):
            table.add_column(column)
        for name, cells in measured["tokens a second"].items():
            table.add_row(name, *(f"{one['median']:.0f} ({one['of in process']:.2f})" for one in cells.values()))
        console.print(table)
        for label, gaps in measured["seconds between tokens"].items():
            ratio = gaps["p99"] / gaps["median"]
            console.print(
                f"between tokens of 4 streams, {label}: median {1e3 * gaps['median']:.2f} ms, p99 "
                f"{1e3 * gaps['p99']:.2f} ms ({ratio:.1f} x)"
            )
