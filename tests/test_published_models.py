"""Models of published quantized checkpoints: the numbers of the same weights in floats, merged and adapted too."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import draw, make_config, make_model, make_tokenizer, write_adapter
from reference.published import SCHEMES, quantize_checkpoint
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

import dlf
from dlf.checkpoints.source import open_checkpoint
from dlf.cli.inspect import describe
from dlf.errors import CheckpointError

TEXT = " jumps over the lazy dog, and the dog sleeps on"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "plain"
    config = make_config("llama3", intermediate_size=128)
    draw(LlamaForCausalLM(config).float(), seed=11).save_pretrained(folder)
    return make_tokenizer(folder)


def pair(tmp_path: Path, plain: Path, scheme: str) -> tuple[Path, Path]:
    """Folders of a quantized model, and of one with the same weights in floats."""
    folder, floats = tmp_path / scheme, tmp_path / "floats"
    quantize_checkpoint(folder, floats, plain, scheme)
    return folder, floats


def logprobs(large: Any, **options: Any) -> np.ndarray:
    with dlf.Engine(large, **({"threads": 1, "dtype": "float32"} | options)) as engine:
        return engine.score("The quick brown fox", TEXT).logprobs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_are_those_of_the_dequantized_model(tmp_path: Path, plain: Path, scheme: str) -> None:
    folder, floats = pair(tmp_path, plain, scheme)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = logprobs(folder, weights="fp32")
    np.testing.assert_allclose(found, logprobs(floats), atol=1e-4)
    assert np.abs(found - logprobs(plain)).max() > 1e-3  # it was quantized at all


INTEGERS = [name for name in SCHEMES if not name.startswith(("fp8", "nf4", "fp4")) and "act-order" not in name]


@pytest.mark.parametrize("scheme", INTEGERS)
def test_integers_run_at_their_own_width(tmp_path: Path, plain: Path, scheme: str) -> None:
    """Only the rounding of activations to 8 bits differs from floats."""
    folder, floats = pair(tmp_path, plain, scheme)
    expected = logprobs(floats)
    error = np.abs(logprobs(folder) - expected)
    assert 0 < error.max() < 0.03 * np.abs(expected).max()


@pytest.mark.cuda
@pytest.mark.parametrize("scheme", ["gptq-4-g32", "awq-g32", "gptq-8-channel"])
def test_integers_on_cuda_are_exact(tmp_path: Path, plain: Path, scheme: str) -> None:
    folder, floats = pair(tmp_path, plain, scheme)
    np.testing.assert_allclose(logprobs(folder, device="cuda"), logprobs(floats, device="cuda"), atol=1e-4)


@pytest.mark.cuda
@pytest.mark.parametrize("scheme", ["gptq-4-g32", "awq-g32", "w8a8", "fp8-blocks", "nf4-nested"])
def test_logits_on_cuda(tmp_path: Path, plain: Path, scheme: str) -> None:
    folder, floats = pair(tmp_path, plain, scheme)
    found = logprobs(folder, weights="fp32", device="cuda")
    np.testing.assert_allclose(found, logprobs(floats, device="cuda"), atol=1e-4)


OWN_WIDTH = {
    "gptq-4-g32": "int4, float16 scale for 32 inputs",
    "gptq-4-asymmetric-v2": "int4, float16 scale and zero point for each channel",
    "gptq-4-g16-asymmetric": "int4, float16 scale and zero point for 16 inputs",
    "gptq-8-channel": "int8, float16 scale for each channel",
    "gptq-8-g64-asymmetric-v2": "int8, float16 scale and zero point for 64 inputs",
    "awq-g32": "int4, float16 scale and zero point for 32 inputs",
    "w4a16-g32": "int4, float16 scale for 32 inputs",
    "w4a16-g32-asymmetric": "int4, float16 scale and zero point for 32 inputs",
    "w8a8": "int8, float16 scale for each channel",
    "llm-int8": "int8, float32 scale for each channel",
}


@pytest.mark.parametrize("scheme", OWN_WIDTH)
def test_tiles_keep_the_form_of_the_file(tmp_path: Path, plain: Path, scheme: str) -> None:
    folder, _ = pair(tmp_path, plain, scheme)
    assert {str(one) for one in open_checkpoint(folder).config.packed.values()} == {OWN_WIDTH[scheme]}


@pytest.mark.parametrize("scheme", ["gptq-4-g32-act-order", "nf4", "fp8-blocks"])
def test_other_numbers_become_floats(tmp_path: Path, plain: Path, scheme: str) -> None:
    folder, floats = pair(tmp_path, plain, scheme)
    assert not open_checkpoint(folder).config.packed
    np.testing.assert_allclose(logprobs(folder), logprobs(floats), atol=1e-4)


def test_shards_may_part_the_tensors_of_a_matrix(tmp_path: Path, plain: Path) -> None:
    folder, _ = pair(tmp_path, plain, "gptq-4-g32")
    whole = logprobs(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{1 + ('scales' in name)}.safetensors" for name in tensors}
    for file in set(places.values()):
        save_file({n: t for n, t in tensors.items() if places[n] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    np.testing.assert_array_equal(logprobs(folder), whole)
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-2.safetensors is missing"):
        logprobs(folder)


def test_biases_of_zeros_lie_unused_and_others_are_a_warning(tmp_path: Path, plain: Path) -> None:
    folder, _ = pair(tmp_path, plain, "gptq-4-g32")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.bias"] = torch.zeros(128, dtype=torch.float16)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_checkpoint(folder)
    tensors["model.layers.1.mlp.up_proj.bias"][3] = 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.warns(RuntimeWarning, match="up_proj.bias"):
        open_checkpoint(folder)


def test_matrices_stay_packed_until_a_type_for_them_is_chosen(tmp_path: Path, plain: Path) -> None:
    folder, _ = pair(tmp_path, plain, "w4a16-g32")
    source = open_checkpoint(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    [packed] = source.packed(name)
    assert packed.bits == 4 and packed.group == 32
    torch.testing.assert_close(source.read(name), packed.dequantize())
    assert source.layout(name).dtype == "F32"
    assert "model.norm.weight" not in source.config.packed


def test_inspect_says_how_matrices_are_quantized(tmp_path: Path, plain: Path) -> None:
    folder, floats = pair(tmp_path, plain, "gptq-4-g32")
    [form] = describe(str(folder))["quantized"]
    sizes = form.pop("bytes"), form.pop("file_bytes")
    assert form == {"kind": "GPTQ 4-bit, groups of 32", "runs_as": "int4, float16 scale for 32 inputs", "tensors": 21}
    assert 0.8 < sizes[0] / sizes[1] < 1  # GPTQ has zero points where all are equal
    assert describe(str(floats))["quantized"] is None


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_chooses_another_type(tmp_path: Path, plain: Path, weights: str) -> None:
    folder, floats = pair(tmp_path, plain, "gptq-8-channel")
    np.testing.assert_array_equal(logprobs(folder, weights=weights), logprobs(floats, weights=weights))


def test_adapters_fuse_and_fold_on_a_quantized_base(tmp_path: Path, plain: Path) -> None:
    folder, floats = pair(tmp_path, plain, "awq-g32")
    adapter = write_adapter(tmp_path / "adapter", plain, seed=5)
    for merge in (False, True):
        found, expected = (
            logprobs(
                base,
                base=base,
                experts=[dlf.Lora(base, adapter, merge=merge)],
                alpha=[1.0],
                combine="static",
                weights="fp32",
            )
            for base in (folder, floats)
        )
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_merging_writes_floats(tmp_path: Path, plain: Path) -> None:
    folder, floats = pair(tmp_path, plain, "nf4")
    merged, expected = (
        dlf.TaskArithmetic(base, {plain: 0.5}).save(tmp_path / f"merged-{base.name}") for base in (folder, floats)
    )
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    np.testing.assert_allclose(logprobs(merged), logprobs(expected), atol=1e-4)


def test_an_unknown_scheme_is_named_with_what_is_supported(tmp_path: Path, plain: Path) -> None:
    folder, _ = pair(tmp_path, plain, "nf4")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "quip"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json: 'quantization_config'.*one of gptq, awq.*not 'quip'"):
        dlf.Engine(folder)


@pytest.mark.parametrize("scheme", ["gptq-4-g32", "fp8-blocks"])
@pytest.mark.parametrize("name", ["phi3", "qwen3_moe", "gpt2"])  # fused projections, experts, transposed matrices
def test_other_families(tmp_path: Path, name: str, scheme: str) -> None:
    folder, floats = pair(tmp_path, make_model(tmp_path / "source", name), scheme)
    np.testing.assert_allclose(logprobs(folder, weights="fp32"), logprobs(floats), atol=1e-4)
