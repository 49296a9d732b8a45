"""A question with its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Problem", "Split"]

# Models are fine-tuned on the first, choices of ours are made by the second, and scores are those of the third.
Split: TypeAlias = Literal["train", "dev", "test"]


@dataclass(frozen=True)
class Problem:
    """What a model is asked, what fine-tuning teaches it to say, and how that is scored.

    A multiple choice has `choices`, one of which is the completion; the answer of a generation is what follows
    ``####``, the last word of the sentence that states a fact, or the whole of a summary.
    """

    prompt: str
    completion: str  # begins with the space after the prompt
    answer: str
    wording: str  # of the question: those of training are others than those of the rest
    about: str  # the numbers or the thing that the question is about: no split has another's
    choices: tuple[str, ...] = ()
