"""Adapters on quantized bases: quantized at load, GGUF files and published checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_files import write_gguf
from models import make_model
from reference.published import SCHEMES, quantize_checkpoint
from safetensors.torch import save_file
from test_lora import ALL
from test_lora_experts import write_single
from test_lora_tables import make_adapter

from dlf import _C
from dlf.adapters.adapter import load_adapter
from dlf.checkpoints.gguf.source import Gguf
from dlf.model import load_model

TOKENS = [5, 17, 300, 42, 8, 99]
KINDS: dict[str, dict[str, Any]] = {
    "low-rank": {"target_modules": [*ALL, "embed_tokens", "lm_head"]},
    "saved": {"target_modules": ALL, "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": ALL, "trainable_token_indices": {"embed_tokens": [5, 300], "lm_head": [9, 42]}},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("plain") / "llama", "llama", seed=6, intermediate_size=128)


@pytest.fixture(scope="module")
def adapters(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {kind: make_adapter(folder / kind, plain, 1, **config) for kind, config in KINDS.items()}


def logits(base: Path, adapters: list[Path], weights: str | None = None) -> list[torch.Tensor]:
    """Logits of the base alone and with each adapter, of a prompt and, in one batch, of its last token again."""
    model = load_model(base, "float32", weights)
    loaded = [load_adapter(one, model.config, torch.float32) for one in adapters]
    decoder = _C.Decoder(model.weights, len(adapters) + 1, 64, 2, loaded)
    which = range(-1, len(adapters))
    found = [decoder.prefill(TOKENS, slot, 0, one) for slot, one in enumerate(which)]
    rows = decoder.decode([TOKENS[-1]] * len(found), list(range(len(found))), [len(TOKENS) - 1] * len(found), which)
    for prompt, row in zip(found, rows, strict=True):
        torch.testing.assert_close(row, prompt[-1], rtol=0, atol=2e-2 * float(prompt.abs().max()))
    return found


def check(quantized: Path, floats: Path, adapters: list[Path], *, integers: bool = True) -> None:
    """An adapter adds no error to that of its base, which rounds activations to 8 bits; in floats there is none."""
    found, expected = logits(quantized, adapters), logits(floats, adapters)
    for ours, theirs in zip(logits(quantized, adapters, "fp32"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if not integers:  # its matrices become floats
        return
    base_error = (found[0] - expected[0]).abs().max()
    assert base_error > 0
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours - theirs).abs().max() < 3 * base_error
        assert (theirs - expected[0]).abs().max() > 10 * base_error


@pytest.mark.parametrize("weights", ["int8", "int4", "int4-g64"])
def test_quantized_at_load(plain: Path, adapters: dict[str, Path], weights: str) -> None:
    found, expected = logits(plain, list(adapters.values()), weights), logits(plain, list(adapters.values()))
    base_error = (found[0] - expected[0]).abs().max()
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert 0 < (ours - theirs).abs().max() < 2 * base_error


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_gguf(plain: Path, adapters: dict[str, Path], kind: str, tmp_path: Path) -> None:
    """Beside a folder with the file's values as floats."""
    file = write_gguf(tmp_path / "model.gguf", plain, kind)
    floats = Path(shutil.copytree(plain, tmp_path / "floats"))
    source = Gguf(file)
    values = {name: source.read(name).clone() for name in source.config.tensors()}
    save_file(values, floats / "model.safetensors", metadata={"format": "pt"})
    check(file, floats, list(adapters.values()))


@pytest.mark.parametrize("scheme", [*(name for name in SCHEMES if name.startswith("gptq")), "awq-g32", "w8a8", "nf4"])
def test_published(plain: Path, adapters: dict[str, Path], scheme: str, tmp_path: Path) -> None:
    folder, floats = tmp_path / scheme, tmp_path / "floats"
    quantize_checkpoint(folder, floats, plain, scheme)
    check(folder, floats, list(adapters.values()), integers="act-order" not in scheme and scheme != "nf4")


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_experts(tmp_path: Path, weights: str) -> None:
    base = make_model(tmp_path / "base", "olmoe", seed=6)
    adapter = write_single(tmp_path / "adapter", base, 1)
    found, expected = logits(base, [adapter], weights), logits(base, [adapter])
    base_error = (found[0] - expected[0]).abs().max()
    assert 0 < (found[1] - expected[1]).abs().max() < 3 * base_error
