"""Reads an answer piece by piece: its text, and the calls in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Generator
from dataclasses import dataclass, field
from typing import TypeAlias

from dlf.tool_calls.format import CallFormat

__all__ = ["CallDelta", "CallReader", "Delta"]

Steps: TypeAlias = "Generator[None, None, bool]"  # read characters; whether they were what was expected
Reading: TypeAlias = "Generator[None, None, None]"

ARGUMENTS = ("arguments", "parameters")
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")
MAX_SPACE = 64  # characters of space that are held back, since a call may follow them


@dataclass
class CallDelta:
    """A part of a call: first its id and the name of its function, then pieces of its arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass
class Delta:
    """What a piece of an answer adds to its text and to its calls."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.calls)


class CallReader:
    """Splits an answer into its text and calls of known functions; what only looks like a call stays text.

    Text is held back only while it may begin a call. The reader is a state machine over characters, so the result is
    the same however the answer is cut into pieces.

    Parameters
    ----------
    form
        How the model writes calls.
    names
        Functions that it may call.
    eager
        Whether arguments are given out while they are read. Otherwise a call is given out when it is complete, and one
        whose arguments are no JSON object stays text.
    """

    def __init__(self, form: CallFormat, names: Collection[str], eager: bool) -> None:
        self._form, self._names, self._eager = form, frozenset(names), eager
        self._character, self._shown = "", True  # the one to be read next; empty at the end
        self._cut = False  # the answer ended at its greatest length
        self._held: list[tuple[str, bool]] = []  # what was read and not given out
        self._wrote = False  # text was given out
        self._after_call = False  # and since the last call nothing was
        self._count = 0  # calls
        self._open = False  # the last one has no end yet
        self._name: str | None = None
        self._arguments: list[str] | None = None
        self._in_arguments = False
        self._delta = Delta()
        self._steps = self._answer()

    def push(self, text: str, shown: bool = True) -> Delta:
        """Take the next piece; one that is not shown, a special token, only counts as a part of a call."""
        self._shown = shown
        for self._character in text:
            next(self._steps)
        return self._take()

    def flush(self, cut: bool = False) -> Delta:
        """End the answer; `cut` says that it reached its greatest length, so that a call may lack its end."""
        self._character, self._cut = "", cut
        next(self._steps, None)
        return self._take()

    def _take(self) -> Delta:
        found, self._delta = self._delta, Delta()
        return found

    # Each method below begins at the character that is to be read; `yield` goes on to the next one.

    def _answer(self) -> Reading:
        while (yield from self._text()):
            if not (yield from self._calls()):
                self._restore()
        if not self._count or any(not one.isspace() for one, _ in self._held):
            self._restore()

    def _text(self) -> Steps:
        """Give out text up to a call; hold back the space before it and what may be a part of its mark."""
        begins = self._form.mark[0] + self._form.stop[:1]
        while self._character:
            if self._form.bare and self._character == "{" and (self._after_call or not self._wrote):
                return True
            if not self._held and not self._character.isspace() and self._character not in begins:
                self._write(self._character, self._shown)  # most text
                yield
                continue
            self._held.append((self._character, self._shown))
            held = "".join(character for character, _ in self._held).lstrip()
            marked = held == self._form.mark
            if held and self._after_call and held == self._form.stop:
                self._held.clear()
            while self._held and not self._may_go_on():
                self._write(*self._held.pop(0))
            yield
            if marked:
                return True
        return False

    def _may_go_on(self) -> bool:
        """Whether the held text may become a mark."""
        held = "".join(character for character, _ in self._held).lstrip()
        stops = self._after_call and self._form.stop.startswith(held)
        return len(self._held) <= MAX_SPACE + len(self._form.mark) and (stops or self._form.mark.startswith(held))

    def _calls(self) -> Steps:
        """Read the calls that follow a mark."""
        yield from self._space()
        if self._form.mark != "[TOOL_CALLS]":
            return (yield from self._object())
        if self._character != "[":
            return (yield from self._named())
        while self._character in ("[", ","):
            yield from self._read()
            yield from self._space()
            if not (yield from self._object()):
                return False
            yield from self._space()
        if self._character == "]":
            yield from self._read()
            self._held.clear()
        return True

    def _object(self) -> Steps:
        """Read a call that is an object with a name and arguments, in any order and among others."""
        self._name, self._arguments = None, None
        if self._character != "{":
            return False
        comma = "{"
        while self._character == comma:
            yield from self._read()
            yield from self._space()
            comma = ","
            key = yield from self._string()
            yield from self._space()
            if key is None or self._character != ":":
                return self._end(complete=False)
            yield from self._read()
            yield from self._space()
            if key == "name" and self._name is None:
                self._name = yield from self._string()
                fits = self._name in self._names
            elif key in ARGUMENTS and self._arguments is None:
                fits = yield from self._value_of_arguments()
            else:
                fits = yield from self._value()
            if not fits:
                return self._end(complete=False)
            yield from self._space()
        if self._character != "}":
            return self._end(complete=False)
        yield from self._read()
        return self._end(complete=True)

    def _named(self) -> Steps:
        """Read a call that is a name and an object, perhaps with marks between them."""
        self._arguments = None
        self._name = yield from self._word()
        yield from self._space()
        while self._character == "[":  # [CALL_ID] and an id, [ARGS]
            while self._character and self._character != "]":
                yield from self._read()
            yield from self._read()
            yield from self._word()
        if self._name not in self._names or self._character != "{":
            return False
        return self._end((yield from self._value_of_arguments()))

    def _value_of_arguments(self) -> Steps:
        """Read the arguments, an object or a text that holds one."""
        if self._character == '"':
            text = yield from self._string()
            self._arguments = None if text is None else [text]
            return text is not None
        if self._character != "{":
            return False
        self._arguments = []
        if self._eager and self._name is not None:
            self._begin()
        self._in_arguments = True
        complete = yield from self._value()
        self._in_arguments = False
        return complete

    def _value(self) -> Steps:
        """Read one value, by its brackets and quotes alone."""
        depth = 0
        while self._character:
            character = self._character
            if character == '"':
                yield from self._quoted()
            elif not depth and character in ",}]":
                return True
            else:
                depth += (character in "{[") - (character in "}]")
                yield from self._read()
            if not depth and character in '"}]':
                return True
        return False

    def _string(self) -> Generator[None, None, str | None]:
        """Read a text in quotes; None if there is none."""
        if self._character != '"':
            return None
        before = len(self._held)
        yield from self._quoted()
        try:
            text: str = json.loads("".join(character for character, _ in self._held[before:]), strict=False)
        except ValueError:
            return None
        return text

    def _quoted(self) -> Reading:
        yield from self._read()
        while self._character and self._character != '"':
            if self._character == "\\":
                yield from self._read()
            yield from self._read()
        yield from self._read()

    def _word(self) -> Generator[None, None, str]:
        word = ""
        while self._character in NAME_CHARACTERS:
            word += self._character
            yield from self._read()
        return word

    def _space(self) -> Reading:
        while self._character.isspace():
            yield from self._read()

    def _read(self) -> Reading:
        """Read a character, unless the answer has ended."""
        if not self._character:
            return
        self._held.append((self._character, self._shown))
        if self._in_arguments and self._arguments is not None:
            self._arguments.append(self._character)
            if self._open:
                self._delta.calls[-1:] = self._with_arguments(self._character)
        yield

    def _with_arguments(self, text: str) -> list[CallDelta]:
        """The last delta with more arguments, or another one for them."""
        index = self._count - 1
        last = self._delta.calls[-1:]
        if last and last[0].index == index:
            last[0].arguments += text
            return last
        return [*last, CallDelta(index, text)]

    def _begin(self) -> None:
        """Give out the begin of a call."""
        self._delta.calls.append(CallDelta(self._count, "", self._form.new_id(), self._name))
        self._count += 1
        self._open = self._after_call = True
        self._held.clear()

    def _end(self, complete: bool) -> bool:
        """End a call; whether it was one."""
        self._in_arguments = False
        if not self._open:
            cut = self._cut and not self._character
            if self._name not in self._names or self._arguments is None or not (complete or cut):
                return False
            text = "".join(self._arguments)
            if complete and not _is_object(text):
                return False
            self._begin()
            self._delta.calls[-1].arguments = text
        self._open = False
        self._held.clear()
        return True

    def _restore(self) -> None:
        """Give out what was held back, unless it is a further call that was cut off."""
        if not (self._cut and self._count and not self._character):
            for character, shown in self._held:
                self._write(character, shown)
        self._held.clear()

    def _write(self, character: str, shown: bool) -> None:
        if shown:
            self._delta.content += character
            self._wrote, self._after_call = True, False


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
