"""Guidance, amateurs, experts without a base and mixtures: against transformers and readable loops."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import PADDED_VOCAB_SIZE
from reference.decoding import Contexts
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import dlf
from dlf.cli import app

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]
TEXT, NEGATIVE = "Question: what is the sum of 12 and 30?", "The quick brown fox"
PROMPT, OTHER = [11, 40, 7, 93, 260, 31], [5, 300, 17, 44, 8, 120]
NOT_THIS, NOR_THIS = [29, 301, 64], [77, 78, 200]
STEPS: dict[str, Any] = {"max_new_tokens": 16, "ignore_eos": True}
ALWAYS = dlf.Speculation("auto", 3, adaptive=False)
FEW = dlf.Speculation("auto", 1, adaptive=False)  # on CUDA passes of up to eight rows are bit-identical to shorter ones


def make(family: dict[str, Path], *experts: Any, device: str = "cpu", **options: Any) -> dlf.Engine:
    return dlf.Engine(family["large"], experts, device=device, **{"threads": 2, "max_context": 160} | options)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    peak = logits.max()
    return logits - peak - np.log(np.exp(logits - peak).sum())


def jsd(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence of two distributions by their logits, in nats."""
    p, q = log_softmax(p), log_softmax(q)
    middle = np.log((np.exp(p) + np.exp(q)) / 2)
    return float((np.exp(p) @ (p - middle) + np.exp(q) @ (q - middle)) / 2)


def plausible(large: np.ndarray, fused: np.ndarray, share: float) -> np.ndarray:
    return np.where(log_softmax(large) < log_softmax(large).max() + np.log(share), -np.inf, fused)


def mixed(share: float) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return lambda large, expert: np.log((1 - share) * np.exp(log_softmax(large)) + share * np.exp(log_softmax(expert)))


# With transformers


