"""What signals do to a command that writes."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator

__all__ = ["cleaning_up_when_terminated"]


@contextlib.contextmanager
def cleaning_up_when_terminated() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, so that nothing half-written stays."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
