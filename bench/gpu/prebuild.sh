#!/usr/bin/env bash
# Builds the programs of bench/gpu_acceptance.sh on a machine with nvcc, which needs no GPU. See --help.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: bench/gpu/prebuild.sh FOLDER [--arch ARCHITECTURES]

Builds this checkout with CUDA in build/gpu, and makes FOLDER for bench/gpu_acceptance.sh --prebuilt FOLDER:
  FOLDER/dlf   the package with its extension
  FOLDER/bin   the C++ tests of the CUDA backend, dlf_solver_time and dlf_linear_time, stripped
Existing folders of these names are replaced. The machine that runs them needs the same Python and torch, and no
compiler. Nothing is downloaded: torch with CUDA, nvcc, CMake and ninja must be installed.

--arch is CMake's CMAKE_CUDA_ARCHITECTURES, by default 90-real (H100, H200). PYTHON names the interpreter, by default
python3; CMAKE_BUILD_PARALLEL_LEVEL limits the number of compilers at once.
TEXT
}

fail() {
  echo "prebuild.sh: $*" >&2
  exit 2
}

output="" arch=90-real
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --arch) [ $# -ge 2 ] || fail "--arch needs architectures"; arch=$2; shift ;;
    -*) fail "no option $1; see --help" ;;
    *) [ -z "$output" ] || fail "one folder only"; output=$1 ;;
  esac
  shift
done
[ -n "$output" ] || { usage >&2; exit 2; }
mkdir -p "$output" && output=$(cd "$output" && pwd) || fail "cannot make the folder"
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=$(command -v "${PYTHON:-python3}") || fail "no interpreter '${PYTHON:-python3}'; set PYTHON to one"
# CMake and ninja may be packages of that interpreter.
PATH="$(dirname "$python"):$PATH:/usr/local/cuda/bin"

rm -rf "$output/dlf" "$output/bin" # so that no old build stays if this one fails
cmake -S . -B build/gpu -G Ninja -DCMAKE_BUILD_TYPE=Release -DPython_EXECUTABLE="$python" -DDLF_CUDA=ON \
  -DDLF_BUILD_TESTS=ON -DCMAKE_CUDA_ARCHITECTURES="$arch"
cmake --build build/gpu --target _C dlf_cuda_tests dlf_solver_time dlf_linear_time

mkdir "$output/bin"
cp -r dlf "$output/dlf"
find "$output/dlf" -name __pycache__ -prune -exec rm -rf {} +
rm -f "$output"/dlf/_C*.so
for extension in build/gpu/_C*.so; do strip -o "$output/dlf/$(basename "$extension")" "$extension"; done
cp build/gpu/_build.py "$output/dlf/"
for program in build/gpu/tests/cpp/*_cuda_test build/gpu/bench/gpu/dlf_*_time; do
  strip -o "$output/bin/$(basename "$program")" "$program"
done
du -sh "$output"
