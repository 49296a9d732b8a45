"""Messages and tools of a request as chat templates take them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dlf.server.errors import ApiError
from dlf.server.protocol import ChatTemplateFields
from dlf.text.chat_options import ChatOptions
from dlf.tool_calls.functions import NO_PARAMETERS

__all__ = ["chat_options", "messages_of"]

ROLES = {"developer": "system"}  # OpenAI's new name; templates know the old one


def messages_of(given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as chat templates take them.

    Fields without a value are left out, since templates ask whether there are ``tool_calls``; arguments of calls become
    objects.

    Raises
    ------
    ApiError
        If the calls of a message have another form.
    """
    found = []
    for i, message in enumerate(given):
        one = {key: value for key, value in message.items() if key == "content" or value not in (None, [])}
        if "role" in one:
            one["role"] = ROLES.get(one["role"], one["role"]) if isinstance(one["role"], str) else one["role"]
        if "tool_calls" in one:
            one["tool_calls"] = _calls(one["tool_calls"], f"messages[{i}].tool_calls")
            one["content"] = one.get("content") or ""  # many templates join it, or look for something in it
        found.append(one)
    return found


def chat_options(body: ChatTemplateFields, tools: bool = True) -> dict[str, Any]:
    """Options of the chat template that a request gives, with its tools or without.

    Raises
    ------
    OptionError, OptionTypeError
        If one is impossible.
    """
    given: dict[str, Any] = {
        "tools": [_tool(one) for one in body.tools] if body.tools and tools else None,
        "chat_template_kwargs": body.chat_template_kwargs,
        "add_generation_prompt": body.add_generation_prompt,
        "continue_final_message": body.continue_final_message or None,
    }
    found = {name: value for name, value in given.items() if value is not None}
    ChatOptions(**found)  # raises
    return found


def _calls(given: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise ApiError(400, f"{name} must be a list", "messages")
    found = []
    for j, call in enumerate(given):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ApiError(400, f"{name}[{j}] must have a function with a name and arguments", "messages")
        found.append({**call, "function": {**function, "arguments": _arguments(function.get("arguments"))}})
    return found


def _arguments(given: Any) -> Any:
    """Arguments as an object; a text that holds none, which a model may have written, stays as it is."""
    if given in (None, ""):
        return {}
    try:
        found = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return given
    return found if isinstance(found, dict) else given


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    """A tool with its fields in the order that models were trained on."""
    function = given["function"]
    first = {
        "name": function["name"],
        "description": function.get("description") or "",  # which some templates need
        "parameters": function.get("parameters") or dict(NO_PARAMETERS),
    }
    others = {key: value for key, value in function.items() if key not in (*first, "strict") and value is not None}
    return {"type": "function", "function": first | others}
