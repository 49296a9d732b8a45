"""Writes conversations whose last message is the beginning of an answer, which a model completes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["open_ended"]

# A mark that no template changes, except that one which trims the message removes the space.
MARK = "CONTINUE_FINAL_MESSAGE_TAG "


def open_ended(write: Callable[[list[dict[str, Any]]], str], history: list[dict[str, Any]]) -> str:
    """Write a conversation up to the end of its last message.

    This is ``continue_final_message`` of ``transformers.utils.chat_template_utils.render_jinja_template``: a mark at
    the end of the message shows where the template puts that end.

    Parameters
    ----------
    write
        Writes messages by a chat template, without a generation prompt.
    history
        The messages; the last one's content is text.

    Raises
    ------
    ValueError
        If there is no text to continue, or the template leaves it out.
    """
    content = history[-1].get("content") if history else None
    if not isinstance(content, str):
        raise ValueError("the last message has no text to continue; leave the chat template out")
    text = write([*history[:-1], history[-1] | {"content": content + MARK}])
    if content.strip() not in text or MARK.strip() not in text:
        raise ValueError(
            f"the chat template leaves out the beginning of the answer, {content.strip()!r:.80}, or changes it"
        )
    end = text.rindex(MARK.strip())
    return text[:end] if text.startswith(MARK, end) else text[:end].rstrip()
