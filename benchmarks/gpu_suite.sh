#!/usr/bin/env bash
# The measurements that need a GPU, in under 9 minutes. Writes JSON to $OUT (default: here).
#   OUT=results benchmarks/gpu_suite.sh
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
out=${OUT:-.}
mkdir -p "$out"

# Throughput and its limit, first update cold and warm.
timeout 170 python benchmarks/throughput.py --worlds 1024,4096,16384 --repeats 5 \
    --json "$out/throughput.json"

# The default command, from nothing to a driving ballbot.
run=$(mktemp -d)/ballbot
timeout 200 python -m jaxrl.train --out "$run" --log.tensorboard false
cp "$run/progress.csv" "$run/eval/final.json" "$out/"

# The same policy on the other drive model.
timeout 90 python -m jaxrl.evaluate "$run" --set env.drive=omniwheel --json "$out/omniwheel.json"

# Simulation, learning and the rest, for PPO, SAC and TD3.
timeout 70 python benchmarks/shares.py --repeats 3 --json "$out/shares.json"
