"""The fusion solver on a CUDA device, or an emulated one, compared with the float64 reference and the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import fusion as reference
from test_solver import MATCHES, SCALES, Array, draw, language, prepare

from dlf import fusion

pytestmark = pytest.mark.cuda

COMBINES = ["select", "centroid", "joint", "static", "grid"]


def solve(large: Array, base: Array, experts: Array, **options: Any) -> fusion.Fusion[Array]:
    return fusion.solve(large[None], base[None], experts[None], device="cuda", **options)


def check_one(large: Array, base: Array, expert: Array, match: str) -> None:
    """As check_one of the CPU's tests, within the precision of float32."""
    found = solve(large, base, expert[None], match=match)
    row = prepare(large, base, expert[None])
    a, b = row.target_f[0], row.target_g[0]
    np.testing.assert_allclose([found.target_f[0, 0], found.target_g[0, 0]], [a, b], rtol=1e-5, atol=1e-8)
    alpha, loss = reference.solve_one(row, 0, a, b, match, dense=801)
    ours = found.alpha[0, 0]
    our_loss = reference.losses(row, 0, np.array([ours]), a, b, match)[0]
    assert our_loss <= loss + min(1e-5, 1e-6 * (a + b) ** 2) + 1e-20
    aside = reference.losses(row, 0, np.clip([ours - 1e-3, ours + 1e-3], 0.0, 2.0), a, b, match)
    if (aside - our_loss > 1e-8 * (a + b) ** 2 + 1e-16).all() and abs(our_loss - loss) < 1e-8 * (a + b) ** 2:
        assert abs(ours - alpha) < 1e-3
    # Rounding of float32 sums near 1 gives their logarithms this absolute error, however small the divergence is.
    np.testing.assert_allclose([found.f[0], found.g[0]], reference.fused_divergences(row, [ours]), rtol=1e-5, atol=3e-7)
    fused = large.astype(np.float64) + ours * (expert.astype(np.float64) - base)
    np.testing.assert_allclose(found.logits[0], fused, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("scale", SCALES)
def test_one_expert_is_solved_as_the_reference(scale: float, match: str) -> None:
    rng = np.random.default_rng(int(scale * 10))
    for vocab in (2, 33, 300, 2000):
        large, base, experts = draw(rng, vocab, 1, scale)
        check_one(large, base, experts[0], match)
    large, base, experts = language(rng, 3000, 1)
    check_one(large, base, experts[0], match)


@pytest.mark.parametrize("combine", COMBINES)
@pytest.mark.parametrize("count", [1, 4])
def test_batches_are_solved_as_on_the_cpu(count: int, combine: str) -> None:
    rng = np.random.default_rng(count)
    rows = [language(rng, 3000, count) for _ in range(3)] + [draw(rng, 3000, count, 1.0)]
    rows[1][2][0, 5:50] = -np.inf
    large, base, experts = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    options: dict[str, Any] = {"combine": combine, "alpha": [0.5, -0.25, 0.0, 1.0][:count]}
    if combine != "static":
        del options["alpha"]
    host = fusion.solve(large, base, experts, **options)
    for bases in (base, base[:, None].repeat(1, count, 1)):
        device = fusion.solve(large, bases, experts, device="cuda", **options)
        assert device.logits.device == large.device
        torch.testing.assert_close(device.alpha, host.alpha, rtol=0.0, atol=1e-3)
        torch.testing.assert_close(device.target_f, host.target_f, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(device.f, host.f, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(device.logits, host.logits, rtol=1e-3, atol=1e-2)


def test_a_bad_logit_names_its_model() -> None:
    large, base, experts = draw(np.random.default_rng(3), 100, 2, 1.0)
    experts[1, 7] = np.nan
    with pytest.raises(ValueError, match="expert 1"):
        solve(large, base, experts)
    large[:] = -np.inf
    experts[1, 7] = 0.0
    with pytest.raises(ValueError, match="no token"):
        solve(large, base, experts)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, not an emulated one")
def test_tensors_on_a_device_stay_there() -> None:
    large, base, experts = (torch.from_numpy(part)[None].cuda() for part in draw(np.random.default_rng(4), 500, 2, 1.0))
    found = fusion.solve(large, base, experts)
    for value in vars(found).values():
        assert value.device == large.device
