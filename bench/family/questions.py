"""Ways to ask: what comes before a question, and its own wordings, of which some pairs are for held-out problems."""

from __future__ import annotations

from random import Random

from bench.family.problem import Split

__all__ = ["worded"]

OPENINGS = ["", "Tell me. ", "Who knows? ", "I want to know. ", "Here is a question. "]


def worded(random: Random, bodies: list[str], split: Split) -> str:
    """An opening and one of the bodies; every opening and every body occurs in both kinds of pairs."""
    while True:
        opening, body = random.randrange(len(OPENINGS)), random.randrange(len(bodies))
        if ((opening + body) % len(OPENINGS) == 0) == (split != "train"):
            return OPENINGS[opening] + bodies[body]
