"""Answers rows with an engine: each row gets an output or an error, whatever becomes of its neighbours."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from dlf.batch.prompts import Row
from dlf.batch.requests import Request, Scored, name_of, request_of
from dlf.server.answers import Answer
from dlf.server.chat import chat
from dlf.server.completions import complete
from dlf.server.errors import ApiError, error_body, from_engine
from dlf.server.generation import fusion_options
from dlf.server.logprob import in_json
from dlf.server.messages import chat_options, messages_of
from dlf.server.protocol import ChatRequest
from dlf.server.service import Service
from dlf.server.settings import ServerSettings

__all__ = ["Answered", "Answerer"]

TRIES = 3  # of a row whose request was broken off by another's failure


@dataclass(frozen=True)
class Answered:
    """The result of a row.

    Attributes
    ----------
    values : dict
        The row as it is written.
    prompt_tokens, completion_tokens : int
        Its tokens; those of a scored continuation count as the prompt's.
    failed : bool
        Whether it has an error.
    """

    values: dict[str, Any]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failed: bool = False


class Answerer:
    """Answers rows with one engine.

    Parameters
    ----------
    service
        The engine, by the name of its recipe.
    model
        This name.
    settings
        Limits of requests.
    defaults
        Fields of requests that rows do not have.
    seed
        Of the batch.
    openai
        Whether rows have the form of OpenAI's batch files.
    """

    def __init__(
        self,
        service: Service,
        model: str,
        settings: ServerSettings,
        defaults: Mapping[str, Any],
        seed: int,
        openai: bool,
    ) -> None:
        self._service, self._model, self._settings = service, model, settings
        self._defaults, self._seed, self._openai = dict(defaults), seed, openai

    async def answer(self, row: Row) -> Answered:
        """Answer a row.

        Raises
        ------
        Exception
            If the engine fails for whatever row.
        """
        name = f"row-{row.number}"
        for left in reversed(range(TRIES)):
            try:
                if row.problem is not None:
                    raise ApiError(400, row.problem)
                name = name_of(row)
                request = request_of(row, name, self._model, self._defaults, self._seed, self._openai)
                return await self._run(row, name, request)
            except Exception as error:
                found = from_engine(error)
                if found.status == 503 and not left:
                    raise
                if found.code == "internal_error":
                    found = ApiError(500, f"{type(error).__name__}: {error!s:.500}", code=found.code)
                if found.status != 503:
                    return self._failure(row, name, found)
        raise AssertionError("unreachable")

    async def _run(self, row: Row, name: str, request: Request) -> Answered:
        served, experts = self._service.find(request.body.model)
        if request.scored is not None:
            return await self._score(row, request, request.scored)
        body = request.body
        frame = Answer("chat.completion" if isinstance(body, ChatRequest) else "text_completion", body.model)
        frame.id = _id(name)
        rest = served, experts, self._settings, frame
        parts = chat(body, *rest) if isinstance(body, ChatRequest) else complete(body, *rest)
        async with aclosing(parts):
            whole = frame.whole([part async for part in parts])
        tokens = frame.usage.prompt_tokens, frame.usage.completion_tokens
        if self._openai:
            return Answered(_response(row, name, 200, whole), *tokens)
        return Answered(row.values | {"output": _output(whole), "error": None}, *tokens)

    async def _score(self, row: Row, request: Request, scored: Scored) -> Answered:
        body = request.body
        served, experts = self._service.find(body.model)
        options = fusion_options(body, experts)
        given: dict[str, Any]
        if isinstance(body, ChatRequest):
            given = {"messages": messages_of(body.messages)} | chat_options(body)
        else:
            given = {"prompt": body.prompt}
        found = await served.engine.score(continuation=scored.continuation, **given, **options)
        output = {
            "tokens": [int(token) for token in found.tokens],
            "logprobs": [in_json(float(one)) for one in found.logprobs],
            "logprob": in_json(found.logprob),
            "is_greedy": [bool(one) for one in found.is_greedy],
        }
        return Answered(row.values | {"output": output, "error": None}, prompt_tokens=len(found.tokens))

    def _failure(self, row: Row, name: str, error: ApiError) -> Answered:
        """An error's message names file and line."""
        message = error.message if row.problem is not None else f"{row.place}: {error.message}"
        if self._openai:
            named = {"code": error.code or "invalid_request", "message": message}
            return Answered(_response(row, name, error.status, error_body(error), named), failed=True)
        return Answered(row.values | {"output": None, "error": message}, failed=True)


def _output(whole: dict[str, Any]) -> dict[str, Any]:
    """The only choice of an answer, flat."""
    [choice] = whole["choices"]
    message, usage = choice.get("message"), whole["usage"]
    found = {
        "text": choice["text"] if message is None else message["content"],
        "tokens": choice.get("token_ids"),
        "finish_reason": choice["finish_reason"],
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
    }
    logprobs = choice["logprobs"]
    if logprobs is not None:
        content = logprobs.get("content")
        if content is None:
            found["logprobs"], found["top_logprobs"] = logprobs["token_logprobs"], logprobs["top_logprobs"]
        else:
            found["logprobs"] = [one["logprob"] for one in content]
            found["top_logprobs"] = [one["top_logprobs"] for one in content]
    if message is not None and "tool_calls" in message:
        found["tool_calls"] = message["tool_calls"]
    return found | ({"fusion": choice["fusion"]} if "fusion" in choice else {})


def _response(
    row: Row, name: str, status: int, body: dict[str, Any], error: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A line of OpenAI's batch output."""
    return {
        "id": f"batch_req_{_id(name)}",
        "custom_id": row.values.get("custom_id"),
        "response": {"status_code": status, "request_id": f"req_{_id(name)}", "body": body},
        "error": error,
    }


def _id(name: str) -> str:
    """An id that is the same in every run."""
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
