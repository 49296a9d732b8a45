"""Decides which numbers and wordings only held-out problems have."""

from __future__ import annotations

import re
import zlib

from bench.family.problem import Split

__all__ = ["numbers_in", "split_of", "wording_is_held_out"]


def numbers_in(text: str) -> tuple[int, ...]:
    """The numbers of a text in their order."""
    return tuple(int(number) for number in re.findall(r"\d+", text))


def split_of(numbers: tuple[int, ...]) -> Split:
    """The split of texts with these numbers in this order; pretraining text is of ``train``."""
    hashed = zlib.crc32(repr(numbers).encode())
    if hashed % 5:
        return "train"
    return "dev" if hashed // 5 % 5 == 0 else "test"


def wording_is_held_out(wording: str) -> bool:
    """Whether only held-out problems may have this wording."""
    return zlib.crc32(wording.encode()) % 5 == 0
