"""Tokens that a checkpoint has beside its ``tokenizer.json``: in tokenizer_config.json and two older files.

Source: ``PreTrainedTokenizerBase._from_pretrained`` and ``TokenizersBackend`` of ``transformers``, whose order and
precedence this follows: added tokens by their ids, then the named special tokens, then the further ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlf.errors import CheckpointError
from dlf.fields import MAX_VOCAB_SIZE, read_json

__all__ = ["ExtraTokens", "read_extra_tokens"]

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FURTHER = "extra_special_tokens"
OLD_FURTHER = "additional_special_tokens"


@dataclass(frozen=True)
class ExtraTokens:
    """What is added to a tokenizer, in this order; the last entry for a token decides its flags."""

    added: list[dict[str, Any]]
    ids: dict[str, int]
    """The ids that the files give."""
    named: dict[str, str]
    """Special tokens by their names, such as ``eos_token``."""


def read_extra_tokens(folder: Path, config: Mapping[str, Any], own: Iterable[Any]) -> ExtraTokens:
    """Collect the tokens of ``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json``.

    The last two files count only where the first has no ``added_tokens_decoder``.

    Parameters
    ----------
    folder
        The checkpoint.
    config
        Its ``tokenizer_config.json``.
    own
        ``added_tokens`` of its ``tokenizer.json``, with flags that a special token without flags of its own gets in
        the older format.

    Raises
    ------
    CheckpointError
        If a file is damaged.
    """
    where = folder / "tokenizer_config.json"
    values = dict(config)
    decoder = values.get("added_tokens_decoder")
    by_id: dict[int, dict[str, Any]] = {}
    if decoder is not None:
        if not isinstance(decoder, dict):
            raise CheckpointError(f"{where}: 'added_tokens_decoder' must be an object; fetch it again")
        for key, value in decoder.items():
            by_id[_id(key, where)] = _token(value, where)
        known = {token["content"]: token for token in by_id.values()}
    else:
        if (folder / "special_tokens_map.json").is_file():
            values |= _merged(values, read_json(folder / "special_tokens_map.json"))
        if (folder / "added_tokens.json").is_file():
            by_id = _older(folder / "added_tokens.json", values)
        known = {token["content"]: token for token in by_id.values()}
        known |= {token["content"]: _flags(token) for token in own if isinstance(token, dict) and _content(token)}

    further = values.get(FURTHER) or values.get(OLD_FURTHER) or []
    named = {key: value for key in (*NAMED, *values) if key.endswith("_token") and _content(value := values.get(key))}
    if isinstance(further, dict):
        named |= {key: value for key, value in further.items() if _content(value)}
        further = []
    if not isinstance(further, list):
        raise CheckpointError(f"{where}: '{FURTHER}' must be a list or an object; fetch it again")

    added = [by_id[key] for key in sorted(by_id)]
    for key, value in named.items():
        added.append(_special(known.get(_content(value), value) if key in NAMED else value))
    added.extend(_special(value) for value in further if _content(value))
    return ExtraTokens(
        added,
        {token["content"]: key for key, token in by_id.items()},
        {key: _content(value) for key, value in named.items()},
    )


def _merged(values: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of ``special_tokens_map.json``, which go before those of ``tokenizer_config.json``."""
    found = {key: value for key, value in older.items() if value is not None}
    if isinstance(found.get(FURTHER), list) and isinstance(values.get(FURTHER), list):
        found[FURTHER] = values[FURTHER] + found[FURTHER]
    if values.get(FURTHER) or values.get(OLD_FURTHER):
        found.pop(OLD_FURTHER, None)
    return found


def _older(path: Path, values: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The tokens of ``added_tokens.json``: ids by tokens, without flags."""
    further = values.get(FURTHER) or values.get(OLD_FURTHER) or []
    special = {_content(values.get(key)) for key in NAMED} | {_content(value) for value in further}
    return {
        _id(value, path): {"content": content, "normalized": content not in special, "special": content in special}
        for content, value in read_json(path).items()
    }


def _id(value: Any, where: Path) -> int:
    """An id, which is a key of JSON in one file and a number in the other."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < MAX_VOCAB_SIZE:
        raise CheckpointError(f"{where}: {value!r:.40} is no token id; correct the file or fetch it again")
    return value


def _token(value: Any, where: Path) -> dict[str, Any]:
    if not isinstance(value, dict) or not _content(value):
        raise CheckpointError(f"{where}: an added token has no 'content'; correct the file or fetch it again")
    return _flags(value)


def _flags(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": value["content"]} | {key: value[key] for key in FLAGS if type(value.get(key)) is bool}


def _special(value: Any) -> dict[str, Any]:
    token = _flags(value) if isinstance(value, dict) else {"content": value, "normalized": False}
    return token | {"special": True}


def _content(value: Any) -> str:
    """A token written as text, or as an object with ``content``; empty if it is neither."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""
