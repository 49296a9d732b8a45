"""A question with its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Problem", "Split"]

# Models are fine-tuned on the first, we choose settings on the second, and report scores on the third.
Split: TypeAlias = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Problem:
    """A prompt, the completion that fine-tuning teaches, and the answer that is scored.

    A multiple choice has `choices`, one of which is the completion. Otherwise the answer is the number after ``####``,
    the last word of the sentence that states a fact, or the whole summary.
    """

    prompt: str
    completion: str  # begins with the space after the prompt
    answer: str
    wording: str  # of the question; training shares none with the other splits
    about: str  # the numbers or the thing of the question; no two splits share one
    choices: tuple[str, ...] = ()
