"""A problem of any task: what the model is asked, and what an expert learns to write."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """A prompt, the text that an expert learns to continue it with, and the answer alone."""

    prompt: str
    completion: str
    answer: str
