"""`dlf convert`: folders with the numbers of their source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from models import make_model
from reference.published import quantize_checkpoint
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import dlf
from dlf.checkpoints import write
from dlf.checkpoints.precision import QUANTIZATIONS, Precision
from dlf.checkpoints.quantized import formats_of, load_packed, load_quantized
from dlf.checkpoints.source import open_checkpoint
from dlf.cli import app
from dlf.errors import CheckpointError


def test_floats_keep_their_types_and_all_files(family: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(family["base"], source)
    tensors = load_file(source / "model.safetensors")
    mixed = {name: one if "norm" in name else one.bfloat16() for name, one in tensors.items()}
    save_file(mixed, source / "model.safetensors", {"format": "pt"})
    folder = dlf.convert(source, tmp_path / "folder")
    found = load_file(folder / "model.safetensors")
    assert found.keys() == mixed.keys()
    for name, one in found.items():
        assert one.dtype == mixed[name].dtype and torch.equal(one, mixed[name])
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (source / name).read_bytes()


def test_a_type_is_that_of_all_tensors_and_of_the_configuration(family: dict[str, Path], tmp_path: Path) -> None:
    for number, options in enumerate(({"weights": "bf16"}, {"dtype": "bfloat16"})):
        folder = dlf.convert(family["base"], tmp_path / str(number), **options)
        config = json.loads((folder / "config.json").read_text())
        assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"
        assert {one.dtype for one in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
        with dlf.Engine(folder) as converted, dlf.Engine(family["base"], dtype="bfloat16") as original:
            text = "the quick brown"
            tokens = [engine.generate(text, max_new_tokens=8).tokens for engine in (converted, original)]
        assert tokens[0] == tokens[1]


def test_quantized_checkpoints_become_floats_of_the_declared_type(
    family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize_checkpoint(tmp_path / "nf4", tmp_path / "plain", family["base"], "nf4")
    monkeypatch.setattr(write, "MAX_SHARD_BYTES", 60_000)
    folder = dlf.convert(tmp_path / "nf4", tmp_path / "folder", weights="fp32")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config.get("dtype", config.get("torch_dtype")) == "float32"
    expected = load_file(tmp_path / "plain" / "model.safetensors")
    for file in folder.glob("*.safetensors"):
        for name, one in load_file(file).items():
            torch.testing.assert_close(one, expected[name], rtol=1e-6, atol=1e-8)


def tiles(folder: Path, weights: str | None) -> dict[str, torch.Tensor]:
    """The tensors that a model is made of."""
    source = open_checkpoint(folder)
    precision = Precision.of("auto", weights)
    formats = formats_of(source.config, precision)
    if weights is None:
        return load_packed(source, torch.float32, formats)
    return load_quantized(source, torch.float32, QUANTIZATIONS[weights])


@pytest.mark.parametrize("weights", ["int8", "int4", "int4-g64"])
@pytest.mark.parametrize("model", ["base", "tied"])
def test_quantized_layers_are_bit_identical_to_quantizing_at_load(
    family: dict[str, Path], tmp_path: Path, weights: str, model: str
) -> None:
    source = family["base"] if model == "base" else make_model(tmp_path / "tied", "smollm", intermediate_size=120)
    folder = dlf.convert(source, tmp_path / "folder", weights)
    expected, found = tiles(source, weights), tiles(folder, None)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert one.dtype == expected[name].dtype and torch.equal(one, expected[name])
    text = "the quick brown"
    with dlf.Engine(source, weights=weights) as original:
        tokens = original.generate(text, max_new_tokens=8).tokens
    for same in (None, weights):
        with dlf.Engine(folder, weights=same) as converted:
            assert converted.generate(text, max_new_tokens=8).tokens == tokens


def test_nothing_is_overwritten_and_nothing_half_written_stays(family: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(FileExistsError, match="full is a folder that is not empty"):
        dlf.convert(family["base"], tmp_path / "full")
    source = tmp_path / "source"
    shutil.copytree(family["base"], source)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e30
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.norm.weight.*not finite in torch.float16"):
        dlf.convert(source, tmp_path / "folder", weights="fp16")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["full", "source"]


def test_the_command(family: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    result = CliRunner().invoke(app, ["convert", str(family["base"]), str(folder), "--weights", "bf16", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["bytes"] == sum(file.stat().st_size for file in folder.iterdir())
    assert (found["output"], found["weights"]) == (str(folder), "bf16")
