"""Which replica gets a request: prompts that begin alike go to the same one, whose prefix cache is warm."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

__all__ = ["PrefixRouter", "key_of", "order_of"]

BEGINNING = 512  # characters of a prompt that choose its replica


class PrefixRouter(RequestRouter):  # type: ignore[misc] # Ray has no types
    """Prefers a replica by the beginning of the prompt, unless it is much busier than another.

    The preference is a rendezvous hash, which needs no state: every front prefers the same replica for a prompt, and a
    replica that comes or goes changes the preference of its own share of the prompts alone.
    """

    def initialize_state(self, slack: int = 8, **_: Any) -> None:
        """Set how many requests more than the idlest replica the preferred one may have."""
        self._slack = slack

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return replicas, the preferred first; Ray passes over those whose queue is full."""
        by_name = {one.replica_id.unique_id: one for one in candidate_replicas}
        given: Mapping[str, Any] = {}
        if pending_request is not None:
            pending_request.routing_context.should_backoff = True
            given = pending_request.kwargs
        if given.get("only") is not None:  # a replica by its number
            names = sorted(by_name)
            return [[by_name[names[given["only"] % len(names)]]]] if names else []
        if not given.get("key"):
            return [list(candidate_replicas)]  # the idler of them
        loads = {name: self.replica_queue_len_cache.get(one.replica_id) or 0 for name, one in by_name.items()}
        return [[by_name[name]] for name in order_of(given["key"], loads, self._slack)]


def order_of(key: str, loads: Mapping[str, int], slack: int) -> list[str]:
    """Replicas in the order of preference for a key; those with `slack` requests more than the idlest come last."""

    def rank(name: str) -> tuple[bool, bytes]:
        return loads[name] - idlest >= slack, hashlib.sha256(f"{key}\0{name}".encode()).digest()

    idlest = min(loads.values(), default=0)
    return sorted(loads, key=rank)


def key_of(body: bytes) -> str:
    """The key of a request's body: a hash of its model and the beginning of its prompt; empty if it has none."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(given, dict):
        return ""
    prompt = given.get("messages") if given.get("prompt") is None else given["prompt"]
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
        prompt = prompt[0]  # of several, all of which go to one replica
    if not isinstance(prompt, (str, list)) or not prompt:
        return ""
    if isinstance(prompt, list):
        prompt = _text(prompt)
    return hashlib.sha256(repr((given.get("model"), prompt[:BEGINNING])).encode()).hexdigest()


def _text(items: Sequence[Any]) -> str:
    """The beginning of messages or token ids as a text, without what is behind it."""
    found, length = [], 0
    for item in items:
        content = item.get("content") if isinstance(item, dict) else item
        found.append((content if isinstance(content, str) else repr(content))[:BEGINNING])
        length += len(found[-1]) + 1
        if length >= BEGINNING:
            break
    return "\0".join(found)
