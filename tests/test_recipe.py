"""Recipes: their fields, and errors with line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from recipes import family_recipe, write
from typer.testing import CliRunner

import dlf
from dlf.checkpoints.precision import TORCH_DTYPES, WEIGHTS
from dlf.cli import app
from dlf.merging import METHODS
from dlf.options import COMBINE, MATCH
from dlf.recipe import RecipeError, document, load_recipe, recipe_schema

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
engine:
  {threads: 2, max_batch: 4, max_context: 512, prompt_budget: 600, prefix_cache_bytes: 1000000, speculate: false,
   drafter: small, tokenizer_map: exact}
sampling:
  max_new_tokens: 7
  temperature: 0.5
  stop_strings: ["\\n"]
"""


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
        "prompt_budget": 600,
        "prefix_cache_bytes": 1000000,
        "speculate": False,
        "drafter": place["small"],
        "tokenizer_map": "exact",
        "defaults": {"max_new_tokens": 7, "temperature": 0.5, "stop_strings": ["\n"]},
    }


def test_experts_that_are_prompts_or_have_no_base(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    text = """\
large: org/big
experts:
  - guidance: true
    scale: 1.5
    negative_prompt: rude
  - guidance: small
    name: tone
    positive: true
    alpha_max: 0.5
  - amateur: small
  - amateur: org/tiny
    alpha: null
  - model: small
    base: false
    mix: 0.25
fusion: {plausibility: 0.1, large_weight: 0.5, gate: entropy, gate_threshold: 1, mix: [null, null, null, null, 0.5]}
"""
    recipe = load_recipe(write(tmp_path, text))
    small = str(tmp_path / "small")
    found = recipe.engine_arguments()
    assert found["experts"] == [
        dlf.Guidance(scale=1.5, negative_prompt="rude"),
        dlf.Guidance(small, name="tone", positive=True, alpha_max=0.5),
        dlf.Amateur(small),
        dlf.Amateur("org/tiny", alpha=None),
        dlf.Expert(small, False, mix=0.25),
    ]
    assert recipe.options == {
        "plausibility": 0.1,
        "large_weight": 0.5,
        "gate": "entropy",
        "gate_threshold": 1.0,
        "mix": [None, None, None, None, 0.5],
    }
    options = dlf.EngineOptions(**found)
    assert options.rule_of(options.whole_experts()).mix == (None, None, None, None, 0.5)


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
        (
            "large: x\nexperts:\n  - guidance: false\n",
            ["3: experts[0].guidance: input should be a path, a hub id or true, not false"],
        ),
        (
            "large: x\nexperts:\n  - guidance: true\n    scale: 2\n    alpha: 1\n",
            ["4: experts[0].scale: scale and alpha"],
        ),
        ("large: x\nexperts:\n  - guidance: true\n    base: y\n", ["4: experts[0].base: no such key here"]),
        ("large: x\nexperts:\n  - amateur: y\nfusion: {mix: [0.5]}\n", ["4: fusion.mix: 'y' takes no share"]),
        (
            "large: x\nexperts:\n  - model: y\n    base: true\n",
            ["4: experts[0].base: input should be a path, a hub id or false, not true"],
        ),
        ("large: x\nexperts:\n  - model: y\n    base: false\n    mix: 2\n", ["5: experts[0].mix: "]),
        ("large: x\nfusion: {plausibility: 1}\n", ["2: fusion.plausibility: plausibility is 1"]),
        ("large: x\nfusion: {gate: never}\n", ["2: fusion.gate: "]),
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
        (
            "large: x\nbase: b\nexperts:\n  - model: a\n    template: '{x}'\n",
            ["5: experts[0].template: the template is '{x}'"],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - merge: {a: 1}\n    method: best\n",
            ["5: experts[0].method: input should be 'linear', "],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - examples_file: no.jsonl\n",
            ["4: experts[0].examples_file: there is no file 'no.jsonl'"],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\nfusion:\n  combine: best\n",
            ["6: fusion.combine: input should be 'select', "],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\nfusion: {alpha: [1, 2]}\n",
            ["5: fusion.alpha: alpha holds 2 weights for 1 experts"],
        ),
        ("large: x\nengine: {threads: true}\n", ["2: engine.threads: input should be a valid integer, not true"]),
        ("large: x\nengine:\n  max_batch: 0\n", ["3: engine.max_batch: input should be greater than or equal to 1"]),
        ("large: x\nengine: {device: tpu}\n", ["2: engine.device: takes cpu, cuda or cuda:0, cuda:1, ..., not "]),
        ("large: x\nengine:\n  device_map: {lrge: cpu}\n", ["3: engine.device_map.lrge: input should be 'large' or "]),
        ("large: x\nengine:\n  prefix_cache_bytes: 99999999999999999\n", ["3: engine.prefix_cache_bytes: prefix_ca"]),
        ("large: x\nengine:\n  dtype: float32\n  weights: bf16\n", ["3: engine.dtype: dtype 'float32' and weights "]),
        (
            "large: x\nbase: b\nengine: {dtype: float32}\nexperts:\n  - model: a\n    weights: bf16\n",
            ["6: experts[0].weights: dtype 'float32' and weights 'bf16' contradict"],
        ),
        ("large: ''\n", ["1: large: string should have at least 1 character"]),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\n    alpha: .inf\n",
            ["5: experts[0].alpha: input should be a fin"],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\n    alpha_max: 0\n",
            ["5: experts[0].alpha_max: input should be "],
        ),
        ("large: x\nbase: b\nexperts:\n  - modle: a\n", ["4: experts[0]: is of no clear kind: "]),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\n    base_template: '{x}'\n",
            ["5: experts[0].base_template: the te"],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - merge: {a: 1}\n    density: 0\n",
            ["5: experts[0].density: density has no ef"],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - merge: {a: 1, c: -1}\n    method: linear\n    weights: int8\n",
            ["4: experts[0]: "],
        ),
        (
            "large: x\nbase: b\nexperts:\n  - examples:\n    - [a, b]\n    - [c]\n",
            ["6: experts[0].examples[1][1]: is mis"],
        ),
        ("large: x\nbase: b\nexperts:\n  - examples: []\n", ["4: experts[0].examples: examples is empty"]),
        (
            "large: x\nbase: b\nexperts:\n  - examples: [[a, b]]\n    examples_file: y\n",
            ["4: experts[0].examples: examples and examples_file are both given"],
        ),
        ("large: x\nbase: b\nexperts:\n" + "  - model: a\n" * 17, ["3: experts: has 17 entries; give at most 16"]),
        ("large: x\nfusion:\n", ["2: fusion: must be a mapping, 'name: value', not null"]),
        ("large: x\nfusion: {alpha: [1]}\n", ["2: fusion.alpha: alpha holds 1 weights for 0 experts"]),
        (
            "large: x\nbase: b\nexperts:\n  - model: a\nfusion:\n  combine: static\n",
            ["6: fusion.combine: combine='static' takes the "],
        ),
        (
            "large: x\nsampling: {min_new_tokens: 9, max_new_tokens: 5}\n",
            ["2: sampling.min_new_tokens: min_new_tokens is"],
        ),
        ("large: x\nsampling:\n  logit_bias: {-1: 0.5}\n", ["3: sampling.logit_bias: a token of logit_bias is -1"]),
        ("large: x\n3: y\n", ["2: [3]: no such key here; there are: large, base"]),
        ('large: x\n"\\e[31mred": y\n', ["2: \\x1b[31mred: no such key here"]),
        (  # valid fields beside a mistake are checked too
            "large: 1\ntemplate: hello\nexperts:\n  - modle: a\n  - model: a\n    base: b\n    template: no\n"
            "  - model: c\n",
            [
                "1: large: ",
                "2: template: ",
                "4: experts[0]: ",
                "7: experts[1].template: ",
                "8: experts[2]: it has no base",
            ],
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


def test_sampling_options_are_looked_at_together(tmp_path: Path) -> None:
    text = (
        "large: x\nsampling: {min_new_tokens: 200, max_new_tokens: 300, num_return_sequences: 2, temperature: 1e-1}\n"
    )
    assert load_recipe(write(tmp_path, text)).sampling == {
        "min_new_tokens": 200,
        "max_new_tokens": 300,
        "num_return_sequences": 2,
        "temperature": 0.1,
    }


def test_a_kind_that_is_misspelt(tmp_path: Path) -> None:
    [found] = problems(tmp_path, "large: x\nbase: b\nexperts:\n  - modle: a\n")
    assert found.endswith("by 'modle', did you mean 'model'?")


def test_many_mistakes_are_counted(tmp_path: Path) -> None:
    found = problems(tmp_path, "large: x\n" + "".join(f"k{i}: 1\n" for i in range(99)))
    assert len(found) == 51 and found[-1].endswith(" and 49 more")
    assert [one.split(":")[0] for one in found[:50]] == [str(line) for line in range(2, 52)]


def test_the_names_are_those_of_the_engine() -> None:
    assert get_args(document.Weights) == WEIGHTS
    assert set(get_args(document.MergedDType)) == set(TORCH_DTYPES)
    assert set(get_args(document.Method)) == set(METHODS)
    assert COMBINE == dlf._C.COMBINES and MATCH == dlf._C.MATCHES


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
    for arguments in (["only-one"], ["--recipe", path]):
        found = runner.invoke(app, ["generate", *arguments])
        assert found.exit_code == 2 and "there is no prompt" in found.output
    broken = str(write(tmp_path, "larg: x\nsampling: {top_p: 7}\n"))
    found = runner.invoke(app, ["generate", "--recipe", broken, "The quick"])
    assert found.exit_code == 2 and found.output.count("dlf: error: ") == 3


def test_the_command_line_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []

    class Engine:
        def __init__(self, **arguments: Any) -> None:
            made.append(arguments)

        def __enter__(self) -> Engine:
            return self

        def __exit__(self, *_: object) -> None: ...

        def generate(self, prompt: str, **options: Any) -> None:
            calls.append(options)
            raise ValueError("enough")

    monkeypatch.setattr(dlf, "Engine", Engine)
    path = write(
        tmp_path,
        "large: x\nbase: b\nexperts: [{model: a}]\nfusion: {combine: joint, alpha_max: 3}\n"
        "engine: {device: 'cuda:1', device_map: {large: 'cuda:2'}, max_batch: 4, max_context: 99}\n"
        "sampling: {num_return_sequences: 2, temperature: 1}\n",
    )

    def arguments(*options: str) -> dict[str, Any]:
        assert CliRunner().invoke(app, ["generate", "--recipe", str(path), "Q", *options]).exit_code == 2
        return made[-1]

    found = arguments()
    assert (found["combine"], found["alpha_max"], found["max_context"], found["max_batch"]) == ("joint", 3.0, 99, 1)
    assert (found["device"], found["device_map"]) == ("cuda:1", {"large": "cuda:2"})
    assert calls[-1]["num_return_sequences"] == 1 and "max_new_tokens" not in calls[-1]
    found = arguments("--combine", "select", "--alpha-max", "2", "--device", "cpu")
    assert (found["combine"], found["alpha_max"], found["device"]) == ("select", 2.0, "cpu")
    assert "device_map" not in found
    assert arguments("--experts-device", "cuda:0")["device_map"] == {"large": "cuda:1", "experts": "cuda:0"}


def test_schema(tmp_path: Path) -> None:
    schema = recipe_schema()
    assert {"large", "experts", "fusion", "engine", "sampling"} <= schema["properties"].keys()
    sampling = schema["properties"]["sampling"]
    assert set(sampling["properties"]) == set(dlf.SamplingOptions.__dataclass_fields__)
    assert sampling["properties"]["max_new_tokens"]["type"] == "integer" and not sampling["additionalProperties"]
    combine = schema["$defs"]["Fusion"]["properties"]["combine"]
    assert combine["anyOf"][0]["enum"] == list(COMBINE) and combine["description"].startswith("How several experts")
    assert schema["$defs"]["Engine"]["properties"]["max_batch"]["anyOf"][0] == {
        "type": "integer",
        "minimum": 1,
        "maximum": 1024,
    }
    assert json.loads(CliRunner().invoke(app, ["recipe", "schema"]).stdout) == schema
