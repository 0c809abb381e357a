#!/usr/bin/env bash
# What scoring while others are drawn saves: the same run over Ray with and without, and the ratio of their step times.
# Usage: recipes/scenes/overlap.sh [STEPS] [KEY=VALUE...]; the first step of each run warms up and is not counted.
set -euo pipefail
steps=${1:-10}
shift || true
out=${OUT:-runs/overlap}
for overlap in true false; do
  dina train scenes/three_rewards rl.runner=ray run.max_steps="$steps" run.save_steps=0 optim.warmup_steps=0 \
    ray.reward.overlap=$overlap run.output_dir="$out/$overlap" "$@"
done
python - "$out" <<'PYTHON'
import json, statistics, sys
from pathlib import Path

def median(kind, name):
    lines = (Path(sys.argv[1]) / kind / "metrics.jsonl").read_text().splitlines()[1:]
    return statistics.median(json.loads(line)[name] for line in lines)

for name in ("step_time", "timing_s/generate", "timing_s/score"):
    with_, without = median("true", name), median("false", name)
    print(f"{name:<18} with overlap {with_:.2f} s, without {without:.2f} s, ratio {with_ / without:.3f}")
PYTHON
