"""Tokens that a checkpoint defines outside ``tokenizer.json``: in tokenizer_config.json and two older files.

Source: ``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend.__init__`` of ``transformers``, whose order
and precedence this follows: added tokens by their ids, then the named special tokens, then the further ones.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from dlf.errors import CheckpointError
from dlf.support.fields import MAX_VOCAB_SIZE, read_json

__all__ = ["ExtraTokens", "read_extra_tokens"]

Token: TypeAlias = "dict[str, Any]"  # arguments of tokenizers.AddedToken

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FURTHER = "extra_special_tokens"
OLD_FURTHER = "additional_special_tokens"


@dataclass(frozen=True)
class ExtraTokens:
    """Tokens that are added to a tokenizer, in this order."""

    added: list[Token]
    ids: dict[str, int]
    """Ids that the files give, by token."""
    named: dict[str, str]
    """Special tokens by name, such as ``eos_token``."""


def read_extra_tokens(folder: Path, config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> ExtraTokens:
    """Collect the tokens of ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``.

    The last two files count only if the first has no ``added_tokens_decoder``.

    Parameters
    ----------
    folder
        The checkpoint.
    config, tokenizer
        Its ``tokenizer_config.json`` and ``tokenizer.json``.

    Raises
    ------
    CheckpointError
        If a file is damaged.
    """
    where = folder / "tokenizer_config.json"
    values = _checked(config, where)
    own = _own(tokenizer)
    decoder = values.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        by_id = {_id(key, where): _token(value, where) for key, value in decoder.items()}
    elif decoder is not None:
        raise CheckpointError(f"{where}: 'added_tokens_decoder' must be an object; correct the file or fetch it again")
    else:
        path = folder / "special_tokens_map.json"
        older = _checked(_read(path), path)
        by_id = _without_flags(folder / "added_tokens.json", values, older) | own
        values = _merge(values, older)

    further = values.get(FURTHER) or values.get(OLD_FURTHER) or []
    named = {key: values[key] for key in (*NAMED, *values) if key.endswith("_token") and _content(values.get(key))}
    if isinstance(further, dict):
        named |= {key: value for key, value in further.items() if _content(value)}
        further = []
    added = [token for _, token in sorted(by_id.items()) if token not in own.values()]
    known = {"", *(token["content"] for token in (*own.values(), *added))}
    seen: list[Any] = []
    for value in (*named.values(), *further):  # if two differ only in flags, the last one counts
        if _content(value) not in known and value not in seen:
            seen.append(value)
            added.append(_flags(value if isinstance(value, dict) else {"content": value, "special": True}))
    names = {key: _content(value) for key, value in named.items()}
    for token in added:
        token["special"] |= token["content"] in names.values()
    return ExtraTokens(added, {token["content"]: i for i, token in by_id.items() if token in added}, names)


def _own(tokenizer: Mapping[str, Any]) -> dict[int, Token]:
    """Added tokens of ``tokenizer.json``, by id."""
    tokens = tokenizer.get("added_tokens")
    return {
        token["id"]: _flags(token)
        for token in (tokens if isinstance(tokens, list) else [])
        if isinstance(token, dict) and type(token.get("id")) is int and _content(token)
    }


def _checked(values: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """Entries that have a value; checks the lists of further tokens."""
    found = {key: value for key, value in values.items() if value is not None}
    for key in (FURTHER, OLD_FURTHER):
        if not isinstance(found.get(key, []), (list, dict)):
            raise CheckpointError(f"{where}: '{key}' must be a list or an object; correct the file or fetch it again")
    return found


def _read(path: Path) -> dict[str, Any]:
    return read_json(path) if os.path.isfile(path) else {}


def _merge(values: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the special tokens of both files; ``special_tokens_map.json`` takes precedence."""
    found = dict(older)
    for key, value in older.items():
        if isinstance(value, dict) and key != FURTHER:
            found[key] = {**value, "special": True}
    both = [values.get(FURTHER) or values.get(OLD_FURTHER) or [], found.get(FURTHER, [])]
    named = [one for one in both if isinstance(one, dict)]  # the older form of tokens with names
    lists = [token for one in both if isinstance(one, list) for token in one]
    merged = {**values, **found, FURTHER: lists or found.get(OLD_FURTHER) or []}
    for one in named:
        merged |= {key: value for key, value in one.items() if key.endswith("_token")}
    return merged


def _without_flags(path: Path, values: Mapping[str, Any], older: Mapping[str, Any]) -> dict[int, Token]:
    """Tokens of ``added_tokens.json``, which has only ids; those that the other files name are special."""
    texts = [value for key in NAMED if isinstance(value := values.get(key), str) and key not in older]
    further = older.get(FURTHER) or values.get(FURTHER) or values.get(OLD_FURTHER) or []
    listed = further if isinstance(further, list) else []
    special = {*texts, *(_content(older.get(key)) for key in NAMED), *map(_content, listed)}
    return {
        _id(value, path): _flags({"content": content, "special": content in special})
        for content, value in _read(path).items()
        if content
    }


def _id(value: Any, where: Path) -> int:
    """Check an id, which is a JSON key in one file and a number in the other."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < MAX_VOCAB_SIZE:
        raise CheckpointError(f"{where}: {value!r:.40} is no token id; correct the file or fetch it again")
    return value


def _token(value: Any, where: Path) -> Token:
    if not isinstance(value, dict) or not _content(value):
        raise CheckpointError(f"{where}: an added token has no 'content'; correct the file or fetch it again")
    return _flags(value)


def _flags(value: Mapping[str, Any]) -> Token:
    """A token with all of its flags."""
    token: Token = {key: value.get(key) is True for key in ("single_word", "lstrip", "rstrip", "special")}
    normalized = value.get("normalized")
    return token | {
        "content": value["content"],
        "normalized": normalized if type(normalized) is bool else not token["special"],
    }


def _content(value: Any) -> str:
    """Text of a token, given as text or as an object with ``content``; empty if it is neither."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
