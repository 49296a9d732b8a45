"""Steer with prompts instead of training: move away from what a model says after a negative prompt.

Run it with ``python examples/guidance.py``. The small model knows word problems and the large one does not. What the
small model says after the problem, less what it says after another question, is added to the large model's logits.
"""

import dlf
from dlf import zoo

problem, other = zoo.problems("math")[0], zoo.problems("facts")[0]
REQUEST = {"negative_prompt": other.prompt, "max_new_tokens": 48, "stop_strings": "####"}

with dlf.Engine(zoo.path("large-base"), [dlf.Guidance(zoo.path("math-expert"))]) as engine:
    alone = engine.generate(problem.prompt, experts=[], max_new_tokens=48, stop_strings="####")
    print(f"large model alone: {alone.text.strip()}")
    for scale in (1.0, 1.5):
        guided = engine.generate(problem.prompt, guidance_scale=scale, **REQUEST)
        print(f"scale {scale}: {guided.text.strip()}")
