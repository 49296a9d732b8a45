"""``/v1/chat/completions``: conversations."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from dlf.results import Piece
from dlf.server.answers import Answer, further_fields
from dlf.server.errors import ApiError
from dlf.server.generation import batches_of, choices_of, engine_options, fused_names, fusion_options
from dlf.server.logprob import in_json
from dlf.server.messages import chat_options, messages_of
from dlf.server.protocol import ChatRequest
from dlf.server.service import Served
from dlf.server.settings import ServerSettings
from dlf.server.tools import Spoken, Tools
from dlf.text.token_bytes import token_bytes, token_text
from dlf.text.tokenizer import Tokenizer
from dlf.tool_calls import CallDelta, Delta

__all__ = ["chat"]


async def chat(
    body: ChatRequest, served: Served, experts: Sequence[str] | None, settings: ServerSettings, answer: Answer
) -> AsyncGenerator[dict[str, Any]]:
    """Yield the parts of an answer: one for each piece in a stream, otherwise one with everything.

    Raises
    ------
    ApiError, ValueError, TypeError
        If the request is impossible.
    """
    top = int(body.top_logprobs or 0)
    if top and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    if limit == 0:
        raise ApiError(400, "an answer has at least one token", "max_completion_tokens")
    tools = await Tools.of(body, served, settings)
    tokenizer = served.engine.tokenizer
    options = engine_options(body, served, settings, limit or served.engine.max_context, top)
    if tools is not None:
        options["grammar"] = tools.grammar(tokenizer, options.get("grammar"))
    options |= chat_options(body, tools is not None)
    fusion = fusion_options(body, experts)
    names = fused_names(served, fusion)
    choices = choices_of(body, served, [messages_of(body.messages)], options | fusion, messages=True)
    said = {choice.index: Spoken(tools, tokenizer, body.stream) for choice in choices}
    opened: set[int] = set()  # choices of which the stream has sent the role
    async for choice, pieces, reason in batches_of(choices, answer, body.stream):
        if body.stream and choice.index not in opened:
            opened.add(choice.index)
            first = {"role": "assistant", "content": "" if tools is None else None}
            yield answer.part(_choice(choice.index, "delta", first, None, None))
        spoken = said[choice.index]
        found = spoken.add(pieces, reason)
        logprobs = {"content": [_logprob(tokenizer, one) for one in pieces], "refusal": None} if body.logprobs else None
        more = further_fields(body, pieces, tokenizer, names)
        if not body.stream:
            yield answer.part(_choice(choice.index, "message", _message(found), logprobs, spoken.reason(reason)) | more)
        elif found or reason is not None or tools is None or logprobs or more:  # else it may still become a call
            delta: dict[str, Any] = {"content": found.content} if found.content or pieces and tools is None else {}
            if found.calls:
                delta["tool_calls"] = [_delta(one) for one in found.calls]
            own = logprobs if pieces else None
            yield answer.part(_choice(choice.index, "delta", delta, own, spoken.reason(reason)) | more)


def _message(found: Delta) -> dict[str, Any]:
    """A whole answer."""
    calls = [{"id": one.id, "type": "function", "function": _function(one)} for one in found.calls]
    content = None if calls and not found.content else found.content
    return {"role": "assistant", "content": content, "refusal": None} | ({"tool_calls": calls} if calls else {})


def _delta(call: CallDelta) -> dict[str, Any]:
    """A part of a call in a stream; its first one has the name."""
    if call.id is None:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index, "id": call.id, "type": "function", "function": _function(call)}


def _function(call: CallDelta) -> dict[str, Any]:
    return {"name": call.name, "arguments": call.arguments}


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
