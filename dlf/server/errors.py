"""OpenAI's error objects, and the status of each error of the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dlf.errors import EngineError, Error, ErrorKind, field_of, is_out_of_memory

__all__ = ["ApiError", "error_body", "from_engine", "from_validation", "timed_out"]

# The engine's option for each name of the interface that differs.
NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "num_return_sequences": "n",
    "stop_strings": "stop",
}


class ApiError(Exception):
    """An error that a client gets.

    Parameters
    ----------
    status
        Status code of HTTP.
    message
        What is wrong and what to do.
    param
        The field of the request at fault, if any.
    code
        OpenAI's name for it, if it has one.
    headers
        Further headers of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """OpenAI's ``type``."""
        if self.status in (401, 403):
            return "authentication_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of a response, and of an event in a stream."""
    return {"error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}}


def timed_out(seconds: float) -> ApiError:
    """The error of a request that takes more than so many seconds."""
    return ApiError(504, f"the request took more than {seconds:g} s", code="timeout")


def from_engine(error: BaseException) -> ApiError:
    """The client's error for one that the engine raised."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineError):
        return ApiError(503, str(error), code="engine_unavailable")
    if is_out_of_memory(error):
        return ApiError(503, f"the server ran out of memory: {error}", code="out_of_memory")
    if isinstance(error, FloatingPointError):
        return ApiError(500, str(error), code="bad_logits")
    if isinstance(error, (ValueError, TypeError, OverflowError, RecursionError)):
        field = field_of(error)
        too_long = isinstance(error, Error) and error.kind is ErrorKind.TOO_LONG
        code = "context_length_exceeded" if too_long else None
        return ApiError(400, str(error), NAMES.get(field or "", field), code)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


def from_validation(problems: Sequence[Mapping[str, Any]]) -> ApiError:
    """The client's error for a body that does not have the form of a request."""
    first = problems[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    place = [part for part in first["loc"] if part != "body" and not _names_a_type(part)]
    param = ".".join(map(str, place)) or None
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {param}", param, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"you must provide {param}", param, "missing_required_parameter")
    return ApiError(400, f"{param or 'the body'}: {first['msg']}", param)


def _names_a_type(part: object) -> bool:
    """Whether a part of a place is a branch of a union, such as ``list[str]``, which a client does not know."""
    return isinstance(part, str) and (part in ("str", "int", "float", "bool") or "[" in part)
