"""``/v1/chat/completions``: conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from dlf.results import Piece
from dlf.server.answers import Answer, alpha_fields
from dlf.server.errors import ApiError
from dlf.server.generation import batches_of, choices_of, engine_options, fused_names, fusion_options
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
    fusion = fusion_options(body, experts)
    choices = choices_of(body, served, [messages_of(body.messages)], options | fusion, messages=True)
    tokenizer, names = served.engine.tokenizer, fused_names(served, fusion)
    opened: set[int] = set()  # choices of which the stream has sent the role
    async for choice, pieces, reason in batches_of(choices, answer, body.stream):
        content = "".join(piece.text for piece in pieces)
        logprobs = {"content": [_logprob(tokenizer, one) for one in pieces], "refusal": None} if body.logprobs else None
        more = alpha_fields(pieces, tokenizer, names) if body.return_alpha else {}
        if not body.stream:
            message = {"role": "assistant", "content": content, "refusal": None}
            yield answer.part(_choice(choice.index, "message", message, logprobs, reason) | more)
            continue
        if choice.index not in opened:
            opened.add(choice.index)
            yield answer.part(_choice(choice.index, "delta", {"role": "assistant", "content": ""}, None, None))
        delta = {"content": content} if pieces else {}
        yield answer.part(_choice(choice.index, "delta", delta, logprobs if pieces else None, reason) | more)


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
