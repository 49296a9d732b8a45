"""Fuse a large model with one small expert, and see the expert's weight.

Run it with ``python examples/fuse.py``. The models ship with the package; name your own folders or hub ids instead.
"""

import dlf
from dlf import zoo

problem = zoo.problems("math")[0]
expert = dlf.Expert(zoo.path("math-expert"), base=zoo.path("small-base"))

with dlf.Engine(zoo.path("large-base"), experts=[expert]) as engine:
    print(problem.prompt)
    alone = engine.generate(problem.prompt, experts=[], max_new_tokens=64)
    print("large model alone:", alone.text.strip())

    print("fused:", end="")
    for piece in engine.stream(problem.prompt, max_new_tokens=64):
        print(piece.text, end="", flush=True)
    print()

    fused = engine.generate(problem.prompt, max_new_tokens=64)
    print(f"alpha from {fused.alpha.min():.2f} to {fused.alpha.max():.2f}; the answer is {problem.answer}")
