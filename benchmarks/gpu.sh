#!/usr/bin/env bash
# Everything that needs a GPU, in one command and under 10 minutes: the CUDA tests, and the step
# benchmark at WRN-34-10 (batch 128 and 256) and ResNet-18 (with ablations).
# Needs the packages of requirements.txt (of requirements-dev.txt for the tests). Writes to one folder and prints a short table last.
#
#     bash benchmarks/gpu.sh [OUT]            OUT is results/gpu-DATE unless given
#     SMALL=1 bash benchmarks/gpu.sh [OUT]    the same run at a size that a CPU ends within minutes
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
OUT=${1:-results/gpu-$(date +%Y-%m-%d)}
DEADLINE=$((SECONDS + 570))
mkdir -p "$OUT"

if [ -n "${SMALL:-}" ]; then
    models="wrn-10-1:wrn-10-1:16:fp32"
    batches="32"
    repeats=2
else
    models="wrn-34-10:resnet18-guide:128:bf16 resnet18:resnet18-guide:128:bf16"
    batches="256"
    repeats=3
fi

left() { echo $((DEADLINE - SECONDS)); }

# run NAME SECONDS ARGS...: one benchmark, never past the deadline; its text goes to NAME.txt, its figures to NAME.json.
run() {
    local name=$1 limit=$2
    shift 2
    [ "$limit" -le "$(left)" ] || limit=$(left)
    [ "$limit" -gt 10 ] || { echo "$name: skipped, the 10 minutes are over"; return; }
    echo "$name ..."
    timeout "$limit" "$PYTHON" -m benchmarks.train_step --repeats "$repeats" --json "$OUT/$name.json" "$@" \
        >"$OUT/$name.txt" 2>&1 || echo "$name: failed or ran out of time, see $OUT/$name.txt"
}

if "$PYTHON" -c 'import pytest' 2>/dev/null; then
    echo "CUDA tests ..."
    timeout 150 "$PYTHON" -m pytest tests -k "cuda or CUDA" -rs >"$OUT/tests.txt" 2>&1
    tail -n 3 "$OUT/tests.txt"
else
    echo "CUDA tests: skipped, pytest is not installed"
fi

for entry in $models; do
    IFS=: read -r student guide batch precision <<<"$entry"
    run "$student-batch$batch" 150 --student "$student" --guide "$guide" --batch-size "$batch" --precision "$precision"
done
run "$student-batch$batch-ablation" 150 --student "$student" --guide "$guide" --batch-size "$batch" \
    --precision "$precision" --ablate
IFS=: read -r student guide batch precision <<<"${models%% *}"
for size in $batches; do
    run "$student-batch$size" 150 --student "$student" --guide "$guide" --batch-size "$size" --precision "$precision"
done

"$PYTHON" - "$OUT" <<'EOF'
import json, sys
from pathlib import Path

print(f"{'run':28s} {'ratio':>6s} {'images/s':>9s} {'GFLOP/s':>9s} {'of peak':>8s} {'MiB':>7s}")
for path in sorted(Path(sys.argv[1]).glob("*.json")):
    f = json.loads(path.read_text())
    print(f"{path.stem:28s} {f['ratio']:6.2f} {f['images_per_second']:9.1f} {f['gflops_per_second']:9.0f} "
          f"{f['fraction_of_peak']:8.0%} {f['peak_memory_mib']:7.0f}")
EOF
