"""The mathematics of merging, compared with loops in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import merging as reference

from dlf.merging import METHODS, Recipe, merge_tensor
from dlf.merging.methods import drop, trim

NAMES = ("a", "b", "c")


def recipe(method: str, weights: tuple[float, ...], density: float = 1.0, **options: Any) -> Recipe:
    if METHODS[method].sparsify:
        options["density"] = dict(zip(NAMES, (density, 1.0, density), strict=True)) if len(weights) == 3 else density
    return Recipe.of(method, dict(zip(NAMES, weights, strict=False)), **options)


def models(seed: int, count: int, shape: tuple[int, ...] = (5, 7)) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a base and experts in multiples of 1/8: sums are exact, many differences are equal, some are zero."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randint(-16, 17, shape, generator=generator) / 8
    deltas = torch.randint(-4, 5, (count, *shape), generator=generator) / 8
    return base, [base + delta for delta in deltas]


def expected(recipe: Recipe, name: str, base: torch.Tensor, experts: list[torch.Tensor]) -> np.ndarray:
    keys = (f"{recipe.seed} {place} {name}" for place in range(len(experts)))
    ones = torch.ones_like(base, dtype=torch.float32)
    masks = [drop(ones.clone(), d, key).numpy() > 0 for d, key in zip(recipe.densities, keys, strict=True)]
    return reference.merge(
        recipe.method,
        base.double().numpy(),
        [expert.double().numpy() for expert in experts],
        recipe.weights,
        recipe.densities,
        recipe.normalize,
        recipe.scale,
        masks,
    )


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from([name for name in METHODS if name != "slerp"]),
    weights=st.lists(st.sampled_from([-0.5, -0.25, 0.0, 0.25, 0.5, 1.5]), min_size=1, max_size=3).filter(sum),
    density=st.floats(0.01, 1.0),
    normalize=st.sampled_from([None, True, False]),
    scale=st.sampled_from([None, 0.5, -1.0]),
    seed=st.integers(0, 1 << 40),
)
def test_every_method_is_the_reference(
    method: str, weights: list[float], density: float, normalize: bool | None, scale: float | None, seed: int
) -> None:
    options: dict[str, Any] = {"normalize": normalize}
    if METHODS[method].task_vectors:
        options["scale"] = scale
    if METHODS[method].sparsify == "random":
        options["seed"] = seed
        density = 2.0 ** round(math.log2(density))  # division by it is exact, so sums that are 0 stay 0
    chosen = recipe(method, tuple(weights), density, **options)
    base, experts = models(seed, len(weights))
    kept = [tensor.clone() for tensor in (base, *experts)]
    merged = merge_tensor(chosen, "x", base, experts)
    torch.testing.assert_close(merged.double().numpy(), expected(chosen, "x", base, experts), rtol=1e-5, atol=1e-5)
    assert all(map(torch.equal, kept, (base, *experts)))  # inputs are unchanged: they may be views of a file


@pytest.mark.parametrize("apart", [0.001, 0.5, 3.0])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp(apart: float, t: float) -> None:
    base, (noise,) = models(3, 1)
    expert = base + apart * (noise - base)
    merged = merge_tensor(recipe("slerp", (t,)), "x", base, [expert]).numpy()
    np.testing.assert_allclose(merged, reference.slerp(base.double().numpy(), expert.double().numpy(), t), atol=1e-5)
    zero = torch.zeros(4)
    assert torch.equal(merge_tensor(recipe("slerp", (t,)), "x", zero, [zero]), zero)
    straight = merge_tensor(recipe("slerp", (0.5,)), "x", base, [-base])  # opposite poles: the way is not unique
    assert torch.isfinite(straight).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.floats(0.001, 1.0))
def test_trim_keeps_exactly_as_many_as_it_says(values: list[int], density: float) -> None:
    vector = torch.tensor(values, dtype=torch.float32)
    trimmed = trim(vector.clone(), density)
    assert trimmed.tolist() == reference.trim(np.array(values, np.float64), density).tolist()
    ones = trim(torch.ones(len(values)), density)
    assert int(ones.sum()) == max(1, int(density * len(values)))


def test_drop_keeps_the_share_and_the_mean() -> None:
    dropped = drop(torch.ones(100_000), 0.3, "key")
    kept = dropped[dropped != 0]
    assert abs(len(kept) / 100_000 - 0.3) < 0.01 and torch.allclose(kept, torch.tensor(1 / 0.3))


def test_what_is_dropped_depends_on_seed_place_and_name_alone() -> None:
    base, experts = models(1, 2, (40, 50))
    experts[1] = experts[0]

    def merged(seed: int, name: str) -> torch.Tensor:
        return merge_tensor(recipe("dare_linear", (0.5, 0.25), 0.5, seed=seed), name, base, experts)

    first = merged(0, "x")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        merged(7, "z")  # has no influence
        assert torch.equal(merged(0, "x"), first)
    finally:
        torch.set_num_threads(threads)
    for other in (merged(1, "x"), merged(0, "y")):
        assert not torch.equal(other, first)
    keys = itertools.product((0, 1), (0, 1), ("x", "y"))
    draws = [drop(torch.ones(64), 0.5, f"{seed} {place} {name}").tolist() for seed, place, name in keys]
    assert len({tuple(draw) for draw in draws}) == len(draws)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "dare_ties"])
def test_a_negative_weight_takes_away_what_a_positive_one_adds(method: str) -> None:
    base, experts = models(5, 1)
    for normalize in (True, False):
        plus, minus = (
            merge_tensor(recipe(method, (weight,), 0.5, normalize=normalize), "x", base, experts)
            for weight in (0.25, -0.25)
        )
        torch.testing.assert_close(plus - base, base - minus)
        assert not torch.equal(plus, base)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    base, experts = models(2, 3)
    base, experts = base.to(dtype), [expert.to(dtype) for expert in experts]
    chosen = recipe("task_arithmetic", (0.3, 0.3, -0.1))
    merged = merge_tensor(chosen, "x", base, experts)
    in_float32 = merge_tensor(chosen, "x", base, experts, torch.float32)
    assert merged.dtype == dtype and in_float32.dtype == torch.float32
    assert torch.equal(merged, in_float32.to(dtype))
    np.testing.assert_allclose(in_float32.numpy(), expected(chosen, "x", base, experts), atol=1e-6)


def test_defaults_are_mergekits() -> None:
    found = {name: Recipe.of(name, {"a": 0.5}) for name in METHODS}
    assert {name for name, one in found.items() if one.normalize} == {"linear", "ties"}
    assert all((one.scale, one.seed, one.densities) == (1.0, 0, (1.0,)) for one in found.values())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "breadcrumbs"}, ValueError, "method is 'breadcrumbs'; it takes linear, task_arithmetic"),
        ({"weights": {}}, ValueError, "0 experts; a merge takes 1 to 64"),
        ({"weights": {"a": float("nan")}}, ValueError, "the weight of 'a' is nan"),
        ({"weights": {"a": 1000}}, ValueError, "from -100 to 100"),
        ({"weights": {"a": "much"}}, TypeError, "the weight of 'a' must be a number"),
        ({"weights": {"a": True}}, TypeError, "must be a number"),
        ({"density": 0.5}, ValueError, "density has no effect on the method 'task_arithmetic'"),
        ({"seed": 1}, ValueError, "seed has no effect"),
        ({"method": "linear", "scale": 0.5}, ValueError, "scale has no effect"),
        ({"method": "slerp", "normalize": True}, ValueError, "normalize has no effect"),
        ({"method": "ties", "density": 1.5}, ValueError, "density is 1.5; it must be from 0 to 1"),
        ({"method": "dare_linear", "density": 1e-300}, ValueError, "density is 1e-300, .* give at least 1e-06"),
        ({"method": "ties", "density": 0}, ValueError, "leave the expert out"),
        ({"method": "ties", "density": {"z": 0.5}}, ValueError, "density for 'z', which is none of the experts a, b"),
        ({"method": "dare_ties", "seed": 0.5}, TypeError, "seed must be an integer"),
        ({"normalize": 1}, TypeError, "True or False"),
        ({"scale": float("inf")}, ValueError, "scale is inf"),
        ({"method": "linear", "weights": {"a": 0.5, "b": -0.5}}, ValueError, "add up to 0"),
        ({"method": "slerp"}, ValueError, "to one expert, not 2"),
        ({"method": "slerp", "weights": {"a": 1.5}}, ValueError, "slerp is 1.5; give a number from 0"),
    ],
)
def test_impossible_parameters(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Recipe.of(**{"method": "task_arithmetic", "weights": {"a": 0.5, "b": 0.5}} | options)
