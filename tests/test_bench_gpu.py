"""The GPU acceptance run, as far as it can be tested without a GPU."""

from __future__ import annotations

import json
import os
import re
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
    """Return the measured figures and the report's Markdown."""
    done = run(sys.executable, "-P", ROOT / "bench/gpu/report.py", folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "gpu-acceptance.json").read_text())
    return {f["figure"]: f["measured"] for f in found["figures"]}, (folder / "gpu-acceptance.md").read_text()


def printed(source: Path) -> set[str]:
    """Names of the fields that a C++ program prints as JSON."""
    return set(re.findall(r'\\"(\w+)\\":', source.read_text()))


def test_a_report_of_nothing_says_so(tmp_path: Path) -> None:
    figures, table = report(tmp_path)
    assert set(figures.values()) == {None}
    assert table.count("not measured") == len(figures)


def test_a_report_holds_what_was_measured(tmp_path: Path) -> None:
    times = {"median_ms": 10.0, "p10_ms": 9.0, "p90_ms": 11.0}
    dlf = {"shape": "13b+1.1b", "part": "dlf", "copy_gb_s": 3000.0, "bytes_ratio": 1.17, "fused_over_alone": 1.19}
    dlf["fused"] = times | {"gb_s": 2700.0, "copy_share": 0.9, "busy_host_ratio": 1.01}
    dlf["fused, not early"] = times | {"over_usual": 1.06, "same_alpha": True}
    eager = {"shape": "13b+1.1b", "part": "eager", "loop": times | {"median_ms": 50.0}}
    broken = {"shape": "13b+1.1b", "part": "compiled", "error": "a | b"}
    for row in (dlf, eager, broken):
        (tmp_path / f"steps-{row['shape']}-{row['part']}.json").write_text(json.dumps(row))
    first = {"lengths": [{}, {}], "very_first_ms": 30.0, "unseen_over_again": {"median": 1.0, "most": 1.1}}
    serving = {
        "first": first,
        "joining": {"alone": times, "longest_gap_ms": 200.0, "over_step_and_chunk": 1.05},
        "batch": {"rows": [times | {"batch": size, "tokens_s": 100.0 * size} for size in (8, 16, 64)]},
        "quantized": {"rows": [times | {"precision": "int8", "copy_share": 0.8}]},
    }
    for name, found in serving.items():
        (tmp_path / f"serving-{name}.json").write_text(json.dumps({"part": name} | found))
    claim = {"claim": "speculative / plain fused, greedy", "target": 0.5, "found": 0.4}
    (tmp_path / "speculate.json").write_text(json.dumps({"claims": [claim], "completions_that_differ": 0, "rows": []}))
    product = {"model": "13B", "product": "o", "weights": "int4", "way": "direct", "rows": 1}
    product |= {"median_us": 12.26, "gb_s": 1203}
    assert set(product) == printed(ROOT / "bench/gpu/linear_time.cc")
    (tmp_path / "linear.jsonl").write_text(json.dumps(product))
    solver = {"what": "solver", "vocab": 32000, "experts": 1, "batch": 1, "combine": "select", "good": True}
    times_of = {"peaked": 8.0, "long tail": 9.0}
    chosen = [solver | {"logits": kind, "median_us": us} for kind, us in times_of.items()]
    joint = solver | {"experts": 4, "combine": "joint", "batch": 64, "logits": "peaked", "median_us": 280.0}
    sampler = {"what": "sampler", "vocab": 151936, "batch": 1, "options": "top-p 0.95", "median_us": 16.0}
    solved = [row | {"min_us": 1.0, "sweeps": 2.25} for row in (*chosen, joint)]
    sampler["min_us"] = 1.0
    assert {*solved[0], *sampler} == printed(ROOT / "bench/gpu/solver_time.cc")
    lines = [*solved, sampler, sampler | {"options": "greedy", "median_us": 30.0}]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "solver.jsonl").write_text(text + '\n{"what": "solv')
    (tmp_path / "checks.tsv").write_text("build\tpassed\t100\ncpp-a_test\tfailed (8)\t3\n")
    (tmp_path / "machine.txt").write_text("name, driver, memory: a card, 1, 2\n")
    figures, table = report(tmp_path)
    assert {figure: value for figure, value in figures.items() if value is not None} == {
        "fused step / large alone, 13B + 2 × 1.1B": 1.19,
        "bandwidth / a device copy: fused, 13B + 2 × 1.1B": 0.9,
        "transformers, eager paper loop / dlf": 5.0,
        "solver, V = 32 000, T = 1, batch 1 (µs)": 9.0,
        "joint solver, V = 32 000, T = 4, batch 64 (µs)": 280.0,
        "sampler, top-p, V = 151 936, batch 1 (µs)": 16.0,
        "13B alone, int8 (ms)": 10.0,
        "first token, a new length / again, the slowest of 40": 1.1,
        "fused tokens/s, batch 16": 1600.0,
        "fused tokens/s, batch 64": 6400.0,
        "speculative / plain fused, greedy": 0.4,
        "host waits per token in steady state": 0.0,
    }
    for line in (
        "13B + 2 × 1.1B | ≤ 1.12 | 1.19 | no",
        "batch 16 | ≥ 1750 | 1600 | no",
        "batch 64 | ≥ 6000 | 6400 | yes",
    ):
        assert line in table
    assert "| solver | 32000 | 1 | 1 | select, long tail | 9.00 | 1.00 | 2.25 |" in table
    assert "| cpp-a_test | failed (8) | 3 |" in table
    assert "takes 1.060 of the usual time; α is the same" in table
    assert "| int4 | direct | 1 | 13B o 12.3/1203 |" in table
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


