"""Decode several language models together: a large one, specialised at every step by small experts."""

from dlf._compat import check_torch, find_extension

find_extension(__path__)
check_torch()

from dlf import fusion
from dlf._C import __version__
from dlf.async_engine import AsyncEngine
from dlf.checkpoints.convert import convert
from dlf.engine import Engine
from dlf.errors import (
    CheckpointError,
    EngineError,
    Error,
    ErrorKind,
    LogitsError,
    NoTokenError,
    OptionError,
    OptionTypeError,
    PromptError,
    StepMemoryError,
    TokenizerMismatchError,
    UnknownArchitectureError,
)
from dlf.experts import Amateur, Expert, Guidance, InContext, Lora, TaskArithmetic
from dlf.grammar import Grammar
from dlf.memory import Memory, MemoryPart
from dlf.options import EngineOptions
from dlf.own_rule import StepLogits
from dlf.results import CacheUse, Completion, Piece, Score, Step, Timings, Trace
from dlf.rule import Rule
from dlf.sampling import SamplingOptions
from dlf.shared_models import SharedModels
from dlf.speculation import Speculation
from dlf.stream import AsyncStream, Stream

__all__ = [
    "Amateur",
    "AsyncEngine",
    "AsyncStream",
    "CacheUse",
    "CheckpointError",
    "Completion",
    "Engine",
    "EngineError",
    "EngineOptions",
    "Error",
    "ErrorKind",
    "Expert",
    "Grammar",
    "Guidance",
    "InContext",
    "LogitsError",
    "Lora",
    "Memory",
    "MemoryPart",
    "NoTokenError",
    "OptionError",
    "OptionTypeError",
    "Piece",
    "PromptError",
    "Rule",
    "SamplingOptions",
    "Score",
    "SharedModels",
    "Speculation",
    "Step",
    "StepLogits",
    "StepMemoryError",
    "Stream",
    "TaskArithmetic",
    "Timings",
    "TokenizerMismatchError",
    "Trace",
    "UnknownArchitectureError",
    "__version__",
    "convert",
    "fusion",
]
