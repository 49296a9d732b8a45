"""Clients that vanish, stop or never finish: nothing of them stays, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import LONG_PROMPT, Held, all_of, http_request, leave, mixed_bodies, resident_bytes
from models import finetune, make_model
from serving import BODY, KEY, Running

from dlf.driver import Driver
from dlf.server import ServerSettings

LONG = BODY | {"max_tokens": 180, "ignore_eos": True, "speculate": False, "stream": True}
READER = """
import socket, sys
request = sys.stdin.buffer.read()
client = socket.socket()
client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
client.connect(("127.0.0.1", int(sys.argv[1])))
client.sendall(request)
print(client.recv(100), flush=True)
while client.recv(100):
    pass
"""


@pytest.fixture(scope="module")
def long_family(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models whose context holds prompts of several chunks."""
    root = tmp_path_factory.mktemp("long")
    large = make_model(root / "large", "llama", seed=1, num_hidden_layers=3, max_position_embeddings=1024)
    base = make_model(root / "base", "llama", seed=2, max_position_embeddings=1024)
    return {"large": large, "base": base} | {
        f"expert-{name}": finetune(root / f"expert-{name}", base, seed, 0.2) for seed, name in enumerate("ab")
    }


@pytest.fixture(scope="module")
def server(long_family: dict[str, Path]) -> Iterator[Running]:
    settings = ServerSettings((KEY,), max_queue=400, patience=2.0)
    with Running(long_family, settings, max_context=1000) as found:
        for _ in range(3):  # what is made once, such as threads and the helper process of templates
            asyncio.run(
                all_of((leave(found.port, http_request(*mixed_bodies(random.Random(i))), 5) for i in range(40)), 8)
            )
        yield found


def test_clients_killed_at_random_moments_leave_nothing(server: Running) -> None:
    order = random.Random(1)
    before = Held.by(server)

    def clients(count: int) -> Iterator[Any]:
        for _ in range(count):
            part = order.choice([1.0, 1.0, 1.0, order.random()])
            yield leave(server.port, http_request(*mixed_bodies(order)), order.uniform(0, 0.2), part)

    asyncio.run(all_of(clients(100), 20))
    assert server.idle()
    memory = resident_bytes()
    asyncio.run(all_of(clients(500), 20))
    assert server.post("/v1/completions", BODY).status_code == 200
    time.sleep(2.5)  # unfinished requests lose their connections
    assert not Held.by(server).beyond(before)
    assert resident_bytes() - memory < 32 << 20


def test_a_queue_that_leaves_frees_its_places(server: Running) -> None:
    before = Held.by(server)

    async def crowd() -> None:
        first = [asyncio.create_task(leave(server.port, http_request("/v1/completions", LONG), 20)) for _ in range(4)]
        while len(server.engine._running) < 4:
            await asyncio.sleep(0.01)
        waiting = [
            leave(server.port, http_request("/v1/completions", LONG | {"stream": i % 2}), 1.0) for i in range(200)
        ]
        await asyncio.gather(*waiting)
        for task in first:
            task.cancel()
        await asyncio.gather(*first, return_exceptions=True)

    asyncio.run(crowd())
    assert not Held.by(server).beyond(before)


