"""Stream three answers at once from one engine, in the tasks of an event loop.

Run it with ``python examples/async_stream.py``. The requests share the engine's batch; a request that is left early
frees its slot at once.
"""

import asyncio

import dlf
from dlf import zoo


async def answer(engine: dlf.AsyncEngine, name: str, prompt: str) -> str:
    """Print the pieces of one answer as they arrive."""
    text = ""
    async for piece in engine.generate(prompt, max_new_tokens=64):
        print(f"{name}{piece.text!r}", end=" ", flush=True)
        text += piece.text
    return text


async def main() -> None:
    """Ask three problems at once."""
    expert = dlf.Expert(zoo.path("math-expert"), base=zoo.path("small-base"))
    async with dlf.AsyncEngine(zoo.path("large-base"), experts=[expert]) as engine:
        problems = dict(zip("abc", zoo.problems("math"), strict=False))
        texts = await asyncio.gather(*(answer(engine, name, one.prompt) for name, one in problems.items()))
        print()
        for (name, problem), text in zip(problems.items(), texts, strict=True):
            print(f"{name}: {text.strip()}  (the answer is {problem.answer})")
        text = ""
        async for piece in engine.generate(problems["a"].prompt):
            text += piece.text
            if "." in text:
                break
        print(f"left after the first sentence: {text.strip()}")


asyncio.run(main())
