"""Give one engine four experts, and fuse all of them or only those that a request names.

Run it with ``python examples/several_experts.py``. ``combine="joint"`` moves the large model no further than
the experts need; experts on one base share its pass.
"""

import dlf
from dlf import zoo

names = ["math", "facts", "truths", "reports"]
experts = [dlf.Expert(zoo.path(f"{name}-expert"), name=name) for name in names]

with dlf.Engine(zoo.path("large-base"), experts, base=zoo.path("small-base"), combine="joint") as engine:
    for task in zoo.tasks():
        problem = zoo.problems(task)[0]
        out = engine.generate(problem.prompt, max_new_tokens=64)
        weights = ", ".join(
            f"{name} {alpha:.2f}" for name, alpha in zip(out.experts, out.alpha.mean(axis=0), strict=True)
        )
        print(f"{task}: {out.text.strip()!r}, mean alpha: {weights}")

    # A request may name its experts; the models of the others do not run.
    out = engine.generate(zoo.problems("facts")[0].prompt, experts=["facts"], max_new_tokens=64)
    print(f"facts expert only: {out.text.strip()!r}, alpha of the first token {out.alpha[0, 0]:.2f}")
