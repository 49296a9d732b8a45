"""The server, through the client of OpenAI and plain HTTP."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import uvicorn
from openai import OpenAI

import dlf
from dlf.cli.serve import names_of
from dlf.server import Served, ServerSettings, Service, make_app
from dlf.text.token_bytes import token_bytes

KEY = "a key of the tests"
PROMPT = "Question: what is the sum"
GREEDY: dict[str, Any] = {"model": "pair", "temperature": 0, "max_tokens": 8}
BODY = GREEDY | {"prompt": PROMPT}
TALK = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "why"}]


def experts_of(family: dict[str, Path]) -> list[Any]:
    fine = [dlf.Expert(family[f"expert-{name}"], family["base"], name=name) for name in "ab"]
    return [*fine, dlf.Guidance(name="cfg", scale=1.0)]


class Running:
    """A server in a thread of its own, with an event loop and an engine."""

    def __init__(self, family: dict[str, Path], settings: ServerSettings, **options: Any) -> None:
        self._family, self._settings, self._options = family, settings, options
        self.service: Service
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        experts = experts_of(self._family)
        options = {"threads": 2, "max_batch": 4, "max_context": 200} | self._options
        async with dlf.AsyncEngine(self._family["large"], experts, **options) as engine:
            self.engine = engine
            self.service = Service({"pair": Served("pair", engine)})
            config = uvicorn.Config(make_app(self.service, self._settings), port=0, log_level="warning")
            self.server = uvicorn.Server(config)
            serving = asyncio.create_task(self.server.serve())
            while not self.server.started:
                await asyncio.sleep(0.01)
            port = self.server.servers[0].sockets[0].getsockname()[1]
            self.url = f"http://127.0.0.1:{port}"
            self._ready.set()
            await serving

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=60, **options)

    def idle(self) -> bool:
        """Wait until no sequence has a place, as after a client has left."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if not self.service.served[0].sequences and not self.engine._running:
                return True
            time.sleep(0.01)
        return False


@pytest.fixture(scope="module")
def server(family: dict[str, Path]) -> Iterator[Running]:
    with Running(family, ServerSettings((KEY, "another"), max_queue=12, max_choices=12, max_body_bytes=20000)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def engine(family: dict[str, Path]) -> Iterator[dlf.Engine]:
    with dlf.Engine(family["large"], experts_of(family), threads=2, max_batch=4, max_context=200) as made:
        yield made


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
        ("/v1/chat/completions", GREEDY | {"messages": TALK, "tools": [{}]}, 400, "tools", "not supported"),
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
        ("/detokenize", {"tokens": [-1]}, 400, None, "negative"),
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


def test_keys(server: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        found = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer another"}).status_code == 200
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_models_tokens_and_metrics(server: Running, client: OpenAI, engine: dlf.Engine) -> None:
    assert [one.id for one in client.models.list()] == ["pair", "pair/a", "pair/b", "pair/cfg"]
    assert client.models.retrieve("pair/b").id == "pair/b"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    found = server.post("/tokenize", {"model": "pair", "prompt": PROMPT}).json()
    assert found == {"tokens": engine.tokenizer.encode(PROMPT), "count": found["count"], "max_model_len": 200}
    assert server.post("/detokenize", {"tokens": found["tokens"]}).json()["prompt"] == PROMPT
    chat = server.post("/tokenize", {"messages": TALK}).json()["tokens"]
    messages = [{"role": "system", "content": "Be brief."}, TALK[1]]
    assert chat == engine.tokenizer.encode(engine.tokenizer.apply_chat_template(messages), add_special_tokens=False)
    before = client.completions.create(prompt=PROMPT, **GREEDY, extra_body={"return_alpha": True})
    assert before.usage is not None
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
    figures = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(figures['dlf_generated_tokens_total{model="pair"}']) >= 8
    assert float(figures['dlf_traced_tokens_total{model="pair"}']) >= before.usage.completion_tokens
    assert float(figures['dlf_requests_total{endpoint="completions",model="pair",status="200"}']) >= 1
    assert 'dlf_time_to_first_token_seconds_count{model="pair"}' in figures
    assert httpx.get(f"{server.url}/version").json() == {"version": dlf.__version__}


def test_the_page_asks_this_server_alone(server: Running) -> None:
    found = httpx.get(server.url)
    assert found.status_code == 200 and "default-src 'none'" in found.headers["Content-Security-Policy"]
    assert not re.findall(r"https?://", found.text)
    for tag in ("script", "style"):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", found.text, re.DOTALL)
        hashed = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{hashed}'" in found.headers["Content-Security-Policy"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_the_page_runs_in_a_browser(family: dict[str, Path], tmp_path: Path) -> None:
    """Its script lists models and experts, which a wrong policy would prevent."""
    with Running(family, ServerSettings()) as found:
        command = [
            "chromium",
            "--headless",
            "--no-sandbox",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=5000",
        ]
        done = subprocess.run(
            [*command, "--dump-dom", found.url], capture_output=True, text=True, timeout=120, check=True
        )
    assert '<option value="pair">pair</option>' in done.stdout and 'id="expert b"' in done.stdout
    assert 'class="turn error"' not in done.stdout


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


def test_a_full_queue(server: Running) -> None:
    """Twelve sequences may run or wait."""
    with server.service.places(server.service.served[0], 11, 12):
        full = server.post("/v1/completions", BODY | {"n": 2, "temperature": 1})
        assert full.status_code == 429 and full.headers["Retry-After"] == "1"
        assert full.json()["error"]["type"] == "rate_limit_error"
        assert server.post("/v1/completions", BODY).status_code == 200
    assert server.idle()


def test_a_request_that_takes_too_long(family: dict[str, Path]) -> None:
    with Running(family, ServerSettings(timeout_s=0.001)) as found:
        late = found.post("/v1/completions", BODY)
        assert late.status_code == 504 and late.json()["error"]["code"] == "timeout"
        assert found.idle()


def test_names_of_recipes() -> None:
    assert names_of(["a/math.yaml", "towns.yml", "org/model", "x/"]) == {
        "math": "a/math.yaml",
        "towns": "towns.yml",
        "model": "org/model",
        "x": "x/",
    }
    with pytest.raises(dlf.OptionError, match="both called math"):
        names_of(["a/math.yaml", "b/math.yaml"])


def test_the_command_drains(family: dict[str, Path], tmp_path: Path) -> None:
    """A running answer is whole though the server was told to end; a wrong recipe is an error before."""
    recipe = tmp_path / "pair.yaml"
    models = {
        "large": str(family["large"]),
        "base": str(family["base"]),
        "experts": [{"model": str(family["expert-a"])}],
    }
    recipe.write_text(json.dumps(models | {"sampling": {"max_new_tokens": 4, "temperature": 0.0}}))
    keys = tmp_path / "keys"
    keys.write_text(f"{KEY}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "dlf.cli", "serve", str(recipe), "--port", str(port), "--threads", "1"]
    process = subprocess.Popen([*command, "--api-key-file", str(keys)], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None and f"http://127.0.0.1:{port}/v1" in process.stderr.readline()
        url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {KEY}"}
        for _ in range(200):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.ConnectError:
                time.sleep(0.05)
        body = BODY | {"max_tokens": 150, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as found:
            lines = found.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            assert list(lines)[-2] == "data: [DONE]"
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
    recipe.write_text("larg: x\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "larg" in done.stderr and done.stderr.count("\n") <= 3
