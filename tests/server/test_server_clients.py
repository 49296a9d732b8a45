"""Clients that programs use: those of OpenAI, litellm and langchain, with tools and structured output."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from models import finetune
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field
from serving import KEY, Running
from tool_models import TOOLS, WEATHER, make_tool_model

from dlf.server import ServerSettings

TALK: list[Any] = [{"role": "user", "content": "How warm is it in Rome?"}]
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}
TALKED: dict[str, Any] = {"model": "pair", "messages": TALK, "max_tokens": 80}


class Weather(BaseModel):
    """The weather of a city."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Rome", "Köln"]
    days: int = Field(ge=1, le=9)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two experts and guidance, all with a template of tools."""
    root = tmp_path_factory.mktemp("clients")
    large = make_tool_model(root / "large", "hermes", seed=5)
    base = make_tool_model(root / "base", "hermes", seed=2)
    experts = {f"expert-{name}": finetune(root / name, base, seed, 0.3) for name, seed in (("a", 3), ("b", 4))}
    for folder in experts.values():
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).write_bytes((base / file).read_bytes())
    with Running(
        {"large": large, "base": base} | experts, ServerSettings((KEY,)), max_context=1000, max_batch=8
    ) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def is_weather(text: str) -> bool:
    return bool(Weather.model_validate_json(text))


def test_the_client_of_openai(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**TALKED, tools=TOOLS, tool_choice=NAMED, temperature=0)  # type: ignore[arg-type]
    assert raw.status_code == 200 and raw.headers["content-type"] == "application/json"
    choice = raw.parse().choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls is not None
    [call] = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "get_weather" and is_weather(call.function.arguments)
    # The answer goes back as the client holds it, with the result of the call.
    talk = [*TALK, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "21 °C"}]
    plain: dict[str, Any] = TALKED | {"messages": talk, "max_tokens": 4}
    again = client.chat.completions.create(**plain, tools=TOOLS)  # type: ignore[arg-type]
    assert again.choices[0].message.tool_calls is None and again.choices[0].message.content
    dumped = [*TALK, choice.message.model_dump(), talk[-1]]
    same = client.chat.completions.create(**plain | {"messages": dumped}, tools=TOOLS)  # type: ignore[arg-type]
    assert same.usage is not None and again.usage is not None and same.usage.prompt_tokens == again.usage.prompt_tokens


def test_structured_output_by_the_client_of_openai(client: OpenAI) -> None:
    found = client.chat.completions.parse(**TALKED, temperature=1.0, seed=1, response_format=Weather)
    weather = found.choices[0].message.parsed
    assert isinstance(weather, Weather)
    tool = openai.pydantic_function_tool(Weather)
    called = client.chat.completions.parse(
        **TALKED, tools=[tool], tool_choice={"type": "function", "function": {"name": "Weather"}}, seed=2
    )
    assert called.choices[0].message.tool_calls is not None
    assert isinstance(called.choices[0].message.tool_calls[0].function.parsed_arguments, Weather)


def test_streams_of_the_client_of_openai(client: OpenAI) -> None:
    whole = client.chat.completions.create(**TALKED, tools=TOOLS, tool_choice=NAMED, temperature=0)  # type: ignore[arg-type]
    with client.chat.completions.stream(**TALKED, tools=TOOLS, tool_choice=NAMED, temperature=0) as stream:  # type: ignore[arg-type]
        kinds = [event.type for event in stream]
        found = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds and "tool_calls.function.arguments.done" in kinds
    assert found.finish_reason == "tool_calls" and found.message.tool_calls is not None
    assert whole.choices[0].message.tool_calls is not None
    assert [one.function.arguments for one in found.message.tool_calls] == [
        one.function.arguments
        for one in whole.choices[0].message.tool_calls  # type: ignore[union-attr]
    ]


def test_the_asynchronous_client(server: Running) -> None:
    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            asked = [client.chat.completions.create(**TALKED, tools=TOOLS, tool_choice=NAMED, seed=i) for i in range(4)]  # type: ignore[call-overload]
            for found in await asyncio.gather(*asked):
                assert is_weather(found.choices[0].message.tool_calls[0].function.arguments)
            stream = await client.chat.completions.create(**TALKED, tools=TOOLS, tool_choice=NAMED, seed=0, stream=True)  # type: ignore[call-overload]
            arguments = ""
            async for chunk in stream:
                for one in chunk.choices[0].delta.tool_calls or ():
                    arguments += one.function.arguments
            assert is_weather(arguments)
            text = await client.chat.completions.with_raw_response.create(**TALKED | {"max_tokens": 3}, logprobs=True)
            content = text.parse().choices[0].logprobs.content
            assert content is not None and len(content) == 3

    asyncio.run(run())


def test_litellm(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would ask a server for it
    litellm = pytest.importorskip("litellm")
    given: dict[str, Any] = TALKED | {"model": "openai/pair", "api_base": f"{server.url}/v1", "api_key": KEY}
    found = litellm.completion(**given, tools=TOOLS, tool_choice=NAMED, temperature=0)
    [call] = found.choices[0].message.tool_calls
    assert found.choices[0].finish_reason == "tool_calls" and is_weather(call.function.arguments)
    chunks = list(litellm.completion(**given, tools=TOOLS, tool_choice="required", temperature=0, stream=True))
    joined = litellm.stream_chunk_builder(chunks, messages=TALK)
    assert joined.choices[0].message.tool_calls
    formed = asyncio.run(litellm.acompletion(**given, response_format=Weather, temperature=1.0, seed=3))
    assert is_weather(formed.choices[0].message.content)
    with pytest.raises(litellm.BadRequestError, match="none of the tools"):
        litellm.completion(**given, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "no"}})


def test_langchain(server: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(
        model="pair", base_url=f"{server.url}/v1", api_key=KEY, temperature=0, max_tokens=80, max_retries=0
    )
    bound = model.bind_tools([WEATHER], tool_choice="get_weather")
    answer = bound.invoke("How warm is it in Rome?")
    [call] = answer.tool_calls
    assert call["name"] == "get_weather" and Weather(**call["args"])
    assert answer.response_metadata["finish_reason"] == "tool_calls"
    total: Any = None
    for chunk in bound.stream("How warm is it in Rome?"):
        total = chunk if total is None else total + chunk
    assert [one["args"] for one in total.tool_calls] == [call["args"]]
    for method in ("function_calling", "json_schema"):
        found = model.with_structured_output(Weather, method=method).invoke("How warm is it in Rome?")
        assert isinstance(found, Weather), method
    messages = __import__("langchain_core.messages", fromlist=["ToolMessage"])
    talk = [messages.HumanMessage("How warm is it?"), answer, messages.ToolMessage("21", tool_call_id=call["id"])]
    assert isinstance(asyncio.run(model.bind_tools([WEATHER]).ainvoke(talk)).content, str)
    assert json.dumps(call["args"])
