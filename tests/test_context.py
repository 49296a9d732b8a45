"""The length of an engine's context, and results equal to those of transformers up to its end."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_model
from transformers import AutoModelForCausalLM

import dlf
from dlf import _C
from dlf.model import load_model
from dlf.prompts import end_tokens

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(8)],
    "long_factor": [2.0 + 0.9 * i for i in range(8)],
    "original_max_position_embeddings": 32,
}


def check_scores(folder: Path, engine: dlf.Engine, length: int) -> None:
    """Compare the log-probabilities of a text of this length with those of one pass of transformers."""
    tokens = [(7 * i + i // 5) % 384 for i in range(length)]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([tokens])).logits[0]
    expected = [logits.double().log_softmax(-1)[i, tokens[i + 1]].item() for i in range(length - 1)]
    np.testing.assert_allclose(engine.score(tokens[:1], tokens[1:]).logprobs, expected, atol=2e-4)


@pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
def test_a_context_that_scaling_lengthens(tmp_path: Path, kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0}
    rope |= {} if kind == "linear" else {"original_max_position_embeddings": 64}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    folder = make_model(tmp_path, "llama", max_position_embeddings=64, rope_parameters=rope)
    with dlf.Engine(folder, threads=1, max_context=256) as engine:
        check_scores(folder, engine, 250)
    with pytest.raises(ValueError, match="2 to 256 tokens"):
        dlf.Engine(folder, max_context=257)
    with dlf.Engine(folder, threads=1) as engine:
        assert engine.max_context == 256


def test_dynamic_scaling_within_the_trained_length(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    folder = make_model(tmp_path, "llama", max_position_embeddings=64, rope_parameters=rope)
    with dlf.Engine(folder, threads=1) as engine:
        check_scores(folder, engine, 64)
    with pytest.raises(ValueError, match="2 to 64 tokens"):
        dlf.Engine(folder, max_context=65)


def test_longrope_reads_short_texts_unless_a_longer_context_is_asked_for(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", rope_parameters=dict(LONGROPE))
    with dlf.Engine(folder, threads=1) as engine:
        assert engine.max_context == 32
        check_scores(folder, engine, 32)
    with dlf.Engine(folder, threads=1, max_context=256) as engine:
        check_scores(folder, engine, 200)
    with dlf.Engine(folder, threads=1, max_context=256, weights="int8") as engine:
        assert engine.max_context == 256


def test_the_context_of_a_decoder_chooses_the_frequencies(tmp_path: Path) -> None:
    weights = load_model(make_model(tmp_path, "llama", rope_parameters=dict(LONGROPE))).weights
    logits = {
        context: _C.Decoder(weights, slots=1, max_context=context, threads=1).prefill([5, 17, 200, 3], 0, 0)
        for context in (8, 32, 33, 64)
    }
    assert torch.equal(logits[8], logits[32]) and torch.equal(logits[33], logits[64])
    assert not torch.allclose(logits[32], logits[33])


def test_all_sources_name_the_end(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "llama", eos_token_id=7)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7, 100_000]}))
    with dlf.Engine(folder, threads=1) as engine:
        assert engine.tokenizer.eos_token_id == 1
        assert end_tokens(engine._ensemble, "x") == [9, 7, 1]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (copy / "generation_config.json").unlink()
    with dlf.Engine(copy, threads=1) as engine:
        assert end_tokens(engine._ensemble, "x") == [1]
