"""The rules of ``python -m bench weights``: the solve beside its reference, and answers that share a tree."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import fusion as reference
from reference.certainty import certainty

from bench.family import corpus
from bench.family.tasks import data
from bench.weights.answers import Choices, Generated
from bench.weights.models import Trio
from bench.weights.rules import candidates, solved
from bench.weights.step import Step
from dlf import zoo

SURPLUS = "scaled targets, E mixed in by e^−H(E) − e^−H(F)"


def step(rows: int = 12, vocab: int = 50) -> tuple[Step, np.ndarray]:
    random = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(3, rows, vocab, generator=random)
    logits[2] = logits[1] + 0.5 * logits[2]
    return Step(*logits, torch.arange(rows)), logits.double().numpy()


def test_the_solve_is_that_of_the_reference():
    one, (large, base, expert) = step()
    found = solved(one)
    for row, alpha in enumerate(found.tolist()):
        exact = reference.select(reference.prepare(large[row], base[row : row + 1], expert[row : row + 1]))
        assert alpha == pytest.approx(exact[0], abs=6e-3)


def test_certainty_is_that_of_the_reference():
    one, (large, base, expert) = step()
    found = candidates()[SURPLUS](one).double().exp().numpy()
    for row in range(len(found)):
        exact = np.exp(certainty(large[row], base[row], expert[row])[2])
        assert found[row] == pytest.approx(exact, abs=3e-3)


def test_curves_are_the_divergences_at_each_weight():
    one, _ = step()
    curve = one.curve(torch.full((12, 1), 0.7))
    fused = one.fused(torch.full((12,), 0.7)).double()
    large, expert = one.large.double(), one.expert.double()
    expected = [(fused, large), (large, fused), (expert, fused), (fused, expert)]
    for found, (p, q) in zip(curve[1:5], expected, strict=True):
        assert torch.allclose(found[:, 0].double(), (p.exp() * (p - q)).sum(-1), atol=1e-5)
    assert torch.allclose(curve.entropy[:, 0].double(), -(fused.exp() * fused).sum(-1), atol=1e-5)
    assert torch.allclose(curve.peak[:, 0].double(), fused.exp().amax(-1), atol=1e-6)


@pytest.mark.parametrize("name", candidates())
def test_every_rule_gives_probabilities(name: str):
    one, _ = step()
    total = candidates()[name](one).exp().sum(-1)
    assert torch.allclose(total, torch.ones(12), atol=1e-4)


def test_an_expert_that_is_surer_is_mixed_in_and_an_unsure_one_is_not():
    large = torch.tensor([[9.0, 9.0, 9.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    base = torch.zeros(2, 4)
    expert = torch.tensor([[0.0, 0.0, 0.0, 6.0], [0.0, 0.0, 0.0, 0.5]])
    one = Step(large, base, expert, torch.arange(2))
    found = candidates()[SURPLUS](one)
    plain = one.fused(solved(one, (2 * one.large_entropy / (one.large_entropy + one.expert_entropy)).clamp_max(1)))
    assert found[0, 3] > plain[0, 3]
    assert torch.allclose(found[1], plain[1], atol=1e-5)


def test_answers_do_not_depend_on_the_rules_before():
    trio, problems = Trio(zoo.FOLDER, "math"), corpus.held_out("math", 4, "dev")
    shared = Generated(trio, problems, data.last_number)
    for name in ("α = 0.5", "α = 1", "`select`"):
        own = Generated(trio, problems, data.last_number)
        assert shared.answers(candidates()[name]) == own.answers(candidates()[name])


def test_the_chosen_answer_has_the_largest_sum():
    trio, problems = Trio(zoo.FOLDER, "truths"), corpus.held_out("truths", 4, "dev")
    rule = candidates()["α = 1"]
    for problem, score in zip(problems, Choices(trio, problems).scores(rule), strict=True):
        likely = []
        for choice in problem.choices:
            tokens, first = trio.encode(problem.prompt + choice), len(trio.encode(problem.prompt))
            large, base, expert = trio.read([tokens])[0, :, first - 1 : -1]
            found = rule(Step(large, base, expert, torch.arange(len(large))))
            likely.append(float(found.gather(1, torch.tensor(tokens[first:])[:, None]).sum()))
        assert score == (int(np.argmax(likely)) == problem.choices.index(problem.completion))
