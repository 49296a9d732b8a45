"""``dlf merge``, and merged models in ``dlf cache``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

import dlf
from dlf.cli import app
from dlf.experts.merged import merged_experts


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DLF_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DLF_TRACEBACK", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path / "cache"


def run(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_merge_is_what_python_gets(family: dict[str, Path], tmp_path: Path) -> None:
    a, b, output = family["expert-a"], family["expert-b"], tmp_path / "merged"
    experts = ("--expert", f"{a}:0.4", "--expert", f"{b}:-0.2")
    options = (
        "--method dare_ties --density 0.5 --density 0.7 --lambda 1.5 --seed 3 --normalize --dtype bfloat16".split()
    )
    result = run("merge", family["base"], *experts, *options, "--output", output, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found.pop("seconds") >= 0
    assert found.pop("bytes") == sum(file.stat().st_size for file in output.iterdir())
    assert found == {
        "output": str(output),
        "base": str(family["base"]),
        "experts": {str(a): 0.4, str(b): -0.2},
        "method": "dare_ties",
        "density": {str(a): 0.5, str(b): 0.7},
        "normalize": True,
        "lambda": 1.5,
        "seed": 3,
        "parameters": sum(one.numel() for one in load_file(output / "model.safetensors").values()),
    }
    density = {a: 0.5, b: 0.7}
    same = dlf.TaskArithmetic(family["base"], {a: 0.4, b: -0.2}, "dare_ties", density, True, 1.5, 3, "bfloat16")
    folder = same.save(tmp_path / "same")
    assert (folder / "model.safetensors").read_bytes() == (output / "model.safetensors").read_bytes()


def test_merge_says_what_it_wrote(family: dict[str, Path], tmp_path: Path) -> None:
    result = run("merge", family["base"], "--expert", f"{family['expert-a']}:1", "--output", tmp_path / "merged")
    assert result.exit_code == 0 and result.stderr == ""
    assert re.fullmatch(rf"{tmp_path}/merged: \S+ [KM]iB, task_arithmetic of \S+expert-a in \S+ s\n", result.stdout)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--expert", "a"], "--expert 'a' has no weight: write PATH:WEIGHT, for example a:0.4"),
        (["--expert", "a:much"], "--expert 'a:much' has no weight"),
        (["--expert", ":1"], "has no weight"),
        (["--expert", "a:nan"], "the weight of 'a' is nan"),
        (["--expert", "a:1", "--expert", "a:2"], "--expert 'a' is given twice"),
        (["--expert", "a:1", "--density", "0.5", "--density", "1"], "1 --expert and 2 --density"),
        (["--expert", "a:1", "--method", "soup"], "method is 'soup'"),
        (["--expert", "a:1", "--density", "0.5"], "density has no effect"),
        (["--expert", "missing:1"], "no folder 'missing'"),
        ([], "--expert"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(
    family: dict[str, Path], tmp_path: Path, args: list[str], message: str
) -> None:
    result = run("merge", family["base"], *args, "--output", tmp_path / "merged")
    assert result.exit_code == 2 and result.stdout == ""
    assert re.fullmatch(r"dlf: error: [^\n]+\n", result.stderr) and message in result.stderr
    assert not (tmp_path / "merged").exists()


def test_cache_lists_and_clears_merged_models(family: dict[str, Path], cache: Path) -> None:
    with merged_experts([dlf.TaskArithmetic(family["base"], {family["expert-a"]: 1}, name="mine")]) as (expert,):
        folder = Path(expert.model)
    assert run("cache").stdout.splitlines()[1] == f"  {folder.name}: mine"
    assert "removed" in run("cache", "--clear").stdout
    assert not folder.exists() and len(run("cache").stdout.splitlines()) == 1
