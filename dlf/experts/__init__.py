"""The experts with which a user specialises the large model."""

from dlf.experts.contrast import Amateur, Guidance
from dlf.experts.expert import Expert, InContext
from dlf.experts.kinds import EXPERTS, AnyExpert, WholeExpert, as_expert, checkpoints_of, with_weights
from dlf.experts.lora import Lora
from dlf.experts.task_arithmetic import TaskArithmetic

__all__ = [
    "EXPERTS",
    "Amateur",
    "AnyExpert",
    "Expert",
    "Guidance",
    "InContext",
    "Lora",
    "TaskArithmetic",
    "WholeExpert",
    "as_expert",
    "checkpoints_of",
    "with_weights",
]
