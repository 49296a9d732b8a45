"""The sampler in float64 NumPy, as plainly as it can be written."""

from __future__ import annotations

import numpy as np


def process(logits, options, prompt=(), generated=(), step=0):
    """Return the logits after penalties, biases and bans; `options` has names of `_C.SamplingOptions` as keys."""
    scores = np.array(logits, np.float64)
    for token in {*prompt, *generated}:
        penalty = options.get("repetition_penalty", 1.0)
        scores[token] = scores[token] * penalty if scores[token] < 0 else scores[token] / penalty
    for token in set(generated):
        scores[token] -= options.get("presence_penalty", 0.0)
        scores[token] -= options.get("frequency_penalty", 0.0) * list(generated).count(token)
    for token, bias in options.get("logit_bias", []):
        scores[token] += bias
    history = [*prompt, *generated]
    for *preceding, last in options.get("bad_words", []):
        if history[len(history) - len(preceding) :] == preceding:
            scores[last] = -np.inf
    if step < options.get("min_new_tokens", 0):
        scores[options.get("stop_token_ids", [])] = -np.inf
    return scores


def probabilities(scores, options):
    """Return the sampled distribution: softmax at the temperature, top-k, top-p, min-p, renormalised."""
    weights = np.exp((scores - scores.max()) / options["temperature"])
    order = np.lexsort((np.arange(len(scores)), -scores))  # the higher score first, then the lower id
    kept = order[: options.get("top_k", 0) or None]
    if options.get("top_p", 1.0) < 1:
        cumulative = np.cumsum(weights[kept]) / weights[kept].sum()
        kept = kept[: np.searchsorted(cumulative, options["top_p"]) + 1]
    kept = kept[weights[kept] >= options.get("min_p", 0.0) * weights.max()]
    result = np.zeros_like(weights)
    result[kept] = weights[kept] / weights[kept].sum()
    return result


def draw(distribution, uniform):
    """Return the first token, in the order of ids, at which the cumulative distribution exceeds a uniform number."""
    cumulative = np.cumsum(distribution)
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    peak = logits.max()
    return logits - peak - np.log(np.exp(logits - peak).sum())


def philox(seed, step, stream):
    """Return the four words of Philox4x32-10 for the counter (step, stream) and the key `seed`."""
    mask = 0xFFFFFFFF
    key = [seed & mask, seed >> 32]
    x = [step & mask, step >> 32, stream & mask, stream >> 32]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [(b >> 32) ^ x[1] ^ key[0], b & mask, (a >> 32) ^ x[3] ^ key[1], a & mask]
        key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
    return x
