"""Scores of given continuations, compared with decoding step by step."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import make_model, overflowing, write_adapter
from transformers import AutoModelForCausalLM

import dlf
from dlf import _C

PROMPT = "Question: what is the sum"
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "ignore_eos": True}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def make_engine(family: dict[str, Path], **options: Any) -> dlf.Engine:
    experts = [dlf.Expert(family[name], base=family["base"]) for name in ("expert-a", "expert-b")]
    return dlf.Engine(family["large"], experts, **{"max_batch": 2, "max_context": 128, "threads": 2} | options)


@pytest.fixture(scope="module", params=DEVICES)
def engine(family: dict[str, Path], request: pytest.FixtureRequest) -> dlf.Engine:
    return make_engine(family, device=request.param)


def assert_score_is(score: dlf.Score, completion: dlf.Completion, atol: float = 2e-4) -> None:
    """Compare a score with the completion of the same tokens; `atol` covers the different order of sums."""
    assert score.tokens == completion.tokens
    assert score.experts == completion.experts
    np.testing.assert_allclose(score.logprobs, completion.logprobs, atol=atol)
    np.testing.assert_allclose(score.alpha, completion.alpha, atol=10 * atol)
    np.testing.assert_allclose(score.f, completion.f, atol=atol, rtol=1e-4)
    np.testing.assert_allclose(score.g, completion.g, atol=atol, rtol=1e-4)


def same(a: dlf.Score, b: dlf.Score) -> bool:
    return a.tokens == b.tokens and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("logprobs", "alpha", "f", "g", "is_greedy")
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("combine", ["select", "centroid", "joint", "grid", "static"])
def test_scores_are_those_of_decoding(family: dict[str, Path], combine: str, device: str) -> None:
    fusion = {"combine": combine} | ({"alpha": [0.7, -0.3]} if combine == "static" else {})
    with make_engine(family, device=device, **fusion) as engine:
        completion = engine.generate(PROMPT, **OPTIONS)
        score = engine.score(PROMPT, completion.tokens)
        assert_score_is(score, completion)
        assert score.is_greedy.all()
        assert score.logprob == pytest.approx(completion.logprobs.sum(), abs=1e-3)
        sampled = engine.generate(PROMPT, temperature=1.5, seed=3, **OPTIONS)
        score = engine.score(PROMPT, sampled.tokens)
        assert_score_is(score, sampled)
        assert not score.is_greedy.all()
        greedy = [
            engine.generate(engine.tokenizer.encode(PROMPT) + sampled.tokens[:i], max_new_tokens=1, ignore_eos=True)
            for i in range(3)
        ]
        assert [one.tokens == [token] for one, token in zip(greedy, sampled.tokens, strict=False)] == list(
            score.is_greedy[:3]
        )


def test_the_large_model_alone_is_that_of_transformers(family: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(family["large"], dtype=torch.float64).eval()
    with dlf.Engine(family["large"], threads=2) as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        tokens = [(17 * i) % 380 for i in range(60)]
        score = engine.score(prompt, tokens)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = torch.log_softmax(logits, -1)
    np.testing.assert_allclose(score.logprobs, expected[range(60), tokens], atol=1e-4)
    assert list(score.is_greedy) == (logits.argmax(-1) == torch.tensor(tokens)).tolist()
    assert score.alpha.shape == (60, 0) and not score.f.any()


def test_longer_than_a_piece(tmp_path: Path) -> None:
    """A prompt and a continuation of several chunks each, in a context that just holds both."""
    sizes: dict[str, Any] = {"max_position_embeddings": 1024, "num_hidden_layers": 1}
    large = make_model(tmp_path / "large", "mistral", seed=3, **sizes)
    base, expert = (make_model(tmp_path / name, "llama", seed=seed, **sizes) for name, seed in (("b", 4), ("e", 5)))
    tokens = [2 + (7 * i) % 300 for i in range(860)]
    with dlf.Engine(large, [dlf.Expert(expert, base)], threads=2, max_batch=1, max_context=859) as engine:
        score = engine.score(tokens[:300], tokens[300:])
        for at in (300, 301, 556, 557, 812, 857):
            one = engine.generate(tokens[:at], max_new_tokens=1, logprobs=engine.vocab_size, ignore_eos=True)
            assert score.logprobs[at - 300] == pytest.approx(one.top_logprobs[0][tokens[at]], abs=1e-3)
            np.testing.assert_allclose(score.alpha[at - 300], one.alpha[0], atol=2e-3)
        with pytest.raises(ValueError, match="300 tokens, but the context holds 859 with the 561"):
            engine.score(tokens[:300], tokens[300:] + [5])


def test_a_batch_gives_what_each_gives_alone(engine: dlf.Engine) -> None:
    prompts = [PROMPT, "x", PROMPT, "lazy dog " * 9, PROMPT]
    continuations = [" of 12 and 30", "y", " fox", "jumps over", [7, 8, 9]]
    together = engine.score(prompts, continuations)
    for prompt, continuation, score in zip(prompts, continuations, together, strict=True):
        alone = engine.score(prompt, continuation)
        assert same(alone, score)
    assert all(same(a, b) for a, b in zip(engine.score(PROMPT, [" fox", [7, 8, 9]]), together[2::2], strict=True))


def test_texts_are_split_as_by_the_harness(engine: dlf.Engine) -> None:
    encode = engine.tokenizer.encode
    score = engine.score("the quick brown", " fox")
    assert score.tokens == encode("the quick brown fox")[len(encode("the quick brown")) :]
    assert same(engine.score("the quick brown ", "fox"), score)
    assert same(engine.score(encode("the quick brown"), " fox"), score)
    assert same(engine.score("the quick brown", score.tokens), score)


@pytest.mark.parametrize("device", DEVICES)
def test_lanes_of_every_kind(family: dict[str, Path], tmp_path: Path, device: str) -> None:
    """Templates, examples, adapters, an anti-expert, requests with some of the experts, and messages."""
    base = family["base"]
    shots = [(f"Question: {i} and {i + 1}?", f"the sum is {2 * i + 1}") for i in range(6)]
    experts = [
        dlf.Expert(family["expert-a"], base, name="a", template="chat", alpha_max=0.5),
        dlf.InContext(base, shots, name="shots"),
        dlf.Lora(base, write_adapter(tmp_path / "lora", base, 1), name="lora"),
        dlf.Expert(family["expert-b"], base, name="toxic", alpha=-0.3),
    ]
    with dlf.Engine(family["large"], experts, device=device, threads=2, max_batch=1, max_context=256) as engine:
        for asked in (
            {"prompt": PROMPT},
            {"prompt": PROMPT, "experts": ["lora", "toxic"]},
            {"prompt": PROMPT, "experts": []},
            {"prompt": PROMPT, "examples": shots[:2], "experts": ["shots"]},
            {"messages": [{"role": "user", "content": PROMPT}]},
        ):
            completion = engine.generate(**asked, max_new_tokens=6, ignore_eos=True)
            assert_score_is(engine.score(**asked, continuation=completion.tokens), completion, 5e-4)
        with pytest.raises(ValueError, match="give text"):
            engine.score([1, 2, 3], "x")


@pytest.mark.cuda
def test_experts_on_a_second_device(family: dict[str, Path]) -> None:
    if len(_C.cuda_devices()) < 2:
        pytest.skip("one CUDA device")
    with make_engine(family, device_map={"large": "cuda:0", "experts": "cuda:1"}) as engine:
        completion = engine.generate(PROMPT, **OPTIONS)
        assert_score_is(engine.score(PROMPT, completion.tokens), completion)


@pytest.mark.parametrize("types", [{"weights": "int8"}, {"dtype": "bfloat16"}])
def test_smaller_types(family: dict[str, Path], types: dict[str, str]) -> None:
    with make_engine(family, **types) as engine:
        completion = engine.generate(PROMPT, **OPTIONS)
        # A prompt rounds to bfloat16 what a decode step does not: products, and in attention queries and weights.
        assert_score_is(engine.score(PROMPT, completion.tokens), completion, 0.05)


def test_what_is_running_is_not_disturbed(engine: dlf.Engine) -> None:
    whole = [engine.generate(prompt, **OPTIONS) for prompt in (PROMPT, "x", "lazy dog")]
    expected = engine.score(PROMPT, " of 12 and 30")
    streams = [engine.stream(prompt, **OPTIONS) for prompt in (PROMPT, "x", "lazy dog")]  # one more than slots
    tokens: list[list[int]] = [[], [], []]
    for _ in range(OPTIONS["max_new_tokens"]):
        for stream, own in zip(streams, tokens, strict=True):
            own.append(next(stream).token)
        assert same(engine.score(PROMPT, " of 12 and 30"), expected)
    assert tokens == [completion.tokens for completion in whole]


def test_nothing_runs_while_it_scores(engine: dlf.Engine) -> None:
    stream = engine.stream(PROMPT, max_new_tokens=100, ignore_eos=True)
    next(stream)
    request = engine._running[next(iter(engine._running))]
    engine.score(PROMPT, [" fox", " dog"])
    assert len(request.pieces) == 0
    stream.close()


def test_errors_name_the_model_and_the_token(family: dict[str, Path], tmp_path: Path) -> None:
    broken = overflowing(tmp_path / "broken", family["expert-a"])
    with dlf.Engine(family["large"], [dlf.Expert(broken, family["base"])]) as engine:
        with pytest.raises(FloatingPointError, match="logits of expert 0 at token 0"):
            engine.score("x", "y")
        assert np.isfinite(engine.score("x", "y", experts=[]).logprob)
    with dlf.Engine(broken) as engine, pytest.raises(FloatingPointError, match="the large model at token 0"):
        engine.score("x", "y")


@pytest.mark.parametrize(
    ("prompt", "continuation", "error", "words"),
    [
        ("x", "", ValueError, "continuation is empty"),
        ("x", [], ValueError, "continuation is empty"),
        ("", "x", ValueError, "prompt is empty"),
        ("x", ["a", ""], ValueError, "continuation 1 is empty"),
        (["x", "y"], "a", ValueError, "one continuation for 2 prompts"),
        (["x", "y"], ["a"], ValueError, "1 continuations for 2 prompts"),
        ("x", 3, TypeError, "continuation is text"),
        ("x", ["a", 3.0], TypeError, "continuation 1 must be text"),
        ("x", [10**6], ValueError, "token id 1000000"),
        ("x " * 200, "y", ValueError, "context"),
        ("x", "y " * 200, ValueError, "context"),
        (None, "y", TypeError, "prompt or messages"),
    ],
)
def test_bad_requests(engine: dlf.Engine, prompt: Any, continuation: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        engine.score(prompt, continuation)
    assert not engine._running
    assert len(engine.score("x", "yz").logprobs) >= 1


def test_ctrl_c_leaves_the_engine_usable(engine: dlf.Engine) -> None:
    expected = engine.score(PROMPT, " fox")
    pressed = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    pressed.start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            engine.score([PROMPT] * 20, [[5, 6, 7, i] for i in range(20)])
    pressed.join()
    assert not engine._running
    assert same(engine.score(PROMPT, " fox"), expected)
