"""Reads examples for the context: a file of JSON lines, each with a question and its answer."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

__all__ = ["read_examples"]

MAX_BYTES = 64 << 20
MAX_EXAMPLES = 1 << 16
LINE = '{"question": "...", "answer": "..."}'


def read_examples(path: Path) -> list[tuple[str, str]]:
    """Read pairs of question and answer; a byte order mark, CRLF and empty lines are skipped.

    Raises
    ------
    ValueError
        If the file is missing, empty or larger than any context, or a line is no such pair; the message names the line.
    """
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {str(path)!r:.200}")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} is larger than {MAX_BYTES >> 20} MiB, more than any context holds")
    content = content.removeprefix(b"\xef\xbb\xbf")
    found: list[tuple[str, str]] = []
    for number, line in enumerate(io.BytesIO(content), 1):
        if not line.strip():
            continue
        if len(found) == MAX_EXAMPLES:
            raise ValueError(f"{path} has more than {MAX_EXAMPLES} examples, more than any context holds")
        try:
            example = json.loads(line.decode("utf-8"))
            pair = example["question"], example["answer"]
            "".join(pair).encode("utf-8")  # raises for what is no text, and for half a surrogate pair
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number} is no UTF-8 text; save the file as UTF-8") from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}:{number} is no {LINE}") from error
        found.append(pair)
    if not found:
        raise ValueError(f"{path} is empty; give a line {LINE} for each example")
    return found
