"""The miniature family: what its generators write, and what ships in dlf/zoo."""

from __future__ import annotations

import re
from itertools import islice
from random import Random

import pytest

from bench.family import arithmetic, corpus, towns

SUM = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")


def documents(count: int = 2000, seed: int = 3) -> list[str]:
    return list(islice(corpus.pretraining(seed), count))


def wrong_sums(text: str) -> list[str]:
    def right(left: str, symbol: str, other: str) -> str:
        return arithmetic.equation(int(left), symbol, int(other))[0]

    return [found[0] for found in SUM.finditer(text) if right(*found.groups()[:3]) != found[0]]


def test_a_seed_gives_the_same_text():
    assert documents(200) == documents(200)
    assert documents(200) != documents(200, seed=4)
    assert corpus.training("math", 50, 1) == corpus.training("math", 50, 1)


def test_sums_are_right():
    text = " ".join(documents())
    assert len(SUM.findall(text)) > 2000 and not wrong_sums(text)
    assert wrong_sums("2 + 2 = 5") == ["2 + 2 = 5"]


def test_base_models_read_no_question_and_no_answer():
    text = " ".join(documents())
    for word in ("Question", "Answer", "?", "####"):
        assert word not in text


@pytest.mark.parametrize("task", corpus.TASKS)
def test_problems_end_with_their_answer(task: str):
    for problem in corpus.held_out(task):
        assert problem.prompt.startswith("Question: ") and problem.prompt.endswith("?\nAnswer:")
        assert problem.completion.startswith(" ") and problem.completion.endswith(f"\n#### {problem.answer}")


@pytest.mark.parametrize("task", corpus.TASKS)
def test_experts_never_see_what_is_held_out(task: str):
    held_out = {problem.prompt for problem in corpus.held_out(task)}
    seen = {problem.prompt for problem in corpus.training(task, 200, 0)}
    assert len(held_out) == len(seen) == 200 and not held_out & seen


def test_held_out_problems_do_not_depend_on_their_number():
    assert corpus.held_out("math", 300)[:200] == corpus.held_out("math", 200)


def test_word_problems_have_steps_that_lead_to_the_answer():
    random = Random(5)
    for _ in range(500):
        problem = arithmetic.problem(random)
        steps = SUM.findall(problem.completion)
        assert len(steps) >= 2 and steps[-1][3] == problem.answer and not wrong_sums(problem.completion)
        for number in {number for one, _, other, _ in steps for number in (one, other)}:
            assert number in re.findall(r"\d+", problem.prompt) or number in [step[3] for step in steps]


def test_towns_that_experts_are_scored_on_are_others():
    assert len(towns.TRAIN) > 50 and len(towns.HELD_OUT) > 50 and not set(towns.TRAIN) & set(towns.HELD_OUT)
