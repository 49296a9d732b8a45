"""Names of people and of invented things."""

from __future__ import annotations

from random import Random

__all__ = ["PEOPLE", "invented"]

PEOPLE = "Ada Ben Cora Dan Eva Finn Gina Hugo Ida Jon Kim Leo Mia Ned Olga Pia Rob Sara Tim Una".split()

STARTS = "B Br C Cr D Dr F Fl G Gr H J K Kl L M N P Pl R S St T Tr V W Z".split()
VOWELS = "a e i o u".split()
MIDDLES = "b d g k l ll m n nd nt r rb rk rm rt s st t v x".split()


def invented(random: Random, count: int, endings: list[str]) -> list[str]:
    """`count` different names of two syllables with one of the endings, in random order."""
    found: dict[str, None] = {}
    while len(found) < count:
        syllable = random.choice(STARTS) + random.choice(VOWELS) + random.choice(MIDDLES)
        found[syllable + random.choice(endings)] = None
    return list(found)
