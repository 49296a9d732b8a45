"""Conversations whose last message goes on: the beginning of an answer, which a model is to complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["open_ended"]

# A mark that no template touches, unless it trims the message: then the space goes.
MARK = "CONTINUE_FINAL_MESSAGE_TAG "


def open_ended(write: Callable[[list[dict[str, Any]]], str], history: list[dict[str, Any]]) -> str:
    """Write a conversation up to the end of its last message.

    This is ``continue_final_message`` of ``transformers.utils.chat_template_utils.render_jinja_template``: a mark at
    the end of the message says where the template puts that.

    Parameters
    ----------
    write
        Writes messages by a chat template, without a generation prompt.
    history
        The messages; the last one's content is text.

    Raises
    ------
    ValueError
        If there is no text to go on with, or the template leaves it out.
    """
    content = history[-1].get("content") if history else None
    if not isinstance(content, str):
        raise ValueError("the last message has no text to go on with; leave the chat template out")
    text = write([*history[:-1], history[-1] | {"content": content + MARK}])
    if content.strip() not in text or MARK.strip() not in text:
        raise ValueError(
            f"the chat template leaves out the beginning of the answer, {content.strip()!r:.80}, or changes it"
        )
    end = text.rindex(MARK.strip())
    return text[:end] if text.startswith(MARK, end) else text[:end].rstrip()
