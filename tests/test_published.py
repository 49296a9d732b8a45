"""Quantized matrices of published checkpoints: unpacked as they were packed, and refused where they are not known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference.published import FLOAT8, SCHEMES, float8, four_bits, gptq

from dlf.checkpoints.packed import PackedMatrix
from dlf.checkpoints.precision import TensorLayout
from dlf.checkpoints.published import METHODS, StoredLayer, StoredMatrix, read_scheme
from dlf.errors import CheckpointError

MODULE = "model.layers.0.mlp.up_proj"
TYPES = {
    torch.int32: "I32",
    torch.int64: "I64",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.float16: "F16",
    torch.float32: "F32",
    FLOAT8: "F8_E4M3",
}


def matrix(out: int = 48, columns: int = 128) -> torch.Tensor:
    return torch.randn(out, columns, generator=torch.Generator().manual_seed(out + columns)) * 0.1 + 0.02


def layout(tensors: dict[str, torch.Tensor]) -> dict[str, TensorLayout]:
    return {f"{MODULE}.{part}": TensorLayout(TYPES[t.dtype], tuple(t.shape)) for part, t in tensors.items()}


def stored(config: dict[str, Any], tensors: dict[str, torch.Tensor], shape: tuple[int, int]) -> StoredMatrix | None:
    scheme = read_scheme(config, "config.json", [MODULE])
    return scheme.matrix(StoredLayer("folder", MODULE, shape, layout(tensors)))


def unpacked(config: dict[str, Any], tensors: dict[str, torch.Tensor], shape: tuple[int, int]) -> Any:
    found = stored(config, tensors, shape)
    assert found is not None
    return found.read(lambda name: tensors[name.removeprefix(f"{MODULE}.")], "folder")


@pytest.mark.parametrize("shape", [(48, 128), (64, 96)], ids=str)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_matrix_is_unpacked_as_it_was_packed(scheme: str, shape: tuple[int, int]) -> None:
    config, pack = SCHEMES[scheme]
    tensors, means = pack(matrix(*shape))
    found = unpacked(config, tensors, shape)
    if isinstance(found, PackedMatrix):
        assert found.shape == shape
        found = found.dequantize()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, means, rtol=1e-6, atol=1e-9)


PACKED = {"gptq": True, "awq": True, "w4": True, "w8": True, "llm": True, "fp": False, "nf": False}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_integers_stay_packed_and_symmetric_ones_are_signed(scheme: str) -> None:
    config, pack = SCHEMES[scheme]
    found = unpacked(config, pack(matrix())[0], (48, 128))
    packs = next(kind for prefix, kind in PACKED.items() if scheme.startswith(prefix)) and "act-order" not in scheme
    assert isinstance(found, PackedMatrix) == packs
    if isinstance(found, PackedMatrix):
        signed = "asymmetric" not in scheme and not scheme.startswith("awq")
        assert (found.zero is None, found.values.dtype) == (signed, torch.int8 if signed else torch.uint8)
        assert found.bits == (4 if any(width in scheme for width in ("gptq-4", "awq", "w4")) else 8)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_layer_with_its_plain_weight_is_none(scheme: str) -> None:
    config = SCHEMES[scheme][0]
    assert stored(config, {"weight": matrix()}, (48, 128)) is None


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_shapes_and_types_are_refused_from_the_headers(scheme: str) -> None:
    config, pack = SCHEMES[scheme]
    tensors = pack(matrix())[0]
    for shape in ((48, 256), (56, 128), (1 << 40, 1 << 40)):
        with pytest.raises(CheckpointError, match=r"folder has .*up_proj"):
            found = stored(config, tensors, shape)
            assert found is not None
            found.read(lambda name: tensors[name.removeprefix(f"{MODULE}.")], "folder has")
    for part in tensors.keys() - {"g_idx", "weight_shape", "weight_format"}:
        other = dict(tensors)
        other[part] = tensors[part].flatten()[:-1].to(torch.int64)
        try:
            found = stored(config, other, (48, 128))
        except CheckpointError as error:
            assert part in str(error)
        else:
            assert found is None and part in ("qweight", "weight", "weight_packed")


def test_a_zero_of_0_borrows_from_its_neighbour_as_gptqmodel_writes_it() -> None:
    weight = matrix(48, 128).abs()  # every zero is 0
    tensors, means = gptq(weight, 4, 32, False, "gptq_v2")
    assert int(tensors["qzeros"].abs().max()) == 0
    tensors["qzeros"] -= 0x11111111
    config = SCHEMES["gptq-4-g16-asymmetric"][0] | {"group_size": 32}
    torch.testing.assert_close(unpacked(config, tensors, (48, 128)).dequantize(), means)


def test_act_order_in_ascending_groups_stays_packed_and_wild_groups_are_refused() -> None:
    config, _ = SCHEMES["gptq-4-g32"]
    tensors, _ = gptq(matrix(), 4, 32, True, "gptq")
    for value in (-1, 4, 1 << 30):
        tensors["g_idx"][5] = value
        with pytest.raises(CheckpointError, match=r"folder: 'model.*groups than the 4"):
            unpacked(config, tensors, (48, 128))


def test_fp8_keeps_shapes_that_are_no_multiple_of_the_block() -> None:
    tensors, means = float8(matrix(50, 70), "weight_scale_inv", 32, 16)
    config = SCHEMES["fp8-blocks"][0]
    torch.testing.assert_close(unpacked(config, tensors, (50, 70)), means)


def test_bitsandbytes_checks_its_state() -> None:
    config = SCHEMES["nf4"][0]
    tensors, _ = four_bits(matrix(), "nf4", 64, False)
    part = "weight.quant_state.bitsandbytes__nf4"
    for text, complaint in (
        (b"{", "quant_state is not valid JSON"),
        (b"[]", "must hold a JSON object"),
        (b'{"quant_type": "nf4", "shape": [48, 64]}', r"'shape' must be \[48, 128\]"),
        (b'{"quant_type": "nf4", "shape": [48, 128], "blocksize": 0}', "'blocksize' must be an integer from 2"),
        (b'{"quant_type": "nf4", "shape": [48, 128], "blocksize": 32}', "'blocksize' must be the size of 96 blocks"),
    ):
        tensors[part] = torch.tensor(list(text), dtype=torch.uint8)
        with pytest.raises(CheckpointError, match=complaint):
            unpacked(config, tensors, (48, 128))


COMPRESSED: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
FOUR = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def groups(*groups: tuple[list[str], dict[str, Any]]) -> dict[str, Any]:
    return COMPRESSED | {"config_groups": {str(i): {"targets": t, "weights": w} for i, (t, w) in enumerate(groups)}}


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "quant_method.*gptq, awq, compressed-tensors, fp8, bitsandbytes"),
        ({"quant_method": "hqq"}, "quant_method' must be one of gptq.*not 'hqq'"),
        ({"quant_method": ["gptq"]}, "quant_method"),
        ({"quant_method": "gptq", "bits": 3}, "'bits' must be 4 or 8.*not 3"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "one of gptq, gptq_v2, not 'marlin'"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "'group_size' must be an integer"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down": {"bits": 8}}}, "'dynamic'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'version' must be 'gemm'"),
        ({"quant_method": "awq", "bits": 8, "version": "gemm"}, "'bits' must be 4"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "'zero_point' must be true"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "'weight_block_size' must be a list of 2"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "'fmt' must be 'e4m3'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "af4"}, "nf4, fp4"),
        (COMPRESSED | {"format": "nvfp4-pack-quantized"}, "'format' must be one of pack-quantized"),
        (COMPRESSED | {"config_groups": {}}, "'config_groups' must be an object with 1 to 64"),
        (groups((["Linear"], FOUR | {"num_bits": 3})), "config_groups '0' weights: 'num_bits' must be 4 or 8"),
        (groups((["Linear"], FOUR | {"strategy": "tensor_group"})), "'strategy' must be one of tensor, channel"),
        (groups(("Linear", FOUR)), "'targets' must be a list"),  # type: ignore[arg-type]
        (groups((["re:("], FOUR), (["Linear"], FOUR)), "'targets' has the pattern"),
        (groups((["Linear"], FOUR)) | {"transform_config": {"a": 1}}, "'transform_config' must be absent"),
        (groups((["Linear"], FOUR)) | {"sparsity_config": {"format": "sparse-24"}}, "'sparsity_config'"),
    ],
)
def test_unknown_schemes_and_options_are_named(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_scheme(config, "config.json", [MODULE])


def test_every_method_has_a_packer_in_these_tests() -> None:
    assert {config["quant_method"] for config, _ in SCHEMES.values()} == METHODS.keys()


def test_the_most_particular_target_chooses_the_group() -> None:
    tensors, _ = SCHEMES["w8a16-channel"][1](matrix())
    eight = {"num_bits": 8, "type": "int", "strategy": "channel"}
    for targets in ([MODULE], [r"re:.*mlp\.up"], ["re:model"]):
        config = groups((["Linear"], FOUR), (targets, eight))
        assert unpacked(config, tensors, (48, 128)).bits == 8
    both = groups(([r"re:.*up_proj$"], FOUR), ([MODULE], eight))
    assert unpacked(both, tensors, (48, 128)).bits == 8
    with pytest.raises(CheckpointError, match="that no group of config_groups targets"):
        unpacked(groups((["re:.*down_proj"], FOUR), (["lm_head"], FOUR)), tensors, (48, 128))
