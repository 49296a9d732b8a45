"""Recipes: what they say, what they refuse and where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import dlf
from dlf.cli import app
from dlf.recipe import RecipeError, load_recipe, recipe_schema

WHOLE = """\
large: big
base: small
template: "Q: {prompt}\\nA:"
experts:
  - model: math
    alpha_max: 1.5
  - examples: [["2 + 2", "4"], ["3 + 5", "8"]]
    template: "{question} = {answer}; "
    name: shots
  - adapter: someone/adapter
    base: other
    alpha: -0.5
  - merge: {math: 0.4, towns: 0.4}
    method: ties
    density: 0.5
    weights: int8
  - examples_file: shots.jsonl
    name: from a file
fusion: {combine: joint, match: forward, alpha_max: 3}
engine: {threads: 2, max_batch: 4, max_context: 512, prefix_cache_bytes: 1000000}
sampling:
  max_new_tokens: 7
  temperature: 0.5
  stop_strings: ["\\n"]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text))
    assert str(caught.value) == "; ".join(caught.value.problems)
    return [problem.removeprefix(f"{folder / 'recipe.yaml'}:") for problem in caught.value.problems]


def test_everything(tmp_path: Path) -> None:
    for name in ("big", "small", "math"):
        (tmp_path / name).mkdir()
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "answer": "b"}\n\n{"question": "c", "answer": "d"}\n')
    found = load_recipe(write(tmp_path, WHOLE)).engine_arguments()
    place = {name: str(tmp_path / name) for name in ("big", "small", "math")}
    assert found == {
        "large": place["big"],
        "base": place["small"],
        "template": "Q: {prompt}\nA:",
        "experts": [
            dlf.Expert(place["math"], place["small"], alpha_max=1.5),
            dlf.InContext(place["small"], [("2 + 2", "4"), ("3 + 5", "8")], "{question} = {answer}; ", "shots"),
            dlf.Lora("other", "someone/adapter", alpha=-0.5),
            dlf.TaskArithmetic(place["small"], {place["math"]: 0.4, "towns": 0.4}, "ties", 0.5, weights="int8"),
            dlf.InContext(place["small"], [("a", "b"), ("c", "d")], name="from a file"),
        ],
        "combine": "joint",
        "match": "forward",
        "alpha_max": 3.0,
        "threads": 2,
        "max_batch": 4,
        "max_context": 512,
        "prefix_cache_bytes": 1000000,
        "defaults": {"max_new_tokens": 7, "temperature": 0.5, "stop_strings": ["\n"]},
    }


