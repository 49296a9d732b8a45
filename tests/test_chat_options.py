"""Options of chat templates: the text is that of ``transformers``, for every lane, and mistakes have a name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from models import finetune
from tool_models import STYLES, TOOLS, make_tool_model

import dlf
from dlf.text.chat_options import ChatOptions, take_chat
from dlf.text.layout import Layout, as_messages
from dlf.text.tokenizer import Tokenizer

TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "How warm is it?"}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln"}}}
CALLED: list[dict[str, Any]] = [
    *TALK,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "21 °C"},
]
OPEN = [*TALK, {"role": "assistant", "content": "It is "}]


@pytest.fixture(scope="module", params=STYLES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tool_model(tmp_path_factory.mktemp("model") / request.param, request.param)


@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (TALK, {}),
        (TALK, {"tools": TOOLS}),
        (CALLED, {"tools": TOOLS}),
        (CALLED, {}),
        (TALK, {"add_generation_prompt": False}),
        (OPEN, {"continue_final_message": True}),
        (OPEN, {"continue_final_message": True, "add_generation_prompt": False, "tools": TOOLS}),
        ([*TALK, {"role": "assistant", "content": "no end"}], {"add_generation_prompt": False}),
        (TALK, {"chat_template_kwargs": {"enable_thinking": False}}),
        (TALK, {"tools": []}),
    ],
)
def test_texts_are_those_of_transformers(folder: Path, messages: Any, options: dict[str, Any]) -> None:
    chat, rest = take_chat(options | {"seed": 1})
    assert rest == {"seed": 1}
    [[found], single] = as_messages(messages, chat)
    assert single
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs.apply_chat_template(
        messages,
        tokenize=False,
        tools=options.get("tools") or None,
        add_generation_prompt=options.get("add_generation_prompt", not options.get("continue_final_message")),
        continue_final_message=options.get("continue_final_message", False),
        **options.get("chat_template_kwargs", {}),
    )
    assert Layout(chat=chat).text(found, Tokenizer(folder)) == expected


def test_tools_are_a_part_that_conversations_share(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    [[talk], _] = as_messages(TALK[1:])
    for tools in (None, TOOLS):
        layout = Layout(chat=ChatOptions(tools))
        tokens, shared = layout.encode(talk, tokenizer)
        text = tokenizer.decode(tokens[:shared], skip_special_tokens=False)
        assert layout.text(talk, tokenizer).startswith(text)
        assert ("get_weather" in text) == (tools is not None) and "warm" not in text


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tools": "x"}, "tools"),
        ({"tools": [1]}, "tools"),
        ({"tools": TOOLS * 65}, "tools"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"not a name": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": {1}}}, None),
        ({"add_generation_prompt": 1}, "add_generation_prompt"),
        ({"continue_final_message": "yes"}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_mistakes(family: dict[str, Path], options: dict[str, Any], field: str | None) -> None:
    with dlf.Engine(family["large"]) as engine, pytest.raises((ValueError, TypeError)) as raised:
        engine.generate(messages=TALK, max_new_tokens=1, **options)
    assert getattr(raised.value, "field", None) == field


def test_every_lane_reads_the_options(tmp_path: Path) -> None:
    """A call with options has the result of the texts that the templates write with them."""
    large = make_tool_model(tmp_path / "large", "hermes")
    base = make_tool_model(tmp_path / "base", "hermes", seed=2)
    expert = finetune(tmp_path / "expert", base, 3, 0.3)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, expert / file)
    with dlf.Engine(large, [dlf.Expert(expert, base, name="a"), dlf.Guidance(name="cfg", scale=1.0)]) as engine:
        for options in ({"tools": TOOLS}, {"continue_final_message": True}):
            messages = OPEN if "tools" not in options else TALK
            text = engine.tokenizer.apply_chat_template(messages, add_generation_prompt="tools" in options, **options)
            ids = engine.tokenizer.encode(text, add_special_tokens=False)
            expected = engine.generate(ids, max_new_tokens=4, ignore_eos=True)
            found = engine.generate(messages=messages, max_new_tokens=4, ignore_eos=True, **options)
            assert found.prompt_tokens == len(ids) and found.tokens == expected.tokens
            assert (found.alpha == expected.alpha).all() and (found.f == expected.f).all()
        negative = engine.generate(messages=TALK, negative_prompt=TALK[1:], tools=TOOLS, max_new_tokens=4)
        text = engine.tokenizer.apply_chat_template(TALK[1:], tools=TOOLS)
        ids = engine.tokenizer.encode(text, add_special_tokens=False)
        same = engine.generate(messages=TALK, negative_prompt=ids, tools=TOOLS, max_new_tokens=4)
        assert negative.tokens == same.tokens and (negative.f == same.f).all()


def test_only_text_is_read() -> None:
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    for content, part in (
        ([{"type": "text", "text": "What is this?"}, image], r"\[1\] is 'image_url'"),
        ([{"type": "text"}], r"\[0\] has no text"),
        (["text"], r"\[0\] has no text"),
        ([], "must be text"),
    ):
        with pytest.raises(TypeError, match=part):
            as_messages([{"role": "user", "content": content}])
