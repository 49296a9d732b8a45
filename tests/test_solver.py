"""The fusion solver compared with the float64 reference."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from reference import fusion as reference

from dlf import fusion

Array = npt.NDArray[Any]
MATCHES = ["symmetric", "forward", "reverse"]
SCALES = [0.1, 0.5, 1.0, 2.0, 4.0, 6.0, 10.0]


def draw(rng: np.random.Generator, vocab: int, experts: int, scale: float) -> tuple[Array, Array, Array]:
    """Return independent logits of large [V], base [V] and experts [T, V]."""
    return tuple((rng.normal(size=shape) * scale).astype(np.float32) for shape in (vocab, vocab, (experts, vocab)))


def language(rng: np.random.Generator, vocab: int, experts: int) -> tuple[Array, Array, Array]:
    """Return logits like those of language models: a shared peaked shape, varied by each model."""
    shared = rng.gumbel(size=vocab) * 2.0
    large = 1.3 * shared + rng.normal(size=vocab)
    base = shared + rng.normal(size=vocab)
    tuned = base + rng.normal(size=(experts, vocab)) * rng.uniform(0.2, 1.0, size=(experts, 1))
    return large.astype(np.float32), base.astype(np.float32), tuned.astype(np.float32)


def solve_row(large: Array, base: Array, experts: Array, **options: Any) -> fusion.Fusion[Array]:
    return fusion.solve(large[None], base[None], experts[None], threads=1, **options)


def prepare(large: Array, base: Array, experts: Array) -> reference.Row:
    return reference.prepare(large, np.broadcast_to(base, experts.shape), experts)


def check_one(large: Array, base: Array, expert: Array, match: str, alpha_max: float = 2.0) -> fusion.Fusion[Array]:
    """Compare the weight, loss, divergences and logits of one expert with the reference."""
    found = solve_row(large, base, expert[None], match=match, alpha_max=alpha_max)
    row = prepare(large, base, expert[None])
    a, b = row.target_f[0], row.target_g[0]
    np.testing.assert_allclose([found.target_f[0, 0], found.target_g[0, 0]], [a, b], rtol=1e-9, atol=1e-11)
    alpha, loss = reference.solve_one(row, 0, a, b, match, alpha_max)
    ours = found.alpha[0, 0]
    assert 0.0 <= ours <= alpha_max
    our_loss = reference.losses(row, 0, np.array([ours]), a, b, match)[0]
    assert our_loss <= loss + min(1e-5, 1e-6 * (a + b) ** 2) + 1e-20
    # Where a step of 0.001 raises the loss, the weight itself must agree.
    aside = reference.losses(row, 0, np.clip([ours - 1e-3, ours + 1e-3], 0.0, alpha_max), a, b, match)
    if (aside - our_loss > 1e-9 * (a + b) ** 2 + 1e-16).all() and abs(our_loss - loss) < 1e-9 * (a + b) ** 2:
        assert abs(ours - alpha) < 1e-3
    f, g = reference.fused_divergences(row, [ours])
    np.testing.assert_allclose([found.f[0], found.g[0]], [f, g], rtol=1e-9, atol=1e-11)
    fused = large.astype(np.float64) + ours * (expert.astype(np.float64) - base)
    np.testing.assert_allclose(found.logits[0], fused, rtol=1e-6, atol=1e-5)
    return found


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("scale", SCALES)
def test_one_expert_is_solved_as_the_reference(scale: float, match: str) -> None:
    rng = np.random.default_rng(int(scale * 10))
    for vocab in (2, 3, 17, 300, 2000):
        large, base, experts = draw(rng, vocab, 1, scale)
        check_one(large, base, experts[0], match)


@pytest.mark.parametrize("match", MATCHES)
def test_language_model_logits(match: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(4):
        large, base, experts = language(rng, 3000, 1)
        check_one(large, base, experts[0], match)


def test_large_vocabulary() -> None:
    large, base, experts = language(np.random.default_rng(2), 262_144, 1)
    found = solve_row(large, base, experts)
    row = prepare(large, base, experts)
    alpha, ours = reference.solve_one(row, 0, row.target_f[0], row.target_g[0], dense=101)[0], found.alpha[0, 0]
    assert abs(alpha - ours) < 1e-3


def test_rare_token_with_the_largest_difference() -> None:
    """Nearly all of the fused mass moves to a token to which the large model gives e^-60."""
    rng = np.random.default_rng(3)
    large, base, experts = draw(rng, 5000, 1, 1.0)
    large[4321] = -60.0
    experts[0, 4321] = base[4321] + 80.0
    check_one(large, base, experts[0], "symmetric")


@pytest.mark.parametrize("alpha_max", [2.0**-30, 0.05, 0.25, 0.7, 1.0, 5.0])
def test_other_alpha_max(alpha_max: float) -> None:
    rng = np.random.default_rng(4)
    for scale in (0.5, 2.0, 6.0):
        large, base, experts = draw(rng, 200, 1, scale)
        check_one(large, base, experts[0], "symmetric", alpha_max)


def test_target_out_of_reach() -> None:
    """The large model gives the tokens that the expert changes little mass, the base much: alpha is alpha_max."""
    large = np.array([8.0, 0.0, 0.0], np.float32)
    base = np.array([0.0, 0.0, 0.0], np.float32)
    expert = np.array([0.3, 0.0, -3.0], np.float32)
    for match in MATCHES:
        assert check_one(large, base, expert, match).alpha[0, 0] == 2.0


def test_expert_that_equals_its_base() -> None:
    large, base, _ = draw(np.random.default_rng(5), 1000, 1, 3.0)
    for combine in ("select", "centroid", "joint", "grid"):
        for match in MATCHES:
            found = solve_row(large, base, np.stack([base, base]), combine=combine, match=match)
            assert (found.alpha == 0.0).all()
            assert (found.logits[0] == large).all()
            assert found.f[0] == 0.0 and found.g[0] == 0.0


def test_two_minima() -> None:
    """The global minimum is found for random objectives with two minima."""
    rng = np.random.default_rng(6)
    met = 0
    alphas = np.linspace(0.0, 2.0, 1001)
    for _ in range(400):
        large, base, experts = draw(rng, int(rng.integers(4, 60)), 1, float(rng.uniform(4, 10)))
        row = prepare(large, base, experts)
        a, b = row.target_f[0], row.target_g[0]
        loss = reference.losses(row, 0, alphas, a, b, "symmetric")
        minima = ((loss[1:-1] < loss[:-2]) & (loss[1:-1] < loss[2:])).sum() + (loss[-1] < loss[-2])
        if minima > 1:
            met += 1
            check_one(large, base, experts[0], "symmetric")
    assert met >= 8


def test_sweeps() -> None:
    rng = np.random.default_rng(7)
    sweeps = [int(solve_row(*language(rng, 2000, 1)).sweeps[0]) for _ in range(50)]
    assert np.mean(sweeps) <= 6
    for scale in SCALES:
        some = [int(solve_row(*draw(rng, 2000, 1, scale)).sweeps[0]) for _ in range(30)]
        assert max(some) <= 12
        sweeps += some
    assert np.mean(sweeps) <= 6


def test_one_sweep_and_one_to_fuse_are_the_rule() -> None:
    rng = np.random.default_rng(28)
    for experts in (1, 4):
        sweeps = [int(solve_row(*language(rng, 2000, experts)).sweeps[0]) for _ in range(40)]
        assert np.mean(sweeps) <= 2.7


def test_bases_shared_or_repeated() -> None:
    """Results are bit-identical whether experts share a base or have copies of it."""
    large, base, tuned = language(np.random.default_rng(29), 3000, 3)
    for combine in ("select", "centroid", "joint", "grid"):
        shared = fusion.solve(large[None], base[None], tuned[None], combine=combine, threads=1)
        repeated = fusion.solve(large[None], np.repeat(base[None, None], 3, 1), tuned[None], combine=combine, threads=1)
        for name in ("alpha", "logits", "f", "g", "target_f", "target_g", "sweeps"):
            np.testing.assert_array_equal(getattr(shared, name), getattr(repeated, name))


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("experts", [2, 5, 16])
def test_select(experts: int, match: str) -> None:
    large, base, tuned = language(np.random.default_rng(experts), 400, experts)
    found = solve_row(large, base, tuned, match=match)
    np.testing.assert_allclose(found.alpha[0], reference.select(prepare(large, base, tuned), match), atol=1e-3)
    assert (found.alpha[0] > 0).sum() == 1


def test_select_takes_the_first_of_equals() -> None:
    large, base, tuned = language(np.random.default_rng(8), 400, 1)
    found = solve_row(large, base, np.repeat(tuned, 3, 0))
    assert found.alpha[0, 0] > 0 and (found.alpha[0, 1:] == 0).all()


@pytest.mark.parametrize("match", MATCHES)
def test_centroid(match: str) -> None:
    large, base, tuned = language(np.random.default_rng(9), 400, 4)
    found = solve_row(large, base, tuned, combine="centroid", match=match)
    np.testing.assert_allclose(found.alpha[0], reference.centroid(prepare(large, base, tuned), match), atol=1e-3)


@pytest.mark.parametrize("match", MATCHES)
@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_grid(scale: float, match: str) -> None:
    rng = np.random.default_rng(10)
    for alpha_max in (0.35, 2.0, 3.0):
        large, base, tuned = draw(rng, 300, 3, scale)
        found = solve_row(large, base, tuned, combine="grid", match=match, alpha_max=alpha_max)
        expected = reference.grid(prepare(large, base, tuned), match, alpha_max)
        np.testing.assert_allclose(found.alpha[0], expected, atol=1e-12)
        assert found.sweeps[0] == 2


def test_static_takes_any_weights() -> None:
    large, base, tuned = language(np.random.default_rng(11), 400, 3)
    weights = [1.5, -0.5, 0.0]
    found = solve_row(large, base, tuned, combine="static", alpha=weights)
    assert found.alpha[0].tolist() == weights
    row = prepare(large, base, tuned)
    np.testing.assert_allclose([found.f[0], found.g[0]], reference.fused_divergences(row, weights), rtol=1e-9)
    np.testing.assert_allclose(found.target_f[0], row.target_f, rtol=1e-9)
    np.testing.assert_allclose(found.logits[0], large + np.array(weights) @ (tuned - base), atol=1e-4)


def check_joint(large: Array, base: Array, tuned: Array, alpha_max: Any = 2.0) -> fusion.Fusion[Array]:
    """Check the Karush-Kuhn-Tucker conditions: a constraint is met, or its weight is 0 or alpha_max."""
    found = solve_row(large, base, tuned, combine="joint", alpha_max=alpha_max)
    row = prepare(large, base, tuned)
    moments = reference.joint_moments(row, alpha_max=alpha_max)
    alpha = found.alpha[0]
    alpha_max = np.broadcast_to(alpha_max, alpha.shape)
    assert ((alpha >= 0) & (alpha <= alpha_max)).all()
    gap = (reference.fused_means(row, alpha) - moments) / np.maximum(1e-9, np.abs(moments).max())
    assert (gap[(alpha > 0) & (alpha < alpha_max)] < 1e-4).all()
    assert (gap[alpha < alpha_max] > -1e-4).all()
    dual = reference.joint_dual(row, alpha, moments)
    for other in (np.zeros_like(alpha), reference.centroid(row, alpha_max=alpha_max), alpha * 0.98):
        assert dual <= reference.joint_dual(row, other, moments) + 1e-9
    return found


@pytest.mark.parametrize("combine", ["select", "centroid", "joint", "grid"])
def test_bounds_of_each_expert(combine: str) -> None:
    bounds = np.array([0.25, 2.0, 0.6, 4.0])
    for seed in range(5):
        logits = language(np.random.default_rng(seed), 400, 4)
        found = solve_row(*logits, combine=combine, alpha_max=bounds)
        if combine == "joint":
            check_joint(*logits, alpha_max=bounds)
        else:
            expected = getattr(reference, combine)(prepare(*logits), alpha_max=bounds)
            np.testing.assert_allclose(found.alpha[0], expected, atol=1e-3)


@pytest.mark.parametrize("combine", ["select", "centroid", "joint", "grid"])
def test_given_weights_are_added_to_what_is_solved_without_them(combine: str) -> None:
    large, base, tuned = language(np.random.default_rng(41), 400, 4)
    given = [None, -0.8, None, 0.3]
    found = solve_row(large, base, tuned, combine=combine, alpha=given)
    without = solve_row(large, base, tuned[[0, 2]], combine=combine)
    assert found.alpha[0].tolist() == [without.alpha[0, 0], -0.8, without.alpha[0, 1], 0.3]
    row = prepare(large, base, tuned)
    np.testing.assert_allclose([found.f[0], found.g[0]], reference.fused_divergences(row, found.alpha[0]), rtol=1e-8)
    np.testing.assert_allclose(found.target_f[0], row.target_f, rtol=1e-8)
    np.testing.assert_allclose(found.logits[0], large + found.alpha[0] @ (tuned - base), atol=1e-4)
    alone = solve_row(large, base, tuned[:1], combine=combine, alpha=[-0.5])  # no expert is left to solve
    static = solve_row(large, base, tuned[:1], combine="static", alpha=[-0.5])
    assert alone.alpha[0, 0] == -0.5 and (alone.logits == static.logits).all()


@pytest.mark.parametrize("experts", [2, 3, 16])
def test_joint(experts: int) -> None:
    check_joint(*language(np.random.default_rng(experts), 400, experts))
    check_joint(*draw(np.random.default_rng(experts), 300, experts, 1.0))


def test_joint_at_high_divergence() -> None:
    rng = np.random.default_rng(12)
    for experts in (2, 4):
        check_joint(*draw(rng, 200, experts, 5.0))


def test_joint_where_the_distribution_is_all_but_certain() -> None:
    """The Hessian vanishes there but not the gradient, so Newton's method alone would fail."""
    rng = np.random.default_rng(27)
    for _ in range(20):
        check_joint(*draw(rng, int(rng.choice([3, 10, 60])), int(rng.choice([3, 5, 16])), 6.0), alpha_max=10.0)


