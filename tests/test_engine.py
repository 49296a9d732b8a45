"""The engine's public interface."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
from models import make_model, overflowing
from reference.decoding import Reference

import dlf
from dlf.model import Model, load_model

PROMPT = "Question: what is the sum"
PROMPTS = [PROMPT, "The quick brown", "def add(first, second)", "x", "lazy dog " * 9]


@pytest.fixture(scope="module")
def engine(family: dict[str, Path]) -> dlf.Engine:
    return dlf.Engine(family["large"], [dlf.Expert(family["expert-a"], base=family["base"])], threads=2, max_batch=3)


def same(a: dlf.Completion, b: dlf.Completion) -> bool:
    return (
        a.tokens == b.tokens
        and a.text == b.text
        and np.array_equal(a.alpha, b.alpha)
        and np.array_equal(a.logprobs, b.logprobs)
    )


@pytest.mark.parametrize("combine", ["select", "centroid", "joint", "grid"])
def test_fused_tokens_equal_the_obvious_loop(family: dict[str, Path], combine: str) -> None:
    experts = [family["expert-a"], family["expert-b"]]
    with dlf.Engine(
        family["large"], [dlf.Expert(e, family["base"]) for e in experts], combine=combine, threads=2
    ) as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        completion = engine.generate(prompt, max_new_tokens=40, ignore_eos=True)
        vocab = engine.vocab_size

    def fuse(large: np.ndarray, base: np.ndarray, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        solved = dlf.fusion.solve(large[None], base[None], experts[None], combine=combine)
        return solved.alpha[0], solved.logits[0]

    tokens, alpha = Reference(family["large"], family["base"], experts, vocab).generate(prompt, 40, fuse)
    assert completion.tokens == tokens
    np.testing.assert_allclose(completion.alpha, alpha, atol=1e-3)


def test_static_is_proxy_tuning(family: dict[str, Path]) -> None:
    experts = [family["expert-a"], family["expert-b"]]
    weights = np.array([1.0, -0.5])
    with dlf.Engine(family["large"], experts, base=family["base"], combine="static", alpha=[1.0, -0.5]) as engine:
        prompt = engine.tokenizer.encode(PROMPT)
        completion = engine.generate(PROMPT, max_new_tokens=40, ignore_eos=True)
        vocab = engine.vocab_size
    tokens, _ = Reference(family["large"], family["base"], experts, vocab).generate(
        prompt, 40, lambda large, base, experts: (weights, large + weights @ (experts - base))
    )
    assert completion.tokens == tokens
    assert np.all(completion.alpha == weights)


def test_an_expert_equal_to_its_base_changes_nothing(family: dict[str, Path]) -> None:
    with dlf.Engine(family["large"], [dlf.Expert(family["base"], family["base"])]) as engine:
        fused = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True)
        vocab = engine.vocab_size
    assert np.all(fused.alpha == 0)
    tokens, _ = Reference(family["large"], family["base"], [family["base"]], vocab).generate(
        engine.tokenizer.encode(PROMPT), 30, lambda large, base, experts: (np.zeros(1), large)
    )
    assert fused.tokens == tokens


def test_a_list_gives_what_each_prompt_gives_alone(engine: dlf.Engine) -> None:
    options = {"max_new_tokens": 25, "temperature": 0.9, "top_p": 0.95, "seed": 3, "ignore_eos": True}
    together = engine.generate(PROMPTS, **options)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert same(engine.generate(prompt, **options), completion)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_prompt_beside_others_is_read_as_alone(tmp_path: Path, dtype: str) -> None:
    """Alone it is read several chunks at a time, beside a request that decodes one by one."""
    folder = make_model(tmp_path / "long", "llama", max_position_embeddings=1024)
    prompt = [2 + (7 * i + i // 5) % 380 for i in range(700)]
    options = {"max_new_tokens": 20, "ignore_eos": True}
    with dlf.Engine(folder, dtype=dtype, threads=2, max_batch=2, prefix_cache_bytes=0) as engine:
        alone = engine.generate(prompt, **options)
        beside = engine.generate([prompt[:9], prompt], **options)[1]
    assert same(alone, beside)


def test_seeds_and_samples(engine: dlf.Engine) -> None:
    options = {"max_new_tokens": 20, "temperature": 1.0, "ignore_eos": True}
    first, second = engine.generate(PROMPT, seed=1, **options), engine.generate(PROMPT, seed=1, **options)
    assert same(first, second)
    assert engine.generate(PROMPT, seed=2, **options).tokens != first.tokens
    samples = engine.generate(PROMPT, seed=1, num_return_sequences=3, **options)
    assert len(samples) == 3 and same(samples[0], first)
    assert len({tuple(sample.tokens) for sample in samples}) == 3


def test_logprobs_are_those_of_the_fused_distribution(engine: dlf.Engine) -> None:
    completion = engine.generate(PROMPT, max_new_tokens=8, logprobs=4, ignore_eos=True)
    assert all(len(top) == 4 for top in completion.top_logprobs)
    for token, logprob, top in zip(completion.tokens, completion.logprobs, completion.top_logprobs, strict=True):
        assert top[token] == pytest.approx(logprob) == pytest.approx(max(top.values()))
    assert np.all(completion.f >= 0) and np.all(completion.g >= 0)


def test_stream_gives_what_generate_gives(engine: dlf.Engine) -> None:
    whole = engine.generate(PROMPT, max_new_tokens=30, ignore_eos=True)
    pieces = list(engine.stream(PROMPT, max_new_tokens=30, ignore_eos=True))
    assert [piece.token for piece in pieces] == whole.tokens
    assert "".join(piece.text for piece in pieces) == whole.text


def test_interleaved_streams(engine: dlf.Engine) -> None:
    expected = [[p.token for p in engine.stream(prompt, max_new_tokens=12, ignore_eos=True)] for prompt in PROMPTS]
    streams = [engine.stream(prompt, max_new_tokens=12, ignore_eos=True) for prompt in PROMPTS]
    assert [[piece.token for piece in row] for row in zip(*streams, strict=True)] == [
        list(row) for row in zip(*expected, strict=True)
    ]


def test_a_closed_stream_frees_its_places(engine: dlf.Engine) -> None:
    expected = engine.generate(PROMPT, max_new_tokens=5, ignore_eos=True)
    for _ in range(10):  # three slots: with a leak the next request would wait for ever
        stream = engine.stream(PROMPT, max_new_tokens=200, ignore_eos=True)
        next(stream)
        stream.close()
    assert not engine._running
    assert same(engine.generate(PROMPT, max_new_tokens=5, ignore_eos=True), expected)


def test_ctrl_c_stops_a_generation_and_leaves_the_engine_usable(engine: dlf.Engine) -> None:
    expected = engine.generate(PROMPT, max_new_tokens=10, ignore_eos=True)
    for _ in range(3):
        pressed = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])
        pressed.start()
        with pytest.raises(KeyboardInterrupt):
            while True:
                engine.generate(PROMPTS, max_new_tokens=200, ignore_eos=True)
        pressed.join()
        assert same(engine.generate(PROMPT, max_new_tokens=10, ignore_eos=True), expected)


def test_callback(engine: dlf.Engine) -> None:
    seen: list[dlf.Piece] = []
    completion = engine.generate(PROMPT, max_new_tokens=6, callback=seen.append, ignore_eos=True)
    assert [piece.token for piece in seen] == completion.tokens
    stopped = engine.generate(PROMPT, max_new_tokens=50, callback=lambda piece: False, ignore_eos=True)
    assert stopped.finish_reason == "callback" and stopped.tokens == completion.tokens[:1]

    def interrupt(piece: dlf.Piece) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, max_new_tokens=50, callback=interrupt)
    assert not engine._running
    assert same(engine.generate(PROMPT, max_new_tokens=6, ignore_eos=True), completion)


def test_a_stream_says_whether_it_has_ended(engine: dlf.Engine) -> None:
    whole = engine.generate(PROMPT, max_new_tokens=8, ignore_eos=True, logprobs=1)
    stream = engine.stream(PROMPT, max_new_tokens=8, ignore_eos=True, logprobs=1)
    first = next(stream)
    running = stream.completion()
    assert running.finish_reason is None and first.token == whole.tokens[0]
    seen = len(running.logprobs)
    rest = list(stream)
    assert len(rest) == 7 and stream.completion().finish_reason == "length"
    assert running.tokens == whole.tokens[:seen] and len(running.top_logprobs) == seen < 8
    assert sum(step.tokens for step in running.timings.steps) == seen
    with engine.stream(PROMPT, max_new_tokens=200, ignore_eos=True) as stream:
        next(stream)
    assert stream.completion().finish_reason == "cancelled"
    stream = engine.stream(PROMPT, max_new_tokens=3, ignore_eos=True)
    list(stream)
    stream.close()
    assert stream.completion().finish_reason == "length"


def test_stop_strings_never_leak(engine: dlf.Engine) -> None:
    whole = engine.generate(PROMPT, max_new_tokens=60, ignore_eos=True).text
    for begin in range(2, len(whole) - 6, 5):
        stop = whole[begin : begin + 4]
        expected = whole[: whole.index(stop)]
        completion = engine.generate(PROMPT, max_new_tokens=60, stop_strings=[stop], ignore_eos=True)
        assert completion.text == expected and completion.finish_reason == "stop"
        assert (
            "".join(p.text for p in engine.stream(PROMPT, max_new_tokens=60, stop_strings=stop, ignore_eos=True))
            == expected
        )


def test_end_of_sequence(engine: dlf.Engine) -> None:
    tokens = engine.generate(PROMPT, max_new_tokens=20, ignore_eos=True).tokens
    stop = tokens[7]
    completion = engine.generate(PROMPT, max_new_tokens=20, stop_token_ids=[stop], ignore_eos=True)
    assert completion.tokens == tokens[: tokens.index(stop) + 1] and completion.finish_reason == "stop"
    longer = engine.generate(PROMPT, max_new_tokens=20, stop_token_ids=[stop], min_new_tokens=10, ignore_eos=True)
    assert len(longer.tokens) > 10 and stop not in longer.tokens[:10]


def test_the_end_of_the_context(family: dict[str, Path]) -> None:
    with dlf.Engine(family["large"], [family["expert-a"]], base=family["base"], max_context=16) as engine:
        completion = engine.generate([1, 2, 3], max_new_tokens=100, ignore_eos=True)
        assert completion.finish_reason == "length" and len(completion.tokens) == 14
        with pytest.raises(ValueError, match="16"):
            engine.generate([1] * 16)


def test_timings(engine: dlf.Engine) -> None:
    timings = engine.generate(PROMPT, max_new_tokens=9, ignore_eos=True).timings
    assert timings.time_to_first_token > 0 and len(timings.token_times) == 8
    assert sum(step.tokens for step in timings.steps) == 9
    together = sum(step.seconds for step in timings.steps)
    assert together == pytest.approx(timings.time_to_first_token + timings.token_times.sum())
    assert set(timings.shares) == {"large", "small", "solve", "sample"} and sum(
        timings.shares.values()
    ) == pytest.approx(1)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"experts": ["missing"]}, ValueError, "no base"),
        ({"experts": ["/no/such/folder"], "base": "/no/such/base"}, FileNotFoundError, "/no/such"),
        ({"combine": "mean"}, ValueError, "select"),
        ({"match": "both"}, ValueError, "symmetric"),
        ({"combine": "static"}, ValueError, "alpha"),
        ({"alpha_max": 0.0}, ValueError, "alpha_max"),
        ({"max_batch": 0}, ValueError, "max_batch"),
        ({"dtype": "int3"}, ValueError, "dtype"),
        ({"weights": "int3"}, ValueError, "fp32, bf16, fp16, int8, int4, int4-g64"),
        ({"weights": "float32"}, ValueError, "fp32"),
        ({"weights": "bf16", "dtype": "float32"}, ValueError, "contradict"),
        ({"experts": [dlf.Expert("/no/such", "/no/such", weights="int2")]}, ValueError, "such.*int8"),
        ({"experts": [dlf.Expert("/no", "/no", weights="fp32")], "dtype": "bfloat16"}, ValueError, "contradict"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"max_context": 10**9}, ValueError, "max_context"),
    ],
)
def test_impossible_engines(
    family: dict[str, Path], arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    options = {"experts": [dlf.Expert(family["expert-a"], family["base"])], **arguments}
    with pytest.raises(error, match=words):
        dlf.Engine(family["large"], **options)  # type: ignore[arg-type]


WIDTHS = {"fp32": "float32", "bf16": "bfloat16", "int8": "int8", "int4": "int4", "int4-g64": "int4"}


@pytest.mark.parametrize("weights", WIDTHS)
def test_types_of_weights(family: dict[str, Path], loads: list[Model], weights: str) -> None:
    """A prompt's results are the same in a list and alone, and an expert equal to its base changes nothing."""
    options = {"max_new_tokens": 25, "ignore_eos": True}
    experts = [dlf.Expert(family["expert-a"], family["base"]), dlf.Expert(family["base"], family["base"])]
    with dlf.Engine(family["large"], experts, weights=weights, threads=2) as engine:
        assert loads[0].weights.type == WIDTHS[weights]
        assert loads[0].weights.dtype == ("bfloat16" if weights == "bf16" else "float32")
        together = engine.generate(PROMPTS, **options)
        for prompt, completion in zip(PROMPTS, together, strict=True):
            assert same(engine.generate(prompt, **options), completion)
    with dlf.Engine(family["large"], [experts[1]], weights=weights, threads=1) as fused:
        completion = fused.generate(PROMPT, **options)
    with dlf.Engine(family["large"], weights=weights, threads=2) as alone:
        # A single model may choose tokens in its logits' padding, which fused models do not share.
        padding = {token: -100.0 for token in range(fused.vocab_size, alone.vocab_size)}
        assert alone.generate(PROMPT, logit_bias=padding, **options).tokens == completion.tokens
    assert np.all(completion.alpha == 0)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Model]:
    """List every model that an engine loads."""
    found: list[Model] = []

    def load(*arguments: str | None) -> Model:
        found.append(load_model(*arguments))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr("dlf.ensemble.load_model", load)
    return found


