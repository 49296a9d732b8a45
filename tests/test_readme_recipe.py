"""The recipe that the README shows."""

from __future__ import annotations

import re
from pathlib import Path

import dlf
from dlf.recipe import load_recipe

README = Path(__file__).parent.parent / "README.md"


def test_the_recipe_of_the_readme(tmp_path: Path) -> None:
    """What readers copy must load, and make the experts that its comments name."""
    shown = re.findall(r"^```yaml\n(.*?)^```", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    [recipe] = [text for text in shown if text.startswith("large:")]
    (tmp_path / "recipe.yaml").write_text(recipe, "utf-8")
    (tmp_path / "shots.jsonl").write_text('{"question": "a", "answer": "b"}\n', "utf-8")
    (tmp_path / "models" / "large").mkdir(parents=True)
    found = load_recipe(tmp_path / "recipe.yaml").engine_arguments()
    assert found["large"] == str(tmp_path / "models" / "large")
    assert [type(expert) for expert in found["experts"]] == [dlf.Expert, dlf.Lora, dlf.InContext, dlf.TaskArithmetic]
    named = re.findall(r"# dlf\.(\w+)", recipe)
    assert named == [type(expert).__name__ for expert in found["experts"]]
