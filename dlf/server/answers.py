"""What answers of both endpoints have: their frame, the tokens used, and the weights of the experts."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dlf.results import Completion, Piece
from dlf.server.protocol import GenerationRequest
from dlf.text.token_bytes import token_text
from dlf.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from dlf.server.metrics import Metrics

__all__ = ["Answer", "Usage", "further_fields"]


@dataclass
class Usage:
    """Tokens of a request."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    _prompts: set[int] = field(default_factory=set)

    def add(self, prompt: int, completion: Completion) -> None:
        """Add a choice that has ended; the tokens of a prompt count once for all of its choices."""
        if prompt not in self._prompts:
            self.prompt_tokens += completion.prompt_tokens
            self.cached_tokens += completion.cached_tokens
        self._prompts.add(prompt)
        self.completion_tokens += len(completion.tokens)

    def body(self) -> dict[str, Any]:
        """OpenAI's object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            # The engine counts what each lane copied; a client knows of one prompt.
            "prompt_tokens_details": {"cached_tokens": min(self.cached_tokens, self.prompt_tokens)},
        }


@dataclass
class Answer:
    """The frame of all parts of one answer.

    Attributes
    ----------
    kind : str
        OpenAI's ``object`` of its parts.
    model : str
        The model that the request named.
    metrics : Metrics, optional
        Count its tokens.
    """

    kind: str
    model: str
    metrics: Metrics | None = None
    usage: Usage = field(default_factory=Usage)
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    _start: float = field(default_factory=time.perf_counter)
    _last: dict[int, float] = field(default_factory=dict)

    def part(self, *choices: dict[str, Any]) -> dict[str, Any]:
        """A part with these choices."""
        prefix = "chatcmpl" if self.kind.startswith("chat") else "cmpl"
        return {
            "id": f"{prefix}-{self.id}",
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }

    def whole(self, parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
        """The answer that is not streamed, of all its parts."""
        choices = sorted((choice for part in parts for choice in part["choices"]), key=lambda one: one["index"])
        return self.part(*choices) | {"usage": self.usage.body()}

    def count(self, choice: int, pieces: Sequence[Piece]) -> None:
        """Count tokens of a choice that came at once in the metrics."""
        if self.metrics is None:
            return
        now = time.perf_counter()
        last = self._last.get(choice)
        self.metrics.tokens(self.model, len(pieces), now - (self._start if last is None else last), first=last is None)
        self._last[choice] = now

    def end(self, prompt: int, completion: Completion) -> str | None:
        """Count a choice that has ended; returns why."""
        self.usage.add(prompt, completion)
        if self.metrics is not None:
            self.metrics.completion(self.model, completion)
        return completion.finish_reason


def further_fields(
    body: GenerationRequest, pieces: Sequence[Piece], tokenizer: Tokenizer, experts: Sequence[str]
) -> dict[str, Any]:
    """The fields that ``return_token_ids`` and ``return_alpha`` add to a choice with these tokens."""
    tokens = {"token_ids": [piece.token for piece in pieces]} if body.return_token_ids else {}
    return tokens | (_alpha_fields(pieces, tokenizer, experts) if body.return_alpha else {})


def _alpha_fields(pieces: Sequence[Piece], tokenizer: Tokenizer, experts: Sequence[str]) -> dict[str, Any]:
    """What fusion did at each of these tokens."""

    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    tokens = []
    for piece in pieces:
        changed = None if piece.own_token is None else piece.own_token != piece.token
        tokens.append(
            {
                "token": token_text(tokenizer, piece.token),
                "alpha": [finite(float(value)) for value in piece.alpha],
                "f": finite(piece.f),
                "g": finite(piece.g),
                "changed": changed,
                "own_token": None if piece.own_token is None else token_text(tokenizer, piece.own_token),
            }
        )
    return {"fusion": {"experts": list(experts), "tokens": tokens}}
