"""Recognises regular expressions with which a backtracking engine reads any text in linear time.

Source of the known ones: the ``tokenizer.json`` of GPT-2, Llama 3, Qwen, GPT-4o and Mistral.
"""

from __future__ import annotations

import re

__all__ = ["runs_in_linear_time"]

_CLASS = r"\\[dDsSwW]|\\[pP]\{\^?\w{1,20}\}|\\[rnt]|\\[^\w]"
_PIECE = re.compile(
    rf"({_CLASS}|\[(?:{_CLASS}|[^\[\]\\&]|&(?!&))++\]|[^\\\[\]()|*+?{{}}^$.])(\?|\*|\+|\{{\d\}}|\{{\d,\d?\}})?"
)
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
_SPACES_BUT_ONE = r"\s+(?!\S)"
# Alternatives of well-known models, each with the one that must follow it: where the first backtracks over a run of
# characters in vain, the second takes the whole run.
_KNOWN: dict[str, str] = {
    _CONTRACTIONS: "",
    r"(?i:[sdmt]|ll|ve|re)": "",
    r"'(?i:[sdmt]|ll|ve|re)": "",
    r"'(?:[sdmt]|ll|ve|re)": "",
    _SPACES_BUT_ONE: "",
    r"\A ": "",
    r" \z": "",
    r"\s*[\r\n]+": r"\s+",
    r"\s*[\r\n]": r"\s+",
    rf"{_LEAD}{_UPPER}*{_LOWER}+": rf"{_LEAD}{_UPPER}+{_LOWER}*",
    rf"{_LEAD}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?": rf"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?",
    rf"{_LEAD}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?": "",
}
_LONGEST_FIRST = sorted(_KNOWN, key=len, reverse=True)
MAX_REGEX = 2000
MAX_OPTIONAL = 3  # pieces of an alternative that are tried in several lengths


def runs_in_linear_time(regex: str) -> bool:
    """Whether a backtracking engine reads any text with it in linear time, and never matches the empty text."""
    alternatives, position = list[str](), 0
    while len(regex) <= MAX_REGEX:
        end = _known_end(regex, position) or _simple_end(regex, position)
        if not end or regex[end : end + 1] not in ("", "|"):
            return False
        alternatives.append(regex[position:end])
        if end == len(regex):
            return _followed(alternatives)
        position = end + 1
    return False


def _followed(alternatives: list[str]) -> bool:
    """Whether each alternative that needs another one has it next; only `_SPACES_BUT_ONE` may stand between them."""
    for i, one in enumerate(alternatives):
        behind = [other for other in alternatives[i + 1 : i + 3] if other != _SPACES_BUT_ONE]
        if _KNOWN.get(one) and behind[:1] != [_KNOWN[one]]:
            return False
    return True


def _known_end(regex: str, position: int) -> int | None:
    for known in _LONGEST_FIRST:
        end = position + len(known)
        if regex.startswith(known, position) and regex[end : end + 1] in ("", "|"):
            return end
    return None


def _simple_end(regex: str, position: int) -> int | None:
    """End of an alternative in which nothing can fail after an unbounded repetition; None for any other."""
    shortest, optional, unbounded = 0, 0, False
    while piece := _PIECE.match(regex, position):
        low, high = _bounds(piece[2])
        if unbounded and low:
            return None
        shortest += low
        optional += low != high is not None
        unbounded |= high is None
        position = piece.end()
    return position if shortest and optional <= MAX_OPTIONAL else None


def _bounds(quantifier: str | None) -> tuple[int, int | None]:
    if quantifier is None:
        return 1, 1
    if quantifier in "?*+":
        return int(quantifier == "+"), 1 if quantifier == "?" else None
    low, comma, high = quantifier[1:-1].partition(",")
    return int(low), int(high) if high else None if comma else int(low)
