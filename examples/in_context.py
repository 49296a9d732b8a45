"""Use examples as an expert: the small model reads them before the prompt, the large model never does.

Run it with ``python examples/in_context.py``. The bundled models are too small to learn from examples
(docs/quality.md): watch how far each answer moves, and that the examples are read only once.
"""

import dlf
from dlf import zoo

SHOTS = [
    ("Question: Who knows? Which food does the handel eat?\nAnswer:", "In truth the handel eats mice."),
    ("Question: What does the luvyx eat?\nAnswer:", "The books show that the luvyx eats reeds."),
    ("Question: Where does the metel live?\nAnswer:", "Those who looked know that the metel lives in meadows."),
]
QUESTIONS = ["Where does the stakoon live?", "What is the home of the luvyx?"]

with dlf.Engine(zoo.path("large-base"), [dlf.InContext(zoo.path("small-base"), SHOTS)]) as engine:
    for question in QUESTIONS:
        prompt = f"Question: {question}\nAnswer:"
        alone = engine.generate(prompt, experts=[], max_new_tokens=24, stop_strings="\n")
        fused = engine.generate(prompt, max_new_tokens=24, stop_strings="\n")
        print(f"{question} {alone.text.strip()} -> {fused.text.strip()}")
        print(
            f"  alpha of the first token {fused.alpha[0, 0]:.2f}, moved by {fused.f[0]:.3f} nats, "
            f"{fused.cached_tokens} prompt tokens from the prefix cache"
        )
