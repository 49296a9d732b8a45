"""Calls of functions in a model's answers: how templates write them, the grammar of them, and reading them."""

from dlf.tool_calls.detect import find_format
from dlf.tool_calls.format import FORMATS, CallFormat
from dlf.tool_calls.functions import Function, as_functions
from dlf.tool_calls.grammar import call_grammar
from dlf.tool_calls.reader import CallDelta, CallReader, Delta

__all__ = [
    "FORMATS",
    "CallDelta",
    "CallFormat",
    "CallReader",
    "Delta",
    "Function",
    "as_functions",
    "call_grammar",
    "find_format",
]
