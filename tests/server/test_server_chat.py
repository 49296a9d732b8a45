"""``/v1/chat/completions`` through the client of OpenAI, whole and streamed."""

from __future__ import annotations

from openai import OpenAI
from serving import GREEDY, PROMPT, TALK

import dlf
from dlf.text.token_bytes import token_bytes


def test_a_chat(client: OpenAI, engine: dlf.Engine) -> None:
    messages = [{"role": "system", "content": "Be brief."}, TALK[1]]
    expected = engine.generate(messages=messages, max_new_tokens=6, logprobs=3)
    found = client.chat.completions.create(
        messages=TALK,  # type: ignore[arg-type]
        model="pair",
        temperature=0,
        max_completion_tokens=6,
        logprobs=True,
        top_logprobs=3,
        extra_body={"return_alpha": True},
    )
    choice = found.choices[0]
    assert choice.message.content == expected.text and choice.message.role == "assistant"
    assert choice.logprobs is not None and choice.logprobs.content is not None
    for token, one, top in zip(expected.tokens, choice.logprobs.content, expected.top_logprobs, strict=True):
        assert one.bytes == list(token_bytes(engine.tokenizer, token))
        assert [best.logprob for best in one.top_logprobs] == list(top.values())
    fusion = choice.model_extra["fusion"]  # type: ignore[index]
    assert fusion["experts"] == ["a", "b", "cfg"]
    assert [one["alpha"] for one in fusion["tokens"]] == expected.alpha.tolist()
    assert [one["f"] for one in fusion["tokens"]] == expected.f.tolist()
    traced = engine.generate(messages=messages, max_new_tokens=6, trace=True).trace.changed
    assert traced is not None and [one["changed"] for one in fusion["tokens"]] == traced.tolist()
    one = client.chat.completions.create(
        messages=TALK,  # type: ignore[arg-type]
        model="pair/b",
        temperature=0,
        max_tokens=2,
        extra_body={"return_alpha": True},
    ).choices[0]
    fusion = one.model_extra["fusion"]  # type: ignore[index]
    assert fusion["experts"] == ["b"] and len(fusion["tokens"][0]["alpha"]) == 1
    parts = [{"type": "text", "text": "w"}, {"type": "text", "text": "hy"}]
    same = client.chat.completions.create(
        messages=[TALK[0], {"role": "user", "content": parts}],  # type: ignore[list-item]
        model="pair",
        temperature=0,
        max_tokens=6,
    )
    assert same.choices[0].message.content is not None


def test_messages_that_guide(client: OpenAI, engine: dlf.Engine) -> None:
    """They have the roles and parts of other messages."""
    against = [{"role": "developer", "content": [{"type": "text", "text": "Be long."}]}, TALK[1]]
    found = client.chat.completions.create(
        messages=TALK,  # type: ignore[arg-type]
        model="pair/cfg",
        temperature=0,
        max_tokens=6,
        extra_body={"negative_prompt": against},
    )
    messages = [{"role": "system", "content": "Be brief."}, TALK[1]]
    negative = [{"role": "system", "content": "Be long."}, TALK[1]]
    expected = engine.generate(messages=messages, negative_prompt=negative, experts=["cfg"], max_new_tokens=6)
    assert found.choices[0].message.content == expected.text


def test_streams(client: OpenAI, engine: dlf.Engine) -> None:
    chunks = list(client.completions.create(prompt=PROMPT, **GREEDY, stream=True, logprobs=1))
    expected = engine.generate(PROMPT, max_new_tokens=8)
    assert "".join(one.choices[0].text for one in chunks) == expected.text
    assert [one.choices[0].finish_reason for one in chunks][-1] == expected.finish_reason
    several = list(
        client.chat.completions.create(
            messages=TALK,  # type: ignore[arg-type]
            model="pair",
            n=3,
            seed=1,
            max_tokens=6,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    *parts, last = several
    assert not last.choices and last.usage is not None and all(part.usage is None for part in parts)
    texts = ["", "", ""]
    for part in parts:
        texts[part.choices[0].index] += part.choices[0].delta.content or ""
    whole = client.chat.completions.create(messages=TALK, model="pair", n=3, seed=1, max_tokens=6)  # type: ignore[arg-type]
    assert texts == [one.message.content for one in whole.choices] and whole.usage == last.usage
