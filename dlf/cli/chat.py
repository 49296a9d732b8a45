"""``dlf chat``: a conversation on the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from dlf.cli.chat_commands import COMMANDS, leaves, run_command
from dlf.cli.flags import given, takes
from dlf.cli.models import engine_arguments
from dlf.cli.streams import print_error, write
from dlf.options import EngineOptions
from dlf.sampling import SamplingOptions
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

    from dlf.chat import Conversation
    from dlf.results import Completion, Piece

__all__ = ["chat"]

MAX_NEW_TOKENS = 2048  # a person ends a longer answer by Ctrl-C
TEMPERATURE = 0.7


@takes(SamplingOptions)
@takes(EngineOptions)
def chat(
    large: Annotated[str | None, typer.Argument(help="Folder or hub id of the large model; not with --recipe.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="YAML file with models, experts and options.")] = None,
    expert: Annotated[list[str] | None, typer.Option(help="Fine-tuned small model; may be repeated.")] = None,
    base: Annotated[list[str] | None, typer.Option(help="Its base: one for all experts, or one for each.")] = None,
    system: Annotated[str, typer.Option(help="System message before the conversation.")] = "",
    load: Annotated[Path | None, typer.Option(help="JSON file of an earlier conversation to go on with.")] = None,
    experts_device: Annotated[str | None, typer.Option(help="Device of experts and bases, if it differs.")] = None,
    no_speculate: Annotated[bool, typer.Option("--no-speculate", help="Do not draft: one token at a time.")] = False,
    **flags: Any,
) -> None:
    """Talk to a model on the terminal; /help lists the commands.

    dlf chat LARGE, or dlf chat --recipe FILE. Answers are drawn at temperature 0.7 unless --temperature says otherwise.
    """
    if (large is None) == (recipe is None):
        raise ValueError("name one large model: dlf chat LARGE, or dlf chat --recipe FILE")
    options, engine_options = given(SamplingOptions, flags), given(EngineOptions, flags)
    if no_speculate:
        engine_options["speculate"] = False
    engine_options = {"max_batch": 1} | engine_options
    arguments = engine_arguments(large, recipe, expert, base, engine_options, experts_device)
    if recipe is None:
        options = {"max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE} | options
    options.pop("num_return_sequences", None)

    import dlf
    from dlf.chat import Conversation

    with dlf.Engine(**arguments) as engine:
        talk = Conversation(engine, **options)
        if load is not None:
            talk.load(load)
        talk.system = system or talk.system
        if not engine.tokenizer.has_chat_template and "template" not in arguments:
            print_error(
                "warning", "the large model has no chat template: it reads the turns as plain text; give --template"
            )
        _converse(talk, Console(stderr=True, highlight=False))


def _converse(talk: Conversation, console: Console) -> None:
    """Answer line after line; an error of one leaves the conversation as it was before."""
    from dlf.cli.commands import USER_ERRORS

    if sys.stdin.isatty():
        console.print("[dim]/help lists the commands, Ctrl-C ends an answer, Ctrl-D the conversation[/]")
    for line in _lines(talk):
        text, before = line.strip(), talk.turns
        if leaves(text):
            break
        try:
            if text.startswith("/"):
                asked = run_command(talk, console, text)
                if asked is None:
                    continue
                text = asked
            if text:
                _answer(talk, console, text)
        except (*USER_ERRORS, FloatingPointError) as error:
            print_error("error", str(error) or type(error).__name__)
            talk.turns = before


def _answer(talk: Conversation, console: Console, text: str) -> None:
    shown: list[str] = []

    def take(piece: Piece) -> None:
        shown.append(piece.text)
        write(piece.text)

    try:
        found = talk.ask(text, take)
    finally:
        if shown:
            write("\n")
    if console.is_terminal:
        console.print(f"[dim]{_summary(talk, found)}[/]")


def _summary(talk: Conversation, found: Completion) -> str:
    """One line about an answer."""
    used = found.prompt_tokens + len(found.tokens)
    parts = [f"{len(found.tokens)} tokens, {found.timings.tokens_per_second:.3g}/s"]
    if found.own_tokens:
        means = ", ".join(f"{value:.2f}" for value in found.alpha.mean(axis=0))
        parts.append(f"mean α {means}, fusion changed {found.trace.changed_share:.0%}")
    if found.finish_reason != "stop":
        parts.append({"length": "cut off at its greatest length"}.get(found.finish_reason or "", "ended by Ctrl-C"))
    if talk.left_out:
        parts.append(f"the first {talk.left_out} turns no longer fit")
    parts.append(f"{used} of {talk.engine.max_context} tokens of context")
    return " · ".join(parts)


def _lines(talk: Conversation) -> Iterator[str]:
    """Lines that a person types, or those of a pipe."""
    if not sys.stdin.isatty():
        yield from _piped(sys.stdin)
        return
    session = _session(talk)
    while True:
        try:
            yield session.prompt("› ")
        except KeyboardInterrupt:
            continue  # drops the line
        except EOFError:
            return


def _piped(lines: Iterable[str]) -> Iterator[str]:
    try:
        yield from lines
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text ({error}); convert it, for example by iconv") from error


def _session(talk: Conversation) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    lines = [f"/{name}" for name in COMMANDS] + [f"/experts {name}" for name in talk.engine.experts]
    completer = WordCompleter(lines, sentence=True)
    return PromptSession(history=_history(), completer=completer, complete_while_typing=False, key_bindings=keys)


def _history() -> Any:
    """Lines of earlier conversations, in ``$XDG_STATE_HOME/dlf``; of this one alone if that cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the XDG specification ignores a relative path
        state = os.path.expanduser("~/.local/state")
    path = Path(state) / "dlf" / "chat_history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8"):
            return FileHistory(path)
    except OSError as error:
        print_error("warning", f"lines are not kept: {printable(str(error))}")
        return InMemoryHistory()
