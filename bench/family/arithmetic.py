"""Equations, stories with sums in them, and the word problems of the task ``math``.

Both base models read the equations and the stories; only fine-tuned ones read problems with their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from bench.family.names import PEOPLE
from bench.family.problem import Problem, Split
from bench.family.split import numbers_in, split_of, wording_is_held_out

__all__ = ["equation", "equations", "problem", "story"]

THINGS = "apples books coins cards eggs pens shells stamps stones toys cups keys".split()
BOXES = "boxes bags rows jars".split()
SYMBOLS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

HAS = ["{name} has {} {thing}.", "{name} owns {} {thing}.", "There are {} {thing} in the house of {name}."]
LOSES = ["loses", "sells", "gives away", "breaks"]
FINDS = ["finds", "buys", "gets", "wins"]
CHANGES = ["{name} {verb} {} {thing}.", "Then {name} {verb} {} {thing}.", "On the way {name} {verb} {} {thing}."]
HOW_MANY = [
    "How many {thing} does {name} have?",
    "How many {thing} does {name} have now?",
    "What number of {thing} does {name} have?",
    "How many {thing} are there in the end?",
]


@dataclass
class Plot:
    """The sentences and worked steps of a problem about a person and a thing, and the wordings of its sentences."""

    name: str
    thing: str
    said: list[str]
    steps: list[str]
    wordings: list[str]

    def say(self, wording: str, *numbers: int, **words: str) -> str:
        """Returns a sentence of the problem, and notes its wording without names and numbers."""
        self.wordings.append(wording.format(*["{}"] * len(numbers), **{"name": "{}", "thing": "{}"} | words))
        return wording.format(*numbers, **{"name": self.name, "thing": self.thing} | words)

    def step(self, sentence: str, left: int, symbol: str, right: int) -> int:
        """Adds a worked step, and returns its result."""
        text, result = equation(left, symbol, right)
        self.steps.append(sentence.format(text, name=self.name, thing=self.thing))
        return result


def equation(left: int, symbol: str, right: int) -> tuple[str, int]:
    """``"47 + 85 = 132"`` and its result."""
    result = SYMBOLS[symbol](left, right)
    return f"{left} {symbol} {right} = {result}", result


def amount(random: Random) -> int:
    """A number of things, of one to three digits."""
    return random.randint(*random.choices([(2, 9), (10, 99), (100, 299)], weights=[2, 6, 2])[0])


def equations(random: Random) -> str:
    """A line of four sums."""
    return ", ".join(_any_equation(random) for _ in range(4)) + "."


def _any_equation(random: Random) -> str:
    kind = random.random()
    if kind < 0.15:
        return equation(random.randint(2, 9), "*", random.randint(2, 29))[0]
    one, other = amount(random) + random.choice([0, 0, amount(random)]), amount(random)
    if kind < 0.55:
        return equation(one, "+", other)[0]
    return equation(max(one, other), "-", min(one, other))[0]


def _change(random: Random, plot: Plot, have: int, sentence: str) -> int:
    """Adds a sentence and a step in which the person gets or loses some things."""
    some, less = amount(random), random.random() < 0.5
    less = less and some < have
    plot.said.append(plot.say(random.choice(CHANGES), some, verb=random.choice(LOSES if less else FINDS)))
    return plot.step(sentence, have, "-" if less else "+", some)


def _collector(random: Random, plot: Plot) -> str:
    have = amount(random)
    plot.said.append(plot.say(random.choice(HAS), have))
    have = _change(random, plot, have, "First {name} has {} {thing}.")
    _change(random, plot, have, "Then {name} has {} {thing}.")
    return plot.say(random.choice(HOW_MANY))


def _two_people(random: Random, plot: Plot) -> str:
    other = random.choice([person for person in PEOPLE if person != plot.name])
    have, more = amount(random), amount(random)
    compared = [
        "{other} has {} more {thing} than {name}.",
        "{other} has {} {thing} more.",
        "{other} owns {} more of them.",
    ]
    together = [
        "How many {thing} do they have together?",
        "How many {thing} do both have?",
        "How many {thing} are there in all?",
    ]
    plot.said.append(plot.say(random.choice(HAS), have))
    said = plot.say(random.choice(compared), more, other="{other}")
    plot.said.append(said.replace("{other}", other))
    theirs = plot.step(other + " has {} {thing}.", have, "+", more)
    plot.step("Together they have {} {thing}.", have, "+", theirs)
    return plot.say(random.choice(together))


def _boxes(random: Random, plot: Plot) -> str:
    box, boxes, each = random.choice(BOXES), random.randint(2, 9), random.randint(11, 29)
    filled = ["{name} has {} {box} of {} {thing}.", "{name} fills {} {box} with {} {thing} each."]
    plot.said.append(plot.say(random.choice(filled), boxes, each, box=box))
    have = plot.step("In the " + box + " there are {} {thing}.", boxes, "*", each)
    _change(random, plot, have, "Then {name} has {} {thing}.")
    return plot.say(random.choice(HOW_MANY))


def _reader(random: Random, plot: Plot) -> str:
    one, other = amount(random), amount(random)
    book = one + other + amount(random)
    books = ["{name} has a book of {} pages.", "The book of {name} has {} pages.", "{name} opens a book of {} pages."]
    reads = ["{name} reads {} pages and then {} pages.", "{name} reads {} pages on one day and {} pages on the next."]
    left = ["How many pages are left to read?", "How many pages are left?", "How many pages does {name} not read?"]
    plot.said += [plot.say(random.choice(books), book), plot.say(random.choice(reads), one, other)]
    read = plot.step("{name} reads {} pages.", one, "+", other)
    plot.step("There are {} pages left.", book, "-", read)
    return plot.say(random.choice(left))


def _tickets(random: Random, plot: Plot) -> str:
    price, tickets = random.randint(2, 9), random.randint(11, 29)
    purse = price * tickets + amount(random)
    purses = ["{name} has {} coins.", "{name} has a purse with {} coins.", "There are {} coins in the purse of {name}."]
    buys = ["{name} buys {} tickets for {} coins each.", "{name} pays for {} tickets, {} coins for each."]
    left = ["How many coins are left?", "How many coins does {name} have left?", "How many coins are in the purse now?"]
    plot.said += [plot.say(random.choice(purses), purse), plot.say(random.choice(buys), tickets, price)]
    cost = plot.step("The tickets cost {} coins.", price, "*", tickets)
    plot.step("Then {name} has {} coins.", purse, "-", cost)
    return plot.say(random.choice(left))


def _guests(random: Random, plot: Plot) -> str:
    first, second, third = amount(random), amount(random), amount(random)
    comes = ["{name} has guests.", "Guests come to {name}.", "{name} waits for guests."]
    bring = ["They bring {} {thing}, {} {thing} and {} {thing}.", "One brings {} {thing}, one {} and one {}."]
    asked = [
        "How many {thing} do the guests bring?",
        "How many {thing} do they bring?",
        "How many {thing} are there now?",
    ]
    plot.said += [plot.say(random.choice(comes)), plot.say(random.choice(bring), first, second, third)]
    two = plot.step("The first two bring {} {thing}.", first, "+", second)
    plot.step("All bring {} {thing}.", two, "+", third)
    return plot.say(random.choice(asked))


PLOTS: list[Callable[[Random, Plot], str]] = [_collector, _two_people, _boxes, _reader, _tickets, _guests]
ENDINGS = ["That is a lot.", "What a day!", "{} is glad.", "{} is tired and goes home.", "The sun is out."]


def _plot(random: Random) -> tuple[Plot, str]:
    plot = Plot(random.choice(PEOPLE), random.choice(THINGS), [], [], [])
    return plot, random.choice(PLOTS)(random, plot)


def story(random: Random) -> str:
    """A problem told as a story: with its sums, but without question and answer."""
    while True:
        plot, _ = _plot(random)
        if split_of(numbers_in(" ".join(plot.said))) == "train":
            return " ".join([*plot.said, *plot.steps, random.choice(ENDINGS).format(random.choice(PEOPLE))])


def problem(random: Random, split: Split) -> Problem:
    """A question, worked steps, and the answer behind ``####`` as GSM8K writes it."""
    while True:
        plot, question = _plot(random)
        numbers, wording = numbers_in(" ".join(plot.said)), " ".join(plot.wordings)
        if split_of(numbers) == split and wording_is_held_out(wording) == (split != "train"):
            break
    answer = plot.steps[-1].partition(" = ")[2].split()[0]
    prompt = f"Question: {' '.join([*plot.said, question])}\nAnswer:"
    return Problem(prompt, f" {' '.join(plot.steps)}\n#### {answer}", answer, wording, str(numbers))
