"""Reads a YAML file that a person wrote: plain values, each with its line."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from dlf.support.terminal import printable

__all__ = ["Keys", "YamlError", "read_yaml"]

Keys: TypeAlias = "tuple[str | int, ...]"  # keys that lead to a value: ("experts", 1, "alpha_max")

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 1 << 17
MAX_DIGITS = 64  # the time to read a number grows with the square of its length
MAX_KEY = 2**60
TEXT = "tag:yaml.org,2002:str"
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
PLAIN = (TEXT, *NUMBERS, "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null")
ELSEWHERE = "put long lists of examples into a file of their own"
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", re.ASCII)


class YamlError(ValueError):
    """A file cannot be read; the message names the line."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """Refuses references, and bounds depth and count: the scanner's time grows with the square of the depth."""

    def __init__(self, text: str, path: Path) -> None:
        super().__init__(text)
        self._path = path
        self._depth = 0
        self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        place = f"{self._path}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise YamlError(f"{place}: '*{event.anchor:.40}' refers to another value; write it out")
        if self._depth > MAX_DEPTH:
            raise YamlError(f"{place}: lists and mappings are nested more than {MAX_DEPTH} deep; flatten them")
        self._count += 1
        if self._count > MAX_VALUES:
            raise YamlError(f"{place}: it has more than {MAX_VALUES} values; {ELSEWHERE}")
        self._depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


def read_yaml(path: Path) -> tuple[Any, dict[Keys, int]]:
    """Return the content of a file, and the line of each value.

    Only JSON's kinds of values are read, and no references, so the content is no larger than what is written out.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    YamlError
        If it is too large, no YAML, or holds more than plain values.
    """
    if not os.path.exists(path) or os.path.isdir(path):  # a pipe is allowed
        raise FileNotFoundError(f"there is no file {str(path)!r:.300}")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise YamlError(f"{path} is larger than {MAX_BYTES >> 20} MiB; {ELSEWHERE}")
    try:
        text = content.decode("utf-8")
        loader = _Loader(text, path)
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        return (None if node is None else _value(loader, node, (), lines, path)), lines
    except UnicodeDecodeError as error:
        raise YamlError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}" if mark is None else f"{path}:{mark.line + 1}"
        raise YamlError(f"{place}: no valid YAML: {error.problem or error.context:.200}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        found = f"it holds the character {error.character:#x}, which is not text"
        raise YamlError(f"{path}:{line}: no valid YAML: {found}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"{path}: no valid YAML: {error}") from error


def _value(loader: Any, node: yaml.Node, keys: Keys, lines: dict[Keys, int], path: Path) -> Any:
    lines[keys] = node.start_mark.line + 1
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, (*keys, i), lines, path) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        found: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(loader, key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
            # Larger integers may share a hash; a dictionary of them takes time with the square of its size.
            if isinstance(key, bool) or not (isinstance(key, str) or (isinstance(key, int) and abs(key) <= MAX_KEY)):
                raise YamlError(f"{path}:{key_node.start_mark.line + 1}: a key must be a name; put it in quotes")
            if key in found:
                raise YamlError(f"{path}:{key_node.start_mark.line + 1}: {key!r:.80} is given twice; remove one")
            found[key] = _value(loader, value_node, (*keys, key), lines, path)
            lines[(*keys, key)] = key_node.start_mark.line + 1
        return found
    return _scalar(loader, node, path)


def _scalar(loader: Any, node: yaml.Node, path: Path) -> Any:
    """Return text, a number, true, false or null; YAML's dates, bytes and other types are refused."""
    place, shown = f"{path}:{node.start_mark.line + 1}", printable(f"{node.value:.40}")
    if node.tag not in PLAIN:
        raise YamlError(f"{place}: '{shown}' is neither text, a number, true, false nor null; put it in quotes")
    if node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
        raise YamlError(f"{place}: '{shown}...' has more than {MAX_DIGITS} digits; put it in quotes if it is text")
    if node.tag == TEXT and node.style is None and EXPONENT.fullmatch(node.value):
        return float(node.value)  # 1e-3 is a number in JSON and to people, if not in YAML 1.1
    if node.tag == TEXT:
        # JSON escapes a character beyond 16 bits as two halves, which YAML leaves apart.
        try:
            return node.value.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise YamlError(f"{place}: '{shown}' escapes half a character; write the whole of it") from error
    try:
        return loader.construct_object(node)
    except (ValueError, LookupError, ArithmeticError) as error:  # the value does not fit its tag
        raise YamlError(f"{place}: '{shown}' is not what its tag says; leave the tag out") from error
