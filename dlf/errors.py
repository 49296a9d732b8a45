"""Exceptions of dlf: the message is for people, `kind` and `field` are for programs.

Each is also one of Python's built-in exceptions, the one that docstrings name. A missing folder or file is a plain
``FileNotFoundError``. Every message names what is wrong and what to do about it.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator

__all__ = [
    "CheckpointError",
    "EngineError",
    "Error",
    "ErrorKind",
    "LogitsError",
    "NoTokenError",
    "OptionError",
    "OptionTypeError",
    "PromptError",
    "StepMemoryError",
    "TextTooLongError",
    "TokenizerMismatchError",
    "UnknownArchitectureError",
    "field_of",
    "is_out_of_memory",
    "out_of_memory_is_memory_error",
]


class ErrorKind(enum.Enum):
    """What kind of thing went wrong."""

    OPTION = "option"
    """An option has an impossible value; the error's `field` is its name."""
    PROMPT = "prompt"
    """A prompt or a continuation is empty or cannot be read."""
    TOO_LONG = "too_long"
    """A prompt, with the tokens that will follow it, does not fit the context."""
    CHECKPOINT = "checkpoint"
    """Files of a model are damaged, unknown or do not go together."""
    DEVICE = "device"
    """A device is missing."""
    BAD_LOGITS = "bad_logits"
    """A model's logits are not finite."""
    NO_TOKEN = "no_token"
    """Every token is excluded."""
    CLOSED = "closed"
    """The engine was closed."""
    FORKED = "forked"
    """The engine, or the request, belongs to the process that this one was forked from."""
    BROKEN_OFF = "broken_off"
    """A step of the engine failed, and with it all requests."""


class Error(Exception):
    """An error of dlf.

    Attributes
    ----------
    kind : ErrorKind
        What went wrong.
    field : str or None
        Name of the option at fault, if any.
    """

    kind: ErrorKind
    field: str | None = None


class _OptionFault(Error):
    kind = ErrorKind.OPTION

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class OptionError(_OptionFault, ValueError):
    """An option has an impossible value."""


class OptionTypeError(_OptionFault, TypeError):
    """An option has a value of the wrong type, or an unknown name."""


class PromptError(Error, ValueError):
    """A prompt or a continuation cannot be read, or does not fit."""

    def __init__(self, message: str, kind: ErrorKind = ErrorKind.PROMPT) -> None:
        super().__init__(message)
        self.kind = kind


class TextTooLongError(Error, ValueError):
    """A text has more tokens than it may; it was not encoded to its end.

    Parameters
    ----------
    tokens
        Least number of tokens that it has.
    """

    kind = ErrorKind.TOO_LONG

    def __init__(self, tokens: int) -> None:
        super().__init__(f"the text has at least {tokens} tokens; shorten it")
        self.tokens = tokens


class CheckpointError(Error, ValueError):
    """A checkpoint's files are damaged, incomplete or hold something that dlf does not run."""

    kind = ErrorKind.CHECKPOINT


class UnknownArchitectureError(CheckpointError):
    """A checkpoint's architecture is none of those that dlf runs."""


class TokenizerMismatchError(Error, ValueError):
    """Two models that are to be fused give one token id different meanings."""

    kind = ErrorKind.CHECKPOINT


class LogitsError(Error, FloatingPointError):
    """A model's logits are not finite; the message names the model and the step."""

    kind = ErrorKind.BAD_LOGITS


class NoTokenError(Error, ValueError):
    """Every token is excluded."""

    kind = ErrorKind.NO_TOKEN


class EngineError(Error, RuntimeError):
    """An engine, or a request of it, cannot go on."""

    def __init__(self, message: str, kind: ErrorKind = ErrorKind.BROKEN_OFF) -> None:
        super().__init__(message)
        self.kind = kind


class StepMemoryError(Error, MemoryError):
    """A step of the engine ran out of memory."""

    kind = ErrorKind.BROKEN_OFF


def field_of(error: BaseException) -> str | None:
    """Name of the option at fault, if the error has one."""
    return error.field if isinstance(error, Error) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, of any class, says that memory or address space ran out."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "allocate memory" in said or "bad_alloc" in said or "os error 12" in said


@contextlib.contextmanager
def out_of_memory_is_memory_error(task: str) -> Iterator[None]:
    """Raise MemoryError if `task` runs out of memory; torch raises RuntimeError then."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or (isinstance(error, MemoryError) and str(error)):  # it has a message already
            raise
        raise MemoryError(f"memory ran out while {task}; load smaller models, or smaller weights") from error
