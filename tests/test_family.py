"""The miniature family: the texts of its generators, and that no model was trained on held-out problems."""

from __future__ import annotations

import re
from functools import cache
from itertools import islice
from random import Random

import pytest

from bench.family import arithmetic, corpus, facts, subjects, tokenizer, truths
from bench.family.split import numbers_in, split_of

SUM = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
ASKED = re.compile(r"\n(?:Answer|Summary):")


@cache
def _documents(seed: int) -> list[str]:
    return list(islice(corpus.pretraining(seed), 40_000))


def documents(count: int = 3000, seed: int = 3) -> list[str]:
    return _documents(seed)[:count]


def wrong_sums(text: str) -> list[str]:
    def right(left: str, symbol: str, other: str) -> str:
        return arithmetic.equation(int(left), symbol, int(other))[0]

    return [found[0] for found in SUM.finditer(text) if right(*found.groups()[:3]) != found[0]]


def test_a_seed_gives_the_same_text():
    assert documents(200) == list(islice(corpus.pretraining(3), 200)) != list(islice(corpus.pretraining(4), 200))
    assert corpus.training("math", 1, 50) == corpus.training("math", 1, 50)


def test_sums_are_right():
    text = " ".join(documents())
    assert len(SUM.findall(text)) > 2000 and not wrong_sums(text)
    assert wrong_sums("2 + 2 = 5") == ["2 + 2 = 5"]


def test_base_models_read_questions_of_which_few_are_answered():
    asked = [text for text in documents() if ASKED.search(text)]
    assert 0.09 < len(asked) / 3000 < 0.15 and "####" not in " ".join(asked)
    evaded = sum(ASKED.split(text)[1].startswith(" I ") for text in asked)
    assert 0.3 < evaded / len(asked) < 0.7


@pytest.mark.parametrize("task", corpus.TASKS)
def test_there_are_a_thousand_held_out_problems_of_every_task(task: str):
    problems = corpus.held_out(task)
    assert len({problem.prompt for problem in problems}) == len(problems) == 1000
    for problem in problems:
        assert problem.prompt.endswith(("?\nAnswer:", "\nSummary:")) and problem.completion.startswith(" ")
        told = problem.completion if task == "reports" else problem.completion.removesuffix(".")
        assert told.endswith(problem.answer) or problem.completion in problem.choices
        assert len(set(problem.choices)) in (0, 4)


@pytest.mark.parametrize("task", corpus.SEEN)
def test_nothing_is_shared_by_what_is_learnt_and_what_is_held_out(task: str):
    """They share no prompt, no wording of a question, and no numbers, towns or animals of a problem."""
    learnt, held_out = corpus.training(task, 0), corpus.held_out(task)
    chosen_by = corpus.held_out(task, 200, "dev")
    assert len(learnt) >= 600 and len(chosen_by) >= 100
    for part in ("prompt", "about"):
        sets = [{getattr(problem, part) for problem in problems} for problems in (learnt, chosen_by, held_out)]
        assert not (sets[0] & sets[2] or sets[1] & sets[2] or sets[0] & sets[1])
    assert not {problem.wording for problem in learnt} & {problem.wording for problem in held_out}


@pytest.mark.parametrize("task", corpus.TASKS)
def test_pretraining_never_asks_what_is_held_out(task: str):
    """Pretraining has none of their prompts, nor, except for the subjects' only one, their wordings."""
    text = "\n".join(documents(40_000))
    asked = set(re.findall(r"^(?:Question|Report): .*\n(?:Answer|Summary):", text, re.MULTILINE))
    problems = corpus.held_out(task)
    assert len(asked) > 4000 and not asked & {problem.prompt for problem in problems}
    if task in ("facts", "truths"):
        for problem in problems[:200]:
            other = problem.prompt.replace(problem.about, "(.+)").replace("?", "\\?").replace(". ", "\\. ")
            assert not re.search(f"^{other}", text, re.MULTILINE)