def test_models_of_one_engine_in_different_types(family: dict[str, Path], loads: list[Model]) -> None:
    a, b, base = family["expert-a"], family["expert-b"], family["base"]
    experts = [dlf.Expert(a, base), dlf.Expert(b, base, weights="int8"), dlf.Expert(a, base, "again", "int8")]
    with dlf.Engine(family["large"], experts, weights="int4", threads=2) as engine:
        completion = engine.generate(PROMPT, max_new_tokens=20, ignore_eos=True)
    assert completion.alpha.shape == (20, 3)
    assert sorted((Path(model.name).name, model.weights.type) for model in loads) == [
        ("base", "int4"),
        ("base", "int8"),
        ("expert-a", "int4"),
        ("expert-a", "int8"),
        ("expert-b", "int8"),
        ("large", "int4"),
    ]


def test_an_expert_that_names_the_engines_type_shares_the_base(family: dict[str, Path], loads: list[Model]) -> None:
    experts = [dlf.Expert(family["expert-a"]), dlf.Expert(family["expert-b"], weights="int8")]
    with dlf.Engine(family["large"], experts, base=family["base"], weights="int8"):
        assert [Path(model.name).name for model in loads].count("base") == 1


def test_dtype_beside_quantized_weights_is_that_of_the_cache(family: dict[str, Path], loads: list[Model]) -> None:
    with dlf.Engine(family["large"], weights="int8", dtype="bfloat16") as engine:
        assert (loads[0].weights.type, loads[0].weights.dtype) == ("int8", "bfloat16")
        assert len(engine.generate(PROMPT, max_new_tokens=5, ignore_eos=True).tokens) == 5


