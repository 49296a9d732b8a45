"""Runs chat templates in Jinja's sandbox, with the additions of ``transformers``.

Source: ``transformers.utils.chat_template_utils``; the templates of the hub rely on its additions to Jinja.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_CHARACTERS = 16 << 20
KEPT = 16  # compiled templates


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the assistant's text for training; here it only passes its body on."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=KEPT)
def compiled(source: str) -> jinja2.Template:
    """Compile a template."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(source)


def render(source: str, variables: dict[str, Any]) -> str:
    """Run a template; a ValueError says why it fails."""
    try:
        text = compiled(source).render(**variables)
    except (MemoryError, RecursionError):
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise ValueError(str(error) or type(error).__name__) from error
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it writes more than {MAX_CHARACTERS} characters")
    return text


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON; Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


METHODS = {"render": render}
