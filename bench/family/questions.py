"""Wordings of questions: pairs of an opening and a body, some of which are only for held-out problems."""

from __future__ import annotations

from random import Random

from bench.family.problem import Split

__all__ = ["worded"]

OPENINGS = ["", "Tell me. ", "Who knows? ", "I want to know. ", "Here is a question. "]


def worded(random: Random, bodies: list[str], split: Split) -> str:
    """An opening with one of the bodies; training and held-out problems have all of both, but no pair in common."""
    while True:
        opening, body = random.randrange(len(OPENINGS)), random.randrange(len(bodies))
        if ((opening + body) % len(OPENINGS) == 0) == (split != "train"):
            return OPENINGS[opening] + bodies[body]
