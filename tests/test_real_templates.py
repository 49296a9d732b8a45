"""Tools with chat templates of published models (``make test-real``; downloads 50 MB)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from models import make_tokenizer
from real.templates import fetch_templates
from tool_models import TOOLS

from dlf.server.messages import chat_options, messages_of
from dlf.server.protocol import ChatTemplateFields
from dlf.text.chat_options import ChatOptions
from dlf.text.layout import CHAT, Layout, as_messages
from dlf.text.tokenizer import Tokenizer
from dlf.tool_calls import CallReader, find_format

pytestmark = pytest.mark.real

FORMATS = {
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen-QwQ-32B": "hermes",
    "Qwen-Qwen2.5-7B-Instruct": "hermes",
    "Qwen-Qwen3-0.6B": "hermes",
    "meta-llama-Llama-3.1-8B-Instruct": "llama3_json",
    "meta-llama-Llama-3.2-3B-Instruct": "llama3_json",
    "meta-llama-Llama-3.3-70B-Instruct": "llama3_json",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral",
    # Other formats, or no calls.
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": None,
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": None,
    "google-gemma-2-2b-it": None,
    "meetkai-functionary-medium-v3.2": None,
    "microsoft-Phi-3.5-mini-instruct": None,
    "moonshotai-Kimi-K2": None,
    "openai-gpt-oss-120b": None,
}
ARGUMENTS = '{"city": "Rome", "days": 2}'
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": ARGUMENTS}}
TALK = [
    {"role": "user", "content": "How warm is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "21 degrees"},
]


@pytest.fixture(params=FORMATS)
def template(request: pytest.FixtureRequest) -> Path:
    folder = fetch_templates()
    if folder is None:
        pytest.skip("the templates cannot be downloaded")
    return folder / f"{request.param}.jinja"


def test_calls_are_written_and_read(template: Path, tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    shutil.copy(template, tmp_path / "chat_template.jinja")
    tokenizer = Tokenizer(tmp_path)
    form = find_format(tokenizer)
    assert (None if form is None else form.name) == FORMATS[template.stem]
    if form is None:
        return
    chat = chat_options(ChatTemplateFields(tools=TOOLS))

    def written(count: int, opens: bool) -> str:
        options = ChatOptions(**chat, add_generation_prompt=opens)
        [[messages], _] = as_messages(messages_of(TALK[:count]), options)
        return Layout(CHAT, chat=options).text(messages, tokenizer)

    asked = written(1, True)
    assert "get_weather" in asked and "clock" in asked
    told = written(3, True)
    assert told.count("get_weather") == asked.count("get_weather") + 1 and "21 degrees" in told
    # What the template writes behind the question is read as the same call, and has the form of the grammar.
    answer = written(2, False).removeprefix(asked)
    reader = CallReader(form, ["get_weather", "clock"], eager=False)
    read = [reader.push(answer.strip()), reader.flush()]
    assert [(one.name, one.arguments) for delta in read for one in delta.calls] == [("get_weather", ARGUMENTS)]
    assert form.open + form.begin + "get_weather" in answer
    assert "[CALL_ID]" in answer or form.begin + "get_weather" + form.middle + ARGUMENTS in answer
    assert form.name == "mistral" or ARGUMENTS + form.end in answer  # where the template writes an id, too
