"""Recipe files that tests write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["family_recipe", "write"]


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, "utf-8")
    return path


def family_recipe(family: dict[str, Path], tmp_path: Path, **sections: Any) -> Path:
    values = {
        "large": str(family["large"]),
        "base": str(family["base"]),
        "experts": [
            {"model": str(family["expert-a"]), "name": "a"},
            {"examples": [["The quick", "fox"]], "name": "shots", "alpha": 0.5},
        ],
        "sampling": {"max_new_tokens": 5, "ignore_eos": True},
    } | sections
    return write(tmp_path, json.dumps(values))  # JSON is YAML
