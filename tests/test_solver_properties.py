"""Properties of every fusion, checked on logits that hypothesis generates."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import fusion as reference

from dlf import fusion

Array = npt.NDArray[Any]
Row = tuple[Array, Array, Array]


@st.composite
def rows(draw: st.DrawFn, most_experts: int = 3) -> Row:
    """Draw large [V], bases [T, V] and experts [T, V], normal at several scales, with rare −inf and repeated logits."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vocab = draw(st.sampled_from([2, 3, 10, 100, 1023, 1024, 1025, 2050]))
    experts = draw(st.integers(1, most_experts))
    large, bases, tuned = (
        rng.normal(size=shape) * 10.0 ** draw(st.floats(-1.5, 1.2))
        for shape in ((vocab,), (experts, vocab), (experts, vocab))
    )
    if draw(st.booleans()):
        tuned = bases + tuned
    if draw(st.booleans()):
        large = np.round(large)  # ties, and tokens that share the largest difference
        tuned = bases + np.round(tuned)
    if draw(st.booleans()):
        for logits in (large, bases, tuned):
            logits[..., 1:][rng.random(logits[..., 1:].shape) < 0.1] = -np.inf
    return large.astype(np.float32), bases.astype(np.float32), tuned.astype(np.float32)


def solve(row: Row, **options: Any) -> fusion.Fusion[Array]:
    large, bases, experts = row
    return fusion.solve(large[None], bases[None], experts[None], threads=1, **options)


COMBINES = st.sampled_from(["select", "centroid", "joint", "grid"])
MATCHES = st.sampled_from(["symmetric", "forward", "reverse"])
ALPHA_MAX = st.sampled_from([0.3, 1.0, 2.0, 10.0])


@settings(max_examples=120, deadline=None)
@given(rows(), COMBINES, MATCHES, ALPHA_MAX)
def test_results_are_finite_and_in_their_ranges(row: Row, combine: str, match: str, alpha_max: float) -> None:
    found = solve(row, combine=combine, match=match, alpha_max=alpha_max)
    assert ((found.alpha >= 0) & (found.alpha <= alpha_max)).all()
    for value in (found.f, found.g, found.target_f, found.target_g):
        assert (np.isfinite(value) & (value >= 0)).all()
    allowed = np.isfinite(row[0]) & np.isfinite(row[1]).all(0) & np.isfinite(row[2]).all(0)
    assert (np.isfinite(found.logits[0]) == allowed).all()
    assert not np.isnan(found.logits).any()
    prepared = reference.prepare(*row)
    f, g = reference.fused_divergences(prepared, found.alpha[0])
    np.testing.assert_allclose([found.f[0], found.g[0]], [f, g], rtol=1e-7, atol=1e-10)


@settings(max_examples=150, deadline=None)
@given(rows(most_experts=1), MATCHES, ALPHA_MAX)
def test_no_weight_does_better(row: Row, match: str, alpha_max: float) -> None:
    found = solve(row, match=match, alpha_max=alpha_max)
    prepared = reference.prepare(*row)
    a, b = prepared.target_f[0], prepared.target_g[0]
    best = reference.solve_one(prepared, 0, a, b, match, alpha_max, dense=801)[1]
    ours = reference.losses(prepared, 0, found.alpha[0], a, b, match)[0]
    assert ours <= best + min(1e-5, 1e-6 * (a * a + b * b)) + 1e-20


@settings(max_examples=60, deadline=None)
@given(rows(most_experts=1), st.floats(0, 5), st.floats(0, 5))
def test_divergences_grow_with_the_weight(row: Row, one: float, other: float) -> None:
    low, high = (solve(row, combine="static", alpha=[weight]) for weight in sorted((one, other)))
    slack = 1e-9 * (1 + high.f[0] + high.g[0])
    assert low.f[0] <= high.f[0] + slack
    assert low.g[0] <= high.g[0] + slack


@settings(max_examples=60, deadline=None)
@given(rows(), COMBINES, MATCHES, st.lists(st.integers(-64, 64), min_size=3, max_size=3))
def test_constants_do_not_matter(row: Row, combine: str, match: str, constants: list[int]) -> None:
    """Logits are rounded to 1/1024 first, so that adding a constant is exact."""
    exact = [np.round(np.clip(logits, -1e3, 1e3) * 1024) / 1024 for logits in row]
    for logits, original in zip(exact, row, strict=True):
        logits[np.isneginf(original)] = -np.inf
    shifted = [(logits + constant).astype(np.float32) for logits, constant in zip(exact, constants, strict=True)]
    here = solve((exact[0], exact[1], exact[2]), combine=combine, match=match)
    there = solve((shifted[0], shifted[1], shifted[2]), combine=combine, match=match)
    np.testing.assert_allclose(there.target_f, here.target_f, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(there.target_g, here.target_g, rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(there.f, here.f, rtol=1e-3, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(rows(), COMBINES, MATCHES)
def test_an_expert_that_equals_its_base_weighs_nothing(row: Row, combine: str, match: str) -> None:
    large, bases, _ = row
    found = solve((large, bases, bases.copy()), combine=combine, match=match)
    assert (found.alpha == 0.0).all()
    allowed = np.isfinite(found.logits[0])
    assert (found.logits[0][allowed] == large[allowed]).all()


@settings(max_examples=40, deadline=None)
@given(rows(), COMBINES, MATCHES)
def test_threads_do_not_change_the_answer(row: Row, combine: str, match: str) -> None:
    large, bases, experts = row
    one = fusion.solve(large[None], bases[None], experts[None], combine=combine, match=match, threads=1)
    two = fusion.solve(large[None], bases[None], experts[None], combine=combine, match=match, threads=2)
    for name in ("alpha", "logits", "f", "g", "target_f", "target_g", "sweeps"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
