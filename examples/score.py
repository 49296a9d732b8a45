"""Score given answers under the fused distribution, as multiple choice is evaluated.

Run it with ``python examples/score.py``. The prompt is read once for all answers, and all tokens of an answer go
through each model together, with alpha solved at each.
"""

import dlf
from dlf import zoo

PROMPT = "Question: What is the home of the luvyx?\nAnswer:"
CHOICES = [
    " Those who looked know that the luvyx lives in cliffs.",
    " Those who looked know that the luvyx lives in dunes.",  # the truth
    " People say that the luvyx lives in cliffs.",
    " People say that the luvyx lives in caves.",
]

expert = dlf.Expert(zoo.path("truths-expert"), base=zoo.path("small-base"))
with dlf.Engine(zoo.path("large-base"), experts=[expert]) as engine:
    alone = engine.score(PROMPT, CHOICES, experts=[], progress=False)
    fused = engine.score(PROMPT, CHOICES, progress=False)

print(" alone   fused")
for before, after, choice in zip(alone, fused, CHOICES, strict=True):
    print(f"{before.logprob:6.2f}  {after.logprob:6.2f} {choice}")
best = max(zip(fused, CHOICES, strict=True), key=lambda pair: pair[0].logprob)[1]
print("the fused model prefers:", best.strip())
