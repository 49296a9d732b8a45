"""Figures to show and write, from the measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.latency.engines import REFERENCE
from bench.latency.measure import Measured, WidthResult

Row = dict[str, Any]


def rows_of(result: WidthResult) -> list[Row]:
    """One row per engine; `relative` is to fused dlf at this width, `share` to the bandwidth of this run."""
    reference = next((_median(one.times) for one in result.engines if one.engine.name == REFERENCE), None)
    return [_row(measured, result.bandwidth, reference) for measured in result.engines]


def _median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds)


def _row(measured: Measured, bandwidth: float, reference: float | None) -> Row:
    median = _median(measured.times)
    low, *_, high = statistics.quantiles(measured.times, n=10)
    return {
        "name": measured.engine.name,
        "label": measured.engine.label,
        "weights": measured.weights,
        "median_s": median,
        "p10_s": low,
        "p90_s": high,
        "weight_bytes": measured.weight_bytes,
        "floor_s": measured.weight_bytes / bandwidth,
        "bytes_per_s": measured.weight_bytes / median,
        "share": measured.weight_bytes / median / bandwidth,
        "relative": median / reference if reference else None,
        "first_token_s": {str(length): _median(seconds) for length, seconds in measured.first.items()},
        "prepare_s": measured.prepare,
        "load_s": measured.load,
        "memory_after_load": measured.after_load,
        "memory_after_run": measured.after_run,
        "settings": measured.settings,
        "all_s": measured.times,
        "all_first_token_s": {str(length): seconds for length, seconds in measured.first.items()},
    }
