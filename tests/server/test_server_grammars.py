"""Answers that follow a schema, through the client of OpenAI: valid under fusion, beside answers that follow none."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from serving import BODY, TALK

pytest.importorskip("llguidance")

SCHEMA = {
    "type": "object",
    "properties": {
        "animal": {"enum": ["fox", "dog", "the lazy cat"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["animal", "age", "tags"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}


def answers(client: OpenAI, seed: int, count: int) -> list[str]:
    found = client.chat.completions.create(
        messages=TALK,  # type: ignore[arg-type]
        model="pair",
        temperature=1,
        seed=seed,
        n=count,
        max_tokens=120,
        response_format=FORMAT,
    )
    assert all(choice.finish_reason == "stop" for choice in found.choices)
    return [choice.message.content or "" for choice in found.choices]


def check(text: str) -> None:
    found = json.loads(text)
    assert set(found) == {"animal", "age", "tags"} and found["animal"] in ("fox", "dog", "the lazy cat"), text
    assert 0 <= found["age"] <= 99 and len(found["tags"]) <= 2, text
    assert all(isinstance(tag, bool) for tag in found["tags"]), text


def test_answers_follow_a_schema_beside_others_that_follow_none(client: OpenAI) -> None:
    alone = client.completions.create(**BODY).choices[0].text
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(answers, client, seed, 2) for seed in (1, 2)]
        free = pool.submit(client.completions.create, **BODY)
        for future in held:
            for text in future.result():
                check(text)
        assert free.result().choices[0].text == alone
    assert held[0].result() == answers(client, 1, 2)


@pytest.mark.slow
def test_five_hundred_answers_follow_a_schema(client: OpenAI) -> None:
    with ThreadPoolExecutor(2) as pool:
        found = [text for each in pool.map(lambda seed: answers(client, seed, 5), range(100)) for text in each]
    for text in found:
        check(text)
    assert len(found) == 500 and len(set(found)) > 50
