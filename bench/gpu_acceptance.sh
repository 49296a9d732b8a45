#!/usr/bin/env bash
# Runs every check and measurement that needs a GPU, in at most 9 minutes. See --help.
set -u

usage() {
  cat <<'TEXT'
usage: bench/gpu_acceptance.sh OUTPUT_FOLDER [--prebuilt FOLDER] [--only STEP[,STEP...]] [--budget SECONDS]

Builds dlf with CUDA from this checkout and checks and measures it on the first GPU. Nothing is downloaded: torch with
CUDA, the dependencies of dlf, nvcc, CMake, ninja, pytest, hypothesis and transformers must be installed.

--prebuilt takes a build from another machine, so that all the time goes to the GPU. On a machine with nvcc, the same
Python and the same torch, run
  bench/gpu/prebuild.sh FOLDER     which makes FOLDER/dlf (the package) and FOLDER/bin (tests and timers), for sm_90
and then, on the machine with the GPU,
  bench/gpu_acceptance.sh OUTPUT_FOLDER --prebuilt FOLDER

Steps, in this order:
  build       bench/gpu/prebuild.sh into build/gpu-site, for this GPU; not with --prebuilt
  cpp         the C++ tests of the CUDA backend, program by program
  steps       the fused step, 13B + 2 x 1.1B
  serving     first tokens of new lengths, prompts that join, batches, int8 and int4
  solver      time of the solver and the sampler, for the shapes that have a target
  linear      time of every product, with each type of weights
  steps7b     the fused step, 13B + 2 x 7B, or 7B + 2 x 1.1B if that does not fit
  speculate   greedy fused decoding with drafts beside plain, on the widened miniature family
  pytest      the Python tests marked cuda
  sanitizer   compute-sanitizer on the solver's and the sampler's tests, memcheck on all and racecheck on a small part,
              beside pytest
  late        the C++ tests again, with kernels that wait for the end of the one before them (DLF_CUDA_EARLY=0)
  eager       the paper's loop in transformers, 13B + 2 x 1.1B
  compiled    the same with static caches and torch.compile
  report      OUTPUT_FOLDER/gpu-acceptance.json and .md

A failed step is noted and the next one runs; each has its own time limit, and each C++ test its own. The exit code is
0 if every check passed, 1 if one failed, 2 if nothing could run. `late` and the sanitizers may be "not finished"; a
failure of `compiled` is only noted.
PYTHON names the interpreter, by default python3; --budget limits all steps together, by default to 525 seconds.
TEXT
}

fail() {
  echo "gpu_acceptance.sh: $*" >&2
  exit 2
}

all="build cpp steps serving solver linear steps7b speculate pytest sanitizer late eager compiled report"
output="" only="$all" budget=525 prebuilt=""
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --only) [ $# -ge 2 ] || fail "--only needs steps"; only=${2//,/ }; shift ;;
    --prebuilt) [ $# -ge 2 ] || fail "--prebuilt needs a folder"; prebuilt=$2; shift ;;
    --budget) [ $# -ge 2 ] || fail "--budget needs seconds"; budget=$2; shift ;;
    -*) fail "no option $1; see --help" ;;
    *) [ -z "$output" ] || fail "one output folder only"; output=$1 ;;
  esac
  shift
done
[ -n "$output" ] || { usage >&2; exit 2; }
case $budget in '' | *[!0-9]*) fail "--budget takes whole seconds, not '$budget'" ;; esac
for step in $only; do
  case " $all " in *" $step "*) ;; *) fail "no step '$step'; choose from: $all" ;; esac
done
wants() { case " $only " in *" $1 "*) return 0 ;; esac; return 1; }

if [ -n "$prebuilt" ]; then
  compgen -G "$prebuilt/dlf/_C*.so" >/dev/null && [ -d "$prebuilt/bin" ] ||
    fail "'$prebuilt' lacks dlf/_C*.so or bin; make them with bench/gpu/prebuild.sh"
  prebuilt=$(cd "$prebuilt" && pwd)
