"""The acceptance run on a GPU, as far as it goes without one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [str(word) for word in command]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | environment, timeout=120)


def report(folder: Path) -> tuple[dict[str, float | None], str]:
    """Measured figures, and the table."""
    done = run(sys.executable, "-P", ROOT / "bench/gpu/report.py", folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "gpu-acceptance.json").read_text())
    return {f["figure"]: f["measured"] for f in found["figures"]}, (folder / "gpu-acceptance.md").read_text()


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    figures, table = report(tmp_path)
    assert set(figures.values()) == {None}
    assert table.count("not measured") == len(figures)


def test_a_report_holds_what_was_measured(tmp_path: Path) -> None:
    times = {"median_ms": 10.0, "p10_ms": 9.0, "p90_ms": 11.0}
    dlf = {"shape": "13b+1.1b", "part": "dlf", "copy_gb_s": 3000.0, "bytes_ratio": 1.17, "fused_over_alone": 1.19}
    dlf["fused"] = times | {"gb_s": 2700.0, "copy_share": 0.9, "busy_host_ratio": 1.01}
    dlf["fused, early"] = times | {"over_usual": 0.95, "same_alpha": True}
    eager = {"shape": "13b+1.1b", "part": "eager", "loop": times | {"median_ms": 50.0}}
    broken = {"shape": "13b+1.1b", "part": "compiled", "error": "a | b"}
    for row in (dlf, eager, broken):
        (tmp_path / f"steps-{row['shape']}-{row['part']}.json").write_text(json.dumps(row))
    solver = {"what": "solver", "vocab": 32000, "experts": 1, "batch": 1, "combine": "select", "good": True}
    lines = [solver | {"median_us": us, "min_us": us, "passes": 3.0, "logits": "peaked"} for us in (8.0, 9.0)]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "solver.jsonl").write_text(text + '\n{"what": "solv')
    (tmp_path / "checks.tsv").write_text("build\tpassed\t100\nctest\tfailed (8)\t3\n")
    (tmp_path / "machine.txt").write_text("name, driver, memory: a card, 1, 2\n")
    figures, table = report(tmp_path)
    assert list(figures.values()) == [1.19, None, 0.9, 9.0, None, 0.0, 5.0, None]
    assert "| ctest | failed (8) | 3 |" in table
    assert "takes 0.950 of the usual time; α is the same" in table
    assert "- name, driver, memory: a card, 1, 2" in table


def test_the_script_checks_its_arguments(tmp_path: Path) -> None:
    script = ROOT / "bench/gpu_acceptance.sh"
    assert "OUTPUT_FOLDER" in run("bash", script, "--help").stdout
    for arguments in ([], [tmp_path, "--only", "nothing"], [tmp_path, "--budget", "x"], [tmp_path, "--none"]):
        assert run("bash", script, *arguments).returncode == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_the_script_needs_a_device(tmp_path: Path) -> None:
    done = run("bash", ROOT / "bench/gpu_acceptance.sh", tmp_path / "out", PYTHON=sys.executable)
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


@pytest.mark.cuda
def test_steps_of_a_tiny_shape(tmp_path: Path) -> None:
    arguments = ["--shapes", "tiny", "--steps", 2, "--parts", "dlf", "--output", tmp_path]
    done = run(sys.executable, "-P", ROOT / "bench/gpu/steps.py", *arguments)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "steps-tiny-dlf.json").read_text())
    assert row["fused_over_alone"] > 0
    assert row["fused"]["read_bytes"] > row["alone"]["read_bytes"]
    assert row["fused, early"]["same_alpha"]
