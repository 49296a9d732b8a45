"""Merged folders compared with mergekit's, if it is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dlf
from dlf.merging import methods

mergekit_merge = pytest.importorskip("mergekit.merge")
from mergekit.config import MergeConfiguration  # noqa: E402
from mergekit.options import MergeOptions  # noqa: E402


def by_mergekit(folder: Path, method: str, base: Path, experts: dict[Path, float], **parameters: Any) -> dict[str, Any]:
    density = parameters.pop("density", None)
    own = {} if density is None else {"density": density}
    models: list[dict[str, Any]] = [
        {"model": str(expert), "parameters": {"weight": weight, **own}} for expert, weight in experts.items()
    ]
    if method == "slerp":
        (parameters["t"],) = experts.values()
        models = [{"model": str(base)}, {"model": str(next(iter(experts)))}]
    values: dict[str, Any] = {"merge_method": method, "models": models, "parameters": parameters, "dtype": "float32"}
    if method != "linear":
        values["base_model"] = str(base)
    mergekit_merge.run_merge(MergeConfiguration.model_validate(values), str(folder), MergeOptions(quiet=True))
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


METHODS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {}),
    ("linear", {"normalize": False}),
    ("task_arithmetic", {}),
    ("task_arithmetic", {"normalize": True, "lambda": 0.5}),
    ("ties", {}),
    ("ties", {"density": 0.3, "lambda": 1.5}),
    ("ties", {"density": 0.7, "normalize": False}),
    ("dare_linear", {"density": 0.4}),
    ("dare_ties", {"density": 0.4}),
    ("slerp", {}),
]


@pytest.mark.parametrize(("method", "parameters"), METHODS)
def test_mergekit_gets_the_same(
    family: dict[str, Path],
    tmp_path: Path,
    method: str,
    parameters: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def drop(vector: torch.Tensor, density: float, *_: object, **__: object) -> torch.Tensor:
        """Drop by a fixed rule that replaces the random numbers of both."""
        return vector * ((vector * 1e4).round() % 3 == 0) / density

    monkeypatch.setattr(methods, "drop", drop)
    monkeypatch.setattr("mergekit.sparsify.bernoulli", drop)
    weights = {family["expert-a"]: 0.7, family["expert-b"]: 0.4}
    if method == "slerp":
        weights.popitem()
    theirs = by_mergekit(tmp_path / "theirs", method, family["base"], weights, **parameters)
    scale = parameters.pop("lambda", None)
    merged = dlf.TaskArithmetic(family["base"], weights, method, scale=scale, **parameters)
    ours = load_file(merged.save(tmp_path / "ours") / "model.safetensors")
    assert ours.keys() == theirs.keys()
    base = load_file(family["base"] / "model.safetensors")
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=name)
        assert not torch.equal(tensor, base[name])
