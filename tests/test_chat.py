"""Conversations: their turns and options, the commands of ``dlf chat`` and its input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from typer.testing import CliRunner

import dlf
from dlf.chat import Conversation
from dlf.cli import app

OPTIONS: dict[str, Any] = {"max_new_tokens": 6, "ignore_eos": True}


@pytest.fixture(scope="module")
def engine(family: dict[str, Path]) -> Iterator[dlf.Engine]:
    experts = [dlf.Expert(family[name], family["base"]) for name in ("expert-a", "expert-b")]
    with dlf.Engine(family["large"], experts, threads=2, max_context=160, max_batch=1) as made:
        yield made


@pytest.fixture
def talk(engine: dlf.Engine) -> Conversation:
    return Conversation(engine, **OPTIONS)


def ignore(piece: dlf.Piece) -> None: ...


def test_each_answer_follows_all_turns(talk: Conversation) -> None:
    talk.system = "Be brief."
    pieces: list[str] = []
    first = talk.ask("the fox", lambda piece: pieces.append(piece.text))
    assert "".join(pieces) == first.text and len(first.own_tokens) == 6
    second = talk.ask("why", ignore)
    messages = [{"role": "system", "content": "Be brief."}, *talk.turns[:3]]
    assert [one["role"] for one in talk.turns] == ["user", "assistant"] * 2
    assert talk.engine.generate(messages=messages, **OPTIONS).tokens == second.tokens
    assert talk.undo() == "why" and len(talk.turns) == 2
    assert talk.ask("why", ignore).tokens == second.tokens
    talk.clear()
    with pytest.raises(ValueError, match="no turn"):
        talk.undo()


def test_the_oldest_turns_are_left_out(talk: Conversation) -> None:
    for _ in range(6):
        found = talk.ask("lazy dog " * 4, ignore)
    assert talk.left_out % 2 == 0 and 0 < talk.left_out < 12 and len(talk.turns) == 12
    messages = talk.turns[talk.left_out : -1]
    assert talk.engine.generate(messages=messages, **OPTIONS).tokens == found.tokens
    before = list(talk.turns)
    with pytest.raises(dlf.PromptError, match="the context holds 160"):
        talk.ask("lazy dog " * 90, ignore)
    assert talk.turns == before


def test_an_interrupt_keeps_the_answer_so_far(talk: Conversation) -> None:
    taken: list[int] = []

    def take(piece: dlf.Piece) -> None:
        taken.append(piece.token)
        if len(taken) == 3:
            raise KeyboardInterrupt

    talk.set("max_new_tokens", 60)
    found = talk.ask("the fox", take)
    assert found.finish_reason == "cancelled" and found.tokens[:3] == taken
    assert talk.turns[-1] == {"role": "assistant", "content": found.text}
    talk.set("max_new_tokens", 3)
    assert len(talk.ask("the dog", ignore).tokens) == 3


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("temperature", -1.0, "temperature"),
        ("combine", "best", "combine"),
        ("experts", ["c"], "no expert 'c'; the experts are expert-a, expert-b"),
        ("num_return_sequences", 2, "no option"),
        ("frobnicate", 1, "no option 'frobnicate'"),
    ],
)
def test_impossible_options(talk: Conversation, name: str, value: Any, error: str) -> None:
    before = dict(talk.options)
    with pytest.raises(ValueError, match=error):
        talk.set(name, value)
    assert talk.options == before


def test_a_conversation_is_saved_and_loaded(talk: Conversation, tmp_path: Path) -> None:
    talk.system = "Be brief."
    talk.ask("the fox", ignore)
    talk.save(tmp_path / "talk.json")
    with pytest.raises(FileExistsError):
        talk.save(tmp_path / "talk.json")
    other = Conversation(talk.engine)
    other.load(tmp_path / "talk.json")
    assert (other.system, other.turns) == (talk.system, talk.turns)
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    for content, error in (
        ("[", "no JSON object"),
        ("[]", "no JSON object"),
        ('{"messages": [1]}', "no list 'messages'"),
        (json.dumps({"messages": [user, user]}), "must take turns"),
        (json.dumps({"messages": [user, answer, user]}), "must take turns"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match=error):
            other.load(tmp_path / "bad.json")
    assert other.turns == talk.turns


def chat(family: dict[str, Path], text: str, *arguments: str) -> Any:
    experts = [part for name in ("expert-a", "expert-b") for part in ("--expert", str(family[name]))]
    models = [str(family["large"]), *experts, "--base", str(family["base"])]
    options = ["--max-new-tokens", "4", "--temperature", "0", "--ignore-eos", "--threads", "2"]
    return CliRunner().invoke(app, ["chat", *models, *options, *arguments], input=text)


def test_the_command(family: dict[str, Path], engine: dlf.Engine, tmp_path: Path) -> None:
    file = tmp_path / "talk.json"
    lines = ["the fox", "/experts expert-b", "/alpha 0.5", "why", "/set temperature x", "/nothing", "/alpha c=1"]
    lines += ["/experts none", "/again", "/trace", f"/save {file}", "/load", "/quit", "never asked"]
    found = chat(family, "\n".join(lines), "--system", "Be brief.")
    assert found.exit_code == 0, found.output
    for error in ("temperature is 'x'", "no command /nothing", "no expert 'c' is fused", "no answer of fused experts"):
        assert error in found.stderr
    turns = json.loads(file.read_text())["messages"]
    options = OPTIONS | {"max_new_tokens": 4}
    assert turns[2]["content"] == engine.generate(messages=turns[:2], **options).text
    assert turns[4]["content"] == engine.generate(messages=turns[:4], experts=[], **options).text
    assert [one["content"] for one in turns if one["role"] == "user"] == ["the fox", "why"]
    fixed = engine.generate(messages=turns[:4], experts=["expert-b"], alpha=[0.5], **options)
    assert found.stdout == f"{turns[2]['content']}\n{fixed.text}\n{turns[4]['content']}\n"


def test_trace_shows_what_fusion_changed(family: dict[str, Path]) -> None:
    found = chat(family, "the fox\n/trace\n/help\n/experts\n/system\n/set\n/clear\n/trace\n")
    assert found.exit_code == 0 and "α  0" in found.stderr and "the large model's own" in found.stderr
    assert "● expert-a" in found.stderr and "/again" in found.stderr and "no answer" in found.stderr


def test_no_model_or_two(family: dict[str, Path]) -> None:
    for arguments in (["chat"], ["chat", str(family["large"]), "--recipe", "x.yaml"]):
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 2 and "name one large model" in found.output


def test_a_model_without_a_template_is_a_warning(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "plain", "llama", seed=1)
    config = folder / "tokenizer_config.json"
    config.write_text(
        json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "chat_template"})
    )
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    found = CliRunner().invoke(app, ["chat", str(folder), "--max-new-tokens", "2"], input="a\n/trace\n/experts\n")
    assert found.exit_code == 0 and "has no chat template" in found.stderr and "has no experts" in found.stderr
