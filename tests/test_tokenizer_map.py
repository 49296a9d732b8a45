"""Models with other token ids, fused through a map: the same bits as with equal ids, on the CPU and on CUDA."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import VOCAB_SIZE, finetune, make_sentencepiece_tokenizer, permute, write_adapter
from reference.decoding import IdMap, Reference

import dlf
from dlf.prompts import end_tokens, lane_prompts
from dlf.recipe import load_recipe
from dlf.recipe.check import check_recipe
from dlf.text.token_map import token_map
from dlf.text.tokenizer import Tokenizer

PROMPTS = ["Question: what is the sum", "x", "lazy dog " * 9]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def options_of(device: str) -> dict[str, Any]:
    return {"max_new_tokens": 24 if device == "cpu" else 5, "ignore_eos": True}


@pytest.fixture(scope="module")
def permuted(family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The family, with ids of its own for each small model."""
    root = tmp_path_factory.mktemp("permuted")
    small = {
        name: permute(root / name, family[name], seed) for seed, name in enumerate(("base", "expert-a", "expert-b"))
    }
    return {"large": family["large"], **small}


@pytest.fixture(scope="module")
def foreign(family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The family, with ids of its own and four other tokens for each small model."""
    root = tmp_path_factory.mktemp("foreign")
    small = {name: permute(root / name, family[name], 7 + i, 4) for i, name in enumerate(("base", "expert-a"))}
    return {"large": family["large"], **small}


def engine(
    models: dict[str, Path], mapped: bool, *, names: tuple[str, ...] = ("expert-a",), **options: Any
) -> dlf.Engine:
    options = {"threads": 2, "max_batch": 2, "max_context": 160} | options
    experts = [dlf.Expert(models[name], models["base"]) for name in names]
    return dlf.Engine(models["large"], experts, tokenizer_map="exact" if mapped else None, **options)


def same(ours: dlf.Completion, theirs: dlf.Completion) -> None:
    assert ours.tokens == theirs.tokens and ours.text == theirs.text
    for name in ("logprobs", "alpha", "f", "g"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


@pytest.mark.parametrize("device", DEVICES)
def test_permuted_ids_change_no_bit(family: dict[str, Path], permuted: dict[str, Path], device: str) -> None:
    plainly = options_of(device)
    sampled = plainly | {"temperature": 0.9, "top_p": 0.95, "seed": 3, "logprobs": 2, "repetition_penalty": 1.2}
    drafted = plainly | {"speculate": dlf.Speculation(max_draft=4, adaptive=False)}
    names = ("expert-a", "expert-b")
    with (
        engine(family, False, names=names, device=device) as plain,
        engine(permuted, True, names=names, device=device) as mapped,
    ):
        assert mapped.vocab_size == plain.vocab_size == VOCAB_SIZE
        for options in (plainly, sampled, drafted):  # the second and the third take prompts from the prefix cache
            found, expected = mapped.generate(PROMPTS, **options), plain.generate(PROMPTS, **options)
            for ours, theirs in zip(found, expected, strict=True):
                same(ours, theirs)
        same(mapped.generate(PROMPTS[0], **drafted), mapped.generate(PROMPTS, **plainly)[0])
        tokens = plain.tokenizer.encode(PROMPTS[0])
        same(mapped.generate(tokens, **plainly), plain.generate(PROMPTS[0], **plainly))
        messages = [{"role": "user", "content": "why"}]
        same(mapped.generate(messages=messages, **plainly), plain.generate(messages=messages, **plainly))
        for continuation in (" 30 is 42.", tokens * (9 if device == "cpu" else 1)):
            ours, theirs = mapped.score(PROMPTS[0], continuation), plain.score(PROMPTS[0], continuation)
            assert ours.tokens == theirs.tokens
            assert np.array_equal(ours.logprobs, theirs.logprobs) and np.array_equal(ours.alpha, theirs.alpha)


@pytest.mark.parametrize("device", DEVICES)
def test_adapters_and_examples_on_a_mapped_base(
    family: dict[str, Path], permuted: dict[str, Path], tmp_path: Path, device: str
) -> None:
    """Both are lanes on the base's own weights, and examples are read in its own ids."""
    shots = [("1 and 2?", "the sum is 3"), ("3 and 5?", "the sum is 8")]
    adapter = write_adapter(tmp_path / "adapter", family["base"], 1, rank=4)
    options = options_of(device)
    drafted = options | {"speculate": dlf.Speculation(max_draft=3, adaptive=False)}
    found = []
    for models, mapping in ((family, None), (permuted, "exact")):
        experts = [dlf.Lora(models["base"], adapter, name="lora"), dlf.InContext(models["base"], shots, name="shots")]
        with dlf.Engine(
            models["large"], experts, tokenizer_map=mapping, threads=2, max_batch=2, max_context=200, device=device
        ) as engine:
            found.append([*engine.generate(PROMPTS, **options), engine.generate(PROMPTS[0], **drafted)])
            found[-1].append(engine.generate(PROMPTS[0], experts=["shots"], **options))
            found[-1].append(engine.generate(PROMPTS[0], experts=["lora"], **options))
    for ours, theirs in zip(*found, strict=True):
        same(ours, theirs)
    assert all(one.alpha.any(axis=0).all() for one in found[0][:1])


@pytest.mark.parametrize("draft", [0, 3])
def test_a_mapped_model_catches_up_when_a_gate_opens(
    family: dict[str, Path], permuted: dict[str, Path], draft: int
) -> None:
    speculate = dlf.Speculation(max_draft=draft, adaptive=False) if draft else False
    options = options_of("cpu") | {"max_new_tokens": 60, "gate": "entropy", "speculate": speculate}
    with engine(family, False) as plain, engine(permuted, True) as mapped:
        for threshold in (1.0, 2.5):
            found = plain.generate(PROMPTS, gate_threshold=threshold, **options)
            for ours, theirs in zip(mapped.generate(PROMPTS, gate_threshold=threshold, **options), found, strict=True):
                same(ours, theirs)
        assert any((one.alpha == 0).any() and (one.alpha != 0).any() for one in found)


@pytest.mark.parametrize("device", DEVICES)
def test_a_mapped_drafter_changes_no_bit(family: dict[str, Path], tmp_path: Path, device: str) -> None:
    """The drafter is the large model itself with other ids, so that its drafts are right."""
    plainly = options_of(device)
    drafter = permute(tmp_path / "drafter", family["large"], 5, foreign=3)
    draft = dlf.Speculation(max_draft=4, drafter="drafter", adaptive=False)
    with (
        engine(family, False, device=device) as plain,
        engine(family, True, drafter=drafter, device=device) as mapped,
    ):
        assert mapped._ensemble.vocabulary.maps[1] is None and mapped._ensemble.vocabulary.maps[-1] is not None
        for prompt in PROMPTS:
            ours = mapped.generate(prompt, experts=[], speculate=draft, **plainly)
            same(ours, plain.generate(prompt, experts=[], **plainly))
            assert ours.passes < len(ours.tokens)
            same(mapped.generate(prompt, speculate=draft, **plainly), plain.generate(prompt, **plainly))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("combine", ["static", "select"])
def test_foreign_tokens_as_the_obvious_loop(foreign: dict[str, Path], combine: str, device: str) -> None:
    plainly = options_of(device)
    static = combine == "static"
    rule: dict[str, Any] = {"combine": combine} | ({"alpha": [0.7]} if static else {})
    with engine(foreign, True, device=device, **rule) as mapped:
        prompts = [list(one.tokens) for one in lane_prompts(mapped._ensemble, PROMPTS[0], [0])]
        together = mapped.generate(PROMPTS, **plainly)
        found = mapped.generate(PROMPTS[0], speculate=dlf.Speculation(max_draft=3, adaptive=False), **plainly)
        vocab = mapped.vocab_size
    same(found, together[0])

    def fuse(large: np.ndarray, base: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if static:
            return np.array([0.7]), large + 0.7 * (experts[0] - base)
        solved = dlf.fusion.solve(*(x.astype(np.float32) for x in (large[None], base[None], experts[None])))
        return solved.alpha[0], solved.logits[0]

    maps = [IdMap(foreign["large"], foreign[name], vocab) for name in ("base", "expert-a")]
    reference = Reference(foreign["large"], foreign["base"], [foreign["expert-a"]], vocab, maps, torch.float64)
    assert 4 <= len(reference.missing) <= 8
    tokens, alpha = reference.generate(prompts[0], plainly["max_new_tokens"], fuse, [prompts[1]], prompts[2])
    assert found.tokens == tokens
    np.testing.assert_allclose(found.alpha, alpha, atol=1e-3)


def test_a_token_without_partner_keeps_the_large_models_logit(foreign: dict[str, Path]) -> None:
    """One that is chosen is fed, too: as the first token of its text."""
    with engine(foreign, True, combine="static", alpha=[1.5]) as mapped:
        ids = mapped._ensemble.vocabulary.maps[1]
        assert ids is not None
        token = int(np.flatnonzero(ids.read < 0)[0])
        tokenizer = mapped._ensemble.models[1].tokenizer
        text = mapped.tokenizer.decode([token])
        assert ids.feed[token] == tokenizer.encode(text, add_special_tokens=False)[0]
        options: dict[str, Any] = {"max_new_tokens": 8, "logit_bias": {token: 100.0}, "ignore_eos": True}
        found = mapped.generate(PROMPTS[0], **options)
        assert found.tokens == [token] * 8
        assert np.isfinite(found.logprobs).all()
        # Of two tokens without partner, the difference of log-probabilities is the large model's.
        other = int(np.flatnonzero(ids.read < 0)[1])
        prompt = mapped.tokenizer.encode(PROMPTS[0])
        fused = [mapped.score(prompt, [one]).logprobs[0] for one in (token, other)]
        alone = [mapped.score(prompt, [one], experts=[]).logprobs[0] for one in (token, other)]
        assert fused[0] - fused[1] == pytest.approx(alone[0] - alone[1], abs=1e-5)


def test_without_a_map_the_error_names_it(permuted: dict[str, Path]) -> None:
    with pytest.raises(dlf.TokenizerMismatchError, match="tokenizer_map='exact'"):
        engine(permuted, False)


def test_too_few_partners_are_an_error(family: dict[str, Path], tmp_path: Path) -> None:
    small = Path(shutil.copytree(family["base"], tmp_path / "small"))
    make_sentencepiece_tokenizer(small)
    with pytest.raises(dlf.TokenizerMismatchError, match=r"[0-9.]+ % of the ordinary tokens.*less than the 50 %"):
        engine(family | {"base": small}, True)


def test_the_coverage_is_logged(foreign: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "dlf"):
        engine(foreign, True).close()
    lines = [record.message for record in caplog.records if "through a map" in record.message]
    share = 100 * (VOCAB_SIZE - 2 - 4) / (VOCAB_SIZE - 2)
    assert len(lines) == 2 and all(f"{share:.1f} %" in line for line in lines)


def test_tokens_are_matched_kind_with_kind(tmp_path: Path, family: dict[str, Path]) -> None:
    large = Tokenizer(family["large"])
    path = Path(shutil.copytree(family["base"], tmp_path / "small")) / "tokenizer.json"
    values = json.loads(path.read_text())
    values["added_tokens"] = values["added_tokens"][1:]  # <|begin|> is an ordinary token now
    values["model"]["unk_token"] = "!"
    path.write_text(json.dumps(values))
    (path.parent / "tokenizer_config.json").unlink()
    small = Tokenizer(path.parent)
    found = token_map(large, small, ("large", "small"), VOCAB_SIZE, VOCAB_SIZE)
    assert found.read[0] == -1 and found.feed[0] == small.vocab["!"] == small.unk_token_id
    assert np.array_equal(found.read[1:], np.arange(1, VOCAB_SIZE))
    assert found.coverage == 1 and not found.has_all


def test_ends_and_ids_of_a_mapped_expert(permuted: dict[str, Path], tmp_path: Path) -> None:
    with engine(permuted, True) as mapped:
        assert end_tokens(mapped._ensemble, "x", [0]) == [1]  # the same token in both, under other ids
        with pytest.raises(dlf.PromptError, match="ids are from 0 to 383"):
            mapped.generate([VOCAB_SIZE])
    expert = finetune(tmp_path / "expert", permuted["expert-a"], 1, 0.0)
    begin = Tokenizer(expert).vocab["<|begin|>"]
    for name in ("config.json", "generation_config.json"):
        values = json.loads((expert / name).read_text())
        (expert / name).write_text(json.dumps(values | {"eos_token_id": begin}))
    with engine(permuted | {"expert-a": expert}, True) as mapped:
        assert end_tokens(mapped._ensemble, "x", [0]) == [1, 0]


def test_a_pair_with_the_large_model_needs_all_tokens(foreign: dict[str, Path], permuted: dict[str, Path]) -> None:
    with pytest.raises(dlf.TokenizerMismatchError, match="lacks tokens of"):
        engine(foreign | {"base": foreign["large"]}, True)
    engine(permuted | {"base": permuted["large"]}, True).close()


def test_a_recipe_has_the_option(permuted: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    text = f"large: {permuted['large']}\nbase: {permuted['base']}\nexperts:\n  - model: {permuted['expert-a']}\n"
    path.write_text(text)
    problems = check_recipe(load_recipe(path)).problems
    assert len(problems) == 2 and all("tokenizer_map='exact'" in one for one in problems)
    path.write_text(text + "engine:\n  tokenizer_map: exact\n")
    assert not check_recipe(load_recipe(path)).problems
    with dlf.Engine.from_recipe(path) as mapped:
        assert mapped._ensemble.options.tokenizer_map == "exact"
    with pytest.raises(dlf.OptionError, match="tokenizer_map is 'near'"):
        dlf.Engine(permuted["large"], tokenizer_map="near")
