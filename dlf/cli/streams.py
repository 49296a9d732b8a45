"""Standard input and output of the command line: pipes, terminals, files of another system, or closed streams."""

from __future__ import annotations

import os
import sys
import traceback
from types import TracebackType

import typer

from dlf.support.terminal import printable

__all__ = ["abandon_output", "open_streams", "print_error", "print_traceback", "read_prompt", "warning_line", "write"]

MAX_PROMPT_BYTES = 64 << 20


def open_streams() -> None:
    """Make sure that all three streams can be used."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # A closed stream's number would otherwise go to the next file that is opened.
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open until the process ends)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 gets question marks


def abandon_output() -> None:
    """Drop buffered output that nobody reads, as Python's documentation of SIGPIPE advises."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_prompt() -> str:
    """Read standard input to its end; line ends may be those of any system.

    Raises
    ------
    ValueError
        If it is empty, too large or not UTF-8.
    """
    if sys.stdin.isatty():
        typer.echo("dlf: type the prompt, then Ctrl-D on a line of its own", err=True)
    content = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if not content:
        raise ValueError("standard input is empty; pipe a prompt into it, or give one as an argument")
    if len(content) > MAX_PROMPT_BYTES:
        raise ValueError(f"standard input holds more than {MAX_PROMPT_BYTES >> 20} MiB, more than any context holds")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is not UTF-8 text ({error}); convert it, for example by iconv") from error
    # Without the line end that echo and editors add.
    return text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")


def write(text: str) -> None:
    """Write a model's text: unchanged into a file or a pipe, made safe for a terminal."""
    try:
        sys.stdout.write(printable(text, lines=True) if sys.stdout.isatty() else text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        abandon_output()  # otherwise Python would try again at exit
        raise OSError(error.errno, error.strerror, "standard output") from error


def print_error(kind: str, message: str) -> None:
    """Print one line to standard error."""
    typer.echo(f"dlf: {kind}: {printable(' '.join(message.split()))}", err=True)


def warning_line(message: Warning | str, *_: object, **__: object) -> str:
    """Write a warning in one line, in place of ``warnings.formatwarning``."""
    return f"dlf: warning: {printable(' '.join(str(message).split()))}\n"


def print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback, in place of ``sys.excepthook``; its message may quote a file."""
    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace)), lines=True))
