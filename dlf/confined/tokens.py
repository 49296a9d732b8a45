"""Runs a ``tokenizer.json`` with the ``tokenizers`` library, whose errors and panics all become ValueError.

The library is written in Rust: its panics reach Python as BaseException, its refusals as a bare Exception.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import tokenizers


class Codec:
    """One tokenizer. All methods raise ValueError with the reason if the library cannot go on."""

    def __init__(self, content: str, added: Sequence[Mapping[str, Any]] = ()) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
            # The engine does any padding and cutting; some files carry the settings of their training.
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()
            self._tokenizer.add_tokens([tokenizers.AddedToken(**token) for token in added])
            if getattr(self._tokenizer.model, "dropout", None):  # a text must have one encoding
                self._tokenizer.model.dropout = None
        except BaseException as error:
            _refuse(error)

    def vocab(self) -> dict[str, int]:
        """Every token and its id, added tokens included."""
        try:
            found: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        except BaseException as error:
            _refuse(error)
        return found

    def added(self) -> dict[int, tuple[str, bool]]:
        """Added tokens by id, and whether each is special."""
        try:
            found = self._tokenizer.get_added_tokens_decoder()
        except BaseException as error:
            _refuse(error)
        return {token_id: (token.content, token.special) for token_id, token in found.items()}

    def token(self, token_id: int) -> str | None:
        """Token of an id, or None."""
        try:
            token: str | None = self._tokenizer.id_to_token(token_id)
        except BaseException as error:
            _refuse(error)
        return token

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids of a text."""
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            _refuse(error)
        return ids

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        """Text of token ids."""
        try:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            _refuse(error)
        return text


def _refuse(error: BaseException) -> NoReturn:
    if isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError)):
        raise error
    raise ValueError(str(error)[:1000] or type(error).__name__) from None


_loaded: list[Codec] = []  # at most one: the helper process' own


def load(content: str, added: list[dict[str, Any]]) -> None:
    """Read a tokenizer."""
    _loaded[:] = [Codec(content, added)]


def tokens() -> dict[str, Any]:
    """Vocabulary, tokens and added tokens of the tokenizer that was read."""
    codec = _loaded[0]
    vocab = codec.vocab()
    return {
        "vocab": vocab,
        "tokens": [(i, codec.token(i)) for i in set(vocab.values())],
        "added": [(i, content, special) for i, (content, special) in codec.added().items()],
    }


def encode(text: str, add_special_tokens: bool) -> list[int]:
    """Encode with the tokenizer that was read."""
    return _loaded[0].encode(text, add_special_tokens)


def decode(ids: list[int], skip_special_tokens: bool) -> str:
    """Decode with the tokenizer that was read."""
    return _loaded[0].decode(ids, skip_special_tokens)


METHODS = {"load": load, "tokens": tokens, "encode": encode, "decode": decode}
