"""The grammar that a request asks for, under OpenAI's and vLLM's names."""

from __future__ import annotations

from typing import Any

from dlf.grammar import Grammar
from dlf.server.errors import ApiError
from dlf.server.protocol import ChatRequest, GenerationRequest

__all__ = ["grammar_of"]

FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


def grammar_of(body: GenerationRequest) -> Grammar | None:
    """The grammar of an answer, or None.

    Raises
    ------
    ApiError
        If there are two, or the form is unknown.
    ValueError, TypeError
        As from `Grammar`.
    """
    wanted: dict[str, Any] = {name: getattr(body, name) for name in FIELDS if getattr(body, name) is not None}
    if isinstance(body, ChatRequest) and body.response_format is not None and body.response_format.type != "text":
        wanted["response_format"] = body.response_format
    if len(wanted) > 1:
        raise ApiError(400, f"{' and '.join(wanted)} are both given; an answer has one form", list(wanted)[1])
    if not wanted:
        return None
    [(name, value)] = wanted.items()
    if name == "guided_json":
        return Grammar.json_schema(value)
    if name == "guided_regex":
        return Grammar.regex(value)
    if name == "guided_choice":
        return Grammar.choice(value)
    if name == "guided_grammar":
        return Grammar.lark(value)
    if value.type == "json_object":
        return Grammar.json_object()
    if value.type != "json_schema":
        raise ApiError(400, "response_format takes text, json_object and json_schema", "response_format.type")
    schema = (value.json_schema or {}).get("schema")
    if not isinstance(schema, dict):
        raise ApiError(400, "json_schema needs an object 'schema'", "response_format.json_schema")
    return Grammar.json_schema(schema)
