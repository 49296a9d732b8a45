"""Packed matrices: integers and scales of a file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from models import make_model
from transformers import AutoModelForCausalLM

from dlf import _C
from dlf.checkpoints.config import ModelConfig
from dlf.checkpoints.folder import Folder
from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import MatrixFormat, Precision
from dlf.checkpoints.quantized import formats_of, linear_shapes, weights_bytes
from dlf.errors import CheckpointError
from dlf.model import load_model


def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(low + high)).to(dtype)


def floats(*shape: int, dtype: torch.dtype = torch.float16) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(shape[-1])).to(dtype)


@pytest.mark.parametrize("group", [0, 32, 40])
def test_a_weight_is_its_value_above_zero_times_the_scale_plus_the_minimum(group: int) -> None:
    groups = -(-96 // group) if group else 1
    values, zero = integers(0, 16, 5, 96), integers(0, 17, 5, groups, dtype=torch.int16)
    scale, minimum = floats(5, groups), floats(5, groups)
    plain = PackedMatrix(values, scale, None, 4, group).dequantize()
    shifted = PackedMatrix(values, scale, None, 4, group, zero=zero).dequantize()
    raised = PackedMatrix(values, scale, minimum, 4, group).dequantize()
    assert plain.dtype == torch.float32 and plain.shape == (5, 96)
    for row in range(5):
        for column in (0, 31, 32, 39, 40, 95):
            at = column // group if group else 0
            value, step = int(values[row, column]), float(scale[row, at])
            assert plain[row, column] == value * step
            assert shifted[row, column] == torch.tensor((value - int(zero[row, at])) * step)
            assert raised[row, column] == pytest.approx(value * step + float(minimum[row, at]), rel=1e-7)


def test_scales_of_two_levels_are_multiplied() -> None:
    values = integers(0, 16, 3, 512)
    scale, minimum = integers(0, 64, 3, 16), integers(0, 63, 3, 16)
    blocks = floats(3, 2)
    packed = PackedMatrix(values, scale, minimum, 4, 32, block=256, block_scale=blocks, block_minimum=-blocks.flip(0))
    weight = packed.dequantize()
    for column in (0, 40, 255, 256, 511):
        for row in range(3):
            group, block = column // 32, column // 256
            expected = int(values[row, column]) * int(scale[row, group]) * float(blocks[row, block])
            expected -= int(minimum[row, group]) * float(blocks[2 - row, block])
            assert weight[row, column] == pytest.approx(expected, rel=1e-6, abs=1e-4)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"values": torch.zeros(4, 64)}, "int8 or uint8"),
        ({"values": torch.zeros(64, dtype=torch.int8)}, "int8 or uint8"),
        ({"scale": torch.zeros(4, 3)}, r"scale is torch.float32 \[4, 3\]"),
        ({"scale": torch.zeros(4, 2, dtype=torch.float64)}, "scale is torch.float64"),
        ({"minimum": torch.zeros(2, 4)}, "minimum is"),
        ({"minimum": torch.zeros(4, 2, dtype=torch.float16)}, "minimum is"),
        ({"zero": torch.zeros(4, 1, dtype=torch.int8)}, "zero is"),
        ({"bits": 9}, "9 bits"),
        ({"group": -1}, "groups of -1"),
        ({"block": 64}, "block_scale"),
        ({"block": 48, "block_scale": torch.zeros(4, 2)}, "not made of groups"),
        ({"block": 64, "block_scale": torch.zeros(4, 1)}, "scale is torch.float32"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(change: dict[str, Any], complaint: str) -> None:
    parts = {
        "values": torch.zeros(4, 64, dtype=torch.int8),
        "scale": torch.zeros(4, 2),
        "minimum": None,
        "bits": 4,
        "group": 32,
    }
    assert PackedMatrix(**parts).shape == (4, 64)
    with pytest.raises(CheckpointError, match=complaint):
        PackedMatrix(**(parts | change))


def random_packed(kind: str, out: int, columns: int, seed: int = 1) -> PackedMatrix:
    """Return a random matrix in the form that files of a kind have."""
    generator = torch.Generator().manual_seed(seed)
    bits, signed, group, block = KINDS[kind]
    groups, half = -(-columns // group) if group else 1, 1 << (bits - 1)

    def whole(low: int, high: int, count: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high, (out, count), generator=generator).to(dtype)

    def real(count: int) -> torch.Tensor:
        return (torch.randn(out, count, generator=generator) / (half * columns**0.5)).half()

    low, dtype = (-half, torch.int8) if signed else (0, torch.uint8)
    values = whole(low, low + 2 * half, columns, dtype)
    if block:
        blocks = -(-columns // block)
        minimum = None if signed else whole(0, 64, groups, torch.uint8)
        scale = whole(1, 64, groups, torch.int8 if signed else torch.uint8)
        least = None if signed else -real(blocks).abs() / 64
        return PackedMatrix(
            values, scale, minimum, bits, group, block=block, block_scale=real(blocks) / 64, block_minimum=least
        )
    if kind.startswith("GPTQ"):
        return PackedMatrix(values, real(groups), None, bits, group, zero=whole(0, 2 * half, groups, torch.int32))
    return PackedMatrix(values, real(groups), None if signed else real(groups), bits, group)


# Bits, signed, group, block.
KINDS = {
    "Q8_0": (8, True, 32, 0),
    "Q4_0": (4, True, 32, 0),
    "Q4_1": (4, False, 32, 0),
    "Q5_1": (5, False, 32, 0),
    "Q4_K": (4, False, 32, 256),
    "Q6_K": (6, True, 16, 256),
    "GPTQ 4": (4, False, 128, 0),
    "GPTQ 8": (8, False, 64, 0),
    "GPTQ by channel": (4, False, 0, 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_tiles_have_the_layout_that_the_format_says(kind: str) -> None:
    packed = random_packed(kind, 37, 320)
    assert packed.format is not None
    tiles = packed.tiles("a")
    names = {torch.int8: "I8", torch.uint8: "U8", torch.float16: "F16"}
    found = {name: (names[tensor.dtype], tuple(tensor.shape)) for name, tensor in tiles.items()}
    assert found == {name: (one.dtype, one.shape) for name, one in packed.format.layout("a", (37, 320)).items()}


def test_a_matrix_that_no_tiles_hold_says_so() -> None:
    values = torch.zeros(4, 96, dtype=torch.uint8)
    assert PackedMatrix(values, torch.ones(4, 2), None, 4, 48).format is None
    both = torch.ones(4, 3)
    assert PackedMatrix(values, both, both, 4, 32, zero=both.int()).format is None
    with pytest.raises(CheckpointError, match=r"tensor 'x'.*zero points beside a minimum.*weights='bf16'"):
        PackedMatrix(values, both, both, 4, 32, zero=both.int()).tiles("x")
    with pytest.raises(CheckpointError, match="from 0 to 15"):
        PackedMatrix(values + 16, both, both, 4, 32).tiles("x")
    with pytest.raises(CheckpointError, match="not finite"):
        PackedMatrix(values, both / 0, both, 4, 32).tiles("x")


class PackedFolder(Folder):
    """A folder some of whose linear layers are integers."""

    def __init__(self, path: Path, kinds: dict[str, str]) -> None:
        super().__init__(path)
        self.floats = Folder(path).config
        shapes = linear_shapes(self.floats)
        modules = {name: kind for name in shapes for part, kind in kinds.items() if f".{part}." in f".{name}"}
        self.matrices = {name: random_packed(kind, *shapes[name]) for name, kind in modules.items()}

    @cached_property
    def config(self) -> ModelConfig:
        formats = {name: packed.format for name, packed in self.matrices.items()}
        return replace(self.floats, packed={name: one for name, one in formats.items() if one is not None})

    def packed(self, name: str) -> Iterator[PackedMatrix]:
        yield self.matrices[name]

    def rows(self, name: str, keep: bool = False, dtype: torch.dtype | None = None) -> Iterator[torch.Tensor]:
        if name in self.matrices:
            yield self.matrices[name].dequantize()
        else:
            yield from super().rows(name, keep, dtype)

    def reference(self) -> Any:
        """Return the model of transformers with the same numbers."""
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32).eval()
        for name, packed in self.matrices.items():
            model.get_submodule(name.removesuffix(".weight")).weight = torch.nn.Parameter(packed.dequantize())
        return model


# q, k and v in three types, of which two read the same input; a float layer among them; gate and up differ.
MIXED = {"q_proj": "GPTQ 4", "k_proj": "Q6_K", "o_proj": "Q8_0", "gate_proj": "Q4_K", "up_proj": "Q5_1"}
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


@pytest.mark.parametrize("kinds", [MIXED, *({part: kind for part in ALL} for kind in KINDS)], ids=["mixed", *KINDS])
def test_a_model_runs_on_the_integers_of_its_file(kinds: dict[str, str], tmp_path: Path) -> None:
    """Compare with transformers on the same numbers: only the rounding of activations differs."""
    folder = make_model(tmp_path / "m", "llama", hidden_size=256, intermediate_size=512, tie_word_embeddings=False)
    source = PackedFolder(folder, kinds)
    assert source.matrices.keys() == source.config.packed.keys()
    weights = load_model(folder, source=source).weights
    tokens = [5, 17, 200, 3, 99, 42, 7, 7, 301, 12]
    with torch.no_grad():
        expected = source.reference()(torch.tensor([tokens])).logits[0]
    decoder = _C.Decoder(weights, slots=2, max_context=64, threads=2)
    prefilled = decoder.prefill(tokens, 0, 0)
    decoded = torch.cat([decoder.decode([token], [1], [i]) for i, token in enumerate(tokens)])
    for logits in (prefilled, decoded):
        assert (logits - expected).norm() < 0.03 * expected.norm()
    assert weights.nbytes == weights_bytes(source.config, Precision())
    if kinds is MIXED:
        assert weights.type == "float32, int6, int4, int8"


def test_asking_for_floats_dequantizes(tmp_path: Path) -> None:
    assert not Precision.of(weights="bf16").packed
    folder = make_model(tmp_path / "m", "llama")
    config = Folder(folder).config
    name = next(iter(linear_shapes(config)))
    config = replace(config, packed={name: MatrixFormat(4, 32, "F16")})
    assert formats_of(config, Precision.of(weights="bf16")) == {}
    assert set(formats_of(config, Precision.of(weights="int8"))) == set(linear_shapes(config))
    assert formats_of(config, Precision.of("bfloat16")) == config.packed


def test_a_file_that_holds_another_matrix_than_it_said_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "m", "llama", hidden_size=256, intermediate_size=512)
    source = PackedFolder(folder, {"q_proj": "Q4_0"})
    _ = source.config
    name = next(iter(source.matrices))
    source.matrices[name] = random_packed("Q8_0", *source.matrices[name].shape)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        load_model(folder, source=source)