def test_joint_of_one_is_the_single_solve() -> None:
    row = language(np.random.default_rng(13), 400, 1)
    assert solve_row(*row, combine="joint").alpha[0, 0] == solve_row(*row).alpha[0, 0]


def test_joint_shares_a_weight_among_duplicates() -> None:
    large, base, tuned = language(np.random.default_rng(14), 400, 1)
    alone = solve_row(large, base, tuned).alpha[0, 0]
    found = check_joint(large, base, np.repeat(tuned, 3, 0))
    assert abs(found.alpha[0].sum() - alone) < 1e-5


def test_joint_of_opposing_experts() -> None:
    large, base, tuned = language(np.random.default_rng(15), 400, 1)
    opposite = 2 * base - tuned[0]
    check_joint(large, base, np.stack([tuned[0], opposite]))


def test_joint_with_an_expert_that_equals_its_base() -> None:
    large, base, tuned = language(np.random.default_rng(16), 400, 2)
    tuned[1] = base
    found = check_joint(large, base, tuned)
    assert abs(found.alpha[0, 0] - solve_row(large, base, tuned[:1]).alpha[0, 0]) < 1e-5
    assert found.alpha[0, 1] == 0.0


@pytest.mark.parametrize("combine", ["select", "centroid", "joint", "static", "grid"])
@pytest.mark.parametrize("ruled_out", ["large", "base", "expert", "all"])
def test_negative_infinity_takes_a_token_from_every_model(ruled_out: str, combine: str) -> None:
    rng = np.random.default_rng(17)
    large, base, tuned = language(rng, 2500, 3)
    options: dict[str, Any] = {"combine": combine, "alpha": [0.5, 0.25, -1.0] if combine == "static" else None}
    gone = np.zeros(2500, bool)
    for name, logits in (("large", large), ("base", base), ("expert", tuned[1])):
        if ruled_out in (name, "all"):
            some = rng.random(2500) < 0.3
            some[:1100] |= name == "large"  # a whole block of tokens
            logits[some] = -np.inf
            gone |= some
    found = solve_row(large, base, tuned, **options)
    assert (found.logits[0][gone] == -np.inf).all()
    assert np.isfinite(found.logits[0][~gone]).all()
    small = solve_row(large[~gone], base[~gone], tuned[:, ~gone], **options)
    np.testing.assert_allclose(found.alpha, small.alpha, atol=1e-6)
    np.testing.assert_allclose(found.f, small.f, atol=1e-6)
    np.testing.assert_allclose(found.target_f, small.target_f, rtol=1e-9)
    np.testing.assert_allclose(found.logits[0][~gone], small.logits[0], atol=1e-4)


