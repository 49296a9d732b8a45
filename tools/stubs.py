"""Generate dlf/_C.pyi from the installed extension; with `--check`, only check that it is up to date."""

import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STUB = Path(__file__).parents[1] / "dlf" / "_C.pyi"
HEADER = "# Generated from the extension by `make stubs`; do not edit.\n"


def generate() -> str:
    """Return the stub of dlf._C, formatted."""
    with tempfile.TemporaryDirectory() as folder:
        # Runs in another folder, so that it imports the installed package instead of the sources.
        command = [sys.executable, "-m", "pybind11_stubgen", "dlf._C", "--output-dir", folder]
        command += ["--numpy-array-wrap-with-annotated", "--enum-class-locations", ".*:dlf._C", "--exit-code"]
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        text = tidy((Path(folder) / "dlf" / "_C.pyi").read_text())
    ruff = Path(sys.executable).with_name("ruff")
    format_ = [ruff, "format", "--line-length", "120", "--stdin-filename", "_C.pyi", "-"]
    return subprocess.run(format_, input=text, capture_output=True, check=True, text=True).stdout


def tidy(text: str) -> str:
    """Drop values, which depend on this machine, and add type arguments for strict type checkers."""
    text = re.sub(r"^(\w+): str = .*$", r"\1: str", text, flags=re.MULTILINE)
    text = re.sub(r"^(\w+): tuple = .*$", r"\1: tuple[str, ...]", text, flags=re.MULTILINE)
    text = text.replace("**kwargs)", "**kwargs: typing.Any)").replace("-> tuple:", "-> tuple[typing.Any, ...]:")
    return HEADER + text


def main() -> int:
    fresh = generate()
    if "--check" not in sys.argv:
        STUB.write_text(fresh)
        return 0
    there = STUB.read_text() if STUB.exists() else ""
    sys.stdout.writelines(
        difflib.unified_diff(there.splitlines(True), fresh.splitlines(True), "dlf/_C.pyi", "the extension")
    )
    if there != fresh:
        print("dlf/_C.pyi is out of date: run `make stubs`")
    return int(there != fresh)


if __name__ == "__main__":
    sys.exit(main())
