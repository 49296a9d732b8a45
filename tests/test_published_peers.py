"""Matrices that other libraries quantized: compressed-tensors and bitsandbytes, if they are installed; transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_published import matrix, unpacked

import dlf
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.source import open_checkpoint


def floats(found: Any) -> torch.Tensor:
    weight = found.dequantize() if isinstance(found, PackedMatrix) else found
    assert weight.dtype == torch.float32
    return weight  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("form", "weights", "block"),
    [
        ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32}, (1, 32)),
        ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}, (1, 32)),
        ("pack-quantized", {"num_bits": 8, "strategy": "channel"}, (1, 128)),
        ("pack-quantized", {"num_bits": 8, "strategy": "group", "group_size": 64, "symmetric": False}, (1, 64)),
        ("int-quantized", {"num_bits": 8, "strategy": "channel"}, (1, 128)),
        ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}, (1, 128)),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "tensor"}, (48, 128)),
        ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, (1, 128)),
        (
            "float-quantized",
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [16, 32]},
            (16, 32),
        ),
    ],
    ids=str,
)
def test_compressed_tensors(form: str, weights: dict[str, Any], block: tuple[int, int]) -> None:
    peer = pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    assert peer
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    weight = matrix()
    blocks = weight.unflatten(0, (-1, block[0])).unflatten(2, (-1, block[1])).transpose(1, 2).flatten(2)
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), scheme.weights)
    state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
    if weights["strategy"] == "tensor":
        state |= {"weight_scale": scale.flatten(), "weight_zero_point": zero.flatten()}
    compressor = BaseCompressor.get_value_from_registry(form)
    tensors = compressor.compress(state, scheme)
    config = {"quant_method": "compressed-tensors", "format": form}
    config["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": scheme.weights.model_dump()}}
    theirs = compressor.decompress(dict(tensors), scheme)["weight"]
    torch.testing.assert_close(floats(unpacked(config, tensors, (48, 128))), theirs.float(), rtol=1e-6, atol=1e-8)
    assert (theirs - weight).abs().max() < 0.1  # it was quantized at all


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_four_bits(kind: str, nested: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = matrix(96, 256)
    stored, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
    tensors = {"weight": stored} | {f"weight.{part}": t for part, t in state.as_dict(packed=True).items()}
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    theirs = functional.dequantize_4bit(stored, state)
    torch.testing.assert_close(floats(unpacked(config, tensors, (96, 256))), theirs, rtol=1e-6, atol=1e-8)


def test_bitsandbytes_eight_bits() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    values, scale, _ = functional.int8_vectorwise_quant(matrix())
    tensors = {"weight": values, "SCB": scale.float(), "weight_format": torch.tensor(0, dtype=torch.uint8)}
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    theirs = functional.int8_vectorwise_dequant(values, scale)
    torch.testing.assert_close(floats(unpacked(config, tensors, (48, 128))), theirs.float(), rtol=1e-5, atol=1e-8)


def test_transformers_fp8() -> None:
    peer = pytest.importorskip("transformers.integrations.finegrained_fp8")
    if not hasattr(peer, "Fp8Dequantize"):
        pytest.skip("this version of transformers dequantizes otherwise")
    weight = matrix(64, 128).to(torch.float8_e4m3fn)
    scale = torch.rand(2, 4, generator=torch.Generator().manual_seed(1)) + 0.5
    theirs = peer.Fp8Dequantize(None)._dequantize_one(weight, scale, torch.float32)
    config = {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"}
    tensors = {"weight": weight, "weight_scale_inv": scale}
    torch.testing.assert_close(floats(unpacked(config, tensors, (64, 128))), theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_compressed_tensors_reads_what_convert_writes(family: dict[str, Path], tmp_path: Path, weights: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    folder = dlf.convert(family["base"], tmp_path / "folder", weights)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (scheme,) = QuantizationConfig.model_validate(config).config_groups.values()
    name = "model.layers.1.self_attn.q_proj"
    tensors = load_file(folder / "model.safetensors")
    state = {key.removeprefix(f"{name}."): tensor for key, tensor in tensors.items() if key.startswith(name)}
    theirs = BaseCompressor.get_value_from_registry(config["format"]).decompress(state, scheme)["weight"]
    ours = open_checkpoint(folder).read(f"{name}.weight")
    torch.testing.assert_close(ours.to(theirs.dtype), theirs, rtol=1e-2, atol=1e-6)
