#!/usr/bin/env bash
# The measurements that need a GPU, in under 9 minutes: one JSON file and one Markdown table in
# $OUT (default: here).
#   OUT=results benchmarks/gpu_suite.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "${OUT:=.}"
python benchmarks/gpu_suite.py --seconds 500 --json "$OUT/gpu.json" --markdown "$OUT/gpu.md" "$@"