def test_single_token_left() -> None:
    large, base, tuned = draw(np.random.default_rng(18), 50, 1, 2.0)
    large[1:] = -np.inf
    found = solve_row(large, base, tuned)
    assert found.alpha[0, 0] == 0.0 and found.f[0] == 0.0


@pytest.mark.parametrize("which", range(3))
def test_one_hot_distributions(which: int) -> None:
    """Logits so far apart that all probabilities but one are 0 in double precision."""
    logits = [np.zeros(100, np.float32) for _ in range(3)]
    rng = np.random.default_rng(19)
    for index, some in enumerate(logits):
        some[:] = rng.normal(size=100) if index != which else -2000.0
        some[7] = 0.0
    for match in MATCHES:
        found = solve_row(logits[0], logits[1], logits[2][None], match=match)
        assert np.isfinite(found.alpha).all() and np.isfinite(found.logits).all()
        assert np.isfinite([found.f[0], found.g[0], found.target_f[0, 0], found.target_g[0, 0]]).all()


def test_steep_curves() -> None:
    """With differences of hundreds the answer is near 0, far below the first points."""
    rng = np.random.default_rng(20)
    for scale in (30.0, 100.0, 1000.0):
        large, base, experts = draw(rng, 500, 1, 1.0)
        experts[0] = base + 0.01 * experts[0]
        large *= scale
        check_one(large, base, experts[0], "symmetric")
        check_one(base, large, large + scale * experts[0], "symmetric")


