"""Chat templates: Jinja programs that come with a checkpoint and are run in a sandbox, as ``transformers`` runs them.

Source: ``transformers.utils.chat_template_utils``, whose additions to Jinja the templates of the hub rely on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from dlf.errors import CheckpointError

__all__ = ["ChatTemplate"]

MAX_TEMPLATE_BYTES = 1 << 20


class ChatTemplate:
    """One checkpoint's template, which may be None; it is compiled when it is first used."""

    def __init__(self, source: str | None, where: str) -> None:
        self.source = source
        self._where = where
        self._compiled: jinja2.Template | None = None

    @classmethod
    def read(cls, folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate:
        """Find the template: ``chat_template.jinja``, else ``chat_template`` in ``tokenizer_config.json``.

        Raises
        ------
        CheckpointError
            If it is too large or no text.
        """
        path = folder / "chat_template.jinja"
        if path.is_file():
            if path.stat().st_size > MAX_TEMPLATE_BYTES:
                raise CheckpointError(f"{path} is larger than {MAX_TEMPLATE_BYTES >> 20} MiB; fetch it again")
            try:
                return cls(path.read_text(encoding="utf-8"), str(path))
            except UnicodeDecodeError as error:
                raise CheckpointError(f"{path} is not UTF-8 text ({error}); fetch it again") from error
        path = folder / "tokenizer_config.json"
        source = tokenizer_config.get("chat_template")
        if isinstance(source, list):  # several, by name
            named = {
                entry.get("name"): entry.get("template")
                for entry in source
                if isinstance(entry, dict) and isinstance(entry.get("name"), str)
            }
            source = named.get("default")
        if source is not None and not isinstance(source, str):
            raise CheckpointError(f"{path}: 'chat_template' must be a string or a list of named ones; fetch it again")
        return cls(source, str(path))

    def __bool__(self) -> bool:
        return self.source is not None

    def render(self, **variables: Any) -> str:
        """Run the template.

        Raises
        ------
        ValueError
            If there is no template, or it fails on these variables.
        """
        if self.source is None:
            raise ValueError(
                f"{self._where} has no chat template: the model is no chat model; give it plain text as its prompt"
            )
        try:
            if self._compiled is None:
                self._compiled = _environment().from_string(self.source)
            return self._compiled.render(**variables)
        except Exception as error:  # a template is a program, and may fail in any way
            raise ValueError(f"the chat template of {self._where} refuses these messages: {error}") from error


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what the assistant wrote, for training; here it only passes its body on."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
