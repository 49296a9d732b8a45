"""Makes untrusted text safe for a terminal: characters that would steer it are shown as escapes."""

from __future__ import annotations

import re

__all__ = ["printable"]

# Control characters, marks and embeddings that turn the direction of text, line separators, halves of surrogate pairs.
STEERING = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
IN_A_LINE = re.compile(f"[{STEERING}]")
IN_A_TEXT = re.compile(f"(?![\n\t])[{STEERING}]")


def printable(text: str, *, lines: bool = False) -> str:
    r"""Replace characters that would steer a terminal by escapes.

    Parameters
    ----------
    text
        Untrusted text, from a file, a model or an error.
    lines
        Whether it may have line ends and tabs; a Windows line end becomes ``\n``.
    """
    if lines:
        text = text.replace("\r\n", "\n")
    return (IN_A_TEXT if lines else IN_A_LINE).sub(lambda found: ascii(found[0])[1:-1], text)
