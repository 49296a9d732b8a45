"""Keys, queues, timeouts, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import BODY, KEY, Running

from dlf.server import ServerSettings
from dlf.server.answers import Answer
from dlf.server.metrics import Metrics
from dlf.server.responses import Events, Part


def test_keys(server: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        found = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer another"}).status_code == 200
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_a_client_that_leaves_frees_its_places(server: Running) -> None:
    long = BODY | {"max_tokens": 180, "ignore_eos": True, "speculate": False}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=long, headers={"Authorization": f"Bearer {KEY}"}, timeout=0.05)
    assert server.idle()
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=long | {"stream": True, "n": 3, "temperature": 1}, headers=headers
    ) as found:
        next(found.iter_lines())
    assert server.idle()


def test_a_stream_whose_time_is_over_before_its_head_ends_with_an_error() -> None:
    sent: list[dict[str, Any]] = []
    closed = False

    async def parts() -> AsyncGenerator[Part]:
        nonlocal closed
        try:
            while True:
                await asyncio.sleep(0.01)
                yield {"choices": []}
        finally:
            closed = True

    async def send(message: Any) -> None:
        await asyncio.sleep(0)
        sent.append(message)

    async def late() -> None:
        source = parts()
        first = await anext(source)
        frame = Answer("text_completion", "pair", Metrics())
        over = asyncio.get_running_loop().time() - 1
        scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
        await Events(first, source, frame, False, over, 3.0)(scope, asyncio.Event().wait, send)

    asyncio.run(late())
    assert sent[0]["status"] == 200 and not sent[-1]["more_body"] and closed
    assert json.loads(sent[-1]["body"].removeprefix(b"data: "))["error"]["code"] == "timeout"


def test_a_full_queue(server: Running) -> None:
    """Twelve sequences may run or wait."""
    with server.service.places(server.service.served[0], 11, 12):
        full = server.post("/v1/completions", BODY | {"n": 2, "temperature": 1})
        assert full.status_code == 429 and full.headers["Retry-After"] == "1"
        assert full.json()["error"]["type"] == "rate_limit_error"
        assert server.post("/v1/completions", BODY).status_code == 200
    assert server.idle()


def test_a_request_that_takes_too_long(family: dict[str, Path]) -> None:
    with Running(family, ServerSettings(timeout=0.001)) as found:
        late = found.post("/v1/completions", BODY)
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        assert found.idle()


def test_pages_of_other_servers_can_neither_ask_nor_read(server: Running) -> None:
    other = {"Origin": "http://elsewhere.example", "Authorization": f"Bearer {KEY}"}
    url = f"{server.url}/v1/completions"
    # A page may send this without asking before.
    simple = httpx.post(url, content=json.dumps(BODY), headers=other | {"Content-Type": "text/plain"})
    assert simple.status_code == 400
    asked = httpx.options(url, headers=other | {"Access-Control-Request-Method": "POST"})
    read = httpx.post(url, json=BODY, headers=other)
    assert asked.status_code == 405 and read.status_code == 200
    assert not any(name.startswith("access-control") for found in (simple, asked, read) for name in found.headers)


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_ends_one_request_and_the_log_has_no_prompt(
    server: Running, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **options: object) -> None:
        raise KeyError(f"no such thing as {options['prompt']}")

    monkeypatch.setattr(server.engine, "generate", broken)
    found = server.post("/v1/completions", BODY | {"stream": stream, "prompt": "a secret"})
    assert found.status_code == 500 and found.json()["error"]["message"] == "the server failed; its log says why"
    assert "KeyError" in caplog.text and "in broken" in caplog.text and "secret" not in caplog.text
    monkeypatch.undo()
    assert server.post("/v1/completions", BODY).status_code == 200 and server.idle()
