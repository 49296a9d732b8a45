"""The recipes in examples/recipes: each loads and decodes with tiny stand-ins of the same architecture."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from models import finetune, make_model, make_qwen_tokenizer, make_sentencepiece_tokenizer

import dlf
from dlf.recipe import load_recipe
from dlf.recipe.check import check_recipe

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "examples" / "recipes").glob("*.yaml"))
MODEL = re.compile(r"^(\s*(?:- )?(?:large|base|model|amateur): )([\w.-]+/[\w.-]+(?:@[\w./-]+)?)$", re.MULTILINE)
FAMILY = {"gpt2": "gpt2", "Qwen": "qwen2", "Mistral": "mistral", "lama": "llama", "LLaMA": "llama"}


def family_of(name: str) -> str:
    return next(family for part, family in FAMILY.items() if part in name)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint for each hub id: experts are fine-tuned from one small model of their family."""
    root = tmp_path_factory.mktemp("hub")
    small = {family: make_model(root / family, family, seed=2) for family in set(FAMILY.values())}
    names = {name for path in RECIPES for _, name in MODEL.findall(path.read_text("utf-8"))}
    found = {
        name: finetune(root / name.replace("/", "--"), small[family_of(name)], seed, 0.2)
        for seed, name in enumerate(sorted(names))
    }
    for name, folder in found.items():
        if family_of(name) == "llama":
            make_sentencepiece_tokenizer(folder)
        elif family_of(name) == "qwen2":
            make_qwen_tokenizer(folder, r1="R1" in name)
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_decodes_with_stand_ins(path: Path, stand_ins: dict[str, Path], tmp_path: Path) -> None:
    text = path.read_text("utf-8")
    assert "arXiv" in text and MODEL.search(text)
    local = tmp_path / "recipe.yaml"
    local.write_text(MODEL.sub(lambda found: f"{found[1]}{stand_ins[found[2]]}", text), "utf-8")
    recipe = load_recipe(local)
    assert recipe.experts and check_recipe(recipe).problems == []
    options = {"max_new_tokens": 6, "ignore_eos": True, "seed": 1}
    with dlf.Engine.from_recipe(local, threads=2) as engine:
        guided = any(isinstance(expert, dlf.Guidance) for expert in recipe.experts)
        if guided:
            options["negative_prompt"] = "the dog"
        completion = engine.generate("the fox and the dog", **options)
        alone = engine.generate("the fox and the dog", experts=[], max_new_tokens=6, ignore_eos=True, seed=1)
    assert len(completion.tokens) == 6 and completion.experts == engine.experts
    assert list(completion.logprobs) != list(alone.logprobs)
    given = [expert.alpha for expert in recipe.experts if expert.alpha is not None]
    assert all(completion.alpha[0] == given) if given else completion.alpha.max() > 0


def test_the_table_of_examples_has_each_recipe() -> None:
    text = (ROOT / "examples" / "README.md").read_text("utf-8")
    assert set(re.findall(r"\(recipes/([\w-]+\.yaml)\)", text)) == {path.name for path in RECIPES}
