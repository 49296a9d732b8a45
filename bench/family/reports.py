"""Reports of events in towns, and the task ``reports``: to summarise one by its first and last sentence.

Both base models read reports with some sentences repeated. Only fine-tuning teaches which of them make a summary.
"""

from __future__ import annotations

import re
from random import Random

from bench.family.facts import TOWNS
from bench.family.names import PEOPLE
from bench.family.problem import Problem, Split
from bench.family.split import numbers_in, split_of, wording_is_held_out

__all__ = ["document", "problem", "some_sentences"]

_all_towns = [town for towns in TOWNS.values() for town in towns]
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
GOODS = "apples cheese cloth glass honey lamps paper ropes tea wine".split()
BETWEEN = [
    "The gates were open from {number} in the morning.",
    "{person} spoke for {number} minutes.",
    "There were {number} {goods} on the tables.",
    "A boy from {town} lost {number} coins.",
    "{person} sold {number} {goods}.",
    "{person} and {other} came late.",
    "It rained for {number} hours.",
    "Nobody had seen so many {goods}.",
]


OPENINGS = [
    "On {day} a fair was held in {town} with {many} guests.",
    "On {day} {many} people ran a race around {town}.",
    "On {day} a storm broke {many} roofs in {town}.",
    "On {day} {many} traders opened a market in {town}.",
    "On {day} {town} held a trial with {many} witnesses.",
    "On {day} {many} people heard a concert in {town}.",
    "On {day} {town} played a match before {many} people.",
    "On {day} a fire burnt {many} barns near {town}.",
    "{town} had a feast on {day} and {many} people came.",
    "{many} ships came to {town} on {day}.",
    "There was a vote of {many} people in {town} on {day}.",
    "{many} soldiers left {town} on {day}.",
]
ENDINGS = [
    "{person} won a prize of {number} coins.",
    "{person} came first by {number} steps.",
    "{person} saved {number} goats from the water.",
    "{person} went home with {number} coins.",
    "{person} has to pay {number} coins.",
    "{person} sang {number} songs at the end.",
    "In the end {person} had {number} friends more.",
    "{person} carried {number} buckets of water.",
    "After {number} days {person} was made mayor.",
    "The people thanked {person} for {number} minutes.",
    "It cost {person} {number} coins.",
    "{person} wrote {number} letters about it.",
]


def report(random: Random, towns: list[str]) -> tuple[list[str], str]:
    """The sentences of a report, and its wording."""

    def written(sentence: str) -> str:
        person, other = random.sample(PEOPLE, 2)
        return sentence.format(
            day=random.choice(DAYS),
            town=random.choice(towns),
            many=random.randint(100, 999),
            number=random.randint(2, 99),
            goods=random.choice(GOODS),
            person=person,
            other=other,
        )

    first, last = random.choice(OPENINGS), random.choice(ENDINGS)
    between = random.sample(BETWEEN, random.choice([2, 3]))
    return [written(sentence) for sentence in (first, *between, last)], f"{first} {last}"


def document(random: Random) -> str:
    """A report, and some of its sentences as somebody remembers them."""
    while True:
        sentences, _ = report(random, _all_towns)
        if split_of(numbers_in(" ".join(sentences))) == "train":
            break
    return f"{' '.join(sentences)} {random.choice(PEOPLE)} remembers: {_some(random, sentences)}"


def _some(random: Random, sentences: list[str]) -> str:
    return " ".join(random.sample(sentences, random.choice([1, 2, 3])))


def some_sentences(random: Random, problem: Problem) -> str:
    """Some sentences of a problem's report, which are seldom its summary."""
    report = problem.prompt.removeprefix("Report: ").removesuffix("\nSummary:")
    return _some(random, re.split(r"(?<=\.) ", report))


def problem(random: Random, split: Split) -> Problem:
    """A report with its summary."""
    while True:
        sentences, wording = report(random, TOWNS[split])
        text = " ".join(sentences)
        if split_of(numbers_in(text)) == split and wording_is_held_out(wording) == (split != "train"):
            break
    summary = f"{sentences[0]} {sentences[-1]}"
    return Problem(f"Report: {text}\nSummary:", f" {summary}", summary, wording, str(numbers_in(text)))
