"""The decoder compared with transformers: prefill and decode, every family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import FAMILIES, make_model
from reference.quantization import dequantize
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import dlf
from dlf import _C
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.folder import Folder
from dlf.checkpoints.precision import QUANTIZATIONS
from dlf.checkpoints.quantized import linear_shapes, load_quantized
from dlf.model import load_model

TOKENS = 220
PROMPT = [5, 17, 200, 3, 99, 42, 7, 7, 301, 12, 260]


def reference_logits(folder: Path, tokens: list[int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].float()


@pytest.fixture(params=sorted(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_model(tmp_path / request.param, request.param, seed=11)


def random_tokens(count: int) -> list[int]:
    return torch.randint(0, 384, (count,), generator=torch.Generator().manual_seed(5)).tolist()


def test_prefill_logits(folder: Path) -> None:
    tokens = random_tokens(100)
    decoder = _C.Decoder(load_model(folder).weights, slots=2, max_context=256, threads=2)
    torch.testing.assert_close(decoder.prefill(tokens, 1, 0), reference_logits(folder, tokens), atol=1e-4, rtol=0)


def test_decode_logits(folder: Path) -> None:
    """Token by token, in two slots at different positions of the text."""
    tokens = random_tokens(60)
    decoder = _C.Decoder(load_model(folder).weights, slots=3, max_context=128, threads=2)
    decoder.prefill(tokens[:5], 2, 0)
    decoder.prefill(tokens[:20], 0, 0)
    expected = reference_logits(folder, tokens)
    for i in range(20, 60):
        logits = decoder.decode([tokens[i], tokens[i - 15]], [0, 2], [i, i - 15])
        torch.testing.assert_close(logits[0], expected[i], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[1], expected[i - 15], atol=1e-4, rtol=0)


def test_greedy_tokens(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    with dlf.Engine(folder, threads=2) as engine:
        completion = engine.generate(PROMPT, max_new_tokens=TOKENS, ignore_eos=True)
    assert completion.tokens == expected[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("weights", [None, *QUANTIZATIONS])
def test_rows_do_not_depend_on_the_batch(folder: Path, weights: str | None) -> None:
    """Logits are bit-identical alone and in a batch, and on one thread and on two."""
    loaded = load_model(folder, weights=weights).weights
    logits = []
    for slots, threads in ((1, 1), (7, 2)):
        decoder = _C.Decoder(loaded, slots=slots, max_context=64, threads=threads)
        for slot in range(slots):
            decoder.prefill(PROMPT[: 5 + slot] if slot else PROMPT, slot, 0)
        positions = [len(PROMPT)] + [5 + slot for slot in range(1, slots)]
        logits.append(decoder.decode([33] * slots, list(range(slots)), positions)[0])
    assert torch.equal(logits[0], logits[1])


def test_bfloat16(folder: Path) -> None:
    """The error, for the rounded weights, is at most about that of transformers in bfloat16."""
    tokens = random_tokens(40)
    model = load_model(folder, "bfloat16")
    decoder = _C.Decoder(model.weights, slots=1, max_context=64, threads=2)
    decoder.prefill(tokens[:1], 0, 0)
    ours = torch.cat([decoder.decode([token], [0], [i]) for i, token in enumerate(tokens)])
    rounded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in rounded.parameters():
            parameter.copy_(parameter.bfloat16().float())
        exact = rounded(torch.tensor([tokens])).logits[0]
    theirs = reference_logits(folder, tokens, torch.bfloat16)
    assert (ours - exact).abs().mean() <= 1.1 * (theirs - exact).abs().mean()


@pytest.mark.parametrize("weights", QUANTIZATIONS)
def test_quantized(folder: Path, tmp_path: Path, weights: str) -> None:
    """Compare with transformers on the dequantized weights: only the rounding of activations differs."""
    tokens = random_tokens(60)
    decoder = _C.Decoder(load_model(folder, weights=weights).weights, slots=2, max_context=64, threads=2)
    prefilled = decoder.prefill(tokens, 0, 0)
    decoder.prefill(tokens[:1], 1, 0)
    decoded = torch.cat([decoder.decode([token], [1], [i]) for i, token in enumerate(tokens)])

    config = Folder(folder).config
    tiles = load_quantized(Folder(folder), torch.float32, QUANTIZATIONS[weights])
    rounded = shutil.copytree(folder, tmp_path / "rounded")
    tensors = {name: tensor.clone() for name, tensor in load_file(rounded / "model.safetensors").items()}
    parts = {part.name: part for part in config.parts.values()}
    for name, (out, columns) in linear_shapes(config).items():
        values = dequantize(tiles[name], tiles[f"{name}_scale"], out, columns)
        if name == config.head:
            tensors[name] = values
            continue
        part = parts[name]
        weight = tensors[part.tensor].t() if part.transposed else tensors[part.tensor]
        weight = weight if part.expert is None else weight[part.expert]
        weight[part.rows(torch.arange(len(weight)))] = values
    save_file(tensors, rounded / "model.safetensors", metadata={"format": "pt"})
    # The embedding is not quantized, even if the head is tied to it.
    said = json.loads((rounded / "config.json").read_text()) | {"tie_word_embeddings": False}
    (rounded / "config.json").write_text(json.dumps(said))
    expected = reference_logits(rounded, tokens)
    exact = reference_logits(folder, tokens)
    for logits in (prefilled, decoded):
        assert distance(logits, expected, config) < 0.04
        # Random weights are the worst case: they have no structure that survives rounding.
        assert distance(logits, exact, config) < {"int8": 0.05, "int4": 0.4, "int4-g64": 0.45}[weights]


def distance(logits: torch.Tensor, expected: torch.Tensor, config: ModelConfig) -> float:
    """Relative error of all rows, or the median row's where rounding may route a token to another expert."""
    dim = 1 if config.spec.experts.count else None
    return float(((logits - expected).norm(dim=dim) / expected.norm(dim=dim)).median())


