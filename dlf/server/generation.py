"""From the body of a request to streams of the engine, one for each choice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from dlf.results import Piece
from dlf.rule import FIELDS
from dlf.server.answers import Answer
from dlf.server.errors import ApiError
from dlf.server.messages import messages_of
from dlf.server.protocol import GenerationRequest
from dlf.server.service import Served
from dlf.server.settings import ServerSettings
from dlf.server.structure import grammar_of
from dlf.stream import AsyncStream

__all__ = ["Choice", "batches_of", "choices_of", "engine_options", "fused_names", "fusion_options"]

SEEDS = 1 << 63
DEFAULTS = {"temperature": 1.0}  # OpenAI's
# Options of sampling that requests give under the engine's names.
SAMPLING = (
    "frequency_penalty",
    "presence_penalty",
    "repetition_penalty",
    "logit_bias",
    "temperature",
    "top_p",
    "min_p",
    "stop_token_ids",
    "bad_words",
)
GUIDANCE = ("negative_prompt", "positive_prompt", "guidance_scale")


@dataclass(frozen=True)
class Choice:
    """One sequence of a request: its number, the number of its prompt, and its pieces."""

    index: int
    prompt: int
    stream: AsyncStream


def fusion_options(body: GenerationRequest, experts: Sequence[str] | None) -> dict[str, Any]:
    """Options of `AsyncEngine.generate` and `score` that say how a request fuses."""
    found = {name: getattr(body, name) for name in (*FIELDS, *GUIDANCE) if getattr(body, name, None) is not None}
    for name, value in found.items():
        if name in GUIDANCE and isinstance(value, list):
            found[name] = messages_of(value)
    chosen = body.experts if body.experts is not None else experts
    return found if chosen is None else found | {"experts": chosen}


def fused_names(served: Served, options: Mapping[str, Any]) -> list[str]:
    """Names of the experts that a request fuses, in the order of its weights."""
    chosen = options.get("experts")
    return [name for name in served.engine.experts if chosen is None or name in chosen]


def engine_options(
    body: GenerationRequest, served: Served, settings: ServerSettings, max_tokens: int, logprobs: int
) -> dict[str, Any]:
    """Options of sampling, and the drafts, of one choice.

    Raises
    ------
    ApiError
        If the request asks for more than the server allows.
    """
    stop = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    if len(stop) > settings.max_stop:
        raise ApiError(400, f"{len(stop)} stop strings are given; at most {settings.max_stop} are taken", "stop")
    if logprobs > settings.max_logprobs:
        raise ApiError(400, f"logprobs are for at most {settings.max_logprobs} tokens", "top_logprobs")
    found = DEFAULTS | dict(served.defaults)
    found.pop("num_return_sequences", None)
    found |= {name: getattr(body, name) for name in SAMPLING if getattr(body, name) is not None}
    if body.min_tokens is not None:
        found["min_new_tokens"] = body.min_tokens
    if body.top_k is not None:
        found["top_k"] = max(0, body.top_k)  # vLLM's -1 is off
    if stop:
        found["stop_strings"] = stop
    if body.ignore_eos:
        found["ignore_eos"] = True
    if body.speculate is not None:
        found["speculate"] = body.speculate
    if body.priority is not None:
        found["priority"] = body.priority
    if body.return_alpha:
        found["trace"] = True
    grammar = grammar_of(body)
    if grammar is not None:
        found["grammar"] = grammar
    return found | {"max_new_tokens": max_tokens, "logprobs": logprobs}


def choices_of(
    body: GenerationRequest, served: Served, prompts: Sequence[Any], options: Mapping[str, Any], messages: bool = False
) -> list[Choice]:
    """Streams of a request, `n` for each prompt; each has a seed of its own, so that one is the same without others.

    Raises
    ------
    ValueError, TypeError
        If an option is impossible.
    """
    found: list[Choice] = []
    count = body.n or 1
    for number, prompt in enumerate(prompts):
        for sample in range(count):
            seed: dict[str, Any] = {} if body.seed is None else {"seed": (body.seed + sample) % SEEDS}
            given: dict[str, Any] = {"messages": prompt} if messages else {"prompt": prompt}
            found.append(Choice(len(found), number, served.engine.generate(**given, **options, **seed)))
    return found


async def batches_of(
    choices: Sequence[Choice], answer: Answer, stream: bool
) -> AsyncGenerator[tuple[Choice, list[Piece], str | None]]:
    """Yield the pieces of each choice, and at its end why it ended, which `answer` counts.

    In a stream they come as the engine gives them, several at once to a reader that does not keep up; then come none,
    with the reason. Otherwise all of them come at the end.
    """
    held: dict[int, list[Piece]] = {}
    async for choice, pieces in _batches(choices):
        if not pieces:
            yield choice, held.pop(choice.index, []), answer.end(choice.prompt, choice.stream.completion())
            continue
        answer.count(choice.index, pieces)
        if stream:
            yield choice, pieces, None
        else:
            held.setdefault(choice.index, []).extend(pieces)


async def _batches(choices: Sequence[Choice]) -> AsyncGenerator[tuple[Choice, list[Piece]]]:
    """Yield the pieces of all choices as they come, and none at the end of each.

    All of them end when the iterator is closed, when its task is cancelled, and when one of them fails.
    """
    async with AsyncExitStack() as stack:
        for choice in choices:
            await stack.enter_async_context(choice.stream)
        if len(choices) == 1:
            [choice] = choices
            while pieces := await choice.stream.batch():
                yield choice, pieces
            yield choice, []
            return
        queue: asyncio.Queue[tuple[Choice, list[Piece] | BaseException]] = asyncio.Queue()

        async def pump(choice: Choice) -> None:
            try:
                while pieces := await choice.stream.batch():
                    queue.put_nowait((choice, pieces))
                queue.put_nowait((choice, []))
            except Exception as error:
                queue.put_nowait((choice, error))

        tasks = [asyncio.create_task(pump(choice)) for choice in choices]
        try:
            left = len(tasks)
            while left:
                choice, found = await queue.get()
                if isinstance(found, BaseException):
                    raise found
                left -= not found
                yield choice, found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