def test_what_was_built_elsewhere_is_run_program_by_program(tmp_path: Path) -> None:
    built, output = tmp_path / "built", tmp_path / "out"
    programs = {
        "built/bin/good_cuda_test": "exit 0",
        "built/bin/bad_cuda_test": "exit 3",
        "built/bin/late_cuda_test": '[ "${DLF_CUDA_EARLY:-1}" = 1 ]',
        "built/bin/dlf_solver_time": """[ "$*" = --targets ] && echo '{"what": "solver"}'""",
        "built/bin/dlf_linear_time": """echo '{"model": "13B"}'; echo "$LD_LIBRARY_PATH" >&2""",
        "python": "echo 90",  # answers all queries of the script: the capability, the machine and the library path
    }
    (built / "dlf").mkdir(parents=True)
    (built / "bin").mkdir()
    (built / "dlf" / "_C.so").touch()
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    arguments = [output, "--prebuilt", built, "--only", "build,cpp,late,solver,linear"]
    done = run("bash", ROOT / "bench/gpu_acceptance.sh", *arguments, PYTHON=str(tmp_path / "python"))
    assert done.returncode == 1, done.stderr
    states = dict(line.split("\t")[:2] for line in (output / "checks.tsv").read_text().splitlines())
    assert states == {
        "cpp-bad_cuda_test": "failed (3)",
        "cpp-good_cuda_test": "passed",
        "cpp-late_cuda_test": "passed",
        "solver": "passed",
        "linear": "passed",
        "late-bad_cuda_test": "failed (3)",
        "late-good_cuda_test": "passed",
        "late-late_cuda_test": "failed (1)",
        "total": "failed",
    }
    assert (output / "solver.jsonl").read_text() == '{"what": "solver"}\n'
    assert (output / "linear.log").read_text().startswith("90")


def test_a_folder_without_binaries_is_refused(tmp_path: Path) -> None:
    done = run("bash", ROOT / "bench/gpu_acceptance.sh", tmp_path / "out", "--prebuilt", tmp_path)
    assert done.returncode == 2
    assert "prebuild.sh" in done.stderr


def test_the_script_that_builds_checks_its_arguments(tmp_path: Path) -> None:
    script = ROOT / "bench/gpu/prebuild.sh"
    assert "--prebuilt FOLDER" in run("bash", script, "--help").stdout
    for arguments in ([], [tmp_path, "--arch"], [tmp_path, tmp_path], [tmp_path, "--none"]):
        assert run("bash", script, *arguments).returncode == 2


@pytest.mark.cuda
def test_steps_of_a_tiny_shape(tmp_path: Path) -> None:
    arguments = ["--shapes", "tiny", "--steps", 2, "--parts", "dlf", "--output", tmp_path]
    done = run(sys.executable, "-P", ROOT / "bench/gpu/steps.py", *arguments)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "steps-tiny-dlf.json").read_text())
    assert row["fused_over_alone"] > 0
    assert row["fused"]["read_bytes"] > row["alone"]["read_bytes"]
    assert row["fused, not early"]["same_alpha"]
