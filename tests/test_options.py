"""One list of options: Engine, recipes, the command line and the docstrings have the same names."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import dlf
from dlf.cli.flags import given, takes
from dlf.options import EngineOptions
from dlf.recipe import recipe_schema
from dlf.sampling import SamplingOptions
from dlf.support.option import options_of

OWNERS = (EngineOptions, SamplingOptions)


def names_of(owner: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(owner)]


@pytest.mark.parametrize("owner", OWNERS)
def test_the_docstring_has_each_option(owner: Any) -> None:
    described = re.findall(r"^    (\w+) : ", owner.__doc__, re.MULTILINE)
    assert described == names_of(owner)


@pytest.mark.parametrize("face", [dlf.Engine, dlf.AsyncEngine])
def test_an_engine_takes_the_options(face: Any) -> None:
    assert list(inspect.signature(face).parameters) == names_of(EngineOptions)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_contxt'"):
        face("nowhere", max_contxt=5)


def test_a_recipe_has_each_option() -> None:
    schema = recipe_schema()
    sections = [schema["properties"], *(schema["$defs"][name]["properties"] for name in ("Fusion", "Engine"))]
    assert set().union(*sections) - {"fusion", "engine", "sampling", "serve"} == set(names_of(EngineOptions)) - {
        "defaults",
        "models",
    }
    assert list(schema["properties"]["sampling"]["properties"]) == names_of(SamplingOptions)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_batch": 0}, ValueError, "max_batch is 0: give an int from 1 to 1024"),
        ({"max_batch": None}, TypeError, "max_batch is None: give an int"),
        ({"threads": 1.5}, TypeError, "threads is 1.5: give an int"),
        ({"threads": True}, TypeError, "threads is True: give an int"),
        ({"max_context": 1}, ValueError, "max_context is 1: give an int >= 2"),
        ({"prompt_budget": -1}, ValueError, "prompt_budget is -1: give an int"),
        ({"prefix_cache_bytes": -1}, ValueError, "prefix_cache_bytes is -1: give an int"),
        ({"prefix_cache_bytes": 1 << 60}, ValueError, "prefix_cache_bytes is .*: give an int from 0 to"),
        ({"combine": "mean"}, ValueError, "combine is 'mean'; it takes 'select', "),
        ({"match": "both"}, ValueError, "match is 'both'; it takes 'symmetric', "),
        ({"alpha_max": "2"}, TypeError, "alpha_max is '2': give a number"),
        ({"cuda_graph": 1}, TypeError, "cuda_graph is 1: give True or False"),
        ({"device": "tpu"}, ValueError, "device is 'tpu'"),
        ({"defaults": {"top_q": 1}}, TypeError, "no option is called 'top_q'"),
        ({"speculate": 3}, TypeError, "speculate is 3"),
        ({"experts": "one"}, TypeError, "experts is one expert"),
    ],
)
def test_an_impossible_option_is_refused_before_a_model_is_looked_for(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        dlf.Engine("nowhere", **options)


def test_flags_of_a_command() -> None:
    app, seen = typer.Typer(), []

    @app.command()
    @takes(SamplingOptions)
    @takes(EngineOptions)
    def command(**flags: Any) -> None:
        seen.append((given(EngineOptions, flags), given(SamplingOptions, flags)))

    def called(*arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 0, found.output
        return seen.pop()

    assert called() == ({}, {})  # options not given are left to the engine or a recipe
    zeros = ("--temperature", "0", "--top-k", "0", "--ignore-eos", "--stop", "a", "--stop", "b", "--stop-token-id", "7")
    options = {"temperature": 0.0, "top_k": 0, "ignore_eos": True, "stop_strings": ["a", "b"], "stop_token_ids": [7]}
    assert called(*zeros) == ({}, options)
    engine = {"alpha": [0.5, 0.0], "alpha_max": 3.0, "max_context": 9, "drafter": "small"}
    assert called("--alpha", "0.5", "--alpha", "0", "--alpha-max", "3", "--max-context", "9", "--drafter", "small") == (
        engine,
        {},
    )
    flagged = [one for owner in OWNERS for one in options_of(owner).values() if one.flag is not None]
    text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "300"}).output
    for option in flagged:
        assert (option.flag or "--" + option.name.replace("_", "-")) in text
        assert option.help.rstrip(".") in text
