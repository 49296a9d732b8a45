"""The miniature family that ships with the package."""

from __future__ import annotations

from pathlib import Path

import pytest

import dlf
from bench.family import corpus
from dlf import zoo
from dlf.checkpoints.precision import CPU_WEIGHTS
from dlf.cli.demo import is_correct, systems

TWELVE_MEGABYTES = 12_000_000


def test_what_ships():
    experts = [f"{task}-expert" for task in [*corpus.SEEN, "multi"]]
    assert zoo.models() == sorted(["large-base", "small-base", *experts])
    assert zoo.tasks() == ["facts", "math"]
    assert (
        sum(file.stat().st_size for file in Path(zoo.__file__).parent.rglob("*") if file.is_file()) < TWELVE_MEGABYTES
    )


@pytest.mark.parametrize("task", ["facts", "math"])
def test_problems_are_those_of_the_generator(task: str):
    held_out = [zoo.Problem(problem.prompt, problem.answer) for problem in corpus.held_out(task, 200)]
    assert zoo.problems(task) == held_out and len(held_out) == 200


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match="choose from facts-expert, large-base"):
        zoo.path("huge-base")
    with pytest.raises(ValueError, match="choose from facts, math"):
        zoo.problems("chess")


def test_fusion_answers_what_neither_model_answers_alone():
    """Checked on the first 40 problems; `dlf demo` scores all 200."""
    problems = zoo.problems("math")[:40]
    right = {}
    for system in systems("math", zoo.path):
        with system.open() as engine:
            answers = engine.generate([problem.prompt for problem in problems], max_new_tokens=128, progress=False)
        right[system.key] = sum(is_correct(a.text, p.answer) for a, p in zip(answers, problems, strict=True))
    assert right["large"] <= 4 and right["expert"] <= 10 and right["dynamic"] >= 32


def test_quantized_weights_know_what_float_ones_know():
    """A trained model's weights survive rounding, unlike random ones; `python -m bench quantization` measures all."""
    from bench.quantization import perplexity, texts

    documents = texts(20)["large-base"]
    found = {weights: perplexity("large-base", weights, documents, threads=2) for weights in CPU_WEIGHTS}
    assert found["fp32"] < 2.3
    for weights, most in {"bf16": 1.002, "int8": 1.005, "int4": 1.05, "int4-g64": 1.05}.items():
        assert 1 / most < found[weights] / found["fp32"] < most, weights


def test_empty_text_is_no_prompt_even_where_the_tokenizer_begins_texts_with_a_token():
    with dlf.Engine(zoo.path("small-base")) as engine:
        with pytest.raises(ValueError, match="empty"):
            engine.generate("")
        assert engine.generate([0], max_new_tokens=3).tokens  # <s> alone, given as a token


def test_readme_example():
    expert = dlf.Expert(zoo.path("math-expert"), base=zoo.path("small-base"))
    with dlf.Engine(zoo.path("large-base"), experts=[expert]) as engine:
        out = engine.generate(zoo.problems("math")[0].prompt, max_new_tokens=128)
    assert "####" in out.text and out.alpha.shape == (len(out.tokens), 1) and out.alpha.max() > 0
