"""Arguments of requests: token ids of every type, conversations with tools, special tokens as stop strings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlf
from dlf import zoo
from dlf.arguments import as_prompts
from dlf.confined.tokens import Codec
from dlf.scoring import as_continuations
from dlf.text.layout import Layout, as_messages
from dlf.text.tokenizer import Tokenizer

IDS = [5, 6, 7]
ROWS = [[5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    "ids",
    [
        IDS,
        tuple(IDS),
        list(np.array(IDS)),
        [np.int32(5), 6, np.uint8(7)],
        np.array(IDS),
        np.array(IDS, np.uint16),
        torch.tensor(IDS),
        list(torch.tensor(IDS)),
    ],
)
def test_token_ids(ids: Any) -> None:
    assert as_prompts(ids) == ([IDS], True)
    assert as_continuations(ids, None) == ([IDS], True)
    assert as_prompts([ids, IDS]) == ([IDS, IDS], False)
    assert all(type(token) is int for token in as_prompts(ids)[0][0])


@pytest.mark.parametrize("rows", [ROWS, np.array(ROWS), torch.tensor(ROWS), list(torch.tensor(ROWS))])
def test_rows_of_token_ids(rows: Any) -> None:
    assert as_prompts(rows) == (ROWS, False)
    assert as_continuations(rows, 2) == (ROWS, False)


@pytest.mark.parametrize(
    "value",
    [
        3,
        3.0,
        b"text",
        [1.0, 2.0],
        [True, False],
        np.array([1.0]),
        np.array([True]),
        np.array(3),
        torch.tensor([1.0]),
        torch.tensor([True]),
        torch.tensor(3),
        np.zeros((2, 2, 2), int),
        ["a", 3],
        {"a": 1},
    ],
)
def test_what_is_no_prompt(value: Any) -> None:
    with pytest.raises(TypeError, match="prompt"):
        as_prompts(value)
    with pytest.raises(TypeError, match="continuation"):
        as_continuations(value, None)


def test_arrays_in_an_engine(engine: dlf.Engine) -> None:
    options = {"max_new_tokens": 3, "ignore_eos": True}
    expected = engine.generate(IDS, **options).tokens
    assert engine.generate(np.array(IDS), **options).tokens == expected
    assert [one.tokens for one in engine.generate(torch.tensor([IDS, IDS]), **options)] == [expected] * 2
    assert engine.score(torch.tensor(IDS), np.array(IDS)).tokens == IDS


TOOLS = [
    {"role": "user", "content": "What is the weather?"},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
    {"role": "tool", "content": "sunny"},
]


def test_a_turn_that_calls_tools_has_no_text(tmp_path: Path) -> None:
    assert as_messages(TOOLS) == ([TOOLS], True)
    without = [TOOLS[0], {key: value for key, value in TOOLS[1].items() if key != "content"}, TOOLS[2]]
    assert as_messages(without) == ([TOOLS], True)
    folder = Path(shutil.copytree(zoo.path("small-base"), tmp_path / "model"))
    assert Layout().text(TOOLS, Tokenizer(folder)) == "What is the weather?\n\nsunny"
    template = (
        "{% for m in messages %}[{{ m.role }}] "
        "{{ m.content if m.content is not none else m.tool_calls[0].function.name }}"
        "{% endfor %}"
    )
    (folder / "chat_template.jinja").write_text(template)
    assert Layout().text(TOOLS, Tokenizer(folder)) == "[user] What is the weather?[assistant] weather[tool] sunny"
    with pytest.raises(TypeError, match="content"):
        as_messages([{"role": "user", "content": None, "tool_calls": [1]}])


@pytest.fixture(scope="module")
def engine() -> Iterator[dlf.Engine]:
    with dlf.Engine(zoo.path("small-base"), threads=1) as engine:
        yield engine


def speaking(folder: Path, end: int) -> Path:
    """Make a model whose texts end with the token `end`; its tokenizer has the special token </s> with the id 1."""
    shutil.copytree(zoo.path("small-base"), folder)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(values | {"eos_token_id": end}))
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(values | {"eos_token": "<unk>"}))
    return folder


def test_a_special_token_is_a_stop_string(tmp_path: Path) -> None:
    with dlf.Engine(speaking(tmp_path / "model", 5), threads=1) as engine:
        assert engine.tokenizer.is_special(1) and engine.tokenizer.token(1) == "</s>"
        say = {"logit_bias": {1: 1000.0}, "max_new_tokens": 8}
        assert len(engine.generate("Hello", **say).tokens) == 8
        found = engine.generate("Hello", stop_strings=["</s>"], **say)
        assert (found.tokens, found.text, found.finish_reason) == ([1], "", "stop")
        several = engine.generate("Hello", stop_strings=["s></"], **say)
        assert (several.tokens, several.text) == ([1, 1], "")
        assert [piece.text for piece in engine.stream("Hello", stop_strings=["</s>"], **say)] == [""]


@pytest.mark.parametrize("ask", ["generate", "prompt", "continuation", "examples"])
def test_a_long_text_is_refused_before_it_is_encoded(
    engine: dlf.Engine, ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = Codec.encode

    def counted(self: Codec, text: str, add_special_tokens: bool) -> list[int]:
        encoded.append(len(text))
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Codec, "encode", counted)
    text = "The quick brown fox " * 100_000
    with pytest.raises(ValueError, match="(at least .* tokens|longer than).*context"):
        if ask == "generate":
            engine.generate(["x", text])
        elif ask == "prompt":
            engine.score(text, "x")
        elif ask == "continuation":
            engine.score("x", text)
        else:
            engine.generate(text, examples=[("a", "b")])
    assert sum(encoded) < 200_000


def test_a_chat_ends_with_the_turn(tmp_path: Path) -> None:
    folder = speaking(tmp_path / "model", 5)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>\n{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    with dlf.Engine(folder, threads=1) as engine:
        say = {"logit_bias": {1: 1000.0}, "max_new_tokens": 4}
        assert engine.generate(messages=[{"role": "user", "content": "Hello"}], **say).tokens == [1]
        assert engine.generate("Hello", **say).tokens == [1] * 4
    with dlf.Engine(folder, threads=1, template="chat") as engine:
        assert engine.generate("Hello", **say).tokens == [1]
