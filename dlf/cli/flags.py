"""Makes the flags of a command from the options of the engine or of a request."""

from __future__ import annotations

import difflib
import inspect
import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer

from dlf.errors import OptionError
from dlf.support.option import Option, options_of
from dlf.support.terminal import printable

__all__ = ["check_environment", "given", "takes"]

Command = TypeVar("Command", bound=Callable[..., None])


def takes(owner: type, *names: str, environment: str = "") -> Callable[[Command], Command]:
    """Add flags to a command, which gets them as keywords: None, or an empty list, if one is not given.

    Parameters
    ----------
    owner
        A dataclass of options, such as `EngineOptions`.
    names
        Names of the options; by default all that have a flag.
    environment
        Beginning of the variables that give an option which has no flag, such as ``"DLF_SERVE_"``; none if empty.
    """
    options = options_of(owner)
    chosen = [options[name] for name in names] or [one for one in options.values() if one.flag is not None]

    def add(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        panel = re.sub("(Options|Settings)$", "", owner.__name__)
        flags = [_parameter(option, panel, environment and _variable(environment, option.name)) for option in chosen]
        command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
        return command

    return add


def given(owner: type, values: dict[str, Any]) -> dict[str, Any]:
    """Options of `owner` among the flags that a command got; a zero counts as given."""
    chosen = {name: values[name] for name in options_of(owner) if values.get(name) not in (None, (), [])}
    return {name: value for name, value in chosen.items() if value is not False}


def check_environment(prefix: str, names: Iterable[str]) -> None:
    """Refuse variables that begin with `prefix` and give none of the named options: they would do nothing.

    Raises
    ------
    OptionError
        If there is one; the message names the nearest that gives an option.
    """
    known = [_variable(prefix, name) for name in names]
    for name in sorted(os.environ):
        if name.startswith(prefix) and name not in known:
            close = difflib.get_close_matches(name, known, 1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise OptionError(f"the environment has {printable(name)}, which is no option{meant}")


def _variable(prefix: str, name: str) -> str:
    return prefix + name.upper()


def _parameter(option: Option, panel: str, variable: str) -> inspect.Parameter:
    kind: Any = list[option.each] if option.each else option.type if option.type in (int, float, bool) else str  # type: ignore[name-defined]
    words = [option.flag or "--" + option.name.replace("_", "-")]
    about = f"{option.help.removesuffix('.')}: {', '.join(option.choices)}." if option.choices else option.help
    default = option.default if option.default not in (None, False) else None
    info = typer.Option(
        *words,
        help=about,
        show_default=default is not None and str(default),
        rich_help_panel=panel,
        envvar=variable or None,
    )
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )
