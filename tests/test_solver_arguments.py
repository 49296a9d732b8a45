"""Arguments that the solver takes and that it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import fusion as reference
from test_solver import language

from dlf import fusion


def test_own_base_for_each_expert() -> None:
    rng = np.random.default_rng(22)
    large, bases, experts = language(rng, 300, 2)[0], *(language(rng, 300, 2)[2] for _ in range(2))
    found = fusion.solve(large[None], bases[None], experts[None])
    np.testing.assert_allclose(found.alpha[0], reference.select(reference.prepare(large, bases, experts)), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tensors_of_any_dtype(dtype: torch.dtype) -> None:
    large, base, experts = (
        torch.from_numpy(part).to(dtype)[None] for part in language(np.random.default_rng(23), 300, 1)
    )
    found = fusion.solve(large, base, experts)
    assert all(isinstance(value, torch.Tensor) for value in vars(found).values())
    arrays = fusion.solve(*(part.float().numpy() for part in (large, base, experts)))
    assert all(isinstance(value, np.ndarray) for value in vars(arrays).values())
    assert (found.alpha.numpy() == arrays.alpha).all() and found.alpha.shape == (1, 1)
    assert found.logits.dtype == torch.float32 and found.logits.shape == (1, 300)


def test_strided_logits() -> None:
    large, base, experts = (torch.from_numpy(part)[None] for part in language(np.random.default_rng(24), 300, 2))
    expected = fusion.solve(large, base, experts)
    found = fusion.solve(
        large.T.contiguous().T, base.repeat(2, 1)[::2], experts.transpose(1, 2).contiguous().transpose(1, 2)
    )
    assert (found.logits == expected.logits).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("model", ["the large model", "expert 1", "the base of expert 1"])
def test_bad_logits_are_named(model: str, value: float) -> None:
    rng = np.random.default_rng(25)
    large, bases, experts = (rng.normal(size=shape) for shape in ((2, 1500), (2, 3, 1500), (2, 3, 1500)))
    part = {"the large model": large[1], "expert 1": experts[1, 1], "the base of expert 1": bases[1, 1]}[model]
    part[1234] = value
    with pytest.raises(ValueError, match=f"NaN or .inf in the logits of {model} in row 1"):
        fusion.solve(large, bases, experts)


def test_no_token_left() -> None:
    large, base, experts = (np.zeros(shape) for shape in ((1, 4), (1, 4), (1, 1, 4)))
    large[0, :2] = -np.inf
    experts[0, 0, 2:] = -np.inf
    with pytest.raises(ValueError, match="row 0 leaves no token"):
        fusion.solve(large, base, experts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"combine": "best"},
            "combine is 'best'; it takes 'select', 'centroid', 'joint', 'static', 'grid', 'jsd' or 'certainty'",
        ),
        ({"match": "both"}, "match is 'both'; it takes 'symmetric', 'forward' or 'reverse'"),
        ({"alpha_max": 0.0}, "alpha_max is 0"),
        ({"alpha_max": np.inf}, "alpha_max is inf"),
        ({"alpha_max": np.nan}, "alpha_max is"),
        ({"alpha_max": [1.0, 2.0, 3.0]}, "alpha_max holds 3 bounds for 2 experts"),
        ({"alpha_max": [1.0, -2.0]}, "alpha_max is -2 for expert 1"),
        ({"alpha": [None]}, "alpha holds 1 weights for 2 experts"),
        ({"alpha": [None, np.inf]}, r"alpha\[1\] is inf"),
        ({"combine": "static", "alpha": [1.0, None]}, "expert 1 has none"),
        ({"combine": "static"}, "give alpha"),
        ({"combine": "static", "alpha": [1.0]}, "alpha holds 1 weights for 2 experts"),
        ({"combine": "static", "alpha": [1.0, np.nan]}, r"alpha\[1\] is"),
        ({"threads": 0}, "threads is 0"),
        ({"large": np.zeros(8)}, r"large has shape \[8\]"),
        ({"large": np.zeros((3, 9))}, r"experts has shape \[3, 2, 8\] where large has \[3, 9\]"),
        ({"base": np.zeros((3, 3, 8))}, r"base has shape \[3, 3, 8\]"),
        ({"experts": np.zeros((3, 8))}, r"experts has shape \[3, 8\]"),
        ({"experts": np.zeros((3, 0, 8))}, "got 0 experts; give 1 to 16"),
        ({"experts": np.zeros((3, 17, 8))}, "got 17 experts; give 1 to 16"),
        ({"large": np.zeros((3, 1))}, "vocabulary holds 1"),
        ({"large": np.zeros((0, 8))}, "large has no rows"),
    ],
)
def test_misuse_is_explained(change: dict[str, Any], message: str) -> None:
    call: dict[str, Any] = {"large": np.zeros((3, 8)), "base": np.zeros((3, 8)), "experts": np.zeros((3, 2, 8))}
    with pytest.raises(ValueError, match=message):
        fusion.solve(**(call | change))


def test_logits_must_be_floating() -> None:
    with pytest.raises(TypeError, match="base holds int64"):
        fusion.solve(np.zeros((1, 8)), np.zeros((1, 8), np.int64), np.zeros((1, 1, 8)))
    with pytest.raises(TypeError, match="large is a list"):
        fusion.solve([[0.0, 1.0]], np.zeros((1, 2)), np.zeros((1, 1, 2)))  # type: ignore[type-var]