@pytest.mark.parametrize(
    ("large", "base", "expert"),
    [
        ([-23.72611, -27.868994, 6.5552588], [-21.676535, -25.461538, 5.9889846], [-12.978767, -15.245028, 3.5858884]),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [-5.0, 23.0, 14.0]),
    ],
    ids=["rises over twelve decades", "target just below a ceiling"],
)
def test_curves_that_polynomials_follow_badly(large: list[float], base: list[float], expert: list[float]) -> None:
    for match in MATCHES:
        for alpha_max in (2.0, 20.0, 200.0):
            check_one(*(np.array(part, np.float32) for part in (large, base, expert)), match, alpha_max)


def test_rows_do_not_depend_on_the_batch() -> None:
    rng = np.random.default_rng(21)
    rows = [language(rng, 3000, 2) for _ in range(3)] + [draw(rng, 3000, 2, 6.0)]
    rows[1][2][0, 5] = -np.inf
    large, base, experts = (np.stack(part) for part in zip(*rows, strict=True))
    for combine in ("select", "centroid", "joint", "grid"):
        together = fusion.solve(large, base, experts, combine=combine, threads=1)
        threaded = fusion.solve(large, base, experts, combine=combine, threads=2)
        for index, row in enumerate(rows):
            alone = solve_row(*row, combine=combine)
            for name in ("alpha", "logits", "f", "g", "target_f", "target_g", "sweeps"):
                assert (getattr(alone, name)[0] == getattr(together, name)[index]).all(), name
                assert (getattr(alone, name)[0] == getattr(threaded, name)[index]).all(), name


SCRIPT = """
import numpy as np
from dlf import _C, fusion
from test_solver import MATCHES, check_joint, check_one, draw, language
rng = np.random.default_rng(26)
for match in MATCHES:
    large, base, experts = language(rng, 1500, 1)
    check_one(large, base, experts[0], match)
    large, base, experts = draw(rng, 1027, 1, 5.0)
    check_one(large, base, experts[0], match)
check_joint(*language(rng, 1030, 3))
print(_C.cpu_capability())
"""


@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_every_instruction_set(capability: str, tmp_path: Path) -> None:
    """If the processor lacks one, the next lower one runs."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"DLF_CPU_CAPABILITY": capability, "PYTHONPATH": str(Path(__file__).parent)},
        cwd=tmp_path,  # in the repository the sources would be imported in place of the installed package
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() in ("portable", "avx2", "avx512")