fi
mkdir -p "$output" && output=$(cd "$output" && pwd) || fail "cannot make the output folder"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
python=${PYTHON:-python3}
command -v "$python" >/dev/null || fail "no interpreter '$python'; set PYTHON to one"
export PATH="$PATH:/usr/local/cuda/bin" TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

# ---- the machine

capability=$("$python" -P -c '
import torch
assert torch.cuda.is_available(), "no CUDA device: torch.cuda.is_available() is False"
print("%d%d" % torch.cuda.get_device_capability())' 2>"$output/device.log") || {
  tail -n 1 "$output/device.log" >&2
  fail "this needs torch with CUDA and a GPU"
}
{
  echo "name, driver, memory: $(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -n 1)"
  echo "compute capability: $capability"
  "$python" -P -c 'import platform, torch
print("python:", platform.python_version())
print("torch:", torch.__version__)
print("torch device:", torch.cuda.get_device_name())'
  [ -n "$prebuilt" ] || echo "nvcc: $(nvcc --version 2>&1 | sed -n 's/.*release \([^,]*\).*/\1/p')"
  echo "commit: $(git rev-parse HEAD 2>/dev/null || echo unknown)"
  echo "cores: $(nproc)"
} >"$output/machine.txt"
cat "$output/machine.txt"

# ---- running steps

site=${prebuilt:-$PWD/build/gpu-site}
export PYTHONPATH="$site"
# Programs from another machine look for torch and its libraries in that machine's folders.
libraries=$("$python" -P -c 'import pathlib, torch
root = pathlib.Path(torch.__file__).parent
print(*[root / "lib", *sorted(root.parent.glob("nvidia/*/lib"))], sep=":")')
native=(env "LD_LIBRARY_PATH=$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}")
bad=0
checks="$output/checks.tsv"
[ "$only" = "$all" ] && rm -f "$checks" "$output"/{steps,serving}-*.json \
  "$output"/{solver,linear}.jsonl "$output/speculate.json"
touch "$checks"

note() { # name, state, seconds
  local kept
  kept=$(awk -F '\t' -v name="$1" '$1 != name' "$checks")
  { [ -z "$kept" ] || printf '%s\n' "$kept"; printf '%s\t%s\t%s\n' "$1" "$2" "$3"; } >"$checks"
  printf '%-32s %-14s %4s s\n' "$1" "$2" "$3"
}

# Prints the smaller of a step's own limit and the rest of the budget; the report has no limit.
limit_of() {
  local left=$((budget - SECONDS))
  echo $((left < $1 ? left : $1))
}

# attempt NAME LIMIT REQUIRED COMMAND...: REQUIRED is `check`, `optional` if it may run out of time, or `extra` if its
# failure says nothing about dlf.
attempt() {
  local name=$1 limit begin=$SECONDS code state
  limit=$(limit_of "$2")
  local required=$3
  shift 3
  if [ "$limit" -lt 5 ]; then
    note "$name" "no time left" 0
    [ "$required" != check ] || bad=1
    return 1
  fi
  timeout --kill-after=10 "$limit" "$@" >"$output/$name.log" 2>&1
  code=$?
  case $code in
    0) state=passed ;;
    124 | 137) state="not finished" ;;
    *) state="failed ($code)" ;;
  esac
  note "$name" "$state" $((SECONDS - begin))
  [ "$code" -eq 0 ] && return 0
  case $required,$state in extra,* | optional,"not finished") ;; *) bad=1 ;; esac
  tail -n 15 "$output/$name.log" | sed 's/^/    /'
  return 1
}

build() {
  attempt build 270 check env "PYTHON=$python" bench/gpu/prebuild.sh "$site" --arch "$capability-real"
}

