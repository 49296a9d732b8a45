"""``/v1/completions`` through the client of OpenAI: the same as the engine."""

from __future__ import annotations

import numpy as np
from openai import OpenAI
from serving import GREEDY, PROMPT

import dlf


def test_a_completion_is_the_engine_s(client: OpenAI, engine: dlf.Engine) -> None:
    found = client.completions.create(prompt=PROMPT, **GREEDY)
    expected = engine.generate(PROMPT, max_new_tokens=8)
    assert found.choices[0].text == expected.text and found.choices[0].finish_reason == expected.finish_reason
    assert found.object == "text_completion" and found.id.startswith("cmpl-") and found.model == "pair"
    assert found.usage is not None and found.usage.prompt_tokens == expected.prompt_tokens
    assert found.usage.total_tokens == expected.prompt_tokens + len(expected.tokens)
    ids = engine.tokenizer.encode(PROMPT)
    assert client.completions.create(prompt=ids, **GREEDY).choices[0].text == expected.text
    several = client.completions.create(prompt=[ids, engine.tokenizer.encode("x")], **GREEDY).choices
    assert [one.index for one in several] == [0, 1] and several[0].text == expected.text
    assert several[1].text == engine.generate("x", max_new_tokens=8).text


def test_token_ids_of_a_choice(client: OpenAI, engine: dlf.Engine) -> None:
    expected = engine.generate(PROMPT, max_new_tokens=8).tokens
    more = {"extra_body": {"return_token_ids": True}}
    for stream in (False, True):
        found = client.completions.create(prompt=PROMPT, **GREEDY, **more, stream=stream)
        choices = [part.choices[0] for part in found] if stream else found.choices
        assert sum((one.model_extra["token_ids"] for one in choices), []) == expected
    talk = client.chat.completions.create(messages=[{"role": "user", "content": PROMPT}], **GREEDY, **more)
    assert len(talk.choices[0].model_extra["token_ids"]) == talk.usage.completion_tokens


def test_experts_and_rules_of_a_request(client: OpenAI, engine: dlf.Engine) -> None:
    alone = client.completions.create(prompt=PROMPT, **GREEDY | {"model": "pair/b"}).choices[0].text
    assert alone == engine.generate(PROMPT, experts=["b"], max_new_tokens=8).text
    for extra in (
        {"experts": []},
        {"experts": ["a", "b"], "combine": "joint", "alpha_max": 0.5, "plausibility": 0.1},
        {"experts": ["a"], "alpha": [0.7], "gate": "entropy", "gate_threshold": 1.0},
        {"experts": ["cfg"], "negative_prompt": "lazy dog", "guidance_scale": 1.7},
    ):
        found = client.completions.create(prompt=PROMPT, **GREEDY, extra_body=extra).choices[0].text
        assert found == engine.generate(PROMPT, max_new_tokens=8, **extra).text, extra


def test_sampling_options(client: OpenAI, engine: dlf.Engine) -> None:
    drawn = client.completions.create(prompt=PROMPT, model="pair", seed=7, n=3, max_tokens=6).choices
    for index, one in enumerate(drawn):
        assert one.text == engine.generate(PROMPT, temperature=1.0, seed=7 + index, max_new_tokens=6).text
    assert len({one.text for one in drawn}) > 1
    found = client.completions.create(
        prompt=PROMPT,
        **GREEDY,
        frequency_penalty=0.4,
        presence_penalty=0.2,
        logit_bias={"5": 3.0, "9": -100},
        extra_body={"repetition_penalty": 1.3, "min_tokens": 8, "top_k": 40, "speculate": False},
    )
    options = {"frequency_penalty": 0.4, "presence_penalty": 0.2, "repetition_penalty": 1.3, "min_new_tokens": 8}
    expected = engine.generate(PROMPT, max_new_tokens=8, logit_bias={5: 3.0, 9: -100.0}, top_k=40, **options)
    assert found.choices[0].text == expected.text
    whole = engine.generate(PROMPT, max_new_tokens=8).text
    stopped = client.completions.create(prompt=PROMPT, **GREEDY, stop=[whole[3:5], "zzz"]).choices[0]
    assert stopped.text == engine.generate(PROMPT, max_new_tokens=8, stop_strings=[whole[3:5], "zzz"]).text
    assert stopped.finish_reason == "stop"


def test_legacy_logprobs_and_echo(client: OpenAI, engine: dlf.Engine) -> None:
    found = client.completions.create(prompt=PROMPT, **GREEDY, logprobs=2, echo=True).choices[0]
    expected = engine.generate(PROMPT, max_new_tokens=8, logprobs=2)
    ids = engine.tokenizer.encode(PROMPT)
    score = engine.score(ids[:1], ids[1:])
    logprobs = found.logprobs
    assert found.text == PROMPT + expected.text and logprobs is not None and logprobs.token_logprobs is not None
    assert logprobs.token_logprobs[0] is None
    np.testing.assert_allclose(logprobs.token_logprobs[1 : len(ids)], score.logprobs)  # type: ignore[arg-type]
    np.testing.assert_allclose(logprobs.token_logprobs[len(ids) :], expected.logprobs)  # type: ignore[arg-type]
    assert logprobs.top_logprobs is not None and logprobs.text_offset is not None and logprobs.tokens is not None
    for token, top, greedy in zip(
        logprobs.token_logprobs[1:], logprobs.top_logprobs[1:], score.is_greedy, strict=False
    ):
        assert (token == max(top.values())) == greedy
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert "\ufffd" in token or found.text[offset:].startswith(token)
    plain = client.completions.create(prompt=PROMPT, **GREEDY | {"max_tokens": 0}, echo=True)
    assert plain.choices[0].text == PROMPT and plain.choices[0].logprobs is None
    assert plain.usage is not None and plain.usage.prompt_tokens == len(ids)
    nothing = client.completions.create(prompt=[PROMPT], **GREEDY | {"max_tokens": 0}, logprobs=0, echo=True)
    assert nothing.choices[0].text == PROMPT and nothing.usage is not None and nothing.usage.completion_tokens == 0
    assert client.completions.create(prompt=PROMPT, **GREEDY | {"max_tokens": 1}).usage.completion_tokens == 1  # type: ignore[union-attr]
