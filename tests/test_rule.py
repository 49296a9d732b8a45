"""Rules of requests: their options, and several rules in one batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_solver import language

import dlf
from dlf import _C, fusion

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PROMPT = "Question: what is the sum"
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "temperature": 0.8, "seed": 5}
RULES: list[dict[str, Any]] = [
    {},
    {"match": "forward", "alpha_max": 0.7},
    {"combine": "centroid", "alpha_max": [0.5, 1.5]},
    {"combine": "joint"},
    {"combine": "joint", "match": "reverse", "alpha": [None, -0.3]},
    {"combine": "grid"},
    {"combine": "static", "alpha": [0.8, -0.4]},
]
# Rules over probabilities, which requests alone can have.
PROBABILITY_RULES: list[dict[str, Any]] = [
    {"combine": "jsd"},
    {"combine": "jsd", "mix": [0.3, None], "large_weight": 1.2},
    {"combine": "static", "mix": [0.2, 0.5], "plausibility": 0.05},
    {"combine": "centroid", "gate": "top_prob", "gate_threshold": 0.25},
    {"combine": "certainty"},
]
EVERY_RULE = RULES + PROBABILITY_RULES


def make(family: dict[str, Path], **options: Any) -> dlf.Engine:
    experts = [dlf.Expert(family[name], base=family["base"]) for name in ("expert-a", "expert-b")]
    return dlf.Engine(family["large"], experts, **{"threads": 2, "max_context": 128} | options)


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest, family: dict[str, Path]) -> Iterator[dlf.Engine]:
    with make(family, device=request.param) as made:
        yield made


def small_passes(completion: dlf.Completion) -> int:
    return sum(step.small_passes for step in completion.timings.steps)


def same(a: dlf.Completion, b: dlf.Completion) -> bool:
    return a.tokens == b.tokens and np.array_equal(a.alpha, b.alpha) and np.array_equal(a.logprobs, b.logprobs)


def test_a_request_has_what_an_engine_of_its_rule_has(family: dict[str, Path], engine: dlf.Engine) -> None:
    found = [engine.generate(PROMPT, rule=dlf.Rule(**rule), **OPTIONS) for rule in RULES]
    assert len({tuple(completion.alpha.ravel()) for completion in found}) == len(RULES)
    bounds = [
        dlf.Expert(family[name], family["base"], alpha_max=bound)
        for name, bound in (("expert-a", 0.5), ("expert-b", 1.5))
    ]
    on_cuda = engine._ensemble.options.placement.cuda
    for rule, completion in zip(RULES, found, strict=True):
        if on_cuda and rule not in RULES[3:5]:
            continue  # an emulated device takes long
        own = {"device": "cuda" if on_cuda else "cpu", "threads": 2, "max_context": 128} | rule
        several = isinstance(own.get("alpha_max"), list)
        experts = bounds if several else [dlf.Expert(family[name], family["base"]) for name in ("expert-a", "expert-b")]
        own.pop("alpha_max", None) if several else None
        with dlf.Engine(family["large"], experts, **own) as other:
            assert same(other.generate(PROMPT, **OPTIONS), completion)


@pytest.mark.parametrize("speculate", [False, dlf.Speculation("expert-a", 3, adaptive=False)])
def test_a_batch_of_many_rules_changes_nothing(engine: dlf.Engine, speculate: Any) -> None:
    # On CUDA rows are bit-identical in passes of up to eight rows: two sequences with three drafts each. Their rules
    # need different kernels.
    on_cuda = engine._ensemble.options.placement.cuda
    rules = [RULES[3], PROBABILITY_RULES[1]] if speculate and on_cuda else EVERY_RULE
    alone = [engine.generate(PROMPT, **rule, **OPTIONS) for rule in rules]
    streams = [engine.stream(PROMPT, speculate=speculate, **rule, **OPTIONS) for rule in rules]
    pieces = [list(steps) for steps in zip(*streams, strict=True)]
    for i, completion in enumerate(alone):
        assert [step[i].token for step in pieces] == completion.tokens
        assert [step[i].logprob for step in pieces] == list(completion.logprobs)
        assert np.array_equal([step[i].alpha for step in pieces], completion.alpha)


def test_scores_are_those_of_the_rule(engine: dlf.Engine) -> None:
    static = RULES[-1]
    score = engine.score(PROMPT, " is a long story", **static)
    assert np.array_equal(score.alpha.astype(np.float32), np.tile(np.float32([0.8, -0.4]), (len(score.tokens), 1)))
    seen = set()
    for rule in EVERY_RULE:
        with engine.stream(PROMPT, combine="joint", **OPTIONS) as stream:
            next(stream)
            beside = engine.score(PROMPT, " is a long story", rule=dlf.Rule(**rule))
        alone = engine.score(PROMPT, " is a long story", **rule)
        assert np.array_equal(beside.alpha, alone.alpha) and np.array_equal(beside.logprobs, alone.logprobs)
        seen.add(tuple(alone.logprobs))
    assert len(seen) == len(EVERY_RULE)


def test_weights_by_order_and_by_name(family: dict[str, Path], engine: dlf.Engine) -> None:
    def alpha(**options: Any) -> list[float]:
        found = engine.generate(PROMPT, max_new_tokens=1, **options).alpha[0]
        return [round(float(weight), 6) for weight in found]

    assert alpha(combine="static", alpha=[0.5, 0.25]) == [0.5, 0.25]
    assert alpha(combine="static", alpha={"expert-b": 0.25, "expert-a": 0.5}) == [0.5, 0.25]
    # Given weights follow the request's order of experts, the columns of alpha the engine's.
    assert alpha(combine="static", alpha=[0.25, 0.5], experts=["expert-b", "expert-a"]) == [0.5, 0.25]
    assert alpha(combine="static", alpha=[0.25], experts=["expert-b"]) == [0.25]
    assert alpha(combine="static", alpha={"expert-b": 0.25}, experts=["expert-b"]) == [0.25]
    solved = alpha(combine="centroid")
    mixed = alpha(combine="centroid", alpha={"expert-b": -0.5})
    assert mixed[1] == -0.5 and mixed[0] != solved[0] > 0
    assert max(alpha(combine="centroid", alpha_max=0.01)) <= 0.01
    assert alpha(combine="centroid", alpha_max={"expert-a": 0.01})[0] <= 0.01
    assert alpha(rule=dlf.Rule("static", alpha=[1, 2]), alpha=[0.5, 0.25]) == [0.5, 0.25]


def test_what_a_request_leaves_open_is_the_engines(family: dict[str, Path]) -> None:
    experts = [
        dlf.Expert(family["expert-a"], family["base"], alpha=-0.5),
        dlf.Expert(family["expert-b"], family["base"], alpha_max=0.01),
    ]
    with dlf.Engine(family["large"], experts, match="forward") as engine:
        plain, joint = (engine.generate(PROMPT, **own, **OPTIONS) for own in ({}, {"combine": "joint"}))
        freed = engine.generate(PROMPT, alpha=[None, None], alpha_max=2.0, **OPTIONS)
        explicit = engine.generate(PROMPT, match="forward", alpha=[-0.5, None], alpha_max=[2.0, 0.01], **OPTIONS)
    assert same(plain, explicit)
    for completion in (plain, joint):
        assert (completion.alpha[:, 0] == -0.5).all() and (completion.alpha[:, 1] <= 0.01).all()
    assert (freed.alpha >= 0).all() and freed.alpha.max() > 0.01


def test_weights_of_a_static_engine_are_static(family: dict[str, Path]) -> None:
    with make(family, combine="static", alpha=[1.0, 0.5]) as engine, make(family) as other:
        assert (engine.generate(PROMPT, **OPTIONS).alpha == [1.0, 0.5]).all()
        assert (engine.generate(PROMPT, alpha={"expert-b": 0.25}, **OPTIONS).alpha == [1.0, 0.25]).all()
        assert same(
            engine.generate(PROMPT, combine="joint", **OPTIONS), other.generate(PROMPT, combine="joint", **OPTIONS)
        )


def test_without_experts_a_rule_says_nothing(family: dict[str, Path], engine: dlf.Engine) -> None:
    expected = engine.generate(PROMPT, experts=[], **OPTIONS)
    for rule in (dlf.Rule("joint"), dlf.Rule("static")):
        assert engine.generate(PROMPT, experts=[], rule=rule, **OPTIONS).tokens == expected.tokens


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (
            {"combine": "best"},
            ValueError,
            "combine is 'best'; it takes 'select', 'centroid', 'joint', 'static', 'grid', 'jsd' or 'certainty'",
        ),
        ({"match": "both"}, ValueError, "match is 'both'; it takes 'symmetric', 'forward' or 'reverse'"),
        ({"combine": 3}, TypeError, "combine is 3: give a name"),
        ({"alpha": 1.0}, TypeError, "alpha is 1.0"),
        ({"alpha": "ab"}, TypeError, "alpha is 'ab'"),
        ({"alpha": [1.0, "x"]}, TypeError, r"alpha\[1\] is 'x': give a number"),
        ({"alpha": {"expert-a": True}}, TypeError, r"alpha\['expert-a'\] is True"),
        ({"alpha": [1e9]}, ValueError, r"alpha\[0\] is 1e\+09"),
        ({"alpha_max": 0.0}, ValueError, "alpha_max is 0"),
        ({"alpha_max": [1.0, float("inf")]}, ValueError, "alpha_max is inf for expert 1"),
        ({"alpha_max": None, "alpha": [float("nan")]}, ValueError, r"alpha\[0\] is"),
        ({"alpha_max": [None]}, TypeError, r"alpha_max\[0\] is None"),
    ],
)
def test_an_impossible_rule_is_explained(rule: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dlf.Rule(**rule)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        ({"alpha": [1.0]}, ValueError, "alpha holds 1 weights for 2 experts"),
        ({"alpha_max": [1.0, 1.0, 1.0]}, ValueError, "alpha_max holds 3 bounds for 2 experts"),
        ({"alpha": {"expert-c": 1.0}}, ValueError, "alpha names 'expert-c'; the request fuses: expert-a, expert-b"),
        ({"combine": "static"}, ValueError, "combine='static' takes the weights as given, but expert 0 has none"),
        ({"combine": "static", "alpha": {"expert-a": 1.0}}, ValueError, "expert 1 has none"),
        ({"rule": "joint"}, TypeError, "rule is 'joint': give a dlf.Rule"),
    ],
)
def test_a_rule_for_other_experts_is_explained(
    engine: dlf.Engine, rule: dict[str, Any], error: type[Exception], message: str
) -> None:
    calls = [engine.generate, engine.stream, lambda prompt, **own: engine.score(prompt, " x", **own)]
    for call in calls:
        with pytest.raises(error, match=message):
            call(PROMPT, **rule)


def test_other_options_of_a_score_are_refused(engine: dlf.Engine) -> None:
    with pytest.raises(
        TypeError, match="no option is called 'temperature'; there are: combine, match, alpha, alpha_max"
    ):
        engine.score(PROMPT, " x", temperature=1.0)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_of_a_solve_have_rules_of_their_own(device: str) -> None:
    rng = np.random.default_rng(3)
    rows = [language(rng, 1500, 2) for _ in EVERY_RULE]
    large, base, experts = (np.stack(parts) for parts in zip(*rows, strict=True))
    rules = [dlf.Rule(**rule) for rule in EVERY_RULE]
    together = fusion.solve(large, base, experts, rule=rules, device=device)
    for i, rule in enumerate(EVERY_RULE):
        alone = fusion.solve(*(part[i : i + 1] for part in (large, base, experts)), device=device, **rule)
        for name in vars(alone):
            assert np.array_equal(getattr(alone, name)[0], getattr(together, name)[i])
    with pytest.raises(ValueError, match=f"got 2 rules for {len(EVERY_RULE)} rows"):
        fusion.solve(large, base, experts, rule=rules[:2], device=device)


def test_arrays_are_weights(engine: dlf.Engine) -> None:
    weights = (np.array([0.5, 0.25]), torch.tensor([0.5, 0.25]), (0.5, 0.25))
    assert len({str(dlf.Rule("static", alpha=given)) for given in weights}) == 1
    assert dlf.Rule(alpha_max=np.float64(1.5)) == dlf.Rule(alpha_max=1.5)


def test_the_table_has_every_name() -> None:
    assert _C.COMBINES == ("select", "centroid", "joint", "static", "grid", "jsd", "certainty")
    assert _C.MATCHES == ("symmetric", "forward", "reverse")
    assert [_C.Rule(name, "forward", [], [2.0], 0).takes_given for name in _C.COMBINES].index(True) == 3


GATES = [
    {"gate": "top_prob", "gate_threshold": 0.25},
    {"gate": "entropy", "gate_threshold": 3.6},
    {"gate": "disagree"},
]


@pytest.mark.parametrize("gate", GATES[:2], ids=str)
def test_lanes_behind_a_gate_catch_up(engine: dlf.Engine, gate: dict[str, Any]) -> None:
    rule = dlf.Rule(combine="centroid", **gate)
    is_long = not engine._ensemble.options.placement.cuda  # an emulated device takes long
    options: dict[str, Any] = {"ignore_eos": True, "temperature": 0.7, "seed": 3, "rule": rule}
    options["max_new_tokens"] = 60 if is_long else 16
    plain = engine.generate(PROMPT, **options, speculate=False)
    closed = (plain.alpha == 0).all(1)
    assert 0.1 < closed.mean() < 0.9
    every = engine.generate(PROMPT, **{**options, "rule": dlf.Rule(combine="centroid")}, speculate=False)
    assert 0 < small_passes(plain) < small_passes(every)
    assert (plain.f[closed] == 0).all()
    for drafter in ("prompt_lookup", "expert-b", "base") if is_long else ("expert-b",):
        speculation = dlf.Speculation(drafter, max_draft=4, adaptive=False)
        assert same(plain, engine.generate(PROMPT, **options, speculate=speculation)), drafter
    assert same(plain, engine.generate([PROMPT, "Another"], **options)[0])
    # Scoring reads every lane at every token, so it finds what lanes that were held back must find.
    score = engine.score(PROMPT, plain.tokens, rule=rule)
    near = np.abs(score.alpha - plain.alpha).max(1) < 1e-3
    assert near.mean() > 0.95  # a gate may be so close to its threshold that rounding decides


def test_gates_in_company_change_no_bit(engine: dlf.Engine) -> None:
    rules = [{}, *({"combine": "joint", **gate} for gate in GATES), {"combine": "jsd"}, {"combine": "certainty"}]
    alone = [engine.generate(PROMPT, rule=dlf.Rule(**rule), **OPTIONS) for rule in rules]
    streams = [engine.stream(PROMPT, rule=dlf.Rule(**rule), **OPTIONS) for rule in rules]
    for stream in streams:
        for _ in stream:
            pass
    for one, stream in zip(alone, streams, strict=True):
        assert same(one, stream.completion())
