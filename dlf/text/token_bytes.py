"""The bytes and the text of single tokens, also of those that are a part of a character."""

from __future__ import annotations

from functools import lru_cache

from dlf.text.decoding_unit import Unit
from dlf.text.tokenizer import Tokenizer

__all__ = ["token_bytes", "token_text"]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Text of one token; bytes that are no whole character are U+FFFD."""
    return tokenizer.decode([token], skip_special_tokens=False)


def token_bytes(tokenizer: Tokenizer, token: int) -> bytes:
    """Bytes that one token adds to a text; none for an id without a token."""
    spelt = tokenizer.token(token)
    if spelt is None:
        return b""
    if token not in tokenizer.added_ids:
        if len(spelt) == 6 and spelt.startswith("<0x") and spelt.endswith(">"):
            return bytes([int(spelt[3:5], 16)])
        if tokenizer.decoding_unit is Unit.BYTE:
            letters = byte_letters()
            return bytes(letters[letter] for letter in spelt if letter in letters)
        if spelt.startswith("\u2581"):  # SentencePiece's space, which decoding strips from the first token of a text
            return spelt.replace("\u2581", " ").encode()
    return token_text(tokenizer, token).encode()


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level tokens: printable Latin-1 for itself, then U+0100 and on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
