"""Calls in answers: tables of what models write, read whole and cut at every character; formats found in templates."""

from __future__ import annotations

import itertools
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import CHAT_TEMPLATE, make_tokenizer
from tool_models import CLOCK, STYLES, TOOLS, WEATHER, make_tool_model

import dlf
from dlf.text.tokenizer import Tokenizer
from dlf.tool_calls import FORMATS, CallFormat, CallReader, Delta, as_functions, find_format
from dlf.tool_calls.format import HERMES, LLAMA, MISTRAL, MISTRAL_ARGS, MISTRAL_NAMED

NAMES = ["get_weather", "clock"]
ROME = '{"city": "Rome", "days": 2}'
KOELN = '{"city": "K\\u00f6ln \\"am\\\\ Rhein\\"", "more": {"a": [1, {"b": "}]{"}], "c": null}}'
Case = tuple[CallFormat, str, str, list[tuple[str, str]]]

# Answer; text and calls in it.
CASES: list[Case] = [
    (HERMES, f'<tool_call>\n{{"name": "get_weather", "arguments": {ROME}}}\n</tool_call>', "", [("get_weather", ROME)]),
    (
        HERMES,
        f'Let me look.\n<tool_call>\n{{"name": "get_weather", "arguments": {KOELN}}}\n</tool_call>\n'
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
        "Let me look.",
        [("get_weather", KOELN), ("clock", "{}")],
    ),
    (HERMES, f'<tool_call>{{"arguments": {ROME}, "name": "get_weather"}}</tool_call>', "", [("get_weather", ROME)]),
    (HERMES, f'<tool_call>\n{{"name":"get_weather","arguments":{ROME}}}', "", [("get_weather", ROME)]),
    (
        HERMES,
        '<tool_call>{"name": "clock", "arguments": {}}\n<tool_call>{"name": "clock", "arguments": {}}</tool_call>\n',
        "",
        [("clock", "{}"), ("clock", "{}")],
    ),
    (HERMES, '<tool_call>{"name": "clock", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("clock", '{"a": 1}')]),
    (HERMES, '<tool_call>{"id": 7, "name": "clock", "arguments": {}, "x": [1]}</tool_call>', "", [("clock", "{}")]),
    (
        HERMES,
        '<think>\nclock?\n</think>\n\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>\nDone.',
        "<think>\nclock?\n</think>\nDone.",
        [("clock", "{}")],
    ),
    (LLAMA, f'{{"name": "get_weather", "parameters": {ROME}}}', "", [("get_weather", ROME)]),
    (LLAMA, f'<|python_tag|>{{"name": "get_weather", "parameters": {ROME}}}', "", [("get_weather", ROME)]),
    (LLAMA, f'\n {{"type": "function", "name": "clock", "parameters": {ROME}}}\n', "", [("clock", ROME)]),
    (
        LLAMA,
        f'{{"name": "get_weather", "arguments": {KOELN}}}; {{"name": "clock", "parameters": {{}}}}',
        "",
        [("get_weather", KOELN), ("clock", "{}")],
    ),
    (LLAMA, '{"name": "clock", "parameters": {}}{"name": "clock", "parameters": {}};', "", [("clock", "{}")] * 2),
    (MISTRAL, f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {ROME}}}]', "", [("get_weather", ROME)]),
    (
        MISTRAL,
        f'[TOOL_CALLS][{{"name": "get_weather", "arguments": {KOELN}, "id": "abc"}}, {{"name": "clock", '
        '"arguments": {}}]',
        "",
        [("get_weather", KOELN), ("clock", "{}")],
    ),
    (MISTRAL, 'Yes. [TOOL_CALLS] [{"name": "clock", "arguments": {}}]', "Yes.", [("clock", "{}")]),
    (MISTRAL_NAMED, f"[TOOL_CALLS]get_weather{ROME}", "", [("get_weather", ROME)]),
    (MISTRAL_NAMED, "[TOOL_CALLS]clock {}[TOOL_CALLS]clock{}", "", [("clock", "{}"), ("clock", "{}")]),
    (MISTRAL_ARGS, f"[TOOL_CALLS]get_weather[ARGS]{ROME}", "", [("get_weather", ROME)]),
    (MISTRAL_ARGS, f"So:[TOOL_CALLS]clock[CALL_ID]abcdefghi[ARGS]{KOELN}", "So:", [("clock", KOELN)]),
]
# What only looks like a call, and stays text.
TEXTS: list[tuple[CallFormat, str]] = [
    *((form, text) for form in FORMATS for text in ("", "Hello, world!", "  \n", "a { b } [c] <d>", " x \n y ")),
    (HERMES, "Write <tool_call> to call, and </tool_call> behind it."),
    (HERMES, '<tool_call>{"name": "other", "arguments": {}}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock"}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock", "arguments": [1]}</tool_call>'),
    (HERMES, '<tool_call>{"name": "clock", "arguments": "no"}</tool_call>'),
    (HERMES, '<tool_call>["clock"]</tool_call>'),
    (HERMES, '<tool_call>{name: "clock", arguments: {}}</tool_call>'),
    (HERMES, '{"name": "clock", "arguments": {}}'),
    (HERMES, '<tool_call>\n<tool_call>\n{"name": "x'),
    (HERMES, "<tool_cal"),
    (LLAMA, '{"name": "Bob", "parameters": {}}'),
    (LLAMA, '{"name": "clock", "description": "tells the time"}'),
    (LLAMA, 'It is {"name": "clock", "parameters": {}}'),
    (LLAMA, '{"city": "Rome"}; {"name": "clock"}'),
    (LLAMA, '{"name": "clock"'),
    (LLAMA, "{{{{"),
    (MISTRAL, "[TOOL_CALLS] []"),
    (MISTRAL, "[TOOL_CALLS] none"),
    (MISTRAL, '[TOOL_CALLS] [{"name": "other", "arguments": {}}]'),
    (MISTRAL_NAMED, "[TOOL_CALLS]other{}"),
    (MISTRAL_ARGS, "[TOOL_CALLS]clock[ARGS]none"),
]


