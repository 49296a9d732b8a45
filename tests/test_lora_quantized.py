"""Adapters on quantized bases: quantized at load, GGUF files and published checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
from gguf_files import HALVES, random_blocks, write_gguf
from models import make_model
from reference.published import SCHEMES, quantize_checkpoint
from safetensors.torch import save_file
from test_lora import ALL
from test_lora_experts import write_single
from test_lora_tables import make_adapter

import dlf
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
    """An adapter adds little to the error of its base, which rounds activations to 8 bits; floats have none."""
    found, expected = logits(quantized, adapters), logits(floats, adapters)
    for ours, theirs in zip(logits(quantized, adapters, "fp32"), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    if not integers:  # its matrices become floats
        return
    base_error = (found[0] - expected[0]).abs().max()
    assert base_error > 0
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours - theirs).abs().max() < max(3 * base_error, 0.08 * theirs.abs().max())
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
    check(file, floats, list(adapters.values()), integers=kind not in ("Q2_K", "Q3_K", "IQ4_NL"))


def random_weights(values: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """Blocks of a type that the package cannot quantize to, with values as large as a model's."""
    blocks = random_blocks(kind, *values.shape, seed=values.size)
    whole = blocks.reshape(-1, GGML_QUANT_SIZES[kind][1])
    for scale in (1.0, 0.05):
        deviation = 1.0 if scale == 1 else float(dequantize(blocks, kind).std())
        for place in HALVES[kind.name]:
            whole[:, place : place + 2] = np.frombuffer(np.float16(scale / deviation).tobytes(), np.uint8)
    return blocks


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_gguf_of_two_levels(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_files.gguf.quantize", random_weights)
    sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 64}
    plain = make_model(tmp_path / "plain", "llama", seed=6, **sizes)
    adapters = {name: make_adapter(tmp_path / name, plain, 1, **config) for name, config in KINDS.items()}
    test_gguf(plain, adapters, kind, tmp_path)


@pytest.mark.parametrize("scheme", [*(name for name in SCHEMES if name.startswith("gptq")), "awq-g32", "w8a8", "nf4"])
def test_published(plain: Path, adapters: dict[str, Path], scheme: str, tmp_path: Path) -> None:
    folder, floats = tmp_path / scheme, tmp_path / "floats"
    quantize_checkpoint(folder, floats, plain, scheme)
    check(folder, floats, list(adapters.values()), integers="act-order" not in scheme and scheme != "nf4")


@pytest.mark.cuda
@pytest.mark.parametrize("scheme", ["gptq-4-g32", "gptq-8-channel", "awq-g32"])
def test_on_cuda(plain: Path, family: dict[str, Path], adapters: dict[str, Path], scheme: str, tmp_path: Path) -> None:
    """There integers multiply activations as they are, so the floats of the same values give the same."""
    folders = tmp_path / scheme, tmp_path / "floats"
    quantize_checkpoint(*folders, plain, scheme)
    found = []
    for base in folders:
        experts = [dlf.Lora(base, adapter, name=kind, alpha=0.5) for kind, adapter in adapters.items()]
        with dlf.Engine(
            family["large"], experts, dtype="float32", device="cuda", max_batch=1, max_context=64, combine="centroid"
        ) as engine:
            found.append(engine.score("The quick brown", " fox jumps over"))
    np.testing.assert_allclose(found[0].logprobs, found[1].logprobs, atol=1e-4)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_experts(tmp_path: Path, weights: str) -> None:
    base = make_model(tmp_path / "base", "olmoe", seed=6)
    adapter = write_single(tmp_path / "adapter", base, 1)
    found, expected = logits(base, [adapter], weights), logits(base, [adapter])
    base_error = (found[0] - expected[0]).abs().max()
    assert 0 < (found[1] - expected[1]).abs().max() < 3 * base_error