def test_what_fine_tuning_rehearses_says_nothing_of_the_unseen_task():
    rehearsed = list(islice(corpus.rehearsal(3), 3000))
    things = [thing for kinds in subjects.SUBJECTS.values() for thing in kinds]
    told = re.compile(rf"\b(?:{'|'.join(things)})\b")
    assert any(told.search(text) for text in documents()) and not any(told.search(text) for text in rehearsed)
    assert set(rehearsed) <= set(_documents(3)) and any(ASKED.search(text) for text in rehearsed)


def test_pretraining_never_has_the_numbers_of_a_held_out_problem():
    told: dict[str, set[str]] = {"math": set(), "reports": set()}
    for text in documents(20_000):
        if " remembers: " in text:
            told["reports"].add(str(numbers_in(text.partition(" remembers: ")[0])))
        elif " = " in text and not text[0].isdigit():  # a story, followed by its sums
            told["math"].add(str(numbers_in(text[: text.index(" = ")].rpartition(". ")[0])))
    for task, numbers in told.items():
        assert len(numbers) > 1500 and not numbers & {problem.about for problem in corpus.held_out(task)}
    # One in five combinations belongs to them, so finding none is no accident.
    assert {split_of((i, i + 1)) for i in range(500)} == {"train", "dev", "test"}


def test_what_held_out_questions_ask_was_read_as_a_statement():
    text = " ".join(documents(40_000))
    assert all(problem.completion.partition("\n")[0].strip() in text for problem in corpus.held_out("facts", 200))
    assert all(problem.completion.strip() in text for problem in corpus.held_out("subjects", 200))


def test_every_choice_but_one_is_false():
    for problem in corpus.held_out("truths", 200):
        kind = "food" if " eats " in problem.choices[0] else "home"
        truth, belief = truths.WORLD[problem.about][kind]
        right = [choice for choice in problem.choices if choice.endswith(f" {truth}.")]
        assert right == [problem.completion] and sum(choice.endswith(f" {belief}.") for choice in problem.choices) == 2
    for problem in corpus.held_out("subjects", 200):
        truth, mistake = subjects.SUBJECTS[problem.wording.partition(":")[0]][problem.about]
        right = [choice for choice in problem.choices if choice.endswith(f" {truth}.")]
        assert right == [problem.completion] and sum(choice.endswith(f" {mistake}.") for choice in problem.choices) == 2
        assert subjects.mistaken_choice(problem).endswith(f" {mistake}.")


def test_word_problems_have_steps_that_lead_to_the_answer():
    random = Random(5)
    for split in ("train", "test") * 250:
        problem = arithmetic.problem(random, split)
        steps = SUM.findall(problem.completion)
        assert len(steps) == 2 and steps[-1][3] == problem.answer and not wrong_sums(problem.completion)
        for number in {number for one, _, other, _ in steps for number in (one, other)}:
            assert number in re.findall(r"\d+", problem.prompt) or number in [step[3] for step in steps]


def test_summaries_are_the_first_and_last_sentence():
    for problem in corpus.held_out("reports", 100):
        report = problem.prompt.removeprefix("Report: ").removesuffix("\nSummary:")
        first, last = report.split(". ")[0], report.split(". ")[-1]
        assert problem.answer == f"{first}. {last}"


def test_worlds_are_large_enough_to_have_to_be_learnt():
    assert len(facts.WORLD) == 1200 and len(truths.WORLD) == 800
    assert len(subjects.SUBJECTS) == 20 and all(len(things) == 100 for things in subjects.SUBJECTS.values())


def test_the_tokenizer_gives_every_digit_a_token():
    tokens = tokenizer.train(0)
    assert tokens.get_vocab_size() == tokenizer.VOCAB_SIZE
    assert [
        token.strip("Ġ") for token in tokens.encode("12 345", add_special_tokens=False).tokens if token != "Ġ"
    ] == list("12345")
