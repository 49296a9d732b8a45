"""Requests that nobody would send: by schemathesis, from the OpenAPI file, and by hand."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import resident_bytes
from serving import BODY, KEY, TALK, Running

from dlf.server import ServerSettings
from dlf.server.responses import Json

DEEP = "[" * 100_000
HUGE = 10**40
HALF = "\ud800"  # half of a surrogate pair, which JSON can escape
FIELDS: dict[str, list[Any]] = {
    "prompt": [HALF, [HALF], [HUGE], [-1], [[HUGE]], [[]], [""], ["x", ""], [1.5], [True], {}, "\0", "x" * 15000],
    "model": [HALF, "pair/", "pair/a/b", "", "../pair", "x" * 15000],
    "n": [0, -1, 10**6, HUGE, 1.5],
    "max_tokens": [-1, HUGE],
    "min_tokens": [HUGE, 5000],
    "seed": [HUGE, -HUGE, -1, 1 << 64],
    "stop": [HALF, [""], "", ["x"] * 100, ["x" * 15000], [HALF]],
    "stop_token_ids": [[HUGE], [-1], [10**6], [2**31], [2**32], [2**63]],
    "logit_bias": [{"1": "NaN"}, {str(HUGE): 1}, {"-1": 1}, {"1": 1e308}, {str(2**31): 1}, {"1": HUGE}],
    "bad_words": [[HALF], [""], ["x" * 10000]],
    "temperature": ["NaN", "inf", 1e-320, 1e308, -0.0],
    "top_p": ["NaN", 1e-320],
    "top_k": [HUGE, 2**31, 2**63],
    "repetition_penalty": ["NaN", 0, 1e-320, 1e308, HUGE],
    "logprobs": [HUGE, -1, 21, 2**31],
    "experts": [[HALF], ["a", "a"], ["none"], ["cfg"]],
    "combine": [HALF, "mean"],
    "alpha": [["NaN"], [1e308, -1e308], {"a": HUGE}, {HALF: 1}, [0.5] * 20],
    "alpha_max": [0, -1, "NaN", 1e308, [1.0] * 20],
    "mix": [[0.5, 0.6, None], [2.0, None, None], ["NaN", None, None]],
    "large_weight": [1e308, "NaN", "inf"],
    "plausibility": [2, -1, "NaN"],
    "gate_threshold": ["NaN", -1e308],
    "negative_prompt": [HALF, "", [{}], [{"role": "user"}]],
    "guidance_scale": [1e308, "NaN", -5],
    "guided_json": [HALF, "{", {"type": HALF}, {"$ref": "#"}, {"type": "string", "pattern": "(" * 500}, {"enum": []}],
    "guided_regex": [HALF, "(", "(a{1000}){1000}", "(((((a{99}){99}){99}){99}){99})", "[", "x" * 15000],
    "guided_choice": [[], [HALF], [""], ["\0"]],
    "guided_grammar": [HALF, "start: start", "start: " + '"a" ' * 3000, "start: /(/"],
    "best_of": [0, HUGE, 3],
    "suffix": [HALF],
    "metadata": [{HALF: HALF}, {"a": {"b": HUGE}}],
    HALF: [1],
}


def posted(server: Running, path: str, content: str | bytes) -> httpx.Response:
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    return httpx.post(f"{server.url}{path}", content=content, headers=headers, timeout=60)


def is_answered(found: httpx.Response) -> bool:
    """Whether a request was served or refused as the client's mistake, in the form that OpenAI gives errors."""
    return found.status_code == 200 or (found.status_code < 500 and bool(found.json()["error"]["message"]))


@pytest.mark.parametrize("name", FIELDS, ids=lambda name: name.encode("ascii", "backslashreplace").decode())
def test_impossible_values_are_the_client_s_mistakes(server: Running, name: str) -> None:
    for value in FIELDS[name]:
        text = json.dumps(BODY | {"max_tokens": 2, "logprobs": 1, "echo": name == "prompt", name: value})
        for content in (text, text.replace('"NaN"', "NaN").replace('"inf"', "Infinity")):
            found = posted(server, "/v1/completions", content)
            assert is_answered(found), (value, found.text)
    assert server.idle()


@pytest.mark.parametrize(
    "messages",
    [
        [{}],
        [{"role": []}],
        [{"role": "user", "content": HALF}],
        [{"role": "user", "content": {"a": [HUGE]}}],
        [{"role": "user", "content": [{"type": "image_url"}]}],
        [{"role": HALF, "content": "x"}],
        [{"role": "user", "content": "x", "more": [[[[1]]]]}] * 50,
    ],
)
def test_impossible_messages_are_the_client_s_mistakes(server: Running, messages: Any) -> None:
    for path, body in (("/v1/chat/completions", {"model": "pair", "max_tokens": 2}), ("/tokenize", {})):
        found = posted(server, path, json.dumps(body | {"messages": messages}))
        assert is_answered(found), found.text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        DEEP.encode()[:19000],
        b'{"a":' * 3000,
        b"\xff\xfe",
        b"1" * 10000,
        b'{"model": "pair", "prompt": "\\ud800"}',
        b"null",
    ],
)
def test_bodies_that_are_no_requests_are_the_client_s_mistakes(server: Running, content: bytes) -> None:
    for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
        assert is_answered(posted(server, path, content)), content[:20]


def test_many_mistakes_take_little_memory(family: dict[str, Path]) -> None:
    """Each of these bodies has a million mistakes, which a report of all would keep."""
    with Running(family, ServerSettings()) as running:
        before = resident_bytes()
        for text in ('"prompt": [' + "{}," * 10**6 + "{}]", ",".join(f'"a{i}": 1' for i in range(500_000))):
            found = posted(running, "/v1/completions", '{"model": "pair", ' + text + "}")
            assert found.status_code == 400
        assert resident_bytes() - before < 600 << 20


def test_headers_that_nobody_sends(server: Running) -> None:
    for head in (
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length: -1",
        b"Content-Length: 1\r\nContent-Length: 2",
        b"X: " + b"y" * 100_000,
        b"Authorization: Bearer \xff",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3",
        b"Upgrade: websocket\r\nConnection: Upgrade",
    ):
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
            client.shutdown(socket.SHUT_WR)
            said = client.recv(1000)
            assert not said.startswith(b"HTTP/1.1 5"), (head[:40], said)
    assert server.post("/v1/completions", BODY).status_code == 200


def test_half_a_character_can_leave_the_server() -> None:
    assert Json({"a": HALF}).body == b'{"a":"\\ud800"}'


@pytest.mark.slow
@pytest.mark.skipif(find_spec("schemathesis") is None, reason="schemathesis is not installed")
def test_schemathesis_finds_no_failure_of_the_server(family: dict[str, Path], tmp_path: Path) -> None:
    """At least 2000 calls, none of which ends with a status of 500 or more."""
    with Running(family, ServerSettings(timeout=30.0)) as running:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/openapi.json"]
        options = ["--checks", "not_a_server_error", "--max-examples", "400", "--seed", "1", "--request-timeout", "60"]
        found = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path, check=False)
        assert found.returncode == 0, found.stdout[-5000:] + found.stderr[-2000:]
        assert running.server.server_state.total_requests >= 2000
        assert running.idle()
        assert (
            running.post("/v1/chat/completions", {"model": "pair", "messages": TALK, "max_tokens": 2}).status_code
            == 200
        )
