"""A server of two replicas on a Ray cluster of two nodes."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import dlf
from dlf import zoo
from dlf.server import ServerSettings

pytest.importorskip("ray.serve", reason="Ray is not installed; make test-cluster installs it")
from nodes import kill, nodes, workers  # noqa: E402

from dlf.replicas.deploy import Replicas, deploy, shut_down  # noqa: E402
from dlf.replicas.metrics import joined  # noqa: E402
from dlf.replicas.router import BEGINNING, key_of, order_of  # noqa: E402

KEY = "a key"
ENGINES = "ServeReplica:dlf:engines"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def arguments(**options: Any) -> dict[str, Any]:
    experts = [dlf.Expert(zoo.path("math-expert"), zoo.path("small-base"), name="math")]
    return {"large": zoo.path("large-base"), "experts": experts, "max_context": 512} | options


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with nodes(2, 2) as found:
        yield found


class Client:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(
            base_url=self.url, headers=HEADERS, timeout=120, limits=httpx.Limits(max_connections=64)
        )
        self.retries = 0

    def post(self, body: dict[str, Any], path: str = "/v1/completions") -> httpx.Response:
        return self.client.post(path, json={"model": "math", "temperature": 0, "max_tokens": 6} | body)

    def tried(self, body: dict[str, Any]) -> dict[str, Any]:
        """Post, and try again after a 503, as clients do."""
        for _ in range(60):
            found = self.post(body)
            if found.status_code != 503:
                assert found.status_code == 200, found.text
                return found.json()  # type: ignore[no-any-return]
            self.retries += 1
            time.sleep(float(found.headers["retry-after"]))
        raise AssertionError("no replica came back")

    def metric(self, name: str) -> dict[str, float]:
        """A counter's value of each replica, of the model "math"."""
        found: dict[str, float] = {}
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name}_total{{"):
                replica = line.split('replica="')[1].split('"')[0]
                found[replica] = found.get(replica, 0.0) + float(line.rsplit(" ", 1)[1])
        return found


@pytest.fixture(scope="module")
def client(cluster: Any) -> Iterator[Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = ServerSettings((KEY,), port=port, max_body_bytes=20000)
    assert not deploy({"math": arguments()}, settings, Replicas(2, 2), cluster.address)
    yield Client(port)
    shut_down()


@pytest.fixture(scope="module")
def engine() -> Iterator[dlf.Engine]:
    with dlf.Engine(**arguments(threads=1)) as made:
        yield made


def some_prompts(count: int) -> list[str]:
    return [one.prompt for one in (zoo.problems("math") * (1 + count // len(zoo.problems("math"))))[:count]]


def test_replicas_answer_what_one_engine_answers(client: Client, engine: dlf.Engine) -> None:
    for prompt in some_prompts(6):
        assert client.tried({"prompt": prompt})["choices"][0]["text"] == engine.generate(prompt, max_new_tokens=6).text
    prompt = some_prompts(1)[0]
    streamed = client.post({"prompt": prompt, "stream": True}).text
    assert streamed.endswith("data: [DONE]\n\n") and streamed.count("data: ") > 3
    talk = client.post({"messages": [{"role": "user", "content": prompt}]}, "/v1/chat/completions").json()
    assert talk["choices"][0]["message"]["content"]
    assert httpx.post(f"{client.url}/v1/completions", json={}).status_code == 401
    assert client.post({"prompt": "x" * 30000}).status_code == 413
    assert client.post({"prompt": "x", "temperature": -1}).json()["error"]["param"] == "temperature"
    assert client.post({"prompt": "x", "model": "no"}).status_code == 404
    assert client.client.get("/v1/models").json()["data"][0]["id"] == "math"
    assert client.client.get("/health/ready").json() == {"status": "ok"}


def test_prompts_that_begin_alike_meet_one_replica(client: Client) -> None:
    before = client.metric("dlf_requests")
    assert len(before) == 2
    common = " ".join(some_prompts(8))
    assert len(common) > BEGINNING
    for number in range(6):
        client.tried({"prompt": f"{common} {number}"})
    after = client.metric("dlf_requests")
    assert sorted(after[name] - before[name] for name in after) == [0, 6]


@pytest.mark.slow
def test_a_replica_that_is_killed_loses_no_answer(cluster: Any, client: Client, engine: dlf.Engine) -> None:
    """2000 requests of 25 conversations' beginnings."""
    order = random.Random(time.time_ns())
    problems = some_prompts(200)
    beginnings = [" ".join(problems[8 * number : 8 * number + 8]) for number in range(25)]
    prompts = [f"{beginnings[i % 25]} {i}. {problems[i % 200]}" for i in range(2000)]
    expected = [one.text for one in engine.generate(prompts, max_new_tokens=6)]
    answered = threading.Event()
    found: list[str | None] = [None] * len(prompts)

    def ask(i: int) -> None:
        found[i] = client.tried({"prompt": prompts[i]})["choices"][0]["text"]
        if i == 600:
            answered.set()

    def kill_one() -> None:
        answered.wait(300)
        kill(order.choice(workers(cluster, ENGINES)))

    killer = threading.Thread(target=kill_one)
    killer.start()
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(len(prompts))))
    killer.join()
    assert found == expected


def test_hits_of_the_prefix_cache(client: Client) -> None:
    """Prompts of several beginnings, in any order, hit as often as with one engine: each begins on its replica."""
    problems = some_prompts(120)
    prompts = [f"{' '.join(problems[10 * n : 10 * n + 10])} {i}" for i in range(6) for n in range(12)]
    random.Random(1).shuffle(prompts)

    def hits(ask: Any) -> float:
        return sum(ask(prompt) for prompt in prompts)

    several = hits(lambda prompt: client.tried({"prompt": prompt})["usage"]["prompt_tokens_details"]["cached_tokens"])
    with dlf.Engine(**arguments(threads=1)) as one:
        single = hits(lambda prompt: min((c := one.generate(prompt, max_new_tokens=6)).cached_tokens, c.prompt_tokens))
    assert single > 0 and several >= 0.8 * single


def test_a_changed_recipe_takes_over_without_a_refusal(cluster: Any, client: Client) -> None:
    over = threading.Event()
    statuses: list[int] = []

    def ask() -> None:
        while not over.is_set():
            statuses.append(client.post({"prompt": some_prompts(1)[0]}).status_code)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        port = int(client.url.rsplit(":", 1)[1])
        settings = ServerSettings((KEY,), port=port, max_body_bytes=20000)
        recipes = {"math": arguments(), "plain": arguments(experts=())}
        deploy(recipes, settings, Replicas(2, 2), cluster.address)
        assert {one["id"] for one in client.client.get("/v1/models").json()["data"]} == {"math", "math/math", "plain"}
    finally:
        over.set()
        asking.join()
    assert statuses and set(statuses) == {200}


def test_the_order_of_replicas() -> None:
    idle = dict.fromkeys("abcdef", 0)
    keys = [f"key {number}" for number in range(300)]
    first = {key: order_of(key, idle, 4)[0] for key in keys}
    shares = [list(first.values()).count(name) for name in idle]
    assert min(shares) > 20  # a fair share would be 50
    fewer = {name: 0 for name in "abcde"}
    assert all(order_of(key, fewer, 4)[0] == first[key] for key in keys if first[key] != "f")
    for key in keys[:20]:
        name = first[key]
        assert order_of(key, idle | {name: 3}, 4) == order_of(key, idle, 4)
        assert order_of(key, idle | {name: 4}, 4)[-1] == name
    assert order_of("key", {}, 4) == []


def test_the_key_of_a_request() -> None:
    import json

    def key(**body: Any) -> str:
        return key_of(json.dumps(body).encode())

    long = "x" * BEGINNING
    assert key(prompt=long + "a") == key(prompt=long + "b") != key(prompt="y" + long)
    assert key(model="a", prompt="x") != key(model="b", prompt="x")
    system = {"role": "system", "content": long}
    assert key(messages=[system, {"content": "a"}]) == key(messages=[system, {"content": "b"}])
    assert key(messages=[{"content": "s"}, {"content": "a"}]) != key(messages=[{"content": "s"}, {"content": "b"}])
    assert key(prompt=[1] * 600 + [2]) == key(prompt=[1] * 600 + [3]) != key(prompt=[2] * 600)
    assert key(prompt=["a", "b"]) == key(prompt=["a", "c"])
    for none in (b"", b"{", b"[]", b"[" * 100_000, b'{"prompt": 1}', b'{"prompt": []}', b"\xff"):
        assert key_of(none) == ""
    assert key(messages=[3, None, {"content": [{"text": "a"}]}])


def test_metrics_of_replicas_are_joined() -> None:
    text = b'# HELP a_total of a\n# TYPE a_total counter\na_total{model="m"} 2.0\n'
    found = joined({"one": text, "two": text.replace(b"2.0", b"3.0")}).decode().splitlines()
    assert [line for line in found if not line.startswith("#")] == [
        'a_total{model="m",replica="one"} 2.0',
        'a_total{model="m",replica="two"} 3.0',
    ]
    assert sum(line.startswith("# TYPE") for line in found) == 1
