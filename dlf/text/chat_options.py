"""How a chat template writes the conversations of a request: tools, variables, and where the text ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlf.errors import OptionError, OptionTypeError
from dlf.support.option_values import as_flag, shown

__all__ = ["PLAIN_CHAT", "ChatOptions", "take_chat"]

OPTIONS = ("tools", "chat_template_kwargs", "add_generation_prompt", "continue_final_message")
# Variables that have an option of their own, or none at all.
TAKEN = ("self", "messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize")
MAX_TOOLS = 128  # OpenAI's limit


@dataclass(frozen=True, eq=False)
class ChatOptions:
    """Options of chat templates, under the names of ``transformers`` and vLLM; they hold for all lanes of a request.

    Parameters
    ----------
    tools : sequence of mapping, optional
        Functions that the model may call, as ``{"type": "function", "function": {"name": ..., "parameters": ...}}``.
    chat_template_kwargs : mapping, optional
        Further variables, such as ``enable_thinking``; JSON values.
    add_generation_prompt : bool, optional
        Whether the text ends with the opening of the assistant's turn; True unless the last message is continued.
    continue_final_message : bool
        Whether the text ends with the last message, which the answer goes on with.

    Raises
    ------
    OptionError, OptionTypeError
        If one is impossible, or the last two are both True.
    """

    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool | None = None
    continue_final_message: bool = False

    def __post_init__(self) -> None:
        if self.tools is not None:
            if not isinstance(self.tools, (list, tuple)) or not all(isinstance(one, Mapping) for one in self.tools):
                raise OptionTypeError(f"tools is {shown(self.tools)}: give a list of mappings", "tools")
            if len(self.tools) > MAX_TOOLS:
                raise OptionError(f"{len(self.tools)} tools are given; at most {MAX_TOOLS} are taken", "tools")
        name = "chat_template_kwargs"
        given = self.chat_template_kwargs
        if not isinstance(given, Mapping) or not all(isinstance(one, str) and one.isidentifier() for one in given):
            raise OptionTypeError(f"{name} is {shown(given)}: give a mapping of names", name)
        for taken in TAKEN:
            if taken in given:
                raise OptionError(f"{name} cannot hold {taken!r}; it is no variable, or has an option of its own", name)
        if self.add_generation_prompt is not None:
            as_flag("add_generation_prompt", self.add_generation_prompt)
        if as_flag("continue_final_message", self.continue_final_message) and self.add_generation_prompt:
            raise OptionError(
                "continue_final_message and add_generation_prompt are both True; the text ends in one way",
                "continue_final_message",
            )

    @property
    def ends_with_assistant(self) -> bool:
        """Whether the last message may be the assistant's."""
        return self.continue_final_message or self.add_generation_prompt is False

    def variables(self) -> dict[str, Any]:
        """Arguments of `Tokenizer.apply_chat_template`."""
        opens = not self.continue_final_message if self.add_generation_prompt is None else self.add_generation_prompt
        return {
            **self.chat_template_kwargs,
            "tools": [dict(one) for one in self.tools] if self.tools else None,
            "add_generation_prompt": opens,
            "continue_final_message": self.continue_final_message,
        }


PLAIN_CHAT = ChatOptions()


def take_chat(options: Mapping[str, Any]) -> tuple[ChatOptions, dict[str, Any]]:
    """Split the options of a call into those of its chat templates and the others.

    Raises
    ------
    OptionError, OptionTypeError
        As from `ChatOptions`.
    """
    given = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    others = {name: value for name, value in options.items() if name not in OPTIONS}
    return ChatOptions(**given) if given else PLAIN_CHAT, others
