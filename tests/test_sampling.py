"""The C++ sampler compared with its NumPy reference, transformers' processors and exact distributions."""

import math

import numpy as np
import pytest
import torch
import transformers
from reference import sampling as reference
from reference.chi_square import chi_square_survival

from dlf import _C

SEED = 20250711
DISTRIBUTIONS = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 2.5},
    "top_k": {"temperature": 1.0, "top_k": 7},
    "top_p": {"temperature": 1.0, "top_p": 0.8},
    "min_p": {"temperature": 1.0, "min_p": 0.1},
    "combined": {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
}


def random_logits(vocab, scale=3.0, seed=SEED):
    return (np.random.default_rng(seed).standard_normal(vocab) * scale).astype(np.float32)


def sampler(options, vocab, prompt=(), generated=()):
    result = _C.Sampler(_C.SamplingOptions(**options), vocab, list(prompt), len(generated))
    for token in generated:
        result.append(token)
    return result


@pytest.mark.parametrize(
    ("seed", "step", "stream", "words"),
    [  # known answers of Random123
        (0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, 2**64 - 1, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            0x85A308D3243F6A88,
            0x0370734413198A2E,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(seed, step, stream, words):
    assert reference.philox(seed, step, stream) == list(words)
    assert _C.philox_uniform(seed, step, stream) == ((words[0] << 32 | words[1]) >> 11) * 2.0**-53


@pytest.mark.parametrize("options", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_a_million_draws_follow_the_distribution(options):
    logits = random_logits(48, scale=1.5)
    logits[[3, 17, 47]] = -np.inf
    draws = 1_000_000
    tokens = _C.sample_many(logits, _C.SamplingOptions(seed=SEED, **options), draws)
    counts = np.bincount(tokens, minlength=48)
    expected = reference.probabilities(logits.astype(np.float64), options) * draws
    assert not counts[expected == 0].any()
    assert chi_square_survival(counts, expected) > 1e-3


@pytest.mark.parametrize("vocab", [2, 3, 17, 1023, 1024, 1025, 32000, 262144])
@pytest.mark.parametrize("options", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_draws_are_those_of_the_reference(options, vocab):
    for scale in (0.1, 4.0):
        logits = random_logits(vocab, scale)
        logits[:: max(vocab // 7, 3)] = -np.inf
        draws = 40
        tokens = _C.sample_many(logits, _C.SamplingOptions(seed=5, stream=2, **options), draws)
        distribution = reference.probabilities(logits.astype(np.float64), options)
        uniforms = [_C.philox_uniform(5, step, 2) for step in range(draws)]
        cumulative = np.cumsum(distribution)
        for token, uniform in zip(tokens, uniforms, strict=True):  # rounding may move a boundary
            assert np.isfinite(logits[token])
            below = cumulative[token - 1] if token > 0 else 0.0
            assert below - 1e-5 <= uniform <= cumulative[token] + 1e-5
        exact = [reference.draw(distribution, uniform) for uniform in uniforms]
        assert np.mean(tokens == exact) > 0.9


def kept_tokens(logits, options, vocab):
    """Return the tokens that may be drawn, by drawing often from few tokens."""
    return set(_C.sample_many(logits, _C.SamplingOptions(temperature=1.0, **options), 4000 * vocab).tolist())


@pytest.mark.parametrize(
    ("options", "warper"),
    [
        ({"top_k": 5}, transformers.TopKLogitsWarper(5)),
        ({"top_k": 1}, transformers.TopKLogitsWarper(1)),
        ({"top_k": 100}, transformers.TopKLogitsWarper(100)),
        ({"top_p": 0.6}, transformers.TopPLogitsWarper(0.6)),
        ({"top_p": 1e-6}, transformers.TopPLogitsWarper(1e-6)),
        ({"top_p": 0.97}, transformers.TopPLogitsWarper(0.97)),
        ({"min_p": 0.2}, transformers.MinPLogitsWarper(0.2)),
        ({"min_p": 1.0}, transformers.MinPLogitsWarper(1.0)),
    ],
)
def test_filters_keep_what_transformers_keeps(options, warper):
    for seed in range(3):
        logits = random_logits(12, 1.0, seed)
        expected = warper(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(logits)[None])[0]
        assert kept_tokens(logits, options, 12) == set(torch.nonzero(expected > -torch.inf)[:, 0].tolist())


@pytest.mark.parametrize("vocab", [1000, 32000])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"), [(0, 0.9, 0.0), (300, 1.0, 0.0), (600, 0.95, 0.01), (0, 0.3, 0.5)]
)
def test_filters_in_a_row_as_transformers(vocab, top_k, top_p, min_p):
    logits = random_logits(vocab, 1.0)
    scores = torch.from_numpy(logits)[None] / 1.2
    if top_k:
        scores = transformers.TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = transformers.TopPLogitsWarper(top_p)(None, scores.double())
    if min_p:
        scores = transformers.MinPLogitsWarper(min_p)(None, scores)
    options = {"temperature": 1.2, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    allowed = torch.nonzero(scores[0] > -torch.inf)[:, 0].numpy()
    expected = np.flatnonzero(reference.probabilities(logits.astype(np.float64), options))
    np.testing.assert_array_equal(expected, allowed)
    assert np.isin(_C.sample_many(logits, _C.SamplingOptions(**options), 500), allowed).all()


def test_ties_go_to_the_lowest_id():
    logits = np.array([0, 1, 1, -0.0, 1, 0], np.float32)
    assert kept_tokens(logits, {"top_k": 2}, 6) == {1, 2}
    assert kept_tokens(logits, {"top_k": 4}, 6) == {0, 1, 2, 4}
    assert kept_tokens(np.zeros(6, np.float32), {"top_p": 0.5}, 6) == {0, 1, 2}
    _, _, tokens, _ = sampler({"logprobs": 4}, 6).sample(logits, 0)
    assert tokens.tolist() == [1, 2, 4, 0]
    assert sampler({}, 6).sample(logits, 0)[0] == 1


def processed_scores(logits, options, prompt=(), generated=(), step=0):
    """Recover the processed logits, up to a constant, from greedy choices: bias a token until it wins."""
    best = sampler(options, len(logits), prompt, generated).sample(logits, step)[0]
    gaps = np.zeros(len(logits))
    for token in range(len(logits)):
        low, high = 0.0, 64.0
        for _ in range(40 if token != best else 0):
            middle = (low + high) / 2
            biased = dict(options, logit_bias=[*options.get("logit_bias", []), (token, middle)])
            wins = sampler(biased, len(logits), prompt, generated).sample(logits, step)[0] == token
            low, high = (low, middle) if wins else (middle, high)
        gaps[token] = low
    return np.where(gaps > 63, -np.inf, -gaps)


PROMPT, GENERATED = [1, 4, 4, 9], [2, 4, 2, 2]


def transformers_scores(processor, logits):
    history = torch.tensor([[*PROMPT, *GENERATED]])
    return processor(history, torch.from_numpy(logits.copy())[None])[0].numpy()


EOS = torch.tensor([0, 5])


@pytest.mark.parametrize(
    ("options", "processor"),
    [
        ({"repetition_penalty": 1.7}, transformers.RepetitionPenaltyLogitsProcessor(1.7)),
        ({"repetition_penalty": 0.6}, transformers.RepetitionPenaltyLogitsProcessor(0.6)),
        (
            {"bad_words": [[7], [2, 2, 3], [9, 2, 8], [4, 2, 2, 6], [2, 1]]},
            transformers.NoBadWordsLogitsProcessor([[7], [2, 2, 3], [9, 2, 8], [4, 2, 2, 6], [2, 1]], EOS),
        ),
        (
            {"min_new_tokens": 5, "stop_token_ids": EOS.tolist()},
            transformers.MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, EOS),
        ),
        (
            {"min_new_tokens": 4, "stop_token_ids": EOS.tolist()},
            transformers.MinNewTokensLengthLogitsProcessor(len(PROMPT), 4, EOS),
        ),
    ],
)
def test_processors_agree_with_transformers(options, processor):
    logits = random_logits(10, 2.0)
    expected = transformers_scores(processor, logits)
    scores = processed_scores(logits, options, PROMPT, GENERATED, len(GENERATED))
    np.testing.assert_allclose(scores, expected - expected.max(), atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 0.7},
        {"frequency_penalty": 0.4},
        {"frequency_penalty": -0.3, "presence_penalty": 0.2},
        {"logit_bias": [(3, 2.5), (8, -math.inf), (3, 0.5)]},
        {
            "repetition_penalty": 1.3,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.25,
            "logit_bias": [(2, 1.5)],
            "bad_words": [[2, 9], [6]],
            "stop_token_ids": [0],
            "min_new_tokens": 9,
        },
    ],
)
def test_processors_agree_with_the_reference(options):
    logits = random_logits(10, 2.0)
    expected = reference.process(logits, options, PROMPT, GENERATED, len(GENERATED))
    scores = processed_scores(logits, options, PROMPT, GENERATED, len(GENERATED))
    np.testing.assert_allclose(scores, expected - expected.max(), atol=1e-5)


@pytest.mark.parametrize("vocab", [2, 5, 1024, 151936])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_log_probabilities_are_those_of_the_raw_logits(vocab, scale):
    logits = random_logits(vocab, scale)
    logits[1] = -np.inf
    options = {
        "temperature": 0.5,
        "top_k": 3,
        "logit_bias": [(0, 4.0)],
        "repetition_penalty": 1.5,
        "logprobs": min(vocab, 20),
    }
    token, logprob, tokens, logprobs = sampler(options, vocab, [0]).sample(logits, 3)
    expected = reference.log_softmax(logits)
    assert logprob == pytest.approx(expected[token], abs=1e-5)
    order = np.lexsort((np.arange(vocab), -expected))[: min(vocab - 1, 20)]
    np.testing.assert_array_equal(tokens, order)
    np.testing.assert_allclose(logprobs, expected[order], atol=1e-5)


@pytest.mark.parametrize("vocab", [2, 15, 16, 1024, 5000, 262144])
def test_greedy_is_argmax_and_leaves_the_logits_alone(vocab):
    logits = random_logits(vocab)
    before = logits.copy()
    for options in ({}, {"logit_bias": [(0, 0.0)]}):
        token, logprob, tokens, _ = sampler(options, vocab).sample(torch.from_numpy(logits).numpy(), 0)
        assert token == logits.argmax()
        assert logprob == pytest.approx(reference.log_softmax(logits)[token], abs=1e-5)
        assert len(tokens) == 0
    np.testing.assert_array_equal(logits, before)


def test_tensors_are_logits_too():
    logits = random_logits(50)
    assert sampler({}, 50).sample(torch.from_numpy(logits), 0)[0] == logits.argmax()


def test_a_seed_and_a_step_determine_the_draw():
    logits = random_logits(500, 1.0)

    def tokens(**options):
        return _C.sample_many(logits, _C.SamplingOptions(temperature=1.0, **options), 50).tolist()

    assert tokens(seed=1) == tokens(seed=1)
    assert tokens(seed=1) != tokens(seed=2)
    assert tokens(seed=1) != tokens(seed=1, stream=1)
    alone = sampler({"temperature": 1.0, "seed": 1}, 500)
    assert [alone.sample(logits, step)[0] for step in reversed(range(50))][::-1] == tokens(seed=1)


@pytest.mark.parametrize("temperature", [1e-300, 1e-8, 1e8, 1e300])
def test_extreme_temperatures(temperature):
    logits = np.array([1.0, -np.inf, 3.0, 2.0], np.float32)
    tokens = _C.sample_many(logits, _C.SamplingOptions(temperature=temperature), 1000)
    assert set(tokens.tolist()) == ({2} if temperature < 1 else {0, 2, 3})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_left_and_broken_logits(temperature):
    options = {"temperature": temperature, "bad_words": [[0], [1]], "top_p": 0.5}
    with pytest.raises(ValueError, match=r"every token is excluded at step 6: relax bad_words / logit_bias"):
        sampler(options, 2).sample(np.zeros(2, np.float32), 6)
    with pytest.raises(ValueError, match=r"every token is excluded at step 0"):
        sampler({}, 3).sample(np.full(3, -np.inf, np.float32), 0)
    for bad in (np.nan, np.inf):
        for logits in ([0, bad, 1], [bad] * 3):
            with pytest.raises(ValueError, match=r"step 2 hold NaN or \+inf"):
                sampler({"temperature": temperature}, 3).sample(np.array(logits, np.float32), 2)
