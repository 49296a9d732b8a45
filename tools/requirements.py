"""Print requirements of pyproject.toml: those of the build system for `build`, otherwise those of an extra."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
extras = project["project"]["optional-dependencies"]
print(*(project["build-system"]["requires"] if sys.argv[1] == "build" else extras[sys.argv[1]]), sep="\n")
