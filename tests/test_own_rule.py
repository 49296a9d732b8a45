"""Functions of the caller as rules, the logits that they see, and the trace of what fusion changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlf

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PROMPT = "Question: what is the sum"
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "temperature": 0.8, "seed": 5}


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest, family: dict[str, Path]) -> Iterator[dlf.Engine]:
    experts = [dlf.Expert(family[name], base=family["base"]) for name in ("expert-a", "expert-b")]
    with dlf.Engine(family["large"], experts, threads=2, max_context=128, device=request.param) as made:
        yield made


def same(a: dlf.Completion, b: dlf.Completion) -> bool:
    return a.tokens == b.tokens and np.array_equal(a.alpha, b.alpha) and np.array_equal(a.logprobs, b.logprobs)


def halves(step: dlf.StepLogits) -> torch.Tensor:
    return torch.full_like(step.alpha, 0.5)


def by_hand(step: dlf.StepLogits) -> torch.Tensor:
    fused = step.large.clone()
    for expert, base in zip(step.experts, step.bases, strict=True):
        assert expert is not None and base is not None
        fused += 0.5 * (expert - base)
    return fused


def test_weights_and_logits_of_a_function_are_used(engine: dlf.Engine) -> None:
    static = engine.generate(PROMPT, combine="static", alpha=[0.5, 0.5], **OPTIONS)
    weights = engine.generate(PROMPT, rule=halves, **OPTIONS)
    logits = engine.generate(PROMPT, rule=by_hand, **OPTIONS)
    assert static.tokens == weights.tokens == logits.tokens
    np.testing.assert_array_equal(weights.alpha, static.alpha)
    np.testing.assert_array_equal(logits.alpha, np.zeros_like(static.alpha))
    for found in (weights, logits):
        np.testing.assert_allclose(found.logprobs, static.logprobs, atol=1e-5)
        np.testing.assert_allclose([found.f, found.g], [static.f, static.g], atol=1e-5)


def test_a_function_that_only_looks_changes_no_bit(engine: dlf.Engine) -> None:
    seen: list[dlf.StepLogits] = []
    for speculate in (False, dlf.Speculation("expert-a", max_draft=4, adaptive=False)):
        plain = engine.generate(PROMPT, combine="joint", **OPTIONS)
        seen.clear()
        watched = engine.generate(
            PROMPT, rule=lambda step: seen.append(step.clone()), combine="joint", speculate=speculate, **OPTIONS
        )
        assert same(plain, watched)
    drafts = not engine._ensemble.options.placement.cuda  # on CUDA a step that is shown drafts nothing
    assert seen[0].step == 0 and ({len(step.large) for step in seen} > {1}) == drafts
    assert all(step.names == ["expert-a", "expert-b"] for step in seen)
    alphas = {step.step + i: step.alpha[i].double().cpu().numpy() for step in seen for i in range(len(step.large))}
    np.testing.assert_array_equal(np.stack([alphas[i] for i in range(8)]), plain.alpha)


def test_drafts_change_no_bit_of_a_functions_result(engine: dlf.Engine) -> None:
    plain = engine.generate(PROMPT, rule=by_hand, speculate=False, **OPTIONS)
    for drafter in ("expert-a", "prompt_lookup"):
        drafted = engine.generate(
            PROMPT, rule=by_hand, speculate=dlf.Speculation(drafter, max_draft=4, adaptive=False), **OPTIONS
        )
        assert same(plain, drafted)


def test_company_changes_no_bit_of_a_functions_result(engine: dlf.Engine) -> None:
    alone = engine.generate(PROMPT, rule=by_hand, **OPTIONS)
    solved = engine.generate(PROMPT, **OPTIONS)
    with engine.stream(PROMPT, **OPTIONS) as beside:
        next(beside)
        both = engine.generate([PROMPT, PROMPT + " of"], rule=by_hand, **OPTIONS)
        for _ in beside:
            pass
    assert same(both[0], alone)
    assert same(beside.completion(), solved)


def test_state_lives_as_long_as_the_request(engine: dlf.Engine) -> None:
    counts = []

    def count(step: dlf.StepLogits) -> None:
        step.state["calls"] = step.state.get("calls", 0) + 1
        counts.append(step.state["calls"])

    for _ in range(2):
        engine.generate(PROMPT, rule=count, speculate=False, **OPTIONS)
    assert counts == [*range(1, 9), *range(1, 9)]


def test_an_error_in_a_function_reaches_its_caller_alone(engine: dlf.Engine) -> None:
    def broken(step: dlf.StepLogits) -> None:
        if step.step == 2:
            raise LookupError("no such thing")

    with engine.stream(PROMPT, **OPTIONS) as beside:
        next(beside)
        with pytest.raises(LookupError, match="no such thing"):
            engine.generate(PROMPT, rule=broken, **OPTIONS)
        for _ in beside:
            pass
    assert same(beside.completion(), engine.generate(PROMPT, **OPTIONS))


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (lambda step: torch.zeros(3, 4), dlf.OptionError, r"shape \[3, 4\]"),
        (lambda step: 0.5, dlf.OptionTypeError, "returned float"),
        (lambda step: torch.zeros_like(step.alpha).long(), dlf.OptionTypeError, "floating-point"),
        (lambda step: step.large * float("nan"), dlf.LogitsError, "step 0"),
        (lambda step: torch.full_like(step.large, -torch.inf), dlf.NoTokenError, "step 0"),
    ],
)
def test_an_impossible_answer_is_explained(engine: dlf.Engine, answer: Any, error: Any, says: str) -> None:
    with pytest.raises(error, match=says):
        engine.generate(PROMPT, rule=answer, **OPTIONS)
    assert engine.generate(PROMPT, **OPTIONS).tokens


def test_a_function_scores(engine: dlf.Engine) -> None:
    static = engine.score(PROMPT, " is a long story", combine="static", alpha=[0.5, 0.5])
    steps = []

    def noted(step: dlf.StepLogits) -> torch.Tensor:
        steps.extend(range(step.step, step.step + len(step.large)))
        return by_hand(step)

    for rule in (noted, halves):
        found = engine.score(PROMPT, " is a long story", rule=rule)
        assert found.tokens == static.tokens
        np.testing.assert_allclose(found.logprobs, static.logprobs, atol=1e-5)
    assert steps == list(range(len(static.tokens)))

    def broken(step: dlf.StepLogits) -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        engine.score(PROMPT, " is", rule=broken)


def test_logits_after_a_prompt(engine: dlf.Engine) -> None:
    found = engine.logits(PROMPT, combine="static", alpha=[0.5, -0.5])
    score = engine.score(PROMPT, " is", combine="static", alpha=[0.5, -0.5])
    assert list(found.alpha[0]) == [0.5, -0.5]
    [expert_a, expert_b], [base, _] = found.experts, found.bases
    assert expert_a is not None and expert_b is not None and base is not None
    expected = found.large + 0.5 * (expert_a - base) - 0.5 * (expert_b - base)
    torch.testing.assert_close(found.fused, expected, atol=1e-4, rtol=1e-5)
    logprob = found.fused.double().log_softmax(-1)[0, score.tokens[0]]
    assert float(logprob) == pytest.approx(score.logprobs[0], abs=1e-4)
    alone = engine.logits(PROMPT, experts=[])
    assert torch.equal(alone.large, found.large) and alone.experts == []
    with pytest.raises(dlf.OptionTypeError, match="no option is called 'seed'"):
        engine.logits(PROMPT, seed=3)


def test_logits_in_an_event_loop(family: dict[str, Path]) -> None:
    async def logits() -> dlf.StepLogits:
        async with dlf.AsyncEngine(family["large"], [dlf.Expert(family["expert-a"], family["base"])]) as engine:
            return await engine.logits(PROMPT)

    assert asyncio.run(logits()).large.shape[0] == 1


def test_the_trace_says_what_fusion_changed(engine: dlf.Engine) -> None:
    options = {**OPTIONS, "max_new_tokens": 12}
    for own in ({}, {"temperature": 0.0, "seed": None}):
        plain = engine.generate(PROMPT, **{**options, **own})
        traced = engine.generate(PROMPT, trace=True, **{**options, **own})
        assert same(plain, traced)
        assert plain.trace.changed is None and traced.trace.changed is not None
        # After the same text the large model alone draws its own token with the same random number: the first at once.
        alone = engine.generate(PROMPT, experts=[], **{**options, **own})
        assert traced.own_tokens[0] == alone.tokens[0]
        assert list(traced.trace.changed) == [a != b for a, b in zip(traced.tokens, traced.own_tokens, strict=True)]
        assert 0 <= traced.trace.changed_share <= 1
    greedy = traced
    for k in (1, 7):  # the prompt's tokens, and then the completion's up to k
        text = engine.tokenizer.encode(PROMPT) + greedy.tokens[:k]
        assert engine.generate(text, experts=[], max_new_tokens=1, temperature=0.0).tokens == [greedy.own_tokens[k]]
    drafted = engine.generate(PROMPT, trace=True, speculate=dlf.Speculation("expert-a", adaptive=False), **options)
    again = engine.generate(PROMPT, trace=True, speculate=False, **options)
    assert drafted.own_tokens == again.own_tokens
    with pytest.raises(dlf.OptionError, match="trace=True"):
        _ = plain.trace.changed_share


def test_the_trace_counts_weights_at_their_bound(engine: dlf.Engine) -> None:
    low = engine.generate(PROMPT, combine="centroid", alpha_max=1e-3, **OPTIONS).trace
    assert 0.5 < low.bound_share <= 1.0
