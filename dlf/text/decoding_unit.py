"""Finds how much of a text a tokenizer's decoder must see at once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

__all__ = ["Unit", "decoding_unit"]

BYTE_TOKEN = frozenset("<0x>123456789abcdefABCDEF")  # characters of "<0xE2>"


class Unit(Enum):
    """The smallest part of a text that a decoder can decode alone."""

    BYTE = "a byte"
    TOKEN = "a token, or a run of tokens that are a byte each"
    TEXT = "all of a text"


def decoding_unit(decoder: Mapping[str, Any] | None) -> Unit:
    """Unit of a decoder of a ``tokenizer.json``; the first token of a text may be an exception."""
    if decoder is None:
        return Unit.TOKEN
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return Unit.BYTE
    if kind in ("Metaspace", "WordPiece", "Replace", "ByteFallback", "Fuse"):
        return Unit.TOKEN
    if kind != "Sequence":
        return Unit.TEXT
    # The decoders of Llama 2 (spaces in each token, bytes, then the first space of the text) and Gemma (no strip).
    parts = list(decoder.get("decoders") or [])
    while parts and _keeps_byte_tokens(parts[0]):
        parts.pop(0)
    if parts and parts[0].get("type") == "ByteFallback":
        parts.pop(0)
    if not parts or parts.pop(0).get("type") != "Fuse":
        return Unit.TEXT
    return Unit.TOKEN if not parts or (len(parts) == 1 and _is_strip_of_first(parts[0])) else Unit.TEXT


def _keeps_byte_tokens(part: Mapping[str, Any]) -> bool:
    """Whether `part` replaces a text in each token and cannot turn another token into a byte token."""
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
