"""Tiny models with the chat templates of tools: short ones in the styles of Qwen and Hermes, Llama 3, and Mistral."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from models import PADDED_VOCAB_SIZE, VOCAB_SIZE, make_model

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Rome", "Köln"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
TOOLS = [WEATHER, CLOCK]


@dataclass(frozen=True)
class Style:
    """A template, and the tokens that it needs: by name, and whether they are special."""

    template: str
    tokens: dict[str, bool]


HERMES = Style(
    "{%- if tools %}{{ '<|im_start|>system\n' }}"
    "{%- if messages[0].role == 'system' %}{{ messages[0].content + '\n\n' }}{%- endif %}"
    "{{ 'Functions:' }}{%- for tool in tools %}{{ '\n' + tool | tojson }}{%- endfor %}"
    "{{ '\nCall one as <tool_call>{...}</tool_call>.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response>"
    "<|im_end|>\n' }}"
    "{%- elif message.tool_calls %}{{ '<|im_start|>assistant' }}"
    "{%- if message.content %}{{ '\n' + message.content }}{%- endif %}"
    "{%- for call in message.tool_calls %}{%- set call = call.function %}"
    '{{ \'\n<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}{{ call.arguments | tojson }}'
    "{{ '}\n</tool_call>' }}{%- endfor %}{{ '<|im_end|>\n' }}"
    "{%- elif not (tools and loop.first and message.role == 'system') %}"
    "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{%- endif %}{%- endif %}",
    {"<|im_start|>": True, "<|im_end|>": True, "<tool_call>": False, "</tool_call>": False},
)
LLAMA = Style(
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message.role == 'tool' %}{{ '<|start_header_id|>ipython<|end_header_id|>\n\n' }}"
    "{{ {'output': message.content} | tojson }}"
    "{%- elif 'tool_calls' in message %}{%- set call = message.tool_calls[0].function %}"
    "{%- if message.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{%- endif %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{ '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{ call.arguments | tojson }}{{ '}' }}"
    "{%- else %}{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}"
    "{%- if tools and loop.last and message.role == 'user' %}"
    "{%- for tool in tools %}{{ tool | tojson(indent=4) + '\n\n' }}{%- endfor %}{%- endif %}"
    "{{ message.content | trim }}{%- endif %}{{ '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    {
        "<|start_header_id|>": True,
        "<|end_header_id|>": True,
        "<|eot_id|>": True,
        "<|python_tag|>": True,
    },
)


def _mistral(call: str, tokens: dict[str, bool], between: str = "") -> Style:
    head = (
        "{{- bos_token }}{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
        "{%- for message in messages %}{%- if message.role == 'tool' %}"
        "{%- if message.tool_call_id | length != 9 %}{{ raise_exception('an id has 9 characters') }}{%- endif %}"
        "{{ '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}"
        "{%- elif message.tool_calls is defined %}"
    )
    tail = (
        "{{ eos_token }}{%- elif message.role == 'assistant' %}{{ message.content + eos_token }}"
        "{%- else %}{{ '[INST]' + message.content + '[/INST]' }}{%- endif %}{%- endfor %}"
    )
    marks = {"[INST]": True, "[/INST]": True, "[TOOL_CALLS]": True, "[TOOL_RESULTS]": True, "[/TOOL_RESULTS]": True}
    return Style(head + call + tail, marks | tokens)


MISTRAL = _mistral(
    "{{ '[TOOL_CALLS] [' }}{%- for call in message.tool_calls %}{{ (call.function | tojson)[:-1] }}"
    "{{ ', \"id\": \"' + call.id + '\"}' }}{{ ', ' if not loop.last else ']' }}{%- endfor %}",
    {},
)
MISTRAL11 = _mistral(
    "{%- for call in message.tool_calls %}{{ '[TOOL_CALLS]' + call.function.name + '[ARGS]' }}"
    "{{ call.function.arguments | tojson }}{%- endfor %}",
    {"[ARGS]": True, "[CALL_ID]": True},
)
STYLES = {"hermes": HERMES, "llama3_json": LLAMA, "mistral": MISTRAL, "mistral11": MISTRAL11}


def make_tool_model(folder: Path, style: str, seed: int = 1, source: Path | None = None) -> Path:
    """Write a tiny model whose template takes tools; `source` is another one of it, whose tokens are the same."""
    if source is None:
        make_model(folder, "llama", seed=seed, vocab_size=PADDED_VOCAB_SIZE + 8, max_position_embeddings=4096)
    else:
        shutil.copytree(source, folder)
    found = STYLES[style]
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([tokenizers.AddedToken(name, special=special) for name, special in found.tokens.items()])
    assert tokenizer.get_vocab_size() <= PADDED_VOCAB_SIZE + 8 and VOCAB_SIZE < PADDED_VOCAB_SIZE
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": found.template}))
    return folder
