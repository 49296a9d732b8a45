"""Engines that share loaded checkpoints."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import dlf
from dlf import ensemble as ensemble_module

PROMPT = "Question: what is the sum"


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that are read, in order."""
    found: list[str] = []
    load = ensemble_module.load_model

    def seen(name: Any, *arguments: Any) -> Any:
        found.append(Path(name).name)
        return load(name, *arguments)

    monkeypatch.setattr(ensemble_module, "load_model", seen)
    return found


def make(family: dict[str, Path], expert: str, **options: Any) -> dlf.Engine:
    one = dlf.Expert(family[f"expert-{expert}"], family["base"], name=expert)
    return dlf.Engine(family["large"], [one], threads=1, max_batch=2, max_context=128, **options)


def answer(engine: dlf.Engine) -> Any:
    return engine.generate(PROMPT, max_new_tokens=8, temperature=0)


def test_a_checkpoint_of_two_engines_is_read_once(family: dict[str, Path], loads: list[str]) -> None:
    models = dlf.SharedModels()
    with make(family, "a", models=models) as one, make(family, "b", models=models) as two:
        names = [family[name].name for name in ("large", "expert-a", "base", "expert-b")]
        assert sorted(loads) == sorted(names)
        with make(family, "a") as first, make(family, "b") as second:
            for shared, alone in ((one, first), (two, second)):
                assert answer(shared).tokens == answer(alone).tokens
        assert len(loads) == 10  # engines without it share nothing


@pytest.mark.cuda
def test_engines_share_what_is_on_a_device(family: dict[str, Path]) -> None:
    models = dlf.SharedModels()
    one = make(family, "a", models=models, device="cuda")
    with make(family, "b", models=models, device="cuda") as two, make(family, "b", device="cuda") as alone:
        expected = answer(alone).tokens
        assert answer(two).tokens == expected
        one.close()
        assert answer(two).tokens == expected


def test_a_checkpoint_is_freed_with_its_last_engine(family: dict[str, Path], loads: list[str]) -> None:
    models = dlf.SharedModels()
    one, two = make(family, "a", models=models), make(family, "b", models=models)
    large = weakref.ref(one._ensemble.models[0])
    only = weakref.ref(next(model for model in one._ensemble.models if model.name == str(family["expert-a"])))
    one.close()
    gc.collect()
    assert only() is None and large() is not None
    assert answer(two).tokens
    two.close()
    gc.collect()
    assert large() is None
    before = len(loads)
    make(family, "a", models=models).close()
    assert len(loads) == before + 3


def test_another_type_is_another_model(family: dict[str, Path], loads: list[str]) -> None:
    models = dlf.SharedModels()
    with make(family, "a", models=models, dtype="float32"), make(family, "a", models=models, dtype="bfloat16"):
        assert len(loads) == 6


def test_an_added_expert_is_shared(family: dict[str, Path], loads: list[str]) -> None:
    models = dlf.SharedModels()
    with make(family, "a", models=models) as one, make(family, "b", models=models):
        before = len(loads)
        one.add_expert(dlf.Expert(family["expert-b"], family["base"], name="b"))
        assert len(loads) == before and one.experts == ["a", "b"]


def test_engines_that_load_at_once_load_a_model_once(family: dict[str, Path], loads: list[str]) -> None:
    models = dlf.SharedModels()
    with ThreadPoolExecutor() as pool:
        engines = list(pool.map(lambda name: make(family, name, models=models), "abab"))
    assert len(loads) == 4
    for engine in engines:
        engine.close()


def test_other_objects_are_refused(family: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match=r"models is 3: give a dlf\.SharedModels"):
        make(family, "a", models=3)
