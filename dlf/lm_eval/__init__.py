"""dlf as a model of lm-evaluation-harness: ``python -m dlf.lm_eval --model dlf --model_args recipe=...``.

The command `lm_eval` looks up models in a list of its own, to which an installed package can't add. This package
enters `DLF` there as ``dlf`` when it is imported; run as a program, it then runs `lm_eval` itself.
"""

from dlf.lm_eval.model import DLF, main

__all__ = ["DLF", "main"]
