#!/usr/bin/env bash
# Installs, tests and measures on the NVIDIA GPU of this machine, within ten minutes: OUT=folder benchmarks/gpu_visit.sh
# Leaves gpu.json (every record of every benchmark), profiles and logs in $OUT. Needs torch, triton and the packages of
# the extra "test"; installs without a network.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${OUT:?folder for the results}
mkdir -p "$out"
export PYTHONSAFEPATH=1 # the installed package, not the source folder

python3 -m pip install --quiet --no-build-isolation --no-deps . || exit 1
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee "$out/gpu.txt"

stage() { # name, seconds, command: what fails or takes too long leaves the rest its turn
  local name=$1 seconds=$2 started=$SECONDS
  shift 2
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  echo "$name: exit $? after $((SECONDS - started)) s"
  tail -n 3 "$out/$name.log"
}
bench() { # file, seconds, name of the record, further arguments
  local file=$1 seconds=$2 name=$3
  shift 3
  stage "$name" "$seconds" python3 -m pytest "benchmarks/$file.py" -q -rN --benchmark-columns=median \
    "--benchmark-json=$out/$name.json" "$@"
}

stage tests 150 python3 -m pytest -q -x tests/test_ops.py tests/test_kernel_attention.py tests/test_kernel_distillation.py \
  tests/test_kernel_projection.py tests/test_kernel_folding.py tests/test_kernel_stack.py tests/test_training.py \
  tests/test_training_step.py tests/test_scoring.py -k "not fit"
bench bench_training 100 bench_training
bench bench_scoring 60 bench_scoring --quick
for operation in stack attention losses projection; do # the whole grid would take longer than there is
  bench bench_kernels 45 "bench_kernels_$operation" -k "$operation and (N4 or D128)"
done
stage profile-bare 20 env PYTHONPATH=benchmarks python3 benchmarks/profile_step.py bare 128
stage profile-residual 20 env PYTHONPATH=benchmarks python3 benchmarks/profile_step.py residual 128

python3 - "$out" <<'PY'
import json
import sys
from pathlib import Path

out = Path(sys.argv[1])
files = sorted(p for p in out.glob("bench_*.json") if p.stat().st_size)
records = {p.stem: json.loads(p.read_text()) for p in files}
(out / "gpu.json").write_text(json.dumps(records, indent=1))
for name, content in records.items():
    print(name, len(content["benchmarks"]), "records")
PY
grep -h "us/step\|x eager\|x authors" "$out"/bench_*.log | tail -n 150
