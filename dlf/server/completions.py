"""``/v1/completions``: texts or token ids to be continued, or scored by ``echo``."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlf.errors import PromptError
from dlf.rule import FIELDS
from dlf.server.answers import Answer, further_fields
from dlf.server.errors import ApiError
from dlf.server.generation import batches_of, choices_of, engine_options, fused_names, fusion_options
from dlf.server.logprob import in_json
from dlf.server.protocol import CompletionRequest
from dlf.server.service import Served
from dlf.server.settings import ServerSettings
from dlf.text.token_bytes import token_text
from dlf.text.tokenizer import Tokenizer

__all__ = ["complete"]

MAX_TOKENS = 16  # OpenAI's default
Prompt = str | list[int]


@dataclass
class Logprobs:
    """The object ``logprobs`` of a choice: parallel lists over its tokens."""

    tokens: list[str] = field(default_factory=list)
    token_logprobs: list[float | None] = field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = field(default_factory=list)
    text_offset: list[int] = field(default_factory=list)

    def add(self, tokenizer: Tokenizer, token: int, logprob: float | None, top: dict[int, float], offset: int) -> int:
        """Add a token; returns the offset behind it."""
        text = token_text(tokenizer, token)
        self.tokens.append(text)
        self.token_logprobs.append(None if logprob is None else in_json(logprob))
        self.top_logprobs.append({token_text(tokenizer, one): in_json(value) for one, value in top.items()} or None)
        self.text_offset.append(offset)
        return offset + len(text)


@dataclass(frozen=True)
class Echo:
    """A prompt before its completions: its text, its number of tokens, and their log-probabilities if wanted."""

    text: str = ""
    count: int = 0
    logprobs: Logprobs | None = None


NOTHING = Echo()


def prompts_of(body: CompletionRequest) -> list[Prompt]:
    """The prompts of a request."""
    prompt = body.prompt
    if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
        return [prompt]
    return list(prompt)  # type: ignore[arg-type]


async def complete(
    body: CompletionRequest, served: Served, experts: Sequence[str] | None, settings: ServerSettings, answer: Answer
) -> AsyncGenerator[dict[str, Any]]:
    """Yield the parts of an answer: one for each piece in a stream, otherwise one with everything.

    Raises
    ------
    ApiError, ValueError, TypeError
        If the request is impossible.
    """
    if body.suffix:
        raise ApiError(400, "suffix is not supported: these models write from left to right", "suffix")
    if body.best_of not in (None, body.n or 1):
        raise ApiError(400, "best_of is not supported; leave it out, or ask for n choices", "best_of")
    top = int(body.logprobs or 0)
    wants_logprobs = body.logprobs is not None and body.logprobs is not False
    prompts = prompts_of(body)
    max_tokens = MAX_TOKENS if body.max_tokens is None else body.max_tokens
    fusion = fusion_options(body, experts)
    options = engine_options(body, served, settings, max(1, max_tokens), top)
    echoes = [await _echo(served, one, body, fusion, wants_logprobs, top) for one in prompts] if body.echo else None
    if max_tokens == 0:
        if echoes is None:
            raise ApiError(400, "max_tokens 0 is for echo alone: give echo, or ask for a token", "max_tokens")
        for number, echo in enumerate(echoes):
            answer.usage.prompt_tokens += echo.count
            yield answer.part(_choice(number, echo.text, "length", echo.logprobs))
        return
    tokenizer, names = served.engine.tokenizer, fused_names(served, fusion)
    offsets: dict[int, int] = {}  # characters of each choice that its log-probabilities cover
    async for choice, pieces, reason in batches_of(
        choices_of(body, served, prompts, options | fusion), answer, body.stream
    ):
        echo = echoes[choice.prompt] if echoes is not None and choice.index not in offsets else NOTHING
        logprobs, offset = None, offsets.get(choice.index, len(echo.text))
        if wants_logprobs:
            logprobs = Logprobs() if echo.logprobs is None else copy.deepcopy(echo.logprobs)
            for piece in pieces:
                offset = logprobs.add(tokenizer, piece.token, piece.logprob, piece.top_logprobs or {}, offset)
        offsets[choice.index] = offset
        text = echo.text + "".join(piece.text for piece in pieces)
        more = further_fields(body, pieces, tokenizer, names)
        yield answer.part(_choice(choice.index, text, reason, logprobs) | more)


def _choice(index: int, text: str, reason: str | None, logprobs: Logprobs | None) -> dict[str, Any]:
    return {
        "index": index,
        "text": text,
        "logprobs": None if logprobs is None else vars(logprobs),
        "finish_reason": reason,
    }


def _encode(served: Served, prompt: str) -> list[int]:
    return served.engine.tokenizer.encode(prompt, max_tokens=served.engine.max_context)


async def _echo(
    served: Served, prompt: Prompt, body: CompletionRequest, fusion: dict[str, Any], scored: bool, top: int
) -> Echo:
    tokenizer = served.engine.tokenizer
    tokens = list(prompt) if not isinstance(prompt, str) else await asyncio.to_thread(_encode, served, prompt)
    if not tokens:
        raise PromptError("the prompt is empty; give text or token ids")
    text = prompt if isinstance(prompt, str) else tokenizer.decode(tokens, skip_special_tokens=False)
    if not scored:
        return Echo(text, len(tokens))
    logprobs = Logprobs()
    offset = logprobs.add(tokenizer, tokens[0], None, {}, 0)
    if len(tokens) == 1:
        return Echo(text, 1, logprobs)
    if not served.engine.reads_tokens:
        raise ApiError(400, "echo with logprobs needs a model without templates and examples", "echo")
    tops: dict[int, dict[int, float]] = {}

    def look(step: Any) -> None:
        values, indices = step.fused.double().log_softmax(-1).topk(min(top, step.fused.shape[-1]))
        for row in range(len(values)):
            tops[step.step + row] = dict(zip(indices[row].tolist(), values[row].tolist(), strict=True))

    given = {name: fusion[name] for name in (*FIELDS, "experts", "negative_prompt", "guidance_scale") if name in fusion}
    score = await served.engine.score(tokens[:1], tokens[1:], rule=look if top else None, **given)
    for i, (token, logprob) in enumerate(zip(score.tokens, score.logprobs, strict=True)):
        best = tops[i] | {token: float(logprob)} if top else {}
        offset = logprobs.add(tokenizer, token, float(logprob), best, offset)
    return Echo(text, len(tokens), logprobs)
