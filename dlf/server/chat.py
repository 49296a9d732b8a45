"""``/v1/chat/completions``: conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from dlf.results import Piece
from dlf.server.answers import Answer, alpha_fields
from dlf.server.errors import ApiError
from dlf.server.generation import choices_of, engine_options, fusion_options, pieces_of
from dlf.server.logprob import in_json
from dlf.server.protocol import ChatRequest
from dlf.server.service import Served
from dlf.server.settings import ServerSettings
from dlf.text.token_bytes import token_bytes, token_text
from dlf.text.tokenizer import Tokenizer

__all__ = ["chat", "messages_of"]

ROLES = {"developer": "system"}  # OpenAI's new name; templates know the old one


def messages_of(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as chat templates take them."""
    return [one | {"role": ROLES.get(one.get("role", ""), one.get("role"))} for one in given]


async def chat(
    body: ChatRequest, served: Served, experts: Sequence[str] | None, settings: ServerSettings, answer: Answer
) -> AsyncGenerator[dict[str, Any]]:
    """Yield the parts of an answer: one for each piece in a stream, otherwise one with everything.

    Raises
    ------
    ApiError, ValueError, TypeError
        If the request is impossible.
    """
    _refuse(body)
    top = int(body.top_logprobs or 0)
    if top and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if limit == 0:
        raise ApiError(400, "an answer has at least one token", "max_completion_tokens")
    options = engine_options(body, served, settings, limit or served.engine.max_context, top)
    prompts = [messages_of(body.messages)]
    choices = choices_of(body, served, prompts, options | fusion_options(body, experts), messages=True)
    tokenizer = served.engine.tokenizer
    texts: dict[int, list[str]] = {}
    pieces: dict[int, list[Piece]] = {}
    async for choice, piece in pieces_of(choices):
        text, own = texts.setdefault(choice.index, []), pieces.setdefault(choice.index, [])
        reason = None
        if piece is None:
            reason = answer.end(choice.prompt, choice.completion())
        else:
            answer.count(choice.index, piece)
            text.append(piece.text)
            own.append(piece)
        if not body.stream and piece is not None:
            continue
        logprobs = {"content": [_logprob(tokenizer, one) for one in own], "refusal": None} if body.logprobs else None
        more = alpha_fields(own, tokenizer, served.engine.experts) if body.return_alpha else {}
        if body.stream:
            if piece is not None and len(own) == 1 and choice.index not in answer.opened:
                answer.opened.add(choice.index)
                yield answer.part(_choice(choice.index, "delta", {"role": "assistant", "content": ""}, None, None))
            delta = {} if piece is None else {"content": "".join(text)}
            yield answer.part(_choice(choice.index, "delta", delta, logprobs if delta else None, reason) | more)
        else:
            message = {"role": "assistant", "content": "".join(text), "refusal": None}
            yield answer.part(_choice(choice.index, "message", message, logprobs, reason) | more)
        texts[choice.index], pieces[choice.index] = [], []


def _refuse(body: ChatRequest) -> None:
    """Refuse what these models cannot do yet, rather than ignoring it."""
    if body.tools and body.tool_choice != "none":
        raise ApiError(400, "tools are not supported; leave them out, or give tool_choice 'none'", "tools")


def _choice(
    index: int, key: str, value: dict[str, Any], logprobs: dict[str, Any] | None, reason: str | None
) -> dict[str, Any]:
    return {"index": index, key: value, "logprobs": logprobs, "finish_reason": reason}


def _logprob(tokenizer: Tokenizer, piece: Piece) -> dict[str, Any]:
    def one(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, token),
            "logprob": in_json(logprob),
            "bytes": list(token_bytes(tokenizer, token)),
        }

    top = [one(token, logprob) for token, logprob in (piece.top_logprobs or {}).items()]
    return one(piece.token, piece.logprob) | {"top_logprobs": top}
