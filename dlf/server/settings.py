"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ServerSettings"]


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server, and who may use it.

    Attributes
    ----------
    api_keys : tuple of str
        Keys of which a request must carry one; none are needed if empty.
    max_queue : int
        Most sequences that run or wait, for each model; more are refused with 429.
    max_choices : int
        Most choices of a request: ``n`` times its prompts.
    max_body_bytes : int
        Most bytes of a request's body.
    max_stop : int
        Most stop strings of a request.
    max_logprobs : int
        Most top tokens that a request may ask for.
    timeout_s : float
        Seconds after which a request is ended.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_queue: int = 256
    max_choices: int = 128
    max_body_bytes: int = 8 << 20
    max_stop: int = 16
    max_logprobs: int = 20
    timeout_s: float = 600.0
