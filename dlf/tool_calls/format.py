"""How models write calls: one `CallFormat` for each way, under the names of vLLM's parsers."""

from __future__ import annotations

import secrets
import string
from dataclasses import dataclass

__all__ = ["FORMATS", "CallFormat"]

ALPHANUMERIC = string.ascii_letters + string.digits


@dataclass(frozen=True)
class CallFormat:
    """One way to write calls: ``open``, then ``begin NAME middle ARGUMENTS end`` for each call, then ``close``.

    Attributes
    ----------
    name : str
        Name of vLLM's parser for it; several forms may share one.
    mark : str
        Text or special token that opens a call.
    begin, middle, end : str
        What stands before, between and after a function's name and its arguments, which are a JSON object.
    between : str
        What stands between two calls.
    stop : str
        Text after a call that belongs to it, if it is there.
    open, close : str
        What stands around all calls.
    bare : bool
        Whether an answer may begin with a call that has no mark.
    special : tuple of str
        Tokens of it that a tokenizer may have as special ones, which texts leave out.
    short_ids : bool
        Whether the template wants ids of nine letters and digits.
    """

    name: str
    mark: str
    begin: str
    middle: str
    end: str
    between: str
    stop: str = ""
    open: str = ""
    close: str = ""
    bare: bool = False
    special: tuple[str, ...] = ()
    short_ids: bool = False

    def new_id(self) -> str:
        """Make an id for a call."""
        if self.short_ids:
            return "".join(secrets.choice(ALPHANUMERIC) for _ in range(9))
        return f"call_{secrets.token_hex(12)}"


HERMES = CallFormat(
    "hermes",
    mark="<tool_call>",
    begin='<tool_call>\n{"name": "',
    middle='", "arguments": ',
    end="}\n</tool_call>",
    between="\n",
    stop="</tool_call>",
    special=("<tool_call>", "</tool_call>"),
)
LLAMA = CallFormat(
    "llama3_json",
    mark="<|python_tag|>",
    begin='{"name": "',
    middle='", "parameters": ',
    end="}",
    between="; ",
    stop=";",
    bare=True,
    special=("<|python_tag|>",),
)
MISTRAL = CallFormat(
    "mistral",
    mark="[TOOL_CALLS]",
    open="[TOOL_CALLS] [",
    begin='{"name": "',
    middle='", "arguments": ',
    end="}",
    between=", ",
    close="]",
    special=("[TOOL_CALLS]",),
    short_ids=True,
)
MISTRAL_NAMED = CallFormat(
    "mistral",
    mark="[TOOL_CALLS]",
    begin="[TOOL_CALLS]",
    middle="",
    end="",
    between="",
    special=("[TOOL_CALLS]",),
    short_ids=True,
)
MISTRAL_ARGS = CallFormat(
    "mistral",
    mark="[TOOL_CALLS]",
    begin="[TOOL_CALLS]",
    middle="[ARGS]",
    end="",
    between="",
    special=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
    short_ids=True,
)
FORMATS = (HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, MISTRAL_ARGS)
