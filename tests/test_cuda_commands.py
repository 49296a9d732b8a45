"""`dlf demo` and the benchmarks on a GPU, or an emulated one, with shapes too small for meaningful times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.__main__ import app as bench
from bench.machine import file_name
from dlf import _C, zoo
from dlf.cli import app as dlf

TASKS = Path(__file__).parents[1] / "bench" / "family" / "tasks"
MICRO = "--large micro --small micro --threads 1".split()


def run(app: Any, *arguments: object) -> Result:
    return CliRunner().invoke(app, [str(one) for one in arguments])


def name_of_card() -> str:
    return _C.cuda_devices()[0].name


@pytest.mark.slow
@pytest.mark.cuda
def test_demo(tmp_path: Path) -> None:
    few = "--device cuda --problems 1 --show 0 --max-new-tokens 2".split()
    result = run(dlf, "demo", *few, "--json", "--plot", tmp_path / "trace.png")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["cards"] == {"cuda:0": name_of_card()}
    assert all(system["tokens"] == 2 for system in found["systems"].values())
    assert 0 <= found["systems"]["dynamic"]["mean_alpha"] <= 2


@pytest.mark.slow
@pytest.mark.cuda
def test_latency(tmp_path: Path) -> None:
    few = "--tokens 5 --prompt 3 --first 3 --repeats 1 --weights bf16 --skip transformers --skip transformers-alpha-1"
    result = run(bench, "latency", "--device", "cuda", *MICRO, *few.split(), "--output", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / f"{file_name('latency-micro-micro', 'cuda')}.json").read_text())
    assert found["machine"]["card"] == name_of_card() and found["title"].endswith(name_of_card())
    assert not found["notes"]  # CPU engines were not even looked for
    fused, alone = found["rows"]
    assert [fused["name"], alone["name"]] == ["dlf", "dlf-large"]
    assert fused["settings"]["device"] == "cuda" and fused["settings"]["memory"]["KV cache"] > 0
    # Each token has its own time: none was decoded during another engine's turn.
    assert min(fused["all_s"]) > 0.01 * max(fused["all_s"]) and len(fused["all_s"]) == 5


@pytest.mark.slow
@pytest.mark.cuda
def test_experts(tmp_path: Path) -> None:
    few = "--counts 1 --kinds full --rounds 2 --tokens 2 --shots 1".split()
    result = run(bench, "experts", "--device", "cuda", *MICRO, *few, "--output", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / f"{file_name('experts', 'cuda')}.json").read_text())
    assert found["machine"]["card"] == name_of_card() and name_of_card() in found["title"]
    assert [series["kind"] for series in found["series"]] == ["full"]
    assert "1 examples each" in found["kinds"]["in-context"]


@pytest.mark.slow
@pytest.mark.cuda
def test_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = tmp_path / "recipe.yaml"
    small, expert = zoo.path("small-base"), zoo.path("truths-expert")
    elsewhere = 'engine: {device_map: {large: "cuda:7", experts: "cuda:8"}}'
    recipe.write_text(f"large: {small}\nbase: {small}\nexperts: [{{model: {expert}}}]\n{elsewhere}\n")
    few = ["--tasks", "dlf_truths", "--include-path", TASKS, "--limit", 1, "--batch", 2, "--threads", 1]
    places = ["--work", tmp_path / "work", "--output", tmp_path / "found"]
    result = run(bench, "quality", "--device", "cuda", "--recipe", recipe, *few, *places)
    assert result.exit_code == 0, result.output
    assert f"on {name_of_card()}" in result.stdout
    assert json.loads((tmp_path / "found.json").read_text())["machine"]["card"] == name_of_card()


@pytest.mark.parametrize("command", ["latency", "experts", "quality"])
def test_a_device_that_is_not_there(command: str) -> None:
    result = run(bench, command, "--device", "cuda:77")
    assert result.exit_code == 2 and ("no CUDA" in result.output or "cuda:77" in result.output)
    result = run(bench, command, "--device", "gpu")
    assert result.exit_code == 2 and "gpu" in result.output
