"""How a lane's prompt is written: chat templates, format strings, examples before the question."""

from __future__ import annotations

import string
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeAlias

from dlf.errors import OptionError, OptionTypeError, TextTooLongError
from dlf.text.chat_options import PLAIN_CHAT, ChatOptions
from dlf.text.tokenizer import Tokenizer

__all__ = ["CHAT", "Example", "Layout", "Messages", "as_examples", "as_messages"]

Example: TypeAlias = "tuple[str, str]"
Messages: TypeAlias = "list[dict[str, Any]]"

CHAT = "chat"
MAX_TEMPLATE = 1 << 20
OTHER = "\u2022"  # a question that no prompt begins with
FIELDS = "give 'chat' for the model's chat template, or a text with {prompt}, or one with {question} and {answer}"


@dataclass(frozen=True)
class Layout:
    """Writes a prompt as a model reads it.

    Parameters
    ----------
    template : str, optional
        ``"chat"``: the model's own chat template, with the prompt as the user's message and examples as turns before
        it. A text with ``{prompt}``: the prompt takes its place. A text with ``{question}`` and ``{answer}``: the form
        of an example; the prompt is a question, and the text ends before ``{answer}``. Braces of the text itself are
        doubled. None: the prompt as it is, and messages in the chat template of a model that has one.
    examples : tuple of (question, answer)
        Written before the prompt. If the template has no ``{answer}``, an answer follows its question after a space,
        and an empty line ends an example, as in lm-evaluation-harness.
    chat : ChatOptions
        How a chat template writes a conversation.

    Raises
    ------
    ValueError, TypeError
        If the template is none of these.
    """

    template: str | None = None
    examples: tuple[Example, ...] = ()
    chat: ChatOptions = PLAIN_CHAT

    def __post_init__(self) -> None:
        if self.template is not None and not isinstance(self.template, str):
            raise OptionTypeError(f"a template is text, not {type(self.template).__name__}; {FIELDS}", "template")
        if self.template not in (None, CHAT):
            _ = self._parts  # raises

    @property
    def plain(self) -> bool:
        """Whether a prompt is read as it is: then it may be token ids."""
        return self.template in (None, "{prompt}") and not self.examples

    def text(self, prompt: str | Messages, tokenizer: Tokenizer) -> str:
        """Write a prompt or a conversation as this model reads it."""
        if self.is_chat(prompt, tokenizer):
            start, rest = self._turns(prompt)
            return tokenizer.apply_chat_template(start + rest, **self.chat.variables())
        return self._shots() + self._question(_flat(prompt))

    def encode(self, prompt: str | Messages, tokenizer: Tokenizer, most: int | None = None) -> tuple[list[int], int]:
        """Token ids of `text`, and how many of the first ones do not depend on the question.

        Raises
        ------
        TextTooLongError
            If there are far more than `most`; a text with a few more is encoded.
        """
        chat = self.is_chat(prompt, tokenizer)
        tokens = tokenizer.encode(self.text(prompt, tokenizer), add_special_tokens=not chat, max_tokens=most)
        if not chat and self.plain:
            return tokens, 0
        start, rest = self._turns(prompt) if chat else ([], [])
        if chat and not (start or self.chat.tools):
            return tokens, 0
        # Compare with another question: the tokens up to the first difference do not depend on the question.
        other: str | Messages = start + [{**rest[0], "content": OTHER}] if chat else OTHER
        layout = Layout(CHAT, chat=self.chat) if chat else self
        shared = tokenizer.encode(layout.text(other, tokenizer), add_special_tokens=not chat, max_tokens=most)
        common = 0
        while common < min(len(tokens), len(shared)) and tokens[common] == shared[common]:
            common += 1
        return tokens, common

    def fitting(self, prompt: str | Messages, tokenizer: Tokenizer, room: int) -> int | None:
        """Most examples with which the text is shorter than `room` tokens; None if the prompt alone is too long."""

        def too_long(count: int) -> bool:
            try:
                return len(replace(self, examples=self.examples[:count]).encode(prompt, tokenizer, room)[0]) >= room
            except TextTooLongError:
                return True

        if too_long(0):
            return None
        return bisect_left(range(1, len(self.examples) + 1), True, key=too_long)

    def is_chat(self, prompt: str | Messages, tokenizer: Tokenizer) -> bool:
        """Whether the model's chat template writes this prompt."""
        automatic = self.template is None and not isinstance(prompt, str) and tokenizer.has_chat_template
        return self.template == CHAT or automatic

    def _turns(self, prompt: str | Messages) -> tuple[Messages, Messages]:
        """Messages before the question (system message and examples), and the others."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        system = [one for one in messages[:1] if one["role"] == "system"]
        shots = [
            {"role": role, "content": text}
            for example in self.examples
            for role, text in zip(("user", "assistant"), example, strict=True)
        ]
        return system + shots, messages[len(system) :]

    @cached_property
    def _parts(self) -> list[tuple[str, str | None]]:
        """The template as texts, each with the field that follows it."""
        template = "{prompt}" if self.template is None else self.template
        if len(template) > MAX_TEMPLATE:
            raise OptionError(f"the template has {len(template)} characters, more than {MAX_TEMPLATE}", "template")
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise OptionError(
                f"the template {template!r:.80}: {error}; write {{{{ and }}}} for braces", "template"
            ) from None
        fields = [field for _, field, _, _ in parsed if field is not None]
        extra = any(spec or conversion for _, _, spec, conversion in parsed)
        if extra or sorted(fields) not in (["prompt"], ["answer", "question"]) or fields[0] == "answer":
            raise OptionError(f"the template is {template!r:.80}; {FIELDS}", "template")
        return [(text, field) for text, field, _, _ in parsed]

    def _question(self, prompt: str) -> str:
        written = ""
        for text, field in self._parts:
            if field == "answer":
                return (written + text).rstrip(" ")
            written += text + (prompt if field else "")
        return written

    def _shots(self) -> str:
        return "".join(self._shot(question, answer) for question, answer in self.examples)

    def _shot(self, question: str, answer: str) -> str:
        values = {"question": question, "answer": answer}
        if any(field == "answer" for _, field in self._parts):
            return "".join(text + (values[field] if field else "") for text, field in self._parts)
        asked = self._question(question)
        space = "" if asked[-1:].isspace() or answer[:1].isspace() else " "
        return f"{asked}{space}{answer}\n\n"


def _flat(prompt: str | Messages) -> str:
    """Contents of a conversation, separated by empty lines, for a model that has no chat template."""
    return prompt if isinstance(prompt, str) else "\n\n".join(one["content"] for one in prompt if one["content"])


def as_messages(messages: Any, chat: ChatOptions = PLAIN_CHAT) -> tuple[list[Messages], bool]:
    """The conversations, and whether there was a single one rather than a list.

    Raises
    ------
    ValueError, TypeError
        If a message does not have the form that chat templates take.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise OptionTypeError(
            "messages must be a list of {'role': ..., 'content': ...}, or a list of such lists", "messages"
        )
    single = isinstance(messages[0], Mapping)
    return [_conversation(one, chat) for one in ([messages] if single else messages)], single


