"""Chat templates: Jinja programs that come with a checkpoint and run in a sandbox, in a helper process.

They are untrusted. The sandbox keeps a template from files and code, and the process bounds the time and the memory
that it takes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from dlf.confined.helper import Helper, HelperError
from dlf.errors import CheckpointError
from dlf.support.fields import read_bytes

__all__ = ["TEMPLATES", "ChatTemplate", "additional_templates"]

MAX_TEMPLATE_BYTES = 1 << 20
TEMPLATES = "additional_chat_templates"  # folder of them
MAX_TEMPLATES = 64
SECONDS = 5  # a template takes milliseconds
MEMORY = 512 << 20
DEFAULT, WITH_TOOLS = "default", "tool_use"


class ChatTemplate:
    """The named templates of one checkpoint; there may be none.

    ``default`` writes conversations; ``tool_use``, if there is one, those with tools, as in ``transformers``.
    """

    def __init__(self, named: Mapping[str, tuple[str, Path]], where: Path) -> None:
        self._named = named
        self._where = where

    @classmethod
    def read(cls, folder: Path, tokenizer_config: Mapping[str, Any]) -> ChatTemplate:
        """Find the templates: files of their own, else ``chat_template`` in ``tokenizer_config.json``.

        The files are ``chat_template.jinja``, which is the default, and ``additional_chat_templates/NAME.jinja``.

        Raises
        ------
        CheckpointError
            If one is too large or not text.
        """
        files = {path.stem: path for path in additional_templates(folder)}
        if os.path.isfile(folder / "chat_template.jinja"):
            files[DEFAULT] = folder / "chat_template.jinja"
        if len(files) > MAX_TEMPLATES:
            raise CheckpointError(f"{folder} has more than {MAX_TEMPLATES} chat templates; remove those not needed")
        where = folder / "tokenizer_config.json"
        if files:
            return cls({name: (_read(path), path) for name, path in files.items()}, where)
        return cls.of(tokenizer_config, where)

    @classmethod
    def of(cls, tokenizer_config: Mapping[str, Any], where: Path) -> ChatTemplate:
        """Take the templates of ``chat_template`` in the content of a ``tokenizer_config.json``."""
        return cls({name: (source, where) for name, source in _listed(tokenizer_config, where).items()}, where)

    @property
    def named(self) -> dict[str, str]:
        """All templates by name."""
        return {name: source for name, (source, _) in self._named.items()}

    @property
    def source(self) -> str | None:
        """The default template, if there is one."""
        return self._named[DEFAULT][0] if DEFAULT in self._named else None

    def __bool__(self) -> bool:
        return DEFAULT in self._named

    def render(self, **variables: Any) -> str:
        """Run the template.

        Raises
        ------
        ValueError
            If there is no template, or it fails on these variables, takes too long or too much memory, or a variable
            is no JSON value.
        """
        name = WITH_TOOLS if variables.get("tools") is not None and WITH_TOOLS in self._named else DEFAULT
        if name not in self._named:
            raise ValueError(
                f"{self._where} has no chat template: the model is no chat model; give it plain text as its prompt"
            )
        source, path = self._named[name]
        try:
            text: str = _helper().ask("render", source, variables)
        except HelperError as error:
            raise ValueError(f"the chat template of {path} refuses these messages: {error}") from error
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"the messages and variables of a chat template must be JSON values ({error}); give strings, numbers, "
                "lists and dictionaries"
            ) from error
        return text


@cache
def _helper() -> Helper:
    """Return the one process for all templates."""
    return Helper("templates", ["jinja2", "markupsafe"], MEMORY, SECONDS)


def _read(path: Path) -> str:
    try:
        text = read_bytes(path, MAX_TEMPLATE_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text ({error}); fetch it again") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _listed(config: Mapping[str, Any], where: Path) -> dict[str, str]:
    """Templates by name from ``tokenizer_config.json``: one, or a list."""
    found = config.get("chat_template")
    if found is None:
        return {}
    if isinstance(found, str) and len(found) <= MAX_TEMPLATE_BYTES:
        return {DEFAULT: found}
    if isinstance(found, list):
        pairs = [(entry.get("name"), entry.get("template")) for entry in found if isinstance(entry, dict)]
        named = {name: source for name, source in pairs if isinstance(name, str) and isinstance(source, str)}
        if len(named) == len(found) <= MAX_TEMPLATES and all(len(one) <= MAX_TEMPLATE_BYTES for one in named.values()):
            return named
    raise CheckpointError(
        f"{where}: 'chat_template' must be a string of at most {MAX_TEMPLATE_BYTES >> 20} MiB, or a list of at most "
        f"{MAX_TEMPLATES} named ones; fetch it again"
    )


def additional_templates(folder: Path) -> list[Path]:
    """Chat templates of a checkpoint beside its default one."""
    there = os.path.isdir(folder / TEMPLATES)  # False also for a name at which glob would fail
    return sorted((folder / TEMPLATES).glob("*.jinja")) if there else []