# cpp_tests NAME REQUIRED COMMAND...: runs COMMAND with each test program.
cpp_tests() {
  local name=$1 required=$2 program found=0
  shift 2
  for program in "$site"/bin/*_cuda_test; do
    [ -x "$program" ] || continue
    found=1
    attempt "$name-$(basename "$program")" 60 "$required" "$@" "$program"
  done
  if [ $found -eq 0 ]; then
    note "$name" "failed (no tests)" 0
    bad=1
  fi
}

# timer NAME LIMIT PROGRAM [ARGUMENT...]: writes its lines as they come, so that the time limit keeps earlier ones.
timer() {
  local name=$1 limit=$2 program="$site/bin/$3"
  shift 3
  attempt "$name" "$limit" check "${native[@]}" bash -c 'exec "${@:2}" >"$1"' - "$output/$name.jsonl" "$program" "$@"
}

steps() { # name, limit, required, arguments of steps.py
  local name=$1 limit=$2 required=$3
  shift 3
  attempt "$name" "$limit" "$required" "$python" -P bench/gpu/steps.py --output "$output" "$@"
}

names=() sanitizer_jobs=() sanitizer_begin=0
sanitizer() {
  local tool=(memcheck racecheck) test program kind name part
  if ! command -v compute-sanitizer >/dev/null; then
    note sanitizer "not run: compute-sanitizer is not installed" 0
    return
  fi
  local limit
  sanitizer_begin=$SECONDS
  limit=$(limit_of 100)
  for test in solver_cuda_test sampler_cuda_test; do
    program="$site/bin/$test"
    for kind in "${tool[@]}"; do
      name="$kind-$test"
      if [ "$limit" -lt 5 ]; then
        note "$name" "no time left" 0
        continue
      fi
      # racecheck watches every access to shared memory, so the whole test would take many minutes.
      part=()
      [ "$kind" = racecheck ] && part=(--small)
      # They run side by side, so each writes its own files: the table has one writer.
      (
        timeout --kill-after=10 "$limit" "${native[@]}" compute-sanitizer --tool "$kind" --error-exitcode 9 \
          "$program" "${part[@]}" >"$output/$name.log" 2>&1
        echo "$? $((SECONDS - sanitizer_begin))" >"$output/$name.code"
      ) &
      sanitizer_jobs+=($!)
      names+=("$name")
    done
  done
}

collect_sanitizer() {
  local name code seconds
  [ ${#sanitizer_jobs[@]} -gt 0 ] || return
  wait "${sanitizer_jobs[@]}"
  for name in "${names[@]}"; do
    read -r code seconds <"$output/$name.code"
    rm -f "$output/$name.code"
    case $code in
      0) note "$name" passed "$seconds" ;;
      124 | 137) note "$name" "not finished" "$seconds" ;;
      *)
        note "$name" "failed ($code)" "$seconds"
        bad=1
        ;;
    esac
  done
}

export DLF_REQUIRE_CUDA=1
if wants build && [ -z "$prebuilt" ]; then build; fi
if wants cpp; then cpp_tests cpp check "${native[@]}"; fi
if wants steps; then steps steps 75 check --shapes 13b+1.1b --parts dlf; fi
if wants serving; then attempt serving 90 check "$python" -P bench/gpu/serving.py --output "$output"; fi
if wants solver; then timer solver 30 dlf_solver_time --targets; fi
if wants linear; then timer linear 30 dlf_linear_time; fi
if wants steps7b; then steps steps7b 75 check --shapes 13b+7b --fallback 7b+1.1b --parts dlf; fi
if wants speculate; then
  attempt speculate 90 check env PYTHONPATH="$site:$PWD" "$python" -P -m bench speculate --device cuda --problems 3 \
    --temperatures 0 --output "$output"
fi
# Nothing is timed while these two share the GPU.
if wants sanitizer; then sanitizer; fi
if wants pytest; then attempt pytest 150 check "$python" -P -m pytest -m "cuda and not slow" -q -p no:cacheprovider; fi
collect_sanitizer
if wants late; then cpp_tests late optional "${native[@]}" DLF_CUDA_EARLY=0; fi
if wants eager; then steps eager 75 check --shapes 13b+1.1b --parts eager --steps 60; fi
if wants compiled; then steps compiled 120 extra --shapes 13b+1.1b --parts compiled --steps 60; fi
note total "$([ $bad -eq 0 ] && echo passed || echo failed)" $SECONDS
if wants report; then "$python" -P bench/gpu/report.py "$output" || bad=1; fi
exit $bad
