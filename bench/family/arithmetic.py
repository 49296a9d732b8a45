"""Equations, stories with sums in them, and the word problems of the task ``math``.

Both base models read the equations and the stories; only the expert reads problems with their answers.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from bench.family.problem import Problem

__all__ = ["equations", "problem", "story"]

NAMES = [
    "Ada",
    "Ben",
    "Cora",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Ida",
    "Jon",
    "Kim",
    "Leo",
    "Mia",
    "Ned",
    "Olga",
    "Pia",
    "Rob",
    "Sara",
    "Tim",
    "Una",
]
THINGS = ["apples", "books", "coins", "cards", "eggs", "pens", "shells", "stamps", "stones", "toys", "cups", "keys"]
BOXES = ["boxes", "bags", "rows", "jars"]
SYMBOLS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}

# A plot gives the sentences of a problem, its steps (a sentence with {} where the equation goes), and the question.
Step = tuple[str, str]
Plot = tuple[list[str], list[Step], str]


def equation(left: int, symbol: str, right: int) -> tuple[str, int]:
    """``"47 + 85 = 132"`` and its result."""
    result = SYMBOLS[symbol](left, right)
    return f"{left} {symbol} {right} = {result}", result


def amount(random: Random) -> int:
    """A number of things, of one to three digits."""
    return random.randint(*random.choices([(2, 9), (10, 99), (100, 399)], weights=[1, 5, 3])[0])


def equations(random: Random) -> str:
    """A line of four sums."""
    return ", ".join(_any_equation(random) for _ in range(4)) + "."


def _any_equation(random: Random) -> str:
    kind = random.random()
    if kind < 0.15:
        return equation(random.randint(2, 9), "*", random.randint(2, 49))[0]
    one, other = amount(random), amount(random)
    if kind < 0.55:
        return equation(one, "+", other)[0]
    return equation(max(one, other), "-", min(one, other))[0]


def _loses_and_finds(random: Random) -> Plot:
    name, thing = random.choice(NAMES), random.choice(THINGS)
    have = amount(random)
    said, steps = [f"{name} has {have} {thing}."], []
    for number in range(random.choice([2, 2, 3])):
        some = amount(random)
        if some < have and random.random() < 0.5:
            said.append(f"{name} {random.choice(['loses', 'sells', 'gives away'])} {some} {thing}.")
            text, have = equation(have, "-", some)
        else:
            said.append(f"{name} {random.choice(['finds', 'buys', 'gets'])} {some} {thing}.")
            text, have = equation(have, "+", some)
        steps.append((f"{'Then' if number else 'First'} {name} has {{}} {thing}.", text))
    return said, steps, f"How many {thing} does {name} have?"


def _more_than(random: Random) -> Plot:
    one, other = random.sample(NAMES, 2)
    thing, have, more = random.choice(THINGS), amount(random), amount(random)
    first, theirs = equation(have, "+", more)
    second, _ = equation(have, "+", theirs)
    said = [f"{one} has {have} {thing}.", f"{other} has {more} more {thing} than {one}."]
    steps = [(f"{other} has {{}} {thing}.", first), (f"Together they have {{}} {thing}.", second)]
    return said, steps, f"How many {thing} do {one} and {other} have together?"


def _boxes(random: Random) -> Plot:
    name, thing, box = random.choice(NAMES), random.choice(THINGS), random.choice(BOXES)
    boxes, each = random.randint(2, 9), random.randint(11, 49)
    first, have = equation(boxes, "*", each)
    said = [f"{name} has {boxes} {box}.", f"There are {each} {thing} in each of the {box}."]
    steps = [(f"In the {box} {name} has {{}} {thing}.", first)]
    some = amount(random)
    if some < have and random.random() < 0.5:
        said.append(f"{name} sells {some} {thing}.")
        steps.append((f"Then {name} has {{}} {thing}.", equation(have, "-", some)[0]))
    else:
        said.append(f"{name} buys {some} {thing}.")
        steps.append((f"Then {name} has {{}} {thing}.", equation(have, "+", some)[0]))
    return said, steps, f"How many {thing} does {name} have?"


def _pages(random: Random) -> Plot:
    name = random.choice(NAMES)
    monday, tuesday = amount(random), amount(random)
    first, read = equation(monday, "+", tuesday)
    book = read + amount(random)
    said = [f"{name} has a book of {book} pages.", f"{name} reads {monday} pages and then {tuesday} pages."]
    steps = [(f"{name} reads {{}} pages.", first), ("There are {} pages left.", equation(book, "-", read)[0])]
    return said, steps, f"How many pages are left for {name} to read?"


def _tickets(random: Random) -> Plot:
    name = random.choice(NAMES)
    price, tickets = random.randint(2, 9), random.randint(11, 49)
    first, cost = equation(price, "*", tickets)
    purse = cost + amount(random)
    said = [f"{name} has {purse} coins.", f"{name} buys {tickets} tickets for {price} coins each."]
    steps = [("The tickets cost {} coins.", first), (f"Then {name} has {{}} coins.", equation(purse, "-", cost)[0])]
    return said, steps, f"How many coins does {name} have left?"


PLOTS: list[Callable[[Random], Plot]] = [_loses_and_finds, _more_than, _boxes, _pages, _tickets]
ENDINGS = ["That is a lot.", "What a day!", "{} is glad.", "{} is tired and goes home.", "The sun is out."]


def story(random: Random) -> str:
    """What happens in a problem, told as a story: the sums are done, but nothing is asked and nothing answered."""
    said, steps, _ = random.choice(PLOTS)(random)
    told = [sentence.format(text) for sentence, text in steps]
    ending = random.choice(ENDINGS).format(random.choice(NAMES))
    return " ".join([*said, *told, ending])


def problem(random: Random) -> Problem:
    """A question, worked steps, and the answer behind ``####`` as GSM8K writes it."""
    said, steps, question = random.choice(PLOTS)(random)
    worked = " ".join(sentence.format(text) for sentence, text in steps)
    answer = steps[-1][1].rpartition(" ")[2]
    return Problem(f"Question: {' '.join([*said, question])}\nAnswer:", f" {worked}\n#### {answer}", answer)
