"""Chat templates: which file is read, the limits on time and memory, and the end of an assistant's turn."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import make_sentencepiece_tokenizer, make_tokenizer

from dlf.confined.helper import Helper
from dlf.errors import CheckpointError
from dlf.text import chat_template
from dlf.text.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "x"}]


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[Helper]:
    """Use a helper process that allows a template one second."""
    helper = Helper("templates", ["jinja2", "markupsafe"], chat_template.MEMORY, 1)
    monkeypatch.setattr(chat_template, "_helper", lambda: helper)
    yield helper


def tokenizer(folder: Path, template: str | None, **config: Any) -> Tokenizer:
    make_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, **config}))
    return Tokenizer(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10**9 }}",
        "{{ 'a' * 10**7 * 3 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ 10 ** (10 ** 9) }}",
        "{{ messages | tojson(indent=10**9) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ ('a\n' * 10**4) | indent(10**6) }}",
        "{{ ([['a' * 10**6] * 10**4] * 10**3) | string }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ raise_exception('a' * 10**7) }}",
        "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    ],
)
def test_templates_are_bounded(tmp_path: Path, hasty: Helper, template: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config\.json refuses") as caught:
        tokenizer(tmp_path, template).apply_chat_template(TALK)
    assert len(str(caught.value)) < 2000
    assert tokenizer(tmp_path, "{{ messages[0].role }}").apply_chat_template(TALK) == "user"


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__ }}",
        "{{ lipsum.__globals__['os'].getpid() }}",
        "{{ (''|attr('__class__')).mro() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{% set x = namespace() %}{{ x.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_templates_stay_in_the_sandbox(tmp_path: Path, template: str) -> None:
    with pytest.raises(ValueError, match="refuses"):
        tokenizer(tmp_path, template).apply_chat_template(TALK)


def test_variables_are_json(tmp_path: Path) -> None:
    written = tokenizer(tmp_path, "{{ tools | tojson }}{{ deep.a[1] }}{{ none is none }}")
    assert written.apply_chat_template(TALK, tools=[{"é": 1.5}], deep={"a": (1, True)}) == '[{"é": 1.5}]TrueTrue'
    for wrong in (print, {1, 2}, b"a"):
        with pytest.raises(ValueError, match="JSON"):
            written.apply_chat_template(TALK, tools=[wrong])


def test_a_slow_template_keeps_no_thread_for_ever(tmp_path: Path, hasty: Helper) -> None:
    slow = tokenizer(tmp_path, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    errors: list[Exception] = []

    def render() -> None:
        try:
            slow.apply_chat_template(TALK)
        except ValueError as error:
            errors.append(error)

    threads = [threading.Thread(target=render) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(errors) == 3 and all("longer than 1 s" in str(error) for error in errors)


def test_threads_get_their_own_text(tmp_path: Path) -> None:
    written = tokenizer(tmp_path, "{{ messages[0].content }}")
    wrong: list[str] = []

    def render(name: str) -> None:
        for i in range(50):
            text = f"{name} {i}" * 100
            if written.apply_chat_template([{"role": "user", "content": text}]) != text:
                wrong.append(text)

    threads = [threading.Thread(target=render, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_has_a_helper_of_its_own(tmp_path: Path) -> None:
    written = tokenizer(tmp_path, "{{ messages[0].content }}")

    def right(text: str) -> bool:
        return written.apply_chat_template([{"role": "user", "content": text}]) == text

    assert right("parent")
    child = os.fork()
    if child == 0:
        os._exit(0 if all(right(f"child {i}") for i in range(100)) else 1)
    assert all(right(f"parent {i}") for i in range(100))
    assert os.waitpid(child, 0)[1] == 0
    assert right("parent again")


def test_a_helper_ends_with_its_user() -> None:
    helper = Helper("templates", ["jinja2", "markupsafe"], chat_template.MEMORY, 5)
    assert helper.ask("render", "{{ a }}", {"a": 1}) == "1"
    process = helper._running._process
    assert process is not None and process.poll() is None
    del helper
    assert process.poll() is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_request_leaves_no_answer_behind(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    helper = Helper("templates", ["jinja2", "markupsafe"], chat_template.MEMORY, 5)
    assert helper.ask("render", "first", {}) == "first"

    def interrupt(*_: object) -> bytes:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("dlf.confined.helper._receive", interrupt)
        with pytest.raises((error, ValueError)):
            helper.ask("render", "second", {})
    assert helper.ask("render", "third", {}) == "third"


def test_windows_files(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (tmp_path / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_bytes(b"\xef\xbb\xbfa\r\n{{ messages[0].content }}\r\n")
    assert Tokenizer(tmp_path).apply_chat_template(TALK) == "a\nx"


def test_templates_in_files_of_their_own(tmp_path: Path) -> None:
    tokenizer(tmp_path, "config")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    assert not Tokenizer(tmp_path).has_chat_template  # only the files count
    (tmp_path / "chat_template.jinja").write_text("default")
    both = Tokenizer(tmp_path)
    assert both.chat_template == both.apply_chat_template(TALK) == "default"
    assert both.apply_chat_template(TALK, tools=[{}]) == "tools"
    (tmp_path / "chat_template.jinja").write_bytes(b" " * (chat_template.MAX_TEMPLATE_BYTES + 1))
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja"):
        Tokenizer(tmp_path)


CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA3 = "{% for m in messages %}<|header|>{{ m.role }}<|/header|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content }}<end_of_turn>\n{% endfor %}"
)
ZEPHYR = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
STRICT = "{% if messages | length != 1 %}{{ raise_exception('one message') }}{% endif %}x"
SILENT = "{% for m in messages if m.role == 'user' %}{{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA3, "<|eot_id|>"),
        (LLAMA2, "</s>"),
        (GEMMA, "<end_of_turn>"),
        (ZEPHYR, "</s>"),
        (PLAIN, None),
        (STRICT, None),
        (SILENT, None),
        ("{% if %}", None),
        (None, None),
    ],
)
def test_end_of_turn(tmp_path: Path, template: str | None, end: str | None) -> None:
    added = "<|im_start|> <|im_end|> <|header|> <|/header|> <|eot_id|> <start_of_turn> <end_of_turn>".split()
    found = tokenizer(tmp_path, template, bos_token="<s>", eos_token="</s>", extra_special_tokens=added)
    assert found.end_of_turn_id == (None if end is None else found.vocab[end])
    config = (tmp_path / "tokenizer_config.json").read_bytes()
    make_sentencepiece_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(config)
    found = Tokenizer(tmp_path)
    assert found.end_of_turn_id == (None if end is None else found.vocab[end])
