"""The grammar of answers that call functions: calls alone, or text with calls whose arguments follow their schemas."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dlf.grammar import JSON_OPTIONS, Grammar
from dlf.text.tokenizer import Tokenizer
from dlf.tool_calls.format import CallFormat
from dlf.tool_calls.functions import Function

__all__ = ["call_grammar"]

MAX_CALLS = 32  # of one answer that must call
DEFINITIONS = ("$defs", "definitions")
ANY_OBJECT = {"type": "object"}
ANY_TEXT = r"(.|\n)*"
TEXT = f"TEXT: /{ANY_TEXT}/"


def call_grammar(
    form: CallFormat,
    tokenizer: Tokenizer,
    functions: Sequence[Function],
    *,
    required: bool,
    parallel: bool,
    answer: Mapping[str, Any] | None = None,
) -> Grammar:
    """Grammar of an answer that calls some of these functions.

    Parameters
    ----------
    form
        How the model writes calls.
    tokenizer
        Says which parts of it are special tokens.
    functions
        Functions that may be called.
    required
        Whether the answer consists of calls; their arguments then follow the schemas. Otherwise it may be text, and
        only the arguments of strict functions follow theirs.
    parallel
        Whether there may be several calls.
    answer
        JSON schema of an answer without calls; there is then no text around calls.

    Raises
    ------
    OptionError
        If the grammar is too large.
    """

    def written(text: str) -> str:
        return _written(text, form, tokenizer)

    rules = []
    # Text runs up to the mark, which the rule of a call then lacks.
    lazy = not (required or answer is not None or form.bare or form.mark in _special(form, tokenizer))
    begin = form.begin.removeprefix(form.mark) if lazy else form.begin
    for i, one in enumerate(functions):
        schema = one.parameters if required or one.strict else ANY_OBJECT
        if form.bare and answer is not None:  # both begin with {, so both are written as JSON
            rules.append(f"f{i}: {_json(_call_schema(one.name, schema))}")
            continue
        rules.append(f"f{i}: {written(begin + one.name + form.middle)} a{i} {written(form.end)}")
        rules.append(f"a{i}: {_json(schema)}")
    more = f" ({written(form.between)} call){{0,{MAX_CALLS - 1}}}" if parallel else ""
    rules.append("call: " + " | ".join(f"f{i}" for i in range(len(functions))))
    rules.append(f"calls: {written(form.open)} call{more} {written(form.close)}")
    if required:
        rules.append("start: calls")
    elif answer is not None:
        rules += ["start: calls | answer", f"answer: {_json(answer)}"]
    elif lazy:
        most = MAX_CALLS if parallel else 1
        rules += [
            f"start: tagged{{0,{most}}} TEXT",
            "tagged: mark call",
            f"mark[lazy]: TEXT {written(form.mark)}",
            TEXT,
        ]
    elif form.bare:  # an answer that begins like a call is one
        mark = f"({written(form.mark)})? " if form.mark in _special(form, tokenizer) else ""
        rules += [f"start: {mark}calls | TEXT", f"{TEXT} & ~/{_escaped(form.begin)}{ANY_TEXT}/"]
    else:  # a special token, which is no part of a text
        rules += ["start: TEXT calls?", TEXT]
    return Grammar.lark("\n".join(rules))


def _call_schema(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Schema of a call that is written as an object; definitions stay at the root, where references find them."""
    definitions = {key: parameters[key] for key in DEFINITIONS if key in parameters}
    own = {key: value for key, value in parameters.items() if key not in DEFINITIONS}
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "parameters": own},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    } | definitions


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def _escaped(text: str) -> str:
    """A text within a regular expression."""
    return re.sub(r"[^A-Za-z0-9_<>\"': ,]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _special(form: CallFormat, tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the format's tokens that are special in this tokenizer."""
    ids = {text: tokenizer.vocab.get(text) for text in form.special}
    return {text: token for text, token in ids.items() if token is not None and tokenizer.is_special(token)}


def _written(text: str, form: CallFormat, tokenizer: Tokenizer) -> str:
    """A text of the format in Lark, with its special tokens by id."""
    special = _special(form, tokenizer)
    if not special:
        return json.dumps(text) if text else ""
    parts = re.split("(" + "|".join(map(re.escape, special)) + ")", text)
    return " ".join(f"<[{special[part]}]>" if part in special else json.dumps(part) for part in parts if part)
