"""The `kind` and `field` of errors, for programs that handle them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlf
from dlf import ErrorKind, fusion, zoo
from dlf.merging import Recipe

EXPERTS = [dlf.Expert(zoo.path("math-expert"), zoo.path("small-base"))]
ROW = np.array([[0.0, 1.0]], np.float32)


@pytest.fixture(scope="module")
def engine() -> Iterator[dlf.Engine]:
    with dlf.Engine(zoo.path("small-base"), threads=1, max_context=64) as engine:
        yield engine


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"temperature": -1}, dlf.OptionError, "temperature"),
        ({"top_p": "half"}, dlf.OptionTypeError, "top_p"),
        ({"logit_bias": {-3: 1.0}}, dlf.OptionError, "logit_bias"),
        ({"min_new_tokens": 9, "max_new_tokens": 3}, dlf.OptionError, "min_new_tokens"),
        ({"bad_words": "word"}, dlf.OptionTypeError, "bad_words"),
        ({"top_q": 1}, dlf.OptionTypeError, "top_q"),
        ({"experts": ["nobody"]}, dlf.OptionError, "experts"),
        ({"speculate": 7}, dlf.OptionTypeError, "speculate"),
        ({"speculate": dlf.Speculation("nobody")}, dlf.OptionError, "speculate"),
        ({"alpha": [0.5, "much"]}, dlf.OptionTypeError, "alpha"),
        ({"alpha_max": -1.0}, dlf.OptionError, "alpha_max"),
        ({"combine": "best"}, dlf.OptionError, "combine"),
        ({"combine": 3}, dlf.OptionTypeError, "combine"),
        ({"alpha": 0.5}, dlf.OptionTypeError, "alpha"),
        ({"alpha": "ab"}, dlf.OptionTypeError, "alpha"),
        ({"alpha": {"nobody": 1.0}}, dlf.OptionTypeError, "alpha"),
        ({"alpha_max": [1.0]}, dlf.OptionError, "alpha_max"),
        ({"rule": "joint"}, dlf.OptionTypeError, "rule"),
        # checked by the step loop only
        ({"stop_token_ids": [10**6]}, dlf.OptionError, "stop_token_ids"),
        ({"logit_bias": {10**6: 1.0}}, dlf.OptionError, "logit_bias"),
        ({"logprobs": 10**6}, dlf.OptionError, "logprobs"),
    ],
)
def test_an_option_of_a_request(
    engine: dlf.Engine, options: dict[str, Any], error: type[dlf.Error], field: str
) -> None:
    with pytest.raises(error) as caught:
        engine.generate("The quick", **options)
    assert (caught.value.kind, caught.value.field) == (ErrorKind.OPTION, field)
    assert isinstance(caught.value, ValueError if error is dlf.OptionError else TypeError)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_batch": 0}, "max_batch"),
        ({"dtype": "float32", "weights": "bf16"}, "dtype"),
        ({"device_map": {"lrge": "cpu"}}, "device_map"),
        ({"template": "hello"}, "template"),
        ({"max_context": 10**6}, "max_context"),
        ({"experts": [zoo.path("math-expert")]}, "base"),
        ({"alpha": [1.0, 2.0]}, "alpha"),
        ({"experts": EXPERTS, "alpha": ["much"]}, "alpha"),
        ({"experts": EXPERTS, "alpha": 0.5}, "alpha"),
        ({"experts": EXPERTS, "alpha": {"math-expert": 1.0}}, "alpha"),
        ({"experts": [replace(EXPERTS[0], alpha=True)]}, "alpha"),
        ({"experts": [replace(EXPERTS[0], alpha=10**400)]}, "alpha"),
        ({"experts": [replace(EXPERTS[0], alpha_max="2")]}, "alpha_max"),
        ({"experts": [replace(EXPERTS[0], weights="fp16")]}, "dtype"),
        ({"experts": EXPERTS * 17}, "experts"),
    ],
)
def test_an_option_of_an_engine(options: dict[str, Any], field: str) -> None:
    with pytest.raises(dlf.Error) as caught:
        dlf.Engine(zoo.path("small-base"), **options)
    assert (caught.value.kind, caught.value.field) == (ErrorKind.OPTION, field)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"combine": "best"}, "combine"),
        ({"alpha_max": -1.0}, "alpha_max"),
        ({"match": "best"}, "match"),
        ({"alpha": {"a": 1.0}}, "alpha"),
        ({"alpha": [1.0, 2.0]}, "alpha"),
        ({"rule": "joint"}, "rule"),
        ({"rule": [dlf.Rule()] * 2}, "rule"),
        ({"threads": 0}, "threads"),
        ({"threads": 1.5}, "threads"),
        ({"device": "tpu"}, "device"),
        ({"large": [[0.0, 1.0]]}, "large"),
        ({"large": ROW[0]}, "large"),
        ({"large": ROW[:, :1]}, "large"),
        ({"base": ROW.astype(np.int64)}, "base"),
        ({"base": ROW[:, :1]}, "base"),
        ({"experts": ROW}, "experts"),
        ({"experts": ROW[None, :, :1]}, "experts"),
        ({"experts": ROW[None, :0]}, "experts"),
    ],
)
def test_an_option_of_a_solve(options: dict[str, Any], field: str) -> None:
    with pytest.raises((dlf.OptionError, dlf.OptionTypeError)) as caught:
        fusion.solve(**{"large": ROW, "base": ROW, "experts": ROW[None]} | options)
    assert (caught.value.kind, caught.value.field) == (ErrorKind.OPTION, field)


@pytest.mark.parametrize(
    ("options", "error", "field"),
    [
        ({"experts": {"a": "much"}}, dlf.OptionTypeError, "experts"),
        ({"experts": {"a": 1000}}, dlf.OptionError, "experts"),
        ({"experts": {}}, dlf.OptionError, "experts"),
        ({"experts": {3: 0.5}}, dlf.OptionTypeError, "experts"),
        ({"experts": {"a": 0.5, Path("a"): 0.5}}, dlf.OptionError, "experts"),
        ({"experts": {"a": 1.5}, "method": "slerp"}, dlf.OptionError, "experts"),
        ({"density": 2.0, "method": "ties"}, dlf.OptionError, "density"),
        ({"scale": "much"}, dlf.OptionTypeError, "scale"),
    ],
)
def test_an_option_of_a_merge(options: dict[str, Any], error: type[dlf.Error], field: str) -> None:
    with pytest.raises(error) as caught:
        dlf.TaskArithmetic("base", **{"experts": {"a": 0.5}} | options)
    assert (caught.value.kind, caught.value.field) == (ErrorKind.OPTION, field)
    if field == "experts" and all(isinstance(name, str) for name in options["experts"]):
        with pytest.raises(error) as caught:
            Recipe.of(options.get("method", "ties"), options["experts"])
        assert caught.value.field == "weights"


def test_an_option_of_a_stream_or_a_score(engine: dlf.Engine) -> None:
    for call, error, field in (
        (lambda: engine.score("a", " b", temperature=1.0), dlf.OptionTypeError, "temperature"),
        (lambda: engine.stream(["a", "b"]), dlf.OptionError, "prompt"),
        (lambda: engine.stream("a", temperature=1, num_return_sequences=2), dlf.OptionError, "num_return_sequences"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert (caught.value.kind, caught.value.field) == (ErrorKind.OPTION, field)


@pytest.mark.parametrize(
    ("call", "error", "kind"),
    [
        (lambda engine: engine.generate(""), dlf.PromptError, ErrorKind.PROMPT),
        (lambda engine: engine.generate([[10**6]]), dlf.PromptError, ErrorKind.PROMPT),
        (lambda engine: engine.generate("a " * 9999), dlf.PromptError, ErrorKind.TOO_LONG),
        (lambda engine: engine.score("a", ""), dlf.PromptError, ErrorKind.PROMPT),
        (lambda engine: engine.score("a", "b " * 9999), dlf.PromptError, ErrorKind.TOO_LONG),
    ],
)
def test_a_prompt(
    engine: dlf.Engine, call: Callable[[dlf.Engine], object], error: type[dlf.Error], kind: ErrorKind
) -> None:
    with pytest.raises(error) as caught:
        call(engine)
    assert caught.value.kind is kind and isinstance(caught.value, ValueError)


def test_a_closed_engine() -> None:
    engine = dlf.Engine(zoo.path("small-base"), threads=1)
    engine.close()
    with pytest.raises(dlf.EngineError) as caught:
        engine.generate("a")
    assert caught.value.kind is ErrorKind.CLOSED and isinstance(caught.value, RuntimeError)


def test_errors_travel_between_processes() -> None:
    for error in (dlf.OptionError("words", "top_p"), dlf.EngineError("words", ErrorKind.CLOSED)):
        found = pickle.loads(pickle.dumps(error))
        assert (str(found), found.kind, found.field) == (str(error), error.kind, error.field)
