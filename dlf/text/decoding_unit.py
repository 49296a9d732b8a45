"""Tells how much of a text a tokenizer's decoder has to see at once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["Unit", "decoding_unit"]

BYTE_TOKEN = frozenset("<0x>123456789abcdefABCDEF")  # characters of "<0xE2>"


class Unit(Enum):
    """What a decoder can treat without looking at more."""

    BYTE = "a byte"
    TOKEN = "a token, or a run of tokens that are a byte each"
    TEXT = "all of a text"


def decoding_unit(decoder: Mapping[str, Any] | None) -> Unit:
    """What a decoder of a ``tokenizer.json`` treats alone, but for the first token of a text."""
    if decoder is None:
        return Unit.TOKEN
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return Unit.BYTE
    if kind in ("Metaspace", "WordPiece", "Replace", "ByteFallback", "Fuse"):
        return Unit.TOKEN
    if kind != "Sequence":
        return Unit.TEXT
    # Llama 2's decoder, and Gemma's, which has no strip: spaces in each token, bytes, and the first space of the text.
    parts = list(decoder.get("decoders") or [])
    while parts and _keeps_byte_tokens(parts[0]):
        parts.pop(0)
    if parts and parts[0].get("type") == "ByteFallback":
        parts.pop(0)
    if not parts or parts.pop(0).get("type") != "Fuse":
        return Unit.TEXT
    return Unit.TOKEN if not parts or (len(parts) == 1 and _is_strip_of_first(parts[0])) else Unit.TEXT


def _keeps_byte_tokens(part: Mapping[str, Any]) -> bool:
    """Whether this replaces a text in each token, and cannot make a byte token of another one."""
    content, pattern = part.get("content"), part.get("pattern")
    return (
        part.get("type") == "Replace"
        and isinstance(content, str)
        and isinstance(pattern, dict)
        and "String" in pattern
        and bool(content)
        and not set(content) & BYTE_TOKEN
    )


def _is_strip_of_first(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "Strip" and part.get("start") in (0, 1) and part.get("stop") == 0
