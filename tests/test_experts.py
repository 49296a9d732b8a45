"""Mixtures of experts: what their families read, and that every way to run a model runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import finetune, make_model

import dlf
from dlf import model
from dlf.checkpoints import quantized
from dlf.checkpoints.config import read_config
from dlf.checkpoints.huge_pages import Place, leave
from dlf.cli.inspect import describe
from dlf.errors import CheckpointError

MIXTURES = ["qwen3_moe", "mixtral", "olmoe"]
PROMPTS = ["The quick brown fox", "Question: what is the sum of 12 and 30?", "def add("]
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True, "logprobs": 2}


@pytest.fixture(params=MIXTURES)
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_model(tmp_path / "large", request.param, seed=2)


def test_layers_without_experts_are_those_that_the_config_names(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "qwen3_moe", num_hidden_layers=4, decoder_sparse_step=2, mlp_only_layers=[3])
    config = read_config(folder)
    assert [layer.experts for layer in config.spec.layers] == [False, True, False, False]
    names = config.tensors()
    assert names["model.layers.1.mlp.experts.5.gate_proj.weight"] == (40, 64)
    assert names["model.layers.1.mlp.gate.weight"] == (6, 64)
    assert names["model.layers.3.mlp.gate_proj.weight"] == (112, 64)
    assert not any("layers.1.mlp.gate_proj" in name for name in names)


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"num_local_experts": 0}, "'num_local_experts' must be an integer from 1 to 1024"),
        ({"num_local_experts": 5000}, "'num_local_experts' must be an integer from 1 to 1024"),
        ({"num_experts_per_tok": 7}, "'num_experts_per_tok' must be an integer from 1 to 6"),
        ({"moe_intermediate_size": "4"}, "'moe_intermediate_size' must be an integer"),
        ({"mlp_only_layers": [True]}, "'mlp_only_layers' must be a list of the numbers of layers"),
        ({"norm_topk_prob": 1}, "'norm_topk_prob' must be true or false"),
    ],
)
def test_values_out_of_range_are_named(tmp_path: Path, values: dict[str, Any], error: str) -> None:
    folder = make_model(tmp_path / "m", "qwen3_moe")
    config = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=error):
        read_config(folder)


def test_active_parameters_are_those_of_the_chosen_experts(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "mixtral")
    found = describe(str(folder))
    expert = 3 * 64 * 112
    assert found["experts"] == "2 of 5, each of 112"
    assert found["parameters"] - found["active_parameters"] == 3 * 3 * expert  # three idle ones in three layers
    assert describe(str(make_model(tmp_path / "dense", "llama")))["experts"] is None


@pytest.mark.parametrize("weights", [None, "int4"])
def test_experts_stay_in_their_file(large: Path, weights: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what every step reads is copied into huge pages."""
    copied: set[str] = set()

    def record(sizes: dict[str, int]) -> Place:
        copied.update(sizes)
        return leave

    monkeypatch.setattr(model, "placement", record)
    monkeypatch.setattr(quantized, "placement", record)
    model.load_model(large, weights=weights)
    assert any(name.endswith("layers.0.self_attn.q_proj.weight") for name in copied)
    assert not any(".experts." in name for name in copied)


@pytest.mark.parametrize("weights", [None, "bf16", "int8", "int4"])
def test_a_batch_changes_nothing(large: Path, weights: str | None) -> None:
    """Rows that share an expert have the bits of rows that run alone, with and without drafts."""
    with dlf.Engine(large, max_batch=3, threads=2, weights=weights) as engine:
        together = engine.generate(PROMPTS, **OPTIONS)
        for prompt, completion in zip(PROMPTS, together, strict=True):
            alone = engine.generate(prompt, **OPTIONS)
            assert alone.tokens == completion.tokens
            assert np.array_equal(alone.logprobs, completion.logprobs)


@pytest.mark.cuda
@pytest.mark.parametrize("weights", ["bf16", "int4"])
def test_a_batch_changes_nothing_on_cuda(large: Path, weights: str | None) -> None:
    with dlf.Engine(large, max_batch=3, device="cuda", weights=weights) as engine:
        together = engine.generate(PROMPTS, **OPTIONS)
        alone = engine.generate(PROMPTS[1], **OPTIONS)
        assert alone.tokens == together[1].tokens
        assert np.array_equal(alone.logprobs, together[1].logprobs)


def experts_of(tmp_path: Path) -> list[dlf.Expert]:
    base = make_model(tmp_path / "base", "mixtral", seed=3)
    return [dlf.Expert(finetune(tmp_path / "expert", base, seed=4, scale=0.2), base)]


def run_everything(large: Path, tmp_path: Path, **options: Any) -> None:
    """Fuse a mixture with a fine-tuned mixture, with drafts, and score what was generated."""
    with dlf.Engine(large, experts_of(tmp_path), max_batch=2, **options) as engine:
        plain = engine.generate(PROMPTS[:2], **OPTIONS)
        drafted = engine.generate(PROMPTS[:2], speculate=dlf.Speculation("base", 3, adaptive=False), **OPTIONS)
        for one, other in zip(plain, drafted, strict=True):
            assert one.tokens == other.tokens and np.array_equal(one.logprobs, other.logprobs)
        assert all(np.isfinite(one.f).all() and max(one.f) > 0 for one in plain)
        ids = [5, 17, 200, 3]
        scored = engine.score(ids, engine.generate(ids, **OPTIONS).tokens)
        np.testing.assert_allclose(scored.logprobs, engine.generate(ids, **OPTIONS).logprobs, atol=1e-3)


def test_mixtures_are_fused_drafted_and_scored(large: Path, tmp_path: Path) -> None:
    run_everything(large, tmp_path, threads=2)


@pytest.mark.cuda
def test_mixtures_are_fused_drafted_and_scored_on_cuda(tmp_path: Path) -> None:
    run_everything(make_model(tmp_path / "large", "qwen3_moe", seed=2), tmp_path, device="cuda")


def test_mixtures_are_merged(large: Path, tmp_path: Path) -> None:
    expert = finetune(tmp_path / "tuned", large, seed=6, scale=0.3)
    merged = dlf.TaskArithmetic(large, {expert: 0.5})
    with dlf.Engine(large, [merged], max_batch=1, threads=2) as engine:
        assert max(engine.generate(PROMPTS[0], **OPTIONS).f) > 0
