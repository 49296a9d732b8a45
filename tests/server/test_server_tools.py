"""Tools: what the template reads, calls that the grammar enforces, and calls in answers, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from models import CHAT_TEMPLATE
from tool_models import CLOCK, STYLES, TOOLS, WEATHER, make_tool_model

import dlf
from dlf.results import Piece
from dlf.server import Served, ServerSettings, Service, make_app
from dlf.server.messages import messages_of
from dlf.server.tools import Spoken, Tools
from dlf.text.tokenizer import Tokenizer
from dlf.tool_calls import as_functions, find_format
from dlf.tool_calls.format import FORMATS, MISTRAL_ARGS

TALK = [{"role": "user", "content": "How warm is it in Rome?"}]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def allowed(mode: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [NAMED]}}


COMMON: dict[str, Any] = {"model": "m", "messages": TALK, "tools": TOOLS, "max_tokens": 100}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tools")
    return {style: make_tool_model(root / style, style, seed=5) for style in STYLES}


class Direct:
    """A server in this process, without a socket: `post` runs a request to its end."""

    def __init__(self, folder: Path, settings: ServerSettings | None = None, **options: Any) -> None:
        self._folder, self._settings, self._options = folder, settings, options

    def post(self, *bodies: dict[str, Any], path: str = "/v1/chat/completions") -> list[httpx.Response]:
        async def run() -> list[httpx.Response]:
            options: dict[str, Any] = {"threads": 2, "max_batch": 4, "max_context": 2000} | self._options
            async with dlf.AsyncEngine(self._folder, **options) as engine:
                self.engine = engine
                app = make_app(Service({"m": Served("m", engine)}), self._settings)
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://dlf", timeout=120) as client:
                    return list(await asyncio.gather(*(client.post(path, json=body) for body in bodies)))

        return asyncio.run(run())


def events(found: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in found.text.splitlines() if line]
    assert found.status_code == 200 and lines[-1] == "[DONE]", found.text
    return [json.loads(line) for line in lines[:-1]]


def streamed(found: httpx.Response) -> dict[str, Any]:
    """The message of a stream, joined as clients do; checks the form of its parts."""
    parts = [part["choices"][0] for part in events(found)]
    assert parts[0]["delta"] == {"role": "assistant", "content": None}
    content, calls = "", []
    for part in parts[1:]:
        content += part["delta"].get("content", "")
        for one in part["delta"].get("tool_calls", []):
            if "id" in one:
                assert one["index"] == len(calls) and one["type"] == "function" and one["function"]["name"]
                calls.append({key: value for key, value in one.items() if key != "index"})
            else:
                assert set(one) == {"index", "function"} and set(one["function"]) == {"arguments"}
                calls[one["index"]]["function"]["arguments"] += one["function"]["arguments"]
    assert all(part["finish_reason"] is None for part in parts[:-1])
    return {"content": content, "calls": calls, "reason": parts[-1]["finish_reason"], "parts": len(parts)}


def is_weather(call: dict[str, Any]) -> bool:
    arguments = json.loads(call["function"]["arguments"])
    assert set(arguments) == {"city", "days"}
    return arguments["city"] in ("Rome", "Köln") and 1 <= arguments["days"] <= 9


@pytest.mark.parametrize("style", STYLES)
def test_calls_that_must_be_made(style: str, folders: dict[str, Path]) -> None:
    """A random model calls, validly and at any temperature, in the words of each template."""
    drawn = {"temperature": 1.0, "seed": 3}
    bodies = [
        COMMON | {"tool_choice": NAMED, "temperature": 0},
        COMMON | {"tool_choice": NAMED, "n": 4} | drawn,
        COMMON | {"tool_choice": "required", "n": 4} | drawn,
        COMMON | {"tool_choice": "required", "n": 4, "parallel_tool_calls": False} | drawn,
        COMMON | {"tool_choice": "required", "stream": True, "parallel_tool_calls": False} | drawn,
        COMMON | {"tool_choice": "required", "parallel_tool_calls": False} | drawn,
    ]
    server = Direct(folders[style])
    *several, stream, whole = server.post(*bodies)
    for found, body in zip(several, bodies, strict=False):
        assert found.status_code == 200, found.text
        for choice in found.json()["choices"]:
            calls = choice["message"].get("tool_calls", [])
            assert choice["finish_reason"] in ("tool_calls", "length") and calls and not choice["message"]["content"]
            if choice["finish_reason"] == "length":  # it goes on calling
                continue
            assert all(call["type"] == "function" for call in calls)
            assert all(call["function"]["name"] == "clock" or is_weather(call) for call in calls)
            if body["tool_choice"] == NAMED:
                assert [call["function"]["name"] for call in calls] == ["get_weather"]
            if body.get("parallel_tool_calls") is False:
                assert len(calls) == 1
    message, joined = whole.json()["choices"][0], streamed(stream)
    assert joined["reason"] == message["finish_reason"] == "tool_calls" and joined["content"] == ""
    for call in (*joined["calls"], *message["message"]["tool_calls"]):
        assert len(call.pop("id")) in (9, 29)
    assert joined["calls"] == message["message"]["tool_calls"]
    if joined["calls"][0]["function"]["name"] == "get_weather":
        assert joined["parts"] > 3  # arguments come in pieces


def test_allowed_tools(folders: dict[str, Path]) -> None:
    """The template gets all tools, but only the allowed ones are called."""
    drawn = {"temperature": 1.0, "seed": 3, "n": 6, "tool_choice": allowed("required"), "max_tokens": 60}
    [found] = Direct(folders["hermes"]).post(COMMON | drawn)
    calls = [call for one in found.json()["choices"] for call in one["message"].get("tool_calls", ())]
    assert {call["function"]["name"] for call in calls} == {"get_weather"}
    [same, all_of_them] = Direct(folders["hermes"]).post(COMMON | {"tool_choice": allowed("auto")}, COMMON)
    assert same.json()["usage"]["prompt_tokens"] == all_of_them.json()["usage"]["prompt_tokens"]


@pytest.mark.slow
def test_many_calls_are_valid(folders: dict[str, Path]) -> None:
    bodies = [COMMON | {"tool_choice": NAMED, "temperature": 1.0, "seed": 1000 * i, "n": 125} for i in range(4)]
    server = Direct(folders["hermes"], ServerSettings(max_queue=500))
    found = [choice for one in server.post(*bodies) for choice in one.json()["choices"]]
    assert len(found) == 500 and all(is_weather(one["message"]["tool_calls"][0]) for one in found)


def test_prompts_are_those_of_the_template(folders: dict[str, Path]) -> None:
    """Messages of tools and calls, and variables, reach the template as ``transformers`` takes them."""
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    talk = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        *TALK,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [call],
            "refusal": None,
            "audio": None,
            "function_call": None,
        },
        {"role": "tool", "tool_call_id": "abcdefghi", "content": [{"type": "text", "text": "21"}]},
        {"role": "assistant", "content": "It is", "tool_calls": None},
    ]
    given = {"tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
    for style, folder in folders.items():
        tokenizer = Tokenizer(folder)
        parsed = call | {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}
        read = [
            {"role": "system", "content": "Be kind."},
            *TALK,
            {"role": "assistant", "content": "", "tool_calls": [parsed]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "21"},
            {"role": "assistant", "content": "It is"},
        ]
        schema = {"type": "object", "properties": {}, "additionalProperties": False}
        clock = {"name": "clock", "description": "", "parameters": schema}
        tools = [WEATHER, {"type": "function", "function": clock}]
        text = tokenizer.apply_chat_template(
            read, add_generation_prompt=False, continue_final_message=True, tools=tools
        )
        ids = tokenizer.encode(text, add_special_tokens=False)
        body = {"model": "m", "messages": talk, "continue_final_message": True, **given}
        [found] = Direct(folder).post({key: value for key, value in body.items()}, path="/tokenize")
        assert found.json()["tokens"] == ids, (style, found.text)
        [answer] = Direct(folder).post(body | {"max_tokens": 1})
        assert answer.json()["usage"]["prompt_tokens"] == len(ids)
        without = [*talk[:2], {"role": "user", "content": "Go on."}]
        text = tokenizer.apply_chat_template(messages_of([read[0], *without[1:]]), enable_thinking=False)
        ids = tokenizer.encode(text, add_special_tokens=False)
        [answer] = Direct(folder).post(
            {"model": "m", "messages": without, "tool_choice": "none", "max_tokens": 1, **given}
        )
        assert answer.json()["usage"]["prompt_tokens"] == len(ids)  # the template gets no tools


def test_arguments_that_are_no_object_stay() -> None:
    def arguments(given: Any) -> Any:
        call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": given}}
        return messages_of([{"role": "assistant", "tool_calls": [call]}])[0]["tool_calls"][0]["function"]["arguments"]

    assert [arguments(one) for one in ("", None, '{"a": 1}', {"a": 1}, "{a", "[1]")] == [
        {},
        {},
        {"a": 1},
        {"a": 1},
        "{a",
        "[1]",
    ]


def test_strict_functions_and_a_form_of_the_answer(folders: dict[str, Path]) -> None:
    """With tools that may be called, an answer is text, a call whose strict arguments fit, or JSON of its own form."""
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["a", "b"]}, "x": {"$ref": "#/$defs/N"}},
        "required": ["name", "x"],
        "additionalProperties": False,
        "$defs": {"N": {"type": "integer", "minimum": 0, "maximum": 99}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for style, folder in folders.items():
        tokenizer = Tokenizer(folder)
        drawn: dict[str, Any] = {"temperature": 1.5, "seed": 1, "n": 6}
        free = COMMON | {"tools": [strict, CLOCK], "max_tokens": 40} | drawn
        found, formed = Direct(folder, ServerSettings()).post(free, COMMON | {"response_format": form} | drawn)
        assert found.status_code == formed.status_code == 200, found.text + formed.text
        for choice in formed.json()["choices"]:
            message = choice["message"]
            if choice["finish_reason"] == "stop":
                assert set(json.loads(message["content"])) == {"name", "x"} and "tool_calls" not in message
            else:
                assert message["tool_calls"], style
        kinds = {choice["finish_reason"] for choice in formed.json()["choices"]}
        assert kinds & {"stop", "tool_calls"}
        tools = Tools(find_format(tokenizer) or MISTRAL_ARGS, as_functions([strict, CLOCK]), False, True)
        assert tools.grammar(tokenizer, None) is not None
        assert replace(tools, functions=as_functions(TOOLS)).grammar(tokenizer, None) is None


def piece(text: str, token: int) -> Piece:
    return Piece(text, token, 0.0, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", STYLES)
def test_what_a_model_writes(style: str, folders: dict[str, Path]) -> None:
    """Answers in the words of the template, token by token: special tokens are seen though texts leave them out."""
    tokenizer = Tokenizer(folders[style])
    form = find_format(tokenizer)
    assert form is not None
    tools = Tools(form, as_functions(TOOLS), False, True)
    arguments = '{"city": "Köln", "days": 3}'
    one = form.begin + "get_weather" + form.middle + arguments + form.end
    two = form.open + one + form.between + form.begin + "clock" + form.middle + "{}" + form.end + form.close
    for text, content, count, parallel in (
        (form.open + one + form.close, "", 1, True),
        (two, "", 2, True),
        (two, "", 1, False),
        ("Hello, world!", "Hello, world!", 0, True),
        (two.replace("get_weather", "other"), None, None, True),
    ):
        for stream in (False, True):
            spoken = Spoken(replace(tools, parallel=parallel), tokenizer, stream)
            decoder = dlf.text.stream_decoder.StreamDecoder(tokenizer)
            ids = tokenizer.encode(text, add_special_tokens=False)
            deltas = [spoken.add([piece(decoder.push(token), token)], None) for token in ids]
            deltas.append(spoken.add([], "stop"))
            said = "".join(delta.content for delta in deltas)
            calls = {one.index for delta in deltas for one in delta.calls}
            if content is None:  # no known function
                assert not any("[" in special and special in said for special in form.special) and "other" in said
            else:
                assert said == content and len(calls) == count
                assert (
                    spoken.reason("stop") == ("tool_calls" if count else "stop") and spoken.reason("length") == "length"
                )


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"tools": [{}]}, "tools", "tools[0] is no"),
        ({"tools": TOOLS * 65}, "tools", "two tools are called"),
        ({"tools": [CLOCK], "tool_choice": NAMED}, "tool_choice", "none of the tools"),
        ({"tool_choice": "always"}, "tool_choice", "'required'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice", "'required'"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "any", "tools": [NAMED]}}},
            "tool_choice",
            "'mode'",
        ),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [1]}}},
            "tool_choice",
            "'mode'",
        ),
        ({"tools": [CLOCK], "tool_choice": allowed("auto")}, "tool_choice", "none of the tools"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice", "needs tools"),
        ({"guided_regex": "a+"}, "tools", "JSON schema"),
        (
            {
                "tool_choice": "required",
                "tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": 1}}}],
            },
            "grammar",
            "mistake",
        ),
        ({"messages": [{"role": "assistant", "tool_calls": [1]}]}, "messages", "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages", "must be a list"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages", "messages[0] is no mapping"),
        ({"messages": [*TALK, {"role": "assistant", "content": "x"}]}, "messages", "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message", "both True"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs", "cannot hold 'tools'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]},
            "messages",
            "is 'image_url'; these models read text alone",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages",
            "'input_audio'",
        ),
    ],
)
def test_mistakes(folders: dict[str, Path], change: dict[str, Any], param: str, message: str) -> None:
    [found] = Direct(folders["hermes"]).post(COMMON | change)
    error = found.json()["error"]
    assert found.status_code == 400 and error["param"] == param and message in error["message"], found.text


def test_a_template_without_calls(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = Path(shutil.copytree(folders["hermes"], tmp_path / "plain"))
    config = json.loads((plain / "tokenizer_config.json").read_text())
    (plain / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT_TEMPLATE}))
    body = COMMON | {"tool_choice": "required"}
    found, without = Direct(plain).post(body, COMMON | {"tool_choice": "none", "max_tokens": 2})
    assert found.status_code == 400 and "--tool-call-parser" in found.json()["error"]["message"]
    assert without.status_code == 200
    [found] = Direct(plain, ServerSettings(tool_call_parser="hermes")).post(body)
    assert found.json()["choices"][0]["message"]["tool_calls"]
    for options in ({"template": "{prompt}"}, {}):
        [found] = Direct(folders["hermes"], **options).post(COMMON | {"max_tokens": 1})
        assert found.status_code == (400 if options else 200), found.text
    with pytest.raises(dlf.OptionError, match="give one of auto, hermes, llama3_json, mistral"):
        ServerSettings(tool_call_parser="x")
    assert {one.name for one in FORMATS} == {"hermes", "llama3_json", "mistral"}
