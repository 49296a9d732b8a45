"""Requests that are refused: status codes and OpenAI's error objects."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from serving import BODY, GREEDY, KEY, TALK, Running


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("/v1/completions", BODY | {"model": "other"}, 404, "model", "there are: pair, pair/a, pair/b, pair/cfg"),
        ("/v1/completions", BODY | {"temprature": 1}, 400, "temprature", "Unrecognized request argument"),
        ("/v1/completions", GREEDY, 400, "prompt", "you must provide prompt"),
        ("/v1/completions", BODY | {"prompt": []}, 400, "prompt", "empty list"),
        ("/v1/completions", BODY | {"prompt": ""}, 400, None, "is empty"),
        ("/v1/completions", BODY | {"prompt": [99999]}, 400, None, "token id 99999"),
        ("/v1/completions", BODY | {"suffix": "x"}, 400, "suffix", "left to right"),
        ("/v1/completions", BODY | {"best_of": 4}, 400, "best_of", "best_of is not supported"),
        ("/v1/completions", BODY | {"max_tokens": 0}, 400, "max_tokens", "echo"),
        ("/v1/completions", BODY | {"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ("/v1/completions", BODY | {"temperature": 1e9}, 400, "temperature", "less than or equal"),
        ("/v1/completions", BODY | {"n": 13}, 400, "n", "at most 12"),
        ("/v1/completions", BODY | {"prompt": ["x"] * 12, "n": 2}, 400, "n", "at most 12"),
        ("/v1/completions", BODY | {"logprobs": 21}, 400, "top_logprobs", "at most 20"),
        ("/v1/completions", BODY | {"stop": ["x"] * 17}, 400, "stop", "at most 16"),
        ("/v1/completions", BODY | {"experts": ["c"]}, 400, "experts", "no expert"),
        ("/v1/completions", BODY | {"combine": "best"}, 400, "combine", "combine"),
        ("/v1/completions", BODY | {"alpha": [1.0]}, 400, "alpha", "alpha"),
        ("/v1/completions", BODY | {"prompt": "lazy dog " * 100}, 400, None, "the context holds 200"),
        ("/v1/chat/completions", GREEDY | {"messages": []}, 400, "messages", "at least 1"),
        ("/v1/chat/completions", GREEDY | {"messages": [{"role": "user"}]}, 400, "messages", "content"),
        ("/v1/chat/completions", GREEDY | {"messages": TALK, "top_logprobs": 2}, 400, "top_logprobs", "logprobs: true"),
        ("/v1/chat/completions", GREEDY | {"messages": TALK, "tools": [{}]}, 400, "tools", "tools[0] is no"),
        (
            "/v1/chat/completions",
            GREEDY | {"messages": TALK, "response_format": {"type": "xml"}},
            400,
            "response_format.type",
            "json_schema",
        ),
        (
            "/v1/chat/completions",
            GREEDY | {"messages": TALK, "response_format": {"type": "json_schema", "json_schema": {}}},
            400,
            "response_format.json_schema",
            "'schema'",
        ),
        ("/v1/completions", BODY | {"guided_regex": "(", "n": 1}, 400, "grammar", "mistake"),
        ("/v1/completions", BODY | {"guided_json": "{"}, 400, "grammar", "JSON"),
        ("/v1/completions", BODY | {"guided_json": {"type": "nonsense"}}, 400, "grammar", "mistake"),
        ("/v1/completions", BODY | {"guided_choice": []}, 400, "grammar", "no choice"),
        ("/v1/completions", BODY | {"guided_regex": "a", "guided_json": {}}, 400, "guided_regex", "both given"),
        ("/tokenize", {}, 400, "prompt", "either prompt or messages"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens", "there is no token -1"),
        ("/nothing", {}, 404, None, "Not Found"),
    ],
)
def test_errors(server: Running, path: str, body: Any, status: int, param: str | None, message: str) -> None:
    for stream in (False, True) if path.startswith("/v1") else (False,):
        found = server.post(path, body | ({"stream": True} if stream else {}))
        assert found.status_code == status, found.text
        error = found.json()["error"]
        assert error["type"] == "invalid_request_error" and error["param"] == param and message in error["message"]
    assert server.idle()


def test_bodies_that_are_no_requests(server: Running) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    url = f"{server.url}/v1/completions"
    for content in (b"", b"{", b"[]", b'{"model": "pair", "prompt": "\xff"}', b"[" * 5000):
        found = httpx.post(url, content=content, headers=headers)
        assert found.status_code == 400 and found.json()["error"]["type"] == "invalid_request_error", content
    for large in (b" " * 20001, iter([b" " * 15000] * 2)):
        assert httpx.post(url, content=large, headers=headers).status_code == 413
