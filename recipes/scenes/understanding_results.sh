#!/usr/bin/env bash
# GRPO on understanding, alone and beside drawing, from the checkpoint that `dina sft scenes/sft_describing` made.
# Usage: recipes/scenes/understanding_results.sh ARM SEED, with ARM one of understanding, mixed.
# Each call trains one run on one thread and compares it with its start on the test questions, descriptions and
# drawings: what one task gains and what the other loses. `python -m dina.eval.seeds` pools the seeds; docs/understanding.md.
set -euo pipefail
arm=$1 seed=$2
start=${START:-runs/sft_describing/final}
steps=${STEPS:-120}
prompts=recipes/scenes/prompts
out=${OUT:-runs/understanding}
run=$out/$arm-$seed
export OMP_NUM_THREADS=1
mkdir -p "$out"

case $arm in
  understanding | mixed) ;;
  *) echo "unknown arm $arm" >&2; exit 2 ;;
esac

[ -d "$run/checkpoints/step_$steps" ] || dina train "scenes/${arm}_grpo" model.path="$start" rl.runner=local run.threads=1 \
  run.seed="$seed" run.max_steps="$steps" run.save_steps=0 run.output_dir="$run"

files=(--prompts "$prompts/test.jsonl" --prompts "$prompts/vqa_test.jsonl" --prompts "$prompts/descriptions_test.jsonl")
before=$out/before/evaluation.json
[ -f "$before" ] || dina evaluate "$start" "${files[@]}" --out "$out/before"
dina compare "$before" "$run/checkpoints/step_$steps" "${files[@]}" --out "$run/test"
