"""Packs matrices as published quantized checkpoints do, one word after the other, and says which weights that means."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Packed = tuple[dict[str, torch.Tensor], torch.Tensor]  # tensors by their last names, and the weights [out, in]
FLOAT8 = torch.float8_e4m3fn


def words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack rows of unsigned values into 32-bit words, the first value in the lowest bits."""
    per = 32 // bits
    rows, columns = values.shape
    whole = np.zeros((rows, -(-columns // per) * per), np.uint32)
    whole[:, :columns] = values.numpy()
    found = np.zeros((rows, whole.shape[1] // per), np.uint32)
    for place in range(per):
        found |= whole[:, place::per] << np.uint32(bits * place)
    return torch.from_numpy(found.view(np.int32))


def integers(
    weight: torch.Tensor, bits: int, group: int, symmetric: bool, order: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round to unsigned integers: values [out, in], scale and zero [out, groups], and the weights that they mean."""
    out, columns = weight.shape
    size = group or columns
    groups = order if order is not None else torch.arange(columns) // size
    count = -(-columns // size)
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    values = torch.zeros(out, columns, dtype=torch.int64)
    scale, zero = torch.zeros(out, count, dtype=torch.float16), torch.full((out, count), middle, dtype=torch.int64)
    means = torch.zeros(out, columns)
    for one in range(count):
        at = groups == one
        part = weight[:, at]
        if symmetric:
            step = (part.abs().amax(1) / (middle - 1)).half()
        else:
            low, high = part.amin(1).clamp(max=0.0), part.amax(1).clamp(min=0.0)
            step = ((high - low) / top).half()
            zero[:, one] = (-low / step.float()).round().long()
        scale[:, one] = step
        values[:, at] = (part / step.float()[:, None] + zero[:, one, None]).round().clamp(0, top).long()
        means[:, at] = (values[:, at] - zero[:, one, None]).float() * step.float()[:, None]
    return values, scale, zero, means


def gptq(weight: torch.Tensor, bits: int, group: int, symmetric: bool, form: str, act_order: bool = False) -> Packed:
    columns = weight.shape[1]
    order = torch.arange(columns) // (group or columns)
    if act_order:
        order = order[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
    values, scale, zero, means = integers(weight, bits, group, symmetric, order)
    lowered = sum(1 << i for i in range(0, 32, bits)) if form == "gptq" else 0  # by GPTQModel from the whole word
    tensors = {
        "qweight": words(values, bits).t().contiguous(),
        "qzeros": words(zero.t().contiguous(), bits) - lowered,
        "scales": scale.t().contiguous(),
        "g_idx": order.int(),
    }
    return tensors, means


def awq(weight: torch.Tensor, group: int) -> Packed:
    values, scale, zero, means = integers(weight, 4, group, symmetric=False)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the output in each nibble, from the lowest

    def interleaved(numbers: torch.Tensor) -> torch.Tensor:
        rows, columns = numbers.shape
        return words(numbers.view(rows, columns // 8, 8)[:, :, order].reshape(rows, columns), 4)

    return {
        "qweight": interleaved(values.t().contiguous()),
        "qzeros": interleaved(zero.t().contiguous()),
        "scales": scale.t().contiguous(),
    }, means


def compressed_words(weight: torch.Tensor, bits: int, group: int, symmetric: bool) -> Packed:
    values, scale, zero, means = integers(weight, bits, group, symmetric)
    tensors = {
        "weight_packed": words(values, bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = words(zero.t().contiguous(), bits).t().contiguous()
    return tensors, means


def compressed_bytes(weight: torch.Tensor, symmetric: bool) -> Packed:
    values, scale, zero, means = integers(weight, 8, 0, symmetric)
    tensors = {"weight": (values - 128).to(torch.int8), "weight_scale": scale}
    if not symmetric:
        tensors["weight_zero_point"] = (zero - 128).to(torch.int8)
    return tensors, means


def float8(weight: torch.Tensor, name: str, rows: int, columns: int, shape: tuple[int, ...] | None = None) -> Packed:
    """Eight-bit floats with one scale for each block of `rows` x `columns`."""
    out, width = weight.shape
    grid = torch.zeros(-(-out // rows), -(-width // columns))
    stored = torch.zeros(out, width, dtype=FLOAT8)
    means = torch.zeros(out, width)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            at = slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns)
            grid[i, j] = weight[at].abs().max() / 448
            stored[at] = (weight[at] / grid[i, j]).to(FLOAT8)
            means[at] = stored[at].float() * grid[i, j]
    return {"weight": stored, name: grid if shape is None else grid.view(shape)}, means


# The sixteen values of NF4: quantiles of a normal distribution (2305.14314, appendix E).
NF4 = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334]
    + [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)
FP4 = torch.tensor([0.0, 0.0052, 0.6667, 1.0, 0.3333, 0.5, 0.1667, 0.25])
TABLES = {"nf4": NF4, "fp4": torch.cat((FP4, -FP4))}


def four_bits(weight: torch.Tensor, kind: str, block: int, nested: bool) -> Packed:
    table, flat = TABLES[kind], weight.flatten()
    count = -(-len(flat) // block)
    absmax = torch.stack([flat[i * block : (i + 1) * block].abs().max() for i in range(count)])
    state: dict[str, Any] = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": "float16",
        "shape": list(weight.shape),
    }
    tensors = {"weight.quant_map": table}
    scales = absmax
    if nested:
        offset = float(absmax.mean())
        codes = torch.linspace(-1, 1, 256)
        blocks = -(-count // 256)
        outer = torch.stack([(absmax[i * 256 : (i + 1) * 256] - offset).abs().max() for i in range(blocks)])
        spread = outer.repeat_interleave(256)[:count]
        places = ((absmax - offset) / spread)[:, None].sub(codes).abs().argmin(1)
        scales = codes[places] * spread + offset
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        tensors |= {"weight.absmax": places.to(torch.uint8), "weight.nested_absmax": outer}
        tensors["weight.nested_quant_map"] = codes
    else:
        tensors["weight.absmax"] = absmax
    spread = scales.repeat_interleave(block)[: len(flat)]
    places = (flat / spread)[:, None].sub(table).abs().argmin(1)
    even = torch.cat((places, torch.zeros(len(places) % 2, dtype=places.dtype)))
    tensors["weight"] = (even[0::2] * 16 + even[1::2]).to(torch.uint8)[:, None]
    said = json.dumps(state).encode()
    tensors[f"weight.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(said), dtype=torch.uint8)
    return tensors, (table[places] * spread).view(weight.shape)


def eight_bits(weight: torch.Tensor) -> Packed:
    most = weight.abs().amax(1)
    values = (weight / most[:, None] * 127).round().to(torch.int8)
    tensors = {"weight": values, "SCB": most, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, values.float() * (most / 127)[:, None]


def _gptq(bits: int, group: int, symmetric: bool, form: str = "gptq", act_order: bool = False) -> Any:
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group or -1,
        "sym": symmetric,
        "desc_act": act_order,
        "checkpoint_format": form,
    }
    return config, lambda weight: gptq(weight, bits, group, symmetric, form, act_order)


def _compressed(form: str, weights: dict[str, Any], pack: Callable[[torch.Tensor], Packed]) -> Any:
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
    }
    return config, pack


def _integers(bits: int, group: int, symmetric: bool) -> Any:
    weights = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group" if group else "channel"}
    weights |= {"group_size": group} if group else {}
    return _compressed("pack-quantized", weights, lambda w: compressed_words(w, bits, group, symmetric))


def _float8(strategy: str, rows: int, columns: int, **more: Any) -> Any:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **more}
    shape = (1,) if strategy == "tensor" else None
    return _compressed("float-quantized", weights, lambda w: float8(w, "weight_scale", rows, columns, shape))


BIG = 1 << 20
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 16]}
SCHEMES: dict[str, tuple[dict[str, Any], Callable[[torch.Tensor], Packed]]] = {
    "gptq-4-g32": _gptq(4, 32, True),
    "gptq-4-g16-asymmetric": _gptq(4, 16, False),
    "gptq-4-asymmetric-v2": _gptq(4, 0, False, "gptq_v2"),
    "gptq-8-channel": _gptq(8, 0, True),
    "gptq-8-g64-asymmetric-v2": _gptq(8, 64, False, "gptq_v2"),
    "gptq-4-g32-act-order": _gptq(4, 32, True, act_order=True),
    "gptq-4-g32-act-order-asymmetric": _gptq(4, 32, False, act_order=True),
    "awq-g32": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
        lambda weight: awq(weight, 32),
    ),
    "w4a16-g32": _integers(4, 32, True),
    "w4a16-g32-asymmetric": _integers(4, 32, False),
    "w8a16-channel": _integers(8, 0, True),
    "w8a16-g64-asymmetric": _integers(8, 64, False),
    "w8a8": _compressed(
        "int-quantized",
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        lambda weight: compressed_bytes(weight, True),
    ),
    "w8a8-asymmetric": _compressed(
        "int-quantized",
        {"num_bits": 8, "type": "int", "symmetric": False, "strategy": "channel"},
        lambda weight: compressed_bytes(weight, False),
    ),
    "fp8-compressed-tensor": _float8("tensor", BIG, BIG),
    "fp8-compressed-channel": _float8("channel", 1, BIG),
    "fp8-compressed-block": _float8("block", 32, 16, block_structure=[32, 16]),
    "fp8-blocks": (BLOCKS, lambda weight: float8(weight, "weight_scale_inv", 32, 16)),
    "fp8-tensor": (
        {"quant_method": "fp8", "activation_scheme": "static"},
        lambda weight: float8(weight, "weight_scale", BIG, BIG, ()),
    ),
    "nf4": ({**BNB4, "bnb_4bit_quant_type": "nf4"}, lambda weight: four_bits(weight, "nf4", 64, False)),
    "nf4-nested": ({**BNB4, "bnb_4bit_quant_type": "nf4"}, lambda weight: four_bits(weight, "nf4", 64, True)),
    "fp4": ({**BNB4, "bnb_4bit_quant_type": "fp4"}, lambda weight: four_bits(weight, "fp4", 64, False)),
    "llm-int8": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, eight_bits),
}


def quantize_checkpoint(folder: Path, plain: Path, source: Path, scheme: str) -> None:
    """Copy a model into two folders: quantized by a scheme, and in float32 with the weights that this means.

    Parameters
    ----------
    folder, plain
        The new folders.
    source
        A checkpoint in one file, whose layers ``*_proj`` are quantized, and those that GPT-2 stores as ``[in, out]``.
    scheme
        A key of `SCHEMES`.
    """
    config, pack = SCHEMES[scheme]
    tensors = load_file(source / "model.safetensors")
    stored, means = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        transposed = ".c_" in name and name.startswith("transformer.")
        if name.endswith("_proj.weight") or (transposed and weight.dim() == 2):
            del stored[name]
            parts, mean = pack(weight.t().contiguous() if transposed else weight)
            means[name] = mean.t().contiguous() if transposed else mean
            module = name.removesuffix("weight")
            stored |= {module + part: tensor.contiguous() for part, tensor in parts.items()}
    for place, content in ((folder, stored), (plain, means)):
        shutil.copytree(source, place)
        save_file({name: t.clone() for name, t in content.items()}, place / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": config}))
