"""The engines to measure, their widths of weights, and the packages that they need."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

WIDTHS = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Engine:
    """One line of the table."""

    name: str
    label: str
    module: str
    packages: tuple[str, ...]
    widths: tuple[str, ...] = WIDTHS
    fused: bool = True
    """Whether the expert and its base run too, or only the large model."""
    options: dict[str, Any] = field(default_factory=dict)
    cuda: bool = False
    """Whether it also runs on a card."""

    def versions(self) -> dict[str, str | None]:
        """The installed version of each package; None if it is missing."""
        return {package: _version(package) for package in self.packages}

    def missing(self) -> list[str]:
        """Packages that are not installed."""
        return [package for package, found in self.versions().items() if found is None]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


MEMORY = Engine("memory", "reading memory", "bench.peers.memory", ("torch",), cuda=True)
REFERENCE = "dlf"

ENGINES = (
    Engine("dlf", "dlf, fused", "bench.peers.dlf", ("dlf", "torch"), cuda=True),
    Engine("dlf-large", "dlf, large alone", "bench.peers.dlf", ("dlf", "torch"), fused=False, cuda=True),
    Engine(
        "llama.cpp",
        "llama.cpp, sum of 3",
        "bench.peers.llama_cpp",
        ("llama-cpp-python", "gguf"),
    ),
    Engine(
        "openvino",
        "OpenVINO, sum of 3",
        "bench.peers.openvino_genai",
        ("openvino-genai", "openvino", "optimum-intel", "nncf"),
    ),
    Engine(
        "transformers",
        "transformers, 21 α",
        "bench.peers.transformers_loop",
        ("transformers", "torch"),
        widths=("bf16",),
        cuda=True,
    ),
    Engine(
        "transformers-alpha-1",
        "transformers, α = 1",
        "bench.peers.transformers_loop",
        ("transformers", "torch"),
        widths=("bf16",),
        options={"alpha": 1.0},
        cuda=True,
    ),
)
