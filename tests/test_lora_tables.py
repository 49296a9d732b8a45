"""Adapters of the embedding and the head, with the results of PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models import VOCAB_SIZE, make_model
from test_lora import peft_logits
from transformers import AutoModelForCausalLM

import dlf
from dlf.adapters.adapter import AdapterFile
from dlf.checkpoints.folder import Folder
from dlf.merging.fold import Fold

peft = pytest.importorskip("peft")

TOKENS = [3, 5, 9, 200, 5, 41]
LAYERS = ["q_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "low-rank-embedding": {"target_modules": [*LAYERS, "embed_tokens"]},
    "low-rank-head": {"target_modules": [*LAYERS, "lm_head"]},
    "both-low-rank": {"target_modules": ["embed_tokens", "lm_head"], "rank_pattern": {"lm_head": 5}},
    "saved-embedding": {"target_modules": LAYERS, "modules_to_save": ["embed_tokens"]},
    "saved-head": {"target_modules": LAYERS, "modules_to_save": ["lm_head"]},
    "both-saved": {"target_modules": LAYERS, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": LAYERS, "trainable_token_indices": [3, 200, 5]},
    "tokens-of-both": {
        "target_modules": LAYERS,
        "trainable_token_indices": {"embed_tokens": [3, 200], "lm_head": [9]},
    },
}


def make_adapter(folder: Path, base: Path, seed: int, vocab: int | None = None, **config: Any) -> Path:
    """Write a PEFT folder with random changes; the base's vocabulary is extended before to `vocab` tokens."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if vocab is not None:
        model.resize_token_embeddings(vocab)
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=6, **config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {name: make_model(folder / name, name, seed=6) for name in ("llama", "qwen3")}  # the second one's is tied


def logits(folder: Path, tokens: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_folding(bases: dict[str, Path], name: str, kind: str, tmp_path: Path) -> None:
    adapter = make_adapter(tmp_path / "adapter", bases[name], 1, **KINDS[kind])
    (tmp_path / "folded").mkdir()
    Fold(Folder(bases[name]), AdapterFile(adapter)).write(tmp_path / "folded")
    expected = peft_logits(bases[name], adapter, TOKENS)
    torch.testing.assert_close(logits(tmp_path / "folded", TOKENS), expected, rtol=1e-4, atol=1e-4)
    assert (expected - logits(bases[name], TOKENS)).abs().max() > 0.01
    tied = json.loads((tmp_path / "folded" / "config.json").read_text())["tie_word_embeddings"]
    assert tied == (name == "qwen3" and kind == "tokens")


@pytest.mark.parametrize("kind", ["saved-embedding", "both-saved", "both-low-rank"])
def test_rows_beyond_the_base_are_left_out(bases: dict[str, Path], kind: str, tmp_path: Path) -> None:
    base = bases["llama"]
    adapter = make_adapter(tmp_path / "adapter", base, 2, vocab=400, **KINDS[kind])
    (tmp_path / "folded").mkdir()
    Fold(Folder(base), AdapterFile(adapter)).write(tmp_path / "folded")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.resize_token_embeddings(400)
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    with torch.no_grad():
        expected = model(torch.tensor([TOKENS])).logits[0, :, :392]
    torch.testing.assert_close(logits(tmp_path / "folded", TOKENS), expected, rtol=1e-4, atol=1e-4)


def test_in_an_engine(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["llama"]
    adapter = make_adapter(tmp_path / "adapter", base, 3, **KINDS["both-low-rank"])
    prompt = [5, 17, 300]
    expert = dlf.Lora(base, adapter, merge=True)
    with dlf.Engine(base, [expert], combine="static", alpha=[1.0], dtype="float32", threads=1) as engine:
        found = engine.score(prompt, TOKENS)
    full = peft_logits(base, adapter, [*prompt, *TOKENS])[:, :VOCAB_SIZE].double().log_softmax(-1)
    expected = [float(full[2 + i, token]) for i, token in enumerate(TOKENS)]
    assert list(found.logprobs) == pytest.approx(expected, abs=1e-3)
