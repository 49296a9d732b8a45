"""Checks values of options: numbers, texts and token ids, each named in its error and bounded in size."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from dlf.errors import OptionError, OptionTypeError

__all__ = ["MAX_INT", "MAX_THREADS", "as_flag", "as_float", "as_ids", "as_int", "as_sequences", "as_strings", "shown"]

MAX_INT = 2**63 - 1  # largest integer of the sampler
MAX_THREADS = 1024


def shown(value: Any) -> str:
    """A value as errors quote it; a long one is cut."""
    try:
        text = f"{value!r}"
    except ValueError:  # Python writes no integer of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text:.57}..."


def as_int(name: str, value: Any, least: int, most: int = MAX_INT, field: str | None = None) -> int:
    """Check an integer and its bounds; `field` is the option that it belongs to, if that is not `name`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise OptionTypeError(f"{name} is {shown(value)}: give an int", field or name)
    found = int(value)
    if not least <= found <= most:
        bounds = f">= {least}" if most == MAX_INT and found < least else f"from {least} to {most}"
        raise OptionError(f"{name} is {shown(found)}: give an int {bounds}", field or name)
    return found


def as_float(name: str, value: Any, field: str | None = None) -> float:
    """Check a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise OptionTypeError(f"{name} is {shown(value)}: give a number", field or name)
    try:
        return float(value)
    except OverflowError:
        raise OptionError(f"{name} is {shown(value)}: it is too large, give a smaller number", field or name) from None


def as_flag(name: str, value: Any) -> bool:
    """Check that a value is True or False itself."""
    if not isinstance(value, bool):
        raise OptionTypeError(f"{name} is {shown(value)}: give True or False", name)
    return value


def as_strings(name: str, value: Any, most: int, most_characters: int) -> tuple[str, ...]:
    """Check texts: none empty, at most `most` of them, with at most `most_characters` together."""
    if isinstance(value, (bytes, bytearray)) or not isinstance(value, Sequence):
        raise OptionTypeError(f"{name} is {shown(value)}: give a sequence of strings", name)
    if len(value) > most:
        raise OptionError(f"{name} holds {len(value)} strings: give at most {most}", name)
    for text in value:
        if not isinstance(text, str):
            raise OptionTypeError(f"{name} holds {shown(text)}: give strings", name)
        if not text:
            raise OptionError(f"{name} holds an empty string: leave it out", name)
    characters = sum(map(len, value))
    if characters > most_characters:
        raise OptionError(f"{name} holds {characters} characters: give at most {most_characters}", name)
    return tuple(value)


def as_ids(name: str, value: Any, most: int) -> tuple[int, ...]:
    """Check token ids: a list, a NumPy array or a torch tensor of integers."""
    value = _as_sequence(name, value, "token ids", most)
    return tuple(as_int(name, token, 0) for token in value)


def as_sequences(name: str, value: Any, most: int, most_ids: int) -> tuple[tuple[int, ...], ...]:
    """Check sequences of token ids, none of them empty."""
    value = _as_sequence(name, value, "sequences of token ids", most)
    found = tuple(as_ids(name, one, most_ids) for one in value)
    if not all(found):
        raise OptionError(f"{name} holds an empty word: give each word at least one token", name)
    if sum(map(len, found)) > most_ids:
        raise OptionError(f"{name} holds {sum(map(len, found))} token ids: give at most {most_ids}", name)
    return found


def _as_sequence(name: str, value: Any, kind: str, most: int) -> Sequence[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, Sequence):
        raise OptionTypeError(f"{name} is {shown(value)}: give a sequence of {kind}", name)
    if len(value) > most:
        raise OptionError(f"{name} holds {len(value)} entries: give at most {most}", name)
    return value