@pytest.fixture(scope="module")
def theirs(family: dict[str, Path]) -> Any:
    model = AutoModelForCausalLM.from_pretrained(family["large"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return model


def guided_by_transformers(model: Any, prompts: list[list[int]], scale: float, negative: Any) -> list[list[int]]:
    """Tokens of `generate` with its classifier-free guidance."""
    ids = torch.tensor(prompts)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        guidance_scale=scale,
        negative_prompt_ids=None if negative is None else torch.tensor(negative),
        do_sample=False,
        pad_token_id=0,
        max_new_tokens=STEPS["max_new_tokens"],
    )
    return found[:, len(prompts[0]) :].tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("negative", [None, NOT_THIS])
@pytest.mark.parametrize("scale", [0.4, 1.5, 3.0])
def test_guided_tokens_are_those_of_transformers(
    family: dict[str, Path], theirs: Any, device: str, scale: float, negative: list[int] | None
) -> None:
    batch = None if negative is None else [NOT_THIS, NOR_THIS]
    with make(family, dlf.Guidance(), device=device) as engine:
        assert engine.vocab_size == PADDED_VOCAB_SIZE  # of one model all logits are used, as in transformers
        one = engine.generate(PROMPT, guidance_scale=scale, negative_prompt=negative, **STEPS)
        two = engine.generate([PROMPT, OTHER], guidance_scale=scale, negative_prompt=batch, **STEPS)
    assert [one.tokens] == guided_by_transformers(theirs, [PROMPT], scale, None if negative is None else [negative])
    assert [completion.tokens for completion in two] == guided_by_transformers(theirs, [PROMPT, OTHER], scale, batch)
    np.testing.assert_allclose(one.alpha, scale - 1, rtol=1e-6)
    assert one.tokens == two[0].tokens


# Against loops


@dataclass(frozen=True)
class Case:
    """An engine and its request, and what a loop reads and computes for them."""

    experts: Callable[[dict[str, Path]], list[Any]]
    request: dict[str, Any]
    contexts: list[tuple[str, str]]  # the model and the text of each
    fuse: Callable[..., np.ndarray]


CONTEXT = "The sum of 12 and 30 is 42. "
CASES = {
    "guidance on a small model": Case(
        lambda family: [dlf.Guidance(family["expert-a"], scale=2.5)],
        {"negative_prompt": NEGATIVE},
        [("large", TEXT), ("expert-a", TEXT), ("expert-a", NEGATIVE)],
        lambda large, prompted, negative: large + 1.5 * (prompted - negative),
    ),
    "a positive and a negative prompt": Case(
        lambda family: [dlf.Guidance(alpha=0.7, positive=True)],
        {"negative_prompt": NEGATIVE, "positive_prompt": "lazy dog"},
        [("large", TEXT), ("large", "lazy dog"), ("large", NEGATIVE)],
        lambda large, positive, negative: large + 0.7 * (positive - negative),
    ),
    "two guides": Case(
        lambda family: [dlf.Guidance(name="rude", scale=1.5), dlf.Guidance(family["base"], name="dull")],
        {"negative_prompt": {"rude": NEGATIVE, "dull": "x"}, "guidance_scale": {"dull": 1.25}},
        [("large", TEXT), ("large", NEGATIVE), ("base", TEXT), ("base", "x")],
        lambda large, rude, small, dull: large + 0.5 * (large - rude) + 0.25 * (small - dull),
    ),
    "context-aware": Case(
        lambda family: [dlf.Guidance(alpha=0.5, name="context")],
        {"prompt": CONTEXT + TEXT, "negative_prompt": TEXT},
        [("large", CONTEXT + TEXT), ("large", TEXT)],
        lambda with_it, without: 1.5 * with_it - 0.5 * without,
    ),
    "adaptive context-aware": Case(
        lambda family: [dlf.Guidance(name="context")],
        {"prompt": CONTEXT + TEXT, "negative_prompt": TEXT, "combine": "jsd"},
        [("large", CONTEXT + TEXT), ("large", TEXT)],
        lambda with_it, without: with_it + jsd(with_it, without) * (with_it - without),
    ),
    "amateur": Case(
        lambda family: [dlf.Amateur(family["base"])],
        {"plausibility": 0.1},
        [("large", TEXT), ("base", TEXT)],
        lambda large, amateur: plausible(large, 1.5 * large - 0.5 * amateur, 0.1),
    ),
    "contrastive objective": Case(
        lambda family: [dlf.Amateur(family["base"], alpha=1)],
        {"plausibility": 0.05, "large_weight": 0},
        [("large", TEXT), ("base", TEXT)],
        lambda large, amateur: plausible(large, log_softmax(large) - log_softmax(amateur), 0.05),
    ),
    "without a base": Case(
        lambda family: [dlf.Expert(family["expert-b"], base=False, alpha=0.4)],
        {},
        [("large", TEXT), ("expert-b", TEXT)],
        lambda large, expert: large + 0.4 * expert,
    ),
    "mixture": Case(
        lambda family: [dlf.Expert(family["expert-b"], base=False, mix=0.3)],
        {},
        [("large", TEXT), ("expert-b", TEXT)],
        mixed(0.3),
    ),
    "guidance of a mixture": Case(
        lambda family: [dlf.Guidance(scale=1.5), dlf.Expert(family["expert-b"], base=False)],
        {"negative_prompt": NEGATIVE, "mix": {"expert-b": 0.25}},
        [("large", TEXT), ("large", NEGATIVE), ("expert-b", TEXT)],
        lambda large, negative, expert: mixed(0.25)(1.5 * large - 0.5 * negative, expert),
    ),
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CASES)
def test_tokens_and_scores_are_those_of_a_loop(family: dict[str, Path], device: str, name: str) -> None:
    case = CASES[name]
    request = {"prompt": TEXT} | case.request
    with make(family, *case.experts(family), device=device) as engine:
        completion = engine.generate(**request, **STEPS)
        drafted = engine.generate(**request, **STEPS, speculate=ALWAYS if device == "cpu" else FEW)
        score = engine.score(request.pop("prompt"), completion.tokens, **request)
        encode, vocab = engine.tokenizer.encode, engine.vocab_size
    prompts = [encode(text) for _, text in case.contexts]
    loop = Contexts([family[model] for model, _ in case.contexts], vocab)
    assert completion.tokens == loop.generate(prompts, STEPS["max_new_tokens"], case.fuse)
    expected = loop.score(prompts, completion.tokens, case.fuse)
    np.testing.assert_allclose(completion.logprobs, expected, atol=2e-3)
    np.testing.assert_allclose(score.logprobs, expected, atol=2e-3)
    assert drafted.tokens == completion.tokens
    for field in ("logprobs", "alpha", "f", "g"):
        assert np.array_equal(getattr(drafted, field), getattr(completion, field))


def test_a_solved_scale_moves_as_far_as_the_small_model_does(family: dict[str, Path]) -> None:
    with make(family, dlf.Guidance(family["base"])) as engine:
        completion = engine.generate(TEXT, negative_prompt=NEGATIVE, **STEPS)
        encode, vocab = engine.tokenizer.encode, engine.vocab_size
    loop = Contexts([family["large"], family["base"], family["base"]], vocab)

    def fuse(large: np.ndarray, prompted: np.ndarray, negative: np.ndarray) -> np.ndarray:
        rows = [np.float32(one)[None] for one in (large, prompted, negative)]
        return dlf.fusion.solve(rows[0], rows[2], rows[1][:, None]).logits[0]

    assert completion.tokens == loop.generate([encode(TEXT), encode(TEXT), encode(NEGATIVE)], 16, fuse)
    assert completion.alpha.min() > 0


# All in one batch


@pytest.fixture(scope="module", params=DEVICES)
def engine(request: pytest.FixtureRequest, family: dict[str, Path]) -> Iterator[dlf.Engine]:
    experts = [
        dlf.Expert(family["expert-a"], family["base"]),
        dlf.Guidance(),
        dlf.Amateur(family["base"], name="amateur"),
        dlf.Expert(family["expert-b"], base=False),
    ]
    with make(family, *experts, device=request.param, max_batch=8) as made:
        yield made


REQUESTS: list[dict[str, Any]] = [
    {"experts": ["expert-a"]},
    {"experts": ["guidance"], "guidance_scale": 1.5, "negative_prompt": NEGATIVE},
    {"experts": ["guidance"], "negative_prompt": TEXT[:20], "combine": "jsd"},
    {"experts": ["amateur"], "plausibility": 0.1},
    {"experts": ["expert-b"], "mix": {"expert-b": 0.3}},
    {"experts": ["expert-a", "guidance", "expert-b"], "guidance_scale": 2, "mix": {"expert-b": 0.2}},
    {"experts": []},
]


@pytest.mark.parametrize("speculate", [False, ALWAYS])
def test_a_batch_of_all_kinds_changes_nothing(engine: dlf.Engine, speculate: Any) -> None:
    requests = REQUESTS
    if engine._ensemble.options.placement.cuda:
        requests, speculate = (REQUESTS[1:3], FEW) if speculate else (REQUESTS[1:5], False)
    options = {"max_new_tokens": 10, "ignore_eos": True, "temperature": 0.8, "seed": 3}
    alone = [engine.generate(TEXT, speculate=False, **one, **options) for one in requests]
    assert len({tuple(completion.logprobs) for completion in alone}) == len(requests)
    streams = [engine.stream(TEXT, speculate=speculate, **one, **options) for one in requests]
    pieces = [list(steps) for steps in zip(*streams, strict=True)]
    for i, completion in enumerate(alone):
        assert [step[i].token for step in pieces] == completion.tokens
        assert [step[i].logprob for step in pieces] == list(completion.logprobs)
        assert np.array_equal([step[i].alpha for step in pieces], completion.alpha)


# Requests


def test_a_negative_prompt_may_be_text_tokens_messages_or_one_for_each_prompt(family: dict[str, Path]) -> None:
    talk = [{"role": "user", "content": "fox"}]
    with make(family, dlf.Guidance(scale=2)) as engine:

        def tokens(prompt: Any = TEXT, **options: Any) -> Any:
            found = engine.generate(prompt, max_new_tokens=8, ignore_eos=True, **options)
            return [one.tokens for one in found] if isinstance(found, list) else found.tokens

        encode = engine.tokenizer.encode
        text = tokens(negative_prompt=NEGATIVE)
        assert text == tokens(negative_prompt=encode(NEGATIVE)) == tokens(negative_prompt={"guidance": NEGATIVE})
        chat = encode(engine.tokenizer.apply_chat_template(talk), add_special_tokens=False)
        assert tokens(negative_prompt=talk) == tokens(negative_prompt=chat)
        last = tokens(negative_prompt=encode(TEXT)[-1:])
        assert last == tokens() and last != text
        assert tokens([TEXT, TEXT, NEGATIVE], negative_prompt=[NEGATIVE, None, TEXT])[:2] == [text, last]
        assert tokens([TEXT, TEXT], negative_prompt=NEGATIVE) == [text, text]
        assert tokens(experts=[]) != last
        piece = next(engine.stream(TEXT, negative_prompt=NEGATIVE))
        assert piece.token == text[0]
        scores = engine.score(TEXT, [" a", " b"], negative_prompt=NEGATIVE)
        apart = [engine.score(TEXT, one, negative_prompt=[NEGATIVE]) for one in (" a", " b")]
        assert [list(one.logprobs) for one in scores] == [list(one.logprobs) for one in apart]
        both = engine.score([TEXT, TEXT], [" a", " a"], negative_prompt=[NEGATIVE, "x"])
        assert list(both[0].logprobs) == list(scores[0].logprobs) != list(both[1].logprobs)
        logits = engine.logits(TEXT, negative_prompt=NEGATIVE, guidance_scale=1.5)
        assert logits.fused.argmax() == engine.generate(TEXT, guidance_scale=1.5, negative_prompt=NEGATIVE).tokens[0]
    with make(family, dlf.Guidance(scale=2, negative_prompt=NEGATIVE)) as engine:
        assert engine.generate(TEXT, max_new_tokens=8, ignore_eos=True).tokens == text
        assert (
            engine.generate(TEXT, max_new_tokens=8, ignore_eos=True, negative_prompt=encode(TEXT)[-1:]).tokens == last
        )


def test_spaces_at_the_end_of_a_scored_prompt_leave_the_negative_one_too(family: dict[str, Path]) -> None:
    with make(family, dlf.Guidance(scale=2)) as engine:
        spaced = engine.score("Answer: ", "42", negative_prompt="Reply: ")
        plain = engine.score("Answer:", " 42", negative_prompt="Reply:")
    assert spaced.tokens == plain.tokens and list(spaced.logprobs) == list(plain.logprobs)


def test_a_template_writes_the_negative_prompt_too(family: dict[str, Path]) -> None:
    with make(family, dlf.Guidance(scale=2), template="Q: {prompt}\nA:") as engine:
        templated = engine.generate("why", negative_prompt="how", **STEPS).tokens
        with pytest.raises(ValueError, match="negative prompt of 'guidance' is token ids, but"):
            engine.generate("why", negative_prompt=[5], **STEPS)
    with make(family, dlf.Guidance(scale=2)) as engine:
        assert engine.generate("Q: why\nA:", negative_prompt="Q: how\nA:", **STEPS).tokens == templated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"negative_prompt": ""}, "negative_prompt is empty"),
        ({"negative_prompt": 5}, "negative_prompt is int; give text"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt holds 2 prompts for 1 prompts"),
        ({"negative_prompt": [3.5]}, "negative_prompt holds float"),
        ({"negative_prompt": {"guide": "a"}}, "names 'guide'; it is for: a, b"),
        ({"negative_prompt": "x"}, "is for one of a, b; give a mapping"),
        (
            {"negative_prompt": {"a": "x" * 200}},
            "the negative prompt of 'a' has .*context holds 64",
        ),
        ({"negative_prompt": {"a": [999]}}, "the negative prompt of 'a' has the token id 999"),
        ({"positive_prompt": {"a": "x"}}, r"positive_prompt is given, .*Guidance\(positive=True\)"),
        ({"guidance_scale": {"a": "2"}}, r"guidance_scale\['a'\] is '2': give a number"),
        ({"guidance_scale": 2.0}, "guidance_scale is for one of a, b"),
        ({"guidance_scale": {"a": 2.0}, "alpha": [1, 2]}, "guidance_scale and alpha are both given"),
        ({"guidance_scale": {"a": 2.0}, "alpha": {"a": 1}}, "guidance_scale and alpha are both given"),
        ({"guidance_scale": {"a": 1e9}}, "alpha"),
        ({"guidance_scale": {"a": 2.0}, "experts": []}, "the request fuses no expert that takes it"),
    ],
)
def test_an_impossible_request_is_refused(two_guides: dlf.Engine, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        two_guides.generate(TEXT, max_new_tokens=1, **options)
    assert two_guides.generate(TEXT, max_new_tokens=1).tokens  # still usable


@pytest.fixture(scope="module")
def two_guides(family: dict[str, Path]) -> Iterator[dlf.Engine]:
    with make(family, dlf.Guidance(name="a"), dlf.Guidance(name="b"), max_context=64) as made:
        yield made


def test_an_engine_without_guidance_says_how_to_make_one(family: dict[str, Path]) -> None:
    with make(family) as engine:
        for options in ({"negative_prompt": "x"}, {"guidance_scale": 1.5}):
            with pytest.raises(dlf.OptionError, match=r"experts=\[\.\.\., dlf\.Guidance\(\)\]") as caught:
                engine.generate(TEXT, **options)
            assert caught.value.field == next(iter(options))


# Engines


def test_a_guide_and_an_expert_share_the_lane_of_the_same_text(family: dict[str, Path]) -> None:
    expert = dlf.Expert(family["expert-a"], family["base"])
    with make(family, expert, dlf.Guidance(family["base"]), dlf.Amateur(family["base"])) as engine:
        lanes = engine._ensemble.lanes
    assert len(lanes.models) == 3
    assert lanes.pairs == [(1, 2), (2, 3), (0, 2)]
    assert lanes.of_experts([2]) == [0, 2]


def test_memory_holds_the_second_context_of_the_large_model(family: dict[str, Path]) -> None:
    with (
        make(family) as alone,
        make(family, dlf.Guidance()) as guided,
        make(family, dlf.Guidance(positive=True)) as both,
    ):
        plain, second, third = (engine.memory.by_part() for engine in (alone, guided, both))
    assert plain["weights"] == second["weights"]
    assert second["KV cache"] == 2 * plain["KV cache"] and third["KV cache"] == 3 * plain["KV cache"]


def test_the_large_model_does_not_draft(family: dict[str, Path]) -> None:
    experts = [dlf.Guidance(), dlf.Amateur(family["base"], name="amateur"), dlf.Expert(family["expert-a"], base=False)]
    with make(family, *experts) as engine:
        plain = engine.generate(TEXT, **STEPS)
        for drafter in ("amateur", "expert-a", "prompt_lookup"):
            found = engine.generate(TEXT, speculate=dlf.Speculation(drafter, 3, adaptive=False), **STEPS)
            assert found.tokens == plain.tokens and found.drafted > 0
        for drafter in ("guidance", "base"):
            with pytest.raises(ValueError, match=f"'{drafter}' cannot draft: .*; there are: amateur, expert-a, prompt"):
                engine.generate(TEXT, speculate=dlf.Speculation(drafter))


def run(*arguments: Any) -> str:
    found = CliRunner().invoke(app, [str(one) for one in arguments], env={"COLUMNS": "400"})
    assert found.exit_code == 0, found.output
    return found.output


def test_the_command_line_guides_and_takes_every_field_of_the_rule(family: dict[str, Path], tmp_path: Path) -> None:
    options = ("--max-new-tokens", 8, "--ignore-eos", "--json", "--max-context", 160)
    negative = ("--negative-prompt", NEGATIVE)
    found = json.loads(run("generate", family["large"], TEXT, *negative, "--guidance-scale", 1.5, *options))
    with make(family, dlf.Guidance()) as engine:
        request = {"negative_prompt": NEGATIVE, "max_new_tokens": 8, "ignore_eos": True}
        assert found["tokens"] == engine.generate(TEXT, guidance_scale=1.5, **request).tokens
        rule = {"plausibility": 0.2, "large_weight": 0.7, "gate": "top_prob", "gate_threshold": 0.4}
        ruled = engine.generate(TEXT, **rule, **request).tokens
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"large: {family['large']}\nexperts:\n  - guidance: true\n    name: other\n")
    fields = [word for name, value in rule.items() for word in ("--" + name.replace("_", "-"), value)]
    assert json.loads(run("generate", "--recipe", recipe, TEXT, *negative, *fields, *options))["tokens"] == ruled
    assert "after the negative prompt" in run("recipe", "check", recipe)


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: dlf.Guidance(scale=2, alpha=1), "scale and alpha are both given"),
        (lambda: dlf.Guidance(scale="2"), "scale is '2'"),
        (lambda: dlf.Guidance(5), "model is a path or a hub id, not int"),
        (lambda: dlf.Guidance(negative_prompt=""), "negative_prompt is a text"),
        (lambda: dlf.Guidance(template="{x}"), "template"),
        (lambda: dlf.Amateur("small", template="{x}"), "template"),
        (lambda: dlf.Expert("small", base=True), "base is True"),
        (lambda: dlf.Engine("x", [dlf.Guidance(), dlf.Guidance()]), "several dlf.Guidance are called 'guidance'"),
        (lambda: dlf.Engine("x", [dlf.Amateur("y")], mix=[0.5]), "'y' takes no share"),
        (lambda: dlf.Engine("x", [dlf.Expert("y", False, mix=0.5, alpha=1)]), "either mixed in or added"),
        (lambda: dlf.Engine("x", [dlf.Expert("y")]), "base=False to measure it against none"),
        (lambda: dlf.Engine("x", plausibility=1.0), "plausibility is 1"),
        (lambda: dlf.Engine("x", gate="never"), "gate is 'never'; it takes"),
    ],
)
def test_an_impossible_expert_is_refused_before_a_model_is_looked_for(make_one: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_one()


def test_the_rule_of_an_engine_is_that_of_its_requests(family: dict[str, Path]) -> None:
    expert = dlf.Expert(family["expert-b"], base=False)
    rule = {"large_weight": 0.8, "plausibility": 0.05, "gate": "entropy", "gate_threshold": 3.5}
    with make(family, expert) as engine:
        asked = engine.generate(TEXT, mix=[0.4], **rule, **STEPS)
    with make(family, expert, mix=[0.4], **rule) as engine:
        own = engine.generate(TEXT, **STEPS)
    assert own.tokens == asked.tokens and np.array_equal(own.logprobs, asked.logprobs)
    assert 0 < np.count_nonzero(own.alpha) < len(own.tokens)  # the gate was open at some tokens only
