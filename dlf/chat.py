"""A conversation with an engine: its turns, and the options of its next answer."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from dlf.engine import Engine
from dlf.errors import ErrorKind, OptionError, PromptError
from dlf.results import Completion, Piece
from dlf.rule import FIELDS, Rule
from dlf.sampling import SamplingOptions

__all__ = ["ROLES", "Conversation"]

ROLES = ("user", "assistant")
MAX_FILE_BYTES = 64 << 20
Message = dict[str, str]


class Conversation:
    """Questions and answers, each answered after all turns before it.

    Parameters
    ----------
    engine : Engine
        Answers; it stays open.
    **options
        Options of `Engine.generate` for every answer.

    Attributes
    ----------
    turns : list of dict
        Messages of the user and the assistant, in turns.
    system : str
        The message before them, or an empty text.
    options : dict
        Options of the next answer.
    last : Completion or None
        The last answer.
    left_out : int
        Turns at the beginning that the context had no room for in the last answer.
    """

    def __init__(self, engine: Engine, **options: Any) -> None:
        self.engine = engine
        self.turns: list[Message] = []
        self.system = ""
        self.options: dict[str, Any] = {}
        self.last: Completion | None = None
        self.left_out = 0
        for name, value in options.items():
            self.set(name, value)

    def set(self, name: str, value: Any) -> None:
        """Set an option of the next answers.

        Raises
        ------
        OptionError, OptionTypeError
            If there is no such option, or it has no such value; the conversation keeps its options.
        """
        if name in FIELDS:
            Rule(**{name: value})
        elif name in SamplingOptions.__dataclass_fields__ and name != "num_return_sequences":
            SamplingOptions(**{name: value})
        elif name == "experts":
            unknown = [one for one in value if one not in self.engine.experts]
            if unknown:
                raise OptionError(f"there is no expert {unknown[0]!r}; {self.expert_names()}", "experts")
        elif name not in ("negative_prompt", "guidance_scale"):
            raise OptionError(f"there is no option {name!r:.80}", name)
        self.options[name] = value

    def expert_names(self) -> str:
        """Names of the experts, as a sentence."""
        names = self.engine.experts
        return f"the experts are {', '.join(names)}" if names else "the engine has no experts"

    def ask(self, text: str, take: Callable[[Piece], object]) -> Completion:
        """Answer a text after the turns before it; both become turns.

        Turns that the context has no room for are left out, the oldest first. An interrupt (Ctrl-C) ends the answer and
        keeps what it has so far.

        Parameters
        ----------
        text
            The question.
        take
            Receives every `Piece` as it comes.

        Raises
        ------
        ValueError
            As from `Engine.stream`; the turns are then those before.
        """
        asked = [*self.turns, {"role": "user", "content": text}]
        before = [{"role": "system", "content": self.system}] if self.system else []
        options = {"trace": True} | self.options if self.engine.experts else self.options
        for first in range(0, len(asked), len(ROLES)):
            try:
                stream = self.engine.stream(messages=[*before, *asked[first:]], **options)
                break
            except PromptError as error:
                if error.kind is not ErrorKind.TOO_LONG or first == len(asked) - 1:
                    raise
        self.left_out = first
        with stream:
            try:
                for piece in stream:
                    take(piece)
            except KeyboardInterrupt:
                stream.close()
            found = stream.completion()
        self.turns = [*asked, {"role": "assistant", "content": found.text}]
        self.last = found
        return found

    def undo(self) -> str:
        """Remove the last question and its answer; return the question.

        Raises
        ------
        ValueError
            If there is none.
        """
        if not self.turns:
            raise ValueError("there is no turn yet")
        question = self.turns[-2]["content"]
        self.turns, self.last = self.turns[:-2], None
        return question

    def clear(self) -> None:
        """Remove all turns; the system message and the options stay."""
        self.turns, self.last, self.left_out = [], None, 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the messages to a new JSON file, as the field ``messages`` of a chat completion request.

        Raises
        ------
        OSError
            If the file exists already or cannot be written.
        """
        messages = [{"role": "system", "content": self.system}] if self.system else []
        with open(path, "x", encoding="utf-8") as file:
            json.dump({"messages": [*messages, *self.turns]}, file, ensure_ascii=False, indent=1)
            file.write("\n")

    def load(self, path: str | os.PathLike[str]) -> None:
        """Go on with the messages of a file.

        Raises
        ------
        OSError, ValueError
            If it cannot be read, or holds no messages of a user and an assistant in turns.
        """
        with open(path, "rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise PromptError(f"{os.fspath(path)} is larger than {MAX_FILE_BYTES >> 20} MiB, too large for a context")
        try:
            messages = json.loads(content).get("messages")
        except (ValueError, RecursionError, AttributeError) as error:
            raise PromptError(f"{os.fspath(path)} holds no JSON object ({error})") from None
        if not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise PromptError(f"{os.fspath(path)} has no list 'messages' of objects with 'role' and 'content'")
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else ""
        turns = messages[1:] if system else messages
        if len(turns) % len(ROLES) or any(one["role"] != ROLES[i % len(ROLES)] for i, one in enumerate(turns)):
            raise PromptError(f"{os.fspath(path)}: after a system message, user and assistant must take turns")
        self.clear()
        self.system, self.turns = system, [{"role": one["role"], "content": one["content"]} for one in turns]


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(key), str) for key in ("role", "content"))
