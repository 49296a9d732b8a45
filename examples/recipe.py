"""Keep an experiment in one file: models, experts, fusion and sampling options.

Run it with ``python examples/recipe.py``. ``dlf recipe check FILE`` checks such a file without loading a model.
"""

import tempfile
from pathlib import Path

import dlf
from dlf import zoo

RECIPE = f"""
large: {zoo.path("large-base")}
base: {zoo.path("small-base")}
experts:
  - model: {zoo.path("math-expert")}
    alpha_max: 1.5
  - merge: {{{zoo.path("facts-expert")}: 0.5, {zoo.path("truths-expert")}: 0.5}}
    name: facts-and-truths
fusion: {{combine: joint}}
engine: {{max_context: 256}}
sampling: {{max_new_tokens: 64}}
"""

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "recipe.yaml"
    path.write_text(RECIPE)
    with dlf.Engine.from_recipe(path) as engine:
        print("experts:", ", ".join(engine.experts))
        for task in zoo.tasks():
            print(f"{task}:", engine.generate(zoo.problems(task)[0].prompt).text.strip())
