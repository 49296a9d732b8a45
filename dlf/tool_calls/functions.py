"""The functions that a request lets the model call."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dlf.errors import OptionError, OptionTypeError
from dlf.support.option_values import shown
from dlf.text.chat_options import MAX_TOOLS

__all__ = ["Function", "as_functions"]

NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
MAX_SCHEMA_CHARACTERS = 1 << 16  # of all functions together
NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Function:
    """A function.

    Attributes
    ----------
    name : str
        What calls name it.
    parameters : mapping
        JSON schema of its arguments, an object.
    strict : bool
        Whether arguments must follow the schema wherever the model calls it.
    """

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


def as_functions(tools: Iterable[Mapping[str, Any]]) -> list[Function]:
    """Check tools in OpenAI's form, ``{"type": "function", "function": {...}}``.

    Raises
    ------
    OptionError, OptionTypeError
        If one has another form, two have one name, or they are too many or too large.
    """
    found: dict[str, Function] = {}
    size = 0
    for i, tool in enumerate(tools):
        if i >= MAX_TOOLS:
            raise OptionError(f"more than {MAX_TOOLS} tools are given; leave some out", "tools")
        given = tool.get("function")
        if tool.get("type") != "function" or not isinstance(given, Mapping):
            raise OptionTypeError(f"tools[{i}] is no {{'type': 'function', 'function': {{...}}}}", "tools")
        name, parameters = given.get("name"), given.get("parameters")
        if not isinstance(name, str) or not NAME.fullmatch(name):
            message = f"tools[{i}].function.name is {shown(name)}: give 1 to 64 letters, digits, '_', '-' or '.'"
            raise OptionError(message, "tools")
        if name in found:
            raise OptionError(f"two tools are called {name}; rename one", "tools")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise OptionTypeError(f"tools[{i}].function.parameters is no JSON schema, an object", "tools")
        size += len(json.dumps(given))
        if size > MAX_SCHEMA_CHARACTERS:
            raise OptionError(f"the tools have more than {MAX_SCHEMA_CHARACTERS} characters; shorten them", "tools")
        found[name] = Function(name, parameters or NO_PARAMETERS, given.get("strict") is True)
    return list(found.values())