def test_layers_narrower_than_a_group(tmp_path: Path) -> None:
    """Pad 32 inputs in groups of 64 with zeros."""
    folder = make_model(tmp_path / "narrow", "llama", hidden_size=32, intermediate_size=48)
    tokens = random_tokens(20)
    exact = reference_logits(folder, tokens)
    for weights in QUANTIZATIONS:
        decoder = _C.Decoder(load_model(folder, weights=weights).weights, slots=1, max_context=64, threads=1)
        assert (decoder.prefill(tokens, 0, 0) - exact).norm() < 0.5 * exact.norm()


def test_prefill_in_pieces(tmp_path: Path) -> None:
    """Prompts longer than one chunk."""
    folder = make_model(tmp_path / "long", "llama", max_position_embeddings=1024)
    tokens = random_tokens(600)
    decoder = _C.Decoder(load_model(folder).weights, slots=1, max_context=1024, threads=2)
    torch.testing.assert_close(decoder.prefill(tokens, 0, 0), reference_logits(folder, tokens), atol=1e-4, rtol=0)


@pytest.mark.parametrize("weights", [None, *QUANTIZATIONS])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "qwen2_moe"])
def test_prefill_does_not_depend_on_its_pieces(tmp_path: Path, family: str, weights: str | None, dtype: str) -> None:
    """The scheduler may read a prompt in short chunks."""
    folder = make_model(tmp_path / "long", family, max_position_embeddings=1024)
    tokens = random_tokens(400)
    decoder = _C.Decoder(load_model(folder, dtype=dtype, weights=weights).weights, slots=2, max_context=1024, threads=2)
    expected = decoder.prefill(tokens, 0, 0)
    for most in (1, 15, 64, 100):
        pieces = [decoder.prefill(tokens[first : first + most], 1, first) for first in range(0, len(tokens), most)]
        assert torch.equal(torch.cat(pieces), expected)


def test_wrong_use(tmp_path: Path) -> None:
    weights = load_model(make_model(tmp_path / "m", "llama")).weights
    decoder = _C.Decoder(weights, slots=1, max_context=8, threads=1)
    with pytest.raises(ValueError, match="do not fit the context"):
        decoder.prefill([1] * 9, 0, 0)
    with pytest.raises(IndexError, match="slot"):
        decoder.prefill([1], 1, 0)
    with pytest.raises(IndexError, match="token id"):
        decoder.decode([100000], [0], [0])
