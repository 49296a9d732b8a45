"""The settings of a server: the one list from which programs, recipes and the command line take theirs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from dlf.arguments import Path
from dlf.errors import OptionError
from dlf.support.option import Option, options_of
from dlf.support.option_values import MAX_INT, as_float, as_int, shown
from dlf.tool_calls.format import FORMATS

__all__ = ["ServerSettings"]

SECTION = "serve"  # of a recipe
PARSERS = ("auto", *dict.fromkeys(one.name for one in FORMATS))


@dataclass(frozen=True)
class ServerSettings:
    """Limits of a server, who may use it, and where it listens.

    Parameters
    ----------
    api_keys : tuple of str
        Keys of which a request must carry one; none are needed if empty.
    host : str
        Address to listen on; ``"0.0.0.0"`` for all.
    port : int
        Port; 0 takes a free one.
    api_key_file : str or path, optional
        File with a key on each line, which `dlf serve` adds to `api_keys`.
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
    tool_call_parser : str
        How models write calls of tools, under the names of vLLM; ``"auto"`` finds it in each chat template.
    timeout : float
        Seconds after which a request is ended.
    patience : float
        Seconds in which a client must send its request, and in which it must read some of an answer that waits for it;
        then its connection is closed.
    drain : int
        Seconds that running answers get when the server is told to end.

    Raises
    ------
    OptionError, OptionTypeError
        If an option is impossible.
    """

    api_keys: tuple[str, ...] = field(default=(), repr=False)
    host: Annotated[str, Option("Address to listen on; 0.0.0.0 for all.", section=SECTION, flag="")] = "127.0.0.1"
    port: Annotated[int, Option("Port; 0 takes a free one.", least=0, most=65535, section=SECTION, flag="")] = 8000
    api_key_file: Annotated[
        Path | None, Option("File with an API key on each line; or set DLF_API_KEY.", section=SECTION, flag="")
    ] = None
    max_queue: Annotated[
        int, Option("Sequences of a model that run or wait; more get 429.", least=1, section=SECTION, flag="")
    ] = 256
    max_choices: Annotated[int, Option("Choices: n times the prompts.", least=1, section=SECTION, flag="")] = 128
    max_body_bytes: Annotated[int, Option("Bytes of a request's body.", least=1, section=SECTION, flag="")] = 8 << 20
    max_stop: Annotated[int, Option("Stop strings of a request.", least=0, section=SECTION, flag="")] = 16
    max_logprobs: Annotated[int, Option("Top tokens that a request asks for.", least=0, section=SECTION, flag="")] = 20
    tool_call_parser: Annotated[
        str, Option("How models write calls of tools.", choices=PARSERS, section=SECTION, flag="")
    ] = "auto"
    timeout: Annotated[float, Option("Seconds after which a request is ended.", section=SECTION, flag="")] = 600.0
    patience: Annotated[
        float, Option("Seconds for a client to send its request, or to go on reading.", section=SECTION, flag="")
    ] = 30.0
    drain: Annotated[int, Option("Seconds for running answers after SIGTERM.", least=0, section=SECTION, flag="")] = 60

    def __post_init__(self) -> None:
        for name, option in options_of(ServerSettings).items():
            if option.type is int and option.least is not None:
                as_int(name, getattr(self, name), option.least, MAX_INT if option.most is None else option.most)
        if self.tool_call_parser not in PARSERS:
            given = shown(self.tool_call_parser)
            raise OptionError(f"tool_call_parser is {given}: give one of {', '.join(PARSERS)}", "tool_call_parser")
        for name in ("timeout", "patience"):
            if not 0 < as_float(name, getattr(self, name)) < math.inf:
                raise OptionError(f"{name} is {getattr(self, name)}: give seconds above 0", name)