def test_too_many_experts(family: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="at most 16"):
        dlf.Engine(family["large"], [family["expert-a"]] * 17, base=family["base"])


@pytest.mark.parametrize(
    ("prompt", "options", "error", "words"),
    [
        ("", {}, ValueError, "empty"),
        ([], {}, ValueError, "no prompt"),
        (["x", ""], {}, ValueError, "prompt 1"),
        ("x " * 5000, {}, ValueError, "context"),
        ([10**6], {}, ValueError, "token id"),
        (3, {}, TypeError, "prompt"),
        ("x", {"temperature": -1.0}, ValueError, "temperature"),
        ("x", {"top_p": 0.0}, ValueError, "top_p"),
        ("x", {"max_tokens": 3}, TypeError, "max_new_tokens"),
        ("x", {"logit_bias": {10**6: 1.0}}, ValueError, "logit_bias"),
    ],
)
def test_bad_requests_leave_the_engine_usable(
    engine: dlf.Engine, prompt: object, options: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        engine.generate(prompt, **options)  # type: ignore[call-overload]
    assert not engine._running
    assert len(engine.generate("x", max_new_tokens=2, ignore_eos=True).tokens) == 2


def test_use_after_close(family: dict[str, Path]) -> None:
    engine = dlf.Engine(family["large"])
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.generate("x")


def test_overflowing_logits_name_the_model_and_the_step(family: dict[str, Path], tmp_path: Path) -> None:
    broken = overflowing(tmp_path / "broken", family["expert-a"])
    with dlf.Engine(family["large"], [dlf.Expert(broken, family["base"])]) as engine:
        with pytest.raises(FloatingPointError, match="expert 0.*step 0"):
            engine.generate("x")
        assert not engine._running


def test_other_tokenizer(family: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(family["base"], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.__getitem__)[40:42]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ValueError, match="40"):
        dlf.Engine(family["large"], [dlf.Expert(family["expert-a"], other)])
