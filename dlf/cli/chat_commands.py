"""The commands of ``dlf chat``: lines that begin with a slash."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dlf.errors import OptionError
from dlf.support.terminal import printable

if TYPE_CHECKING:
    from dlf.chat import Conversation

__all__ = ["COMMANDS", "leaves", "run_command"]

LEAVE = ("/quit", "/exit", "/bye")


@dataclass(frozen=True)
class Command:
    """A command: its arguments and meaning for ``/help``, and what runs it.

    It may return a question, which is asked then.
    """

    arguments: str
    help: str
    run: Callable[[Conversation, Console, str], str | None]


def leaves(line: str) -> bool:
    """Whether a line ends the conversation."""
    return line in LEAVE


def run_command(talk: Conversation, console: Console, line: str) -> str | None:
    """Run a line that begins with a slash; return a question that it asks, if any.

    Raises
    ------
    ValueError, OSError
        If there is no such command, or it fails.
    """
    name, _, rest = line.removeprefix("/").partition(" ")
    if name not in COMMANDS:
        raise OptionError(f"there is no command /{name:.40}; /help lists them, and a space before / asks it", "")
    return COMMANDS[name].run(talk, console, rest.strip())


def _help(talk: Conversation, console: Console, rest: str) -> None:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, command in COMMANDS.items():
        table.add_row(Text(f"/{name} {command.arguments}".rstrip()), command.help)
    table.add_row("/quit, Ctrl-D", "End the conversation.")
    console.print(table)
    console.print("Alt-Enter begins a new line; Ctrl-C ends an answer and keeps what it has.")


def _experts(talk: Conversation, console: Console, rest: str) -> None:
    names = talk.engine.experts
    if rest:
        chosen = {"all": names, "none": []}.get(rest, rest.replace(",", " ").split())
        talk.set("experts", list(chosen))
        talk.options.pop("alpha", None)  # its weights were those of other experts
    used = talk.options.get("experts", names)
    for name in names:
        console.print(Text(f"{'●' if name in used else '○'} {printable(name)}", "bold" if name in used else "dim"))
    if not names:
        console.print(f"{talk.expert_names()}: start with --expert and --base, or with --recipe")


def _alpha(talk: Conversation, console: Console, rest: str) -> None:
    used = talk.options.get("experts", talk.engine.experts)
    if rest == "solve":
        talk.options.pop("alpha", None)
    elif rest:
        talk.set("alpha", _weights(rest, used))
    given = talk.options.get("alpha", {})
    for name in used:
        console.print(Text(f"{printable(name)}: {given.get(name, 'as the engine says')}"))
    if not used:
        console.print("no expert is fused: /experts all")


def _weights(rest: str, names: list[str]) -> dict[str, float]:
    """Weights by expert, of ``0.5`` for all or ``math=0.5 facts=1``."""
    found: dict[str, float] = {}
    for word in rest.replace(",", " ").split():
        name, equals, number = word.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise OptionError(
                f"{number!r:.40} is no number: /alpha 0.5, /alpha NAME=0.5, /alpha solve", "alpha"
            ) from None
        unknown = [] if not equals or name in names else [name]
        if unknown:
            raise OptionError(f"no expert {name!r:.40} is fused; fused are: {', '.join(names) or 'none'}", "alpha")
        found |= {name: value} if equals else dict.fromkeys(names, value)
    return found


def _set(talk: Conversation, console: Console, rest: str) -> None:
    name, _, value = rest.replace("-", "_", rest.find(" ") if " " in rest else -1).partition(" ")
    if value:
        try:
            parsed: Any = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"{value!r:.60} cannot be read: {error}", name) from None
        talk.set(name, parsed)
    elif name:
        talk.options.pop(name, None)
    for key, given in talk.options.items():
        console.print(Text(f"{key} = {printable(str(given))}"))
    if not talk.options:
        console.print("all options have their defaults")


def _system(talk: Conversation, console: Console, rest: str) -> None:
    talk.system = "" if rest == "none" else rest or talk.system
    console.print(Text(printable(talk.system, lines=True) if talk.system else "no system message"))


def _trace(talk: Conversation, console: Console, rest: str) -> None:
    from dlf.plot import alpha_legend, alpha_line
    from dlf.results import Piece

    found = talk.last
    if found is None or not found.alpha.size:
        raise ValueError("there is no answer of fused experts yet")
    tokenizer = talk.engine.tokenizer
    texts = [tokenizer.decode([token]) for token in found.tokens]
    pieces = [Piece(text, 0, 0.0, alpha) for text, alpha in zip(texts, found.alpha, strict=True)]
    bounds = [bound for bound in found.alpha_max if bound is not None]
    most = max([*bounds, *found.alpha.sum(axis=1)])
    console.print(alpha_line(pieces, console.width, most), alpha_legend(most))
    if found.trace.changed is None:
        return
    table = Table("token", "the large model's own", "α", box=None, padding=(0, 2, 0, 0))
    for at in found.trace.changed.nonzero()[0]:
        own = tokenizer.decode([found.own_tokens[at]])
        weights = ", ".join(f"{value:.2f}" for value in found.alpha[at])
        table.add_row(Text(printable(texts[at])), Text(printable(own)), weights)
    if table.row_count:
        console.print(table)


def _again(talk: Conversation, console: Console, rest: str) -> str:
    if "seed" in talk.options:
        talk.options["seed"] += 1  # another answer, which can be drawn again too
    return talk.undo()


def _undo(talk: Conversation, console: Console, rest: str) -> None:
    console.print(Text(f"removed: {printable(talk.undo())}"))


def _clear(talk: Conversation, console: Console, rest: str) -> None:
    talk.clear()


def _save(talk: Conversation, console: Console, rest: str) -> None:
    talk.save(_file(rest))
    console.print(Text(f"{len(talk.turns)} turns written to {printable(rest)}"))


def _load(talk: Conversation, console: Console, rest: str) -> None:
    talk.load(_file(rest))
    console.print(Text(f"{len(talk.turns)} turns read from {printable(rest)}"))


def _file(rest: str) -> str:
    if not rest:
        raise ValueError("give a file: /save talk.json, /load talk.json")
    return rest


COMMANDS = {
    "experts": Command("[NAME ... | all | none]", "Show or choose the experts that are fused.", _experts),
    "alpha": Command("[NUMBER | NAME=NUMBER ... | solve]", "Show or give weights; 'solve' finds them again.", _alpha),
    "trace": Command("", "Show the last answer coloured by its weights, and the tokens that fusion changed.", _trace),
    "set": Command("[NAME [VALUE]]", "Show or set options, such as temperature 0.3; no value resets one.", _set),
    "system": Command("[TEXT | none]", "Show or set the system message.", _system),
    "again": Command("", "Ask the last question again.", _again),
    "undo": Command("", "Remove the last question and its answer.", _undo),
    "clear": Command("", "Remove all turns.", _clear),
    "save": Command("FILE", "Write the conversation to a new JSON file.", _save),
    "load": Command("FILE", "Go on with a conversation from a file.", _load),
    "help": Command("", "List the commands.", _help),
}