@pytest.mark.parametrize("phase", ["queued", "prefill", "streaming", "whole", "scoring"])
def test_a_client_that_is_gone_frees_its_places_within_two_steps(
    server: Running, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps last 50 ms here, far longer than the server takes to see that a connection is closed."""
    steps = 0
    step = Driver._step

    def slow(self: Driver) -> None:
        nonlocal steps
        steps += 1
        time.sleep(0.05)
        step(self)

    bodies = {
        "queued": LONG,
        "prefill": LONG | {"prompt": LONG_PROMPT},
        "streaming": LONG,
        "whole": LONG | {"stream": False},
        "scoring": LONG | {"prompt": LONG_PROMPT, "echo": True, "logprobs": 1},
    }
    assert server.idle()
    company = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(4 if phase == "queued" else 0)]
    try:
        for one in company:
            one.sendall(http_request("/v1/completions", LONG | {"max_tokens": 900}))
        wait_for(lambda: len(server.engine._running) == len(company))
        monkeypatch.setattr(Driver, "_step", slow)
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(http_request("/v1/completions", bodies[phase]))
            wait_for(lambda: len(server.engine._running) == len(company) + 1)
            if phase == "streaming":
                assert client.recv(100)
                wait_for(lambda: steps > 5)
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
            )  # a reset, as of a killed client
        begin = steps
        wait_for(lambda: len(server.engine._running) == len(company))
        assert steps - begin <= 2
        assert server.service.served[0].sequences == len(company)
    finally:
        monkeypatch.undo()
        for one in company:
            one.close()
    assert server.idle()


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_stopped_reader_holds_up_nobody_and_is_cut_off(server: Running) -> None:
    before, memory = Held.by(server), resident_bytes()
    more = {"max_tokens": 900, "n": 12, "temperature": 1, "logprobs": 20, "return_alpha": True}
    body = http_request("/v1/completions", LONG | more)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", READER, str(server.port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(3)
    ]
    try:
        for reader in readers:
            assert reader.stdin is not None and reader.stdout is not None
            reader.stdin.write(body)
            reader.stdin.close()
            assert reader.stdout.readline().startswith(b"b'HTTP/1.1 200")
            reader.send_signal(signal.SIGSTOP)
        assert server.post("/v1/completions", BODY).status_code == 200
        assert Held.by(server).sequences == 0  # though the readers still stand
        # Their pipes; a connection that was idle before may have ended meanwhile.
        wait_for(lambda: Held.by(server).descriptors <= before.descriptors + len(readers))
        assert not replace(Held.by(server), descriptors=0).beyond(before)
        assert resident_bytes() - memory < 96 << 20
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
            assert reader.stdout is not None
            reader.stdout.close()


def test_a_request_that_never_ends_is_cut_off(server: Running) -> None:
    request = http_request("/v1/completions", BODY)
    for part in (b"", request[:20], request[:-1]):
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            client.sendall(part)
            begin = time.monotonic()
            try:
                said = client.recv(100)
            except ConnectionResetError:
                said = b""
            assert said == b"" and 1.5 < time.monotonic() - begin < 15


def test_a_stream_that_takes_too_long_ends_with_an_error(long_family: dict[str, Path]) -> None:
    with Running(long_family, ServerSettings(timeout=0.5), max_context=1000) as running:
        body = LONG | {"max_tokens": 950, "n": 16, "temperature": 1}
        found = running.post("/v1/completions", body)
        if found.status_code == 200:
            assert json.loads(found.text.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "timeout"
        else:  # before its first token
            assert found.status_code == 504
        assert running.idle()


def test_every_running_answer_is_whole_though_the_server_is_told_to_end(
    family: dict[str, Path], tmp_path: Path
) -> None:
    recipe = tmp_path / "pair.yaml"
    recipe.write_text(json.dumps({"large": str(family["large"])}))
    command = [sys.executable, "-P", "-m", "dlf.cli", "serve", str(recipe), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, "--max-batch", "2"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        url = process.stderr.readline().split(" at ")[1].strip()

        async def ask(client: httpx.AsyncClient, number: int) -> str:
            body = {"model": "pair", "prompt": "x", "max_tokens": 250, "ignore_eos": True, "n": 4}
            body["stream"] = number % 2 == 0
            return (await client.post(f"{url}/completions", json=body)).text

        async def all_whole() -> None:
            limits = httpx.Limits(max_connections=100)
            async with httpx.AsyncClient(timeout=60, limits=limits) as client:
                while True:
                    try:
                        await client.get(f"{url}/models")
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.05)
                asked = [asyncio.create_task(ask(client, number)) for number in range(24)]
                running = 0
                while running // 4 + sum(one.done() for one in asked) < len(asked):  # until it has read all of them
                    text = (await client.get(f"{url[:-3]}/metrics")).text
                    found = re.search(r'^dlf_sequences{model="pair"} (\d+)', text, re.MULTILINE)
                    running = int(found[1]) if found else 0
                assert running > 2  # more than there are slots
                process.send_signal(signal.SIGTERM)
                for number, text in enumerate(await asyncio.gather(*asked)):
                    whole = text.count('"finish_reason":"length"') == 4
                    assert whole and (number % 2 or text.endswith("data: [DONE]\n\n"))

        asyncio.run(all_whole())
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_soak_leaves_memory_flat(server: Running) -> None:
    """A minute of mixed load, with clients that vanish; DLF_SOAK_MINUTES=30 for longer."""
    order = random.Random(3)
    before = Held.by(server)
    end = time.monotonic() + 60 * float(os.environ.get("DLF_SOAK_MINUTES", "1"))
    seen = []
    while time.monotonic() < end:
        work = (
            leave(server.port, http_request(*mixed_bodies(order)), order.choice([order.uniform(0, 0.5), 20.0]))
            for _ in range(100)
        )
        asyncio.run(all_of(work, 16))
        assert server.idle()
        seen.append(resident_bytes())
    assert len(seen) >= 3
    settled = max(seen[: max(1, len(seen) // 3)])
    assert seen[-1] - settled < 24 << 20, [one >> 20 for one in seen]
    time.sleep(2.5)
    assert not Held.by(server).beyond(before)
