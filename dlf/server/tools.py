"""Tools of a chat: which of them an answer may or must call, its grammar, and the calls in its pieces."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dlf.grammar import Grammar
from dlf.results import Piece
from dlf.server.errors import ApiError
from dlf.server.protocol import ChatRequest
from dlf.server.service import Served
from dlf.server.settings import ServerSettings
from dlf.text.tokenizer import Tokenizer
from dlf.tool_calls import CallFormat, CallReader, Delta, Function, as_functions, call_grammar, find_format

__all__ = ["Spoken", "Tools"]

CHOICES = (
    "tool_choice is 'none', 'auto', 'required', {'type': 'function', 'function': {'name': ...}} or {'type': "
    "'allowed_tools', 'allowed_tools': {'mode': 'auto' or 'required', 'tools': [{'type': 'function', ...}, ...]}}"
)
NO_CHATS = "this model reads messages without a chat template, so it cannot read tools; leave them out"
NO_FORMAT = (
    "the chat template of this model writes no calls in a format that is known; leave tools out, give tool_choice "
    "'none', or start the server with --tool-call-parser"
)


@dataclass(frozen=True)
class Tools:
    """The functions that an answer may call.

    Attributes
    ----------
    form : CallFormat
        How the model writes calls.
    functions : list of Function
        Those that it may call.
    required : bool
        Whether it must call one.
    parallel : bool
        Whether it may call several.
    """

    form: CallFormat
    functions: Sequence[Function]
    required: bool
    parallel: bool

    @classmethod
    async def of(cls, body: ChatRequest, served: Served, settings: ServerSettings) -> Tools | None:
        """Check the tools of a request; None if its answer calls none.

        Raises
        ------
        ApiError
            If the choice is impossible, or the model's format is unknown.
        OptionError, OptionTypeError
            If a tool is no function.
        """
        choice, names = _choice(body.tool_choice)
        functions = as_functions(body.tools or ())
        if choice in ("required", "function") and not functions:
            raise ApiError(400, "tool_choice needs tools; give at least one", "tool_choice")
        for name in names:
            if name not in [one.name for one in functions]:
                raise ApiError(400, f"tool_choice names {name!r:.80}, which is none of the tools", "tool_choice")
        if names:
            functions = [one for one in functions if one.name in names]
        if choice == "none" or not functions:
            return None
        if not served.engine.reads_chats:
            raise ApiError(400, NO_CHATS, "tools")
        if settings.tool_call_parser not in served.call_formats:
            wanted = None if settings.tool_call_parser == "auto" else settings.tool_call_parser
            found = await asyncio.to_thread(find_format, served.engine.tokenizer, wanted)
            served.call_formats[settings.tool_call_parser] = found
        form = served.call_formats[settings.tool_call_parser]
        if form is None:
            raise ApiError(400, NO_FORMAT, "tools")
        several = body.parallel_tool_calls is not False and choice != "function"
        return cls(form, functions, choice != "auto", several)

    def grammar(self, tokenizer: Tokenizer, given: Grammar | None) -> Grammar | None:
        """Grammar of the answer, which follows `given` where it calls nothing; None if it may be anything.

        Raises
        ------
        ApiError
            If `given` cannot be joined with calls.
        """
        if not self.required and given is None and not any(one.strict for one in self.functions):
            return None
        answer: Any = None
        if given is not None and not self.required:
            answer = json.loads(given.source) if given.kind == "json_schema" else None
            if not isinstance(answer, Mapping):
                raise ApiError(400, "an answer that may call tools follows no grammar but a JSON schema", "tools")
        return call_grammar(
            self.form, tokenizer, self.functions, required=self.required, parallel=self.parallel, answer=answer
        )


class Spoken:
    """What one choice says and calls.

    Parameters
    ----------
    tools
        The functions that it may call, if any.
    tokenizer
        Of its tokens.
    stream
        Whether its parts are sent as they come.
    """

    def __init__(self, tools: Tools | None, tokenizer: Tokenizer, stream: bool) -> None:
        self._tools, self._tokenizer = tools, tokenizer
        self._reader = None if tools is None else CallReader(tools.form, [one.name for one in tools.functions], stream)
        self._called = False

    def add(self, pieces: Sequence[Piece], reason: str | None) -> Delta:
        """Take the next pieces, and why the choice ended if they are its last; returns what they add."""
        if self._reader is None or self._tools is None:
            return Delta("".join(piece.text for piece in pieces))
        found = Delta()
        for piece in pieces:
            self._join(found, self._reader.push(piece.text))
            token = self._tokenizer.token(piece.token)
            if token in self._tools.form.special and self._tokenizer.is_special(piece.token):
                self._join(found, self._reader.push(token, shown=False))
        if reason is not None:
            self._join(found, self._reader.flush(cut=reason == "length"))
        self._called = self._called or bool(found.calls)
        return found

    def reason(self, reason: str | None) -> str | None:
        """Why the choice ended, in OpenAI's words."""
        return "tool_calls" if reason == "stop" and self._called else reason

    def _join(self, found: Delta, more: Delta) -> None:
        found.content += more.content
        found.calls += [one for one in more.calls if one.index == 0 or self._tools is None or self._tools.parallel]


def _choice(given: Any) -> tuple[str, list[str]]:
    """Kind of a ``tool_choice``, and the functions that it names, if it names some."""
    if given is None or given in ("none", "auto", "required"):
        return given or "auto", []
    if isinstance(given, Mapping) and given.get("type") == "function":
        return "function", [_name(given)]
    allowed = given.get("allowed_tools") if isinstance(given, Mapping) else None
    tools = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if not isinstance(allowed, Mapping) or allowed.get("mode") not in ("auto", "required") or not tools:
        raise ApiError(400, CHOICES, "tool_choice")
    return allowed["mode"], [_name(one) for one in tools] if isinstance(tools, list) else [_name(tools)]


def _name(given: Any) -> str:
    function = given.get("function") if isinstance(given, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise ApiError(400, CHOICES, "tool_choice")
    return name