def joined(deltas: list[Delta]) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls, checked to come as OpenAI's streams have them."""
    calls: list[list[str]] = []
    ids = set()
    for one in itertools.chain.from_iterable(delta.calls for delta in deltas):
        if one.index == len(calls):
            assert one.id and one.name and one.id not in ids
            ids.add(one.id)
            calls.append([one.name, one.arguments])
        else:
            assert one.index == len(calls) - 1 and one.id is None and one.name is None and one.arguments
            calls[-1][1] += one.arguments
    return "".join(delta.content for delta in deltas), [(name, arguments) for name, arguments in calls]


def read(form: CallFormat, pieces: list[str], eager: bool, cut: bool = False) -> tuple[str, list[tuple[str, str]]]:
    reader = CallReader(form, NAMES, eager)
    return joined([*map(reader.push, pieces), reader.flush(cut)])


def pieces_of(text: str) -> list[list[str]]:
    """The text whole, by characters, and cut in two and at random places."""
    random.seed(len(text))
    cuts = [sorted(random.sample(range(len(text) + 1), min(4, len(text)))) for _ in range(20)]
    several = [[text[a:b] for a, b in itertools.pairwise([0, *cut, len(text)])] for cut in cuts]
    return [[text], list(text), *([text[:i], text[i:]] for i in range(len(text))), *several]


@pytest.mark.parametrize(("form", "answer", "content", "calls"), CASES)
def test_calls(form: CallFormat, answer: str, content: str, calls: list[tuple[str, str]]) -> None:
    for pieces in pieces_of(answer):
        for eager in (False, True):
            assert read(form, pieces, eager) == (content, calls), pieces


@pytest.mark.parametrize(("form", "text"), TEXTS)
def test_what_looks_like_a_call_stays_text(form: CallFormat, text: str) -> None:
    for pieces in pieces_of(text):
        for eager in (False, True):
            assert read(form, pieces, eager) == (text, []), pieces


def test_no_beginning_of_a_call_is_lost() -> None:
    """Cut anywhere, an answer has its text up to there, a call, or both."""
    for form, answer, _, calls in CASES:
        for end in range(len(answer)):
            for eager, cut in itertools.product((False, True), repeat=2):
                text, found = read(form, [answer[:end]], eager, cut)
                for (name, arguments), (wanted, whole) in zip(found, calls, strict=False):
                    assert name == wanted and (whole.startswith(arguments) or arguments in whole.replace('\\"', '"'))
                if not found:
                    assert text == answer[:end]


def test_broken_arguments() -> None:
    """Whole answers keep them as text; a stream has sent the name already."""
    bad = '<tool_call>{"name": "clock", "arguments": {a: 1}}</tool_call>'
    assert read(HERMES, [bad], False) == (bad, [])
    assert read(HERMES, [bad], True) == ("", [("clock", "{a: 1}")])
    part = '<tool_call>{"name": "clock", "arguments": {"a": '
    assert read(HERMES, [part], False, cut=False) == (part, [])
    assert read(HERMES, [part], False, cut=True) == read(HERMES, [part], True) == ("", [("clock", '{"a": ')])
    deep = '<tool_call>{"name": "clock", "arguments": {"a": ' + "[" * 100000
    assert read(HERMES, [deep], False) == (deep, [])
    assert read(HERMES, [deep + "]" * 100000 + "}}"], False)[1] == []


def test_arguments_are_streamed() -> None:
    reader = CallReader(HERMES, NAMES, eager=True)
    first = reader.push('<tool_call>{"name": "get_weather", "arguments": {')
    assert first.calls[0].name == "get_weather" and first.calls[0].arguments == "{"
    assert reader.push('"city"').calls[0].arguments == '"city"'
    assert reader.push(": 1}").calls[0].arguments == ": 1}" and not reader.push("}</tool_call>")


