"""Draw an expert's weight at each token.

Run it with ``python examples/trace.py [PICTURE]``; it needs matplotlib (``pip install 'dlf[plot]'``).
``dlf generate --plot`` draws the same, and ``--show-alpha`` prints it in the terminal.
"""

import sys

import dlf
from dlf import zoo
from dlf.plot import plot_alpha

path = sys.argv[1] if len(sys.argv) > 1 else "alpha.png"
expert = dlf.Expert(zoo.path("math-expert"), base=zoo.path("small-base"))
pieces: list[dlf.Piece] = []

with dlf.Engine(zoo.path("large-base"), experts=[expert]) as engine:
    out = engine.generate(zoo.problems("math")[0].prompt, callback=pieces.append, max_new_tokens=64)

plot_alpha(out, path, [piece.text for piece in pieces])
print(f"{len(pieces)} tokens drawn in {path}")