def test_the_shortest(tmp_path: Path) -> None:
    found = load_recipe(write(tmp_path, "large: org/model"))
    assert found.engine_arguments() == {
        "large": "org/model",
        "experts": [],
        "base": None,
        "template": None,
        "defaults": {},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: x\n", ["1: large: is missing"]),
        ("large: x\nlarg: y\n", ["2: larg: no such key here; did you mean 'large'?"]),
        ("large: 7\n", ["1: large: input should be a valid string, not 7"]),
        ("large: x\nengine:\n  thread: 2\n", ["3: engine.thread: no such key here; did you mean 'threads'?"]),
        ("large: x\nengine: {threads: many}\n", ["2: engine.threads: input should be a valid integer, "]),
        ("large: x\nsampling:\n  top_p: 2\n", ["3: sampling.top_p: top_p is 2"]),
        ("large: x\nsampling:\n\n  topp: 1\n", ["4: sampling.topp: no sampling option is called 'topp'; did you mean"]),
        ("large: x\ntemplate: hello\n", ["2: template: the template is 'hello'"]),
        ("large: x\nexperts:\n  - model: a\n", ["3: experts[0]: it has no base"]),
        ("large: x\nbase: b\nexperts:\n  - {}\n", ["4: experts[0]: is of no clear kind: a checkpoint has 'model'"]),
        ("large: x\nbase: b\nexperts:\n  - model: a\n    adapter: c\n", ["4: experts[0]: is of no clear kind"]),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\n    alphamax: 1\n",
            ["5: experts[0].alphamax: no such key here; did you mean 'alpha_max'?"],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\n  - adapter: c\n    alpha_max: [1]\n",
            ["6: experts[1].alpha_max: input should be a valid number, not [1]"],
        ),
        ("large: x\nbase: b\nexperts:\n  - model: a\n    template: '{x}'\n", ["5: experts[0].template: the template is '{x}'"]),
        ("large: x\nbase: b\nexperts:\n  - merge: {a: 1}\n    method: best\n", ["5: experts[0].method: input should be 'linear', "]),
        ("large: x\nbase: b\nexperts:\n  - examples_file: no.jsonl\n", ["4: experts[0].examples_file: there is no file 'no.jsonl'"]),
        ("large: x\nbase: b\nexperts:\n  - model: a\nfusion:\n  combine: best\n", ["6: fusion.combine: input should be 'select', "]),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\nfusion: {alpha: [1, 2]}\n",
            ["5: fusion.alpha: alpha holds 2 weights for 1 experts"],
        ),
        (
            "large: 1\nexperts: 2\nsampling: {min_p: x}\nengine: {wieghts: 3}\n",
            ["1: large: ", "2: experts: ", "3: sampling.min_p: ", "4: engine.wieghts: no such key here; did you mean"],
        ),
    ],
)
def test_mistakes_have_their_line_and_field(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(expected)
    for one, beginning in zip(found, expected, strict=True):
        assert one.startswith(beginning)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("large: [", "recipe.yaml:1: no valid YAML"),
        ("large: x\nlarge: y\n", "recipe.yaml:2: 'large' is given twice"),
        ("a: &a [x]\nb: *a\n", r"recipe.yaml:2: '\*a' refers to another value"),
        ("large: !!python/object/apply:os.system [echo]\n", "large: input should be a valid string"),
        ("? [a]\n: b\n", "recipe.yaml:1: a key must be a name"),
        ("[" * 5000, "no valid YAML"),
        ("a: " + "[" * 100 + "]" * 100, "32 deep"),
        ("- large\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("large: " + "x" * (1 << 20), "larger than 1 MiB"),
        ("large: x\n---\nlarge: y\n", "no valid YAML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe(write(tmp_path, text))


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_bytes(b"large: \xff\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_recipe(tmp_path / "nowhere.yaml")
    path = write(tmp_path, "large: x\nbase: b\nexperts:\n  - examples_file: shots.jsonl\n")
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    with pytest.raises(RecipeError, match="shots.jsonl:2 is no"):
        load_recipe(path)


def family_recipe(family: dict[str, Path], tmp_path: Path, **sections: Any) -> Path:
    values = {
        "large": str(family["large"]),
        "base": str(family["base"]),
        "experts": [
            {"model": str(family["expert-a"]), "name": "a"},
            {"examples": [["The quick", "fox"]], "name": "shots", "alpha": 0.5},
        ],
        "sampling": {"max_new_tokens": 5, "ignore_eos": True},
    } | sections
    return write(tmp_path, json.dumps(values))  # JSON is YAML


def test_an_engine_from_a_recipe(family: dict[str, Path], tmp_path: Path) -> None:
    path = family_recipe(family, tmp_path, engine={"threads": 2}, fusion={"combine": "centroid"})
    with dlf.Engine.from_recipe(path) as engine:
        assert engine.experts == ["a", "shots"]
        found = engine.generate("The quick")
        assert found.alpha.shape == (5, 2) and found.alpha[0, 1] == 0.5
        assert len(engine.generate("The quick", max_new_tokens=2).tokens) == 2
    experts = [
        dlf.Expert(family["expert-a"], family["base"]),
        dlf.InContext(family["base"], [("The quick", "fox")], alpha=0.5),
    ]
    with dlf.Engine(family["large"], experts, combine="centroid") as engine:
        assert engine.generate("The quick", max_new_tokens=5, ignore_eos=True).tokens == found.tokens
    with dlf.Engine.from_recipe(path, experts=[], max_context=64) as engine:
        assert engine.experts == [] and engine.max_context == 64


def test_the_command_line(family: dict[str, Path], tmp_path: Path) -> None:
    runner = CliRunner()
    path = str(family_recipe(family, tmp_path))
    found = runner.invoke(app, ["generate", "--recipe", path, "The quick", "--json"])
    assert found.exit_code == 0, found.output
    completion = json.loads(found.stdout)
    assert len(completion["tokens"]) == 5 and len(completion["alpha"][0]) == 2
    found = runner.invoke(app, ["generate", "--recipe", path, "The quick", "--json", "--max-new-tokens", "3"])
    assert len(json.loads(found.stdout)["tokens"]) == 3
    found = runner.invoke(app, ["generate", "--recipe", path, "The quick", "--show-alpha"])
    assert found.exit_code == 0
    for arguments in (["--recipe", path, "large", "prompt"], ["--recipe", path, "prompt", "--expert", "x"]):
        found = runner.invoke(app, ["generate", *arguments])
        assert found.exit_code == 2 and "give the prompt alone" in found.output
    found = runner.invoke(app, ["generate", "only-one"])
    assert found.exit_code == 2 and "there is no prompt" in found.output


def test_check(family: dict[str, Path], tmp_path: Path) -> None:
    runner = CliRunner()
    path = str(family_recipe(family, tmp_path))
    found = runner.invoke(app, ["recipe", "check", path])
    assert found.exit_code == 0, found.output
    for text in (
        "in order",
        "large model",
        "checkpoint",
        "examples",
        "solved, up to 2",
        "0.5, given",
        "max_new_tokens=5",
    ):
        assert text in found.stdout
    described = json.loads(runner.invoke(app, ["recipe", "check", path, "--json"]).stdout)
    assert [one["kind"] for one in described["experts"]] == ["checkpoint", "examples"]
    missing = family_recipe(family, tmp_path, base="nowhere", large="no/where/at/all")
    found = runner.invoke(app, ["recipe", "check", str(missing)])
    assert found.exit_code == 2
    assert found.output.count("error ") == 2
    assert "large: no folder 'no/where/at/all'" in found.output and "the base of expert 'a': no folder" in found.output
    broken = write(tmp_path, "larg: x\nsampling: {top_p: 7}\n")
    found = runner.invoke(app, ["recipe", "check", str(broken), "--json"])
    assert found.exit_code == 2 and len(json.loads(found.stdout)["problems"]) == 3


def test_schema(tmp_path: Path) -> None:
    schema = recipe_schema()
    assert {"large", "experts", "fusion", "engine", "sampling"} <= schema["properties"].keys()
    assert "top_p" in schema["properties"]["sampling"]["properties"]
    assert json.loads(CliRunner().invoke(app, ["recipe", "schema"]).stdout) == schema