def _conversation(messages: Any, chat: ChatOptions) -> Messages:
    if not isinstance(messages, (list, tuple)) or not messages:
        raise OptionError("a conversation has no messages; give at least one", "messages")
    found: Messages = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise OptionTypeError(f"messages[{i}] is no mapping with 'role' and 'content'", "messages")
        content = message.get("content")
        if content is None and message["role"] == "assistant" and message.get("tool_calls"):
            found.append({**message, "content": None})
            continue
        found.append({**message, "content": _text(content, f"messages[{i}]['content']")})
    if found[-1]["role"] == "assistant" and not chat.ends_with_assistant:
        raise OptionError(
            "the last message is the assistant's own; end with one that it can answer, or give continue_final_message",
            "messages",
        )
    if all(message["role"] == "system" for message in found):
        raise OptionError("there is only a system message; add the user's", "messages")
    return found


def _text(content: Any, name: str) -> str:
    """Text of a message's content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise OptionTypeError(f"{name} must be text; these models read nothing else", "messages")
    for j, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            what = f"is {kind!r:.40}" if isinstance(kind, str) and kind != "text" else "has no text"
            raise OptionTypeError(f"{name}[{j}] {what}; these models read text alone", "messages")
    return "".join(part["text"] for part in content)


def as_examples(examples: Any) -> tuple[Example, ...]:
    """Check pairs of question and answer.

    Raises
    ------
    ValueError, TypeError
        If there are none, or one is no pair of texts.
    """
    if isinstance(examples, (str, bytes, Mapping)) or not isinstance(examples, Sequence):
        raise OptionTypeError(f"examples is a list of (question, answer), not {type(examples).__name__}", "examples")
    if not examples:
        raise OptionError("examples is empty; give at least one (question, answer)", "examples")
    for i, example in enumerate(examples):
        if (
            isinstance(example, str)
            or not isinstance(example, Sequence)
            or len(example) != 2
            or not all(isinstance(text, str) for text in example)
        ):
            raise OptionTypeError(f"examples[{i}] is no pair of texts (question, answer)", "examples")
    return tuple((question, answer) for question, answer in examples)
