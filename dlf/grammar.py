"""Grammars that an answer must follow: JSON Schema, regular expressions, choices."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dlf.errors import OptionError, OptionTypeError
from dlf.support.option_values import as_strings, shown

__all__ = ["Grammar"]

MAX_CHARACTERS = 1 << 16  # of a grammar, which may come from outside
MAX_CHOICES = 4096
HINT = "grammars need llguidance: pip install 'dlf[grammar]'"
# At most one space between the parts of a JSON value: a model that may write more can go on for ever.
JSON_OPTIONS: Any = {"whitespace_pattern": "[ ]?"}


@dataclass(frozen=True)
class Grammar:
    """What an answer may be: ``generate(prompt, grammar=Grammar.json_schema({...}))``.

    At each token, logits of tokens that cannot go on a valid answer are set to -inf after the experts were fused, so
    weights, f and g are those without it, and log-probabilities those with it. An answer that ends at its greatest
    length may be incomplete.

    Parameters
    ----------
    kind : {"json_schema", "regex", "lark"}
        Its language; the class methods make each.
    source : str
        The schema, the regular expression, or a grammar in the dialect of Lark that llguidance reads.

    Raises
    ------
    OptionError, OptionTypeError
        If the source is too large or no text; mistakes in it are found when a request is made.
    """

    kind: str
    source: str

    def __post_init__(self) -> None:
        if not isinstance(self.source, str):
            raise OptionTypeError(f"a grammar is a text, not {shown(self.source)}", "grammar")
        if len(self.source) > MAX_CHARACTERS:
            raise OptionError(
                f"the grammar has {len(self.source)} characters; at most {MAX_CHARACTERS} are taken", "grammar"
            )

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """A JSON value that fits a schema."""
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema))

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression matches as a whole, in the syntax of Rust's crate regex."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, texts: Sequence[str]) -> Grammar:
        """One of some texts."""
        given = as_strings("choice", texts, MAX_CHOICES, MAX_CHARACTERS)
        if not given:
            raise OptionError("there is no choice; give at least one text", "grammar")
        return cls("lark", "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in given))

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A grammar in the dialect of Lark that llguidance reads."""
        return cls("lark", text)

    @cached_property
    def compiled(self) -> str:
        """The grammar as llguidance takes it.

        Raises
        ------
        ImportError
            If llguidance is missing.
        OptionError
            If the source is no JSON.
        """
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise ImportError(HINT) from error
        if self.kind == "regex":
            return LLMatcher.grammar_from_regex(self.source)
        if self.kind == "lark":
            return LLMatcher.grammar_from_lark(self.source)
        try:
            return LLMatcher.grammar_from_json_schema(self.source, defaults=JSON_OPTIONS)
        except ValueError as error:
            raise OptionError(f"the JSON schema cannot be read: {error}", "grammar") from error
