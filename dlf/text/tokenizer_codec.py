"""Opens a ``tokenizer.json``: in this process if it is plain, else in a helper process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlf.confined.helper import Helper
from dlf.confined.tokens import Codec
from dlf.errors import CheckpointError
from dlf.text.tokenizer_check import unusual

__all__ = ["ConfinedCodec", "open_codec", "parse"]

SECONDS = 6  # for a text, and for reading a small file
BYTES_PER_SECOND = 1 << 20  # added for a larger file
MEMORY = 2 << 30
MEMORY_PER_BYTE = 8  # of the file


class ConfinedCodec:
    """A `Codec` in a helper process: the same methods, with the same errors.

    Work that takes too long or too much memory ends the process and raises ValueError; the next call starts another
    process, which reads the tokenizer again.
    """

    def __init__(self, content: str, added: Sequence[dict[str, Any]]) -> None:
        self._helper = Helper(
            "tokens",
            ["tokenizers"],
            memory=MEMORY + MEMORY_PER_BYTE * len(content),
            seconds=SECONDS,
            prepare=("load", [content, list(added)]),
            prepare_seconds=SECONDS + len(content) // BYTES_PER_SECOND,
        )
        found = self._helper.ask("tokens")
        self._vocab: dict[str, int] = found["vocab"]
        self._tokens: dict[int, str] = dict(found["tokens"])
        self._added: dict[int, tuple[str, bool]] = {i: (content, special) for i, content, special in found["added"]}

    def vocab(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        return self._vocab

    def added(self) -> dict[int, tuple[str, bool]]:
        """Added tokens by id, and whether each is special."""
        return self._added

    def token(self, token_id: int) -> str | None:
        """Token of an id, or None."""
        return self._tokens.get(token_id)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        ids: list[int] = self._helper.ask("encode", text, add_special_tokens)
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text of token ids."""
        text: str = self._helper.ask("decode", ids, skip_special_tokens)
        return text


def parse(content: str, path: Path) -> tuple[dict[str, Any], bool]:
    """Parse the JSON of a tokenizer; also return whether an object in it has a key twice.

    Raises
    ------
    CheckpointError
        If it is no JSON object.
    """
    twice = False

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal twice
        found = dict(pairs)
        twice |= len(found) < len(pairs)
        return found

    try:
        document = json.loads(content, object_pairs_hook=as_dict)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is no valid JSON ({error}); fetch the checkpoint again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(document).__name__}; fetch it again")
    return document, twice


def open_codec(
    content: str, document: Mapping[str, Any], twice: bool, added: Sequence[dict[str, Any]], path: Path
) -> Codec | ConfinedCodec:
    """Open a tokenizer, given as the file's text and parsed.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    try:
        if twice or unusual(document, added):
            return ConfinedCodec(content, added)
        return Codec(content, added)
    except ValueError as error:
        raise CheckpointError(f"{path} is no valid tokenizer ({error}); fetch the checkpoint again") from error
    except MemoryError as error:
        raise MemoryError(f"not enough memory to read {path}") from error
