"""Speculative decoding is bit-identical to plain decoding and needs fewer passes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bit_cases import SAMPLING
from reference.chi_square import chi_square_survival

import dlf
from dlf import zoo

PROMPT = "Question: what is the sum"
PROMPTS = [PROMPT, "The quick brown", "def add(first, second)", "x", "lazy dog " * 9]
PROBLEMS = zoo.problems("math")[:40]
DRAFTERS = ["auto", "math-expert", "base", "prompt_lookup"]


def always(drafter: str = "auto", max_draft: int = 5) -> dlf.Speculation:
    """Return a speculation that drafts whether it is faster or not."""
    return dlf.Speculation(drafter, max_draft, adaptive=False)


def assert_same(found: dlf.Completion, expected: dlf.Completion) -> None:
    assert found.tokens == expected.tokens
    assert found.text == expected.text
    assert found.finish_reason == expected.finish_reason
    assert found.top_logprobs == expected.top_logprobs
    for name in ("alpha", "logprobs", "f", "g"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture(scope="module")
def engine() -> dlf.Engine:
    """Engine with the shipped family, in which drafts are accepted about as often as in real use."""
    return dlf.Engine(
        zoo.path("large-base"), [dlf.Expert(zoo.path("math-expert"), zoo.path("small-base"))], threads=2, max_batch=8
    )


@pytest.fixture(scope="module")
def random_engine(family: dict[str, Path]) -> dlf.Engine:
    """Engine with random models, whose drafts are mostly wrong."""
    return dlf.Engine(family["large"], [dlf.Expert(family["expert-a"], family["base"])], threads=2, max_batch=3)


@pytest.fixture(scope="module")
def plain(engine: dlf.Engine) -> list[dlf.Completion]:
    """Some of the shipped problems, decoded without drafts."""
    return engine.generate([problem.prompt for problem in PROBLEMS], max_new_tokens=60, speculate=False)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_greedy_tokens_are_those_of_plain_decoding(
    engine: dlf.Engine, plain: list[dlf.Completion], drafter: str
) -> None:
    prompts = [problem.prompt for problem in PROBLEMS]
    drafted = engine.generate(prompts, max_new_tokens=60, speculate=always(drafter))
    for found, expected in zip(drafted, plain, strict=True):
        assert_same(found, expected)
    assert all(one.passes == len(one.tokens) and one.drafted == 0 for one in plain)
    accepted = sum(len(one.tokens) - one.passes for one in drafted)
    # Most drafts of the expert and the base are right here; text seldom repeats.
    assert accepted > (0.1 if drafter == "prompt_lookup" else 0.5) * sum(len(one.tokens) for one in drafted)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p", "penalties", "bias", "all"])
def test_sampled_tokens_are_those_of_plain_decoding(engine: dlf.Engine, name: str) -> None:
    prompts = [problem.prompt for problem in zoo.problems("math")[:24]]
    options = {"max_new_tokens": 50, "seed": 7} | SAMPLING[name]
    if "temperature" in options:
        options["num_return_sequences"] = 2
    plain = engine.generate(prompts, speculate=False, **options)
    drafted = engine.generate(prompts, speculate=always(), **options)
    for found, expected in zip(drafted, plain, strict=True):
        assert_same(found, expected)
    assert sum(one.passes for one in drafted) < 0.9 * sum(len(one.tokens) for one in drafted)


@pytest.mark.parametrize("combine", ["select", "centroid", "joint"])
def test_several_experts(family: dict[str, Path], combine: str) -> None:
    experts = [
        dlf.Expert(family["expert-a"], family["base"], name="a"),
        dlf.Expert(family["expert-b"], family["base"], name="b"),
        dlf.InContext(family["base"], [("2 + 2", "4"), ("3 + 5", "8")], name="examples"),
    ]
    options = {"max_new_tokens": 40, "temperature": 0.7, "seed": 1, "ignore_eos": True}
    with dlf.Engine(family["large"], experts, combine=combine, threads=2, max_batch=3) as engine:
        plain = engine.generate(PROMPTS, speculate=False, **options)
        for drafter in ("auto", "a", "examples", "base", "prompt_lookup"):
            for found, expected in zip(
                engine.generate(PROMPTS, speculate=always(drafter), **options), plain, strict=True
            ):
                assert_same(found, expected)
        only = engine.generate(PROMPT, experts=["b"], speculate=False, **options)
        assert_same(engine.generate(PROMPT, experts=["b"], speculate=always("b"), **options), only)


def test_adapters_draft(tmp_path: Path, family: dict[str, Path]) -> None:
    pytest.importorskip("peft")
    from test_lora import make_adapter

    adapters = [
        make_adapter(tmp_path / name, family["base"], seed, r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"])
        for seed, name in enumerate(("first", "second"))
    ]
    experts = [dlf.Lora(family["base"], adapter, name=adapter.name) for adapter in adapters]
    options = {"max_new_tokens": 40, "ignore_eos": True}
    with dlf.Engine(family["large"], experts, threads=2, max_batch=3) as engine:
        plain = engine.generate(PROMPTS, speculate=False, **options)
        for drafter in ("first", "second", "base"):
            for found, expected in zip(
                engine.generate(PROMPTS, speculate=always(drafter), **options), plain, strict=True
            ):
                assert_same(found, expected)


@pytest.mark.parametrize("weights", ["fp32", "int8", "int4"])
def test_every_type_of_weights(weights: str) -> None:
    experts = [dlf.Expert(zoo.path("math-expert"), zoo.path("small-base"))]
    prompts = [problem.prompt for problem in zoo.problems("math")[:8]]
    with dlf.Engine(zoo.path("large-base"), experts, weights=weights, threads=2) as engine:
        plain = engine.generate(prompts, max_new_tokens=40, speculate=False)
        for found, expected in zip(
            engine.generate(prompts, max_new_tokens=40, speculate=always(max_draft=12)), plain, strict=True
        ):
            assert_same(found, expected)


def test_what_ends_a_text_inside_a_draft(engine: dlf.Engine) -> None:
    prompt = zoo.problems("math")[0].prompt
    whole = engine.generate(prompt, max_new_tokens=100, speculate=False)
    assert whole.finish_reason == "stop"  # by the end-of-sequence token
    assert_same(engine.generate(prompt, max_new_tokens=100, speculate=always(max_draft=16)), whole)
    for options in (
        {"max_new_tokens": 17},
        {"stop_strings": [whole.text[20:24]]},
        {"stop_token_ids": [whole.tokens[12]]},
        {"ignore_eos": True, "max_new_tokens": len(whole.tokens) + 30},
    ):
        plain = engine.generate(prompt, speculate=False, **options)
        for max_draft in (1, 4, 16):
            assert_same(engine.generate(prompt, speculate=always(max_draft=max_draft), **options), plain)


def test_a_callback_ends_a_text_inside_a_draft(engine: dlf.Engine) -> None:
    prompt = zoo.problems("math")[0].prompt
    for count in (1, 4, 9, 10_000):
        completions = []
        for speculate in (False, always(max_draft=16)):
            seen: list[dlf.Piece] = []

            def take(piece: dlf.Piece, seen: list[dlf.Piece] = seen, count: int = count) -> bool:
                seen.append(piece)
                return len(seen) < count

            found = engine.generate(prompt, max_new_tokens=100, callback=take, speculate=speculate)
            assert [piece.token for piece in seen] == found.tokens
            completions.append(found)
        assert_same(completions[1], completions[0])
        assert completions[0].finish_reason == ("callback" if count < 100 else "stop")
    assert not engine._running


def test_the_end_of_the_context(family: dict[str, Path]) -> None:
    experts = [dlf.InContext(family["base"], [("2 + 2", "4")])]  # its lane is longer than the others
    with dlf.Engine(family["large"], experts, max_context=40, threads=1, drafter=family["base"]) as engine:
        plain = engine.generate("x", max_new_tokens=100, ignore_eos=True, speculate=False)
        assert plain.finish_reason == "length" and len(plain.tokens) < 40
        for drafter in ("auto", "base", "prompt_lookup", "drafter"):
            found = engine.generate("x", max_new_tokens=100, ignore_eos=True, speculate=always(drafter, 16))
            assert_same(found, plain)


def test_a_further_model_drafts() -> None:
    prompts = [problem.prompt for problem in zoo.problems("math")[:12]]
    with dlf.Engine(zoo.path("large-base"), drafter=zoo.path("small-base"), threads=2, max_batch=3) as engine:
        plain = engine.generate(prompts, max_new_tokens=40, speculate=False)
        drafted = engine.generate(prompts, max_new_tokens=40, speculate=always("drafter", 4))
        for found, expected in zip(drafted, plain, strict=True):
            assert_same(found, expected)
        assert sum(one.passes for one in drafted) < 0.7 * sum(len(one.tokens) for one in drafted)
        # Without experts, the base is not a drafter.
        with pytest.raises(ValueError, match="there are: prompt_lookup, drafter"):
            engine.generate("x", speculate=dlf.Speculation("base"))


def test_scoring_and_streams_beside_drafts(engine: dlf.Engine) -> None:
    prompt = zoo.problems("math")[1].prompt
    expected = engine.generate(prompt, max_new_tokens=40, speculate=False)
    scores = engine.score(prompt, expected.tokens[:-1])
    stream = engine.stream(prompt, max_new_tokens=40, speculate=always())
    tokens = []
    for piece in stream:
        tokens.append(piece.token)
        again = engine.score(prompt, expected.tokens[:-1])
        np.testing.assert_array_equal(again.logprobs, scores.logprobs)
    assert tokens == expected.tokens


def test_frequencies_are_those_of_the_fused_distribution(random_engine: dlf.Engine) -> None:
    """Compare the frequencies of the drafted second token, after the most frequent first one, with its scores."""
    options = {"temperature": 1.0, "max_new_tokens": 3, "num_return_sequences": 1000}
    drawn = [
        completion
        for seed in range(10)
        for completion in random_engine.generate(PROMPT, seed=seed, speculate=always(max_draft=2), **options)
    ]
    [(first, count)] = Counter(one.tokens[0] for one in drawn).most_common(1)
    seconds = [one.tokens[1] for one in drawn if one.tokens[0] == first and len(one.tokens) > 1]
    assert count > 100 and len(seconds) == count
    prompt = [*random_engine.tokenizer.encode(PROMPT), first]
    vocab = random_engine.vocab_size
    expected = np.exp([score.logprob for score in random_engine.score(prompt, [[token] for token in range(vocab)])])
    observed = np.bincount(seconds, minlength=vocab).astype(np.float64)
    assert chi_square_survival(observed, expected * count) > 1e-4


def test_adaptive_drafts_change_nothing_but_passes(engine: dlf.Engine, random_engine: dlf.Engine) -> None:
    prompts = [problem.prompt for problem in zoo.problems("math")[:20]]
    for one, texts in ((engine, prompts), (random_engine, PROMPTS)):
        for temperature in (0.0, 1.5):
            options = {"max_new_tokens": 50, "temperature": temperature, "seed": 5}
            plain = one.generate(texts, speculate=False, **options)
            for drafter in ("auto", "base", "prompt_lookup"):
                found = one.generate(texts, speculate=dlf.Speculation(drafter), **options)
                for a, b in zip(found, plain, strict=True):
                    assert_same(a, b)


def test_what_is_no_speculation(engine: dlf.Engine, family: dict[str, Path]) -> None:
    for speculate, error in (
        ("sometimes", TypeError),
        (3, TypeError),
        (dlf.Speculation("nobody"), ValueError),
        (dlf.Speculation("drafter"), ValueError),
    ):
        with pytest.raises(error, match="speculate|there are: math-expert, base, prompt_lookup"):
            engine.generate("x", speculate=speculate)
    for arguments, error in (
        ({"max_draft": 0}, ValueError),
        ({"max_draft": 17}, ValueError),
        ({"max_draft": 2.0}, TypeError),
        ({"drafter": zoo.path("small-base")}, TypeError),
    ):
        with pytest.raises(error):
            dlf.Speculation(**arguments)
    with pytest.raises(TypeError, match="speculate"):
        dlf.Engine(family["large"], speculate="no")
    assert engine.generate("x", max_new_tokens=2, speculate=True).tokens
