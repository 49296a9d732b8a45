"""Decode several language models together: a large one, specialised at every step by small experts."""

from dlf._compat import check_torch

check_torch()

from dlf import fusion  # noqa: E402
from dlf._C import __version__  # noqa: E402
from dlf.engine import Engine  # noqa: E402
from dlf.errors import CheckpointError, TokenizerMismatchError, UnknownArchitectureError  # noqa: E402
from dlf.experts import Expert  # noqa: E402
from dlf.results import Completion, Piece, Timings  # noqa: E402
from dlf.sampling import SamplingOptions  # noqa: E402

__all__ = [
    "CheckpointError",
    "Completion",
    "Engine",
    "Expert",
    "Piece",
    "SamplingOptions",
    "Timings",
    "TokenizerMismatchError",
    "UnknownArchitectureError",
    "__version__",
    "fusion",
]
