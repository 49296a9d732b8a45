"""What ``/metrics`` shows, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from dlf.results import Completion
from dlf.server.errors import ApiError
from dlf.server.service import Served

__all__ = ["Metrics"]

SECONDS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters of one server; all but the process' own have the label ``model``, the name that requests give."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dlf_{name}", text, ("model", *labels), registry=self.registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"dlf_{name}", text, ("model",), registry=self.registry)

        ProcessCollector(registry=self.registry)  # memory, time and descriptors
        self.requests = counter("requests", "Requests by endpoint and status.", "endpoint", "status")
        self._prompt = counter("prompt_tokens", "Tokens of prompts.")
        self._cached = counter("cached_prompt_tokens", "Tokens of prompts that the prefix cache had, of all lanes.")
        self._generated = counter("generated_tokens", "Generated tokens.")
        self._passes = counter("passes", "Passes of the large model that gave tokens.")
        self._drafted = counter("drafted_tokens", "Drafted tokens.")
        self._accepted = counter("accepted_tokens", "Drafted tokens that were right.")
        self._alpha = counter(
            "alpha_sum", "Sum of the experts' weights over generated tokens; divided by these, their mean."
        )
        self._traced = counter("traced_tokens", "Generated tokens of requests with return_alpha.")
        self._changed = counter("changed_tokens", "Of these, tokens that fusion changed.")
        self._sequences = gauge("sequences", "Sequences that run or wait.")
        self._waiting = gauge("waiting_sequences", "Of these, sequences that wait for a slot.")
        self._slots = gauge("slots", "Sequences that can run at once.")
        self._cache = gauge("kv_cache_use", "Share of the KV cache that running sequences hold.")
        self._put_back = gauge("put_back_sequences", "How often a sequence was put back because memory ran out.")
        self._first = Histogram(
            "dlf_time_to_first_token_seconds",
            "Time from a request to its first token.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._between = Histogram(
            "dlf_time_between_tokens_seconds",
            "Time between two tokens of a sequence.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )

    @contextmanager
    def request(self, model: str, endpoint: str) -> Iterator[None]:
        """Count a request, with the status of its error or 200."""
        status = 200
        try:
            yield
        except ApiError as error:
            status = error.status
            raise
        finally:
            self.requests.labels(model, endpoint, status).inc()

    def tokens(self, model: str, count: int, seconds: float, first: bool) -> None:
        """Count tokens that came at once, `seconds` after the one before them or after the request."""
        (self._first if first else self._between).labels(model).observe(seconds)
        if count > 1:
            between = self._between.labels(model)
            for _ in range(count - 1):
                between.observe(0.0)

    def completion(self, model: str, found: Completion) -> None:
        """Count a sequence that has ended."""
        self._prompt.labels(model).inc(found.prompt_tokens)
        self._cached.labels(model).inc(found.cached_tokens)
        self._generated.labels(model).inc(len(found.tokens))
        self._passes.labels(model).inc(found.passes)
        self._drafted.labels(model).inc(found.drafted)
        self._accepted.labels(model).inc(max(0, len(found.tokens) - found.passes))
        self._alpha.labels(model).inc(max(0.0, float(np.nansum(found.alpha))))
        self._traced.labels(model).inc(len(found.own_tokens))
        self._changed.labels(model).inc(sum(a != b for a, b in zip(found.own_tokens, found.tokens, strict=False)))

    async def text(self, served: Iterable[Served]) -> bytes:
        """All of them in Prometheus' text format, with the present state of these engines."""
        for one in served:
            slots = one.engine.max_batch
            self._sequences.labels(one.name).set(one.sequences)
            self._waiting.labels(one.name).set(max(0, one.sequences - slots))
            self._slots.labels(one.name).set(slots)
            cache = await one.engine.cache_use()
            self._cache.labels(one.name).set(cache.share)
            self._put_back.labels(one.name).set(cache.put_back)
        return generate_latest(self.registry)
