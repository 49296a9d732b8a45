"""A server of two experts and guidance, its client, and the same engine in this process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from serving import KEY, Running, experts_of

import dlf
from dlf.server import ServerSettings


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
