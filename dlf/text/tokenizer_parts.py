"""What a tokenizer is made of, whatever files it comes from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlf.errors import CheckpointError
from dlf.support.fields import read_bytes, read_json
from dlf.text.chat_template import ChatTemplate
from dlf.text.special_tokens import ExtraTokens, read_extra_tokens
from dlf.text.tokenizer_codec import parse

__all__ = ["MAX_TOKENIZER_BYTES", "TokenizerParts", "read_parts"]

MAX_TOKENIZER_BYTES = 128 << 20


@dataclass(frozen=True)
class TokenizerParts:
    """What `dlf.text.tokenizer.Tokenizer` is made of.

    Attributes
    ----------
    path
        The file, for messages.
    content, document
        ``tokenizer.json`` as text and parsed.
    twice
        Whether an object in it has a key twice.
    extra
        Tokens that are defined elsewhere, and names of special ones.
    template
        The chat templates.
    """

    path: Path
    content: str
    document: Mapping[str, Any]
    twice: bool
    extra: ExtraTokens
    template: ChatTemplate

    def documents(self) -> dict[str, Any]:
        """Return the content of ``tokenizer.json`` and ``tokenizer_config.json``."""
        config: dict[str, Any] = dict(self.extra.named)
        named = self.template.named
        if named:
            config["chat_template"] = [{"name": name, "template": source} for name, source in named.items()]
        return {"tokenizer.json": self.document, "tokenizer_config.json": config}


def read_parts(folder: Path) -> TokenizerParts:
    """Read the parts from a folder in Hugging Face format.

    Raises
    ------
    FileNotFoundError
        If there is no ``tokenizer.json``.
    CheckpointError
        If a file is damaged.
    """
    path = folder / "tokenizer.json"
    content = _read(path)
    document, twice = parse(content, path)
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if os.path.isfile(config_path) else {}
    extra = read_extra_tokens(folder, config, document)
    return TokenizerParts(path, content, document, twice, extra, ChatTemplate.read(folder, config))


def _read(path: Path) -> str:
    """Text of ``tokenizer.json``."""
    try:
        return read_bytes(path, MAX_TOKENIZER_BYTES).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path} is missing; fetch the checkpoint again, or write one with transformers: "
            "AutoTokenizer.from_pretrained(name).save_pretrained(folder)"
        ) from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error}); fetch the checkpoint again") from error
