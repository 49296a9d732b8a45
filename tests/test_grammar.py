"""Answers that follow a grammar: valid, with the same bits in company and with drafts, on the CPU and on CUDA."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import finetune, make_model, make_sentencepiece_tokenizer
from reference.grammar_hook import GrammarHook

import dlf
from dlf.grammar_mask import GrammarMask
from dlf.prompts import end_tokens
from dlf.text.token_bytes import token_bytes
from dlf.text.tokenizer import Tokenizer

pytest.importorskip("llguidance")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
PROMPTS = ["Question: what is the sum", "x", "lazy dog "]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["fox", "dog", "the lazy cat"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(params=DEVICES)
def engine(family: dict[str, Path], request: pytest.FixtureRequest) -> Iterator[dlf.Engine]:
    experts = [dlf.Expert(family[name], family["base"], name=name[-1]) for name in ("expert-a", "expert-b")]
    options: dict[str, Any] = {"threads": 2, "max_batch": 4, "max_context": 200, "device": request.param}
    with dlf.Engine(family["large"], experts, **options) as made:
        yield made


def small(engine: dlf.Engine) -> bool:
    return str(engine._ensemble.options.device) != "cpu"


def is_valid(text: str) -> bool:
    found = json.loads(text)
    assert set(found) == {"name", "age", "tags"} and found["name"] in ("fox", "dog", "the lazy cat")
    return 0 <= found["age"] <= 99 and len(found["tags"]) <= 2 and all(isinstance(tag, bool) for tag in found["tags"])


def test_answers_follow_a_schema(engine: dlf.Engine) -> None:
    options: dict[str, Any] = {"grammar": dlf.Grammar.json_schema(SCHEMA), "max_new_tokens": 150}
    count = 1 if small(engine) else 40
    found = engine.generate(PROMPTS[0], temperature=1.0, seed=1, num_return_sequences=count, **options)
    for one in found if isinstance(found, list) else [found]:
        assert one.finish_reason == "stop" and is_valid(one.text), one.text
        assert np.isfinite(one.logprobs).all() and one.alpha.max() > 0
    if not small(engine):
        assert len({one.text for one in found}) > 10


def same(one: dlf.Completion, other: dlf.Completion) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("logprobs", "alpha", "f", "g"))
    return arrays and one.tokens == other.tokens and one.top_logprobs == other.top_logprobs


def hook(engine: dlf.Engine, grammar: dlf.Grammar) -> GrammarHook:
    return GrammarHook(grammar, engine._ensemble.grammar_tokens.of(end_tokens(engine._ensemble, PROMPTS[0])))


@pytest.mark.parametrize("experts", [["a", "b"], []])
def test_a_mask_gives_what_masked_logits_give(engine: dlf.Engine, experts: list[str]) -> None:
    grammar = dlf.Grammar.json_schema(SCHEMA)
    for sampling in (
        {"temperature": 0.0, "logprobs": 5},
        {"temperature": 1.0, "top_k": 7, "min_p": 0.01},
        {"temperature": 0.9, "top_p": 0.8, "repetition_penalty": 1.2, "min_new_tokens": 5, "logprobs": 3},
    ):
        options: dict[str, Any] = {"seed": 3, "max_new_tokens": 8 if small(engine) else 60, "experts": experts}
        options |= sampling
        masked = engine.generate(PROMPTS[0], grammar=grammar, **options)
        obvious = engine.generate(PROMPTS[0], rule=hook(engine, grammar), speculate=False, **options)
        assert same(masked, obvious), sampling


def test_drafts_and_company_change_no_bit(engine: dlf.Engine) -> None:
    most = 8 if small(engine) else 60
    options: dict[str, Any] = {"temperature": 0.8, "seed": 5, "max_new_tokens": most, "trace": True}
    grammar = dlf.Grammar.json_schema(SCHEMA)
    alone = [engine.generate(prompt, grammar=grammar, speculate=False, **options) for prompt in PROMPTS]
    lookup = dlf.Speculation(max_draft=5, drafter="prompt_lookup", adaptive=False)
    near = dlf.Speculation(max_draft=3, drafter="a", adaptive=False)
    for draft in (False, lookup, near):
        # On CUDA, a pass over more than 8 rows is not exact.
        groups = [[prompt] for prompt in PROMPTS] if small(engine) and draft else [PROMPTS]
        found = [engine.generate(group, grammar=grammar, **options, speculate=draft) for group in groups]
        for one, expected in zip((one for group in found for one in group), alone, strict=True):
            assert same(one, expected) and one.own_tokens == expected.own_tokens
            assert draft is False or one.drafted > 0
    streams = [
        engine.stream(prompt, grammar=grammar if i else None, speculate=False, **options)
        for i, prompt in enumerate(PROMPTS)
    ]
    mixed = [[piece.token for piece in stream] for stream in streams]
    assert mixed[1:] == [one.tokens for one in alone[1:]]
    assert mixed[0] == engine.generate(PROMPTS[0], speculate=False, **options).tokens


def test_right_drafts_are_accepted(engine: dlf.Engine) -> None:
    grammar = dlf.Grammar.regex("(the lazy fox, ){6}")
    options: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0, "seed": 1}
    plain = engine.generate(PROMPTS[1], rule=hook(engine, grammar), speculate=False, **options)
    lookup = dlf.Speculation(max_draft=6, drafter="prompt_lookup", adaptive=False)
    for draft in (lookup, dlf.Speculation(max_draft=2, drafter="a", adaptive=False)):
        drafted = engine.generate(PROMPTS[1], grammar=grammar, speculate=draft, **options)
        assert same(drafted, plain)
        if draft is lookup or not small(engine):  # on CUDA, masks follow what a lane has drafted
            assert drafted.passes < len(drafted.tokens)


def test_a_step_with_masks_is_a_graph(engine: dlf.Engine) -> None:
    if not small(engine):
        pytest.skip("the CPU has no graphs")
    grammar = dlf.Grammar.regex("[a-z ]*")
    for draft in (False, dlf.Speculation(max_draft=2, drafter="a", adaptive=False)):
        options: dict[str, Any] = {"max_new_tokens": 20, "ignore_eos": True, "speculate": draft}
        first, again = (engine.generate(PROMPTS[0], grammar=grammar, **options) for _ in range(2))
        assert same(first, again) and again.timings.steps[-1].graph
        assert (again.drafted > 0) == bool(draft)


def test_a_mask_that_fails_ends_its_request_alone(engine: dlf.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaking(GrammarMask):
        def __init__(self, grammar: dlf.Grammar, tokens: Any) -> None:
            super().__init__(grammar, tokens)
            self.left = 3 if grammar is broken else 100

        def _write(self, rows: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("the matcher broke")
            super()._write(rows)

    whole, broken = dlf.Grammar.regex("[a-z ]*"), dlf.Grammar.regex("[a-z ]*")
    options: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}
    alone = [engine.generate(prompt, grammar=whole, **options) for prompt in PROMPTS[:2]]
    monkeypatch.setattr("dlf.prepare.GrammarMask", Breaking)
    streams = [engine.stream(PROMPTS[i], grammar=grammar, **options) for i, grammar in enumerate((broken, whole))]
    tokens = []
    with pytest.raises(RuntimeError, match="the matcher broke"):
        for piece in streams[0]:
            tokens.append(piece.token)
    assert tokens == alone[0].tokens[: len(tokens)] != []
    assert [piece.token for piece in streams[1]] == alone[1].tokens


def test_weights_are_those_without_the_mask(engine: dlf.Engine) -> None:
    """The first token of both answers is drawn from the same fused logits, of which one is masked."""
    free = engine.logits(PROMPTS[0])
    found = engine.generate(PROMPTS[0], grammar=dlf.Grammar.choice(["the fox", "a dog"]), max_new_tokens=1)
    assert np.array_equal(found.alpha[0], free.alpha[0].cpu().numpy())
    assert found.f[0] == free.f[0] and found.g[0] == free.g[0]
    begins = [token for token in range(engine.vocab_size) if _begins(engine.tokenizer, token, ("the fox", "a dog"))]
    logits = free.fused[0].cpu().double().numpy()
    assert found.tokens[0] == max(begins, key=lambda token: logits[token])
    masked = logits[begins] - np.logaddexp.reduce(logits[begins])
    assert found.logprobs[0] == pytest.approx(masked.max(), abs=1e-5)


def _begins(tokenizer: Tokenizer, token: int, texts: tuple[str, ...]) -> bool:
    content = token_bytes(tokenizer, token)
    return bool(content) and any(text.encode().startswith(content) for text in texts)


def test_choices_regular_expressions_and_lark(engine: dlf.Engine) -> None:
    options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.5, "seed": 3}
    for grammar, pattern in (
        (dlf.Grammar.choice(["yes", 'no "x"', "ja\n"]), r'yes|no "x"|ja\n'),
        (dlf.Grammar.regex(r"[0-9]{2}-[a-c]+ü"), r"[0-9]{2}-[a-c]+ü"),
        (dlf.Grammar.lark('start: "a" ("b" | "c")* "d"'), r"a[bc]*d"),
    )[: 1 if small(engine) else 3]:
        found = engine.generate(PROMPTS[1], grammar=grammar, experts=[], **options)
        assert found.finish_reason == "stop" and re.fullmatch(pattern, found.text), found.text


def test_behind_the_end_of_an_answer_there_are_only_ends(engine: dlf.Engine) -> None:
    grammar = dlf.Grammar.choice(["the fox"])
    ended = engine.generate(PROMPTS[0], grammar=grammar)
    for draft in (False, dlf.Speculation(max_draft=4, drafter="prompt_lookup", adaptive=False)):
        most = len(ended.tokens) + 8
        found = engine.generate(PROMPTS[0], grammar=grammar, ignore_eos=True, max_new_tokens=most, speculate=draft)
        assert ended.text == found.text == "the fox"
        assert found.tokens == ended.tokens + [ended.tokens[-1]] * 8


def test_a_function_and_a_grammar_together(engine: dlf.Engine) -> None:
    seen: list[tuple[int, list[int]]] = []

    def half(step: dlf.StepLogits) -> Any:
        seen.append((step.step, step.tokens))
        return step.alpha * 0 + 0.5

    options: dict[str, Any] = {"grammar": dlf.Grammar.choice(["the fox", "a dog"]), "max_new_tokens": 20}
    ours = engine.generate(PROMPTS[0], rule=half, speculate=False, **options)
    fixed = engine.generate(PROMPTS[0], alpha=[0.5, 0.5], speculate=False, **options)
    assert ours.tokens == fixed.tokens and ours.text in ("the fox", "a dog")
    assert [tokens for _, tokens in seen][1:] == [[token] for token in ours.tokens[:-1]]
    assert seen[0] == (0, [engine.tokenizer.encode(PROMPTS[0])[-1]])


def test_mistakes_are_explained_and_leave_the_engine_usable(engine: dlf.Engine) -> None:
    for grammar, message in (
        (dlf.Grammar.regex("("), "mistake"),
        (dlf.Grammar.json_schema("{"), "cannot be read"),
        (dlf.Grammar.json_schema({"type": "nonsense"}), "mistake"),
        (dlf.Grammar.lark("begin: 'a'"), "mistake"),
    ):
        with pytest.raises(dlf.OptionError, match=message) as caught:
            engine.generate("x", grammar=grammar)
        assert caught.value.field == "grammar"
    with pytest.raises(dlf.OptionTypeError, match=r"give a dlf\.Grammar"):
        engine.generate("x", grammar="a")
    with pytest.raises(dlf.OptionError, match="65537 characters"):
        dlf.Grammar.regex("a" * 65537)
    with pytest.raises(dlf.OptionError, match="at least one text"):
        dlf.Grammar.choice([])
    assert engine.generate("x", max_new_tokens=2, ignore_eos=True).tokens


def test_sentencepiece_tokens(tmp_path: Path) -> None:
    large = make_model(tmp_path / "large", "llama", seed=1)
    make_sentencepiece_tokenizer(large)
    tokenizer = Tokenizer(large)
    ids = tokenizer.encode("Ein Café, grün 日本", add_special_tokens=False)
    assert b"".join(token_bytes(tokenizer, token) for token in ids).decode().strip() == "Ein Café, grün 日本"
    base = finetune(tmp_path / "base", large, 2, 0.5)
    with dlf.Engine(large, [dlf.Expert(large, base)], threads=2) as engine:
        for seed in range(5):
            found = engine.generate(
                "x", grammar=dlf.Grammar.json_schema(SCHEMA), temperature=1.0, seed=seed, max_new_tokens=200
            )
            assert found.finish_reason == "stop" and is_valid(found.text), found.text
