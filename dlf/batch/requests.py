"""From a row to a request, in the form of OpenAI's batch files or with plain columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dlf.batch.prompts import Row
from dlf.server.errors import ApiError, from_validation
from dlf.server.protocol import ChatRequest, CompletionRequest, GenerationRequest

__all__ = ["TOKENS", "Request", "Scored", "check_defaults", "name_of", "request_of"]

URLS: dict[str, type[CompletionRequest | ChatRequest]] = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
}
RESULTS = ("output", "error")
TOKENS = {"max_tokens", "max_completion_tokens"}  # two names of one field
MAX_NAME = 512
SEEDS = 1 << 63


@dataclass(frozen=True)
class Scored:
    """What is scored instead of written: a text or token ids after the prompt."""

    continuation: str | list[int]


@dataclass(frozen=True)
class Request:
    """A request, as the server gets them, and what is scored in its place if anything."""

    body: CompletionRequest | ChatRequest
    scored: Scored | None = None


def name_of(row: Row) -> str:
    """The name of a row, from which its seed comes: its ``custom_id`` or ``id``, else its number.

    Raises
    ------
    ApiError
        If it is neither text nor an integer.
    """
    given = row.values.get("custom_id")
    given = row.values.get("id") if given is None else given
    if given is None:
        return f"row-{row.number}"
    if isinstance(given, bool) or not isinstance(given, (str, int)) or len(str(given)) > MAX_NAME:
        raise ApiError(400, f"custom_id must be a text of at most {MAX_NAME} characters", "custom_id")
    return str(given)


def check_defaults(defaults: Mapping[str, Any]) -> None:
    """Check fields that requests get which do not have them.

    Raises
    ------
    ApiError
        If one of them is impossible.
    """
    _parse(CompletionRequest, {"model": "", "prompt": ""} | {k: v for k, v in defaults.items() if k not in ONLY_CHATS})
    _parse(
        ChatRequest,
        {"model": "", "messages": [{}]} | {k: v for k, v in defaults.items() if k not in ONLY_COMPLETIONS},
    )


def request_of(
    row: Row, name: str, model: str, defaults: Mapping[str, Any], seed: int, openai: bool = False
) -> Request:
    """Return the request of a row.

    Parameters
    ----------
    row
        A row without a problem.
    name
        Its name.
    model
        The model of rows that name none.
    defaults
        Fields of requests that do not have them.
    seed
        The batch's seed; a row without a seed gets one from this and its name.
    openai
        Whether it has the form of OpenAI's batch files.

    Raises
    ------
    ApiError
        If the row is no request.
    """
    kind, given, scored = (_openai if openai else _plain)(row.values)
    known = {key: value for key, value in defaults.items() if key in kind.model_fields}
    if given.keys() & TOKENS:
        known = {key: value for key, value in known.items() if key not in TOKENS}
    own = {"model": model, "seed": _seed(seed, name)} | known
    body = _parse(kind, own | {key: value for key, value in given.items() if value is not None})
    if body.stream:
        raise ApiError(400, "a batch streams nothing; leave stream out", "stream")
    return Request(body, scored)


ONLY_CHATS = ChatRequest.model_fields.keys() - CompletionRequest.model_fields.keys()
ONLY_COMPLETIONS = CompletionRequest.model_fields.keys() - ChatRequest.model_fields.keys()


def _openai(values: Mapping[str, Any]) -> tuple[type[CompletionRequest | ChatRequest], dict[str, Any], Scored | None]:
    if values.get("method") not in (None, "POST"):
        raise ApiError(400, "method must be POST", "method")
    kind = URLS.get(values["url"]) if isinstance(values.get("url"), str) else None
    if kind is None:
        raise ApiError(400, f"url must be one of {', '.join(URLS)}", "url")
    body = values.get("body")
    if isinstance(body, str):  # as a column
        try:
            body = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"body is no JSON: {error!s:.200}", "body") from None
    if not isinstance(body, dict):
        raise ApiError(400, "body must be an object, the request", "body")
    return kind, body, None


def _plain(values: Mapping[str, Any]) -> tuple[type[CompletionRequest | ChatRequest], dict[str, Any], Scored | None]:
    """Columns with the names of fields are fields; all others are the user's own."""
    for name in RESULTS:
        if values.get(name) is not None:
            raise ApiError(400, f"the row has a column {name!r} already, where results go; rename it", name)
    if (values.get("prompt") is None) == (values.get("messages") is None):
        raise ApiError(400, "give either prompt or messages", "prompt")
    kind: type[CompletionRequest | ChatRequest] = CompletionRequest if values.get("messages") is None else ChatRequest
    given = {name: values[name] for name in kind.model_fields if name in values}
    prompt = given.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        raise ApiError(400, "a row has one prompt; write a row for each", "prompt")
    if given.get("n") not in (None, 1):
        raise ApiError(400, "a row has one answer; write a row for each, or rows in the form of OpenAI", "n")
    scored = values.get("continuation")
    if scored is None:
        return kind, given | {"return_token_ids": True}, None
    if not isinstance(scored, (str, list)):
        raise ApiError(400, "continuation must be text or token ids", "continuation")
    return kind, given, Scored(scored)


def _parse(kind: type[GenerationRequest], given: Mapping[str, Any]) -> Any:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise from_validation(error.errors(include_url=False)) from None


def _seed(seed: int, name: str) -> int:
    found = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(found[:8], "little") % SEEDS