def test_text_is_held_back_only_while_a_call_may_begin() -> None:
    reader = CallReader(HERMES, NAMES, eager=True)
    pieces = [
        ("Hello", "Hello"),
        (" ", ""),
        ("you \n", " you"),
        ("<b", " \n<b"),
        (">", ">"),
        ("<tool", ""),
        ("s>", "<tools>"),
    ]
    for text, expected in pieces:
        assert reader.push(text) == Delta(expected), text
    assert reader.push(" " * 200).content == " " * (200 - 75)


def test_special_tokens_are_no_text() -> None:
    for pieces, expected in (
        ([("[TOOL_CALLS]", False), ("clock", True), ("[ARGS]", False), ("{}", True)], ("", [("clock", "{}")])),
        ([("a", True), ("[TOOL_CALLS]", False), (" is b", True)], ("a is b", [])),
        ([("[ARGS]", False), ("x", True)], ("x", [])),
    ):
        reader = CallReader(MISTRAL_ARGS, NAMES, eager=True)
        assert joined([*(reader.push(text, shown) for text, shown in pieces), reader.flush()]) == expected


def test_random_answers_are_read_alike_in_any_pieces() -> None:
    """Nothing fails, and nothing but marks, brackets and space of calls is lost."""
    random.seed(4)
    parts = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|python_tag|>",
        "clock",
        "get_weather",
        "{",
        "}",
    ]
    parts += [
        '{"name": "clock", "arguments": {}}',
        '"name"',
        ": ",
        ", ",
        '"',
        "\\",
        "[",
        "]",
        ";",
        " ",
        "\n",
        "x",
        '"a"',
    ]
    for form in FORMATS:
        for _ in range(300):
            text = "".join(random.choices(parts, k=random.randint(1, 12)))
            for eager in (False, True):
                whole = read(form, [text], eager)
                assert read(form, list(text), eager) == whole
                letters = [one for one in text if one == "x"]
                assert [one for one in whole[0] + "".join(a for _, a in whole[1]) if one == "x"] == letters, text


@pytest.mark.parametrize("style", STYLES)
def test_formats_are_found_in_templates(style: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_tool_model(tmp_path / "model", style))
    form = {"hermes": HERMES, "llama3_json": LLAMA, "mistral": MISTRAL, "mistral11": MISTRAL_ARGS}[style]
    assert find_format(tokenizer) == find_format(tokenizer, form.name) == form
    assert find_format(tokenizer, "hermes") == HERMES


def test_a_format_has_the_spaces_of_its_template(tmp_path: Path) -> None:
    for style, old, new, parts in (
        ("hermes", '\\n<tool_call>\\n{"name": "', '<tool_call>{"name":"', {"begin": '<tool_call>{"name":"'}),
        ("mistral", "[TOOL_CALLS] [", "[TOOL_CALLS][", {"open": "[TOOL_CALLS]["}),
        ("llama3_json", '", "parameters": ', '","parameters":', {"middle": '","parameters":'}),
    ):
        folder = make_tool_model(tmp_path / style, style)
        known = find_format(Tokenizer(folder))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        template = config["chat_template"].replace(old.encode().decode("unicode_escape"), new)
        assert template != config["chat_template"] and known is not None
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
        assert find_format(Tokenizer(folder)) == replace(known, **parts)


def test_a_template_without_calls(tmp_path: Path) -> None:
    tokenizer = Tokenizer(make_tokenizer(tmp_path))
    assert tokenizer.chat_template == CHAT_TEMPLATE and find_format(tokenizer) is None
    assert find_format(tokenizer, "mistral") == MISTRAL
    with pytest.raises(dlf.OptionError, match="no format of tool calls is called 'x'; there are: hermes, llama3_json"):
        find_format(tokenizer, "x")


def test_ids() -> None:
    assert re.fullmatch("[a-zA-Z0-9]{9}", MISTRAL.new_id()) and re.fullmatch("call_[0-9a-f]{24}", HERMES.new_id())


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ([{}], r"tools\[0\] is no"),
        ([WEATHER, {"type": "retrieval"}], r"tools\[1\] is no"),
        ([{"type": "function", "function": {}}], "name is None"),
        ([{"type": "function", "function": {"name": "a b"}}], "'a b'"),
        ([{"type": "function", "function": {"name": "x" * 65}}], "1 to 64 letters"),
        ([{"type": "function", "function": {"name": "x", "parameters": []}}], "no JSON schema"),
        ([CLOCK, CLOCK], "two tools are called clock"),
        ([{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)], "more than 128"),
        ([{"type": "function", "function": {"name": "x", "description": "y" * 70000}}], "more than 65536 characters"),
    ],
)
def test_tools_that_are_refused(tools: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        as_functions(tools)


def test_functions() -> None:
    weather, clock = as_functions(TOOLS)
    assert weather.name == "get_weather" and json.dumps(weather.parameters) and not weather.strict
    assert clock.parameters["properties"] == {}
    [strict] = as_functions([{"type": "function", "function": WEATHER["function"] | {"strict": True}}])
    assert strict.strict
