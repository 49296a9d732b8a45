"""``dlf recipe check``: what it finds in a recipe and its models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from models import make_model, write_adapter
from recipes import family_recipe, write
from typer.testing import CliRunner

import dlf
from dlf.cli import app
from dlf.recipe import load_recipe
from dlf.recipe.check import check_recipe


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
    assert found.output.count("dlf: error: ") == 2
    assert f"{missing}:1: large: no folder 'no/where/at/all'" in found.output
    assert f"{missing}:1: base: no folder 'nowhere'" in found.output
    broken = write(tmp_path, "larg: x\nsampling: {top_p: 7}\n")
    found = runner.invoke(app, ["recipe", "check", str(broken), "--json"])
    assert found.exit_code == 2 and len(json.loads(found.stdout)["problems"]) == 3
    found = runner.invoke(app, ["recipe", "check", str(write(tmp_path, "large: [")), "--json"])
    assert found.exit_code == 2 and len(json.loads(found.stdout)["problems"]) == 1


def test_check_prints_what_is_written(family: dict[str, Path], tmp_path: Path) -> None:
    """Markup and control codes are printed as text."""
    shots = [{"examples": [["a", "b"]], "name": "[red]\x1b[31m[/]", "template": "\x9b31m\n{prompt}"}]
    path = family_recipe(family, tmp_path, experts=shots, sampling={"stop_strings": ["[/]\x1b"]})
    found = CliRunner().invoke(app, ["recipe", "check", str(path)], env={"COLUMNS": "200"})
    assert found.exit_code == 0, found.output
    assert "[red]\\x1b[31m[/]" in found.stdout and "\\x9b31m\\n{prompt}" in found.stdout and "[/]\\x1b" in found.stdout
    assert not {"\x1b", "\x9b"} & set(found.stdout)


def checked(family: dict[str, Path], tmp_path: Path, **sections: Any) -> list[str]:
    path = family_recipe(family, tmp_path, **sections)
    found = check_recipe(load_recipe(path))
    assert (found.weights_bytes is None) == bool(found.problems)
    return [problem.removeprefix(f"{path}:1: ") for problem in found.problems]


def test_models_that_do_not_go_together(family: dict[str, Path], tmp_path: Path) -> None:
    other = Path(shutil.copytree(family["expert-a"], tmp_path / "other"))
    text = (other / "tokenizer.json").read_text("utf-8")
    vocabulary = json.loads(text)
    first, second = list(vocabulary["model"]["vocab"])[-2:]
    vocab = vocabulary["model"]["vocab"]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(vocabulary), "utf-8")
    [found] = checked(family, tmp_path, experts=[{"model": str(other)}])
    assert found.startswith("experts[0].model: ") and str(other) in found
    short = make_model(tmp_path / "short", "llama", num_hidden_layers=1)
    experts = [{"adapter": str(family["base"])}, {"merge": {str(short): 0.5}}]
    first, second = checked(family, tmp_path, experts=experts)
    assert first.startswith("experts[0].adapter: ") and "has no adapter_config.json" in first
    assert second.startswith("experts[1].merge: ") and "num_hidden_layers" in second
    plain = Path(shutil.copytree(family["expert-a"], tmp_path / "plain"))  # no chat template
    (plain / "chat_template.jinja").unlink(missing_ok=True)
    values = json.loads((plain / "tokenizer_config.json").read_text("utf-8"))
    values.pop("chat_template", None)
    (plain / "tokenizer_config.json").write_text(json.dumps(values), "utf-8")
    assert checked(family, tmp_path, template="chat") == []
    for keys, sections in (
        ("experts[0].template", {"experts": [{"model": str(plain), "template": "chat"}]}),
        ("experts[0].base_template", {"experts": [{"model": str(plain), "base": str(plain), "base_template": "chat"}]}),
        ("template", {"template": "chat", "experts": [{"model": str(plain)}]}),
    ):
        [found] = checked(family, tmp_path, **sections)
        assert found.startswith(f"{keys}: {plain} has no chat template to read")
    [found] = checked(family, tmp_path, engine={"max_context": 1 << 20})
    assert found.startswith("engine.max_context: max_context is 1048576; the models were made for 2 to ")
    damaged = Path(shutil.copytree(family["base"], tmp_path / "damaged"))
    (damaged / "model.safetensors").unlink()
    [found] = checked(family, tmp_path, base=str(damaged))
    assert found.startswith("base: ") and "fetch the checkpoint again" in found
    [found] = checked(family, tmp_path, engine={"drafter": str(damaged)})
    assert found.startswith("engine.drafter: ") and "fetch the checkpoint again" in found
    [found] = checked(family, tmp_path, engine={"drafter": str(other)})
    assert found.startswith("engine.drafter: ") and str(other) in found
    [found] = checked(family, tmp_path, template="chat", engine={"drafter": str(plain)})
    assert found.startswith(f"template: {plain} has no chat template to read")


def test_adapters_that_do_not_fit(family: dict[str, Path], tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", family["base"], seed=5)
    assert (
        checked(family, tmp_path, experts=[{"adapter": str(adapter)}, {"adapter": str(adapter), "merge": True}]) == []
    )
    other = write_adapter(tmp_path / "other", make_model(tmp_path / "wide", "llama", hidden_size=128), seed=5)
    [found] = checked(family, tmp_path, experts=[{"adapter": str(other)}])
    assert found.startswith("experts[0].adapter: ") and "for this base" in found
    values = json.loads((adapter / "adapter_config.json").read_text("utf-8")) | {"use_dora": True}
    (adapter / "adapter_config.json").write_text(json.dumps(values), "utf-8")
    [found] = checked(family, tmp_path, experts=[{"adapter": str(adapter)}])
    assert found.startswith("experts[0].adapter: ") and "DoRA" in found


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"engine": {"dtype": "float16"}}, "engine.dtype: float16 is for CUDA devices"),
        ({"engine": {"weights": "fp16"}}, "engine.weights: float16 is for CUDA devices"),
        (
            {"engine": {"device_map": {"large": "cpu", "experts": "cuda:1"}}},
            "engine.device_map: the large model is on 'cpu' and the experts are on 'cuda:1'",
        ),
        ({"sampling": {"stop_token_ids": [1 << 20]}}, "sampling.stop_token_ids: stop_token_ids names token 1048576"),
        ({"sampling": {"top_p": 0.5, "logprobs": 1 << 20}}, "sampling.logprobs: logprobs is 1048576"),
        ({"sampling": {"bad_words_ids": [[1 << 20]]}}, "sampling: bad_words names token 1048576"),
    ],
)
def test_what_the_engine_would_refuse(
    family: dict[str, Path], tmp_path: Path, sections: dict[str, Any], expected: str
) -> None:
    [found] = checked(family, tmp_path, **sections)
    assert found.startswith(expected)
    message = expected.split(": ")[1]
    with pytest.raises(ValueError, match=message), dlf.Engine.from_recipe(tmp_path / "recipe.yaml") as engine:
        engine.generate("The quick")


def test_what_runs_on_a_device_is_let_be(family: dict[str, Path], tmp_path: Path) -> None:
    """A recipe may be for another machine: its devices need not exist here."""
    experts = [{"model": str(family["expert-a"]), "weights": "fp16"}]
    assert checked(family, tmp_path, experts=experts, engine={"dtype": "auto", "device": "cuda:7"}) == []
    [found] = checked(family, tmp_path, experts=experts)
    assert found.startswith("experts[0].weights: float16 is for CUDA devices")


def test_what_no_device_takes_is_found_on_any_machine(family: dict[str, Path], tmp_path: Path) -> None:
    [found] = checked(family, tmp_path, engine={"device": "cuda", "max_batch": 300})
    assert found.startswith("engine.max_batch: max_batch is 300; on CUDA it can be at most 256")


def test_examples_that_do_not_fit(family: dict[str, Path], tmp_path: Path) -> None:
    def found(count: int) -> list[str]:
        experts = [{"model": str(family["expert-a"])}, {"examples": [["The quick", "fox"]] * count}]
        return checked(family, tmp_path, experts=experts, engine={"max_context": 32})

    most = next(count for count in range(1, 32) if found(count + 1))
    assert found(most) == []
    [problem] = found(most + 1)
    assert problem.startswith(f"experts[1].examples: {most} of {most + 1} examples fit the context of 32 tokens")
    assert ", or raise max_context, up to " in problem
    message = f"{most} of the examples fit"
    with dlf.Engine.from_recipe(tmp_path / "recipe.yaml") as engine, pytest.raises(ValueError, match=message):
        engine.generate(".")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_the_memory_is_the_engine_s(family: dict[str, Path], tmp_path: Path, device: str) -> None:
    experts = [
        {"model": str(family["expert-a"]), "name": "a", "weights": "int8"},
        {"model": str(family["expert-b"])},
        {"examples": [["The quick", "fox"]]},
        {"merge": {str(family["expert-b"]): 0.5}},
    ]
    drafter = make_model(tmp_path / "drafter", "llama", seed=9, hidden_size=32)
    engine = {"device": device, "max_context": 32, "max_batch": 2, "drafter": str(drafter)}
    path = family_recipe(family, tmp_path, experts=experts, engine=engine)
    found = check_recipe(load_recipe(path))
    assert found.problems == [] and found.max_context == 32
    with dlf.Engine.from_recipe(path) as engine:
        parts = engine.memory.by_part()
        assert [found.weights_bytes, found.cache_bytes] == [parts["weights"], parts["KV cache"]]
        assert found.weights_bytes == sum(model.weights.nbytes for model in engine._ensemble.models)


def test_each_card_has_its_part(family: dict[str, Path], tmp_path: Path) -> None:
    """The parts of a split large model, on a machine that need not have the cards."""
    runner = CliRunner()
    where = {"large": ["cuda:0", "cuda:1"], "experts": "cuda:1"}
    path = str(family_recipe(family, tmp_path, engine={"device_map": where, "max_batch": 2}))
    found = json.loads(runner.invoke(app, ["recipe", "check", path, "--json"]).stdout)
    parts = found["devices"]
    assert set(parts) == {"cuda:0", "cuda:1"}
    assert sum(part["kv_cache_bytes"] for part in parts.values()) == found["kv_cache_bytes"]
    weights = [part["weights_bytes"] for part in parts.values()]
    assert found["weights_bytes"] <= sum(weights) < 1.05 * found["weights_bytes"]  # norms are on both
    assert weights[0] < weights[1]
    shown = runner.invoke(app, ["recipe", "check", path, "--card-gib", "1"], env={"COLUMNS": "300"}).stdout
    assert "cuda:0: " in shown and shown.count("; fits 1 GiB, ") == 2
    shown = runner.invoke(app, ["recipe", "check", path, "--card-gib", "0.0001"], env={"COLUMNS": "300"}).stdout
    assert shown.count("; does not fit 0.0001 GiB: ") == 2
    whole = family_recipe(family, tmp_path, engine={"device_map": {"large": [f"cuda:{i}" for i in range(7)]}})
    [problem] = check_recipe(load_recipe(whole)).problems
    assert "engine.device_map: a model with" in problem and "cannot be split over 7 devices" in problem


def test_weights_are_not_fetched(family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def download(name: str, revision: str | None, allow_patterns: Sequence[str]) -> str:
        weights = {"model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"}
        assert weights.isdisjoint(allow_patterns)
        assert all("*" not in pattern.removeprefix("additional_chat_templates/*") for pattern in allow_patterns)
        assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= set(allow_patterns)
        asked.append(name)
        folder = tmp_path / name.replace("/", "-")
        if not folder.exists():
            shutil.copytree(family[name.split("/")[1]], folder, ignore=shutil.ignore_patterns("*.safetensors"))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    experts = [{"model": "org/expert-a"}, {"merge": {"org/expert-b": 0.5}}]
    assert checked(family, tmp_path, large="org/large", base="org/base", experts=experts) == []
    assert sorted(asked) == ["org/base", "org/expert-a", "org/expert-b", "org/large"]
