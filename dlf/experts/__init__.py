"""The experts with which a user specialises the large model."""

from dlf.experts.expert import Expert, InContext
from dlf.experts.kinds import EXPERTS, AnyExpert, as_expert, with_alpha
from dlf.experts.lora import Lora
from dlf.experts.task_arithmetic import TaskArithmetic

__all__ = ["EXPERTS", "AnyExpert", "Expert", "InContext", "Lora", "TaskArithmetic", "as_expert", "with_alpha"]
