"""Finds the format of a chat template: writes a call with it, and looks how it stands there."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from dlf.errors import OptionError
from dlf.text.tokenizer import Tokenizer
from dlf.tool_calls.format import FORMATS, HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_NAMED, CallFormat

__all__ = ["find_format"]

NAME = "sentinelfunction"
MAX_CHARACTERS = 1 << 20  # of the conversation, which has a few words beside the template's own
# A call, with groups for the parts of the format that templates write in ways of their own.
PATTERNS: tuple[tuple[CallFormat, str], ...] = (
    (
        HERMES,
        rf'(?P<begin><tool_call>\s*\{{"name": ?"){NAME}(?P<middle>", ?"arguments": ?)\{{[^{{}}]*\}}'
        r"(?P<end>\}\s*</tool_call>)",
    ),
    (HERMES, rf"<tool_call>\s*\{{[^<]*{NAME}"),
    (
        MISTRAL,
        rf'(?P<open>\[TOOL_CALLS\]\s*\[)(?P<begin>\{{"name": ?"){NAME}(?P<middle>", ?"arguments": ?)',
    ),
    (MISTRAL, rf"\[TOOL_CALLS\]\s*\[\s*\{{[^\]]*{NAME}"),
    (MISTRAL_ARGS, rf"\[TOOL_CALLS\]\s*{NAME}[^{{]*\[ARGS\]"),
    (MISTRAL_NAMED, rf"\[TOOL_CALLS\]\s*{NAME}\s*\{{"),
    (LLAMA, rf'(?P<begin>\{{"name": ?"){NAME}(?P<middle>", ?"parameters": ?)\{{'),
)


def find_format(tokenizer: Tokenizer, wanted: str | None = None) -> CallFormat | None:
    """Find how the chat template of a tokenizer writes calls.

    Parameters
    ----------
    tokenizer
        Of the model that calls.
    wanted
        Name of the format if it is known; the template then only chooses among its forms.

    Returns
    -------
    CallFormat or None
        None if the template writes no calls, or in a way that is not known.

    Raises
    ------
    OptionError
        If no format is called `wanted`.
    """
    known = [one for one in FORMATS if wanted in (None, one.name)]
    if not known:
        names = dict.fromkeys(one.name for one in FORMATS)
        raise OptionError(f"no format of tool calls is called {wanted!r:.60}; there are: {', '.join(names)}")
    text = _written(tokenizer)
    for form, pattern in PATTERNS:
        found = re.search(pattern, text) if form in known else None
        if found is not None:
            parts: dict[str, Any] = found.groupdict()
            return replace(form, **parts)
    return None if wanted is None else known[0]


def _written(tokenizer: Tokenizer) -> str:
    """A conversation that ends with a call; empty if the template refuses it."""
    call = {"id": "sentinel9", "type": "function", "function": {"name": NAME, "arguments": {"key": "value"}}}
    schema = {"type": "object", "properties": {"key": {"type": "string", "description": "key"}}, "required": ["key"]}
    tool = {"type": "function", "function": {"name": "other", "description": "other", "parameters": schema}}
    for content in ("", None):  # some templates join the content, and others write it unless it is none
        talk: list[dict[str, Any]] = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": content, "tool_calls": [call]},
        ]
        try:
            text = tokenizer.apply_chat_template(talk, add_generation_prompt=False, tools=[tool])
        except ValueError:
            continue
        if NAME in text and len(text) <= MAX_CHARACTERS:
            return text
    return ""
