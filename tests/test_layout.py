"""Layouts: the text of a lane's prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import CHAT_TEMPLATE

from dlf.text.layout import Layout, as_examples, as_messages
from dlf.text.tokenizer import Tokenizer

SHOTS = (("2 + 2", "4"), ("3 + 5", "8"))
TALK = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def tokenizer(family: dict[str, Path]) -> Tokenizer:
    return Tokenizer(family["base"])


@pytest.fixture(scope="module")
def plain(family: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The same tokenizer without a chat template."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "tokenizer.json").write_bytes((family["base"] / "tokenizer.json").read_bytes())
    return Tokenizer(folder)


@pytest.mark.parametrize(
    ("template", "examples", "text"),
    [
        (None, (), "1 + 1"),
        (None, SHOTS, "2 + 2 4\n\n3 + 5 8\n\n1 + 1"),
        ("[INST] {prompt} [/INST]", (), "[INST] 1 + 1 [/INST]"),
        ("Q: {prompt}\nA:", SHOTS, "Q: 2 + 2\nA: 4\n\nQ: 3 + 5\nA: 8\n\nQ: 1 + 1\nA:"),
        ("Q: {prompt}\nA:\n", SHOTS[:1], "Q: 2 + 2\nA:\n4\n\nQ: 1 + 1\nA:\n"),
        ("Q: {question}\nA: {answer}\n", SHOTS, "Q: 2 + 2\nA: 4\nQ: 3 + 5\nA: 8\nQ: 1 + 1\nA:"),
        ("{question} = {answer}; ", SHOTS, "2 + 2 = 4; 3 + 5 = 8; 1 + 1 ="),
        ("{{{prompt}}} {{x}}", (), "{1 + 1} {x}"),
    ],
)
def test_format_strings(template: str | None, examples: Any, text: str, plain: Tokenizer) -> None:
    assert Layout(template, examples).text("1 + 1", plain) == text


def test_braces_of_a_prompt_are_text(plain: Tokenizer) -> None:
    assert Layout("Q: {prompt}").text("{prompt} {x} {{", plain) == "Q: {prompt} {x} {{"


@pytest.mark.parametrize(
    "template",
    [
        "",
        "nothing",
        "{prompt",
        "{prompt!r}",
        "{prompt:>9}",
        "{prompt.x}",
        "{0}",
        "{}",
        "{prompt}{prompt}",
        "{answer}{question}",
        "{question}",
        "{question}{answer}{answer}",
        "{{prompt}}",
    ],
)
def test_templates_that_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        Layout(template)


def test_a_template_is_text() -> None:
    with pytest.raises(TypeError, match="template"):
        Layout(7)  # type: ignore[arg-type]


def test_chat_writes_examples_as_turns(tokenizer: Tokenizer) -> None:
    assert CHAT_TEMPLATE
    text = Layout("chat", SHOTS[:1]).text("1 + 1", tokenizer)
    assert text.endswith("[user] 2 + 2\n[assistant] 4\n[user] 1 + 1\n[assistant] ")
    text = Layout("chat", SHOTS[:1]).text(TALK, tokenizer)
    assert text.endswith("[system] Be kind.\n[user] 2 + 2\n[assistant] 4\n[user] Hello\n[assistant] ")


def test_messages_go_to_each_model_as_it_reads_them(tokenizer: Tokenizer, plain: Tokenizer) -> None:
    assert Layout().text(TALK, plain) == "Be kind.\n\nHello"
    assert Layout().text(TALK, tokenizer).endswith("[system] Be kind.\n[user] Hello\n[assistant] ")
    assert Layout("{prompt}").text(TALK, tokenizer) == "Be kind.\n\nHello"
    assert Layout().text("Hello", tokenizer) == "Hello"
    with pytest.raises(ValueError, match="chat template"):
        Layout("chat").text("Hello", plain)


@pytest.mark.parametrize("layout", [Layout(None, SHOTS), Layout("chat", SHOTS), Layout("Long " * 30 + "{prompt}")])
@pytest.mark.parametrize("questions", [("1 + 1", "lazy dog"), ("Question: what?", "\u4f60\u597d"), ("a", "ab")])
def test_what_does_not_depend_on_the_question(layout: Layout, questions: tuple[str, str], tokenizer: Tokenizer) -> None:
    (first, shared), (second, same) = (layout.encode(question, tokenizer) for question in questions)
    assert shared == same > 0
    assert first[:shared] == second[:shared]
    assert first == tokenizer.encode(layout.text(questions[0], tokenizer), add_special_tokens=layout.template != "chat")


def test_a_prompt_alone_shares_nothing(tokenizer: Tokenizer) -> None:
    assert Layout().encode("Hello", tokenizer)[1] == 0
    assert Layout("chat").encode("Hello", tokenizer)[1] == 0
    assert Layout().encode(TALK, tokenizer)[1] > 0  # the system message


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        ("Hello", TypeError),
        ([], TypeError),
        ([[]], ValueError),
        ([{"role": "user"}], TypeError),
        ([{"content": "Hello"}], TypeError),
        ([{"role": "user", "content": 7}], TypeError),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], TypeError),
        ([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], ValueError),
        ([{"role": "system", "content": "Hi"}], ValueError),
    ],
)
def test_messages_that_are_refused(messages: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="messag"):
        as_messages(messages)


def test_text_parts_are_messages() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert as_messages(parts) == ([[{"role": "user", "content": "Hello"}]], True)
    assert as_messages([TALK, TALK]) == ([TALK, TALK], False)


@pytest.mark.parametrize("examples", ["abc", {"a": "b"}, ["ab"], [("a",)], [("a", "b", "c")], [("a", 1)], 7])
def test_examples_that_are_refused(examples: Any) -> None:
    with pytest.raises(TypeError, match="examples"):
        as_examples(examples)


def test_no_examples_are_an_error() -> None:
    with pytest.raises(ValueError, match="empty"):
        as_examples([])
