"""Rules beyond the solved weight, on logits: measured weights, mixtures, masks, gates and experts without a base."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from reference import fusion as reference
from reference.certainty import certainty, entropy
from test_solver import language

from dlf import OptionError, fusion

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
VOCAB = 3000
RULES: list[dict[str, Any]] = [
    {"combine": "jsd"},
    {"combine": "jsd", "alpha": [None, -0.4], "alpha_max": 0.05},
    {"mix": [0.25, 0.5], "combine": "static"},
    {"mix": [0.6, 0.4], "combine": "static"},
    {"mix": [0.3, None], "combine": "static", "alpha": [None, 0.7]},
    {"mix": [None, 0.2], "combine": "jsd"},
    {"large_weight": 1.5, "combine": "static", "alpha": [-0.5, 0.25]},
    {"large_weight": 0.0, "combine": "static", "alpha": [1.0, 0.5]},
    {"large_weight": 0.7, "combine": "jsd", "plausibility": 0.1},
    {"plausibility": 0.01, "combine": "static", "alpha": [0.5, 0.5]},
    {"plausibility": 0.5, "mix": [0.5, None], "combine": "static", "alpha": [None, 1.0]},
]


def some_logits(seed: int, rows: int = 5) -> tuple[Any, Any, Any]:
    generator = np.random.default_rng(seed)
    large, base, experts = (
        np.stack(x) for x in zip(*[language(generator, VOCAB, 2) for _ in range(rows)], strict=True)
    )
    if rows > 2:
        large[1, :7] = -np.inf
        experts[2, 1, 5] = -np.inf
    return large, base, experts


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_is_its_reference(device: str, with_base: bool, rule: dict[str, Any]) -> None:
    large, base, experts = some_logits(3)
    found = fusion.solve(large, base if with_base else None, experts, device=device, **rule)
    near = 1e-6 if device == "cpu" else 2e-4
    for i in range(len(large)):
        bases = np.broadcast_to(base[i] if with_base else np.zeros(VOCAB), experts[i].shape).astype(np.float64)
        scaled = large[i].astype(np.float64)
        scaled[np.isfinite(scaled)] *= rule.get("large_weight", 1.0)
        own = experts[i].astype(np.float64)
        row = reference.prepare(scaled, bases, own)
        mix = np.array([share or 0.0 for share in rule.get("mix", [0.0, 0.0])])
        alpha = reference.jsd(row, bases, own, rule.get("alpha_max", 2.0))
        if rule["combine"] == "static":
            alpha = np.zeros(2)
        for t, given in enumerate(rule.get("alpha", [None, None])):
            alpha[t] = alpha[t] if given is None else given
        expected, f, g = reference.fused_log_probabilities(
            large[i].astype(np.float64), row, own, alpha, mix, rule.get("plausibility", 0.0)
        )
        np.testing.assert_allclose(found.alpha[i], np.where(mix > 0, mix, alpha), atol=near)
        np.testing.assert_allclose([found.f[i], found.g[i]], [f, g], rtol=100 * near, atol=near)
        allowed = np.isfinite(found.logits[i])
        np.testing.assert_array_equal(allowed, np.isfinite(expected))
        got = reference.log_softmax(found.logits[i][allowed].astype(np.float64))
        np.testing.assert_allclose(got, reference.log_softmax(expected[allowed]), atol=max(near, 2e-5) * 10, rtol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "gate", [("entropy", 3.0), ("entropy", 0.0), ("top_prob", 0.2), ("top_prob", 1.0), ("disagree", 0.0)], ids=str
)
def test_a_closed_gate_leaves_the_large_model_alone(device: str, gate: tuple[str, float]) -> None:
    large, base, experts = some_logits(4, 40)
    large[:20] *= 0.6
    experts[5:15] = large[5:15, None]
    kind, threshold = gate
    found = fusion.solve(large, base, experts, gate=kind, gate_threshold=threshold, device=device)
    always = fusion.solve(large, base, experts, device=device)
    opened = [reference.is_open(large[i], experts[i], kind, threshold) for i in range(len(large))]
    assert set(opened) == ({True} if threshold == (0.0 if kind == "entropy" else 1.0) else {True, False})
    for i, is_open in enumerate(opened):
        np.testing.assert_array_equal(found.logits[i], always.logits[i] if is_open else large[i])
        np.testing.assert_array_equal(found.alpha[i], always.alpha[i] if is_open else np.zeros(2))
        assert (found.f[i] == 0.0 and found.target_f[i].sum() == 0.0) or is_open


@pytest.mark.parametrize("device", DEVICES)
def test_other_rules_change_no_bit(device: str) -> None:
    from dlf import Rule

    large, base, experts = some_logits(5, len(RULES))
    rules = [Rule(**rule) for rule in RULES]
    together = fusion.solve(large, base, experts, rule=rules, device=device)
    for i, rule in enumerate(rules):
        alone = fusion.solve(large[i : i + 1], base[i : i + 1], experts[i : i + 1], rule=rule, device=device)
        for name in ("alpha", "logits", "f", "g", "target_f", "target_g"):
            np.testing.assert_array_equal(getattr(together, name)[i], getattr(alone, name)[0], err_msg=f"{rule} {name}")


@pytest.mark.parametrize(
    ("rule", "field"),
    [
        ({"mix": [0.7, 0.4]}, "mix"),
        ({"mix": [-0.1, None]}, "mix"),
        ({"mix": [0.1]}, "mix"),
        ({"mix": [0.1, None], "alpha": [0.5, None]}, "mix"),
        ({"large_weight": -1.0}, "large_weight"),
        ({"large_weight": float("nan")}, "large_weight"),
        ({"plausibility": 1.0}, "plausibility"),
        ({"gate": "maybe"}, "gate"),
        ({"gate": "entropy", "gate_threshold": float("inf")}, "gate_threshold"),
    ],
    ids=str,
)
def test_an_impossible_rule_names_its_field(rule: dict[str, Any], field: str) -> None:
    large, base, experts = some_logits(6, 1)
    with pytest.raises(OptionError) as caught:
        fusion.solve(large, base, experts, **rule)
    assert caught.value.field == field


@pytest.mark.parametrize("device", DEVICES)
def test_certainty_is_its_reference(device: str) -> None:
    large, base, experts = some_logits(7, 12)
    large[:, :7] = 0.0  # every logit is finite
    experts[:, :, 5] = 0.0
    large[4:8] *= 0.4  # an unsure large model beside a sure expert, and the other way round
    experts[4:8] *= 2.0
    base[8:] *= 0.3
    experts[8:] *= 0.3
    found = fusion.solve(large, base, experts[:, :1], combine="certainty", device=device)
    near = 1e-6 if device == "cpu" else 3e-4
    shares = []
    for i in range(len(large)):
        alpha, share, expected = certainty(large[i], base[i], experts[i, 0])
        shares.append(share)
        assert found.alpha[i, 0] == pytest.approx(alpha, abs=10 * near)
        got = reference.log_softmax(found.logits[i].astype(np.float64))
        np.testing.assert_allclose(np.exp(got), np.exp(expected), atol=10 * near)
    assert min(shares) == 0.0 and max(shares) > 0.1


@pytest.mark.parametrize("device", DEVICES)
def test_certainty_mixes_in_the_selected_expert(device: str) -> None:
    large, base, experts = some_logits(8, 6)
    large *= 0.3
    found = fusion.solve(large, base, experts, combine="certainty", device=device)
    assert ((found.alpha > 0).sum(1) <= 1).all()
    for i in range(len(large)):
        [chosen] = np.flatnonzero(found.alpha[i])
        row = reference.prepare(large[i].astype(np.float64), np.stack([base[i]] * 2), experts[i].astype(np.float64))
        added = np.exp(reference.log_softmax(row.log_large + found.alpha[i] @ row.delta))
        expert = np.exp(reference.log_softmax(experts[i, chosen, row.support].astype(np.float64)))
        got = np.exp(reference.log_softmax(found.logits[i, row.support].astype(np.float64)))
        share = max(np.exp(-entropy(np.log(expert))) - np.exp(-entropy(np.log(added))), 0.0)
        np.testing.assert_allclose(got, (1 - share) * added + share * expert, atol=1e-6 if device == "cpu" else 3e-3)


@pytest.mark.parametrize("device", DEVICES)
def test_certainty_keeps_its_digits_beside_sure_models(device: str) -> None:
    rng = np.random.default_rng(11)
    large, base, experts = (rng.standard_normal((6, 900)).astype(np.float32) for _ in range(3))
    large += 20.0  # entropies of 1e-4 to 1e-11 nats, below the rounding of a logit
    large[:, 0] += 16.0 + 3.0 * np.arange(6, dtype=np.float32)
    base[:, 0] += 10.0
    experts[:, 1] += 16.0
    found = fusion.solve(large, base, experts[:, None], combine="certainty", device=device)
    for i in range(6):
        alpha, _, expected = certainty(large[i], base[i], experts[i])
        assert found.alpha[i, 0] == pytest.approx(alpha, abs=1e-6 if device == "cpu" else 1e-3)
        got = reference.log_softmax(found.logits[i].astype(np.float64))
        np.testing.assert_allclose(np.exp(got), np.exp(expected), atol=1e-5)
