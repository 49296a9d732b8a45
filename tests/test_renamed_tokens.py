"""Models whose tokenizers have other names for a few added tokens, like Qwen2.5 and its R1 distills."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import QWEN, R1, VOCAB_SIZE, finetune, make_model, make_qwen_tokenizer
from reference.decoding import Reference

import dlf
from dlf.prompts import end_tokens, lane_prompts
from dlf.recipe import load_recipe
from dlf.recipe.check import check_recipe

FIRST = VOCAB_SIZE - len(QWEN)  # id of the first added token
MESSAGES = [{"role": "user", "content": "what is the sum"}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A large model with Qwen's names, an expert and its base with those of the R1 distills."""
    root = tmp_path_factory.mktemp("renamed")
    large = make_model(root / "large", "qwen2", seed=1, eos_token_id=FIRST + 2)
    base = make_model(root / "base", "qwen2", seed=2, eos_token_id=FIRST)
    expert = finetune(root / "expert", base, 3, 0.2)
    make_qwen_tokenizer(large)
    for folder in (base, expert):
        make_qwen_tokenizer(folder, r1=True)
    return {"large": large, "base": base, "expert": expert}


def engine(models: dict[str, Path], **options: Any) -> dlf.Engine:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return dlf.Engine(models["large"], [models["expert"]], base=models["base"], threads=1, **options)


def ends(folder: Path, *ids: int) -> None:
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {"eos_token_id": list(ids)}))


def test_one_warning_names_the_tokens(models: dict[str, Path]) -> None:
    with pytest.warns(RuntimeWarning, match="added tokens") as caught:
        dlf.Engine(models["large"], [models["expert"]], base=models["base"], threads=1).close()
    [warning] = caught
    text = str(warning.message)
    for i in range(4):
        assert f"{FIRST + i} is {QWEN[i]!r} and {R1[i]!r}" in text
    assert QWEN[4] not in text  # both have it
    assert str(models["large"]) in text and str(models["base"]) in text and str(models["expert"]) in text


def test_each_lane_writes_its_own_names(models: dict[str, Path]) -> None:
    with engine(models) as one:
        ensemble = one._ensemble
        prompts = lane_prompts(ensemble, MESSAGES, [0])
        for lane, prompt in zip(ensemble.lanes.lanes, prompts, strict=True):
            tokenizer = ensemble.models[lane.model].tokenizer
            text = tokenizer.apply_chat_template(MESSAGES)
            assert prompt.tokens == tokenizer.encode(text, add_special_tokens=False)
        assert prompts[0].tokens[0] == FIRST + 1 and prompts[0].tokens.count(FIRST + 2) == 1
        # <|begin of sentence|> <|User|> what is the sum <|Assistant|>
        assert prompts[1].tokens[:2] == [FIRST + 3, FIRST + 1] and prompts[1].tokens[-1] == FIRST + 2
        assert prompts[1].tokens == prompts[2].tokens != prompts[0].tokens
        completion = one.generate(messages=MESSAGES, max_new_tokens=20, ignore_eos=True)
        vocab = one.vocab_size

    def fuse(large: np.ndarray, base: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        solved = dlf.fusion.solve(large[None], base[None], experts[None])
        return solved.alpha[0], solved.logits[0]

    reference = Reference(models["large"], models["base"], [models["expert"]], vocab)
    small = list(prompts[1].tokens)
    tokens, _ = reference.generate(list(prompts[0].tokens), 20, fuse, [small], small)
    assert completion.tokens == tokens


def test_ends_are_those_of_the_large_model_and_of_the_experts(models: dict[str, Path], tmp_path: Path) -> None:
    base = finetune(tmp_path / "base", models["base"], 5, 0.0)
    expert = finetune(tmp_path / "expert", models["expert"], 6, 0.0)
    ends(base, FIRST + 3)  # ends nothing
    ends(expert, FIRST, 40)  # 40 is an ordinary token of the large model
    with engine(models | {"base": base, "expert": expert}) as one:
        assert end_tokens(one._ensemble, "x", []) == [FIRST + 2, FIRST]  # by its configuration and its tokenizer
        assert end_tokens(one._ensemble, "x", [0]) == [FIRST + 2, FIRST]
        assert end_tokens(one._ensemble, MESSAGES, [0]) == [FIRST + 2, FIRST]
    ends(expert, FIRST + 3)
    with engine(models | {"base": base, "expert": expert}) as one:
        assert end_tokens(one._ensemble, "x", []) == [FIRST + 2, FIRST]
        assert end_tokens(one._ensemble, "x", [0]) == [FIRST + 2, FIRST, FIRST + 3]
        free = one.generate([5, 6, 7], max_new_tokens=60, ignore_eos=True, logit_bias={FIRST + 3: 8.0})
        assert FIRST + 3 in free.tokens
        cut = one.generate([5, 6, 7], max_new_tokens=60, logit_bias={FIRST + 3: 8.0})
        assert cut.finish_reason == "stop" and cut.tokens == free.tokens[: free.tokens.index(FIRST + 3) + 1]


def test_a_small_model_reads_tokens_that_the_large_one_lacks(models: dict[str, Path], tmp_path: Path) -> None:
    large = finetune(tmp_path / "large", models["large"], 7, 0.0)
    path = make_qwen_tokenizer(large) / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"] = values["added_tokens"][:3]  # without the ids of <｜begin▁of▁sentence｜> and the last one
    path.write_text(json.dumps(values, ensure_ascii=False))
    with engine(models | {"large": large}) as one:
        assert one.vocab_size == FIRST + 3
        assert lane_prompts(one._ensemble, MESSAGES, [0])[1].tokens[0] == FIRST + 3
        assert len(one.generate(messages=MESSAGES, max_new_tokens=5, ignore_eos=True).tokens) == 5
        with pytest.raises(dlf.PromptError, match=f"id {FIRST + 3}; ids are from 0 to {FIRST + 2}"):
            one.generate([FIRST + 3])


def test_a_merge_adds_up_rows_by_id(models: dict[str, Path], tmp_path: Path) -> None:
    renamed = finetune(tmp_path / "expert", models["base"], 3, 0.2)
    make_qwen_tokenizer(renamed)
    with pytest.warns(RuntimeWarning, match=f"{FIRST} is {R1[0]!r} and {QWEN[0]!r}.*the base's names"):
        dlf.TaskArithmetic(models["base"], {renamed: 0.5}).save(tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").read_bytes() == (models["base"] / "tokenizer.json").read_bytes()


def test_the_check_of_a_recipe_warns(models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"large: {models['large']}\nbase: {models['base']}\nexperts:\n  - model: {models['expert']}\n")
    with pytest.warns(RuntimeWarning, match="added tokens") as caught:
        assert not check_recipe(load_recipe(path)).problems
    assert len(caught) == 1
