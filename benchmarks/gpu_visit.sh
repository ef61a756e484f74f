#!/usr/bin/env bash
# What a visit of ten minutes to an NVIDIA GPU brings home: OUT=folder benchmarks/gpu_visit.sh
# Leaves log.txt and records.jsonl in $OUT, both complete up to wherever it was ended. It ends by itself after nine
# minutes. Needs torch, triton and the packages of the extra "test", no network. A wheel of the project in .whl/
# (pip wheel --no-deps -w .whl .) saves compiling it there.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 # the installed package, not the source folder; a log without delay
out=${OUT:?folder for the results}
mkdir -p "$out"

visit() {
  local pip="python3 -m pip install --quiet --no-deps" folder left workers=()
  $pip --no-index .whl/shazam_fast-*.whl 2>/dev/null || $pip --no-build-isolation . ||
    { $pip --no-build-isolation --target .site . && export PYTHONPATH=$PWD/.site; } || return 1
  echo "installed after $SECONDS s"
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader

  PYTHONPATH=benchmarks${PYTHONPATH:+:$PYTHONPATH} timeout -k 5 330 python3 benchmarks/gpu_first.py "$out" 300

  left=$((540 - SECONDS))
  if ((left > 30)); then # -v: one line per finished test, so that a test that is cut off takes none with it
    python3 -c "import xdist" 2>/dev/null && workers=(-n 12)
    timeout -k 5 "$left" python3 -m pytest -v "${workers[@]}" -p no:benchmark --tb=short -rfE \
      -k "not killed and not ctrl_c and not checkpoint" tests/training/test_training_step.py tests/ops \
      tests/kernels/test_halves.py tests/kernels/test_folding.py tests/kernels/test_projection.py \
      tests/kernels/test_stack.py tests/scoring tests/training tests/kernels/test_distillation.py \
      tests/kernels/test_attention.py | grep -v PASSED
  fi
}
visit 2>&1 | tee "$out/log.txt"
