"""Describes an option beyond its type and default: for checks, recipes, the command line and help texts."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any, Concatenate, ParamSpec, Union, get_args, get_origin, get_type_hints

__all__ = ["Option", "arguments_of", "options_of"]

P = ParamSpec("P")


@dataclasses.dataclass(frozen=True)
class Option:
    """Description of an option, in the ``Annotated`` type of a dataclass' field.

    Attributes
    ----------
    help
        Its meaning in one line; the docstring of the dataclass says more.
    choices
        Names that it takes, if these are few.
    least, most
        Bounds of a number, or None.
    section
        Section of a recipe that it belongs to; None for no section.
    flag
        Its name on the command line, as ``"--stop"``; ``""`` for the field's name, None for no flag.
    each
        On the command line, the type of one value of a flag that may be repeated.
    name, type, default
        Those of the field, filled in by `options_of`; the type leaves out None.
    """

    help: str
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    section: str | None = None
    flag: str | None = None
    each: type | None = None
    name: str = ""
    type: Any = None
    default: Any = None


@cache
def options_of(owner: type) -> Mapping[str, Option]:
    """The options among the fields of a dataclass, by name."""
    hints = get_type_hints(owner, include_extras=True)
    found = {}
    for field in dataclasses.fields(owner):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        kind, option = get_args(hint)[:2]
        found[field.name] = dataclasses.replace(option, name=field.name, type=_given(kind), default=field.default)
    return types.MappingProxyType(found)


def arguments_of(owner: Callable[P, object]) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Let type checkers and `inspect.signature` know that a method takes the arguments of `owner`."""

    def mark(method: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        own = list(inspect.signature(method).parameters.values())[:1]
        hints = get_type_hints(owner)
        taken = [one.replace(annotation=hints[name]) for name, one in inspect.signature(owner).parameters.items()]
        method.__signature__ = inspect.Signature([*own, *taken])  # type: ignore[attr-defined]
        return method

    return mark


def _given(kind: Any) -> Any:
    """A type without None."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    some = tuple(one for one in get_args(kind) if one is not type(None))
    return Union[some]  # noqa: UP007 (of a tuple)
