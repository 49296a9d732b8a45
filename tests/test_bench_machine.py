"""What benchmarks say of the machine."""

from __future__ import annotations

import pytest
import torch
import typer

from bench.machine import describe, file_name, where


def test_results_of_the_processor_name_no_card() -> None:
    found = describe({"torch": torch.__version__, "missing": None}, threads=2)
    assert found["threads"] == 2 and found["cores"] >= 1 and found["versions"]["torch"] == torch.__version__
    assert "card" not in found and file_name("latency", "cpu") == "latency" and where("cpu", 3) == "3 threads"


def test_an_unknown_device_is_a_mistake_of_the_user() -> None:
    with pytest.raises(typer.BadParameter, match="gpu"):
        describe({}, 1, "gpu")
